"""The verdict on the adapter: all classifiers judged on the same test rows."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.base.records import Calibration, Comparison, DataCheck, PreparedData, Rung, Scores, TrainedAdapter
from tasks.evaluation import error_analysis
from tasks.evaluation.cautions import find_cautions
from tasks.evaluation.predictions import Predictions
from tasks.scores.metrics import PROBABILITY_FLOOR
from tasks.scores.statistics import (
    bootstrap,
    calibration_error,
    difference,
    score_intervals,
    wilson_interval,
    without_temperature,
)
from tasks.settings.config import RunConfig

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

    confidence = config.evaluation.confidence
    leaked = np.isin(predictions.rows, check.leaked["test"])
    right = {name: table.argmax(1) == predictions.labels for name, table in predictions.tables.items()}
    some_leaked = leaked.any() and not leaked.all()
    test = error_analysis.read_test_rows(data, predictions)
    result = Comparison(
        folder=str(folder),
        rows=len(predictions.labels),
        confidence=confidence,
        detectable=check.detectable,
        ladder=ladder(predictions, config.evaluation.bootstrap_samples, confidence, config.seed),
        leaked=int(leaked.sum()),
        accuracy_without_leaked={name: float(rows[~leaked].mean()) for name, rows in right.items() if some_leaked},
        calibration=measure_calibration(predictions, trained.temperature),
        slices=error_analysis.find_slices(data, test, predictions, confidence),
        untrained_head=bool(trained.fresh_modules),
    )
    return result.model_copy(update={"cautions": find_cautions(result, data, predictions)})


def ladder(predictions: Predictions, samples: int, confidence: float, seed: int) -> tuple[Rung, ...]:
    """Every classifier, best accuracy first, and by how much the adapter is better on the same resampled rows."""
    labels, names, tables = predictions.labels, list(predictions.tables), list(predictions.tables.values())
    resampled, rungs = bootstrap(labels, tables, samples, seed), []
    for i, name in enumerate(names):
        right = int((tables[i].argmax(1) == labels).sum())
        intervals = score_intervals(resampled, i, confidence)
        pair = (names.index("tuned"), i)
        rungs.append(
            Rung(
                name=name,
                scores=Scores(**{score: interval.value for score, interval in intervals.items()}),
                **{**intervals, "accuracy": wilson_interval(right, len(labels), confidence)},
                adapter_gain=None if name == "tuned" else difference(labels, tables, resampled, pair, confidence),
            )
        )
    return tuple(sorted(rungs, key=lambda rung: (-rung.scores.accuracy, rung.scores.log_loss)))


def measure_calibration(predictions: Predictions, temperature: float) -> Calibration:
    """The adapter's probabilities on the test rows, before and after its logits are divided by `temperature`."""
    labels, after = predictions.labels, predictions.tables["tuned"]
    before = without_temperature(after, temperature)
    return Calibration(
        temperature=temperature,
        error_before=calibration_error(before, labels),
        error_after=calibration_error(after, labels),
        log_loss_before=log_loss(before, labels),
        log_loss_after=log_loss(after, labels),
    )


def log_loss(table: "np.ndarray", labels: "np.ndarray") -> float:
    """Mean negative log probability of the true class, in nats."""
    import numpy as np

    given = table[np.arange(len(labels)), labels].astype(float)
    return max(0.0, float(-np.log(np.maximum(given, PROBABILITY_FLOOR)).mean()))


def confusion(labels: "np.ndarray", table: "np.ndarray") -> "np.ndarray":
    """Counts, (actual, predicted)."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, table.argmax(1), labels=range(table.shape[1]))


def class_table(labels: "np.ndarray", table: "np.ndarray") -> "np.ndarray":
    """Precision, recall, F1 and rows of each class, (classes, 4)."""
    import numpy as np
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(labels, table.argmax(1), labels=range(table.shape[1]), zero_division=0)
    return np.stack(columns, axis=1)
