"""Rows from every format, every split and label; what is cut, drawn and noted."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from tasks import data
from tasks.config import validated
from tasks.hub import find
from tasks.splits import Splits, read_splits, stratified_rows
from tests.conftest import sentences

FORMATS = ("csv", "json", "jsonl", "parquet")
SPLITS = ("train", "validation", "test")


def write(frame: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=path.suffix == ".jsonl")
    return path


def film_reviews(copies: int = 6) -> pd.DataFrame:
    """Twelve rows a copy, as many `good` as `bad`, no text twice."""
    texts, labels = sentences(copies)
    return pd.DataFrame({"text": texts, "label": [("bad", "good")[label] for label in labels]})


def read(path: Path, seed: int = 0, **fields: Any) -> Splits:
    """The checked rows of a local data set."""
    config = validated({"data": {"name": str(path), **fields}}).data
    return read_splits(find("dataset", str(path), "main", offline=True), config, seed)


def rows_of(splits: Splits) -> dict[str, list[int]]:
    """Source rows by split; with a single file they all count in the same file."""
    return {name: list(split["row"]) for name, split in splits.datasets.items()}


def fingerprint_of(path: Path, **fields: Any) -> str:
    splits = read(path, **fields)
    return data.fingerprint(splits.datasets, fields.get("text_columns", ("text",)), splits.label_names)


@pytest.fixture(scope="module")
def same_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same reviews as a file and as a folder of three files, in every format."""
    root, frame = tmp_path_factory.mktemp("formats"), film_reviews()
    paths = {f"{kind} file": write(frame, root / f"reviews.{kind}") for kind in FORMATS}
    for kind in FORMATS:
        for name, part in (("train", frame[:48]), ("validation", frame[48:60]), ("test", frame[60:])):
            write(part, root / kind / f"{name}.{kind}")
        paths[f"{kind} folder"] = root / kind
    return paths


@pytest.mark.parametrize("shape", ["file", "folder"])
def test_every_format_gives_the_same_rows_and_fingerprint(shape: str, same_rows: dict[str, Path]) -> None:
    paths = [same_rows[f"{kind} {shape}"] for kind in FORMATS]
    expected = film_reviews().sort_values("text")
    for path in paths:
        splits = read(path)
        frame = pd.concat([split.to_pandas() for split in splits.datasets.values()]).sort_values("text")
        assert list(frame["text"]) == list(expected["text"])
        assert [splits.label_names[label] for label in frame["label"]] == list(expected["label"])
    assert len({fingerprint_of(path) for path in paths}) == 1


def test_folder_keeps_its_own_splits(same_rows: dict[str, Path]) -> None:
    splits = read(same_rows["csv folder"])
    assert {name: len(split) for name, split in splits.datasets.items()} == {"train": 48, "validation": 12, "test": 12}
    assert splits.notes == ()


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (("good", "bad"), ("bad", "good")),
        ((0, 1), ("0", "1")),
        ((7, 3), ("3", "7")),
        ((9, 10), ("9", "10")),
        (("9", "10"), ("9", "10")),
        ((True, False), ("False", "True")),
        ((1.0, 0.0), ("0", "1")),
        (("NA", "None"), ("NA", "None")),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", FORMATS)
def test_labels_of_any_kind_become_numbers_and_keep_their_names(
    kind: str, values: tuple[object, object], names: tuple[str, ...], tmp_path: Path
) -> None:
    frame = film_reviews().assign(label=[values[row % 2] for row in range(72)])
    splits = read(write(frame, tmp_path / f"reviews.{kind}"))
    assert splits.label_names == names
    written = [str(int(value) if isinstance(value, float) else value) for value in frame["label"]]
    for split in splits.datasets.values():
        assert [names[label] for label in split["label"]] == [written[row] for row in split["row"]]


@pytest.mark.parametrize("names", [["z", "a"], ["1", "0"], ["neg", "pos"]])
def test_class_label_keeps_order_and_names(names: list[str], tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    numbers = [row % 2 for row in range(72)]
    source = datasets.Dataset.from_dict({"text": sentences(6)[0], "label": numbers}, features=features)
    source.to_parquet(str(tmp_path / "reviews.parquet"))
    splits = read(tmp_path / "reviews.parquet")
    assert splits.label_names == tuple(names)
    for split in splits.datasets.values():
        assert list(split["label"]) == [numbers[row] for row in split["row"]]


def test_words_that_pandas_takes_for_missing_are_texts(tmp_path: Path) -> None:
    frame = film_reviews()
    frame.loc[:3, "text"] = ["NA", "null", "None", "nan"]
    from_csv, from_parquet = (read(write(frame, tmp_path / f"reviews.{kind}")) for kind in ("csv", "parquet"))
    for name in SPLITS:
        assert list(from_csv.datasets[name]["text"]) == list(from_parquet.datasets[name]["text"])


def test_numbers_and_words_in_one_label_column_are_classes(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "label": (1, "one")[row % 2]}) for row, text in enumerate(sentences(6)[0])]
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines))
    assert read(tmp_path / "mixed.jsonl").label_names == ("1", "one")


def test_other_columns_and_their_order_do_not_matter(tmp_path: Path) -> None:
    plain = film_reviews()
    wide = plain.assign(id=range(72), row="x")[["row", "label", "id", "text"]].rename(columns={"label": "stars"})
    expected = fingerprint_of(write(plain, tmp_path / "plain.csv"))
    assert fingerprint_of(write(wide, tmp_path / "wide.csv"), label_column="stars") == expected


def test_unused_split_is_noted(tmp_path: Path) -> None:
    for name in (*SPLITS, "extra"):
        write(film_reviews(), tmp_path / f"{name}/{name}.csv")
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    readme += "".join(f"  - split: {name}\n    path: {name}/*\n" for name in (*SPLITS, "extra"))
    (tmp_path / "README.md").write_text(readme + "---\n")
    assert read(tmp_path).notes == ("not used: the split extra",)
    assert "not used: the split test" in read(tmp_path, test_split="extra").notes


# splits that are missing


def test_missing_splits_are_cut_from_train_without_losing_or_sharing_a_row(tmp_path: Path) -> None:
    splits = read(write(film_reviews(10), tmp_path / "reviews.csv"))
    rows = rows_of(splits)
    assert {name: len(part) for name, part in rows.items()} == {"train": 96, "validation": 12, "test": 12}
    assert sorted(row for part in rows.values() for row in part) == list(range(120))
    assert len(splits.notes) == 2
    for note, name in zip(splits.notes, ("test", "validation"), strict=True):
        assert note.startswith(f"no {name} split: 12 rows were cut from train, stratified, seed 0")


def test_cut_splits_keep_the_share_of_each_class(tmp_path: Path) -> None:
    frame = film_reviews(10).assign(label=["rare" if row % 10 == 0 else "common" for row in range(120)])
    for split in read(write(frame, tmp_path / "reviews.csv")).datasets.values():
        assert abs(list(split["label"]).count(1) - len(split) / 10) < 1


def test_cut_depends_on_nothing_but_the_seed(tmp_path: Path) -> None:
    path = write(film_reviews(10), tmp_path / "reviews.csv")
    first = rows_of(read(path))
    read_splits.cache_clear()
    assert rows_of(read(path)) == first
    other = rows_of(read(path, seed=1))
    assert other["test"] != first["test"] and other["validation"] != first["validation"]


@pytest.mark.parametrize("missing", ["validation", "test"])
def test_only_the_missing_split_is_cut(missing: str, tmp_path: Path) -> None:
    there = "test" if missing == "validation" else "validation"
    write(film_reviews(10), tmp_path / "reviews/train.csv")
    kept = film_reviews(2)[10:20]
    write(kept, tmp_path / f"reviews/{there}.csv")
    splits = read(tmp_path / "reviews")
    assert list(splits.datasets[there]["text"]) == list(kept["text"])
    assert len(splits.datasets[missing]) == 12 and len(splits.datasets["train"]) == 108
    assert len(splits.notes) == 1 and splits.notes[0].startswith(f"no {missing} split")


def test_every_class_of_a_small_data_set_reaches_every_split(tmp_path: Path) -> None:
    frame = film_reviews(5).assign(label=[f"class {row % 12}" for row in range(60)])
    for split in read(write(frame, tmp_path / "reviews.csv")).datasets.values():
        assert set(split["label"]) == set(range(12))


# row limits


def test_row_limits_are_exact_stratified_seeded_and_noted(tmp_path: Path) -> None:
    frame = film_reviews(20).assign(label=[("a", "b", "b", "b")[row % 4] for row in range(240)])
    path = write(frame, tmp_path / "reviews.csv")
    limited = read(path, max_train_rows=40, max_test_rows=8)
    assert {name: len(split) for name, split in limited.datasets.items()} == {"train": 40, "validation": 8, "test": 8}
    assert Counter(limited.datasets["train"]["label"]) == {0: 10, 1: 30}
    assert Counter(limited.datasets["test"]["label"]) == {0: 2, 1: 6}
    assert sum("rows, drawn stratified, seed 0" in note for note in limited.notes) == 3
    whole = rows_of(read(path))
    for name, rows in rows_of(limited).items():
        assert set(rows) <= set(whole[name])
        assert rows == sorted(rows)
    assert rows_of(read(path, seed=1, max_train_rows=40))["train"] != rows_of(limited)["train"]


def test_limit_above_the_number_of_rows_changes_nothing(tmp_path: Path) -> None:
    path = write(film_reviews(), tmp_path / "reviews.csv")
    assert rows_of(read(path, max_train_rows=1000, max_test_rows=1000)) == rows_of(read(path))


@pytest.mark.parametrize("seed", range(20))
def test_stratified_draw_is_exact_fair_and_complete(seed: int) -> None:
    generator = np.random.default_rng(seed)
    classes = int(generator.integers(2, 8))
    labels = [*range(classes), *generator.geometric(0.5, size=200).clip(1, classes) - 1]
    count = int(generator.integers(classes, len(labels)))
    rows = stratified_rows(labels, classes, count, seed)
    assert len(rows) == count and rows == sorted(set(rows))
    taken, there = Counter(labels[row] for row in rows), Counter(labels)
    assert set(taken) == set(range(classes))
    for label in range(classes):
        # rare classes that get their guaranteed row take it from the largest
        assert taken[label] > there[label] * count / len(labels) - (1 if label else classes)
        assert taken[label] < there[label] * count / len(labels) + 1
    assert rows == stratified_rows(labels, classes, count, seed)


def test_stratified_draw_leaves_what_must_stay() -> None:
    labels = [0] * 5 + [1] * 2 + [2]
    rows = stratified_rows(labels, 3, 8, seed=0, leave=1)
    assert Counter(labels[row] for row in rows) == {0: 4, 1: 1}


# tokenizing
