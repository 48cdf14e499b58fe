"""Prediction files, and the adapter on the test rows as it lies on disk."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect import task

from tasks.base.files import whole
from tasks.base.fresh_process import RELOAD, run_offline
from tasks.base.records import Evaluation, PreparedData, TrainedAdapter, file_sha256, read_record
from tasks.base.work import RunFolder
from tasks.models.adapter import PROBE_ROWS, PROBE_TOLERANCE
from tasks.settings.config import RunConfig

if TYPE_CHECKING:
    import numpy as np


class ReloadMismatch(RuntimeError):
    """The adapter on disk does not compute what the trained model computed."""


def write_evaluation(table: "np.ndarray", split: Any, path: Path, seconds: float) -> Evaluation:
    """Probabilities (rows, classes) for the rows of `split` as a parquet file, whole or not at all, and their scores.

    Raises FloatingPointError where a probability is no finite number, and DiskFull.
    """
    import numpy as np
    import pandas as pd

    from tasks.scores.metrics import score

    labels = np.asarray(split["labels"])
    if not np.isfinite(table).all():
        raise FloatingPointError(f"the model gives no finite probabilities for row {int(np.argmin(table.min(1)))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"row": np.asarray(split["row"]), "label": labels, "probabilities": list(table)})
    with whole(path, table.nbytes + 16 * len(table)) as staged:  # runs at the same time may share the file
        frame.to_parquet(staged, index=False)
    return Evaluation(
        predictions=str(path),
        sha256=file_sha256(path),
        scores=score(table, labels),
        seconds=round(seconds, 3),
    )


def read_predictions(path: str) -> tuple["np.ndarray", "np.ndarray", "np.ndarray"]:
    """Row numbers (rows,), labels (rows,) and probabilities (rows, classes) of a prediction file."""
    import numpy as np
    import pandas as pd

    frame = pd.read_parquet(path)
    return frame["row"].to_numpy(), frame["label"].to_numpy(), np.stack(frame["probabilities"].to_list())


class Predictions(NamedTuple):
    """What several classifiers say about the same rows."""

    rows: "np.ndarray"
    """(rows,), their places in the test split's source."""
    labels: "np.ndarray"
    """(rows,)"""
    tables: dict[str, "np.ndarray"]
    """Probabilities by classifier, each (rows, classes)."""


def paired_predictions(files: Mapping[str, str]) -> Predictions:
    """Prediction files by classifier, read; ValueError unless all are about the same rows, labels and classes."""
    import numpy as np

    read = {name: read_predictions(path) for name, path in files.items()}
    (first, (rows, labels, table)), *others = read.items()
    for name, (other_rows, other_labels, other_table) in others:
        same_rows = np.array_equal(rows, other_rows) and np.array_equal(labels, other_labels)
        if not same_rows or table.shape != other_table.shape:
            raise ValueError(f"the predictions of {first} and {name} are about different test rows or classes")
    return Predictions(rows, labels, {name: table for name, (_, _, table) in read.items()})


@task(
    name="evaluate adapter",
    task_run_name="evaluate adapter",
    description="The adapter read back from disk in a fresh, offline process, on the test rows",
)
def evaluate_adapter(config: RunConfig, data: PreparedData, trained: TrainedAdapter) -> Evaluation:
    done = RunFolder.around(trained.folder).evaluated
    kept = read_record(Evaluation, done)
    if kept and Path(kept.predictions).is_file() and file_sha256(Path(kept.predictions)) == kept.sha256:
        return kept
    measured = measure_adapter(config, data, trained)
    measured.write(done)
    return measured


def measure_adapter(config: RunConfig, data: PreparedData, trained: TrainedAdapter) -> Evaluation:
    """Scores of the saved adapter, and proof that it is the model that was trained.

    A new Python process without network reads the folder, as a user would; its logits for the probe rows must be
    those that were in memory after training. Raises ReloadMismatch.
    """
    from datasets import load_from_disk
    from safetensors.torch import load_file

    from tasks.models import serving

    started, run = time.monotonic(), RunFolder.around(trained.folder)
    request = {
        "adapter": trained.folder,
        "probe_rows": PROBE_ROWS,
        "data": data.folder,
        "batch_size": config.evaluation.batch_size,
        "out": str(run.reloaded),
    }
    run_offline(RELOAD, request)
    reloaded, probe = load_file(run.reloaded), load_file(trained.probe)["logits"]
    difference = float((reloaded["probe"] - probe).abs().max())
    if not difference <= PROBE_TOLERANCE[config.model.dtype]:
        raise ReloadMismatch(
            f"the adapter read back from {trained.folder} differs from the trained model by {difference:.3g} "
            "in its logits; it was not logged"
        )
    test = load_from_disk(data.folder)["test"]
    table = serving.probabilities(reloaded["test"], trained.temperature)
    return write_evaluation(table, test, run.predictions, time.monotonic() - started)
