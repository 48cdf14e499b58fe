"""One class for each text. The table has probabilities, (rows, classes); labels are class numbers, (rows,)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.base.records import Interval
from tasks.scores.linear import logistic
from tasks.scores.objective import ClassWeights, Metric
from tasks.scores.statistics import (
    detectable_difference,
    fit_temperature,
    mcnemar_p_value,
    per_row,
    scores_from_sums,
    wilson_interval,
)

if TYPE_CHECKING:
    import numpy as np

    from tasks.scores.objective import Objective, Weighted


class SingleLabel:
    name = "single_label"
    metrics: tuple[Metric, ...] = (
        Metric("accuracy", "accuracy", "accuracy"),
        Metric("macro_f1", "macro-F1", "F1"),
        Metric("log_loss", "log loss (nats)", "loss", most=float("inf"), higher_is_better=False),
    )
    test = "exact McNemar"
    problem_type = "single_label_classification"
    loss = "cross_entropy"
    activation = "softmax"
    one_class = True
    decided_on_validation = False

    def words(self, labels: "np.ndarray", names: Sequence[str]) -> list[str]:
        return [names[label] for label in labels]

    def indicator(self, labels: "np.ndarray", outputs: int) -> "np.ndarray":
        import numpy as np

        mask: np.ndarray = labels[:, None] == np.arange(outputs)
        return mask

    def strata(self, labels: "np.ndarray") -> "np.ndarray":
        return labels

    def scaling(self, labels: "np.ndarray") -> dict[str, Any]:
        return {}

    def fit(
        self, logits: "np.ndarray", labels: "np.ndarray", scaling: dict[str, Any], calibrated: bool = True
    ) -> dict[str, Any]:
        return {"temperature": fit_temperature(logits, labels) if calibrated else 1.0}

    def weights(self, labels: "np.ndarray", names: Sequence[str], asked: ClassWeights) -> list[float] | None:
        """Of each class; balanced, all rows of a class together weigh the same: King and Zeng, Political Analysis 9
        (2001), as in scikit-learn."""
        import numpy as np

        if asked == "none":
            return None
        if asked == "balanced":
            counts = np.bincount(labels, minlength=len(names))
            present = np.count_nonzero(counts)
            return [len(labels) / (present * count) if count else 1.0 for count in counts.tolist()]
        return [asked.get(name, 1.0) for name in names]

    def decision(self, outputs: "np.ndarray", labels: "np.ndarray") -> dict[str, Any]:
        return {}

    def constant(self, labels: "np.ndarray", outputs: int) -> "np.ndarray":
        import numpy as np

        shares: np.ndarray = np.bincount(labels, minlength=outputs) / len(labels)
        return shares

    def learn(
        self, known: Any, labels: "np.ndarray", asked: Sequence[Any], outputs: int, grid: Sequence[float], seed: int
    ) -> "list[np.ndarray]":
        return logistic(known, labels, asked, outputs, grid, seed)

    def among(self, table: "np.ndarray", theirs: Sequence[str], ours: Sequence[str]) -> "np.ndarray":
        """Probabilities (rows, ours), asked among those of the classes that it knows."""
        import numpy as np

        result = np.zeros((len(table), len(ours)), table.dtype)
        shared = [name for name in ours if name in theirs]
        places = [list(ours).index(name) for name in shared]
        result[:, places] = table[:, [list(theirs).index(name) for name in shared]]
        if len(shared) < len(theirs):
            result[:, places] += np.finfo(table.dtype).tiny  # a row may have nothing there but zeros
            result /= result.sum(1, keepdims=True)
        return result

    def decide(self, table: "np.ndarray") -> "np.ndarray":
        decided: np.ndarray = table.argmax(1)
        return decided

    def is_right(self, table: "np.ndarray", labels: "np.ndarray") -> "np.ndarray":
        right: np.ndarray = self.decide(table) == labels
        return right

    def scores(self, table: "np.ndarray", labels: "np.ndarray") -> dict[str, float]:
        from tasks.scores.metrics import score

        return score(table, labels)

    def weighted(self, table: "np.ndarray", labels: "np.ndarray") -> "Weighted":
        import numpy as np

        rows, classes = table.shape
        there, parts = np.bincount(labels, minlength=classes) > 0, per_row(table, labels)
        return lambda weights: scores_from_sums(weights @ parts, rows, classes, there)

    def interval(self, table: "np.ndarray", labels: "np.ndarray", confidence: float) -> Interval:
        return wilson_interval(int(self.is_right(table, labels).sum()), len(labels), confidence)

    def compared(self, new: "np.ndarray", old: "np.ndarray", labels: "np.ndarray") -> tuple[int, int, float]:
        is_right, was_right = self.is_right(new, labels), self.is_right(old, labels)
        fixed, broken = int((is_right & ~was_right).sum()), int((was_right & ~is_right).sum())
        return fixed, broken, mcnemar_p_value(fixed, broken)

    def detectable(self, rows: int, confidence: float) -> float | None:
        return detectable_difference(rows, confidence)


OBJECTIVE: "Objective" = SingleLabel()
