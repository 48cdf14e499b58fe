"""A folder that grows: only new files are read, and the rows are those of the whole folder."""

import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from tasks import folders, reading
from tasks.config import InputError, validated
from tasks.hub import find
from tests.test_splits import FORMATS, film_reviews, write


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test reads its files for the first time."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that `datasets` reads from now on, and `checked NAME` of those that we look into before."""
    seen: list[str] = []
    read, check = datasets.DatasetBuilder.download_and_prepare, reading.check_file

    def reads(self: Any, *arguments: Any, **named: Any) -> None:
        seen.extend(Path(file).name for files in self.config.data_files.values() for file in files)
        read(self, *arguments, **named)

    def checks(file: Path) -> None:
        seen.append(f"checked {file.name}")
        check(file)

    monkeypatch.setattr(datasets.DatasetBuilder, "download_and_prepare", reads)
    monkeypatch.setattr(reading, "check_file", checks)
    return seen


def load(folder: Path) -> Any:
    config = validated({"data": {"name": str(folder)}}).data
    return reading.load(find("dataset", str(folder), "main", offline=True), config)


def same(loaded: Any, other: Any) -> bool:
    """Whether both have the same rows in the same splits, in the same order and columns."""
    assert {name: split.features.arrow_schema for name, split in loaded.items()} == {
        name: split.features.arrow_schema for name, split in other.items()
    }
    assert list(loaded) == list(other)
    return {name: split[:] for name, split in loaded.items()} == {name: split[:] for name, split in other.items()}


@pytest.mark.parametrize("kind", FORMATS)
def test_only_new_files_are_read(kind: str, tmp_path: Path, files_read: list[str]) -> None:
    frame, folder = film_reviews(10), tmp_path / "data"
    for month in range(3):
        write(frame[24 * month :][:24], folder / f"train-{month}.{kind}")
    write(frame[72:96], folder / f"test.{kind}")
    first = load(folder)
    assert sorted(files_read) == sorted(
        [name for file in folder.iterdir() for name in (file.name, f"checked {file.name}")]
    )
    files_read.clear()
    assert same(load(folder), first) and files_read == []
    write(frame[96:], folder / f"train-0-late.{kind}")  # not after the others
    grown = load(folder)
    assert files_read == [f"checked train-0-late.{kind}", f"train-0-late.{kind}"]
    assert same(grown, datasets.load_dataset(str(folder)))
    assert len(grown["train"]) == 96


def test_file_is_known_by_its_content_wherever_it_lies(tmp_path: Path, files_read: list[str]) -> None:
    frame = film_reviews(10)
    for month in range(3):
        write(frame[24 * month :][:24], tmp_path / f"data/{month}.csv")
    first = load(tmp_path / "data")
    files_read.clear()
    shutil.copytree(tmp_path / "data", tmp_path / "moved", copy_function=shutil.copyfile)
    os.utime(tmp_path / "moved/0.csv", (0, 0))
    assert same(load(tmp_path / "moved"), first) and files_read == []
    before = (tmp_path / "data/1.csv").stat()
    changed = (tmp_path / "data/1.csv").read_text().replace("warm", "fine")
    (tmp_path / "data/1.csv").write_text(changed)
    os.utime(tmp_path / "data/1.csv", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert any("fine" in text for text in load(tmp_path / "data")["train"]["text"])
    assert files_read == ["checked 1.csv", "1.csv"]


CONFIGS = """---
configs:
- config_name: plain
  data_files: plain/*
- config_name: other
  default: true
  sep: ";"
  data_files:
  - split: train
    path: [b.csv, a.csv]
  - split: held_out
    path: c.csv
---
"""


@pytest.mark.parametrize(
    "names",
    [
        ("a.csv", "b.csv", "c.csv"),
        ("train-00000.csv", "train-00001.csv", "test.csv"),
        ("data/train/a.csv", "data/train/b.csv", "data/test/a.csv"),
        ("data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv", "data/extra-00000-of-00001.csv"),
        ("[a] 1.csv", "[b] 2.csv", "test/é*.csv"),
    ],
    ids=lambda names: names[0],
)
def test_splits_are_those_of_the_folder_as_a_whole(names: tuple[str, ...], tmp_path: Path, monkeypatch: Any) -> None:
    for place, name in enumerate(names):
        write(film_reviews(10)[24 * place :][:24], tmp_path / "data" / name)
    whole = datasets.load_dataset(str(tmp_path / "data"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("read as a whole"))
    assert same(load(tmp_path / "data"), whole)


def test_files_are_read_as_the_head_of_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    for place, name in enumerate(("a.csv", "b.csv", "c.csv")):
        film_reviews(10)[24 * place :][:24].to_csv(tmp_path / "data" / name, index=False, sep=";")
    write(film_reviews(1), tmp_path / "data/plain/d.csv")
    (tmp_path / "data/README.md").write_text(CONFIGS)
    whole = datasets.load_dataset(str(tmp_path / "data"), "other")
    assert list(whole) == ["train", "held_out"] and whole["train"].column_names == ["text", "label"]
    config = validated({"data": {"name": str(tmp_path / "data"), "config": "other"}}).data
    source = find("dataset", str(tmp_path / "data"), "main", offline=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("read as a whole"))
    assert same(reading.load(source, config), whole)


def test_same_file_is_read_again_in_another_way(tmp_path: Path) -> None:
    columns = []
    for folder, separator in (("a", ";"), ("b", ",")):
        (tmp_path / folder).mkdir()
        film_reviews(2).to_csv(tmp_path / folder / "x.csv", index=False, sep=";")
        readme = f"---\nconfigs:\n- config_name: default\n  sep: '{separator}'\n  data_files: x.csv\n---\n"
        (tmp_path / folder / "README.md").write_text(readme)
        columns.append(load(tmp_path / folder)["train"].column_names)
    assert columns == [["text", "label"], ["text;label"]]


# files that are not alike


@pytest.mark.parametrize(
    "others",
    [
        pytest.param({"label": [0, 1] * 12}, id="numbers-for-words"),
        pytest.param({"more": None}, id="column-without-values"),
        pytest.param({"text": range(24)}, id="numbers-for-texts"),
    ],
)
def test_files_that_can_be_made_alike_are(others: dict[str, Any], tmp_path: Path) -> None:
    frame = film_reviews(4).assign(more="more")
    write(frame[:24], tmp_path / "data/a.parquet")
    write(frame[24:].assign(**others), tmp_path / "data/b.parquet")
    assert same(load(tmp_path / "data"), datasets.load_dataset(str(tmp_path / "data")))


def test_order_of_the_columns_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = film_reviews(4)
    write(frame[:24], tmp_path / "data/a.csv")
    write(frame[24:][["label", "text"]], tmp_path / "data/b.csv")
    whole = datasets.load_dataset(str(tmp_path / "data"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("read as a whole"))
    assert same(load(tmp_path / "data"), whole)


def test_new_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    write(film_reviews(4), tmp_path / "data/a.csv")
    load(tmp_path / "data")
    write(film_reviews(4).rename(columns={"text": "body"}), tmp_path / "data/b.csv")
    with pytest.raises(InputError, match=r"each file in .* can be read, but not together; all need the same columns"):
        load(tmp_path / "data")


def test_broken_new_file_is_refused_by_its_name(tmp_path: Path) -> None:
    write(film_reviews(4), tmp_path / "data/a.jsonl")
    load(tmp_path / "data")
    (tmp_path / "data/b.jsonl").write_text("null\n")
    with pytest.raises(InputError, match=r"b\.jsonl holds null instead of an object \(line 1\)"):
        load(tmp_path / "data")


def test_very_many_files_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for month in range(3):
        write(film_reviews(10)[24 * month :][:24], tmp_path / f"data/{month}.csv")
    whole = load(tmp_path / "data")
    monkeypatch.setattr(folders, "MOST_APART", 2)
    monkeypatch.setattr(reading, "read_apart", lambda *_: pytest.fail("read one by one"))
    assert same(load(tmp_path / "data"), whole)


def test_head_that_says_what_all_files_hold_is_gone_by(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": film_reviews(4)["text"], "label": [0, 1] * 24})
    write(frame[:24], tmp_path / "data/a.csv")
    write(frame[24:], tmp_path / "data/b.csv")
    info = "dataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n"
    info += "      class_label:\n        names:\n          '0': bad\n          '1': good\n"
    (tmp_path / "data/README.md").write_text(f"---\n{info}---\n")
    assert load(tmp_path / "data")["train"].features["label"].names == ["bad", "good"]
