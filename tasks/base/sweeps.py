"""What sweeps hand each other."""

from typing import Any, Literal

from pydantic import Field

from tasks.base.records import Difference, Interval, Record

State = Literal["running", "finished", "pruned", "failed"]

ENDED: tuple[State, ...] = ("finished", "pruned", "failed")


class Outcome(Record):
    """How a trial ended, wherever it ran."""

    state: State
    score: float | None = None
    """On the validation rows, in the metric of the sweep; None where the trial did not come to its end."""
    metrics: dict[str, float] = Field(default={})
    """Under the names that MLflow has for single runs: validation/..., cost/..., train/..."""
    reason: str = ""
    """Why it failed, or ended early."""
    answers: str = ""
    """About the validation rows, in the order of the split: see tasks/studies/trials.py."""
    environment: str = ""
    """Digest of all that decides about bits where it ran."""


class Trial(Record):
    number: int
    """From 0 on, which is the configuration as given."""
    values: dict[str, Any]
    """Of the fields that vary, by dotted name; without those that have no effect in it."""
    outcome: Outcome
    started: int
    """Milliseconds since 1970."""
    ended: int | None
    losses: dict[int, float] = Field(default={})
    """By epoch: what the pruner saw, the validation loss or, where that cannot be compared, the score."""

    @property
    def has_ended(self) -> bool:
        return self.outcome.state in ENDED

    @property
    def seconds(self) -> float | None:
        return None if self.ended is None else (self.ended - self.started) / 1000


class SweepResult(Record):
    """What `peft-flow sweep --json` prints."""

    run_id: str
    """The parent of all runs."""
    experiment: str
    status: str
    verdict: str
    """`tuning helped`, `no evidence that tuning helped`, `tuning hurt` or `the configuration as given was best`."""
    task: str
    metric: str
    """Of the validation rows: it picks the best trial."""
    confidence: float
    fields: tuple[str, ...]
    """What varied, by dotted name."""
    trials: tuple[Trial, ...]
    best: int
    """Number of the trial with the best validation score."""
    validation_rows: int
    picked_on: int
    """Validation rows that `corrected` is about: all, or as many as could be kept of each trial."""
    naive: float
    """The best trial's validation score: too good, because it was picked for it."""
    corrected: Interval
    """What a trial that is picked like this scores on rows that it was not picked on."""
    best_run: str
    """MLflow run of the best configuration."""
    given_run: str | None
    """The same of the configuration as given; None where that is the best one, or failed."""
    test_rows: int
    best_test: Interval
    """Of the task's first metric, on the test rows, which no trial has seen."""
    given_test: Interval | None
    gain: Difference | None
    """The best configuration minus the one as given, on the test rows."""
    data_fingerprint: str
    seconds: float

    def trial(self, number: int) -> Trial:
        return next(trial for trial in self.trials if trial.number == number)

    def count(self, state: State) -> int:
        return sum(trial.outcome.state == state for trial in self.trials)
