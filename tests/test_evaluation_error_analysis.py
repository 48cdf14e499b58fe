"""Flips, mistakes, label errors and slices: what was planted is found, by row."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.base.records import PreparedData, Slice
from tasks.evaluation import error_analysis
from tasks.evaluation.predictions import Predictions
from tasks.scores.classes import suspected_classes
from tasks.scores.statistics import mcnemar_p_value, wilson_interval
from tests.conftest import Judged, made_up_data, sentences

ROWS = 60


def sure(labels: np.ndarray, confidence: float = 0.9) -> np.ndarray:
    """A binary classifier that says `labels` with this probability."""
    table = np.full((len(labels), 2), 1 - confidence)
    table[np.arange(len(labels)), labels] = confidence
    return table


class Case:
    """60 rows, numbered from 100; every classifier right, until told otherwise."""

    def __init__(self, folder: Path) -> None:
        self.labels = np.arange(ROWS) % 2
        self.tables = {name: sure(self.labels) for name in ("tuned", "baseline", "tfidf", "probe")}
        self.frame = pd.DataFrame({"row": np.arange(100, 100 + ROWS), "labels": self.labels})
        self.frame["text"] = [f"text {i}" for i in range(ROWS)]
        self.frame["full_length"] = self.frame["length"] = 5 + np.arange(ROWS) // 15
        self.folder = folder

    def says(self, name: str, row: int, label: int, confidence: float) -> None:
        self.tables[name][row - 100] = sure(np.array([label]), confidence)[0]

    @property
    def predictions(self) -> Predictions:
        return Predictions(self.frame["row"].to_numpy(), self.labels, self.tables)

    def read(self, columns: tuple[str, ...] = ()) -> tuple[PreparedData, Any]:
        data = made_up_data(self.folder, self.frame, ("bad", "good"), columns)
        return data, error_analysis.read_test_rows(data, self.predictions)

    def slices(self, columns: tuple[str, ...] = ()) -> tuple[Slice, ...]:
        data, test = self.read(columns)
        return error_analysis.find_slices(data, test, self.predictions, 0.95)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path / "data")


def test_planted_flips_are_found_with_both_confidences(case: Case) -> None:
    case.says("baseline", 104, 1, 0.7)  # its label is 0: fixed
    case.says("tuned", 111, 0, 0.95)  # its label is 1: broken
    data, test = case.read()
    found = error_analysis.flips(data, test, case.predictions)
    assert found["row"].tolist() == [111, 104]
    assert found["flip"].tolist() == ["broken", "fixed"]
    assert found["text"].tolist() == ["text 11", "text 4"]
    assert found["true_label"].tolist() == ["good", "bad"]
    assert found["baseline_label"].tolist() == ["good", "good"]
    assert found["tuned_label"].tolist() == ["bad", "bad"]
    assert found["baseline_probability"].tolist() == pytest.approx([0.9, 0.7])
    assert found["tuned_probability"].tolist() == pytest.approx([0.95, 0.9])


def test_mistakes_come_most_confident_first(case: Case) -> None:
    for row, confidence in ((102, 0.6), (108, 0.99), (120, 0.8)):
        case.says("tuned", row, 1, confidence)
    data, test = case.read()
    found = error_analysis.mistakes(data, test, case.predictions)
    assert found["row"].tolist() == [108, 120, 102]
    assert found["true_label_probability"].tolist() == pytest.approx([0.01, 0.2, 0.4])


def test_planted_wrong_label_is_the_first_likely_label_error(case: Case) -> None:
    for name in ("tuned", "tfidf", "probe"):
        case.says(name, 130, 1, 0.97)
    case.says("tuned", 140, 1, 0.96)  # the adapter alone: as likely its own mistake
    data, test = case.read()
    found = error_analysis.likely_label_errors(data, test, case.predictions, {}, 0.95)
    assert found["row"].tolist() == [130]
    assert (found["given_label"][0], found["likely_label"][0]) == ("bad", "good")
    assert found["given_label_probability"][0] == pytest.approx(0.03)
    assert found["likely_label_probability"][0] == pytest.approx(0.97)


def test_likely_label_errors_come_by_margin(case: Case) -> None:
    for row, confidence in ((110, 0.93), (130, 0.99), (120, 0.95)):
        for name in ("tuned", "tfidf", "probe"):
            case.says(name, row, 1, confidence)
    data, test = case.read()
    found = error_analysis.likely_label_errors(data, test, case.predictions, {}, 0.95)
    assert found["row"].tolist() == [130, 120, 110]


@pytest.mark.parametrize("doubter", ["tfidf", "probe"])
def test_one_reference_that_beats_chance_and_disagrees_clears_the_label(case: Case, doubter: str) -> None:
    for name in {"tuned", "tfidf", "probe"} - {doubter}:
        case.says(name, 130, 1, 0.97)
    data, test = case.read()
    assert error_analysis.likely_label_errors(data, test, case.predictions, {}, 0.95).empty


def test_wrong_label_is_found_by_real_classifiers(tmp_path: Path) -> None:
    """Three that read texts differently, trained on other rows than those in which one label is wrong."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, labels = sentences(30)
    wrong = 17
    given = np.array(labels[:120])
    given[wrong] = 1 - given[wrong]
    readers = {
        "tuned": TfidfVectorizer(),
        "tfidf": TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)),
        "probe": CountVectorizer(ngram_range=(1, 2)),
    }
    tables = {
        name: make_pipeline(reader, LogisticRegression()).fit(texts[120:], labels[120:]).predict_proba(texts[:120])
        for name, reader in readers.items()
    }
    frame = pd.DataFrame({"row": np.arange(120), "labels": given, "text": texts[:120], "length": 5, "full_length": 5})
    data = made_up_data(tmp_path / "data", frame, ("bad", "good"))
    predictions = Predictions(np.arange(120), given, tables)
    test = error_analysis.read_test_rows(data, predictions)
    found = error_analysis.likely_label_errors(data, test, predictions, {}, 0.95)
    assert found["row"].tolist() == [wrong]
    assert found["text"].tolist() == [texts[wrong]]


def test_class_without_a_row_is_nobodys_likely_label() -> None:
    labels = np.array([0, 0, 1, 1])
    table = np.array([[0.1, 0.1, 0.8], [0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.1, 0.5, 0.4]])
    assert suspected_classes(table, labels).tolist() == [0, 0, 1, 1]


def test_of_equal_scores_the_earlier_row_comes_first() -> None:
    found = error_analysis.most(np.array([0.5, 0.9, 0.7, 0.9, 0.9]), np.array([0, 1, 3, 4]), 3)
    assert found.tolist() == [1, 3, 4]
    assert error_analysis.most(np.array([0.5, 0.9, 0.9]), np.arange(3), 1).tolist() == [1]


def test_reference_that_learned_nothing_is_not_asked(case: Case) -> None:
    case.tables["probe"] = sure(np.random.default_rng(0).permutation(case.labels), 0.9)
    for name in ("tuned", "tfidf"):
        case.says(name, 130, 1, 0.97)
    case.says("probe", 130, 0, 0.9)
    data, test = case.read()
    assert 130 in error_analysis.likely_label_errors(data, test, case.predictions, {}, 0.95)["row"].tolist()


def test_adapter_that_learned_nothing_suspects_no_label(case: Case) -> None:
    case.tables["tuned"] = sure(1 - case.labels)
    for name in ("tfidf", "probe"):
        case.says(name, 130, 1, 0.97)  # so says the adapter, but it says the wrong thing everywhere
    data, test = case.read()
    assert error_analysis.likely_label_errors(data, test, case.predictions, {}, 0.95).empty


def test_slices_of_one_kind_hold_every_row_once(judged: Judged) -> None:
    rows: dict[str, int] = {}
    for part in judged.result.slices:
        rows[part.kind] = rows.get(part.kind, 0) + part.rows
    assert rows == {kind: 240 for kind in ("tokens", "negation", "truncated", "class", "outlet")}


def test_slice_has_the_numbers_of_its_rows(case: Case) -> None:
    for row in (100, 102):
        case.says("baseline", row, 1, 0.8)
    case.says("tuned", 104, 1, 0.8)
    found = {part.name: part for part in case.slices() if part.kind == "class"}
    bad, good = found["bad"], found["good"]
    assert (bad.rows, bad.fixed, bad.broken, bad.small) == (30, 2, 1, False)
    assert bad.baseline == pytest.approx(28 / 30)
    assert bad.score == wilson_interval(29, 30, 0.95)
    assert bad.p_value == mcnemar_p_value(2, 1)
    assert (good.baseline, good.score.value, good.fixed, good.broken) == (1, 1, 0, 0)


def test_interval_and_p_of_a_slice_are_those_done_by_hand(case: Case) -> None:
    for row in range(100, 112, 2):  # 6 of the 30 bad ones fixed, none broken
        case.says("baseline", row, 1, 0.8)
    for row in (120, 122, 124):  # and 3 that both have wrong
        for name in ("baseline", "tuned"):
            case.says(name, row, 1, 0.8)
    bad = next(part for part in case.slices() if (part.kind, part.name) == ("class", "bad"))
    assert (bad.fixed, bad.broken, bad.p_value) == (6, 0, pytest.approx(2 * 0.5**6))
    # 27 of 30, z = 1.96: centre (0.9 + 3.8416 / 60) / 1.1281, half 1.96 √(0.09 / 30 + 3.8416 / 3600) / 1.1281
    assert (bad.score.low, bad.score.high) == pytest.approx((0.7438, 0.9654), abs=1e-4)


def test_quarters_by_length_keep_equal_lengths_together(case: Case) -> None:
    assert [(part.name, part.rows) for part in case.slices() if part.kind == "tokens"] == [
        ("5", 15), ("6", 15), ("7", 15), ("8", 15),
    ]  # fmt: skip
    case.frame["full_length"] = case.frame["length"] = np.where(np.arange(ROWS) < 50, 9, 20)
    assert [(p.name, p.rows) for p in Case.slices(case) if p.kind == "tokens"] == [("9", 50), ("20", 10)]


@pytest.mark.parametrize(
    ("text", "negated"),
    [
        ("it is not good", True), ("I don't like it", True), ("I don’t like it", True), ("Never again", True),
        ("a notable film", False), ("it has a knot", False), ("no", True), ("without end", True), ("fine", False),
    ],
)  # fmt: skip
def test_negation_is_told_by_words(case: Case, text: str, negated: bool) -> None:
    case.frame.loc[0, "text"] = text
    names = {part.name: part.rows for part in case.slices() if part.kind == "negation"}
    assert names == ({"with negation": 1, "without negation": 59} if negated else {})


def test_negation_in_any_text_column_counts(case: Case) -> None:
    case.frame["answer"] = np.where(np.arange(ROWS) < 4, "it is not so", "it is so")
    data, _ = case.read()
    pair = data.model_copy(update={"text_columns": ("text", "answer")})
    test = error_analysis.read_test_rows(pair, case.predictions)
    found = error_analysis.find_slices(pair, test, case.predictions, 0.95)
    assert {part.name: part.rows for part in found if part.kind == "negation"} == {
        "with negation": 4, "without negation": 56,
    }  # fmt: skip


def test_truncated_rows_are_a_slice_only_where_both_kinds_are(case: Case) -> None:
    assert "truncated" not in {part.kind for part in case.slices()}
    case.frame.loc[:9, "full_length"] = 99
    found = {part.name: part for part in case.slices() if part.kind == "truncated"}
    assert {name: part.rows for name, part in found.items()} == {"truncated": 10, "whole": 50}
    assert (found["truncated"].small, found["whole"].small) == (True, False)


def test_columns_of_the_data_are_slices(case: Case) -> None:
    case.frame["slice genre"] = np.where(np.arange(ROWS) < 20, "drama", "comedy")
    assert [(part.name, part.rows) for part in case.slices(("genre",)) if part.kind == "genre"] == [
        ("comedy", 40), ("drama", 20),
    ]  # fmt: skip


def test_column_with_the_name_of_one_of_our_kinds_stays_apart(case: Case) -> None:
    case.frame["slice class"] = np.where(np.arange(ROWS) < 20, "drama", "comedy")
    rows = {
        kind: [part.rows for part in case.slices(("class",)) if part.kind == kind] for kind in ("class", "column class")
    }
    assert rows == {"class": [30, 30], "column class": [40, 20]}


def test_predictions_about_other_rows_are_refused(case: Case) -> None:
    data, _ = case.read()
    other = case.predictions._replace(rows=case.predictions.rows + 1)
    with pytest.raises(ValueError, match="other test rows"):
        error_analysis.read_test_rows(data, other)


def test_every_column_of_the_tables_is_kept_from_texts(case: Case) -> None:
    from tasks.settings.fixed import RESERVED_COLUMNS

    data, test = case.read()
    frames = (
        error_analysis.flips(data, test, case.predictions),
        error_analysis.mistakes(data, test, case.predictions),
        error_analysis.likely_label_errors(data, test, case.predictions, {}, 0.95),
    )
    for frame in frames:
        assert set(frame.columns) - {"text"} <= RESERVED_COLUMNS
