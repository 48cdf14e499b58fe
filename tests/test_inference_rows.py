"""Rows of every kind of input, one at a time; a bad one is named, and costs no other."""

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tasks.inference import rows as reading
from tasks.inference.rows import Row, find_rows, formulas_in, notes_of, read_rows
from tasks.settings.config import PredictionConfig
from tasks.settings.fields import InputError
from tests.test_sources_formats import sheet_with

TEXTS = ["a warm, funny film", 'he said "superb"', "über\nzwei Zeilen", "dull", "x\ry"]


def config(given: Path | str, **fields: Any) -> PredictionConfig:
    return PredictionConfig(model="m", input=str(given), output="out.csv", offline=True, **fields)


def read(given: Path | str, columns: tuple[str, ...] = ("text",), **fields: Any) -> list[Row]:
    asked = config(given, **fields)
    return list(read_rows(asked, find_rows(asked), columns))


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def frame() -> pd.DataFrame:
    return pd.DataFrame({"id": range(7, 12), "text": TEXTS, "stars": [1, 2, 3, 4, 5]})


def write(path: Path) -> Path:
    table = frame()
    match path.suffix:
        case ".csv":
            table.to_csv(path, index=False, quoting=1)
        case ".json":
            table.to_json(path, orient="records")
        case ".jsonl":
            table.to_json(path, orient="records", lines=True)
        case ".parquet":
            table.to_parquet(path)
    return path


def test_formula_that_nobody_calculated_is_named(tmp_path: Path) -> None:
    path = sheet_with(tmp_path / "a.xlsx", [["text", "more"], ["a film", "=1"], ["=A2", "b"], ["=A3", "=B3"]])
    asked = config(path)
    assert [row.fault for row in read(path)] == ["", *["has no text in column 'text'"] * 2]
    (told,) = formulas_in(asked, find_rows(asked), ["text"])
    assert told.startswith("cell A3 of a.xlsx holds a formula without a stored value")


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    rows = read(write(tmp_path / f"reviews{suffix}"))
    assert [row.texts for row in rows] == [(text,) for text in TEXTS]
    assert [row.number for row in rows] == [0, 1, 2, 3, 4]
    assert [row.id for row in rows] == (["7", "8", "9", "10", "11"] if suffix == ".csv" else [7, 8, 9, 10, 11])
    assert not any(row.fault for row in rows)
    shares = [row.share or 0 for row in rows]
    assert shares == sorted(shares) and shares[-1] == 1


def test_pretty_printed_json_and_objects_by_line_are_read_too(tmp_path: Path) -> None:
    values = [{"text": text} for text in TEXTS]
    for content in (json.dumps(values, indent=4), "\n".join(map(json.dumps, values)) + "\n\n"):
        rows = read(written(tmp_path, "reviews.json", "\ufeff" + content))
        assert [row.texts[0] for row in rows] == TEXTS


def test_a_json_array_far_longer_than_what_is_read_at_once_is_whole(tmp_path: Path) -> None:
    texts = [f"{row} " + "é" * (200 if row % 50 else 150_000) for row in range(700)]
    rows = read(written(tmp_path, "long.json", json.dumps([{"text": text} for text in texts], ensure_ascii=False)))
    assert [row.texts[0] for row in rows] == texts


def test_rows_are_read_only_when_they_are_asked_for(tmp_path: Path) -> None:
    """Of a file whose end is broken the first rows can be had."""
    for name, content in (
        ("a.json", "[" + '{"text": "fine"},' * 50_000 + "{"),
        ("a.csv", "text\n" + "fine\n" * 50_000 + '"never closed'),
    ):
        asked = config(written(tmp_path, name, content))
        rows = read_rows(asked, find_rows(asked), ("text",))
        assert [next(rows).texts for _ in range(3)] == [("fine",)] * 3
        with pytest.raises(InputError, match="row 50000"):
            list(rows)


def test_pairs_come_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, "pairs.csv", "b,a\ntwo,one\n")
    assert read(path, ("a", "b"))[0].texts == ("one", "two")


BAD = {
    "csv fields": ("a.csv", "text,n\nfine,1\na,b,c\nfine,2\n", "has 3 fields, and the header 2", "a,b,c\n"),
    "csv quotes": ("a.csv", 'text,n\nfine,1\n"a "b" c",2\nfine,2\n', "cannot be read", '"a "b" c",2\n'),
    "csv text": ("a.csv", "text,n\nfine,1\n  ,2\nfine,2\n", "has no text in column 'text'", {"text": "  ", "n": "2"}),
    "csv utf-8": ("a.csv", b"text,n\nfine,1\ncaf\xe9,2\nfine,2\n", "column 'text' is not valid UTF-8", None),
    "jsonl broken": ("a.jsonl", '{"text": "fine"}\n{"text": \n{"text": "fine"}\n', "is not valid JSON", '{"text": \n'),
    "jsonl null": ("a.jsonl", '{"text": "fine"}\n{"text": null}\n{"text": "fine"}', "has no text", {"text": None}),
    "jsonl none": ("a.jsonl", '{"text": "fine"}\n{"n": 1}\n{"text": "fine"}', "has no text", {"n": 1}),
    "jsonl list": ("a.jsonl", '{"text": "fine"}\n[1]\n{"text": "fine"}', "is a list, not a JSON object", [1]),
    "jsonl number": ("a.jsonl", '{"text": "fine"}\n{"text": 5}\n{"text": "fine"}', "holds int, not text", {"text": 5}),
    "jsonl deep": ("a.jsonl", '{"text": "fine"}\n' + "[" * 99_999 + '\n{"text": "fine"}', "is not valid JSON", None),
    "jsonl half a letter": ("a.jsonl", '{"text": "fine"}\n{"text": "\\ud800"}\n{"text": "fine"}', "UTF-8", None),
    "jsonl utf-8": ("a.jsonl", b'{"text": "fine"}\n{"text": "caf\xe9"}\n{"text": "fine"}', "not valid UTF-8", None),
    "json null": ("a.json", '[{"text": "fine"}, null, {"text": "fine"}]', "is null, not a JSON object", None),
    "json utf-8": ("a.json", b'[{"text": "fine"}, {"text": "\xe9"}, {"text": "fine"}]', "not valid UTF-8", None),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_says_so_and_those_around_it_are_read(case: str, tmp_path: Path) -> None:
    name, content, fault, given = BAD[case]
    before, bad, after = read(written(tmp_path, name, content))
    assert (before.texts, after.texts) == (("fine",), ("fine",))
    assert not before.fault and not after.fault
    assert bad.number == 1 and bad.texts == () and fault in bad.fault
    if given is not None:
        assert bad.given == given


def test_a_text_of_a_parquet_file_that_is_not_utf_8_costs_no_other(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.array([b"fine", b"caf\xe9", None]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    fine, latin, none = read(tmp_path / "a.parquet")
    assert fine.texts == ("fine",) and "UTF-8" in latin.fault and "no text" in none.fault


def test_words_as_categories_of_a_parquet_file_are_texts(tmp_path: Path) -> None:
    pd.DataFrame({"text": pd.Categorical(["a", "b", "a"])}).to_parquet(tmp_path / "a.parquet")
    assert [row.texts for row in read(tmp_path / "a.parquet")] == [("a",), ("b",), ("a",)]


REFUSED = {
    "no column csv": ("a.csv", "body,stars\na,1\n", ("text_columns", "no column 'text'", "body, stars")),
    "no column jsonl": ("a.jsonl", '{"body": "a"}\n', ("text_columns", "no column 'text'", "body")),
    "no column twice": ("a.csv", "text,text\na,b\n", ("input: ", "'text' twice")),
    "csv quote": ("a.csv", 'text,n\nfine,1\n"never closed,2\nfine,3\n', ("a.csv", "never closed", "row 1", "line 3")),
    "csv cell": ("a.csv", 'text\nfine\n"' + "x\n" * 5_000_001 + '"\n', ("a.csv", "never closed", "row 1")),
    "csv line": ("a.csv", "text\n" + "x" * 10_000_001, ("a.csv", "10,000,000 characters", "line 2")),
    "json end": ("a.json", '[{"text": "a"}, {"text": "b"}', ("a.json", "row 1", "never closed")),
    "json comma": ("a.json", '[{"text": "a"} {"text": "b"}]', ("a.json", "row 0", "not a comma")),
    "json object": ("a.json", '[{"text": "a"}, {"text": }]', ("a.json", "row 1", "valid JSON")),
    "parquet": ("a.parquet", "no parquet", ("a.parquet", "cannot be read")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_spoils_all_that_follows_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    name, content, says = REFUSED[case]
    with pytest.raises(InputError) as refusal:
        read(written(tmp_path, name, content))
    for words in says:
        assert words in str(refusal.value)


def test_missing_column_of_a_parquet_file_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'body'.*id, text, stars"):
        read(write(tmp_path / "a.parquet"), ("body",))


# --- folders, data sets, standard input ------------------------------------------------------------------------------


def test_a_split_of_a_folder_is_chosen_by_its_name(reviews: Path) -> None:
    rows = read(reviews, split="test")
    assert [row.texts[0] for row in rows] == pd.read_csv(reviews / "test.csv")["text"].tolist()
    with pytest.raises(InputError, match=r"split: name one split; .* has train, validation, test"):
        read(reviews)
    with pytest.raises(InputError, match=r"split: there is no split 'dev'; .* has train, validation, test"):
        read(reviews, split="dev")


def test_files_of_one_split_are_read_one_after_the_other(tmp_path: Path) -> None:
    for name, text in (("a.csv", "first"), ("b.csv", "second")):
        written(tmp_path, name, f"text\n{text}\n")
    rows = read(tmp_path)
    assert [(row.number, row.texts, row.share) for row in rows] == [(0, ("first",), 0.5), (1, ("second",), 1.0)]


def test_every_row_of_a_folder_is_read(tmp_path: Path) -> None:
    """Whatever the files are called, as long as they are not those of two splits."""
    for name in ("train.csv", "backup.csv", "old/train-2.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(tmp_path, name, '{"text": "a"}\n' if name.endswith("jsonl") else "text\na\n")
    assert len(read(tmp_path)) == 3
    written(tmp_path, "test.csv", "text\nb\n")
    assert [row.texts for row in read(tmp_path, split="test")] == [("b",)]
    asked = config(tmp_path, split="test")
    assert notes_of(asked, find_rows(asked)) == ["not labelled: backup.csv, old/train-2.jsonl, train.csv"]


def test_data_set_that_was_saved_is_read(tmp_path: Path) -> None:
    import datasets

    saved = datasets.Dataset.from_dict({"text": TEXTS, "id": range(5)})
    saved.save_to_disk(str(tmp_path / "one"))
    assert [(row.texts[0], row.id) for row in read(tmp_path / "one")] == list(zip(TEXTS, range(5), strict=True))
    datasets.DatasetDict(train=saved, test=saved.select([1])).save_to_disk(str(tmp_path / "two"))
    assert [row.texts[0] for row in read(tmp_path / "two", split="test")] == TEXTS[1:2]


def test_a_file_has_no_splits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="split, config: only data sets and folders have them"):
        read(write(tmp_path / "a.csv"), split="test")


@pytest.mark.hub
def test_a_data_set_of_the_hub_is_read(hub: Any, hub_environment: dict[str, str]) -> None:
    import subprocess

    code = (
        "from tasks.base import environment\nfrom tasks.settings.config import PredictionConfig\n"
        "from tasks.inference.rows import find_rows, read_rows\n"
        "asked = PredictionConfig(model='m', input='rotten_tomatoes', output='o.csv', split='test')\n"
        "rows = list(read_rows(asked, find_rows(asked), ('text',)))\n"
        "print(len(rows), rows[-1].number, rows[-1].share, bool(rows[0].texts[0]))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=hub_environment, capture_output=True, text=True)
    assert done.stdout.split() == ["1066", "1065", "1.0", "True"], done.stderr


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`typed("a\\n")`: what standard input holds."""
    opened: list[io.FileIO] = []

    def give(content: bytes) -> None:
        source, target = os.pipe()
        os.write(target, content)
        os.close(target)
        opened.append(io.FileIO(source))
        monkeypatch.setattr(reading.sys, "stdin", type("Stdin", (), {"buffer": opened[-1]}))

    yield give
    for file in opened:
        file.close()


def test_lines_of_standard_input_are_texts(typed: Any) -> None:
    typed("a film\n\n  über  \r\nlast".encode())
    rows = read("-")
    assert [row.texts for row in rows] == [("a film",), (), ("  über  ",), ("last",)]
    assert rows[1].fault == "has no text in column 'text'" and rows[0].share is None


def test_objects_of_standard_input_are_rows(typed: Any) -> None:
    typed(b'{"id": "x", "text": "a film"}\n{"text": \n\n{"text": "dull"}\n')
    first, bad, last = read("-")
    assert (first.texts, first.id, last.texts, last.number) == (("a film",), "x", ("dull",), 2)
    assert "not valid JSON" in bad.fault


@pytest.mark.parametrize("blank", ["\n", "  \r\n", "\n" * 5])
def test_blank_line_before_the_objects_of_standard_input_is_no_text(blank: str, typed: Any) -> None:
    typed((blank + '{"text": "a film"}\n{"text": "dull"}\n').encode())
    assert [row.texts for row in read("-")] == [("a film",), ("dull",)]


def test_blank_lines_before_plain_texts_are_rows_without_text(typed: Any) -> None:
    typed(b"\n\na film\n")
    assert [row.texts for row in read("-")] == [(), (), ("a film",)]


def test_plain_lines_are_no_pairs_of_texts(typed: Any) -> None:
    typed(b"a film\n")
    with pytest.raises(InputError, match="reads a and b; give JSON objects with both, one a line"):
        read("-", ("a", "b"))


def test_empty_standard_input_has_no_rows(typed: Any) -> None:
    typed(b"")
    assert read("-") == []
