"""What a task asks of a model's answers, on plain arrays. All else asks an Objective and knows no task by name."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

from tasks.base.records import Interval
from tasks.base.words import decimals, ends, shown_share
from tasks.settings.rivals import SHORT_TITLES, TITLES, in_a_sentence
from tasks.settings.sections import TaskName

ClassWeights = Literal["none", "balanced"] | dict[str, float]

if TYPE_CHECKING:
    import numpy as np

    Weighted = Callable[[np.ndarray], np.ndarray]
    """Metrics (samples, metrics) of the rows weighted by (samples, rows): how often a resample has drawn each."""


class Metric(NamedTuple):
    """A number that says how good answers are."""

    name: str
    """In MLflow, in files and in the configuration."""
    title: str
    """In a sentence."""
    short_title: str
    """Where there is little room."""
    least: float = 0.0
    most: float = 1.0
    """The ends beyond which it cannot be."""
    higher_is_better: bool = True
    by_log_odds: bool = False
    """Whether its interval is better symmetric in log-odds than the middle of the resamples."""
    in_units: bool = False
    """Of the labels: it can be of any size."""

    @property
    def sign(self) -> int:
        """What a difference is multiplied by, for more to be better."""
        return 1 if self.higher_is_better else -1

    @property
    def is_share(self) -> bool:
        return (self.least, self.most) == (0, 1)

    @property
    def direction(self) -> str:
        """What a reader must know beside its title."""
        return "" if self.higher_is_better else " (lower is better)"

    def shown(self, value: float) -> str:
        return shown_share(value) if self.is_share else f"{value:,.{self.digits(value)}f}"

    def digits(self, value: float) -> int:
        """After the point, of this value and of what is shown beside it."""
        return decimals(value) if self.in_units else 3

    def ends(self, interval: Interval) -> tuple[str, str]:
        if self.is_share:
            return ends(interval)
        digits = self.digits(interval.value)
        return f"{interval.low:,.{digits}f}", f"{interval.high:,.{digits}f}"

    def limits(self, values: Sequence[float]) -> tuple[float, float]:
        """Of an axis with these on it: zoomed, but never until noise looks like a gain."""
        low, high = min(values), max(values)
        least = 0.1 if self.is_share else 0.1 * max(abs(low), abs(high), 1e-9)
        margin = max(0.06 * (high - low), (least - (high - low)) / 2)
        edge = least / 10  # room for a point that lies on the end
        return max(self.least - edge, low - margin), min(self.most + edge, high + margin)

    def bounds(self, interval: Interval) -> str:
        return f"{self.shown(interval.value)} ({'-'.join(self.ends(interval))})"


class Objective(Protocol):
    """One task. Its answers are a table, (rows, ...): one line for each row, in a form that only the task knows."""

    name: str
    metrics: tuple[Metric, ...]
    """The first decides: the verdict, the best checkpoint and the order of the ladder hang on it."""
    test: str
    """The paired test, as people call it."""
    problem_type: str
    """The task, as transformers calls it."""
    loss: str
    """A function of tasks/models/losses.py."""
    activation: str
    """What makes answers of logits: `softmax`, `sigmoid` or `scale`, see tasks/models/serving.py."""
    one_class: bool
    """Whether a row has one of a few classes, and no other."""
    decided_on_validation: bool
    """Whether answers need something that is chosen on the validation rows, such as thresholds."""

    # --- labels

    def words(self, labels: "np.ndarray", names: Sequence[str]) -> list[str]:
        """What people call each of (rows, ...) labels or decisions."""

    def indicator(self, labels: "np.ndarray", outputs: int) -> "np.ndarray":
        """Which of the labels each row has, or is given, a mask (rows, labels); (rows, 0) for numbers."""

    def strata(self, labels: "np.ndarray") -> "np.ndarray":
        """Groups of rows, (rows,), numbered from 0, of which each split should hold its share."""

    # --- learning

    def scaling(self, labels: "np.ndarray") -> dict[str, Any]:
        """What the loss and the answers must know of the training labels."""

    def fit(
        self, logits: "np.ndarray", labels: "np.ndarray", scaling: dict[str, Any], calibrated: bool = True
    ) -> dict[str, Any]:
        """What the answers need besides, found on validation, and `scaling`; (rows, outputs) logits. Without
        `calibrated` only what answers cannot do without."""

    def weights(self, labels: "np.ndarray", names: Sequence[str], asked: ClassWeights) -> list[float] | None:
        """What each of `names` counts in the loss, of the training labels; None for all the same."""

    def decision(self, outputs: "np.ndarray", labels: "np.ndarray") -> dict[str, Any]:
        """The same for outputs that are answers already, as those of the references, but for what is decided."""

    def constant(self, labels: "np.ndarray", outputs: int) -> "np.ndarray":
        """Outputs, (outputs,), of what knows nothing but the training labels."""

    def learn(
        self, known: Any, labels: "np.ndarray", asked: Sequence[Any], outputs: int, grid: Sequence[float], seed: int
    ) -> "list[np.ndarray]":
        """Outputs, (rows, outputs), for each of `asked`, of a linear model of the features `known`, (rows, features);
        its penalty is the best of `grid` (inverse strengths) in cross-validation."""

    # --- answers

    def among(self, table: "np.ndarray", theirs: Sequence[str], ours: Sequence[str]) -> "np.ndarray":
        """Answers about the labels `theirs` as answers about `ours`; those that it does not know it never gives."""

    def decide(self, table: "np.ndarray") -> "np.ndarray":
        """What the answers come down to, (rows, ...), in the form of the labels."""

    def scores(self, table: "np.ndarray", labels: "np.ndarray") -> dict[str, float]:
        """By metric, in their order."""

    def weighted(self, table: "np.ndarray", labels: "np.ndarray") -> "Weighted":
        """The same for many resamples of the rows at once."""

    def interval(self, table: "np.ndarray", labels: "np.ndarray", confidence: float) -> Interval | None:
        """Of the first metric, where there is a better one than the bootstrap's."""

    def compared(self, new: "np.ndarray", old: "np.ndarray", labels: "np.ndarray") -> tuple[int, int, float]:
        """Rows on which only `new` is better, those on which only `old` is, and the two-sided p of the paired test."""

    def detectable(self, rows: int, confidence: float) -> float | None:
        """Smallest difference of the first metric that so many rows show with 80 % power; None where none, or where
        it is not known before anything is measured."""

    # --- what people read

    answers: str
    """What the table of answers holds: in a sentence, and as the column of prediction files."""
    power_known: bool
    """Whether `detectable` can be known at all."""
    titles: Mapping[str, str]
    """What references are called, by name, where it is not as in tasks/settings/rivals.py."""
    purpose: str
    """What an adapter does, before the names of its labels."""
    head_taken_as: str
    """How the head that came with a foundation model is understood, before the same."""
    conflict: str
    """What a text has whose rows do not agree about it."""
    label_word: str
    """What one of the labels is called."""
    loss_title: str
    """On the axis of the training loss."""
    score_title: str
    """On the axis of the first metric over the training."""
    slice_word: str
    """Between the first metric of a slice and its number of rows."""
    flip_note: str
    """What rows fixed and broken are, in a sentence; empty where it goes without saying."""
    flip_order: str
    """Which of them come first."""
    mistakes_title: str
    no_mistake: str
    suspicion_note: str
    """When a label counts as likely wrong."""
    pictures: tuple[str, ...]
    """Of tasks/evaluation/answer_plots.py."""

    def errors(self, table: "np.ndarray", labels: "np.ndarray") -> "np.ndarray":
        """How wrong each answer is, (rows,), 0 where it is right."""

    def parts(self, labels: "np.ndarray", names: Sequence[str]) -> "tuple[str, list[tuple[str, np.ndarray]]]":
        """Rows with like labels: what they are sorted by; then the name and a mask, (rows,), of each part."""

    def truth(self, labels: "np.ndarray", names: Sequence[str]) -> dict[str, Any]:
        """Columns of a table of single rows: what is true of each."""

    def said(self, table: "np.ndarray", labels: "np.ndarray", names: Sequence[str]) -> dict[str, Any]:
        """The same: what was answered. Their names follow that of the classifier."""

    def flips(self, new: "np.ndarray", old: "np.ndarray", labels: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
        """(rows,) each: 1 where only `new` is better, -1 where only `old` is, as `compared` counts them, and else 0;
        then how much each deserves to be looked at."""

    def flip_words(self, fixed: int, broken: int) -> str:
        """What somebody has done to these numbers of rows."""

    def mistakes(
        self, table: "np.ndarray", labels: "np.ndarray", names: Sequence[str]
    ) -> "tuple[np.ndarray, dict[str, Any]]":
        """How much each row deserves to be looked at if it is wrong, (rows,); and columns about the answers."""

    def suspects(
        self,
        tables: "Mapping[str, np.ndarray]",
        labels: "np.ndarray",
        names: Sequence[str],
        fitted: Mapping[str, Any],
        confidence: float,
    ) -> "tuple[np.ndarray, np.ndarray, dict[str, Any]]":
        """By how much each label is likely wrong, (rows,); whether it is, (rows,); and columns about it. `tables` are
        those of the adapter, `tuned`, whose `fitted` is given, and of others that learned from train."""

    def by_label(self, table: "np.ndarray", labels: "np.ndarray") -> dict[str, Any]:
        """For programs, measures of each label as lists; empty where there are no labels to tell apart."""

    def sets_by_label(
        self, table: "np.ndarray", labels: "np.ndarray", fitted: Mapping[str, Any], confidence: float
    ) -> dict[str, Any]:
        """The same of sets of labels that hold the true one as often as promised, with the rows that have each label:
        `coverage`, the ends of its interval, and `set_size`, None where no row has the label; empty without sets."""

    def chance(self, class_counts: Mapping[str, Sequence[int]]) -> tuple[float, str] | None:
        """The first metric of the best answer that is always the same, and what that is, in words."""

    def calibration(
        self, table: "np.ndarray", labels: "np.ndarray", fitted: Mapping[str, Any], confidence: float
    ) -> dict[str, float]:
        """How far the answers keep what they promise, by name, as in MLflow."""

    def calibration_table(self, calibration: Mapping[str, float]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The same for the page: header and rows."""

    def calibration_words(self, calibration: Mapping[str, float]) -> str:
        """The same where there is little room."""

    def calibration_note(self, calibration: Mapping[str, float]) -> str:
        """The same for who uses the adapter."""

    def calibration_cautions(self, calibration: Mapping[str, float]) -> list[str]:
        """What of it a reader of the verdict must know."""

    def snippet(self, fitted: Mapping[str, Any], names: Sequence[str]) -> str:
        """Python code that makes answers of `logits`."""


def reference_title(task: Objective, name: str) -> str:
    """What people call a classifier of the ladder in tables."""
    return task.titles.get(name) or TITLES[name]


def short_reference_title(task: Objective, name: str) -> str:
    """The same where there is little room."""
    title = task.titles.get(name)
    return in_a_sentence(title) if title else SHORT_TITLES[name]


def selection_metric(task: Objective, named: str | None) -> Metric:
    """What the validation rows choose by: the metric `named`, or the task's first."""
    return next((one for one in task.metrics if one.name == named), task.metrics[0])


@cache
def objective(task: str) -> Objective:
    """The one of tasks/scores/objectives/TASK.py."""
    found: Objective = import_module(f"tasks.scores.objectives.{task}").OBJECTIVE
    return found


@cache
def first_metrics() -> Mapping[str, Metric]:
    """By name, the metric that decides of each task there is."""
    tasks = [objective(name) for name in get_args(TaskName) if name != "auto"]
    return {task.metrics[0].name: task.metrics[0] for task in tasks}
