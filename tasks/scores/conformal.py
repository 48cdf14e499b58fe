"""Split conformal prediction: from rows that were not trained on, what holds for new ones as often as wanted.

Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World (2005).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tasks.base.records import Interval
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

    place = int(np.ceil((len(scores) + 1) * coverage - 1e-9))
    return float(np.sort(scores)[place - 1]) if place <= len(scores) else None


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


def coverage(found: Mapping[str, float]) -> Interval:
    """From what `coverage_of` gives."""
    return Interval(value=found["coverage"], low=found["coverage_low"], high=found["coverage_high"])
