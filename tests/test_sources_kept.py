"""Rows as Arrow on disk: each file is read once, and files of a split that differ are made alike."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from tasks.settings.fields import InputError
from tasks.sources import kept
from tasks.sources.kept import rows_of
from tests.test_data_splits import film_reviews, write


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test reads its files for the first time."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read from now on."""
    seen: list[str] = []
    write = kept.write

    def writes(piece: kept.Piece, *others: Any) -> None:
        seen.append(piece[0].name)
        write(piece, *others)

    monkeypatch.setattr(kept, "write", writes)
    return seen


def read(*paths: Path) -> Any:
    return rows_of([(path,) for path in paths])


def test_only_new_files_are_read(tmp_path: Path, files_read: list[str]) -> None:
    paths = [write(film_reviews(10)[24 * month :][:24], tmp_path / f"{month}.csv") for month in range(3)]
    first = read(*paths[:2])
    assert files_read == ["0.csv", "1.csv"]
    assert read(*paths[:2])[:] == first[:] and files_read == ["0.csv", "1.csv"]
    assert list(read(*paths)["text"]) == list(film_reviews(10)["text"][:72]) and files_read[2:] == ["2.csv"]


def test_file_is_known_by_its_content_wherever_it_lies(tmp_path: Path, files_read: list[str]) -> None:
    path = write(film_reviews(2), tmp_path / "a.csv")
    first = read(path)
    shutil.copyfile(path, tmp_path / "b.csv")
    os.utime(tmp_path / "b.csv", (0, 0))
    assert read(tmp_path / "b.csv")[:] == first[:] and files_read == ["a.csv"]
    before = path.stat()
    path.write_text(path.read_text().replace("warm", "fine"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert any("fine" in text for text in read(path)["text"]) and files_read == ["a.csv", "a.csv"]


def test_half_a_file_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nfine,1\na,b,c\n")
    for _ in range(2):
        with pytest.raises(InputError, match="row 1 has 3 fields"):
            read(path)
    assert not any(file.is_file() for file in (tmp_path / "cache").rglob("*"))


def test_columns_hold_what_the_last_row_makes_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "BATCH_ROWS", 2)
    rows: list[dict[str, Any]] = [{"text": "a", "n": 1, "b": True, "x": None} for _ in range(5)]
    rows += [{"text": "b", "n": 2.5, "b": "no", "x": "late", "new": [1]}, {"text": "c", "n": 2**70}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    found = read(tmp_path / "a.jsonl")
    assert {name: str(getattr(kind, "dtype", "json")) for name, kind in found.features.items()} == {
        "text": "string", "n": "float64", "b": "json", "x": "string", "new": "json"
    }  # fmt: skip
    assert found[5] == {"text": "b", "n": 2.5, "b": "no", "x": "late", "new": [1]}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "a.jsonl")["n"][-2:] == [2.5, str(2**70)]


# files that are not alike


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (["0100", "1"], [1, 2], ["0100", "1", 1, 2]),  # `datasets` would make the number 1 of "1"
        ([1, 2], [0.5, 2.0], [1, 2, 0.5, 2]),
        ([None, None], ["a", "b"], [None, None, "a", "b"]),
        ([True, False], ["true", "no"], [True, False, "true", "no"]),
    ],
    ids=str,
)
def test_values_of_different_kinds_stay_what_they_are(
    first: list[Any], second: list[Any], together: list[Any], tmp_path: Path
) -> None:
    for name, values in (("a", first), ("b", second)):
        rows = [json.dumps({"text": "x", "label": value}) for value in values]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    found = read(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert list(found["label"]) == together and list(found["text"]) == ["x"] * 4


def test_words_find_the_class_names_of_the_file_before(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    coded = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    coded.to_parquet(str(tmp_path / "a.parquet"))
    (tmp_path / "b.csv").write_text("text,label\nc,neg\nd,pos\n")
    found = read(tmp_path / "a.parquet", tmp_path / "b.csv")
    assert list(found["label"]) == [0, 1, 1, 0] and found.features["label"].names == ["pos", "neg"]


def test_columns_that_not_all_files_have_are_left_out(tmp_path: Path) -> None:
    first = write(film_reviews(1)[["label", "text"]].assign(more="x"), tmp_path / "a.csv")
    second = write(film_reviews(2)[12:], tmp_path / "b.parquet")
    assert read(first, second).column_names == ["label", "text"]
    assert list(read(first, second)["text"]) == list(film_reviews(2)["text"])


def test_file_without_rows_takes_nothing_from_others(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n")
    (tmp_path / "b.jsonl").write_text("\n")
    full = write(film_reviews(1), tmp_path / "c.csv")
    assert len(read(tmp_path / "a.csv", tmp_path / "b.jsonl", full)) == 12
    assert len(read(tmp_path / "a.csv")) == 0


def test_very_many_files_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(film_reviews(1)[row : row + 1], tmp_path / f"{row:02}.csv") for row in range(12)]
    monkeypatch.setattr(kept, "MOST_APART", 5)
    found = read(*paths)
    assert list(found["text"]) == list(film_reviews(1)["text"]) and len(found.cache_files) == 3


def test_tables_of_any_types_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table(
        {
            "text": pa.array(["a", "b"], pa.string_view()),
            "large": pa.array(["a", "b"], pa.large_string()),
            "label": pa.array(["x", "y"]).dictionary_encode(),
            "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int32())),
            "list": pa.array([["v"], None], pa.list_(pa.string())),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    kinds = [str(getattr(kind, "dtype", "list")) for kind in found.features.values()]
    assert kinds == ["string", "string", "string", "string", "list"]
    assert found[0] == {"text": "a", "large": "a", "label": "x", "map": "[('k', 1)]", "list": ["v"]}


def test_pandas_categories_are_words(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a", "b"], "label": pd.Categorical(["x", "y"])}).to_parquet(tmp_path / "a.parquet")
    assert list(read(tmp_path / "a.parquet")["label"]) == ["x", "y"]
