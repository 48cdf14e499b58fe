"""Intervals, tests, power and calibration: against scipy and statsmodels, by hand, and by simulation."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import log_softmax, softmax
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from tasks.base.records import Difference, Interval
from tasks.scores.metrics import score
from tasks.scores.objective import objective
from tasks.scores.statistics import (
    DISAGREEMENT,
    Resampled,
    bootstrap,
    calibration_error,
    detectable_difference,
    detection_power,
    difference,
    fit_temperature,
    mcnemar_p_value,
    mean_interval,
    per_row,
    reliability,
    score_intervals,
    scores_from_sums,
    seed_noise,
    verdict,
    wilson_interval,
    without_temperature,
)

SINGLE = objective("single_label")
SCORES = tuple(metric.name for metric in SINGLE.metrics)


def single(resampled: Resampled, index: int) -> dict[str, Interval]:
    return score_intervals(SINGLE, resampled.observed[index], resampled.drawn[:, index], 0.95)


def population(rows: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels of three unequal classes and two classifiers: the first is better, and surer than it should be.

    What makes a row hard is partly the same for both, as it is for two models of the same texts.
    """
    generator = np.random.default_rng(seed)
    prior = np.array([0.5, 0.3, 0.2])
    labels = generator.choice(3, rows, p=prior)
    shared = generator.normal(size=(rows, 3)) + np.log(prior)
    tables = []
    for skill, sureness in ((1.8, 2.0), (1.2, 1.0)):
        logits = shared + generator.normal(size=(rows, 3)) * 0.7
        logits[np.arange(rows), labels] += skill
        tables.append(softmax(sureness * logits, axis=1))
    return labels, tables


def compared(
    labels: np.ndarray, tables: list[np.ndarray], samples: int, seed: int, confidence: float = 0.95
) -> Difference:
    """The first table minus the second."""
    return difference(SINGLE, labels, tables, bootstrap(SINGLE, labels, tables, samples, seed), (0, 1), confidence)


def noise_of(share: float, trials: int) -> float:
    """Three standard errors of a share counted in so many simulations."""
    return 3 * (share * (1 - share) / trials) ** 0.5


def macro_f1(labels: np.ndarray, said: np.ndarray) -> np.ndarray:
    """By its definition from precision and recall, over the last axis; for three classes."""
    values = []
    for i in range(3):
        right = ((said == i) & (labels == i)).sum(-1)
        precision, recall = right / np.maximum((said == i).sum(-1), 1), right / np.maximum((labels == i).sum(-1), 1)
        values.append(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    return np.mean(values, axis=0)


# intervals of a share and the exact test


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("rows", [1, 7, 60, 1066])
def test_wilson_interval_is_that_of_statsmodels(rows: int, confidence: float) -> None:
    for right in {0, 1, rows // 3, rows // 2, rows - 1, rows}:
        ours = wilson_interval(right, rows, confidence)
        theirs = proportion_confint(right, rows, alpha=1 - confidence, method="wilson")
        assert (ours.low, ours.high) == pytest.approx(theirs, abs=1e-12)
        assert 0 <= ours.low <= ours.value == right / rows <= ours.high <= 1


@pytest.mark.parametrize("rows", [30, 300, 1066])
def test_wilson_interval_covers_the_true_share(rows: int) -> None:
    """Exactly, as a mean over shares; then for one share by simulation."""
    counts = np.arange(rows + 1)
    intervals = [wilson_interval(int(count), rows, 0.95) for count in counts]
    low, high = np.array([(interval.low, interval.high) for interval in intervals]).T
    shares = np.linspace(0.01, 0.99, 197)
    covered = [stats.binom.pmf(counts, rows, share)[(low <= share) & (share <= high)].sum() for share in shares]
    assert 0.935 <= np.mean(covered) <= 0.965
    assert min(covered) > 0.83
    drawn = np.random.default_rng(0).binomial(rows, 0.82, 2000)
    simulated = np.mean((low[drawn] <= 0.82) & (high[drawn] >= 0.82))
    assert simulated == pytest.approx(np.interp(0.82, shares, covered), abs=0.015)


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (0, 6), (9, 3), (40, 41), (50, 50), (120, 30)])
def test_mcnemar_is_that_of_statsmodels(fixed: int, broken: int) -> None:
    expected = mcnemar([[50, fixed], [broken, 50]], exact=True).pvalue if fixed + broken else 1.0
    assert mcnemar_p_value(fixed, broken) == pytest.approx(min(expected, 1.0), abs=1e-12)


def test_p_value_is_never_0() -> None:
    assert 0 < mcnemar_p_value(3000, 0) < 1e-300


def test_mcnemar_does_not_care_which_is_called_baseline() -> None:
    assert mcnemar_p_value(31, 12) == pytest.approx(mcnemar_p_value(12, 31))


# the bootstrap


def test_observed_values_are_the_scores() -> None:
    """One label has probability 0, whose loss ends at the same floor."""
    labels, tables = population(400, seed=0)
    tables[1][0] = np.eye(3)[labels[0] - 1]
    resampled = bootstrap(SINGLE, labels, tables, 200, seed=0)
    found, expected = compared(labels, tables, 200, seed=0), [score(table, labels) for table in tables]
    for i, name in enumerate(SCORES):
        values = [scores[name] for scores in expected]
        assert resampled.observed[:, i] == pytest.approx(values, abs=1e-12)
        alone, interval = single(resampled, 1)[name], found.scores[name]
        assert alone.value == pytest.approx(values[1], abs=1e-12)
        assert interval.value == pytest.approx(values[0] - values[1], abs=1e-12)
        assert alone.low < alone.value < alone.high
        assert interval.low < interval.value < interval.high


def test_difference_counts_what_is_fixed_and_broken() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    new, old = (np.eye(2)[said] for said in ([0, 0, 0, 1, 1, 0], [0, 1, 1, 1, 0, 1]))
    found = compared(labels, [new, old], 200, seed=0)
    assert (found.fixed, found.broken, found.p_value) == (3, 1, mcnemar_p_value(3, 1))
    back = difference(SINGLE, labels, [new, old], bootstrap(SINGLE, labels, [new, old], 200, 0), (1, 0), 0.95)
    assert (back.fixed, back.broken, back.primary.value) == (1, 3, -found.primary.value)


def test_resampled_scores_are_those_of_the_resampled_rows() -> None:
    """Resamples written out row by row and given to `score`, against the sums; one lacks a class altogether."""
    labels, (table, _) = population(400, seed=0)
    generator = np.random.default_rng(3)
    for chosen in (generator.integers(400, size=400), generator.choice(np.flatnonzero(labels != 2), 400)):
        weights = np.bincount(chosen, minlength=400)
        ours = scores_from_sums(weights[None] @ per_row(table, labels), 400, 3)[0]
        expected = score(table[chosen], labels[chosen])
        assert ours == pytest.approx([expected[name] for name in SCORES], abs=1e-9)


def test_resample_that_misses_a_class_says_nothing_of_it() -> None:
    """Three rows of a class are missed by one resample in twenty; a perfect classifier stays perfect in these."""
    labels = np.repeat([0, 1, 2], (30, 30, 3))
    perfect = np.eye(3)[labels]
    resampled = bootstrap(SINGLE, labels, [perfect, perfect[:, [1, 0, 2]]], 500, seed=0)
    f1 = single(resampled, 0)["macro_f1"]
    assert (f1.low, f1.value, f1.high) == (1, 1, 1)
    assert set(np.round(resampled.drawn[:, 1, 1], 9)) == {0, round(1 / 3, 9)}  # right in the third class alone


def test_class_that_no_test_row_has_counts_in_resamples_as_in_the_score() -> None:
    labels = np.repeat([0, 1], 20)
    table = np.eye(3)[labels]
    f1 = single(bootstrap(SINGLE, labels, [table], 200, seed=0), 0)["macro_f1"]
    assert (f1.low, f1.value, f1.high) == pytest.approx((2 / 3, score(table, labels)["macro_f1"], 2 / 3))


def test_resamples_with_every_class_are_as_they_were() -> None:
    labels, (table, _) = population(400, seed=0)
    sums = np.random.default_rng(0).multinomial(400, np.full(400, 1 / 400), 50) @ per_row(table, labels)
    assert np.array_equal(scores_from_sums(sums, 400, 3), scores_from_sums(sums, 400, 3, np.ones(3, bool)))


def test_every_row_is_as_likely_as_any_other_in_a_resample() -> None:
    """Accuracy where a single row is right: its count in the resamples, which is binomial."""
    labels = np.zeros(50, int)
    for place in (0, 17, 49):
        table = np.eye(2)[np.ones(50, int)]
        table[place] = (1, 0)
        counts = bootstrap(SINGLE, labels, [table], 20_000, seed=place).drawn[:, 0, 0] * 50
        observed = np.bincount(np.rint(counts).astype(int), minlength=5)[:5] / 20_000
        assert observed == pytest.approx(stats.binom.pmf(np.arange(5), 50, 1 / 50), abs=0.012)


def test_intervals_are_those_of_scipys_paired_bootstrap() -> None:
    labels, tables = population(400, seed=0)
    ours = compared(labels, tables, 10_000, seed=0)
    loss = [-np.log(table[np.arange(400), labels]) for table in tables]
    new, old = (table.argmax(1) for table in tables)
    theirs = {
        "accuracy": ((labels, new, old), lambda y, a, b, axis: (a == y).mean(axis) - (b == y).mean(axis)),
        "macro_f1": ((labels, new, old), lambda y, a, b, axis: macro_f1(y, a) - macro_f1(y, b)),
        "log_loss": ((loss[0], loss[1]), lambda a, b, axis: a.mean(axis) - b.mean(axis)),
    }
    for name, (samples, statistic) in theirs.items():
        low, high = stats.bootstrap(
            samples,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=10_000,
            batch=500,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        interval = ours.scores[name]
        # between two sets of 10,000 resamples an end moves by some 1 % of the width
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.04 * (high - low))


def test_same_seed_gives_the_same_intervals_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, tables = population(401, seed=0)
    whole = bootstrap(SINGLE, labels, tables, 500, seed=7)
    assert np.array_equal(bootstrap(SINGLE, labels, tables, 500, seed=7).drawn, whole.drawn)
    assert not np.array_equal(bootstrap(SINGLE, labels, tables, 500, seed=8).drawn, whole.drawn)
    for cells in (1, 401 * 7, 10**7):
        monkeypatch.setattr("tasks.scores.statistics.CHUNK_CELLS", cells)
        assert bootstrap(SINGLE, labels, tables, 500, seed=7).drawn == pytest.approx(whole.drawn, abs=1e-12)


def test_more_confidence_gives_wider_intervals() -> None:
    labels, tables = population(400, seed=0)
    narrow, wide = (compared(labels, tables, 2000, 0, level) for level in (0.8, 0.99))
    for name in SCORES:
        one, other = narrow.scores[name], wide.scores[name]
        assert other.low < one.low < one.high < other.high


@pytest.mark.parametrize("trials", [200, pytest.param(2000, marks=pytest.mark.endurance)])
def test_bootstrap_intervals_cover_the_truth(trials: int) -> None:
    """Test sets of 300 rows, drawn from 20,000 whose scores are the truth: 95 % of intervals cover it."""
    labels, tables = population(20_000, seed=1)
    truth = [score(table, labels) for table in tables]
    generator = np.random.default_rng(3)
    covered = {kind: dict.fromkeys(SCORES, 0) for kind in ("difference", "single")}
    for trial in range(trials):
        rows = generator.integers(20_000, size=300)
        sample = [table[rows] for table in tables]
        resampled = bootstrap(SINGLE, labels[rows], sample, 1000, seed=trial)
        found, alone = difference(SINGLE, labels[rows], sample, resampled, (0, 1), 0.95), single(resampled, 0)
        for name in SCORES:
            new, old = (scores[name] for scores in truth)
            interval = found.scores[name]
            covered["difference"][name] += interval.low <= new - old <= interval.high
            covered["single"][name] += alone[name].low <= new <= alone[name].high
    for kind in covered.values():
        for name, count in kind.items():
            assert abs(count / trials - 0.95) <= noise_of(0.95, trials), (name, covered)


def test_interval_holds_its_own_value_whatever_the_rounding() -> None:
    """Plots take a negative reach for an error. A constant loss sums up differently in each resample."""
    for chance in np.linspace(0.05, 0.95, 19):
        table = np.tile([chance, 1 - chance], (401, 1))
        for name, interval in single(bootstrap(SINGLE, np.zeros(401, int), [table], 200, seed=0), 0).items():
            assert interval.low <= interval.value <= interval.high, (name, chance)
            assert interval.high - interval.low < 1e-12


# the verdict


def test_verdict_needs_interval_and_test_to_agree() -> None:
    better, worse, unclear = (Interval(value=v, low=v - 0.02, high=v + 0.02) for v in (0.1, -0.1, 0.01))
    assert verdict(better, 0.001, 0.95) == "improved"
    assert verdict(worse, 0.001, 0.95) == "worse"
    assert verdict(unclear, 0.001, 0.95) == "no evidence"
    assert verdict(better, 0.2, 0.95) == "no evidence"
    assert verdict(worse, 0.2, 0.95) == "no evidence"
    assert verdict(better, 0.03, 0.99) == "no evidence"


@pytest.mark.parametrize("trials", [200, pytest.param(1000, marks=pytest.mark.endurance)])
def test_classifiers_without_a_difference_are_rarely_called_different(trials: int) -> None:
    """Many test sets; who of two classifiers said what is drawn by lot for each row, so neither is better.

    The two-sided test is wrong in 5 % at most, half of them `improved`, each with three standard errors.
    """
    labels, (one, other) = population(2000, seed=1)
    generator = np.random.default_rng(5)
    said = []
    for trial in range(trials):
        rows = generator.integers(2000, size=400)
        swapped = generator.random((400, 1)) < 0.5
        pair = [np.where(swapped, other[rows], one[rows]), np.where(swapped, one[rows], other[rows])]
        said.append(compared(labels[rows], pair, 500, trial).verdict)
    assert said.count("improved") <= trials * (0.025 + noise_of(0.025, trials))
    assert 0 < trials - said.count("no evidence") <= trials * (0.05 + noise_of(0.05, trials))


def test_training_that_changed_nothing_is_never_called_improved() -> None:
    """Learning rate 0: the same predictions but for rounding, on 200 resampled test sets."""
    labels, (table, _) = population(2000, seed=1)
    generator = np.random.default_rng(6)
    for trial in range(200):
        rows = generator.integers(2000, size=400)
        same = table[rows]
        rounded = same * (1 + 1e-7 * generator.normal(size=same.shape))
        assert compared(labels[rows], [rounded, same], 200, trial).verdict == "no evidence"


def test_clearly_better_and_clearly_worse_are_told() -> None:
    """By 12 points, on 1,066 rows that show 4 in four of five cases."""
    labels, tables = population(20_000, seed=1)
    generator = np.random.default_rng(7)
    for trial in range(20):
        rows = generator.integers(20_000, size=1066)
        sample = [table[rows] for table in tables]
        assert compared(labels[rows], sample, 500, trial).verdict == "improved"
        assert compared(labels[rows], sample[::-1], 500, trial).verdict == "worse"


# power


@cache
def p_value(fixed: int, broken: int) -> float:
    return mcnemar_p_value(fixed, broken)


@pytest.mark.parametrize("rows", [25, 60, 300, 1066])
def test_detectable_difference_is_found_in_four_of_five_cases(rows: int) -> None:
    gain = detectable_difference(rows, 0.95)
    assert gain is not None
    disagreement = max(DISAGREEMENT, gain)
    shares = [(disagreement + gain) / 2, (disagreement - gain) / 2, 1 - disagreement]
    pairs = np.random.default_rng(rows).multinomial(rows, shares, 2000)
    found = np.mean([fixed > broken and p_value(int(fixed), int(broken)) < 0.05 for fixed, broken, _ in pairs])
    assert found == pytest.approx(0.8, abs=0.025)
    assert detection_power(rows, gain, 0.95) == pytest.approx(0.8, abs=0.01)


def test_without_a_gain_the_test_finds_one_in_at_most_half_of_five_percent() -> None:
    for rows in (10, 100, 1066):
        assert 0 <= detection_power(rows, 0.0, 0.95) <= 0.025


@pytest.mark.parametrize("rows", [300, 1066, 10_000])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_detectable_difference_is_near_that_of_the_normal_approximation(rows: int, confidence: float) -> None:
    """Connor, Biometrics 43 (1987): rows = (z_a √d + z_b √(d - g²))² / g² for disagreement d and gain g."""
    z_test, z_power = stats.norm.ppf([(1 + confidence) / 2, 0.8])

    def missing(gain: float) -> float:
        spread = z_test * DISAGREEMENT**0.5 + z_power * (DISAGREEMENT - gain**2) ** 0.5
        return float((spread / gain) ** 2 - rows)

    ours, theirs = detectable_difference(rows, confidence), optimize.brentq(missing, 1e-4, DISAGREEMENT)
    assert ours == pytest.approx(theirs, rel=0.15)
    assert ours is not None
    assert ours > theirs, "the exact test is the more careful one"


def test_more_rows_show_smaller_differences() -> None:
    found = [detectable_difference(rows, 0.95) for rows in (10, 30, 100, 300, 1000, 3000, 100_000)]
    assert all(few is not None and many is not None and many < few for few, many in pairwise(found))
    assert found[-1] is not None and found[-1] < 0.005


def test_too_few_rows_can_show_no_difference() -> None:
    """Of five rows even five fixed and none broken has p = 1/16."""
    assert mcnemar_p_value(5, 0) > 0.05 > mcnemar_p_value(6, 0)
    assert detectable_difference(5, 0.95) is None
    assert detectable_difference(6, 0.95) is not None


# calibration


def test_calibration_error_by_hand() -> None:
    """Three bins: 0.9 and 0.91 with one of two right, 0.7 right, 0.55 wrong."""
    table = np.array([[0.9, 0.1], [0.91, 0.09], [0.3, 0.7], [0.55, 0.45]])
    labels = np.array([0, 1, 1, 1])
    bins = reliability(table, labels)
    assert bins.confidence == pytest.approx([0.55, 0.7, 0.905])
    assert bins.accuracy.tolist() == [0, 1, 0.5]
    assert bins.rows.tolist() == [1, 1, 2]
    assert calibration_error(table, labels) == pytest.approx((0.55 + 0.3 + 2 * 0.405) / 4)


def test_certainty_falls_into_the_last_bin() -> None:
    assert calibration_error(np.eye(2)[[0, 1, 0]], np.array([0, 1, 0])) == 0
    assert calibration_error(np.eye(2)[[0, 1, 0]], np.array([1, 0, 1])) == 1
    table = np.array([[1.0, 0.0], [0.95, 0.05]])
    assert reliability(table, np.array([1, 0])).rows.tolist() == [2]
    assert calibration_error(table, np.array([1, 0])) == pytest.approx(0.975 - 0.5)


def test_calibration_error_is_zero_where_confidence_is_accuracy() -> None:
    tops = (0.5, 0.6, 0.75, 0.9, 1.0)
    table = np.concatenate([np.tile([top, 1 - top], (20, 1)) for top in tops])
    labels = np.concatenate([(np.arange(20) >= round(20 * top)).astype(int) for top in tops])
    assert calibration_error(table, labels) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_is_recovered(temperature: float) -> None:
    """20,000 labels drawn from softmax(logits / temperature)."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 3)) * 3
    chances = softmax(logits / temperature, axis=1).cumsum(1)
    labels = (generator.random((20_000, 1)) > chances).sum(1).clip(max=2)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)
    before, after = (softmax(logits / t, axis=1) for t in (1.0, fit_temperature(logits, labels)))
    assert calibration_error(after, labels) < 0.01
    if temperature != 1:
        assert calibration_error(before, labels) > 0.05


@pytest.mark.parametrize("gap", [0.01, 1.0, 50.0])
def test_validation_without_a_mistake_does_not_ask_for_certainty(gap: float) -> None:
    """100 of 100 right: about Platt's 101 of 102, however far apart the logits are, within a factor of 20."""
    labels = np.arange(100) % 2
    temperature = fit_temperature(gap * np.eye(2)[labels], labels)
    assert 1 / 20 <= temperature <= 20
    confidence = softmax(gap / temperature * np.eye(2)[labels], axis=1).max()
    if 1 / 20 < gap / np.log(101) < 20:
        assert confidence == pytest.approx(101 / 102, abs=0.005)
    assert confidence < 0.999


def test_temperature_is_sane_where_validation_says_the_opposite() -> None:
    labels = np.arange(100) % 2
    assert 1 <= fit_temperature(5 * np.eye(2)[1 - labels], labels) <= 20


def test_logits_that_say_nothing_keep_temperature_one() -> None:
    assert fit_temperature(np.zeros((50, 3)), np.arange(50) % 3) == 1.0


def test_few_rows_move_the_temperature_little() -> None:
    """Confidently wrong on a handful: the likelihood alone would ask for temperature 20, that is for silence."""
    labels = np.array([0, 1, 0, 1])
    assert 1 < fit_temperature(3 * np.eye(2)[1 - labels], labels) < 10
    many = np.tile(labels, 2000)
    assert fit_temperature(3 * np.eye(2)[1 - many], many) == pytest.approx(20, rel=1e-3)


def test_temperature_never_makes_the_validation_loss_worse() -> None:
    """The smoothed loss that it is fitted to, with its prior; down to a handful of rows."""
    generator = np.random.default_rng(0)
    for rows, classes, scale in ((2, 2, 1), (5, 3, 4), (40, 2, 0.1), (40, 6, 9), (400, 3, 2)):
        logits = (scale * generator.normal(size=(rows, classes))).astype(np.float32)
        labels = generator.integers(0, classes, rows)
        right, wrong = (rows + 1) / (rows + 2), 1 / (rows + 2) / (classes - 1)
        target = np.where(np.eye(classes)[labels] == 1, right, wrong)

        def loss(temperature: float, logits: np.ndarray = logits, target: np.ndarray = target) -> float:
            likelihood = (target * log_softmax(logits.astype(float) / temperature, axis=1)).sum()
            return float(np.log(temperature) ** 2 / 2 - likelihood) / len(logits)

        found = fit_temperature(logits, labels)
        assert loss(found) <= loss(1.0) + 1e-12
        assert loss(found) <= min(loss(t) for t in np.geomspace(1 / 20, 20, 200)) + 1e-6


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.7])
def test_temperature_can_be_taken_out_again(temperature: float, kind: type) -> None:
    logits = np.random.default_rng(0).normal(size=(500, 4)) * 4
    served = softmax(logits / temperature, axis=1).astype(kind)
    raw = softmax(logits, axis=1)
    assert np.abs(without_temperature(served, temperature) - raw).max() < 1e-6
    assert (served.argmax(1) == raw.argmax(1)).all()


def test_probability_of_zero_stays_zero_without_temperature() -> None:
    table = without_temperature(np.array([[1, 0], [0.5, 0.5]], np.float32), 2.0)
    assert table == pytest.approx(np.array([[1, 0], [0.5, 0.5]]))


# seeds


@pytest.mark.parametrize("values", [(0.81, 0.84), (0.81, 0.84, 0.80), (0.7, 0.72, 0.71, 0.74, 0.69)])
def test_mean_interval_is_that_of_scipys_t_test(values: tuple[float, ...]) -> None:
    ours = mean_interval(values, 0.9)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (ours.value, ours.low, ours.high) == pytest.approx((np.mean(values), low, high))


def test_mean_interval_ends_where_the_mean_cannot_be() -> None:
    interval = mean_interval((0.50, 0.583), 0.95, 0, 1)
    assert (interval.low, interval.high) == (pytest.approx(0.014, abs=0.001), 1)
    assert mean_interval((-0.9, 0.9), 0.95, -1, 1).model_dump() == {"value": 0, "low": -1, "high": 1}


@pytest.mark.parametrize(("seeds", "confidence"), [(2, 0.95), (3, 0.95), (5, 0.8)])
def test_two_further_runs_differ_by_less_than_the_seed_noise(seeds: int, confidence: float) -> None:
    """20,000 times: the noise from so many normal accuracies, then two more accuracies."""
    generator = np.random.default_rng(0)
    known, further = generator.normal(0.8, 0.01, (20_000, seeds)), generator.normal(0.8, 0.01, (20_000, 2))
    noise = [seed_noise(values, confidence) for values in known.tolist()]
    assert np.mean(np.abs(further[:, 0] - further[:, 1]) < noise) == pytest.approx(confidence, abs=0.01)
