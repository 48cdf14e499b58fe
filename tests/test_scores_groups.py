"""Means over seeds and their differences: by hand, against scipy and statsmodels, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from tasks.base.records import Interval
from tasks.scores.groups import (
    Contrast,
    Group,
    Measured,
    Prior,
    contrasts,
    drawn_together,
    estimate,
    holm,
    inverse_trigamma,
    means,
    measured,
    on_front,
    prior_of,
    weights,
)
from tasks.scores.objective import objective
from tasks.scores.statistics import bootstrap, mean_interval

SINGLE = objective("single_label")
NOTHING = Prior(0.0, 0.0, 0.0)


def trainings(
    generator: np.random.Generator, groups: int, seeds: int, rows: int, tau: float, lead: float = 0.0
) -> list[np.ndarray]:
    """Tables of classifiers that are right about 80 % of all texts on average over seeds; the first group's about more
    where it has a `lead`. Hard texts are hard for each, some for one group only; a seed is better or worse by `tau`."""
    hard = 0.6 * generator.standard_normal(rows)
    tables = []
    for group in range(groups):
        own = hard + 0.3 * generator.standard_normal(rows)
        for _ in range(seeds):
            skill = stats.norm.ppf(0.8 + lead * (group == 0)) * np.sqrt(1 + tau**2) + tau * generator.standard_normal()
            right = (own + np.sqrt(0.55) * generator.standard_normal(rows) < skill).astype(float)
            tables.append(np.stack([right, 1 - right], axis=1))
    return tables


def study(
    generator: np.random.Generator, groups: int, seeds: int, rows: int, tau: float, lead: float = 0.0
) -> tuple[list[Interval], list[Contrast]]:
    tables, labels = trainings(generator, groups, seeds, rows, tau, lead), np.zeros(rows, int)
    drawn = bootstrap(SINGLE, labels, tables, 200, 0)
    found = measured(list(drawn.observed[:, 0]), drawn.drawn[:, :, 0], rows)
    members = [Group(tuple(range(seeds * i, seeds * i + seeds)), tuple(range(seeds))) for i in range(groups)]
    return means(found, members, 0.95), contrasts(found, members, 0.95)


@pytest.mark.parametrize("studies", [40, pytest.param(1000, marks=pytest.mark.endurance)])
@pytest.mark.parametrize(("seeds", "tau"), [(3, 0.05), (3, 0.15), (1, 0.0)])
def test_of_equal_groups_none_is_called_better_and_intervals_hold_the_truth(
    seeds: int, tau: float, studies: int
) -> None:
    generator = np.random.default_rng(1)
    found = [study(generator, 6, seeds, 300, tau) for _ in range(studies)]
    covered = np.mean([one.low <= 0.8 <= one.high for intervals, _ in found for one in intervals])
    wrong = np.mean([min(pair.p_value for pair in pairs) < 0.05 for _, pairs in found])
    assert covered >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / studies)
    assert wrong <= 0.05 + (studies == 40) * 0.03


def test_group_that_is_really_better_is_found_with_its_sign() -> None:
    _, pairs = study(np.random.default_rng(0), 4, 3, 600, 0.05, lead=0.12)
    better = [(pair.first, pair.second) for pair in pairs if pair.p_value < 0.05 and pair.difference.low > 0]
    assert better == [(0, 1), (0, 2), (0, 3)]


def test_where_rows_make_no_difference_the_interval_is_students() -> None:
    found = Measured(np.array([0.7, 0.74, 0.81]), np.zeros((3, 3)), 100)
    (interval,) = means(found, [Group((0, 1, 2), (0, 1, 2))], 0.95)
    assert interval.model_dump() == pytest.approx(mean_interval([0.7, 0.74, 0.81], 0.95).model_dump())


def test_interval_of_one_seed_is_about_rows_alone() -> None:
    generator, rows = np.random.default_rng(0), 200
    right = (generator.random(rows) < 0.8).astype(float)
    drawn = bootstrap(SINGLE, np.zeros(rows, int), [np.stack([right, 1 - right], axis=1)], 4000, 0)
    found = measured([right.mean()], drawn.drawn[:, :, 0], rows)
    (interval,) = means(found, [Group((0,), (0,))], 0.95)
    half = stats.t.ppf(0.975, rows - 1) * right.std(ddof=1) / np.sqrt(rows)
    assert interval.high - interval.value == pytest.approx(half, rel=0.03)


def test_what_a_seed_does_on_a_row_by_chance_is_counted_once() -> None:
    """Scores are seed + row + both together; the variance of their mean is known."""
    generator, seeds, rows, told = np.random.default_rng(0), 4, 50, []
    for _ in range(400):
        cells = (
            0.05 * generator.standard_normal((seeds, 1))
            + 0.2 * generator.standard_normal((1, rows))
            + 0.8 * generator.standard_normal((seeds, rows))
        )
        found = Measured(cells.mean(1), np.cov(cells) / rows, rows)
        told.append(estimate(found, [np.eye(seeds)], NOTHING._replace(most=seeds - 1)).variance)
    truth = 0.05**2 / seeds + 0.2**2 / rows + 0.8**2 / seeds / rows
    assert truth <= np.mean(told) < 1.25 * truth  # the part of the seeds is never less than 0, so a little too much


def test_what_a_seed_does_to_both_cancels_out_where_both_have_it() -> None:
    generator = np.random.default_rng(0)
    common = 0.05 * generator.standard_normal(5)
    values = np.concatenate([0.8 + common, 0.78 + common + 1e-3 * generator.standard_normal(5)])
    found = Measured(values, 1e-8 * np.eye(10), 400)
    seeds = (0, 1, 2, 3, 4)
    (same,) = contrasts(found, [Group(seeds, seeds), Group((9, 8, 7, 6, 5), seeds[::-1])], 0.95)
    (other,) = contrasts(found, [Group(seeds, seeds), Group((5, 6, 7, 8, 9), (5, 6, 7, 8, 9))], 0.95)
    assert same.p_value < 0.001 and other.p_value > 0.2
    assert same.difference.value == pytest.approx(other.difference.value)


def test_two_groups_of_other_seeds_are_compared_as_welch_does() -> None:
    first, second = [0.70, 0.74, 0.81, 0.72], [0.80, 0.81, 0.83]
    found = Measured(np.array(first + second), np.zeros((7, 7)), 100)
    groups = [Group((0, 1, 2, 3), (0, 1, 2, 3)), Group((4, 5, 6), (4, 5, 6))]
    parts = [weights(found, groups[0]), -weights(found, groups[1])]
    told = estimate(found, parts, NOTHING._replace(most=5))
    welch = stats.ttest_ind(first, second, equal_var=False)
    assert (told.value / told.variance**0.5, told.freedom) == pytest.approx((welch.statistic, welch.df))


def test_equal_models_differ_by_nothing() -> None:
    found = Measured(np.array([0.8, 0.8]), np.full((2, 2), 1e-4), 100)
    (pair,) = contrasts(found, [Group((0,), (0,)), Group((1,), (0,))], 0.95)
    assert (pair.p_value, pair.difference.value, pair.difference.low, pair.difference.high) == (1.0, 0, 0, 0)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_variances_are_drawn_together_as_far_as_groups_are_alike(spread: float) -> None:
    generator = np.random.default_rng(0)
    freedom, true_prior = 2, 6.0
    truth = 0.01 * (true_prior / generator.chisquare(true_prior, 3000) if spread else np.ones(3000))
    variances = truth * generator.chisquare(freedom, 3000) / freedom
    prior = prior_of([(value, freedom) for value in variances])
    assert prior.variance == pytest.approx(0.01, rel=0.1)
    assert 4 < prior.freedom < 10 if spread else prior.freedom > 25
    assert prior.most == pytest.approx(6000 * 6 / np.pi**2)  # 2 / (freedom * trigamma(freedom / 2))


def test_groups_with_one_seed_know_what_the_others_say_and_no_more() -> None:
    alike = Prior(0.01, math.inf, 20.0)
    assert drawn_together(0.0, 0, alike) == (0.01, 20.0)
    assert drawn_together(0.04, 2, Prior(0.01, 4.0, 20.0)) == (pytest.approx(0.02), 6.0)
    assert drawn_together(0.04, 2, Prior(0.0, 0.0, 2.0)) == (0.04, 2.0)
    assert drawn_together(0.0, 0, Prior(0.0, 0.0, 0.0))[1] == 0


@pytest.mark.parametrize("variances", [[], [(0.0, 2)], [(0.0, 2), (0.0, 2)], [(0.1, 2)], [(0.0, 0), (0.0, 0)]])
def test_nothing_is_known_from_fewer_than_two_variances(variances: list[tuple[float, float]]) -> None:
    assert prior_of(variances).freedom == 0


@pytest.mark.parametrize("value", [1e-3, 0.5, 20.0])
def test_inverse_of_trigamma(value: float) -> None:
    from scipy.special import polygamma

    assert polygamma(1, inverse_trigamma(value)) == pytest.approx(value)


def test_holm_is_that_of_statsmodels() -> None:
    values = [0.04, 0.001, 0.3, 0.0101, 0.0102, 1.0, 0.001]
    assert holm(values, 7) == pytest.approx(list(multipletests(values, method="holm")[1]))
    assert holm(values, 20) == pytest.approx(list(multipletests([*values, *[1.0] * 13], method="holm")[1])[:7])
    assert holm([], 0) == []


def test_front_has_what_nothing_beats_for_as_little() -> None:
    goodness, costs = [0.9, 0.8, 0.8, 0.7, 0.9, 0.6], [10, 5, 5, 1, 12, 1]
    assert on_front(goodness, costs) == [True, True, True, True, False, False]
    assert on_front([], []) == []
    generator = np.random.default_rng(0)
    pairs = [(int(good), int(cost)) for good, cost in generator.integers(0, 8, (60, 2))]
    beaten = [any(g >= good and c <= cost and (g, c) != (good, cost) for g, c in pairs) for good, cost in pairs]
    assert on_front(*zip(*pairs, strict=True)) == [not one for one in beaten]
