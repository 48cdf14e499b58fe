"""What the values of a label column mean, from every format; labels that are none, are numbers, or are several."""

import datetime
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from tasks.data.datacheck import label_warnings
from tasks.data.labels import are_codes, are_many_numbers, as_label, same_word, several_labels
from tasks.settings.fields import InputError
from tests.test_data_splits import film_reviews, read, write

ROWS = 60
TEXTS = list(film_reviews()["text"][:ROWS])
DAY = datetime.date(2026, 1, 2)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("good", "good"),
        (" good ", " good "),
        ("0100", "0100"),
        ("007.1", "007.1"),
        ("2026-01-02", "2026-01-02"),
        ("-1", "-1"),
        (-1, "-1"),
        (2**63 + 1, "9223372036854775809"),
        (1.0, "1"),
        (-0.0, "0"),
        (0.5, "0.5"),
        (Decimal("1.0"), "1"),
        (Decimal("2.50"), "2.50"),
        (True, "True"),
        (DAY, "2026-01-02"),
        (datetime.datetime(2026, 1, 2), "2026-01-02"),
        (datetime.datetime(2026, 1, 2, 3), "2026-01-02 03:00:00"),
        *((value, None) for value in (None, "", "  ", float("nan"), Decimal("nan"), b"a", ["a"], {"a": 1})),
    ],
    ids=repr,
)
def test_value_names_its_class(value: object, name: str | None) -> None:
    assert as_label(value) == name


def labelled(folder: Path, column: Any, kind: str = "parquet") -> Path:
    """Reviews with the labels of `column`, again and again."""
    path = folder / f"reviews.{kind}"
    if kind == "parquet":
        values = column if isinstance(column, pa.Array) else pa.array(column)
        labels = pa.chunked_array([values] * (ROWS // len(values) + 1)).slice(0, ROWS)
        pyarrow.parquet.write_table(pa.table({"text": TEXTS, "label": labels}), path)
        return path
    return write(pd.DataFrame({"text": TEXTS, "label": [column[i % len(column)] for i in range(ROWS)]}), path)


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (["b", "a"], ("a", "b")),
        (pa.array(["b", "a"]).dictionary_encode(), ("a", "b")),
        (pa.array([6, 5]).dictionary_encode(), ("5", "6")),
        (pa.array(["b", "a"], pa.large_string()), ("a", "b")),
        (pa.array(["b", "a"]).cast(pa.string_view()), ("a", "b")),
        ([-1, 0, 1], ("-1", "0", "1")),
        ([10, -1, 9], ("-1", "9", "10")),
        ([1.0, 0.0, -1.0], ("-1", "0", "1")),
        (["1.0", "0.0"], ("0", "1")),
        (["1.0", "0.0", "other"], ("0.0", "1.0", "other")),
        ([Decimal("1.0"), Decimal("0.0")], ("0", "1")),
        ([True, False], ("False", "True")),
        (pa.array([2**63 + 1, 1], pa.uint64()), ("1", "9223372036854775809")),
        ([DAY, datetime.date(2026, 1, 3)], ("2026-01-02", "2026-01-03")),
        (pa.array(pd.to_datetime(["2026-01-03", "2026-01-02"])), ("2026-01-02", "2026-01-03")),
        (["01", "1"], ("01", "1")),
        (["007.1", "008.45"], ("007.1", "008.45")),
        (["1.1", "1.10"], ("1.1", "1.10")),
        (["401.9", "428.0", "272.4"], ("272.4", "401.9", "428.0")),
        ([401.9, 428.0], ("428", "401.9")),
        (["1e5", "2e5"], ("1e5", "2e5")),
        (["1.2.3", "1.2.4"], ("1.2.3", "1.2.4")),
        (["NA", "None"], ("NA", "None")),
    ],
    ids=str,
)
def test_column_of_any_kind_names_its_classes(column: Any, names: tuple[str, ...], tmp_path: Path) -> None:
    splits = read(labelled(tmp_path, column))
    assert splits.label_names == names
    values = column.to_pylist() if isinstance(column, pa.Array) else column
    for split in splits.datasets.values():
        for row, label in zip(split["row"], split["label"], strict=True):
            name = str(as_label(values[row % len(values)]))
            assert names[label] in (name, name.removesuffix(".0"))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "column",
    [
        ["+1", "-1"],
        ["a\xa0b", "می\u200cخواهم", "👨\u200d👩"],
        [-1, 0, 1],
        [1.0, 0.0],
        [True, False],
        ["2026-01-02", "2026-01-03"],
        ["b", "a b"],
    ],
)
def test_every_format_names_the_classes_alike(column: list[Any], kind: str, tmp_path: Path) -> None:
    assert read(labelled(tmp_path, column, kind)).label_names == read(labelled(tmp_path, column)).label_names


def refusal(path: Path, **fields: Any) -> str:
    with pytest.raises(InputError) as refused:
        read(path, **fields)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 480
    return str(refused.value)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ([{"a": 1}, {"a": 2}], "{'a': 1} is not a class; use words or whole numbers"),
        ([b"a", b"b"], "b'a' is not a class"),
        ([datetime.timedelta(1), datetime.timedelta(2)], "is not a class; use words or whole numbers"),
        ([None], "the train rows are not labelled: 60 rows with nothing in"),
        (["", "  "], "the train rows are not labelled: 60 rows with nothing in"),
        ([-1], "the train rows are not labelled: 60 rows with -1"),
        (["a", "b", None], "20 rows have no label (train rows 2, 5, 8"),
        ([1.0, 0.0, float("nan")], "20 rows have no label but nan (train rows 2, 5"),
        (["0", "1", "nan"], "'nan' among the numbers 0, 1 means 'not labelled' (train rows 2, 5"),
        (["0.5", "1.5", "nan"], "'nan' among the numbers 0.5, 1.5 means 'not labelled'"),
        (["a\tc", "b"], r"the class 'a\tc' is not a name to show in tables (it holds '\t')"),
        (["a", "b\u200b"], r"(it holds '\u200b')"),
    ],
    ids=str,
)
def test_what_is_no_class_is_refused_with_its_rows(column: Any, says: str, tmp_path: Path) -> None:
    assert says in refusal(labelled(tmp_path, column))


@pytest.mark.parametrize(
    "column",
    [
        [0.5, 1.0, 1.5, 2.0, 2.5],
        ["3.5", "4.0", "4.5", "1.0", "1.5"],
        [1e-05, 2.0, 3.0, 4.0, 5.0],
        [Decimal(place) / 8 for place in range(5)],
        list(range(100, 150)),
        [str(place * 37) for place in range(50)],
        list(range(20, 50)),
        [100.5 + place for place in range(20)],  # few rows of each
        ["401.9", "28.0", "3.1", "2.5", "1.0"],
    ],
    ids=str,
)
def test_numbers_to_predict_are_taken_for_such_and_it_is_said(column: list[Any], tmp_path: Path) -> None:
    splits = read(labelled(tmp_path, column))
    assert splits.task == "regression" and splits.label_names == ("label",)
    assert any("'label' is a number to predict, " in note and "single_label" in note for note in splits.notes)
    known = sorted(map(float, column))
    assert set(splits.datasets["train"]["label"][:]) <= set(known)


@pytest.mark.parametrize("column", [[0.5, 1.5, 2.0], [1e-05, 2.0], [0.0, float("inf")]], ids=str)
def test_few_numbers_may_be_classes_with_a_mistake(column: list[Any], tmp_path: Path) -> None:
    said = refusal(labelled(tmp_path, column))
    assert "looks like a number to predict" in said and "set data.task to regression" in said


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (["3,5", "4,0", "4", "5", "6"], "'3,5' is not a number"),
        ([0.0, 1.0, 2.0, 3.0, float("inf")], "inf is not a number"),
    ],
    ids=str,
)
def test_what_is_no_number_is_refused_with_its_rows(column: list[Any], says: str, tmp_path: Path) -> None:
    said = refusal(labelled(tmp_path, column))
    assert says in said and "train rows" in said and "remove such rows" in said


@pytest.mark.parametrize(
    ("names", "many"),
    [
        (range(150), False),
        (range(1, 151), False),
        (range(20, 80), True),
        (range(0, 500, 10), True),
        (range(20), False),
        ([f"{i:04}" for i in range(30)], False),
        ([f"class {i}" for i in range(30)], False),
    ],
)
def test_many_numbers_that_do_not_count_from_the_start_may_be_a_number_to_predict(
    names: Sequence[object], many: bool
) -> None:
    assert are_many_numbers(list(map(str, names))) == many


def test_many_rows_of_each_of_many_numbers_are_classes_with_a_warning(tmp_path: Path) -> None:
    frame = film_reviews(21).assign(label=[100 + row % 25 for row in range(252)])
    splits = read(write(frame, tmp_path / "ages.parquet"))
    assert len(splits.label_names) == 25
    assert label_warnings(np.full((3, 25), 50), splits.label_names) == [
        "The labels are 25 numbers, each taken for a class of its own; if they are a number to predict, set "
        "data.task to regression"
    ]


def test_decimals_that_may_be_codes_are_classes_with_a_warning() -> None:
    (told,) = label_warnings(np.full((3, 3), 50), ("272.4", "401.9", "428.0"))
    assert told.startswith(
        "The labels are 3 numbers, each taken for a class of its own; if they are a number to predict"
    )


@pytest.mark.parametrize(
    ("names", "codes"),
    [
        (("007.1", "110.0"), True),
        (("250.00", "401.9"), True),
        (("-01", "2"), True),
        (("0.5", "0.25"), False),
        (("1.50", "2.00"), False),
        (("4.0", "3.25"), False),
        (("0", "10"), False),
    ],
)
def test_codes_are_written_as_no_number_is(names: tuple[str, ...], codes: bool) -> None:
    assert are_codes(names) == codes


# ClassLabel


def coded(folder: Path, names: Sequence[str], **splits: list[int]) -> Path:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})
    for name, labels in splits.items():
        texts = [f"{name} text {row}" for row in range(len(labels))]
        split = datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)
        split.to_parquet(str(folder / f"{name}.parquet"))
    return folder


def test_minus_one_of_a_class_label_column_is_no_class(tmp_path: Path) -> None:
    said = refusal(coded(tmp_path, ["neg", "pos"], train=[0, 1, -1] * 20))
    assert "20 rows have no label but -1 (train rows 2, 5" in said


@pytest.mark.parametrize("names", [("0.5", "1.5"), ("0", "1", "none"), ("0", "nan")])
def test_names_of_a_class_label_column_are_classes_whatever_they_are(names: tuple[str, ...], tmp_path: Path) -> None:
    assert read(coded(tmp_path, names, train=[0, 1] * 30)).label_names == names


@pytest.mark.parametrize("column", [["1", "2"], [1, 2], [1.0, 2.0], ["neg", "pos"]])
def test_test_file_without_class_label_may_have_names_or_bare_numbers(column: list[Any], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    coded(data, ["so-so", "neg", "pos"], train=[0, 1, 2] * 20)
    splits = read(data, test_file=str(labelled(tmp_path, column)))
    assert [splits.label_names[label] for label in splits.datasets["test"]["label"]] == ["neg", "pos"] * 30


def test_name_goes_before_number(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    coded(data, ["1", "2", "3"], train=[0, 1, 2] * 20)
    splits = read(data, test_file=str(labelled(tmp_path, [1, 2])))
    assert [splits.label_names[label] for label in splits.datasets["test"]["label"]] == ["1", "2"] * 30


# names that may mean something else


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("pos", "pos ", True),
        ("Positive", "positive", True),
        ("new york", "new  york", True),
        ("new-york", "New York", True),
        ("new\xa0york", "new york", True),
        ("pos\u200d", "pos", True),
        ("new_york", "newyork", True),
        ("café", "cafe\u0301", True),
        ("01", "1", True),
        ("-1", "1", False),
        ("1 2", "12", False),
        ("C", "C++", False),
        ("C", "C#", False),
        ("pos", "post", False),
        ("0", "00", True),
    ],
)
def test_same_word_in_another_writing(one: str, other: str, same: bool) -> None:
    assert (same_word(one) == same_word(other)) == same


@pytest.mark.parametrize(
    "names",
    [
        ("battery", "price", "battery|price"),
        ("battery|price", "battery|screen", "price|screen"),
        ("a;b", "b;c", "a;c", "a;b;c"),
        ("a, b", "b, a"),
        ("rock", "pop", "rock, pop"),
        ('["a"]', '["b"]', '["a", "b"]'),
        ("['a', 'b']", "['b', 'c']", "['a', 'c']"),
        ("1,3", "2,3", "1,2", "1", "2", "3"),
    ],
)
def test_labels_that_recombine_look_like_several(names: tuple[str, ...]) -> None:
    assert "look like several labels for one text" in several_labels(names)


@pytest.mark.parametrize(
    "names",
    [
        ("bad", "good"),
        ("sci/tech", "world", "sports"),
        ("rock, pop", "jazz", "blues"),
        ("new york", "new jersey", "york"),
        ("home, kitchen", "home, garden", "toys"),
        ("sports|football", "sports|tennis", "food|asian", "food|italian"),
        ("Paris, France", "Lyon, France", "Paris, Texas"),
        ("a,", "a", ","),
        (),
    ],
)
def test_names_with_a_mark_in_them_do_not(names: tuple[str, ...]) -> None:
    assert several_labels(names) == ""


def test_combination_that_training_does_not_know_is_explained(tmp_path: Path) -> None:
    frame = film_reviews()
    write(frame.assign(label=["battery", "price"] * 36), tmp_path / "train.csv")
    write(frame[:12].assign(text="x" + frame["text"], label="battery|price"), tmp_path / "test.csv")
    said = refusal(tmp_path)
    assert "label 'battery|price' is not one of battery, price" in said
    assert "look like several labels for one text (battery, price)" in said


def test_split_of_labels_that_training_does_not_know_may_be_unlabelled(tmp_path: Path) -> None:
    frame = film_reviews()
    write(frame, tmp_path / "train.csv")
    write(frame[:12].assign(text="x" + frame["text"], label="hidden"), tmp_path / "test.csv")
    assert "if these rows are not labelled: --data.test_split train cuts test rows" in refusal(tmp_path)


def test_label_that_training_writes_otherwise_is_explained(tmp_path: Path) -> None:
    frame = film_reviews()
    write(frame, tmp_path / "train.csv")
    write(frame[:12].assign(text="x" + frame["text"], label=["Good", "bad "] * 6), tmp_path / "test.csv")
    assert "write 'Good' like 'good', 'bad ' like 'bad' if they mean the same" in refusal(tmp_path)
