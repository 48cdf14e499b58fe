"""A number for each text. The table has the predicted number, (rows, 1); labels are the true ones, (rows,)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.base.records import Interval
from tasks.scores.conformal import conformal_quantile
from tasks.scores.linear import ridge
from tasks.scores.objective import ClassWeights, Metric

if TYPE_CHECKING:
    import numpy as np

    from tasks.scores.objective import Objective, Weighted


COVERAGE = 0.9
"""Of the prediction intervals."""


class Regression:
    name = "regression"
    metrics: tuple[Metric, ...] = (
        Metric("mae", "mean absolute error", "MAE", most=float("inf"), higher_is_better=False),
        Metric("rmse", "root mean squared error", "RMSE", most=float("inf"), higher_is_better=False),
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
        return [f"{label:.6g}" for label in labels]

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
        return {**scaling, "half_width": conformal_quantile(abs(predicted - labels), COVERAGE)}

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

    def is_right(self, table: "np.ndarray", labels: "np.ndarray") -> "np.ndarray":
        """Whether the nearest whole number is the label."""
        right: np.ndarray = self.decide(table).round() == labels
        return right

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
