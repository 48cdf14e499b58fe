"""From which probability on an answer is given."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Threshold(NamedTuple):
    """Of one label, and what it gives on the rows that it was chosen on."""

    value: float
    precision: float
    recall: float


def thresholds(probability: "np.ndarray", truth: "np.ndarray") -> list[Threshold]:
    """Every one that makes a difference on these rows, (rows,) each, the highest first; `truth` is not all 0.

    Each lies half-way between two probabilities that occur, the lowest half-way to 0: the same holds for new rows.
    """
    import numpy as np

    order = np.argsort(-probability, kind="stable")
    values, first = np.unique(-probability[order], return_index=True)
    ends = np.append(first[1:], len(order))  # rows at or above each value
    hits = truth[order].astype(bool).cumsum()[ends - 1]
    middles = (-values + np.append(-values[1:], 0)) / 2
    columns = (middles, hits / ends, hits / truth.sum())
    return [Threshold(*map(float, row)) for row in zip(*columns, strict=True)]


def best_threshold(probability: "np.ndarray", truth: "np.ndarray") -> float:
    """That of the best F1; of equals the one nearest to 0.5, which it is where no row has the label.

    Lipton, Elkan and Naryanaswamy, Optimal Thresholding of Classifiers to Maximize F1 Measure, ECML 2014.
    """
    if not truth.any():
        return 0.5
    found = thresholds(probability, truth)

    def f1(one: Threshold) -> float:
        return 2 * one.precision * one.recall / (one.precision + one.recall) if one.recall else 0.0

    best = max(map(f1, found))
    return min((one.value for one in found if f1(one) >= best - 1e-12), key=lambda value: abs(value - 0.5))


def threshold_for(probability: "np.ndarray", truth: "np.ndarray", wanted: float, precision: bool) -> Threshold | None:
    """That with the highest recall of those with at least the wanted precision, or the other way round; None where
    there is none."""
    found = thresholds(probability, truth)
    if precision:
        return max((one for one in found if one.precision >= wanted), key=lambda one: one.recall, default=None)
    return max((one for one in found if one.recall >= wanted), key=lambda one: one.precision, default=None)
