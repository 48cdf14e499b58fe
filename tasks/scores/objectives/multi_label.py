"""Any number of labels for each text. The table is (rows, 2 * labels): the probability of each label, then whether it
is given (0 or 1), which its own threshold decides; the truth is 0 or 1, (rows, labels)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.base.records import Interval
from tasks.base.words import counted
from tasks.scores.classes import suspicion
from tasks.scores.linear import logistic
from tasks.scores.metrics import PROBABILITY_FLOOR
from tasks.scores.objective import ClassWeights, Metric
from tasks.scores.statistics import binned, gap
from tasks.scores.thresholds import best_threshold

if TYPE_CHECKING:
    import numpy as np

    from tasks.scores.objective import Objective, Weighted


NO_LABEL = "(none)"

FEW_ROWS = 20
"""Of a set of labels: a tenth of them would not fill a split with two."""

SHUFFLES = 10_000
"""Of the paired test, whose smallest p is one in so many."""


class MultiLabel:
    name = "multi_label"
    metrics: tuple[Metric, ...] = (
        Metric("micro_f1", "micro-F1", "micro-F1"),
        Metric("macro_f1", "macro-F1", "macro-F1"),
        Metric("exact_match", "exact match", "exact"),
        Metric("hamming_loss", "Hamming loss", "Hamming", higher_is_better=False),
        Metric("average_precision", "mean average precision", "mAP", by_log_odds=True),
        Metric("log_loss", "log loss (nats)", "loss", most=float("inf"), higher_is_better=False),
    )
    test = "paired randomization"
    problem_type = "multi_label_classification"
    loss = "binary_cross_entropy"
    activation = "sigmoid"
    one_class = False
    decided_on_validation = True

    def words(self, labels: "np.ndarray", names: Sequence[str]) -> list[str]:
        return [", ".join(names[i] for i in row.nonzero()[0]) or NO_LABEL for row in labels]

    def indicator(self, labels: "np.ndarray", outputs: int) -> "np.ndarray":
        return labels > 0

    def strata(self, labels: "np.ndarray") -> "np.ndarray":
        """Rows with the same labels; where these are few, those with the same rarest label among them."""
        import numpy as np

        sets, of_row, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
        totals = labels.sum(0)
        rarest = np.where(sets.any(1), np.where(sets > 0, totals, len(labels) + 1).argmin(1), labels.shape[1])
        groups = np.where(counts < FEW_ROWS, rarest, labels.shape[1] + 1 + np.arange(len(sets)))
        strata: np.ndarray = np.unique(groups[of_row.reshape(-1)], return_inverse=True)[1]
        return strata

    def scaling(self, labels: "np.ndarray") -> dict[str, Any]:
        return {}

    def fit(
        self, logits: "np.ndarray", labels: "np.ndarray", scaling: dict[str, Any], calibrated: bool = True
    ) -> dict[str, Any]:
        from scipy.special import expit

        return self.decision(expit(logits.astype(float)), labels)

    def weights(self, labels: "np.ndarray", names: Sequence[str], asked: ClassWeights) -> list[float] | None:
        """Of each label where a row has it, beside 1 where it has not."""
        if asked == "none":
            return None
        if asked == "balanced":
            counts = labels.sum(0)
            return [float((len(labels) - count) / count) if count else 1.0 for count in counts.tolist()]
        return [asked.get(name, 1.0) for name in names]

    def decision(self, outputs: "np.ndarray", labels: "np.ndarray") -> dict[str, Any]:
        columns = zip(outputs.T, labels.T, strict=True)
        return {"thresholds": [best_threshold(probability, truth) for probability, truth in columns]}

    def constant(self, labels: "np.ndarray", outputs: int) -> "np.ndarray":
        shares: np.ndarray = labels.mean(0)
        return shares

    def learn(
        self, known: Any, labels: "np.ndarray", asked: Sequence[Any], outputs: int, grid: Sequence[float], seed: int
    ) -> "list[np.ndarray]":
        """Each label against the rest."""
        import numpy as np

        by_label = [logistic(known, labels[:, i].astype(int), asked, 2, grid, seed) for i in range(outputs)]
        return [np.stack([tables[place][:, 1] for tables in by_label], axis=1) for place in range(len(asked))]

    def among(self, table: "np.ndarray", theirs: Sequence[str], ours: Sequence[str]) -> "np.ndarray":
        import numpy as np

        result = np.zeros((len(table), 2 * len(ours)), table.dtype)
        for place, name in enumerate(ours):
            if name in theirs:
                there = list(theirs).index(name)
                result[:, [place, len(ours) + place]] = table[:, [there, len(theirs) + there]]
        return result

    def decide(self, table: "np.ndarray") -> "np.ndarray":
        decided: np.ndarray = table[:, table.shape[1] // 2 :].astype(int)
        return decided

    def is_right(self, table: "np.ndarray", labels: "np.ndarray") -> "np.ndarray":
        """Whether a row has all of its labels and no other."""
        right: np.ndarray = (self.decide(table) == labels).all(1)
        return right

    def scores(self, table: "np.ndarray", labels: "np.ndarray") -> dict[str, float]:
        import numpy as np

        found = self.weighted(table, labels)(np.ones((1, len(labels))))[0].tolist()
        return {metric.name: value for metric, value in zip(self.metrics, found, strict=True)}

    def weighted(self, table: "np.ndarray", labels: "np.ndarray") -> "Weighted":
        """A label that the rows have and a resample misses does not count in its means over labels; one that no row
        has counts as 0 in macro-F1, and not at all in the mean average precision."""
        import numpy as np

        given, probability = self.decide(table), table[:, : table.shape[1] // 2].astype(float)
        truth, rows = labels.astype(bool), len(labels)
        likely = np.where(truth, probability, 1 - probability)
        by_row = np.stack([self.is_right(table, labels), (given != truth).mean(1)], axis=1)
        by_row = np.column_stack([by_row, -np.log(np.clip(likely, PROBABILITY_FLOOR, 1)).mean(1)])
        there, precision = (
            truth.any(0),
            [ranked_precision(probability[:, i], truth[:, i]) for i in np.flatnonzero(truth.any(0))],
        )

        def measure(weights: "np.ndarray") -> "np.ndarray":
            hits, said, actual = (weights @ part for part in (given * truth, given, truth.astype(int)))
            micro = 2 * hits.sum(1) / np.maximum(said.sum(1) + actual.sum(1), 1)
            by_label = 2 * hits / np.maximum(said + actual, 1)
            counts = ~((actual == 0) & there)
            macro = (by_label * counts).sum(1) / np.maximum(counts.sum(1), 1)
            ranked = (
                np.stack([of_label(weights) for of_label in precision], axis=1)
                if precision
                else np.zeros((len(weights), 0))
            )
            met = ~np.isnan(ranked)
            mean_precision = np.nansum(ranked, axis=1) / np.maximum(met.sum(1), 1)
            exact, hamming, loss = (weights @ by_row / rows).T
            return np.stack([micro, macro, exact, hamming, mean_precision, loss], axis=1)

        return measure

    def interval(self, table: "np.ndarray", labels: "np.ndarray", confidence: float) -> Interval | None:
        return None

    def compared(self, new: "np.ndarray", old: "np.ndarray", labels: "np.ndarray") -> tuple[int, int, float]:
        is_right, was_right = self.is_right(new, labels), self.is_right(old, labels)
        fixed, broken = int((is_right & ~was_right).sum()), int((was_right & ~is_right).sum())
        return fixed, broken, randomization_p_value(self.decide(new), self.decide(old), labels)

    def detectable(self, rows: int, confidence: float) -> float | None:
        return None

    # --- what people read

    answers = "probabilities"
    power_known = False
    titles: Mapping[str, str] = {"majority": "label frequencies"}
    purpose = "gives text any number of the labels"
    head_taken_as = "its labels were taken to be, in this order,"
    conflict = "different sets of labels"
    label_word = "label"
    loss_title = "binary cross-entropy (nats)"
    score_title = "micro-F1"
    slice_word = "on"
    flip_note = "A row is right where it has all of its labels and no other."
    flip_order = "These are those that the adapter is surest of; a row's probability is that of its least sure label"
    mistakes_title = "Most confident mistakes"
    no_mistake = "The adapter has every label of every test row right."
    suspicion_note = (
        "Rows with a label, or without one, that the adapter finds more likely the other way, by confident learning "
        "for each label by itself, and for which every trained reference that beats chance says so too."
    )
    pictures: tuple[str, ...] = ("labels", "label_reliability")

    def errors(self, table: "np.ndarray", labels: "np.ndarray") -> "np.ndarray":
        wrong: np.ndarray = (self.decide(table) != labels).sum(1)
        return wrong

    def parts(self, labels: "np.ndarray", names: Sequence[str]) -> "tuple[str, list[tuple[str, np.ndarray]]]":
        """A row is in the part of each of its labels. Rows without any are no part: no answer to them has an F1."""
        return "label", [(name, labels[:, i] == 1) for i, name in enumerate(names)]

    def truth(self, labels: "np.ndarray", names: Sequence[str]) -> dict[str, Any]:
        return {"true_label": self.words(labels, names)}

    def sureness(self, table: "np.ndarray") -> "np.ndarray":
        """Probability of each decision, (rows, labels)."""
        import numpy as np

        probability, given = np.split(table, 2, axis=1)
        return np.where(given == 1, probability, 1 - probability)

    def said(self, table: "np.ndarray", labels: "np.ndarray", names: Sequence[str]) -> dict[str, Any]:
        return {"label": self.words(self.decide(table), names), "probability": self.sureness(table).min(1)}

    def flips(self, new: "np.ndarray", old: "np.ndarray", labels: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
        better = self.is_right(new, labels).astype(int) - self.is_right(old, labels)
        return better, self.sureness(new).min(1)

    def flip_words(self, fixed: int, broken: int) -> str:
        return f"fixed {counted(fixed, 'row')} and broke {broken:,}"

    def mistakes(
        self, table: "np.ndarray", labels: "np.ndarray", names: Sequence[str]
    ) -> "tuple[np.ndarray, dict[str, Any]]":
        """Where it is surest of a label that is wrong."""
        surest = (self.sureness(table) * (self.decide(table) != labels)).max(1)
        return surest, {"tuned_label": self.words(self.decide(table), names), "tuned_probability": surest}

    def suspects(
        self,
        tables: "Mapping[str, np.ndarray]",
        labels: "np.ndarray",
        names: Sequence[str],
        fitted: Mapping[str, Any],
        confidence: float,
    ) -> "tuple[np.ndarray, np.ndarray, dict[str, Any]]":
        """Of each row that label whose margin is the largest; all that are suspect are turned."""
        import numpy as np

        margins, place = np.zeros(labels.shape), np.arange(len(labels))
        for i in range(labels.shape[1]):
            probability = tables["tuned"][:, i].astype(float)
            said = {name: self.decide(table)[:, i] for name, table in tables.items()}
            both = np.stack([1 - probability, probability], axis=1)
            found = suspicion(both, said, labels[:, i].astype(int), confidence)
            margins[:, i] = np.where(found.suspect, found.margin, 0)
        worst = margins.argmax(1)
        suspect = margins > 0
        probability = tables["tuned"][place, worst].astype(float)
        given = np.where(labels[place, worst] == 1, probability, 1 - probability)
        columns = {
            "given_label": self.words(labels, names),
            "likely_label": self.words(np.where(suspect, 1 - labels, labels), names),
            "given_label_probability": given,
            "likely_label_probability": 1 - given,
        }
        largest: np.ndarray = margins.max(1)
        return largest, largest > 0, columns

    def by_label(self, table: "np.ndarray", labels: "np.ndarray") -> dict[str, Any]:
        import numpy as np
        from sklearn.metrics import precision_recall_fscore_support

        probability, truth = table[:, : labels.shape[1]].astype(float), labels.astype(bool)
        precision, recall, f1, rows = precision_recall_fscore_support(labels, self.decide(table), zero_division=0)
        whole = np.ones((1, len(labels)))
        ranked = [
            float(ranked_precision(probability[:, i], truth[:, i])(whole)[0]) if truth[:, i].any() else 0.0
            for i in range(labels.shape[1])
        ]
        return {
            "precision": precision.tolist(),
            "recall": recall.tolist(),
            "f1": f1.tolist(),
            "rows": rows.astype(int).tolist(),
            "average_precision": ranked,
            "calibration_error": [gap(binned(*pair)) for pair in zip(probability.T, truth.T, strict=True)],
        }

    def sets_by_label(
        self, table: "np.ndarray", labels: "np.ndarray", fitted: Mapping[str, Any], confidence: float
    ) -> dict[str, Any]:
        return {}

    def chance(self, class_counts: Mapping[str, Sequence[int]]) -> tuple[float, str] | None:
        return None

    def calibration(
        self, table: "np.ndarray", labels: "np.ndarray", fitted: Mapping[str, Any], confidence: float
    ) -> dict[str, float]:
        """Expected calibration error over every label of every row."""
        return {"error": gap(binned(table[:, : labels.shape[1]].ravel(), labels.ravel()))}

    def calibration_table(self, calibration: Mapping[str, float]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        return ("probabilities", "expected calibration error"), [
            ("of every label of every test row", f"{calibration['error']:.3f}")
        ]

    def calibration_words(self, calibration: Mapping[str, float]) -> str:
        return f"Calibration error {calibration['error']:.3f}"

    def calibration_note(self, calibration: Mapping[str, float]) -> str:
        return (
            "A text gets each label whose probability reaches the label's own threshold, which was chosen on "
            f"validation for the best F1. The expected calibration error over all labels of the test rows is "
            f"{calibration['error']:.3f}."
        )

    def calibration_cautions(self, calibration: Mapping[str, float]) -> list[str]:
        return []

    def snippet(self, fitted: Mapping[str, Any], names: Sequence[str]) -> str:
        thresholds = dict(zip(names, fitted["thresholds"], strict=True))
        return (
            f"thresholds = {thresholds!r}\n"
            "probabilities = dict(zip(thresholds, logits.sigmoid()[0].tolist()))\n"
            "labels = [name for name, probability in probabilities.items() if probability >= thresholds[name]]"
        )


def ranked_precision(probability: "np.ndarray", truth: "np.ndarray") -> "Weighted":
    """Average precision of one label, (samples,), of rows weighted by (samples, rows); NaN where none has the label.

    The sum over all thresholds of the precision there times the recall that it adds; rows of equal probability come in
    together. Zhu, Recall, precision and average precision (2004), as scikit-learn has it.
    """
    import numpy as np

    order = np.argsort(-probability, kind="stable")
    ranked, hits = probability[order], truth[order].astype(float)
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)

    def measure(weights: "np.ndarray") -> "np.ndarray":
        drawn = weights[:, order]
        found, asked = (drawn * hits).cumsum(1)[:, ends], drawn.cumsum(1)[:, ends]
        new = np.diff(found, axis=1, prepend=0)
        with np.errstate(invalid="ignore"):
            value: np.ndarray = (new * found / np.maximum(asked, 1)).sum(1) / found[:, -1]
        return value

    return measure


def randomization_p_value(new: "np.ndarray", old: "np.ndarray", labels: "np.ndarray") -> float:
    """Two-sided paired test of two decisions' micro-F1, (rows, labels) each: were they one, their answers to a row
    could be exchanged, row by row, by a coin; how often is the difference then as large?

    Noreen, Computer Intensive Methods for Testing Hypotheses (1989); for F1 Yeh, COLING 2000. The same coins each time.
    """
    import numpy as np

    differ = (new != old).any(1)
    if not differ.any():
        return 1.0
    both = [(part * labels).sum(1) for part in (new, old)], [part.sum(1) for part in (new, old)]
    hits, said = (one + other for one, other in both)
    more_hits, more_said = ((one - other)[differ] for one, other in both)
    actual, generator = labels.sum(), np.random.default_rng(0)

    def difference(coins: "np.ndarray") -> "np.ndarray":
        moved_hits, moved_said = coins @ more_hits, coins @ more_said
        first, second = (
            (hits.sum() + sign * moved_hits) / np.maximum((said.sum() + sign * moved_said) / 2 + actual, 1)
            for sign in (1, -1)
        )
        return first - second

    observed = abs(difference(np.ones((1, int(differ.sum()))))[0])
    size, reached = max(1, 2_000_000 // int(differ.sum())), 0
    for start in range(0, SHUFFLES, size):
        coins = generator.choice([-1.0, 1.0], size=(min(size, SHUFFLES - start), int(differ.sum())))
        reached += int((abs(difference(coins)) >= observed - 1e-12).sum())
    return (1 + reached) / (1 + SHUFFLES)


OBJECTIVE: "Objective" = MultiLabel()
