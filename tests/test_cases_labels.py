"""Users' cases of ../shared/cases that are about labels and splits, in their right form."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.models.serving import check_request, keep_words_of_csv
from tasks.retraining import challenger as retraining
from tasks.retraining import trials
from tasks.settings.fields import InputError
from tasks.settings.sections import DataConfig
from tasks.sources.hub import find
from tests.conftest import SHARED, bare_data
from tests.test_data_splits import read

pytestmark = pytest.mark.hub
CASES = SHARED / "cases"


def test_minus_one_zero_one_are_three_classes() -> None:
    splits = read(CASES / "minus-one-zero-one.csv")
    assert splits.label_names == ("-1", "0", "1")
    labels = Counter(label for split in splits.datasets.values() for label in split["label"])
    assert labels == {0: 20, 1: 20, 2: 19}


def test_unlabelled_test_names_the_option_that_helps() -> None:
    with pytest.raises(InputError, match=r"--data\.test_split validation tests on the validation rows"):
        read(CASES / "unlabelled-test", text_columns=["sentence"])
    splits = read(CASES / "unlabelled-test", text_columns=["sentence"], test_split="validation")
    assert {name: len(split) for name, split in splits.datasets.items()} == {"train": 144, "validation": 16, "test": 40}
    assert "validation: the split 'validation' is test already: 16 rows were cut from train" in splits.notes[-1]


def test_test_file_without_labels_is_reported_and_the_rest_can_be_used() -> None:
    with pytest.raises(InputError, match=r"label.*--data\.test_split train cuts test rows from train"):
        read(CASES / "test-without-label")


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("icd-codes.csv", ("007.1", "008.45", "008.50")),
        ("leading-zeros.csv", ("0100", "0200")),
        ("leading-zeros.jsonl", ("0110", "0111", "0210")),
    ],
)
def test_codes_are_classes_as_they_are_written(name: str, classes: tuple[str, ...]) -> None:
    rows, splits = list(read_rows(CASES / name)), read(CASES / name)
    assert splits.label_names == classes
    for split in splits.datasets.values():
        assert [classes[label] for label in split["label"]] == [rows[row]["label"] for row in split["row"]]


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        yield from csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file)


@pytest.mark.parametrize(
    ("variant", "rows", "classes"),
    [
        ("plus4", 30, (("late",), (), ("bad", "good", "odd"), 0)),
        ("gone", 20, ((), ("odd",), ("bad", "good"), 10)),
        ("renamed", 20, (("strange",), ("odd",), ("bad", "good"), 10)),
    ],
)
def test_classes_come_and_go_and_the_others_are_compared(
    variant: str, rows: int, classes: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = CASES / "classes-come-and-go"
    base, file = read(folder / "base"), tmp_path / "logged.parquet"
    frame = base.datasets["test"].to_pandas()
    frame = frame.assign(label=[base.label_names[label] for label in frame["label"]])[["row", "text", "label"]]
    frame.to_parquet(file, index=False)
    monkeypatch.setattr(retraining, "download", lambda *_: file)
    monkeypatch.setattr(
        retraining, "settings_of", lambda *_: {"text_columns": ["text"], "label_names": base.label_names}
    )
    source = find("dataset", str(folder / variant), "main", offline=True)
    test = retraining.frozen_test("0", source, DataConfig(name=source.name), tmp_path)
    splits = read(folder / variant, test_file=str(test))
    assert len(splits.datasets["test"]) == rows
    data = bare_data(source, splits.label_names)
    counts = Counter(splits.datasets["test"]["label"])
    data = data.model_copy(update={"class_counts": {"test": tuple(counts[i] for i in range(len(data.label_names)))}})
    found = trials.new_classes(base.label_names, data, frame, "")
    assert found and found[:4] == classes


def test_served_csv_keeps_each_word(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.pyfunc import scoring_server

    monkeypatch.setattr(scoring_server, "parse_csv_input", scoring_server.parse_csv_input)
    keep_words_of_csv()
    with (CASES / "served-rows.csv").open(encoding="utf-8", newline="") as file:
        served = scoring_server.parse_csv_input(file)
    check_request(served, ["text"])
    assert served.to_dict("records") == list(read_rows(CASES / "served-rows.csv"))
