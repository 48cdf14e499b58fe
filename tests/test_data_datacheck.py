"""What the data check finds, by row, and how it says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.base.records import DataCheck, Place, PreparedData
from tasks.base.work import WORK
from tasks.data import datacheck, duplicates, splits
from tasks.data.datacheck import (
    balance_warnings,
    check_data,
    check_page,
    histogram,
    label_warnings,
    length_edges,
    power_sentence,
    read_check,
    twin_warnings,
)
from tasks.data.prepare import check_input, prepare
from tasks.scores.statistics import detectable_difference
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import validated
from tests.conftest import SHARED, tracked
from tests.test_data_splits import film_reviews, write

SPLITS = ("train", "validation", "test")


@pytest.fixture
def configure(foundation: Any) -> Callable[..., RunConfig]:
    def make(path: Path, confidence: float = 0.95, **fields: Any) -> RunConfig:
        values = {"name": str(path), "max_length": 32, **fields}
        model, evaluation = {"name": str(foundation("bert"))}, {"confidence": confidence}
        return validated({"model": model, "data": values, "evaluation": evaluation})

    return make


def write_splits(folder: Path, rows: dict[str, pd.DataFrame]) -> Path:
    for name, frame in rows.items():
        write(frame, folder / f"{name}.csv")
    return folder


@pytest.fixture
def planted(tmp_path: Path) -> Callable[[bool], Path]:
    """`planted(True)`: 60, 12 and 48 rows with 5 texts of train in test and 3 texts of train with two labels.

    `planted(False)` has 2 empty texts and 1 unknown label as well.
    """

    def make(repaired: bool) -> Path:
        frame = film_reviews(10)
        train, test = frame[:60].reset_index(drop=True), frame[72:].reset_index(drop=True)
        for row in range(5):
            test.loc[10 + row] = [f"  {train['text'][2 * row].upper()} ", train["label"][2 * row]]
        for row in range(3):
            label = {"good": "bad", "bad": "good"}[train["label"][20 + row]]
            train.loc[50 + row] = [train["text"][20 + row], label]
        if not repaired:
            train.loc[40, "text"], test.loc[41, "text"], test.loc[42, "label"] = "", "  ", "so-so"
        name = "repaired" if repaired else "faulty"
        return write_splits(tmp_path / name, {"train": train, "validation": frame[60:72], "test": test})

    return make


def run_check(config: RunConfig, work: Path) -> tuple[PreparedData, DataCheck]:
    data = prepare(config, work)
    return data, read_check(config, data)


DUPLICATES = "the text of 5 of {} test rows is also in train (test rows 10, 11, 12, 13, 14; train rows 0, 2, 4, 6, 8)"
CONFLICTS = (
    "3 texts have more than one label (train row 20 'good', train row 50 'bad'; train row 21 'good', "
    "train row 51 'bad'; train row 22 'good', train row 52 'bad')"
)


def test_one_refusal_names_every_planted_row(
    planted: Callable[[bool], Path], configure: Callable[..., RunConfig]
) -> None:
    with pytest.raises(InputError) as refusal:
        check_input(configure(planted(False)))
    message = str(refusal.value)
    assert "\n" not in message
    for fault in (
        "1 empty text in column 'text' (train row 40)",
        "1 empty text in column 'text' (test row 41)",
        "label 'so-so' is not one of bad, good (test row 42)",
        DUPLICATES.format(47),  # of those that have a text
        CONFLICTS,
    ):
        assert fault in message


def test_check_of_the_repaired_file_names_the_others(
    planted: Callable[[bool], Path], configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    _, check = run_check(configure(planted(True)), tmp_path / "work")
    assert check.warnings[0] == f"Leakage: {DUPLICATES.format(48)}"
    assert CONFLICTS in check.warnings
    assert check.leaked == {"validation": (), "test": (10, 11, 12, 13, 14)}
    assert check.duplicates == {"train": 3, "validation": 0, "test": 0}
    assert [text.conflicting for text in check.same_texts] == [False] * 5 + [True] * 3
    found = {tuple((place.split, place.row) for place in text.places) for text in check.same_texts}
    assert found == {
        *((("train", 2 * row), ("test", 10 + row)) for row in range(5)),
        *((("train", 20 + row), ("train", 50 + row)) for row in range(3)),
    }


def test_clean_data_have_nothing_but_their_size_to_warn_of(configure: Callable[..., RunConfig], tmp_path: Path) -> None:
    path = write(film_reviews(50), tmp_path / "reviews.csv")
    _, check = run_check(configure(path), tmp_path / "work")
    (warning,) = check.warnings
    assert warning.startswith("The test set is too small to say much: 60 test rows show a difference of ")
    assert (check.same_texts, check.near_empty) == ((), ())
    assert set(check.duplicates.values()) == {0} and set(check.truncated.values()) == {0}


@pytest.mark.hub
def test_real_cases_of_rotten_tomatoes_are_found(configure: Callable[..., RunConfig], tmp_path: Path) -> None:
    _, check = run_check(configure(SHARED / "data/rotten_tomatoes", max_length=64), tmp_path)
    assert [[(place.split, place.row) for place in text.places] for text in check.same_texts] == [
        [("train", 1938), ("train", 4249)],
        [("train", 4904), ("train", 7701)],
    ]
    assert check.same_texts[1].text == ". . . a pretentious mess . . ."
    assert check.duplicates == {"train": 2, "validation": 0, "test": 0}
    assert check.leaked == {"validation": (), "test": ()}
    assert check.near_empty == (Place(split="train", row=6851),)
    assert any("train rows 4249, 7701; earlier train rows 1938, 4904" in warning for warning in check.warnings)
    assert not any(text.conflicting for text in check.same_texts)


def test_texts_are_compared_once_a_process(
    planted: Callable[[bool], Path],
    configure: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    monkeypatch.setattr(splits, "same_texts", lambda *given: calls.append(1) or duplicates.same_texts(*given))
    config = configure(planted(True))
    check_input(config)
    data = prepare(config, tmp_path / "work")
    prepare(config, tmp_path / "work")
    read_check(config, data)
    assert len(calls) == 1


# truncation and lengths


def test_truncated_rows_are_counted_by_split(configure: Callable[..., RunConfig], tmp_path: Path) -> None:
    frame = film_reviews(8)
    long = frame.assign(text=frame["text"] + " and so on" * 20)
    path = write_splits(tmp_path / "d", {"train": frame[:60], "validation": frame[60:72], "test": long[72:]})
    data, check = run_check(configure(path), tmp_path / "work")
    assert check.truncated == {"train": 0, "validation": 0, "test": 24} and data.truncated == 24
    assert any(
        "25.0 % of the rows are longer than data.max_length (32 tokens)" in warning for warning in check.warnings
    )


def test_length_bins_hold_every_row(configure: Callable[..., RunConfig], tmp_path: Path) -> None:
    data, check = run_check(configure(write(film_reviews(20), tmp_path / "reviews.csv")), tmp_path / "work")
    for split in SPLITS:
        assert sum(check.lengths[split]) == data.rows(split)
        assert len(check.lengths[split]) == len(check.length_edges) - 1


@pytest.mark.parametrize("seed", range(20))
def test_length_bins_are_equal_about_twenty_and_not_stretched_by_one_text(seed: int) -> None:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, generator.integers(2, 300), size=1000)
    edges = length_edges({"train": tokens})
    assert len(set(np.diff(edges))) == 1 and edges[0] == 0
    assert len(edges) <= 22 and edges[-1] > tokens.max()
    assert histogram(tokens, edges) == tuple(np.histogram(tokens, edges)[0])
    tokens[0] = 100_000
    longer = length_edges({"train": tokens})
    assert longer[-1] < 2000
    assert sum(histogram(tokens, longer)) == 1000 and histogram(tokens, longer)[-1] >= 1


# classes


def test_classes_that_are_spread_differently_are_named() -> None:
    counts = np.array([[500, 500], [52, 48], [20, 180]])
    (warning,) = balance_warnings(counts, counts.sum(1), ("bad", "good"))
    assert warning == (
        "The classes are spread differently in train and test: 'bad' has 50.0 % of the train rows and 10.0 % of the "
        "test rows"
    )


@pytest.mark.parametrize(
    "counts",
    [
        [[500, 500], [500, 500], [5, 3]],  # chance
        [[50_000, 50_000], [50_000, 50_000], [48_000, 52_000]],  # not by chance, and small
        [[500, 500, 0], [50, 50, 0], [50, 50, 0]],  # a class without rows
    ],
)
def test_classes_that_are_spread_alike_are_not(counts: list[list[int]]) -> None:
    rows = np.array(counts).sum(1)
    assert balance_warnings(np.array(counts), rows, ("bad", "good", "so-so")[: len(counts[0])]) == []


def test_labels_that_differ_only_in_writing_are_named_with_their_rows() -> None:
    from datasets import Dataset

    splits = {"train": Dataset.from_dict({"row": range(8)})}
    has = {"train": np.array([0, 0, 1, 1, 2, 3, 3, 3])[:, None] == np.arange(4)}
    (warning,) = twin_warnings(splits, has, ("Good", "bad", "good ", "so-so"))
    assert "'Good' (2 rows, such as train row 0) and 'good ' (1 row, such as train row 4)" in warning
    assert "write them alike" in warning and "bad" not in warning


def test_labels_that_look_like_several_or_like_none_are_named() -> None:
    names = ("battery", "battery|price", "battery|screen", "price", "price|screen", "screen")
    (warning,) = label_warnings(np.full((3, 6), 50), names)
    assert warning.startswith("Labels such as 'battery|price' look like several labels for one text (battery, price, ")
    (warning,) = label_warnings(np.full((3, 3), 50), ("bad", "good", "nan"))
    assert warning.startswith("The label 'nan' is taken for a class")


def test_labels_that_are_missing_somewhere_are_named() -> None:
    counts = np.array([[50, 50, 9, 0], [50, 50, 0, 0], [50, 9, 0, 0]])
    assert label_warnings(counts, ("a", "b", "c", "d")) == [
        "No row has the label 'd'",
        "Only rows of train have the label 'c'",
        "2 classes have under 30 test rows ('b' 9, 'c' 0); their own scores say little",
    ]


# what the test rows can show


def test_power_follows_the_confidence_of_the_run_not_that_of_the_prepared_data(
    configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    path = write(film_reviews(20), tmp_path / "reviews.csv")
    data, check = run_check(configure(path), tmp_path / "work")
    other_data, other = run_check(configure(path, confidence=0.8), tmp_path / "work")
    assert other_data.folder == data.folder
    assert check.detectable == detectable_difference(24, 0.95)
    assert other.detectable == detectable_difference(24, 0.8)
    stored = json.loads((Path(data.folder) / "data_check.json").read_text())
    assert stored["detectable"] is None and not any("test set" in warning for warning in stored["warnings"])


def test_power_sentence_says_what_it_assumes(configure: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = configure(tmp_path)
    data, check = run_check(configure(write(film_reviews(20), tmp_path / "reviews.csv")), tmp_path / "work")
    data = data.model_copy(update={"row_counts": {"test": 1066}})
    check = check.model_copy(update={"detectable": 0.0391})
    assert power_sentence(data, check, config) == (
        "1,066 test rows show a difference of 3.9 points of accuracy or more with 80 % power (95 % confidence, "
        "assuming that the two classifiers disagree on 20 % of the rows)"
    )
    # who differs by 45 points disagrees on as many
    assert "disagree on 45 %" in power_sentence(data, check.model_copy(update={"detectable": 0.45}), config)
    assert "can show no difference" in power_sentence(data, check.model_copy(update={"detectable": None}), config)


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_nothing_is_said_about_what_cannot_be_known_before_it_is_measured(
    task: str, configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    labels = [["a|b", "a", "b"][row % 3] if task == "multi_label" else row / 8 for row in range(60)]
    path = write(film_reviews(5).assign(label=labels), tmp_path / "reviews.csv")
    config = configure(path, task=task)
    data, check = run_check(config, tmp_path / "work")
    assert power_sentence(data, check, config) == ""
    assert not any("test set" in warning or "difference" in warning for warning in check.warnings)
    page = check_page("reviews", check.warnings, "", "tables")
    assert "\n\n\n" not in page and page.endswith("\n\ntables")


def test_small_test_set_is_warned_of_after_leakage(
    planted: Callable[[bool], Path], configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    _, check = run_check(configure(planted(True)), tmp_path / "work")
    assert [warning.split(":")[0] for warning in check.warnings[:2]] == [
        "Leakage",
        "The test set is too small to say much",
    ]


# limits


def test_record_is_bounded_and_sentences_count_all(
    configure: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datacheck, "MOST_TEXTS", 3)
    monkeypatch.setattr(datacheck, "MOST_PLACES", 4)
    frame = film_reviews(10)
    train = pd.concat([frame[:60], *[frame[:5]] * 7, frame[:1].assign(label="good")])
    test = pd.concat([frame[84:], frame[4:5]])
    path = write_splits(tmp_path / "d", {"train": train, "validation": frame[60:84], "test": test})
    _, check = run_check(configure(path), tmp_path / "work")
    # the leaked text first, then the one with two labels, then by row
    assert [text.text for text in check.same_texts] == [frame["text"][row] for row in (4, 0, 1)]
    assert all(len(text.places) == 4 for text in check.same_texts)
    assert check.same_texts[0].places[1].split == "test" and check.same_texts[1].conflicting
    assert check.duplicates["train"] == 36
    assert any(warning.startswith("36 train rows have the text of an earlier one") for warning in check.warnings)


# the task


def test_task_tells_prefect_mlflow_and_the_log(
    planted: Callable[[bool], Path],
    configure: Callable[..., RunConfig],
    workplace: Path,
    prefect_harness: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from mlflow import MlflowClient
    from prefect import flow
    from prefect.artifacts import Artifact

    config = configure(planted(True))
    data = prepare(config, workplace / "work")

    @flow
    def check_alone() -> tuple[str, DataCheck]:
        with tracked(config.model_dump()) as run_id:
            return run_id, check_data(config, data, str((WORK / "a").resolve()))

    run_id, check = check_alone()
    assert check == read_check(config, data)
    levels = {record.getMessage(): record.levelname for record in caplog.records}
    assert all(levels[warning] == "WARNING" for warning in check.warnings)
    said = [message for message in levels if power_sentence(data, check, config) in message]
    assert len(said) == 1, "it is in the warning of a small test set, and then not said again"
    api = MlflowClient()
    page = Path(api.download_artifacts(run_id, "data_check/data_check.md")).read_text()
    logged = Path(api.download_artifacts(run_id, "data_check/data_check.json")).read_bytes()
    assert DataCheck.model_validate_json(logged) == check
    artifact = Artifact.get("data-check")
    assert artifact and artifact.data == page
    assert artifact.description == check.warnings[0]
