"""What more training rows would bring, from the errors that fewer have left. Pure functions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tasks.base.records import Interval

if TYPE_CHECKING:
    import numpy as np

STEEPEST = 1.5
"""Of the exponents that are tried. Hestness et al. measured 0.07 to 0.35, theory ends at 1; one of 1 needs room on both
sides for its interval to hold it."""

EXPONENTS, FALLS = 76, 2001
"""How many of each are tried."""

MISFIT_P = 0.01
"""Below this the errors are no power law."""


class Fall(NamedTuple):
    """By how much twice the rows let the mean error fall."""

    fall: Interval | None
    """None where the runs do not say how much they vary."""
    unknown: str
    """Why it cannot be told; empty where it can."""


class Fit(NamedTuple):
    """The mean errors, as a power law has them."""

    squares: "np.ndarray"
    """(falls,) weighted sums of squared deviations from the best power law with each of `falls`."""
    falls: "np.ndarray"
    variance: float
    """Of single runs, in the same weights; known from `freedom` runs more than there are means."""
    freedom: int


def fall_of_doubling(rows: Sequence[int], errors: Sequence[Sequence[float]], confidence: float) -> Fall:
    """By how much the error falls from the last of `rows`, each the double of the one before, to twice as many.

    The law is error(n) = a n^-b + c: Hestness et al., arXiv 1712.00409 (2017); Rosenfeld et al., ICLR 2020. Four
    numbers of rows cannot tell a, b and c apart, but what they agree on at twice the rows: the interval holds each fall
    for which some law deviates from the mean errors by no more than the best law and Student's t allow (a profile
    likelihood; the noise is what runs with equally many rows differ by, in shares of their error).

    c is free, also below 0, where an error still falls as a logarithm does: with c = 0 a curve that levels off is taken
    for one that falls on, and with c >= 0 the intervals of curves that do fall on held 79 to 92 % of the truths
    instead of 95; as it is they hold 91 to 97 % (tests/test_scores_extrapolation.py).
    """
    import numpy as np
    from scipy import stats

    if not all(any(error > 0 for error in same) for same in errors):
        return Fall(None, "there is no error left on these test rows")
    fit = fit_laws(rows, errors)
    if fit.variance < 1e-12:  # rounding
        return Fall(None, "runs that differ only by seed score the same on these test rows, so that noise is unknown")
    best = int(fit.squares.argmin())
    allowed = fit.squares[best] + stats.t.ppf((1 + confidence) / 2, fit.freedom) ** 2 * fit.variance
    held = np.flatnonzero(fit.squares <= allowed)
    ends = fit.falls[
        [max(held[0] - 1, 0), min(held[-1] + 1, FALLS - 1)]
    ]  # the next ones that were tried and do not fit
    fall = Interval(value=float(fit.falls[best]), low=float(ends[0]), high=float(ends[1]))
    spare = max(1, len(rows) - 2)
    if stats.f.sf(fit.squares[best] / spare / fit.variance, spare, fit.freedom) < MISFIT_P:
        return Fall(fall, "the scores do not follow a power law of the number of rows")
    return Fall(fall, "" if fall.low > 0 else "the scores do not improve with more rows by more than the runs vary")


def fit_laws(rows: Sequence[int], errors: Sequence[Sequence[float]]) -> Fit:
    """Every fall and exponent of a grid, with the level that fits best: for these the law is a straight line."""
    import numpy as np

    runs, means = np.array([len(same) for same in errors]), np.array([np.mean(same) for same in errors])
    freedom = int(runs.sum() - len(runs))
    deviations = [((np.array(same) - mean) / mean) ** 2 for same, mean in zip(errors, means, strict=True)]
    weights = runs / means**2
    exponents = np.linspace(0, STEEPEST, EXPONENTS)[:, None]
    times = rows[-1] / np.array(rows, float)
    with np.errstate(invalid="ignore"):  # how many falls the error lies above that of all rows
        above = np.where(exponents > 0, (times**exponents - 1) / (1 - 2.0**-exponents), np.log2(times))
    falls = np.linspace(0, means[-1], FALLS)
    # deviations from their weighted means: the level is then the best one
    x = above - (above @ weights / weights.sum())[:, None]
    y = means - means @ weights / weights.sum()
    squares = (y**2) @ weights - 2 * np.outer(x @ (weights * y), falls) + np.outer((x**2) @ weights, falls**2)
    return Fit(squares.min(0), falls, float(np.sum(deviations)) / freedom, freedom)
