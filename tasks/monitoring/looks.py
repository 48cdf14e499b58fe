"""What is looked at in recent and known rows, each as two groups of numbers for a test; and the tests, together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tasks.base.outcomes import DriftTest
from tasks.base.records import Interval
from tasks.scores.drift import PERMUTATIONS, Kind, View, drift_p_value, holm, inhomogeneity, smallest_drift
from tasks.scores.objective import Objective

if TYPE_CHECKING:
    import numpy as np


LEAST_ROWS = 30
"""In each group. So few show that a third of the labels have changed, or that a fifth of the texts are of another kind
(beside 1,000 known rows, five tests together); fewer show nothing that people would not see for themselves."""


class Look(NamedTuple):
    """One thing about both groups of rows."""

    name: str
    view: View
    recent: float | None
    """What people compare: a median, share or score; None where it takes more than one number."""
    known: float | None
    drift: str
    """What the rows do whose smallest share is found, in words."""


def vectors(name: str, recent: "np.ndarray", known: "np.ndarray", drift: str, kind: Kind = "vectors") -> Look:
    return Look(name, View(kind, recent, known), None, None, drift)


def numbers(name: str, recent: "np.ndarray", known: "np.ndarray", drift: str) -> Look:
    import numpy as np

    return Look(name, View("numbers", recent, known), float(np.median(recent)), float(np.median(known)), drift)


def yes_or_no(name: str, recent: "np.ndarray", known: "np.ndarray", drift: str) -> Look:
    """Masks, (rows,)."""
    view = View("classes", recent.astype(int), known.astype(int))
    return Look(name, view, float(recent.mean()), float(known.mean()), drift)


def looks_at_texts(recent: "Texts", known: "Texts") -> list[Look]:
    foreign = "are texts of another kind, as far from the known ones as these are from their mean"
    return [
        vectors("features", recent.features, known.features, foreign),
        numbers("lengths", recent.tokens, known.tokens, "are longer than all known ones"),
    ]


class Texts(NamedTuple):
    features: "np.ndarray"
    """(rows, width), as the linear probe learns from them."""
    tokens: "np.ndarray"
    """(rows,), before any were cut off."""


def looks_at_answers(
    task: Objective, recent: "np.ndarray", known: "np.ndarray", outputs: int, unsure: "Unsure"
) -> list[Look]:
    """Answers, (rows, columns), about recent rows and about test rows, of a model with so many outputs."""
    import numpy as np

    decisions = task.decide(recent), task.decide(known)
    if task.one_class:
        labels = [Look("labels", View("classes", *decisions), None, None, "get another than the most frequent label")]
        labels.append(numbers("confidence", recent.max(1), known.max(1), SURER))
        if unsure.told:
            labels.append(yes_or_no("abstentions", unsure.of(recent), unsure.of(known), f"{unsure.told} besides"))
        return labels
    new, old = (task.indicator(decision, outputs) for decision in decisions)
    if not new.shape[1]:
        return [numbers("predictions", recent[:, 0], known[:, 0], "get a higher number than any known row")]
    sure, before = (np.maximum(table[:, :outputs], 1 - table[:, :outputs]).mean(1) for table in (recent, known))
    drift = "get all the labels that they should not, and no other"
    return [
        vectors("labels", new.astype(float), old.astype(float), drift, "sets"),
        numbers("confidence", sure, before, SURER),
        yes_or_no("abstentions", ~np.any(new, axis=1), ~np.any(old, axis=1), "get no label besides"),
    ]


SURER = "are answered with more confidence than any known row"


class Unsure(NamedTuple):
    """When one class is not clear."""

    below: float
    """The most probable class has less than this probability."""
    surprise: float | None
    """Or else: more than one is in the row's set, see tasks/scores/conformal.py."""

    @property
    def told(self) -> str:
        """What such rows are, in words; empty where that is not known."""
        if self.below:
            return f"have no class with a probability of {self.below:g}"
        return "have more than one class in their 90 % set" if self.surprise is not None else ""

    def of(self, table: "np.ndarray") -> "np.ndarray":
        """A mask, (rows,), of probabilities (rows, classes)."""
        from tasks.scores.conformal import prediction_sets

        if self.below:
            below: np.ndarray = table.max(1) < self.below
            return below
        assert self.surprise is not None
        several: np.ndarray = prediction_sets(table, self.surprise).sum(1) > 1
        return several


def look_at_score(
    task: Objective, recent: "np.ndarray", known: "np.ndarray", scores: tuple[Interval, Interval]
) -> Look:
    """How wrong answers are, (rows,) each, 0 where they are right; and the metric that decides, of both groups."""
    if task.one_class:
        view, drift = View("classes", (recent > 0).astype(int), (known > 0).astype(int)), "are wrong besides"
    else:
        view, drift = View("numbers", recent, known), "are more wrong than any known row"
    return Look(task.metrics[0].name, view, scores[0].value, scores[1].value, drift)


def judge(
    looks: Sequence[Look], confidence: float, seed: int, permutations: int = PERMUTATIONS, with_power: bool = True
) -> list[DriftTest]:
    """All tests of a monitoring: at most 1 - `confidence` of all that have no drift find any."""
    level = 1 - confidence
    p_values = [drift_p_value(look.view, seed + place, permutations) for place, look in enumerate(looks)]
    return [
        DriftTest(
            name=look.name,
            recent_rows=len(look.view.recent),
            known_rows=len(look.view.known),
            recent=look.recent,
            known=look.known,
            distance=distance(look.view),
            p_value=p_value,
            adjusted_p_value=adjusted,
            found=adjusted <= level + 1e-12,
            detectable=smallest_drift(look.view, level / len(looks), seed + place) if with_power else None,
            drift=look.drift,
        )
        for place, (look, p_value, adjusted) in enumerate(zip(looks, p_values, holm(p_values), strict=True))
    ]


def distance(view: View) -> float:
    """Of classes the share of rows that would have to be of another for both groups to be the same."""
    import numpy as np

    if view.kind != "classes":
        return inhomogeneity(view)
    classes = int(max(view.recent.max(), view.known.max())) + 1
    shares = [np.bincount(rows, minlength=classes) / len(rows) for rows in (view.recent, view.known)]
    return float(abs(shares[0] - shares[1]).sum() / 2)
