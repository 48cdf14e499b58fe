"""Whether two groups of rows are draws from the same: tests, all of them counted together, and what they would find.

Each test is exact for any number of rows: a permutation test, or Fisher's. Of the two-sample tests in the literature
(a classifier's, Lopez-Paz and Oquab, ICLR 2017; MMD, Gretton et al., JMLR 13, 2012; the energy distance, Székely and
Rizzo, InterStat 5, 2004) the last uses every row, where a classifier learns from half of them, and has no kernel width
to choose.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    Energy = Callable[[np.ndarray], np.ndarray]
    """Statistics (draws,) of weights (draws, rows): 1/n for each row of one group, -1/m for each of the other."""


PERMUTATIONS = 999
"""The smallest p-value is then 0.001: small enough among eight tests at once, at a level of 5 %."""

POWER = 0.8

POOL_ROWS, NULL_DRAWS, DRIFT_DRAWS = 500, 2_000, 400
"""The power is found by drawing from so many of the known rows, so often without drift, and with each drift tried."""

Kind = Literal["classes", "numbers", "vectors", "sets"]
"""Class numbers (rows,); numbers (rows,), of which the order alone counts; features (rows, width), each as important as
any other; which labels a row is given, 0 or 1, (rows, labels)."""


class View(NamedTuple):
    """The same thing about two groups of rows."""

    kind: Kind
    recent: "np.ndarray"
    known: "np.ndarray"


def drift_p_value(view: View, seed: int, permutations: int = PERMUTATIONS) -> float:
    """Of the two-sided test that both groups are draws from the same."""
    if view.kind == "classes":
        return table_p_value(*counts(view), seed, permutations)
    rows = len(view.recent)
    return energy_p_value(energy_of(comparable(view)), rows, len(view.known), seed, permutations)


def counts(view: View) -> "tuple[np.ndarray, np.ndarray]":
    """Rows of each class in both groups, (classes,) each."""
    import numpy as np

    classes = int(max(view.recent.max(), view.known.max())) + 1
    return np.bincount(view.recent, minlength=classes), np.bincount(view.known, minlength=classes)


def table_p_value(recent: "np.ndarray", known: "np.ndarray", seed: int, permutations: int = PERMUTATIONS) -> float:
    """Whether two groups have the same shares of classes, from their counts, (classes,) each: Fisher's exact test of
    two classes, and of more the chi-squared test by permutation."""
    import numpy as np
    from scipy.stats import MonteCarloMethod, chi2_contingency, fisher_exact

    table = np.stack([recent, known])[:, recent + known > 0]
    if table.shape[1] < 2:
        return 1.0
    if table.shape[1] == 2:
        return float(fisher_exact(table).pvalue)
    method = MonteCarloMethod(n_resamples=permutations, rng=np.random.default_rng(seed))
    return float(chi2_contingency(table, correction=False, method=method).pvalue)


def comparable(view: View) -> "np.ndarray":
    """Rows of both groups, the recent ones first, (rows, width), in units in which distances mean something. They are
    found from all rows together, so that it makes no difference to them which group a row is in."""
    import numpy as np
    from scipy.stats import rankdata

    rows = np.concatenate([view.recent, view.known]).astype(float)
    if view.kind == "numbers":
        return (rankdata(rows) / len(rows))[:, None]
    return standardized(rows) if view.kind == "vectors" else rows


def standardized(rows: "np.ndarray") -> "np.ndarray":
    """Each column with mean 0 and standard deviation 1; one that is the same everywhere is 0."""
    deviation = rows.std(0)
    deviation[deviation == 0] = 1
    centred: np.ndarray = (rows - rows.mean(0)) / deviation
    return centred


def energy_of(rows: "np.ndarray") -> "Energy":
    """Squared energy distances of groups of `rows`, (rows, width): twice the mean distance between the groups, less the
    mean distances within them. Of numbers it is twice the integral of the squared difference of their distribution
    functions, for which their order is enough."""
    import numpy as np
    from scipy.spatial.distance import cdist

    if rows.shape[1] == 1:
        order = rows[:, 0].argsort(kind="stable")
        gaps = np.diff(rows[order, 0])
        return lambda weights: 2 * np.cumsum(weights[:, order], axis=1)[:, :-1] ** 2 @ gaps
    distances = cdist(rows, rows)
    # weights add up to 0: without its mean a distance says the same, and needs fewer digits; these are twice as fast
    narrow = (distances - distances.mean()).astype(np.float32)
    return lambda weights: -((weights.astype(np.float32) @ narrow) * weights).sum(1)


def energy_p_value(energy: "Energy", recent: int, known: int, seed: int, permutations: int) -> float:
    """Of so many recent rows, which come first, and known ones: the share of permutations, with what was observed as
    one of them, that are at least as far apart. Phipson and Smyth, Statistical Applications in Genetics 9 (2010)."""
    import numpy as np

    observed = np.concatenate([np.full(recent, 1 / recent), np.full(known, -1 / known)])
    drawn = np.random.default_rng(seed).permuted(np.tile(observed, (permutations, 1)), axis=1)
    found, *others = energy(np.concatenate([observed[None], drawn]))  # in one: another sum would round otherwise
    return float(1 + (np.asarray(others) >= found - 1e-9 * abs(found)).sum()) / (permutations + 1)


def inhomogeneity(view: View) -> float:
    """How far apart the groups are, 0 to 1: the squared energy distance as a share of twice the mean distance between
    them. Székely and Rizzo, Journal of Statistical Planning and Inference 143 (2013). Of different rows of a group, so
    that it is about 0 where there is no drift, whatever the number of rows."""
    from scipy.spatial.distance import cdist

    rows, recent = comparable(view), len(view.recent)
    within = [
        cdist(group, group).sum() / max(len(group) * (len(group) - 1), 1) for group in (rows[:recent], rows[recent:])
    ]
    between = float(cdist(rows[:recent], rows[recent:]).mean())
    return max(0.0, 1 - float(sum(within)) / (2 * between)) if between else 0.0


def strangeness(view: View) -> "np.ndarray":
    """How much nearer each recent row is to the other recent rows than to the known ones, (recent,): what a drift
    consists of comes first."""
    from scipy.spatial.distance import cdist

    rows, recent = comparable(view), len(view.recent)
    nearer: np.ndarray = cdist(rows[:recent], rows[recent:]).mean(1) - cdist(rows[:recent], rows[:recent]).mean(1)
    return nearer


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of tests that are done together, each so that all at or below a level are false in at most that share of
    cases, however the tests hang together. Holm, Scandinavian Journal of Statistics 6 (1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, test in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p_values[test]))
        adjusted[test] = highest
    return adjusted


# --- what would be found ---------------------------------------------------------------------------------------------


def smallest_drift(view: View, level: float, seed: int) -> float | None:
    """The smallest share of drifted recent rows that the test at this level finds in 80 % of cases; None where not even
    all would do. By simulation with the known rows, of which both groups are then draws.

    What drifted rows do: of classes, see `drifted_shares`; else, see `foreign`."""
    import numpy as np

    power = power_of_counts(view, level, seed) if view.kind == "classes" else power_of_energy(view, level, seed)
    low, high = 0.0, 1.0 if view.kind != "classes" else float(np.bincount(view.known).max() / len(view.known))
    if power(high) < POWER:
        return None
    while high - low > 0.004:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def drifted_shares(shares: "np.ndarray", moved: float) -> "np.ndarray":
    """Shares of classes, (classes,), once this share of the rows moved from the most frequent class to the others, in
    proportion to theirs."""
    import numpy as np

    top, others = shares.argmax(), 1 - shares.max()
    if others <= 0:  # to a class that was never seen
        return np.append(shares * (1 - moved), moved)
    drifted: np.ndarray = shares * (1 + moved / others)
    drifted[top] = shares[top] - moved
    return np.maximum(drifted, 0)


def power_of_counts(view: View, level: float, seed: int) -> Callable[[float], float]:
    import numpy as np

    shares = np.bincount(view.known) / len(view.known)

    def power(moved: float) -> float:
        generator = np.random.default_rng(seed)
        drifted = drifted_shares(shares, moved)
        base = np.append(shares, np.zeros(len(drifted) - len(shares)))
        recent = generator.multinomial(len(view.recent), drifted / drifted.sum(), DRIFT_DRAWS)
        known = generator.multinomial(len(view.known), base, DRIFT_DRAWS)
        find = fisher_p_values if len(drifted) == 2 else chi_squared_p_values
        return float((find(recent, known) <= level).mean())

    return power


def fisher_p_values(recent: "np.ndarray", known: "np.ndarray") -> "np.ndarray":
    """Of counts of two classes, (draws, 2) each, which have the same sums in all draws: as `fisher_exact`, which takes
    one table at a time, and a thousand times as long."""
    import numpy as np
    from scipy.special import gammaln

    rows, others = int(recent[0].sum()), int(known[0].sum())
    log_factorial = gammaln(np.arange(rows + others + 1) + 1)
    firsts, found = recent[:, 0] + known[:, 0], np.empty(len(recent))
    for first in np.unique(firsts):
        least = max(0, first - others)
        among = np.arange(least, min(rows, first) + 1)
        ways = sum(log_factorial[part] for part in (among, first - among, rows - among, others - first + among))
        chance = np.exp(ways.min() - ways)
        here = firsts == first
        given = chance[recent[here, 0] - least]
        found[here] = np.where(chance <= given[:, None] * (1 + 1e-7), chance, 0).sum(1) / chance.sum()
    return found


def chi_squared_p_values(recent: "np.ndarray", known: "np.ndarray") -> "np.ndarray":
    """Of counts, (draws, classes) each: by the approximation of Pearson's test, classes without a row left out."""
    import numpy as np
    from scipy.stats import chi2

    both = recent + known
    total, statistic = both.sum(1, keepdims=True), np.zeros(len(both))
    for group in (recent, known):
        expected = both * group.sum(1, keepdims=True) / total
        statistic += ((group - expected) ** 2 / np.where(expected > 0, expected, 1)).sum(1)
    found: np.ndarray = chi2.sf(statistic, np.maximum((both > 0).sum(1) - 1, 1))
    return found


def foreign(view: View, rows: "np.ndarray", generator: "np.random.Generator") -> "np.ndarray":
    """What `comparable` known rows, (rows, width), become by drifting: numbers higher than all, all labels but their
    own, features as far from where they were, all in one direction, as known rows are from their mean."""
    import numpy as np

    if view.kind == "sets":
        return 1 - rows
    if view.kind == "numbers":
        return np.full_like(rows, rows.max() + 1 / len(rows))
    direction = generator.normal(size=rows.shape[1])
    spread = np.sqrt(((rows - rows.mean(0)) ** 2).sum(1).mean())
    moved: np.ndarray = rows + spread * direction / np.linalg.norm(direction)
    return moved


def power_of_energy(view: View, level: float, seed: int) -> Callable[[float], float]:
    import numpy as np

    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(view.known))[:POOL_ROWS]
    nothing = view.known[:0]
    known = comparable(View(view.kind, nothing, view.known[chosen]))
    energy = energy_of(np.concatenate([known, foreign(view, known, generator)]))
    pool, recent, m = len(known), len(view.recent), len(view.known)
    even = np.full(pool, 1 / pool)

    def weights(draws: int, moved: float) -> "np.ndarray":
        generator = np.random.default_rng(seed)
        strange = generator.binomial(recent, moved, draws)
        groups = (generator.multinomial(recent - strange, even), generator.multinomial(strange, even))
        found: np.ndarray = np.concatenate(groups, axis=1) / recent
        found[:, :pool] -= generator.multinomial(m, even, draws) / m
        return found

    critical = np.quantile(energy(weights(NULL_DRAWS, 0.0)), 1 - level)
    return lambda moved: float((energy(weights(DRIFT_DRAWS, moved)) > critical).mean())
