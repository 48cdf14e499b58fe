"""What retrainings, studies and predictions hand each other."""

from typing import Literal

from tasks.base.records import Difference, Interval, Record
from tasks.settings.config import RunConfig

Outcome = Literal["bit-identical", "equal within noise", "different"]
"""Of a run that was done again."""


class Footprint(Record):
    """What it costs to have an adapter answer, on this machine."""

    latency_ms: float
    """Median milliseconds for one text."""
    memory_mb: float
    """Peak memory of the process, in MiB; with a GPU, of the GPU."""


class Finding(Record):
    """One rule of the gate, and what came of it."""

    rule: str
    passed: bool
    told: str
    """In a sentence."""


class Gate(Record):
    """Everything that the decision rests on."""

    findings: tuple[Finding, ...]
    rows: int
    task: str = "single_label"
    champion: Interval | None
    """In the metric that decides. None where there was no champion to compare with."""
    challenger: Interval | None
    difference: Difference | None
    """Challenger minus champion."""
    corrections: str | None = None
    """What came of `data.corrections`, and what is known of what they brought, in sentences."""

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)

    @property
    def reason(self) -> str:
        """What stood against it; where nothing did, what it has shown."""
        against = [finding.told for finding in self.findings if not finding.passed]
        return "; ".join(against or [self.findings[0].told])


class RetrainResult(Record):
    """What `peft-flow retrain --json` prints."""

    name: str
    """Of the registered model."""
    action: Literal["promoted", "kept", "rejected", "skipped"]
    """`kept`: the champion, and not the challenger; `rejected`: the challenger, and there is no champion."""
    reason: str
    champion: str | None
    """Version that is the champion now."""
    version: str | None
    """The challenger's; None where nothing was trained."""
    run_id: str | None
    gate: Gate | None

    @property
    def subject(self) -> str:
        """What the action was done to: a kept champion, or else the challenger."""
        if self.action == "kept":
            return f"{self.name} version {self.champion}, not version {self.version}"
        return f"{self.name} version {self.version}" if self.version else self.name


class StoredRun(Record):
    """A finished run, as the MLflow store has it."""

    run_id: str
    name: str
    verdict: str
    parameters: dict[str, str]
    test_fingerprint: str
    predictions: str
    """Parquet file with the adapter's predictions for the test rows, downloaded."""


class RunScores(Record):
    run_id: str
    name: str
    scores: dict[str, Interval]
    """By metric, the one that decides first."""

    @property
    def primary(self) -> Interval:
        return next(iter(self.scores.values()))


class RunComparison(Record):
    """What `peft-flow compare --json` prints: two runs' adapters on the same test rows."""

    task: str = "single_label"
    rows: int
    confidence: float
    first: RunScores
    second: RunScores
    difference: Difference
    """The second minus the first."""
    parameters: dict[str, tuple[str | None, str | None]]
    """Those in which the runs differ; None where a run has no such parameter."""


class RecordedRun(Record):
    """A finished run with all that it needs to be done again."""

    run: StoredRun
    config: RunConfig
    environment: str
    """As tasks/base/environment.py describes it."""
    data_fingerprint: str
    adapter_sha256: str


class Change(Record):
    """Something that was not the same when a run was done again; None where it was not recorded, or is not there."""

    kind: Literal["packages", "code", "hardware", "data", "model"]
    name: str
    first: str | None
    second: str | None


class RerunResult(Record):
    """What `peft-flow rerun --json` prints."""

    run_id: str
    """The new run."""
    rerun_of: str
    outcome: Outcome
    changes: tuple[Change, ...]
    """A run can be bit-identical all the same."""
    adapters: tuple[str, str]
    """sha256 of both, the first run's first."""
    comparison: RunComparison | None
    """None where the test rows are not the same."""


class Spread(Record):
    """A number over runs that differ only by seed."""

    mean: Interval
    """Student's t interval."""
    deviation: float
    """Standard deviation of single runs."""
    smallest: float
    largest: float


class RungSpread(Record):
    """One classifier of the ladder, over the seeds."""

    name: str
    scores: dict[str, Spread]
    """By metric, the one that decides first."""

    @property
    def primary(self) -> Spread:
        return next(iter(self.scores.values()))


class SeedRun(Record):
    """In the metric that decides."""

    seed: int
    run_id: str
    verdict: str
    score: float
    gain: float
    """The adapter minus the foundation model."""
    lead: float
    """The same against the reference that the verdict over all seeds is about."""
    adapter_path: str


class SeedsResult(Record):
    """What `peft-flow finetune --seeds 3 --json` prints."""

    run_id: str
    """The parent of the seeds' runs."""
    experiment: str
    status: str
    verdict: str
    """Better or worse only where every seed's run says so of the same reference."""
    against: str
    """The reference that it is about; where the adapters are better than every one, the strongest."""
    task: str = "single_label"
    confidence: float
    rows: int
    """Test rows of each run."""
    runs: tuple[SeedRun, ...]
    gain: Spread
    """The adapter minus the foundation model, in the metric that decides."""
    lead: Spread
    """The same against the reference that the verdict is about."""
    cautions: tuple[str, ...]
    """What a reader of the verdict must know besides, with the seeds of which it is true."""
    ladder: tuple[RungSpread, ...]
    """Best mean first."""
    noise: float
    """How far apart the scores of two runs stay that differ only by seed."""
    pairs: int
    told_apart: int
    """Pairs of seeds whose adapters a paired test tells apart."""
    data_fingerprint: str
    seconds: float

    def rung(self, name: str) -> RungSpread:
        return next(rung for rung in self.ladder if rung.name == name)


class CurveRun(Record):
    """One run of a learning curve, in the metric that decides."""

    seed: int
    run_id: str
    verdict: str
    score: float
    adapter_path: str


class CurvePoint(Record):
    """What the same configuration scored with so many training rows."""

    rows: int
    score: Spread
    runs: tuple[CurveRun, ...]


class Doubling(Record):
    """What twice as many training rows change in the metric that decides, after a power law through smaller numbers."""

    rows: int
    """The larger number."""
    change: Interval | None
    """Of the mean over seeds; None where not even an interval can be had."""
    unknown: str
    """Why it cannot be told; empty where it can."""


class LearningCurveResult(Record):
    """What `peft-flow learning-curve --json` prints."""

    run_id: str
    """The parent of all runs."""
    experiment: str
    status: str
    verdict: str
    """What twice the rows would bring, in few words."""
    task: str
    confidence: float
    rows: int
    """Test rows of each run."""
    points: tuple[CurvePoint, ...]
    """Fewest training rows first; the last has all of them."""
    next: Doubling
    """From all rows to twice as many."""
    check: Doubling
    """What the same fit says, without the last point, about the step to the last point."""
    data_fingerprint: str
    """Of the first run with all rows."""
    seconds: float


class PredictionResult(Record):
    """What `peft-flow predict --json` prints."""

    output: str
    rows: int
    """Rows in the output; those that were set aside are not."""
    rejected: int
    rejected_path: str | None
    """Where they are, if there are any."""
    abstained: int
    labels: dict[str, int]
    """Rows that got each label, in the order of the classes."""
    model_version: str
    sha256: str | None
    """Of the output; None for standard output."""


class DriftTest(Record):
    """One difference between recent rows and those that the model was made with, and whether there is any."""

    name: str
    """`features`, `lengths`, `labels`, `confidence`, `abstentions`, or the metric that decides."""
    recent_rows: int
    known_rows: int
    recent: float | None
    """Median, share or score; None where it takes more than one number."""
    known: float | None
    distance: float
    """How far apart both are, 0 to 1: see `distance` in tasks/monitoring/looks.py."""
    p_value: float
    adjusted_p_value: float
    """After Holm: all tests of the monitoring are counted."""
    found: bool
    detectable: float | None
    """Smallest share of drifted rows that so many rows show with 80 % power; None where they show none."""
    drift: str
    """What those rows do, in words."""


class MonitorResult(Record):
    """What `peft-flow monitor --json` prints."""

    run_id: str
    """Of the monitoring, not of the model."""
    name: str
    """Of the registered model."""
    version: str
    verdict: str
    """`drift: features, lengths`, `no drift found`, or why nothing can be said."""
    inputs: str
    compared_with: str
    """How many of which rows of the model its texts were compared with, in words."""
    drifted: tuple[str, ...]
    """Names of the tests that found one."""
    confidence: float
    tests: tuple[DriftTest, ...]
    task: str = "single_label"
    rows: int
    """Of the inputs, that could be read."""
    examined: int
    """Drawn from them, each text once."""
    copies: int
    """Rows with the text of an earlier one."""
    learned: int
    """Of those examined, rows whose text the model has learned from."""
    rejected: int
    """Rows that could not be read or have no text."""
    predicted: int
    """Of those examined, rows that brought the model's answers with them."""
    labelled: int
    """Of those examined, rows whose true label is known, and whose text the model has not learned from."""
    score: Interval | None
    """Of these rows, in the metric that decides; None where no label came back."""
    test_score: Interval
    """The same of the model's test rows."""
    label_shares: dict[str, tuple[float, float]]
    """By label: of the recent answers, and of those about the test rows."""
    strangest: tuple[str, ...]
    """Recent texts that a drift consists of; empty where the features show none."""
    notes: tuple[str, ...]
    """What a reader must know besides, in sentences."""
    seconds: float
