"""Thresholds and sets of `predict`: against plain counting, on the validation rows that lie in the adapter's folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.inference.choice import Choice, apply, choice_of
from tasks.models import serving
from tasks.scores.conformal import conformal_quantile, prediction_sets, surprise_of
from tasks.scores.thresholds import best_threshold, threshold_for, thresholds
from tasks.settings.config import PredictionConfig
from tasks.settings.fields import InputError
from tests.conftest import Trained


def made_up(rows: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.random(rows) < 0.2
    return np.clip(generator.normal(0.3 + 0.3 * truth, 0.2), 0, 1), truth


def test_every_threshold_has_the_precision_and_recall_that_counting_gives() -> None:
    probability, truth = made_up()
    for one in thresholds(probability, truth):
        given = probability >= one.value
        assert one.precision == pytest.approx(truth[given].mean())
        assert one.recall == pytest.approx(given[truth].mean())


@pytest.mark.parametrize("precision", [True, False])
def test_threshold_has_what_is_wanted_and_the_most_of_the_other(precision: bool) -> None:
    probability, truth = made_up()
    found = threshold_for(probability, truth, 0.7, precision)
    assert found
    wanted, other = (found.precision, found.recall) if precision else (found.recall, found.precision)
    assert wanted >= 0.7
    for one in thresholds(probability, truth):
        mine, its = (one.precision, one.recall) if precision else (one.recall, one.precision)
        assert mine < 0.7 or its <= other
    assert threshold_for(np.full(10, 0.5), np.arange(10) < 2, 0.7, precision=True) is None


def test_best_threshold_has_the_best_f1_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    probability, truth = made_up()
    best = max(f1_score(truth, probability >= value) for value in np.linspace(0, 1, 1001))
    assert f1_score(truth, probability >= best_threshold(probability, truth)) >= best - 1e-12
    assert best_threshold(probability, np.zeros(400, bool)) == 0.5


def test_prediction_sets_hold_the_true_class_as_often_as_they_say() -> None:
    generator, held = np.random.default_rng(1), []
    for _ in range(200):
        table = generator.dirichlet((1, 1, 1, 1), 500)
        labels = np.array([generator.choice(4, p=row) for row in table])
        surprise = surprise_of(table[:250], labels[:250], 0.9)
        assert surprise is not None
        held.append(prediction_sets(table[250:], surprise)[np.arange(250), labels[250:]].mean())
    assert np.mean(held) == pytest.approx(0.9, abs=0.01)
    assert conformal_quantile(np.arange(8), 0.9) is None and conformal_quantile(np.arange(9), 0.9) == 8


def test_a_class_with_a_threshold_is_given_from_it_on_and_the_others_among_themselves() -> None:
    table = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]])
    chosen = apply(Choice(thresholds={"b": 0.4}), ["a", "b", "c"], table)
    assert chosen == {"label": ["a", "b", "c"], "probability": [0.5, 0.5, 0.6]}
    chosen = apply(Choice(thresholds={"b": 0.6}), ["a", "b", "c"], table)
    assert chosen["label"] == ["a", "c", "c"]
    assert apply(Choice(surprise=0.6), ["a", "b", "c"], table)["set"] == [["a"], ["b"], ["c"]]
    assert apply(Choice(surprise=0.7), ["a", "b", "c"], table)["set"] == [["a", "b"], ["b", "c"], ["b", "c"]]


def config(**fields: Any) -> PredictionConfig:
    return PredictionConfig(model="m", input="a.csv", output="b.csv", **fields)


def test_threshold_is_chosen_on_the_adapters_validation_rows(trained: Trained) -> None:
    folder = Path(trained.adapter.folder)
    settings = serving.read_settings(folder)
    choice = choice_of(config(threshold="good=recall 0.5", coverage=0.5), folder, settings)
    (told,) = choice.told
    assert "good is given from a probability of" in told and 0 < choice.thresholds["good"] < 1
    assert choice.surprise is not None and 0 < choice.surprise < 1
    assert choice_of(config(threshold="good=0.8"), folder, settings).thresholds == {"good": 0.8}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"threshold": "god=0.8"}, "has no label 'god'; did you mean good"),
        ({"coverage": 0.999}, "validation rows are too few"),
    ],
)
def test_what_the_adapter_cannot_give_is_refused(fields: dict[str, Any], says: str, trained: Trained) -> None:
    folder = Path(trained.adapter.folder)
    with pytest.raises(InputError, match=says):
        choice_of(config(**fields), folder, serving.read_settings(folder))


@pytest.mark.parametrize("asked", ["spam", "spam=", "=0.5", "spam=2", "spam=f1 0.5", "spam=precision"])
def test_threshold_that_nobody_understands_is_refused(asked: str) -> None:
    with pytest.raises(ValueError, match="must be like spam"):
        config(threshold=asked)
