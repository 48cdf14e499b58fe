import numpy as np
import pytest
from scipy.stats import norm

from tasks.scores.objective import objective
from tasks.scores.selection import pick

SINGLE = objective("single_label")


def equal_trials(generator: np.random.Generator, trials: int, rows: int, right: float) -> list[np.ndarray]:
    """Tables of classifiers that are right about the same share of all texts; hard texts are hard for each."""
    hard = 0.8 * generator.standard_normal(rows) + 0.6 * generator.standard_normal((trials, rows))
    correct = (hard < norm.ppf(right)).astype(float)
    return [np.stack([one, 1 - one], axis=1) for one in correct]


@pytest.mark.parametrize("sweeps", [40, pytest.param(1000, marks=pytest.mark.endurance)])
def test_corrected_score_of_trials_that_are_equal_in_truth_is_that_truth(sweeps: int) -> None:
    generator, labels = np.random.default_rng(0), np.zeros(200, int)
    found = [
        pick(SINGLE, SINGLE.metrics[0], labels, equal_trials(generator, 20, 200, 0.8), 200, seed, 0.95)
        for seed in range(sweeps)
    ]
    naive = np.mean([one.naive for one in found]) - 0.8
    corrected = np.mean([one.corrected.value for one in found]) - 0.8
    inside = np.mean([one.corrected.low <= 0.8 <= one.corrected.high for one in found])
    assert naive > 0.03 and abs(corrected) < 0.035 / np.sqrt(sweeps) * 2 and inside >= 0.95


def test_trial_that_is_really_better_is_picked_and_costs_nothing() -> None:
    generator, labels = np.random.default_rng(0), np.zeros(400, int)
    tables = equal_trials(generator, 5, 400, 0.7)
    tables[3] = np.tile([1.0, 0.0], (400, 1))
    found = pick(SINGLE, SINGLE.metrics[0], labels, tables, 300, 0, 0.95)
    assert (found.best, found.naive, found.corrected.value) == (3, 1.0, pytest.approx(1.0))


def test_where_less_is_better_the_least_is_picked_and_corrected_upwards() -> None:
    generator, task = np.random.default_rng(0), objective("regression")
    labels = generator.normal(size=300)
    off = [(labels + generator.normal(size=300))[:, None] for _ in range(10)]
    errors = [abs(table[:, 0] - labels).mean() for table in off]
    found = pick(task, task.metrics[0], labels, off, 300, 0, 0.95)
    assert found.best == np.argmin(errors) and found.naive == pytest.approx(min(errors))
    assert found.corrected.value > found.naive


def test_single_trial_was_not_picked_and_keeps_its_score() -> None:
    generator, labels = np.random.default_rng(0), np.zeros(300, int)
    found = pick(SINGLE, SINGLE.metrics[0], labels, equal_trials(generator, 1, 300, 0.8), 500, 0, 0.95)
    assert found.corrected.value == pytest.approx(found.naive, abs=0.005)
