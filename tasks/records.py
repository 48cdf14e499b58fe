"""What steps hand each other: paths, ids, fingerprints and numbers, never models or data sets."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

Verdict = Literal["improved", "no evidence", "worse"]


class Record(BaseModel):
    """A frozen record that is also a small JSON file."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

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


class PreparedData(Record):
    """Tokenized splits on disk, as `datasets.load_from_disk` reads them."""

    folder: str
    source: Source
    """The data set that they were made from."""
    model: Source
    """The foundation model whose tokenizer made them."""
    fingerprint: str
    """sha256 over texts, labels and label names of the three splits; equal content, equal fingerprint."""
    label_names: tuple[str, ...]
    text_columns: tuple[str, ...]
    class_counts: dict[str, tuple[int, ...]]
    """Rows of each class, by split, in the order of label_names."""
    truncated: int
    """Rows longer than max_length, over all splits."""
    notes: tuple[str, ...]
    """What the preparation decided on its own, in sentences."""

    def rows(self, split: str) -> int:
        return sum(self.class_counts[split])


class Scores(Record):
    """The metrics that every classifier is measured by."""

    accuracy: float
    macro_f1: float
    log_loss: float
    """Mean negative log probability of the true class, in nats."""


class Evaluation(Record):
    """One classifier measured on the test rows."""

    predictions: str
    """Parquet file with the columns row, label and probabilities."""
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
    seconds: float
    examples_per_second: float
    peak_memory_mb: float


class Interval(Record):
    """A difference, tuned minus baseline, with its paired bootstrap interval."""

    value: float
    low: float
    high: float


class Comparison(Record):
    """What two prediction files on the same rows say about each other."""

    folder: str
    rows: int
    """Test rows behind it."""
    verdict: Verdict
    baseline: Scores
    tuned: Scores
    accuracy: Interval
    macro_f1: Interval
    log_loss: Interval
    p_value: float
    """Exact two-sided McNemar."""
    fixed: int
    broken: int
    references: dict[str, Scores]


class Delta(Record):
    accuracy: float
    low: float
    high: float
    p_value: float
    fixed: int
    broken: int


class Seconds(Record):
    total: float
    prepare: float
    baseline: float
    train: float
    tuned: float


class RunResult(Record):
    """What `peft-flow finetune --json` prints."""

    run_id: str
    experiment: str
    status: str
    verdict: Verdict
    baseline: Scores
    tuned: Scores
    delta: Delta
    references: dict[str, dict[str, float]]
    adapter_path: str
    adapter_sha256: str
    model_uri: str
    data_fingerprint: str
    seconds: Seconds


def write_text(path: Path, text: str) -> None:
    """`path` holds `text`, whole or not at all: a process killed in between leaves the old file."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def digest(value: object) -> str:
    """Short stable name for a JSON value: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
