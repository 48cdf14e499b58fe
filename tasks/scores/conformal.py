"""Split conformal prediction: from rows that were not trained on, what holds for new ones as often as wanted.

Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World (2005).
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tasks.base.records import Interval
from tasks.base.words import shown_share
from tasks.scores.statistics import wilson_interval

if TYPE_CHECKING:
    import numpy as np


COVERAGE = 0.9
"""Of the prediction sets and intervals whose coverage on test is reported."""

PROMISE = f"{100 * COVERAGE:g} %"


def conformal_quantile(scores: "np.ndarray", coverage: float) -> float | None:
    """What the score of a new row stays at or below as often as `coverage`, from those of other rows, (rows,); None
    where these are too few."""
    import numpy as np

    place = place_of(coverage, len(scores))
    return float(np.sort(scores)[place - 1]) if place <= len(scores) else None


def place_of(coverage: float, rows: int) -> int:
    """Of the quantile among the scores of so many rows, in order, counted from 1."""
    return math.ceil((rows + 1) * coverage - 1e-9)


def surprise_of(table: "np.ndarray", labels: "np.ndarray", coverage: float) -> float | None:
    """The most that one minus the probability of a class may be for the class to be in a row's prediction set, which
    holds the true one as often as `coverage`; from probabilities (rows, classes) of rows with known labels, (rows,).

    Sadinle, Lei and Wasserman, Journal of the American Statistical Association 114 (2019).
    """
    import numpy as np

    return conformal_quantile(1 - table[np.arange(len(labels)), labels].astype(float), coverage)


def prediction_sets(table: "np.ndarray", surprise: float) -> "np.ndarray":
    """Which classes may be the true one, a mask (rows, classes); the most probable one always may."""
    import numpy as np

    inside: np.ndarray = 1 - table.astype(float) <= surprise + 1e-6  # as exact as the probabilities that people see
    inside[np.arange(len(table)), table.argmax(1)] = True
    return inside


def coverage_of(held: "np.ndarray", confidence: float) -> dict[str, float]:
    """How many rows have their truth in what was predicted, (rows,) each, with the interval of that share."""
    share = wilson_interval(int(held.sum()), len(held), confidence)
    return {"coverage": share.value, "coverage_low": share.low, "coverage_high": share.high}


def expected_coverage(fitted: Mapping[str, Any], rows: int, confidence: float) -> dict[str, float]:
    """Between which shares of so many test rows a promise that is kept lies, by how many validation rows it was made
    from: few of them may have been easier or harder than others by chance.

    Vovk, Conditional validity of inductive conformal predictors, ACML 2012: the coverage of what was found on n rows is
    drawn from a beta distribution.
    """
    from scipy.stats import betabinom

    place = place_of(COVERAGE, fitted["validation_rows"])
    count = betabinom(rows, place, fitted["validation_rows"] + 1 - place)
    low, high = (float(count.ppf(end)) / rows for end in ((1 - confidence) / 2, (1 + confidence) / 2))
    return {"coverage_expected_low": low, "coverage_expected_high": high}


def kept(found: Mapping[str, float]) -> bool:
    """Whether the coverage is what was to be expected."""
    return found["coverage_expected_low"] <= found["coverage"] <= found["coverage_expected_high"]


def expected_words(found: Mapping[str, float]) -> str:
    if "coverage_expected_low" not in found:
        return ""
    return f"{shown_share(found['coverage_expected_low'])} to {shown_share(found['coverage_expected_high'])}"


def coverage(found: Mapping[str, float]) -> Interval:
    """From what `coverage_of` gives."""
    return Interval(value=found["coverage"], low=found["coverage_low"], high=found["coverage_high"])
