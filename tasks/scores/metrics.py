"""The metrics of every classifier, as `evaluate` metrics of our own: those on the Hub need the network to load."""

from functools import cache
from typing import TYPE_CHECKING, Any

from tasks.base.records import Scores

if TYPE_CHECKING:
    import numpy as np


PROBABILITY_FLOOR = 1e-7
"""Smallest probability that log loss counts, about the resolution of float32 next to 1."""


def score(probabilities: "np.ndarray", labels: "np.ndarray") -> Scores:
    """Scores of (rows, classes) probabilities against (rows,) labels."""
    found = combined_metric().compute(predictions=probabilities, references=labels)
    return {name: found[name] for name in ("accuracy", "macro_f1", "log_loss")}


@cache
def combined_metric() -> Any:
    import evaluate

    return evaluate.combine(
        [metric(config_name=metric.__name__, keep_in_memory=True) for metric in metric_classes()], force_prefix=False
    )


def metric_classes() -> tuple[type, ...]:
    """Accuracy, MacroF1 and LogLoss; classes are made here because their base class is slow to import."""
    import datasets
    import evaluate
    import numpy as np
    from sklearn.metrics import accuracy_score, f1_score

    class ClassifierMetric(evaluate.Metric):
        """Takes (rows, classes) probabilities and (rows,) labels."""

        def _info(self) -> Any:
            return evaluate.MetricInfo(
                description=self.__class__.__doc__,
                citation="",
                features=datasets.Features(
                    {
                        "predictions": datasets.Sequence(datasets.Value("float64")),
                        "references": datasets.Value("int64"),
                    }
                ),
            )

    class Accuracy(ClassifierMetric):
        """Share of rows whose most probable class is the label."""

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            return {"accuracy": float(accuracy_score(references, np.argmax(predictions, 1)))}

    class MacroF1(ClassifierMetric):
        """Mean over classes of the harmonic mean of precision and recall; a class never met counts as 0."""

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            table = np.asarray(predictions)
            classes = range(table.shape[1])
            value = f1_score(references, table.argmax(1), labels=classes, average="macro", zero_division=0)
            return {"macro_f1": float(value)}

    class LogLoss(ClassifierMetric):
        """Mean negative natural logarithm of the probability given to the label, in nats."""

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            table = np.asarray(predictions)
            given = table[np.arange(len(table)), np.asarray(references)]
            # rounding can put a probability above 1; and -log(1) is -0
            return {"log_loss": max(0.0, float(-np.log(np.maximum(given, PROBABILITY_FLOOR)).mean()))}

    return Accuracy, MacroF1, LogLoss
