"""What steps hand each other: paths, ids, fingerprints and numbers, never models or data sets."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from tasks.base.files import write_text
from tasks.base.verdict import Verdict, standing


class Record(BaseModel):
    """A frozen record that is also a small JSON file."""

    # JSON knows no NaN and no infinity, and pydantic's own choice, null, cannot be read back: "NaN" can
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="strings")

    def write(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=2) + "\n")


class Source(Record):
    """A model or data set, found: where it is and which content it has."""

    name: str
    """Full Hub id, or absolute path of a local file or folder."""
    revision: str
    """Commit on the Hub; `sha256:...` of the content for local files."""
    is_local: bool
    local_files_only: bool
    """Take it from this machine's cache: the run is offline or the Hub did not answer."""
    test_revision: str | None = None
    """`sha256:...` of the content of `data.test_file`, wherever it lies; None where the test rows are the source's."""
    corrections_revision: str | None = None
    """The same of `data.corrections`; None where there are none."""

    @property
    def content(self) -> str:
        """All that is read, by content: what a key is made from."""
        parts = [self.revision, *([self.test_revision] if self.test_revision else [])]
        return " ".join([*parts, *([f"corrected by {self.corrections_revision}"] if self.corrections_revision else [])])


class Corrections(Record):
    """What came of the rows of `data.corrections` whose `corrected_label` is filled in."""

    used: int
    """Rows of the file that gave at least one row of the data another label."""
    corrected: dict[str, int]
    """Rows of the data that have another label now, by split."""
    confirmed: int
    """Rows of the file with the label that the data have already."""
    unmatched: tuple[str, ...]
    """Rows of the file whose text no row of the data has: their number in it, and how their text begins."""
    in_test: int
    """Rows of the file whose text is a test row's alone: not used."""
    open: int
    """Rows of the file that nobody has filled in."""


class PreparedData(Record):
    """Tokenized splits on disk, as `datasets.load_from_disk` reads them."""

    folder: str
    source: Source
    """The data set that they were made from."""
    task: str = "single_label"
    """What is learned: a file of tasks/scores/objectives."""
    model: Source
    """The foundation model whose tokenizer made them."""
    tokens_key: str = ""
    """Digest of all that decides what a text's tokens are: under the same, they need not be made again."""
    fingerprint: str
    """sha256 over texts, labels and label names of the three splits; equal content, equal fingerprint."""
    test_fingerprint: str
    """The same over the test rows alone: runs that share it were measured on the same rows."""
    label_names: tuple[str, ...]
    """Where the label is a number, the name of its column alone."""
    text_columns: tuple[str, ...]
    slice_columns: tuple[str, ...]
    """Categorical columns that the test split has besides texts and label; on disk they are called `slice NAME`."""
    row_counts: dict[str, int]
    """By split."""
    class_counts: dict[str, tuple[int, ...]]
    """Rows with each label, by split, in the order of label_names; empty tuples where it is a number."""
    truncated: int
    """Rows longer than max_length, over all splits."""
    notes: tuple[str, ...]
    """What the preparation decided on its own, in sentences."""
    corrections: Corrections | None = None
    """What came of `data.corrections`."""

    def rows(self, split: str) -> int:
        return self.row_counts[split]


class Place(Record):
    split: str
    row: int
    """Place in the split as its source has it, from 0."""


class SameText(Record):
    """Rows whose texts are equal once case, Unicode form, spaces and punctuation are set aside."""

    text: str
    """Its first characters."""
    places: tuple[Place, ...]
    """At most 100: first those that are the first in their split and with their label."""
    labels: tuple[str, ...]
    """The label that each place gives the text."""

    @property
    def conflicting(self) -> bool:
        return len(set(self.labels)) > 1


class DataCheck(Record):
    """What is odd about the data, found before anything expensive."""

    same_texts: tuple[SameText, ...]
    """At most 10,000: first those in train and test, then those with several labels; `warnings` count all."""
    duplicates: dict[str, int]
    """Rows of each split whose text an earlier row of the same split has."""
    leaked: dict[str, tuple[int, ...]]
    """Rows of validation and of test whose text is in train."""
    kept_out: dict[str, int] = {}
    """With `data.test_file`: rows of train, and of validation where there is one, left out for their text is in it."""
    near_empty: tuple[Place, ...]
    max_length: int
    """Tokens kept of each text."""
    truncated: dict[str, int]
    """Rows longer than that, by split."""
    lengths: dict[str, tuple[int, ...]]
    """Rows by split in each bin of token lengths before truncation, the longest in the last bin. The edges are
    `length_edges`."""
    length_edges: tuple[int, ...]
    detectable: float | None
    """Smallest accuracy difference that the test rows show with 80 % power; None where none can be shown."""
    warnings: tuple[str, ...]
    """What the user should know, in sentences, loudest first."""


Scores = dict[str, float]
"""Metrics by name; the one that decides comes first. Which they are says the task: tasks/scores/objectives."""


class Evaluation(Record):
    """One classifier measured on the test rows."""

    predictions: str
    """Parquet file with the columns row, label, and what was answered."""
    sha256: str
    scores: Scores
    seconds: float


class Point(Record):
    """Metrics at one optimizer step."""

    step: int
    metrics: dict[str, float]


class TrainedAdapter(Record):
    """An adapter on disk, with its head and tokenizer."""

    folder: str
    sha256: str
    """Of adapter_model.safetensors."""
    probe: str
    """Safetensors file: logits of the first validation rows as they were in memory after training."""
    history: tuple[Point, ...]
    trainable_parameters: int
    total_parameters: int
    target_modules: tuple[str, ...]
    fresh_modules: tuple[str, ...]
    """Parts of the model, its head among them, that no checkpoint held and that started from the run's seed."""
    steps: int
    best_step: int
    fitted: dict[str, Any]
    """What makes answers of logits, found on validation; see `fit` in tasks/scores/objective.py."""
    seconds: float
    trunk_seconds: float
    """What computing the blocks below `adapter.layers` took before; nearly nothing where an earlier run has done it."""
    examples_per_second: float
    padding: float
    """Share of the tokens in training batches that are padding."""
    peak_memory_mb: float
    compute: dict[str, str]
    """Device, threads, precision, optimizer and attention that it was trained with."""


class Interval(Record):
    """A number with the interval that it lies in, at the run's confidence."""

    value: float
    low: float
    high: float


class Difference(Record):
    """One classifier minus another on the same rows."""

    verdict: Verdict
    scores: dict[str, Interval]
    """By metric, the one that decides first; paired bootstrap."""
    p_value: float
    """Of the task's paired test, two-sided."""
    fixed: int
    """Rows that only the first classifier has right; for a number, rows that it is nearer to."""
    broken: int
    """The same of the other."""

    @property
    def primary(self) -> Interval:
        return next(iter(self.scores.values()))


class Rung(Record):
    """One classifier of the ladder, measured on the test rows."""

    name: str
    """`tuned`, `baseline` or a reference's name."""
    scores: dict[str, Interval]
    """By metric, the one that decides first; bootstrap, and Wilson for a share of rows."""
    adapter_gain: Difference | None
    """The adapter minus this one; None for the adapter itself."""

    @property
    def primary(self) -> Interval:
        return next(iter(self.scores.values()))

    @property
    def values(self) -> Scores:
        return {name: interval.value for name, interval in self.scores.items()}


class Slice(Record):
    """Test rows that have something in common."""

    kind: str
    """`tokens`, `negation`, `truncated`, that by which the task sorts labels, or the name of a column."""
    name: str
    rows: int
    small: bool
    """Too few rows to say much."""
    baseline: float
    """Of the foundation model, in the metric that decides."""
    score: Interval
    """Of the adapter."""
    fixed: int
    broken: int
    p_value: float
    """Of the task's paired test against the foundation model."""


class Comparison(Record):
    """What the predictions of all classifiers on the same rows say."""

    folder: str
    task: str = "single_label"
    rows: int
    """Test rows behind it."""
    confidence: float
    """Of all intervals and verdicts."""
    detectable: float | None
    """Smallest accuracy difference that these rows show with 80 % power; None also where the task has no such."""
    ladder: tuple[Rung, ...]
    """Best first."""
    leaked: int
    """Test rows whose text is in train."""
    score_without_leaked: dict[str, float]
    """By rung, in the metric that decides; empty where nothing leaked."""
    calibration: dict[str, float]
    """How far the adapter's answers keep what they promise on the test rows: of classes what the temperature changes,
    of numbers how many lie in their intervals."""
    slices: tuple[Slice, ...]
    untrained_head: bool = True
    """The foundation model's, which then is right by chance alone."""
    chance: float | None = None
    """The metric that decides, of the best answer that is always the same; None where that is not known."""
    cautions: tuple[str, ...] = ()
    """What a reader of the verdict must know besides."""
    names: dict[str, str] = {}
    """What references are called in a sentence, where the task has another word for them."""

    def rung(self, name: str) -> Rung:
        return next(rung for rung in self.ladder if rung.name == name)

    def lead(self, name: str) -> Difference:
        """The adapter minus the classifier of this name."""
        difference = self.rung(name).adapter_gain
        assert difference
        return difference

    @property
    def gain(self) -> Difference:
        """The step from the foundation model: the adapter minus it. The verdict is not about this."""
        return self.lead("baseline")

    @property
    def knew_before(self) -> bool:
        """Whether the foundation model, asked in words before training, was surely better than chance."""
        if "zero_shot" not in self.rivals or self.chance is None:
            return False
        return self.rung("zero_shot").primary.low > self.chance

    @property
    def rivals(self) -> tuple[str, ...]:
        """All that the adapter is compared with, best first; the foundation model is one of them."""
        return tuple(rung.name for rung in self.ladder if rung.name != "tuned")

    @property
    def verdict(self) -> str:
        return self._standing[0]

    @property
    def against(self) -> str:
        """The reference that the verdict is about; where the adapter is better than every one, the strongest."""
        return self._standing[1]

    @property
    def _standing(self) -> tuple[str, str]:
        return standing([(name, self.lead(name).verdict) for name in self.rivals], self.names)


class Logged(Record):
    """What the MLflow run holds at its end."""

    run_id: str
    model_uri: str
    version: str | None
    """Version in the model registry, when tracking.registered_model asks for one."""


class Seconds(Record):
    total: float
    prepare: float
    check: float
    baseline: float
    references: float
    train: float
    tuned: float
    compare: float
    record: float


class RunResult(Record):
    """What `peft-flow finetune --json` prints."""

    run_id: str
    experiment: str
    status: str
    verdict: str
    baseline: Scores
    tuned: Scores
    delta: dict[str, float | int]
    """The adapter minus the foundation model: the metric that decides by its name, its `low` and `high`, `p_value`,
    and the rows `fixed` and `broken`."""
    references: dict[str, Scores]
    adapter_path: str
    adapter_sha256: str
    model_uri: str
    version: str | None
    """In the model registry, when tracking.registered_model asks for one."""
    data_fingerprint: str
    seconds: Seconds


R = TypeVar("R", bound=Record)


def read_record(kind: type[R], path: Path) -> R | None:
    """What `Record.write` wrote; None where there is none, or one of another version."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def digest(value: object) -> str:
    """Short stable name for a JSON value: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
