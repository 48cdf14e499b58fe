"""One class for each text. The table has probabilities, (rows, classes); labels are class numbers, (rows,)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.base.records import Interval
from tasks.base.words import counted, shown_share
from tasks.scores.classes import class_table, confusion, log_loss, suspicion
from tasks.scores.conformal import COVERAGE, coverage_of, expected_coverage, prediction_sets, surprise_of
from tasks.scores.linear import logistic
from tasks.scores.objective import ClassWeights, Metric
from tasks.scores.statistics import (
    calibration_error,
    detectable_difference,
    fit_temperature,
    mcnemar_p_value,
    per_row,
    scores_from_sums,
    wilson_interval,
    without_temperature,
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
        if not calibrated:
            return {"temperature": 1.0}
        from scipy.special import softmax

        temperature = fit_temperature(logits, labels)
        table = softmax(logits.astype(float) / temperature, axis=1)
        surprise = surprise_of(table, labels, COVERAGE)
        return {"temperature": temperature, "surprise": surprise, "validation_rows": len(labels)}

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

    # --- what people read

    answers = "probabilities"
    power_known = True
    titles: Mapping[str, str] = {}
    purpose = "classifies text into"
    head_taken_as = "its classes were taken to be, in this order,"
    conflict = "more than one label"
    label_word = "class"
    loss_title = "cross-entropy (nats)"
    score_title = "accuracy (share of rows)"
    slice_word = "of"
    flip_note = ""
    flip_order = "These are the adapter's most confident ones"
    mistakes_title = "Most confident mistakes"
    no_mistake = "The adapter has every test row right."
    suspicion_note = (
        "Rows for which the adapter finds another label more likely, by confident learning, and for which every "
        "trained reference that beats chance predicts that label too."
    )
    pictures: tuple[str, ...] = ("confusion_matrices", "reliability")

    def errors(self, table: "np.ndarray", labels: "np.ndarray") -> "np.ndarray":
        wrong: np.ndarray = (~self.is_right(table, labels)).astype(int)
        return wrong

    def parts(self, labels: "np.ndarray", names: Sequence[str]) -> "tuple[str, list[tuple[str, np.ndarray]]]":
        return "class", [(name, labels == label) for label, name in enumerate(names)]

    def truth(self, labels: "np.ndarray", names: Sequence[str]) -> dict[str, Any]:
        return {"true_label": self.words(labels, names)}

    def said(self, table: "np.ndarray", labels: "np.ndarray", names: Sequence[str]) -> dict[str, Any]:
        return {"label": self.words(self.decide(table), names), "probability": table.max(1)}

    def flips(self, new: "np.ndarray", old: "np.ndarray", labels: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
        """The surest first."""
        return self.errors(old, labels) - self.errors(new, labels), new.max(1)

    def flip_words(self, fixed: int, broken: int) -> str:
        return f"fixed {counted(fixed, 'row')} and broke {broken:,}"

    def mistakes(
        self, table: "np.ndarray", labels: "np.ndarray", names: Sequence[str]
    ) -> "tuple[np.ndarray, dict[str, Any]]":
        import numpy as np

        said = {f"tuned_{name}": column for name, column in self.said(table, labels, names).items()}
        return table.max(1), {**said, "true_label_probability": table[np.arange(len(labels)), labels]}

    def suspects(
        self,
        tables: "Mapping[str, np.ndarray]",
        labels: "np.ndarray",
        names: Sequence[str],
        fitted: Mapping[str, Any],
        confidence: float,
    ) -> "tuple[np.ndarray, np.ndarray, dict[str, Any]]":
        import numpy as np

        table, place = tables["tuned"], np.arange(len(labels))
        found = suspicion(table, {name: self.decide(other) for name, other in tables.items()}, labels, confidence)
        columns = {
            "given_label": self.words(labels, names),
            "likely_label": self.words(found.likely, names),
            "given_label_probability": table[place, labels],
            "likely_label_probability": table[place, found.likely],
        }
        return found.margin, found.suspect, columns

    def by_label(self, table: "np.ndarray", labels: "np.ndarray") -> dict[str, Any]:
        precision, recall, f1, rows = class_table(labels, table).T.tolist()
        return {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "rows": [int(count) for count in rows],
            "confusion": confusion(labels, table).tolist(),
        }

    def sets_by_label(
        self, table: "np.ndarray", labels: "np.ndarray", fitted: Mapping[str, Any], confidence: float
    ) -> dict[str, Any]:
        if fitted.get("surprise") is None:
            return {}
        sets = prediction_sets(table, fitted["surprise"])
        held, sizes, found = sets[range(len(labels)), labels], sets.sum(1), dict[str, list[float | None]]()
        for label in range(table.shape[1]):
            of_class = labels == label
            values: Mapping[str, float] = {}
            if of_class.any():
                values = {**coverage_of(held[of_class], confidence), "set_size": float(sizes[of_class].mean())}
            for name in ("coverage", "coverage_low", "coverage_high", "set_size"):
                found.setdefault(name, []).append(values.get(name))
        return found

    def chance(self, class_counts: Mapping[str, Sequence[int]]) -> tuple[float, str] | None:
        train, test = class_counts["train"], class_counts["test"]
        least = test[train.index(max(train))] / sum(test)
        return least, f"always the class commonest in train: {shown_share(least)}"

    def calibration(
        self, table: "np.ndarray", labels: "np.ndarray", fitted: Mapping[str, Any], confidence: float
    ) -> dict[str, float]:
        """Expected calibration error and log loss before and after the logits are divided by the temperature; and how
        often the prediction sets hold the class, where validation had rows enough for them."""
        sets, surprise = dict[str, float](), fitted.get("surprise")
        if surprise is not None:
            sets = coverage_of(prediction_sets(table, surprise)[range(len(labels)), labels], confidence)
            sets |= expected_coverage(fitted, len(labels), confidence)
        before = without_temperature(table, fitted["temperature"])
        return {
            "temperature": fitted["temperature"],
            "error_before": calibration_error(before, labels),
            "error_after": calibration_error(table, labels),
            "log_loss_before": log_loss(before, labels),
            "log_loss_after": log_loss(table, labels),
            **sets,
        }

    def calibration_table(self, calibration: Mapping[str, float]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        by_name = {name: f"{value:.3f}" for name, value in calibration.items()}
        return ("adapter", "temperature", "expected calibration error", "log loss (nats)"), [
            ("as trained", "1", by_name["error_before"], by_name["log_loss_before"]),
            ("fitted on validation", by_name["temperature"], by_name["error_after"], by_name["log_loss_after"]),
        ]

    def calibration_words(self, calibration: Mapping[str, float]) -> str:
        return f"Calibration error {calibration['error_before']:.3f} to {calibration['error_after']:.3f}"

    def calibration_note(self, calibration: Mapping[str, float]) -> str:
        return (
            f"Divide the logits by the temperature {calibration['temperature']:.4g}, which was fitted on validation, "
            f"for calibrated probabilities: it takes the expected calibration error on the test rows from "
            f"{calibration['error_before']:.3f} to {calibration['error_after']:.3f}. It changes no prediction."
        )

    def calibration_cautions(self, calibration: Mapping[str, float]) -> list[str]:
        before, after = calibration["error_before"], calibration["error_after"]
        worse = f"the temperature made calibration worse on test: error {before:.3f} to {after:.3f}"
        return [worse] if round(after, 3) > round(before, 3) else []

    def snippet(self, fitted: Mapping[str, Any], names: Sequence[str]) -> str:
        return f"probabilities = (logits / {fitted['temperature']!r}).softmax(-1)"


OBJECTIVE: "Objective" = SingleLabel()
