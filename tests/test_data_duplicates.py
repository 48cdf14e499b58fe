"""Which texts count as the same, and what it means for data that hold them."""

from collections.abc import Sequence

import datasets
import pandas as pd
import pytest

from tasks.base.words import named_rows
from tasks.data.duplicates import (
    conflicts,
    describe_sharing,
    leaked_rows,
    normal,
    refuse_hopeless,
    repeated_rows,
    same_texts,
    words_alone,
)
from tasks.settings.fields import InputError

CONFLICT = "more than one label"
NAMES = ("bad", "good")


def table(columns: Sequence[str] = ("text",), **splits: Sequence[tuple[object, ...]]) -> pd.DataFrame:
    """`table(train=[("a film", 0)], test=[("A film", 1)])`: the lines of these rows, texts before the label."""
    made = datasets.DatasetDict()
    for name, rows in splits.items():
        *texts, labels = zip(*rows, strict=True)
        values = {**dict(zip(columns, texts, strict=True)), "label": labels, "row": range(100, 100 + len(rows))}
        made[name] = datasets.Dataset.from_dict({column: list(value) for column, value in values.items()})
    return same_texts(made, columns)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A Warm Film", "a warm film"),
        ("a warm  film", " a\twarm\nfilm "),
        ("a warm\u00a0film", "a warm film"),
        ("ﬁne ﬁlm", "fine film"),
        ("cafe\u0301", "café"),
        ("Straße", "STRASSE"),
        ("ｆｉｌｍ", "film"),
        ("ΣΊΣΥΦΟΣ", "Σίσυφος"),
        ("a pretentious mess .", ". . . a pretentious mess . . ."),
        ("well-made and funny", "‘well made’ — and funny!"),
    ],
)
def test_what_a_reader_takes_for_the_same_is_the_same(one: str, other: str) -> None:
    assert words_alone(normal(one)) == words_alone(normal(other))
    assert table(train=[(one, 0), (other, 0)])["text"].nunique() == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a warm film", "a warm filmm"),
        ("great film really 😀", "great film really 😡"),
        ("cost is 5 € more", "cost is 5 $ more"),
        ("ok :(", "ok :)"),
        ("C#", "C"),
        ("!", "?"),
        ("यह किताब अच्छी है", "यह कताब अच्छी है"),
        ("a b c", "ab c d"),
    ],
)
def test_what_says_something_else_is_not_the_same(one: str, other: str) -> None:
    assert table(train=[(one, 0), (other, 0)])["text"].nunique() == 2


def test_pair_is_the_same_only_column_by_column() -> None:
    rows = [("a film", "noir", 0), ("a", "film noir", 0), ("A  film", "NOIR", 1), ("noir", "a film", 0)]
    texts = table(("first", "second"), train=rows)["text"].tolist()
    assert texts[0] == texts[2] and len(set(texts)) == 3


@pytest.mark.parametrize(
    ("text", "near_empty"),
    [
        ("eh .", True),
        ("ok!", True),
        (". . . !!!", True),
        ("😀😀😀", True),
        ("bad", False),
        ("很好的", False),
        ("a 1 b", False),
    ],
)
def test_text_without_three_letters_or_digits_is_nearly_empty(text: str, near_empty: bool) -> None:
    assert table(train=[(text, 0)])["near_empty"].tolist() == [near_empty]


def test_rows_are_found_across_and_within_splits_with_their_row_in_the_source() -> None:
    rows = table(
        train=[("a film", 0), ("a play", 1), ("A film!", 0), ("a film", 1)],
        validation=[("a play", 1), ("a book", 0)],
        test=[("a song", 1), ("a FILM", 0), ("a book", 1), ("a song", 1)],
    )
    assert leaked_rows(rows, "test")[["row", "first"]].to_numpy().tolist() == [[101, 100]]
    assert leaked_rows(rows, "validation")[["row", "first"]].to_numpy().tolist() == [[100, 101]]
    # "A film!" is of two words: its mark may say something
    assert repeated_rows(rows, "train")[["row", "first"]].to_numpy().tolist() == [[103, 100]]
    assert repeated_rows(rows, "test")[["row", "first"]].to_numpy().tolist() == [[103, 100]]
    found = conflicts(rows)
    assert list(zip(found["split"], found["row"], found["label"], strict=True)) == [
        ("train", 100, 0),
        ("train", 103, 1),
        ("validation", 101, 0),
        ("test", 102, 1),
    ]


def test_sentences_name_rows_worst_first() -> None:
    rows = table(
        train=[("a film", 0), ("a play", 1), ("a film", 1)],
        validation=[("a play", 1), ("a book", 0)],
        test=[("a film", 0), ("a book", 0), ("a song", 1)],
    )
    assert describe_sharing(rows, NAMES, CONFLICT) == [
        "Leakage: the text of 1 of 3 test rows is also in train (test row 100; train row 100)",
        "1 text has more than one label (train row 100 'bad', train row 102 'good')",
        "The text of 1 of 2 validation rows is also in train (validation row 100; train row 101)",
        "The text of 1 of 3 test rows is also in validation (test row 101; validation row 101)",
        "1 train row has the text of an earlier one (train row 102; earlier train row 100)",
    ]


def test_clean_rows_give_no_sentence() -> None:
    assert (
        describe_sharing(
            table(train=[("a film", 0), ("a play", 1)], test=[("a song", 1)]), NAMES, "more than one label"
        )
        == []
    )


def test_ten_rows_are_named_and_the_others_counted() -> None:
    assert named_rows("test", [7]) == "test row 7"
    assert named_rows("test", range(10)) == "test rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert named_rows("test", range(2000)) == "test rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 1,990 more"
    films = [(f"film {n}", 0) for n in range(25)]
    (leak,) = describe_sharing(table(train=films, test=films), NAMES, CONFLICT)
    assert "the text of 25 of 25 test rows" in leak
    assert leak.count("and 15 more") == 2


def test_rows_without_text_or_class_are_not_compared() -> None:
    rows = table(train=[("", 0), (None, 1), (" ", 1), ("a film", 0)], test=[("", 1), ("a film", -1)])
    assert rows["row"].tolist() == [103, 101]
    assert conflicts(rows).empty


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        ([("a film", 0), ("A  film", 1)] * 3, [("a play", 0)], "all 6 training texts are the same"),
        (
            [("a film", 0), ("a play", 1), ("a FILM", 1), ("a book", 0)] * 2 + [("a film", 1)],
            [("a song", 0)],
            "5 of 9 training rows have a text that also has another label, .*train row 100 'bad', train row 102 'good'",
        ),
        (
            [("a film", 0), ("a play", 1)],
            [("A Play", 1), ("a film", 0)],
            "the text of 2 of 2 test rows is also in train .test rows 100, 101; train rows 101, 100.",
        ),
    ],
    ids=["one-text", "labels-conflict", "all-leaked"],
)
def test_hopeless_data_are_refused(train: list[tuple[str, int]], test: list[tuple[str, int]], says: str) -> None:
    with pytest.raises(InputError, match=says) as refusal:
        refuse_hopeless(table(train=train, test=test), NAMES)
    assert str(refusal.value).startswith("data")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ([("a film", 0), ("a film", 1), ("a play", 1), ("a book", 0)], [("a song", 0)]),
        ([("a film", 0), ("a play", 1)], [("a play", 1), ("a song", 0)]),
        ([("so it goes", 0), ("so it goes?", 1), ("so it goes!", 0)], [("so, it goes", 0)]),
    ],
    ids=["half-conflicts", "half-leaked", "punctuation-decides"],
)
def test_doubtful_data_are_not_refused(train: list[tuple[str, int]], test: list[tuple[str, int]]) -> None:
    refuse_hopeless(table(train=train, test=test), NAMES)
