"""The verdict on the adapter: all classifiers judged on the same test rows."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.base.records import Comparison, DataCheck, PreparedData, Rung, Scores, TrainedAdapter
from tasks.evaluation import error_analysis
from tasks.evaluation.cautions import find_cautions
from tasks.evaluation.predictions import Predictions
from tasks.scores.objective import Objective, objective
from tasks.scores.statistics import bootstrap, difference, score_intervals
from tasks.settings.config import RunConfig
from tasks.settings.rivals import in_a_sentence

if TYPE_CHECKING:
    import numpy as np


def judge(
    config: RunConfig,
    data: PreparedData,
    check: DataCheck,
    predictions: Predictions,
    trained: TrainedAdapter,
    folder: Path,
) -> Comparison:
    """What the predictions say; nothing is written. The test rows are read from `data`."""
    import numpy as np

    confidence, task = config.evaluation.confidence, objective(data.task)
    leaked = np.isin(predictions.rows, check.leaked["test"])
    test = error_analysis.read_test_rows(data, predictions)
    result = Comparison(
        folder=str(folder),
        task=data.task,
        rows=len(predictions.labels),
        confidence=confidence,
        detectable=check.detectable,
        ladder=ladder(task, predictions, config.evaluation.bootstrap_samples, confidence, config.seed),
        leaked=int(leaked.sum()),
        score_without_leaked=without_leaked(task, predictions, leaked),
        calibration=task.calibration(predictions.tables["tuned"], predictions.labels, trained.fitted, confidence),
        slices=error_analysis.find_slices(data, test, predictions, confidence),
        untrained_head=bool(trained.fresh_modules),
        chance=(task.chance(data.class_counts) or (None,))[0],
        names={name: in_a_sentence(title) for name, title in task.titles.items()},
    )
    return result.model_copy(update={"cautions": find_cautions(result, data, predictions)})


def without_leaked(task: Objective, predictions: Predictions, leaked: "np.ndarray") -> dict[str, float]:
    """The metric that decides, by classifier, on the rows that are not in train; empty where these are all or none."""
    if leaked.all() or not leaked.any():
        return {}
    labels, first = predictions.labels[~leaked], task.metrics[0].name
    return {name: task.scores(table[~leaked], labels)[first] for name, table in predictions.tables.items()}


def ladder(task: Objective, predictions: Predictions, samples: int, confidence: float, seed: int) -> tuple[Rung, ...]:
    """Every classifier, best first, and by how much the adapter is better on the same resampled rows."""
    labels, names, tables = predictions.labels, list(predictions.tables), list(predictions.tables.values())
    resampled, rungs = bootstrap(task, labels, tables, samples, seed), []
    for i, name in enumerate(names):
        intervals = score_intervals(task, resampled.observed[i], resampled.drawn[:, i], confidence)
        if better := task.interval(tables[i], labels, confidence):
            intervals[task.metrics[0].name] = better
        gain = difference(task, labels, tables, resampled, (names.index("tuned"), i), confidence)
        rungs.append(Rung(name=name, scores=intervals, adapter_gain=None if name == "tuned" else gain))
    return tuple(sorted(rungs, key=lambda rung: goodness(task, rung.values), reverse=True))


def goodness(task: Objective, scores: Scores) -> tuple[float, float]:
    """Sort key: the metric that decides, and for ties the last one."""
    first, last = task.metrics[0], task.metrics[-1]
    return first.sign * scores[first.name], last.sign * scores[last.name]
