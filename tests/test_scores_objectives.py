"""Scores, intervals and tests of several labels and of numbers: against scikit-learn and scipy, and by simulation."""

from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, softmax
from sklearn import metrics

from tasks.base.records import Interval
from tasks.scores.conformal import COVERAGE, conformal_quantile, expected_coverage, kept
from tasks.scores.objective import Objective, objective
from tasks.scores.objectives.multi_label import randomization_p_value
from tasks.scores.statistics import bootstrap, difference, difference_intervals, logit_interval, score_intervals

LABELS, NUMBERS = objective("multi_label"), objective("regression")


def labellers(rows: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Three labels of unequal frequency and two classifiers, the first better; what is hard is partly so for both."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((rows, 3)) < (0.5, 0.3, 0.15)).astype(int)
    shared, tables = generator.normal(size=(rows, 3)), []
    for skill in (1.8, 1.2):
        probability = expit(shared + 0.7 * generator.normal(size=(rows, 3)) + skill * (2 * labels - 1))
        tables.append(np.concatenate([probability, probability >= 0.5], axis=1))
    return labels, tables


def guessers(rows: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """One to five stars and two models of them, the first better."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(5, rows, p=(0.1, 0.2, 0.2, 0.3, 0.2)) + 1.0
    shared, tables = generator.normal(size=rows), []
    for error in (0.6, 0.9):
        tables.append((3 + 0.7 * (labels - 3) + error * (shared + generator.normal(size=rows)))[:, None])
    return labels, tables


TASKS = pytest.mark.parametrize(("task", "population"), [(LABELS, labellers), (NUMBERS, guessers)])


# --- scores


def test_scores_of_several_labels_are_those_of_scikit_learn() -> None:
    labels, (table, _) = labellers(300, seed=0)
    probability, given = table[:, :3], table[:, 3:].astype(int)
    found = LABELS.scores(table, labels)
    losses = [metrics.log_loss(labels[:, i], probability[:, i]) for i in range(3)]
    assert found == pytest.approx(
        {
            "micro_f1": metrics.f1_score(labels, given, average="micro"),
            "macro_f1": metrics.f1_score(labels, given, average="macro"),
            "exact_match": metrics.accuracy_score(labels, given),
            "hamming_loss": metrics.hamming_loss(labels, given),
            "average_precision": metrics.average_precision_score(labels, probability, average="macro"),
            "log_loss": np.mean(losses),
        }
    )


def test_average_precision_of_equal_probabilities_is_that_of_scikit_learn() -> None:
    labels, (table, _) = labellers(300, seed=1)
    table[:, :3] = table[:, :3].round(1)
    found = LABELS.scores(table, labels)["average_precision"]
    assert found == pytest.approx(metrics.average_precision_score(labels, table[:, :3], average="macro"))


def test_scores_of_numbers_are_those_of_scikit_learn_and_scipy() -> None:
    labels, (table, _) = guessers(300, seed=0)
    said = table[:, 0]
    grades = np.clip(np.rint(said), 1, 5).astype(int)
    assert NUMBERS.scores(table, labels) == pytest.approx(
        {
            "mae": metrics.mean_absolute_error(labels, said),
            "rmse": metrics.root_mean_squared_error(labels, said),
            "r2": metrics.r2_score(labels, said),
            "spearman": stats.spearmanr(labels, said).statistic,
            "quadratic_kappa": metrics.cohen_kappa_score(labels.astype(int), grades, weights="quadratic"),
        }
    )


def test_large_numbers_keep_their_digits() -> None:
    labels, (table, _) = guessers(300, seed=0)
    near, far = NUMBERS.scores(table, labels), NUMBERS.scores(table + 1e9, labels + 1e9)
    assert far == pytest.approx(near, rel=1e-5, abs=1e-5)


@TASKS
def test_resampled_scores_are_those_of_the_rows_drawn(task: Objective, population: Any) -> None:
    labels, (table, _) = population(200, seed=0)
    generator = np.random.default_rng(3)
    chosen = generator.integers(200, size=(20, 200))
    weights = np.stack([np.bincount(rows, minlength=200) for rows in chosen]).astype(float)
    found = task.weighted(table, labels)(weights)
    for values, rows in zip(found, chosen, strict=True):
        assert values == pytest.approx(list(task.scores(table[rows], labels[rows]).values()), abs=1e-9)


@TASKS
def test_wrong_answers_are_those_that_are_not_right(task: Objective, population: Any) -> None:
    labels, (table, other) = population(200, seed=0)
    errors = task.errors(table, labels)
    assert errors.shape == (200,) and (errors >= 0).all()
    if task is LABELS:
        assert np.array_equal(errors == 0, (task.decide(table) == labels).all(1))
    better, weight = task.flips(table, other, labels)
    fixed, broken, _ = task.compared(table, other, labels)
    assert ((better > 0).sum(), (better < 0).sum()) == (fixed, broken) and weight.shape == (200,)


# --- simulation


def noise_of(share: float, trials: int) -> float:
    """Three standard errors of a share counted in so many simulations."""
    return 3 * (share * (1 - share) / trials) ** 0.5


MANY = pytest.mark.parametrize("trials", [200, pytest.param(2000, marks=pytest.mark.endurance)])


@MANY
@TASKS
def test_intervals_of_every_task_cover_the_truth(task: Objective, population: Any, trials: int) -> None:
    """Test sets of 300 rows, drawn from 20,000 whose scores are the truth: 93 to 97 % of 95 % intervals cover it.

    The rarest label has 45 rows.
    """
    labels, tables = population(20_000, seed=1)
    truth = [task.scores(table, labels) for table in tables]
    generator, names = np.random.default_rng(3), [metric.name for metric in task.metrics]
    covered = np.zeros((2, len(names)))
    for trial in range(trials):
        rows = generator.integers(20_000, size=300)
        sample = [table[rows] for table in tables]
        drawn = bootstrap(task, labels[rows], sample, 400, seed=trial)
        gain = difference_scores(task, drawn)
        alone = score_intervals(task, drawn.observed[0], drawn.drawn[:, 0], 0.95)
        for i, name in enumerate(names):
            new, old = (scores[name] for scores in truth)
            covered[0, i] += gain[name].low <= new - old <= gain[name].high
            covered[1, i] += alone[name].low <= new <= alone[name].high
    shares = covered / trials
    slack = np.full(shares.shape, 0.02 if trials >= 2000 else noise_of(0.95, trials))
    assert (abs(shares - 0.95) <= slack).all(), dict(zip(names, shares.T.tolist(), strict=True))


def test_interval_in_log_odds_stays_among_shares_and_gives_way_where_there_are_none() -> None:
    drawn = np.random.default_rng(0).beta(97, 3, 1000)
    found = logit_interval(0.97, drawn, 0.95)
    assert found.low < 0.97 < found.high < 1 and 0.97 - found.low > found.high - 0.97
    certain = logit_interval(1.0, np.ones(100), 0.95)
    assert (certain.low, certain.high) == (1, 1)


def difference_scores(task: Objective, drawn: Any) -> Any:
    gaps = drawn.drawn[:, 0] - drawn.drawn[:, 1]
    return difference_intervals(task, drawn.observed[0] - drawn.observed[1], gaps, 0.95)


def swapped(task: Objective, population: Any, trials: int) -> list[Any]:
    """Verdicts and p-values on many test sets of a pair without a difference: who said what is drawn by lot."""
    labels, (one, other) = population(2000, seed=1)
    generator, found = np.random.default_rng(5), []
    for trial in range(trials):
        rows = generator.integers(2000, size=200)
        coin = generator.random((200, 1)) < 0.5
        pair = [np.where(coin, other[rows], one[rows]), np.where(coin, one[rows], other[rows])]
        drawn = bootstrap(task, labels[rows], pair, 100, trial)
        found.append(difference(task, labels[rows], pair, drawn, (0, 1), 0.95))
    return found


@MANY
@TASKS
def test_paired_test_rarely_tells_equals_apart(
    task: Objective, population: Any, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.scores.objectives.multi_label.SHUFFLES", 500)  # enough for p < 0.05, and quick
    found = swapped(task, population, trials)
    rejected = np.mean([one.p_value < 0.05 for one in found])
    assert 0 < rejected <= 0.05 + noise_of(0.05, trials)
    assert sum(one.verdict == "improved" for one in found) <= trials * (0.025 + noise_of(0.025, trials))


@TASKS
def test_clearly_better_is_told(task: Objective, population: Any) -> None:
    labels, tables = population(1000, seed=2)
    drawn = bootstrap(task, labels, tables, 300, 0)
    assert difference(task, labels, tables, drawn, (0, 1), 0.95).verdict == "improved"
    assert difference(task, labels, tables, drawn, (1, 0), 0.95).verdict == "worse"
    assert difference(task, labels, tables, drawn, (0, 0), 0.95).verdict == "no evidence"


def test_randomization_p_of_four_rows_is_that_of_all_their_exchanges() -> None:
    """16 ways to exchange the answers; of four rows that only one has right, two lead to as large a difference."""
    labels = np.ones((4, 1), int)
    assert randomization_p_value(labels, 1 - labels, labels) == pytest.approx(2 / 16, abs=0.01)
    assert randomization_p_value(labels, labels, labels) == 1


def test_signed_rank_test_is_that_of_scipy() -> None:
    labels, (new, old) = guessers(200, seed=3)
    off = [abs(table[:, 0] - labels) for table in (new, old)]
    assert NUMBERS.compared(new, old, labels)[2] == pytest.approx(stats.wilcoxon(off[1] - off[0]).pvalue)


def test_intervals_of_new_rows_hold_what_they_promise() -> None:
    """Half widths from 200 rows, each tried on 200 others: as often as promised, or a row's worth more."""
    generator, held = np.random.default_rng(0), []
    for _ in range(500):
        known, new = abs(generator.standard_t(4, size=(2, 200)))
        held.append((new <= conformal_quantile(known, COVERAGE)).mean())
    assert COVERAGE - 0.005 <= np.mean(held) <= COVERAGE + 1 / 201 + 0.005


def test_sets_of_classes_hold_what_they_promise() -> None:
    """Of three classes, fitted on 200 rows and tried on 200 others."""
    generator, task, shares = np.random.default_rng(0), objective("single_label"), []
    for _ in range(100):
        labels = generator.choice(3, 400, p=(0.6, 0.3, 0.1))
        logits = generator.normal(size=(400, 3)) + 1.2 * np.eye(3)[labels]
        fitted = task.fit(logits[:200], labels[:200], {})
        table = softmax(logits[200:] / fitted["temperature"], axis=1)
        shares.append(task.calibration(table, labels[200:], fitted, 0.95)["coverage"])
    assert COVERAGE - 0.005 <= np.mean(shares) <= COVERAGE + 1 / 201 + 0.005


@pytest.mark.parametrize(("validation", "test"), [(150, 700), (40, 100), (2000, 200)])
def test_coverage_of_a_promise_that_is_kept_is_as_expected(validation: int, test: int) -> None:
    generator, within = np.random.default_rng(0), []
    for _ in range(400):
        known, new = generator.exponential(size=validation), generator.exponential(size=test)
        width = conformal_quantile(known, COVERAGE)
        assert width is not None
        expected = expected_coverage({"validation_rows": validation}, test, 0.95)
        within.append(kept({"coverage": float((new <= width).mean()), **expected}))
    assert 0.93 <= np.mean(within) <= 0.99


def test_few_validation_rows_promise_no_sets() -> None:
    fitted = objective("single_label").fit(np.eye(2)[[0, 1] * 4], np.array([0, 1] * 4), {})
    assert fitted["surprise"] is None
    table, labels = np.eye(2), np.array([0, 1])
    assert "coverage" not in objective("single_label").calibration(table, labels, fitted, 0.95)
    assert objective("single_label").sets_by_label(table, labels, fitted, 0.95) == {}


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.0004, 0.00035, 0.00046, "0.000400 (0.000350-0.000460)"),
        (0.70149, 0.65, 0.7512, "0.701 (0.650-0.751)"),
        (12345.678, 11800.2, 12900.4, "12,346 (11,800-12,900)"),
        (9.99, 9.5, 10.44, "9.99 (9.50-10.44)"),
        (0.0, 0.0, 0.0, "0 (0-0)"),
    ],
)
def test_error_in_units_of_the_labels_shows_three_digits(value: float, low: float, high: float, expected: str) -> None:
    mae, r2 = NUMBERS.metrics[0], NUMBERS.metrics[2]
    assert mae.bounds(Interval(value=value, low=low, high=high)) == expected
    assert r2.shown(0.0004) == "0.000" and r2.shown(-1.23456) == "-1.235"
