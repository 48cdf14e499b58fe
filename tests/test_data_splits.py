"""Rows with labels of every kind; what is cut, drawn and noted, kept for slices, and refused all at once."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from tasks.data import prepare as data
from tasks.data.labels import numbers_first
from tasks.data.prepare import find_data
from tasks.data.splits import Splits, read_splits, stratified_rows
from tasks.settings.fields import InputError
from tasks.settings.loading import validated
from tasks.settings.sections import DataConfig
from tasks.sources.reading import check_columns
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


def read(path: Path, **fields: Any) -> Splits:
    """The checked rows of a local data set."""
    config = validated({"data": {"name": str(path), **fields}, "offline": True})
    return read_splits(find_data(config), config.data)


def rows_of(splits: Splits) -> dict[str, list[int]]:
    """Source rows by split; with a single file they all count in the same file."""
    return {name: list(split["row"]) for name, split in splits.datasets.items()}


def fingerprint_of(path: Path, **fields: Any) -> str:
    splits = read(path, **fields)
    return data.fingerprint(splits.datasets, fields.get("text_columns", ("text",)), splits.label_names)


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


def test_numbers_and_words_in_one_label_column_are_classes(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "label": (1, "one")[row % 2]}) for row, text in enumerate(sentences(6)[0])]
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines))
    assert read(tmp_path / "mixed.jsonl").label_names == ("1", "one")


def test_other_columns_and_their_order_do_not_matter(tmp_path: Path) -> None:
    plain = film_reviews()
    wide = plain.assign(id=range(72), row="x")[["row", "label", "id", "text"]].rename(columns={"label": "stars"})
    expected = fingerprint_of(write(plain, tmp_path / "plain.csv"))
    assert fingerprint_of(write(wide, tmp_path / "wide.csv"), label_column="stars") == expected


# splits that are missing


def test_missing_splits_are_cut_from_train_without_losing_or_sharing_a_row(tmp_path: Path) -> None:
    splits = read(write(film_reviews(10), tmp_path / "reviews.csv"))
    rows = rows_of(splits)
    assert {name: len(part) for name, part in rows.items()} == {"train": 96, "validation": 12, "test": 12}
    assert sorted(row for part in rows.values() for row in part) == list(range(120))
    assert len(splits.notes) == 2
    for note, name in zip(splits.notes, ("test", "validation"), strict=True):
        assert note.startswith(f"no {name} split: 12 rows were cut from train, stratified, split seed 0")


def test_cut_splits_keep_the_share_of_each_class(tmp_path: Path) -> None:
    frame = film_reviews(10).assign(label=["rare" if row % 10 == 0 else "common" for row in range(120)])
    for split in read(write(frame, tmp_path / "reviews.csv")).datasets.values():
        assert abs(list(split["label"]).count(1) - len(split) / 10) < 1


def test_cut_depends_on_nothing_but_the_split_seed(tmp_path: Path) -> None:
    path = write(film_reviews(10), tmp_path / "reviews.csv")
    first = rows_of(read(path))
    read_splits.cache_clear()
    assert rows_of(read(path)) == first
    other = rows_of(read(path, split_seed=1))
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
    assert len(splits.notes) == 2 and splits.notes[1].startswith(f"no {missing} split")


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Folder of 120 train, 24 validation and 24 test rows, no text twice."""
    frame = film_reviews(14)
    for name, part in (("train", frame[:120]), ("validation", frame[120:144]), ("test", frame[144:])):
        write(part, tmp_path / f"three/{name}.csv")
    return tmp_path / "three"


@pytest.mark.parametrize(
    ("fields", "sizes", "notes"),
    [
        (
            {"test_split": "validation"},
            {"train": 108, "validation": 12, "test": 24},
            ["not used: the split test", "validation: the split 'validation' is test already: 12 rows were cut from"],
        ),
        (
            {"test_split": "train"},
            {"train": 108, "validation": 24, "test": 12},
            ["not used: the split test", "test: the split 'train' is train already: 12 rows were cut from"],
        ),
        (
            {"validation_split": "test"},
            {"train": 108, "validation": 12, "test": 24},
            ["not used: the split validation", "validation: the split 'test' is test already"],
        ),
        (
            {"validation_split": "train"},
            {"train": 108, "validation": 12, "test": 24},
            ["not used: the split validation", "validation: the split 'train' is train already"],
        ),
        (
            {"train_split": "validation"},
            {"train": 22, "validation": 2, "test": 24},
            ["not used: the split train", "validation: the split 'validation' is train already"],
        ),
        (
            {"validation_split": "test", "test_split": "train"},
            {"train": 108, "validation": 24, "test": 12},
            ["not used: the split validation", "test: the split 'train' is train already"],
        ),
        (
            {"train_split": "test", "validation_split": "test", "test_split": "test"},
            {"train": 20, "validation": 2, "test": 2},
            [
                "not used: the splits train, validation",
                "test: the split 'test' is train",
                "validation: the split 'test'",
            ],
        ),
    ],
    ids=str,
)
def test_splits_that_ask_for_the_same_rows_share_none(
    fields: dict[str, str], sizes: dict[str, int], notes: list[str], three: Path
) -> None:
    splits = read(three, **fields)
    assert {name: len(split) for name, split in splits.datasets.items()} == sizes
    texts = [text for split in splits.datasets.values() for text in split["text"]]
    assert len(set(texts)) == len(texts) == sum(sizes.values())
    for split in splits.datasets.values():
        assert abs(list(split["label"]).count(1) - len(split) / 2) <= 1
    files, *others = splits.notes
    assert files == "train: train.csv; validation: validation.csv; test: test.csv"
    for note, start in zip(others, notes, strict=True):
        assert note.startswith(start)
    again = read(three, **fields, max_length=64)
    assert rows_of(again) == rows_of(splits)
    other = read(three, **fields, split_seed=1)
    assert rows_of(other) != rows_of(splits)


def test_frozen_test_rows_of_the_validation_split_stay_out_of_validation(three: Path, tmp_path: Path) -> None:
    splits = read(three, test_split="validation", test_file=str(three / "validation.csv"))
    assert {name: len(split) for name, split in splits.datasets.items()} == {"train": 108, "validation": 12, "test": 24}


@pytest.mark.parametrize(
    ("kind", "nothing"),
    [
        *(("csv", value) for value in (-1, "")),
        *((kind, value) for kind in ("jsonl", "parquet") for value in (-1, None, "")),
        *(("ClassLabel", value) for value in (-1, None)),
    ],
)
@pytest.mark.parametrize(
    ("bare", "there", "remedies"),
    [
        (["test"], SPLITS, {"test_split": "validation"}),
        (["test"], ["train", "test"], {"test_split": "train"}),
        (["validation", "test"], SPLITS, {"validation_split": "train", "test_split": "train"}),
        (["validation"], SPLITS, {"validation_split": "train"}),
    ],
    ids=["test", "test-of-two", "both", "validation"],
)
def test_split_without_labels_is_refused_with_a_remedy_that_works(
    bare: list[str], there: list[str], remedies: dict[str, str], nothing: Any, kind: str, three: Path, tmp_path: Path
) -> None:
    kinds = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    for name in there:
        frame = pd.read_csv(three / f"{name}.csv")
        numbers = frame["label"].map({"bad": 0, "good": 1}) if nothing == -1 or kind == "ClassLabel" else frame["label"]
        columns = {"text": list(frame["text"]), "label": [nothing] * len(frame) if name in bare else list(numbers)}
        if kind == "ClassLabel":
            datasets.Dataset.from_dict(columns, features=kinds).to_parquet(str(tmp_path / f"{name}.parquet"))
        else:
            write(pd.DataFrame(columns), tmp_path / f"{name}.{kind}")
    shutil.rmtree(three)
    with pytest.raises(InputError) as refusal:
        read(tmp_path)
    for role in bare:
        assert f"the {role} rows are not labelled: 24 rows with " in str(refusal.value)
    for field, split in remedies.items():
        assert f"--data.{field} {split}" in str(refusal.value)
    splits = read(tmp_path, **remedies)
    assert set(splits.datasets) == set(SPLITS)
    assert all(set(split["label"]) == {0, 1} for split in splits.datasets.values())


def test_every_class_of_a_small_data_set_reaches_every_split(tmp_path: Path) -> None:
    frame = film_reviews(5).assign(label=[f"class {row % 12}" for row in range(60)])
    for split in read(write(frame, tmp_path / "reviews.csv")).datasets.values():
        assert set(split["label"]) == set(range(12))


# row limits


def test_limit_may_be_below_the_classes_that_no_row_has(tmp_path: Path) -> None:
    names = ["bad", "good", *map(str, range(50))]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    texts, labels = sentences(20)
    columns = {"text": texts, "label": labels}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "a.parquet"))
    limited = read(tmp_path / "a.parquet", max_train_rows=20)
    assert Counter(limited.datasets["train"]["label"]) == {0: 10, 1: 10}


def test_row_limits_are_exact_stratified_seeded_and_noted(tmp_path: Path) -> None:
    frame = film_reviews(20).assign(label=[("a", "b", "b", "b")[row % 4] for row in range(240)])
    path = write(frame, tmp_path / "reviews.csv")
    limited = read(path, max_train_rows=40, max_test_rows=8)
    assert {name: len(split) for name, split in limited.datasets.items()} == {"train": 40, "validation": 8, "test": 8}
    assert Counter(limited.datasets["train"]["label"]) == {0: 10, 1: 30}
    assert Counter(limited.datasets["test"]["label"]) == {0: 2, 1: 6}
    assert sum("rows, drawn stratified, split seed 0" in note for note in limited.notes) == 3
    whole = rows_of(read(path))
    for name, rows in rows_of(limited).items():
        assert set(rows) <= set(whole[name])
        assert rows == sorted(rows)
    assert rows_of(read(path, split_seed=1, max_train_rows=40))["train"] != rows_of(limited)["train"]


def test_draw_seed_draws_other_training_rows_and_leaves_the_other_splits(tmp_path: Path) -> None:
    path = write(film_reviews(20), tmp_path / "reviews.csv")
    plain, other = (read(path, max_train_rows=40, max_test_rows=8, draw_seed=seed) for seed in (None, 5))
    assert rows_of(plain)["train"] != rows_of(other)["train"]
    assert [rows_of(plain)[role] for role in ("validation", "test")] == [
        rows_of(other)[role] for role in ("validation", "test")
    ]
    assert any("train: 40 of " in note and note.endswith("draw seed 5") for note in other.notes)
    more = read(path, max_train_rows=80, max_test_rows=8, draw_seed=5)
    assert set(rows_of(other)["train"]) < set(rows_of(more)["train"])


def test_limit_above_the_number_of_rows_changes_nothing(tmp_path: Path) -> None:
    path = write(film_reviews(), tmp_path / "reviews.csv")
    assert rows_of(read(path, max_train_rows=1000, max_test_rows=1000)) == rows_of(read(path))


@pytest.mark.parametrize("seed", range(20))
def test_stratified_draw_is_exact_fair_and_complete(seed: int) -> None:
    generator = np.random.default_rng(seed)
    classes = int(generator.integers(2, 8))
    labels = np.concatenate([np.arange(classes), generator.geometric(0.5, size=200).clip(1, classes) - 1])
    count = int(generator.integers(classes, len(labels)))
    rows = stratified_rows(labels, classes, count, seed).tolist()
    assert len(rows) == count and rows == sorted(set(rows))
    taken, there = Counter(labels[rows].tolist()), Counter(labels.tolist())
    assert set(taken) == set(range(classes))
    for label in range(classes):
        # rare classes that get their guaranteed row take it from the largest
        assert taken[label] > there[label] * count / len(labels) - (1 if label else classes)
        assert taken[label] < there[label] * count / len(labels) + 1
    assert rows == stratified_rows(labels, classes, count, seed).tolist()


def test_stratified_draw_leaves_what_must_stay() -> None:
    labels = np.asarray([0] * 5 + [1] * 2 + [2])
    rows = stratified_rows(labels, 3, 8, seed=0, leave=1)
    assert Counter(labels[rows].tolist()) == {0: 4, 1: 1}


# faults


def faulty(tmp_path: Path, train: dict[int, tuple[Any, Any]], test: dict[int, tuple[Any, Any]]) -> str:
    """What reading says when rows of train (48 reviews) and of test (24) are replaced by these."""
    frame = film_reviews()
    for name, part, changes in (("train", frame[:48], train), ("test", frame[48:], test)):
        rows = part.to_numpy().tolist()
        for row, (text, label) in changes.items():
            rows[row] = [text, label]
        write(pd.DataFrame(rows, columns=["text", "label"]), tmp_path / f"{name}.parquet")
    with pytest.raises(InputError) as refusal:
        read(tmp_path)
    return str(refusal.value)


def test_all_faulty_rows_are_refused_at_once(tmp_path: Path) -> None:
    train = {3: ("", "good"), 17: (None, "bad"), 20: ("a film", None), 21: ("a play", " ")}
    message = faulty(tmp_path, train, {0: (" ", "good"), 5: ("a book", "so-so"), 9: ("a song", "meh")})
    assert message.split(". ") == [
        "data.text_columns: 2 empty texts in column 'text' (train rows 3, 17); fill or remove them",
        "data.text_columns: 1 empty text in column 'text' (test row 0); fill or remove them",
        "data.label_column: 2 rows have no label (train rows 20, 21); label or remove them",
        "data.label_column: labels 'so-so', 'meh' are not one of bad, good (test rows 5, 9); correct them, or add "
        "training rows with them",
    ]


def test_refusal_says_what_else_would_be_found(tmp_path: Path) -> None:
    texts = film_reviews()["text"]
    message = faulty(tmp_path, {40: (texts[1], "good"), 3: ("", "good")}, {2: (texts[7].upper(), "bad")})
    empty, leak, conflicts, repeated = message.split(". ")
    assert "train row 3" in empty
    assert leak == "Leakage: the text of 1 of 24 test rows is also in train (test row 2; train row 7)"
    assert conflicts.startswith("2 texts have more than one label (train row 1 'bad', train row 40 'good'; train row 7")
    assert repeated == "1 train row has the text of an earlier one (train row 40; earlier train row 1)"


def test_many_faulty_rows_are_ten_and_a_count(tmp_path: Path) -> None:
    message = faulty(tmp_path, {row: ("", "good") for row in range(30)}, {})
    assert "30 empty texts" in message and "(train rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more)" in message


def test_rows_that_are_all_unlabelled_are_refused(tmp_path: Path) -> None:
    path = write(film_reviews().assign(label=None), tmp_path / "reviews.parquet")
    with pytest.raises(InputError, match=r"the train rows are not labelled: 72 rows with nothing in column 'label'"):
        read(path)


def test_hopeless_data_are_refused(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(film_reviews(), tmp_path / f"{name}.csv")
    # so that none is cut from train
    write(film_reviews()[:6], tmp_path / "validation.csv")
    with pytest.raises(InputError, match="the text of 72 of 72 test rows is also in train"):
        read(tmp_path)


# slices


def test_categorical_columns_of_the_test_rows_are_kept_as_text(tmp_path: Path) -> None:
    frame = film_reviews(20)
    count = len(frame)
    frame = frame.assign(
        region=["north", "south", None] * (count // 3),
        year=[1990 + row % 4 for row in range(count)],
        funny=[row % 2 == 0 for row in range(count)],
        id=range(count),
        score=[row % 3 / 2 for row in range(count)],
        constant="same",
        body=[f"a long text {row}" for row in range(count)],
        twenty_one=[f"value {row % 21}" for row in range(count)],
    )
    splits = read(write(frame, tmp_path / "reviews.parquet"))
    assert splits.slice_columns == ("region", "year", "funny")
    test = splits.datasets["test"]
    # they are those of the rows that were cut from train, in the same order
    expected = frame.iloc[test["row"][:]]
    assert list(test["slice region"]) == [value if isinstance(value, str) else "(none)" for value in expected["region"]]
    assert list(test["slice year"]) == [str(value) for value in expected["year"]]
    assert list(test["slice funny"]) == [str(value) for value in expected["funny"]]
    for name in ("train", "validation"):
        assert splits.datasets[name].column_names == ["text", "label", "row"]


def test_numbers_with_names_are_kept_by_name(tmp_path: Path) -> None:
    kind = datasets.ClassLabel(names=["film", "play"])
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("int64"), "kind": kind})
    columns = {"text": sentences(6)[0], "label": [0, 1] * 36, "kind": [0, 1, -1] * 24}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "reviews.parquet"))
    test = read(tmp_path / "reviews.parquet").datasets["test"]
    assert list(test["slice kind"]) == [("film", "play", "(none)")[row % 3] for row in test["row"]]


def test_slices_need_rows_and_are_five_at_most(tmp_path: Path) -> None:
    frame = film_reviews(10)  # of which 12 rows are cut for test
    many = frame.assign(**{f"column {n}": [f"{row % 2}" for row in range(120)] for n in range(8)})
    assert read(write(many, tmp_path / "many.csv")).slice_columns == tuple(f"column {n}" for n in range(5))
    rare = frame.assign(kind=[f"kind {row % 20}" for row in range(120)])
    assert read(write(rare, tmp_path / "rare.csv")).slice_columns == ()


def test_classes_that_are_numbers_stand_in_their_order() -> None:
    names = ["word", "10", "9", "-1", "0", "-10", "1" * 5_000]  # Python refuses to read the last one as a number
    assert sorted(names, key=numbers_first) == ["-10", "-1", "0", "9", "10", "1" * 5_000, "word"]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"review": ["a long text", "another text"], "stars": [1, 2], "id": ["a", "b"], "all": [0, 0]},
            "perhaps --data.text_columns review --data.label_column stars",
        ),
        (
            {"my review": ["a long text"] * 3, "n": [1, 2, 3], "kind": ["a", "b", "b"]},
            "perhaps --data.text_columns 'my review' --data.label_column kind",
        ),
        ({"number": [1, 2]}, "columns for text and label are needed, named in the first row"),
        ({"Survey": ["a text", "b"], "unnamed 1": ["1", "2"]}, "columns for text and label are needed, named in the"),
        ({"a, b": ["a long text", "another"], "label": ["a", "b"]}, "rename 'a, b' to text"),
        ({"text ": ["a long text", "another"], "label ": ["a", "b"]}, "rename 'text ' to text"),
        ({"n": [1, 2], "m": [{"text": "a"}] * 2}, "'m' holds objects: write what is in them as columns"),
        ({"data": [{"text": "a", "label": 1}] * 2}, "'data' holds objects"),
        ({"Export of 2026": []}, "its rows have more columns than its first line; where that is a title"),
        ({"review": [{"body": "a"}] * 2, "stars": [1, 2]}, "'review' holds objects"),
        (
            {
                "title": ["good"] * 3,
                "review": ["a film", "b film", "c"],
                "kind": ["a", "b", "b"],
                "about": [{"n": 1}] * 3,
            },
            "perhaps --data.text_columns review --data.label_column kind$",
        ),
        (
            {"premise": ["a film", "b film"], "claim": ["a long film", "is it"], "label": [0, 1]},
            "perhaps --data.text_columns claim, or for pairs of texts --data.text_columns premise,claim",
        ),
        ({"x" * 50: ["a", "b"], "y" * 50: ["c", "d"]}, "name them with --data.text_columns and --data.label_column"),
    ],
)
def test_missing_column_names_those_that_may_be_meant(columns: dict[str, list[object]], says: str) -> None:
    chosen = datasets.DatasetDict(train=datasets.Dataset.from_dict(columns))
    with pytest.raises(InputError, match=f"train has no column 'text'; it has .*; {says}"):
        check_columns(chosen, DataConfig())
