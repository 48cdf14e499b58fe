"""A number for each text. The table has the predicted number, (rows, 1); labels are the true ones, (rows,)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.base.records import Interval
from tasks.base.words import bounds, counted
from tasks.scores.conformal import (
    COVERAGE,
    PROMISE,
    conformal_quantile,
    coverage,
    coverage_of,
    expected_coverage,
    expected_words,
    kept,
)
from tasks.scores.linear import ridge
from tasks.scores.objective import ClassWeights, Metric

if TYPE_CHECKING:
    import numpy as np

    from tasks.scores.objective import Objective, Weighted


class Regression:
    name = "regression"
    metrics: tuple[Metric, ...] = (
        Metric("mae", "mean absolute error", "MAE", most=float("inf"), higher_is_better=False, in_units=True),
        Metric("rmse", "root mean squared error", "RMSE", most=float("inf"), higher_is_better=False, in_units=True),
        Metric("r2", "R²", "R²", least=float("-inf")),
        Metric("spearman", "Spearman's rank correlation", "Spearman", least=-1),
        Metric("quadratic_kappa", "quadratic-weighted kappa", "kappa", least=-1),
    )
    test = "Wilcoxon signed-rank"
    problem_type = "regression"
    loss = "squared_error"
    activation = "scale"
    one_class = False
    decided_on_validation = False

    def words(self, labels: "np.ndarray", names: Sequence[str]) -> list[str]:
        return [f"{label:.15g}" for label in labels]

    def indicator(self, labels: "np.ndarray", outputs: int) -> "np.ndarray":
        import numpy as np

        return np.zeros((len(labels), 0), bool)

    def strata(self, labels: "np.ndarray") -> "np.ndarray":
        """Tenths of the rows by their number; equal numbers stay together."""
        import numpy as np

        edges = np.unique(np.quantile(labels, np.arange(0.1, 1, 0.1), method="inverted_cdf"))
        strata: np.ndarray = np.unique(np.searchsorted(edges, labels), return_inverse=True)[1]
        return strata

    def scaling(self, labels: "np.ndarray") -> dict[str, Any]:
        return {"mean": float(labels.mean()), "std": float(labels.std()) or 1.0}

    def fit(
        self, logits: "np.ndarray", labels: "np.ndarray", scaling: dict[str, Any], calibrated: bool = True
    ) -> dict[str, Any]:
        predicted = logits[:, 0].astype(float) * scaling["std"] + scaling["mean"]
        width = conformal_quantile(abs(predicted - labels), COVERAGE)
        return {**scaling, "half_width": width, "validation_rows": len(labels)}

    def weights(self, labels: "np.ndarray", names: Sequence[str], asked: ClassWeights) -> list[float] | None:
        return None

    def decision(self, outputs: "np.ndarray", labels: "np.ndarray") -> dict[str, Any]:
        return {}

    def constant(self, labels: "np.ndarray", outputs: int) -> "np.ndarray":
        """The mean."""
        import numpy as np

        return np.asarray([labels.mean()])

    def learn(
        self, known: Any, labels: "np.ndarray", asked: Sequence[Any], outputs: int, grid: Sequence[float], seed: int
    ) -> "list[np.ndarray]":
        return ridge(known, labels, asked, grid, seed)

    def among(self, table: "np.ndarray", theirs: Sequence[str], ours: Sequence[str]) -> "np.ndarray":
        return table

    def decide(self, table: "np.ndarray") -> "np.ndarray":
        decided: np.ndarray = table[:, 0].astype(float)
        return decided

    def scores(self, table: "np.ndarray", labels: "np.ndarray") -> dict[str, float]:
        import numpy as np

        found = self.weighted(table, labels)(np.ones((1, len(labels))))[0].tolist()
        return {metric.name: value for metric, value in zip(self.metrics, found, strict=True)}

    def weighted(self, table: "np.ndarray", labels: "np.ndarray") -> "Weighted":
        """The kappa is that of whole numbers where the labels are such, with each prediction rounded to the nearest of
        them, Cohen, Psychological Bulletin 70 (1968); of other numbers it is Lin's concordance, Biometrics 45 (1989),
        the same formula."""
        import numpy as np

        said, truth = self.decide(table), labels.astype(float)
        graded = np.clip(np.rint(said), truth.min(), truth.max()) if (truth == np.rint(truth)).all() else said
        # differences from one centre: squares of large numbers would lose their digits
        centre = truth.mean()
        y, g = truth - centre, graded - centre
        sums = np.stack([abs(said - truth), (said - truth) ** 2, y, y**2, g, g**2, (graded - truth) ** 2], axis=1)
        ranks = [rank_of(values) for values in (said, truth)]

        def measure(weights: "np.ndarray") -> "np.ndarray":
            rows = weights.sum(1)
            off, square, mean, square_mean, g_mean, g_square, apart = (weights @ sums / rows[:, None]).T
            spread, g_spread = square_mean - mean**2, g_square - g_mean**2
            with np.errstate(divide="ignore", invalid="ignore"):
                explained = np.where(spread > 0, 1 - square / spread, 0.0)
                chance = spread + g_spread + (mean - g_mean) ** 2
                kappa = np.where(chance > 0, 1 - apart / chance, 0.0)
            found = np.stack([off, np.sqrt(square), explained, correlation(weights, *ranks), kappa], axis=1)
            return found

        return measure

    def interval(self, table: "np.ndarray", labels: "np.ndarray", confidence: float) -> Interval | None:
        return None

    def compared(self, new: "np.ndarray", old: "np.ndarray", labels: "np.ndarray") -> tuple[int, int, float]:
        """Rows to whose number only `new` is nearer; those of `old`; and the signed-rank test of the distances:
        Wilcoxon, Biometrics Bulletin 1 (1945). Rows of equal distance count for neither."""
        from scipy.stats import wilcoxon

        nearer = abs(self.decide(old) - labels) - abs(self.decide(new) - labels)
        fixed, broken = int((nearer > 0).sum()), int((nearer < 0).sum())
        return fixed, broken, float(wilcoxon(nearer).pvalue) if fixed + broken else 1.0

    def detectable(self, rows: int, confidence: float) -> float | None:
        return None

    # --- what people read

    answers = "numbers"
    power_known = False
    titles: Mapping[str, str] = {"majority": "mean of train", "tfidf": "TF-IDF + ridge regression"}
    purpose = "predicts, from text, the number"
    head_taken_as = "its output was taken to be, standardised,"
    conflict = "different numbers"
    label_word = "number"
    loss_title = "squared error (standardised)"
    score_title = "MAE"
    slice_word = "on"
    flip_note = (
        "Fixed are rows to whose number the adapter is nearer than the foundation model, broken those to which it is "
        "less near."
    )
    flip_order = "These are those whose error changed most"
    mistakes_title = "Largest errors"
    no_mistake = "The adapter has every number exactly right."
    suspicion_note = (
        "Rows for which the adapter and every trained reference that beats the mean give numbers that are close to "
        "each other, and all further from the label than the half width of the intervals."
    )
    pictures: tuple[str, ...] = ("predicted_and_true", "errors_by_size")

    def errors(self, table: "np.ndarray", labels: "np.ndarray") -> "np.ndarray":
        off: np.ndarray = abs(self.decide(table) - labels)
        return off

    def parts(self, labels: "np.ndarray", names: Sequence[str]) -> "tuple[str, list[tuple[str, np.ndarray]]]":
        """Quarters of the rows by their number; equal numbers stay together."""
        import numpy as np

        edges = np.unique(np.quantile(labels, [0.25, 0.5, 0.75], method="inverted_cdf"))
        place = np.searchsorted(edges, labels)
        return "true number", [(span(labels[place == i]), place == i) for i in np.unique(place)]

    def truth(self, labels: "np.ndarray", names: Sequence[str]) -> dict[str, Any]:
        return {"true_number": labels.astype(float)}

    def said(self, table: "np.ndarray", labels: "np.ndarray", names: Sequence[str]) -> dict[str, Any]:
        return {"number": self.decide(table), "error": self.errors(table, labels)}

    def flips(self, new: "np.ndarray", old: "np.ndarray", labels: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
        import numpy as np

        nearer = self.errors(old, labels) - self.errors(new, labels)
        return np.sign(nearer), abs(nearer)

    def flip_words(self, fixed: int, broken: int) -> str:
        return f"came nearer to the true number on {counted(fixed, 'row')} and moved away from it on {broken:,}"

    def mistakes(
        self, table: "np.ndarray", labels: "np.ndarray", names: Sequence[str]
    ) -> "tuple[np.ndarray, dict[str, Any]]":
        said = {f"tuned_{name}": column for name, column in self.said(table, labels, names).items()}
        return self.errors(table, labels), said

    def suspects(
        self,
        tables: "Mapping[str, np.ndarray]",
        labels: "np.ndarray",
        names: Sequence[str],
        fitted: Mapping[str, Any],
        confidence: float,
    ) -> "tuple[np.ndarray, np.ndarray, dict[str, Any]]":
        """Where those that beat the mean agree to within the half width, and all lie further than it from the label,
        on one side."""
        import numpy as np

        mean = np.full((len(labels), 1), labels.mean())
        able = {}
        for name, table in tables.items():
            nearer, farther, p_value = self.compared(table, mean, labels)
            if nearer > farther and p_value < 1 - confidence:
                able[name] = self.decide(table)
        if "tuned" not in able:
            able = {"tuned": self.decide(tables["tuned"])}
            width = float("inf")
        else:
            width = half_width(fitted)
        said = np.stack(list(able.values()))
        low, high = said.min(0), said.max(0)
        likely, far = said.mean(0), np.maximum(low - labels, labels - high)
        columns = {"given_number": labels.astype(float), "likely_number": likely}
        return far, (far > width) & (high - low <= width), columns

    def by_label(self, table: "np.ndarray", labels: "np.ndarray") -> dict[str, Any]:
        return {}

    def sets_by_label(
        self, table: "np.ndarray", labels: "np.ndarray", fitted: Mapping[str, Any], confidence: float
    ) -> dict[str, Any]:
        return {}

    def chance(self, class_counts: Mapping[str, Sequence[int]]) -> tuple[float, str] | None:
        return None

    def calibration(
        self, table: "np.ndarray", labels: "np.ndarray", fitted: Mapping[str, Any], confidence: float
    ) -> dict[str, float]:
        """Half the width of the intervals, and how many of the rows have their number in them."""
        width = half_width(fitted)
        found = {"half_width": width, **coverage_of(self.errors(table, labels) <= width, confidence)}
        return found if width == float("inf") else found | expected_coverage(fitted, len(labels), confidence)

    def calibration_table(self, calibration: Mapping[str, float]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        return ("intervals", "half width", "share of the test rows in them", "to be expected"), [
            (PROMISE, f"{calibration['half_width']:.4g}", bounds(coverage(calibration)), expected_words(calibration))
        ]

    def calibration_words(self, calibration: Mapping[str, float]) -> str:
        return f"{PROMISE} intervals (±{calibration['half_width']:.3g}) hold {calibration['coverage']:.3f} of the rows"

    def calibration_note(self, calibration: Mapping[str, float]) -> str:
        return (
            f"A prediction's {PROMISE} interval reaches {calibration['half_width']:.4g} to either side, by the errors "
            f"on validation; on the test rows such intervals hold {bounds(coverage(calibration))} of the true numbers."
        )

    def calibration_cautions(self, calibration: Mapping[str, float]) -> list[str]:
        if calibration["half_width"] == float("inf"):
            return [f"validation has too few rows for {PROMISE} intervals"]
        expected = expected_words(calibration)
        told = f"the {PROMISE} intervals hold {bounds(coverage(calibration))} of the test rows, not {expected}"
        return [] if kept(calibration) else [told]

    def snippet(self, fitted: Mapping[str, Any], names: Sequence[str]) -> str:
        return f"number = logits[0, 0].item() * {fitted['std']!r} + {fitted['mean']!r}"


def half_width(fitted: Mapping[str, Any]) -> float:
    """Of the intervals; endless where validation had too few rows for them."""
    return float("inf") if fitted["half_width"] is None else float(fitted["half_width"])


def span(numbers: "np.ndarray") -> str:
    low, high = numbers.min(), numbers.max()
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"


def rank_of(values: "np.ndarray") -> "Weighted":
    """Mean ranks, (samples, rows), of rows that are there as often as (samples, rows) says."""
    import numpy as np

    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.append(0, np.flatnonzero(np.diff(group[order])) + 1)

    def measure(weights: "np.ndarray") -> "np.ndarray":
        in_group = np.add.reduceat(weights[:, order], starts, axis=1)
        ranks: np.ndarray = (in_group.cumsum(1) - (in_group - 1) / 2)[:, group]
        return ranks

    return measure


def correlation(weights: "np.ndarray", one: "Weighted", other: "Weighted") -> "np.ndarray":
    """Pearson's of both ranks over the weighted rows, (samples,); 0 where one of them is the same in all."""
    import numpy as np

    rows = weights.sum(1, keepdims=True)
    x, y = (rank(weights) - (rows + 1) / 2 for rank in (one, other))  # mean ranks lie around the middle one
    products = [(weights * part).sum(1) for part in (x * y, x * x, y * y)]
    scale = np.sqrt(products[1] * products[2])
    value: np.ndarray = np.divide(products[0], scale, out=np.zeros_like(scale), where=scale > 1e-9)
    return value


OBJECTIVE: "Objective" = Regression()
