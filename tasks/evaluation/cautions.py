"""What a reader of the verdict must know besides: a few words each, which stand beside it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.base.records import Comparison, PreparedData
from tasks.base.words import counted, listed
from tasks.evaluation.predictions import Predictions
from tasks.evaluation.wording import name_of
from tasks.scores.objective import objective
from tasks.scores.statistics import USEFUL_DIFFERENCE
from tasks.settings.rivals import learning_from_train

if TYPE_CHECKING:
    import numpy as np


def find_cautions(result: Comparison, data: PreparedData, predictions: Predictions) -> tuple[str, ...]:
    return (
        *never_predicted(data, predictions.labels, predictions.tables["tuned"]),
        *lower_f1(result),
        *objective(result.task).calibration_cautions(result.calibration),
        *too_few_rows(result),
        *only_chance(result),
    )


def never_predicted(data: PreparedData, labels: "np.ndarray", table: "np.ndarray") -> Iterator[str]:
    """Classes of the test rows, or labels, that the adapter gives to none of them."""
    import numpy as np

    task, names = objective(data.task), len(data.label_names)
    rows, said = (task.indicator(labels, names).sum(0) for labels in (labels, task.decide(table)))
    if never := [
        f"{data.label_names[i]!r:.60} ({counted(int(rows[i]), 'test row')})" for i in np.flatnonzero(rows * (said == 0))
    ]:
        yield f"never predicts {listed(never)}"


def lower_f1(result: Comparison) -> Iterator[str]:
    """Of those that have learned the one with the best macro-F1, where it is below the adapter in accuracy and, in
    three digits, above it in macro-F1."""
    ours = result.rung("tuned").values
    if not {"accuracy", "macro_f1"} <= set(ours):
        return
    better = [
        rung
        for rung in result.ladder
        if rung.name in learned(result)
        and rung.values["accuracy"] < ours["accuracy"]
        and round(rung.values["macro_f1"], 3) > round(ours["macro_f1"], 3)
    ]
    if better:
        best = max(better, key=lambda rung: rung.values["macro_f1"])
        before, after = (scores["macro_f1"] for scores in (best.values, ours))
        told = f"macro-F1 falls from {before:.3f} ({name_of(result, best.name)}) to {after:.3f}"
        yield f"{told} while accuracy rises"


def too_few_rows(result: Comparison) -> Iterator[str]:
    rows = counted(result.rows, "test row")
    if not objective(result.task).power_known:
        return
    if result.detectable is None:
        yield f"{rows} can show no difference"
    elif result.detectable > USEFUL_DIFFERENCE:
        yield f"{rows} say little: only differences of {result.detectable:.3f} or more show"


def learned(result: Comparison) -> set[str]:
    """The references that have learned from texts; the others guess, as a model does whose words say it nothing."""
    before = {"baseline": not result.untrained_head, "zero_shot": result.knew_before}
    return set(result.rivals) & {*learning_from_train(), "champion", *(name for name in before if before[name])}


def only_chance(result: Comparison) -> Iterator[str]:
    if not learned(result):
        yield "no reference that has learned was measured (evaluation.references): the adapter is compared with chance"
