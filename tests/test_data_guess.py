"""What `peft-flow init` takes a data set for: columns of text and label, splits, length; and what it writes."""

import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli import DONE, USER_MUST_CHANGE, main
from tasks.settings.config import RunConfig
from tasks.settings.loading import load_config

WORDS = ("good", "bad", "film", "battery", "price", "service", "room", "staff", "food", "slow", "quick", "warm", "cold")


def words(count: int) -> str:
    return " ".join(DRAW.choice(WORDS) for _ in range(count))


DRAW = random.Random(0)

ROWS = 120

Cell = Callable[[int], Any]

TICKETS: dict[str, Cell] = {
    "ticket": lambda row: f"T{row:05}",
    "created": lambda row: f"2026-01-{1 + row % 28:02}",
    "customer message": lambda row: words(8 + row % 30),
    "product": lambda row: WORDS[row // 40],  # sorted
    "urgency": lambda row: WORDS[row % 5],
    "notes": lambda row: words(4),
}


def written(folder: Path, columns: dict[str, Cell], name: str = "rows.csv") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{column: cell(row) for column, cell in columns.items()} for row in range(ROWS)]
    with file.open("w", newline="") as opened:
        if file.suffix == ".jsonl":
            opened.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(opened, columns)
            writer.writeheader()
            writer.writerows(rows)
    return file


def init(*arguments: object) -> dict[str, Any]:
    """Section `data` of the configuration that it wrote, as far as it says something."""
    assert main(["init", *map(str, arguments)]) == DONE
    (file,) = Path.cwd().glob("*.yaml")
    return load_config(file, kind=RunConfig).data.model_dump(exclude_unset=True)


LABELLED = {"body": lambda row: words(20)}

CASES: dict[str, tuple[dict[str, Cell], str, dict[str, Any]]] = {
    "tickets": (
        TICKETS,
        "rows.csv",
        {"text_columns": ("customer message",), "label_column": "product", "task": "single_label", "max_length": 64},
    ),
    "long texts": (
        {"text": lambda row: words(150), "label": lambda row: row % 2},
        "rows.csv",
        {"text_columns": ("text",), "label_column": "label", "task": "single_label", "max_length": 256},
    ),
    "columns of 0 and 1": (
        {"id": lambda row: row, **LABELLED, **dict.fromkeys(("a", "b"), lambda row: DRAW.randint(0, 1))},
        "rows.csv",
        {"text_columns": ("body",), "label_columns": ("a", "b"), "task": "multi_label", "max_length": 64},
    ),
    "lists": (
        {**LABELLED, "n": lambda row: row + 1, "tags": lambda row: DRAW.sample(["x", "y", "z"], row % 3)},
        "rows.jsonl",
        {"text_columns": ("body",), "label_column": "tags", "task": "multi_label", "max_length": 64},
    ),
    "labels in one word": (
        {**LABELLED, "what": lambda row: "|".join(DRAW.sample(["x", "y", "z", "w", "v"], 1 + row % 3))},
        "rows.csv",
        {"text_columns": ("body",), "label_column": "what", "task": "multi_label", "max_length": 64},
    ),
    "a number": (
        {**LABELLED, "euros": lambda row: round(DRAW.uniform(1, 99), 2)},
        "rows.csv",
        {"text_columns": ("body",), "label_column": "euros", "task": "regression", "max_length": 64},
    ),
    "codes that look like numbers": (
        {**LABELLED, "label": lambda row: ["007.1", "007.10", "7.1"][row % 3]},
        "rows.csv",
        {"text_columns": ("body",), "label_column": "label", "task": "single_label", "max_length": 64},
    ),
    "pairs": (
        {"premise": lambda row: words(9), "hypothesis": lambda row: words(7), "gold": lambda row: "yn"[row % 2]},
        "rows.csv",
        {"text_columns": ("premise", "hypothesis"), "label_column": "gold", "task": "single_label", "max_length": 64},
    ),
    "single words": (
        {"query": lambda row: f"{WORDS[row % 13]}{row}", "intent": lambda row: "yn"[row % 2]},
        "rows.csv",
        {"text_columns": ("query",), "label_column": "intent", "task": "single_label", "max_length": 64},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_columns_are_taken_for_what_they_are(case: str, workplace: Path) -> None:
    columns, name, expected = CASES[case]
    file = written(workplace / "data", columns, name)
    found = init(file.relative_to(workplace))
    assert found == {"name": f"data/{name}", **expected}


def test_every_choice_has_its_reason_on_the_screen_and_in_the_file(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init(written(workplace / "data", TICKETS), "tickets.yaml")
    screen, file = capsys.readouterr().out, (workplace / "tickets.yaml").read_text()
    for text in (" ".join(screen.split()), file):
        assert "the longest texts, " in text and "notes would be possible too, or two as a pair" in text
        assert "fewest different values; 3 different values: good (40), bad (40), film (40); urgency would be" in text
    assert "96 train, 12 validation, 12 test rows" in screen and "no test split: 12 rows were cut" in screen
    assert screen.endswith("written   tickets.yaml\nnext      peft-flow finetune tickets.yaml\n")
    assert file.startswith(f"# Made by peft-flow init {workplace}/data/rows.csv\nmodel:\n  name: sentence-tr")


def test_files_of_a_split_are_known_by_their_usual_names(workplace: Path) -> None:
    columns = {"text": lambda row: words(9), "label": lambda row: "yn"[row % 2]}
    for split in ("train", "dev"):
        written(workplace / "data", columns, f"{split}.csv")
    assert "validation_split" not in init("data")


def test_class_names_and_rows_of_every_part_are_seen(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a data set as `datasets` saves it, sorted by class, with more rows than are drawn."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    monkeypatch.setattr("tasks.data.guess.KEPT", 40)
    features = Features({"sentence": Value("string"), "kind": ClassLabel(names=["neg", "pos"])})
    rows = {"sentence": [words(9) for _ in range(ROWS)], "kind": [int(row >= ROWS // 2) for row in range(ROWS)]}
    DatasetDict({name: Dataset.from_dict(rows, features) for name in ("train", "val")}).save_to_disk("data")
    assert init("data") == {
        "name": "data",
        "text_columns": ("sentence",),
        "label_column": "kind",
        "max_length": 64,
        "validation_split": "val",
        "task": "single_label",
    }
    assert re.search(
        r"2 different values: (pos|neg) \(\d+\), (pos|neg) \(\d+\)", " ".join(capsys.readouterr().out.split())
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": lambda row: 1.5 * row, "b": lambda row: row}, "no column holds sentences; there are a, b. Name one in"),
        (
            {"text": lambda row: words(9)},
            "no column can be a label; besides text there are none. Name one in",
        ),
        ({"text": lambda row: words(9), "id": lambda row: row + 7}, "besides text there are id"),
    ],
)
def test_what_cannot_be_guessed_is_one_line(
    columns: dict[str, Cell], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(written(workplace / "data", columns))]) == USER_MUST_CHANGE
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not list(workplace.glob("*.yaml"))


def test_what_is_wrong_with_the_data_is_told_and_the_file_written_all_the_same(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {"text": lambda row: words(9) if row != 7 else "", "label": lambda row: "yn"[row % 2]}
    assert main(["init", str(written(workplace / "data", columns))]) == USER_MUST_CHANGE
    assert "1 empty text in column 'text' (train row 7)" in capsys.readouterr().err
    assert load_config(workplace / "rows.yaml", kind=RunConfig).data.label_column == "label"


@pytest.mark.parametrize(
    ("config", "message"), [("there.yaml", "there.yaml is there already"), ("a.txt", "must be a file NAME.yaml"),
                            ("no/a.yaml", "in a folder that is there")]
)  # fmt: skip
def test_no_file_is_written_over(
    config: str, message: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "there.yaml").write_text("mine")
    assert main(["init", str(written(workplace / "data", TICKETS)), config]) == USER_MUST_CHANGE
    assert message in capsys.readouterr().err and (workplace / "there.yaml").read_text() == "mine"
