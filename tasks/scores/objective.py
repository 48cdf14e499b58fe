"""What a task asks of a model's answers, on plain arrays. All else asks an Objective and knows no task by name."""

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from tasks.base.records import Interval
from tasks.base.words import ends, shown_share

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

    @property
    def sign(self) -> int:
        """What a difference is multiplied by, for more to be better."""
        return 1 if self.higher_is_better else -1

    @property
    def is_share(self) -> bool:
        return (self.least, self.most) == (0, 1)

    def shown(self, value: float) -> str:
        return shown_share(value) if self.is_share else f"{value:.3f}"

    def ends(self, interval: Interval) -> tuple[str, str]:
        return ends(interval) if self.is_share else (f"{interval.low:.3f}", f"{interval.high:.3f}")

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
        """Which of the labels each row has, a mask (rows, labels); (rows, 0) for numbers."""

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

    def is_right(self, table: "np.ndarray", labels: "np.ndarray") -> "np.ndarray":
        """Whether each answer is right, (rows,)."""

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


@cache
def objective(task: str) -> Objective:
    """The one of tasks/scores/objectives/TASK.py."""
    found: Objective = import_module(f"tasks.scores.objectives.{task}").OBJECTIVE
    return found
