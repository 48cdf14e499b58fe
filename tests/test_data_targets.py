"""What is learned, found out from the labels: several labels from every format alike, numbers, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.data.duplicates import describe_conflicts, describe_sharing
from tasks.data.targets import labels_of, reader
from tasks.scores.objective import objective
from tasks.settings.sections import DataConfig
from tests.test_data_labels import labelled, refusal
from tests.test_data_splits import film_reviews, fingerprint_of, read, write

SETS = (["battery"], ["price", "battery"], [], ["screen"], ["price"], ["battery", "screen"])
NAMES = ("battery", "price", "screen")


def tickets(rows: int = 120) -> pd.DataFrame:
    texts = [f"ticket number {row} says this" for row in range(rows)]
    return pd.DataFrame({"text": texts, "label": [SETS[row % 6] for row in range(rows)]})


def columns_of(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[["text"]].assign(**{name: [int(name in labels) for labels in frame["label"]] for name in NAMES})


def test_several_labels_are_the_same_from_every_format(tmp_path: Path) -> None:
    frame = tickets()
    lists = write(frame, tmp_path / "lists.jsonl")
    joined = write(frame.assign(label=frame["label"].map("|".join)), tmp_path / "joined.csv")
    ones = write(columns_of(frame), tmp_path / "ones.csv")
    words = write(columns_of(frame).replace({0: "no", 1: "yes"}), tmp_path / "words.csv")
    found = {
        fingerprint_of(lists),
        fingerprint_of(write(frame, tmp_path / "lists.parquet")),
        fingerprint_of(joined, task="multi_label"),
        fingerprint_of(ones, label_columns=NAMES),
        fingerprint_of(words, label_columns=NAMES),
    }
    assert len(found) == 1
    splits = read(lists)
    assert (splits.task, splits.label_names) == ("multi_label", NAMES)
    for split in splits.datasets.values():
        given = labels_of(split)
        for place, row in enumerate(split["row"]):
            assert {NAMES[i] for i in given[place].nonzero()[0]} == set(SETS[row % 6])


def test_words_with_a_separator_are_taken_for_several_labels_and_it_is_said(tmp_path: Path) -> None:
    frame = tickets()
    frame = frame[frame["label"].map(len) > 0].assign(label=lambda rows: rows["label"].map("|".join))
    path = write(frame, tmp_path / "tickets.csv")
    splits = read(path)
    assert splits.task == "multi_label" and splits.label_names == NAMES
    assert any("look like several labels" in note and "single_label" in note for note in splits.notes)
    each = read(path, task="single_label")
    assert each.task == "single_label" and "battery|screen" in each.label_names


@pytest.mark.parametrize("rows", [120, 600])
def test_splits_that_are_cut_hold_each_label_in_its_share(rows: int, tmp_path: Path) -> None:
    splits = read(write(tickets(rows), tmp_path / "tickets.jsonl"))
    shares = {role: labels_of(split).mean(0) for role, split in splits.datasets.items()}
    for role in ("validation", "test"):
        assert np.abs(shares[role] - shares["train"]).max() < 0.1
    places = [row for split in splits.datasets.values() for row in split["row"]]
    assert sorted(places) == list(range(rows))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": [["a"], None] * 60}, "an empty cell does not say which labels the text has (train rows 1, 3"),
        ({"label": [["a"], []] * 60}, "have only the label 'a'; two are needed"),
        ({"label": [[["a"]], []] * 60}, "does not say which labels the text has"),
    ],
)
def test_lists_that_are_no_labels_are_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert says in refusal(write(tickets().assign(**change), tmp_path / "tickets.jsonl"))


def test_label_columns_of_anything_but_0_and_1_are_refused(tmp_path: Path) -> None:
    frame = columns_of(tickets())
    frame.loc[7, "price"] = 2
    said = refusal(write(frame, tmp_path / "ones.csv"), label_columns=NAMES)
    assert "'2' in 'price' is not 0 or 1 (train row 7)" in said
    assert "has no column 'weight'" in refusal(tmp_path / "ones.csv", label_columns=("battery", "weight"))


def test_label_column_without_a_1_in_train_is_refused_whatever_test_has(tmp_path: Path) -> None:
    frame = columns_of(tickets()).assign(weight=0, colour="no")
    path = write(frame, tmp_path / "ones.csv")
    said = refusal(path, label_columns=(*NAMES, "weight"))
    assert "no training row has a 1 in 'weight'" in said and "take it out of data.label_columns" in said
    assert "in 'weight', 'colour'" in refusal(path, label_columns=(*NAMES, "weight", "colour"))


def test_label_column_whose_name_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    frame = columns_of(tickets()).rename(columns={"price": "pri\u200bce"})
    said = refusal(write(frame, tmp_path / "ones.parquet"), label_columns=("battery", "pri\u200bce"))
    assert r"data.label_columns: the class 'pri\u200bce' is not a name to show in tables (it holds '\u200b')" in said


@pytest.mark.parametrize("task", ["auto", "multi_label"])
def test_whole_numbers_among_several_labels_lose_their_point_as_classes_do(task: str, tmp_path: Path) -> None:
    frame = tickets().assign(label=["1.0|2.0", "3.0", "1.0|3.0", "2.0|3.0", "10.0", "1"] * 20)
    splits = read(write(frame, tmp_path / "train.csv"), task=task)
    assert (splits.task, splits.label_names) == ("multi_label", ("1", "2", "3", "10"))
    for split in splits.datasets.values():
        for given, row in zip(labels_of(split), split["row"], strict=True):
            names = {splits.label_names[i] for i in given.nonzero()[0]}
            assert names == {part.removesuffix(".0") for part in frame["label"][row].split("|")}


def test_numbers_beside_words_keep_their_point(tmp_path: Path) -> None:
    frame = tickets().assign(label=["1.0|b", "b|c", "c", "1.0|c", "b", "1.0"] * 20)
    assert read(write(frame, tmp_path / "train.csv")).label_names == ("1.0", "b", "c")


def test_label_that_training_lacks_is_refused_with_its_row(tmp_path: Path) -> None:
    write(tickets(), tmp_path / "train.jsonl")
    new = tickets(12).assign(text=lambda rows: "new " + rows["text"])
    new.at[4, "label"] = ["keyboard"]
    write(new, tmp_path / "test.jsonl")
    assert "'keyboard' in test is not one of battery, price, screen (test row 4)" in refusal(tmp_path)


def test_empty_cells_are_rows_without_a_label_where_the_task_is_given(tmp_path: Path) -> None:
    path = write(tickets().assign(label=lambda rows: rows["label"].map("|".join)), tmp_path / "joined.csv")
    splits = read(path, task="multi_label")
    assert sum(int((labels_of(split).sum(1) == 0).sum()) for split in splits.datasets.values()) == 20


def test_the_same_text_with_other_labels_is_a_warning_and_not_a_refusal(tmp_path: Path) -> None:
    frame = tickets()
    frame.loc[1, "text"] = frame.loc[0, "text"]
    splits = read(write(frame, tmp_path / "tickets.jsonl"))
    (told,) = describe_conflicts(splits.same_texts, splits.label_words, objective(splits.task).conflict)
    assert "1 text has different sets of labels (" in told and "'battery'" in told and "'battery, price'" in told


def test_the_same_text_with_other_numbers_is_told_with_them(tmp_path: Path) -> None:
    frame = film_reviews(10).assign(label=lambda rows: [1_000_000 + row / 8 for row in range(len(rows))])
    frame.loc[1, "text"] = frame.loc[0, "text"]
    splits = read(write(frame, tmp_path / "reviews.parquet"))
    told = describe_sharing(splits.same_texts, splits.label_words, objective(splits.task).conflict)
    assert any(
        "1 text has different numbers (" in one and "'1000000'" in one and "'1000000.125'" in one for one in told
    )


# --- numbers


def test_grades_are_classes_unless_they_are_said_to_be_numbers(tmp_path: Path) -> None:
    path = labelled(tmp_path, [1, 2, 3, 4, 5])
    assert read(path).task == "single_label"
    splits = read(path, task="regression")
    assert splits.task == "regression" and labels_of(splits.datasets["test"]).dtype == np.float64
    assert set(labels_of(splits.datasets["train"])) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_numbers_are_the_same_from_every_format(kind: str, tmp_path: Path) -> None:
    frame = film_reviews(10).assign(label=lambda rows: [row / 8 for row in range(len(rows))])
    path = write(frame, tmp_path / f"reviews.{kind}")
    assert fingerprint_of(path) == fingerprint_of(write(frame, tmp_path / "other" / "reviews.parquet"))
    splits = read(path)
    assert splits.task == "regression"
    for split in splits.datasets.values():
        assert (labels_of(split) == np.asarray(split["row"]) / 8).all()


def test_splits_that_are_cut_have_numbers_of_every_size(tmp_path: Path) -> None:
    frame = film_reviews(50).assign(label=lambda rows: np.random.default_rng(0).normal(size=len(rows)))
    splits = read(write(frame, tmp_path / "reviews.parquet"))
    for role in ("validation", "test"):
        part = labels_of(splits.datasets[role])
        assert abs(part.mean()) < 0.15 and abs(part.std() - 1) < 0.15


def test_one_number_for_all_is_refused(tmp_path: Path) -> None:
    said = refusal(labelled(tmp_path, [3.5]), task="regression")
    assert "all training rows have the number 3.5; there is nothing to learn" in said


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"label_columns": ["a", "b"], "task": "regression"}, "label_columns are several labels"),
        ({"label_columns": ["a"]}, "give two or more"),
        ({"label_columns": ["a", "text"]}, "must be different columns"),
        ({"task": "ordinal"}, "data.task"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict[str, Any], says: str) -> None:
    from tasks.settings.fields import InputError
    from tasks.settings.loading import validated

    with pytest.raises(InputError, match=says):
        validated({"data": fields})


@pytest.mark.parametrize(
    ("task", "fields"), [("multi_label", {}), ("multi_label", {"label_columns": NAMES}), ("regression", {})]
)
def test_test_rows_that_a_run_logs_are_read_again(task: str, fields: dict[str, Any], tmp_path: Path) -> None:
    frame = columns_of(tickets()) if fields else tickets()
    if task == "regression":
        frame = frame.assign(label=[row / 8 for row in range(len(frame))])
    first = read(path := write(frame, tmp_path / "data.parquet"), **fields)
    config, test = DataConfig.model_validate({"name": str(path), **fields}), first.datasets["test"]
    columns = {"row": test["row"][:], "text": test["text"][:]}
    columns |= reader(task).written(labels_of(test), first.label_names, config)
    again = read(path, test_file=str(write(pd.DataFrame(columns), tmp_path / "test.parquet")), **fields)
    assert again.task == first.task == task and again.datasets["test"]["row"][:] == test["row"][:]
    assert (labels_of(again.datasets["test"]) == labels_of(test)).all()


def test_rows_and_fingerprints_of_classes_are_those_of_before_there_were_tasks(tmp_path: Path) -> None:
    frame = film_reviews()
    grades = write(frame.assign(label=[str(row % 3) for row in range(len(frame))]), tmp_path / "grades.csv")
    assert fingerprint_of(write(frame, tmp_path / "reviews.csv")).startswith("ec4f0d0edcb118a1")
    assert fingerprint_of(grades, max_train_rows=30).startswith("503aa00229946dad")
