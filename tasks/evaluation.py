"""Prediction files, and the adapter on the test rows as it lies on disk."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect import task

import tasks
from tasks.files import whole
from tasks.records import Evaluation, PreparedData, TrainedAdapter, file_sha256, read_record
from tasks.settings.config import RunConfig
from tasks.work import RunFolder

if TYPE_CHECKING:
    import numpy as np

PROBE_ROWS = 64
"""Validation rows whose logits are compared between memory and disk."""

RELOAD = "tasks.reload"
"""Module that reads an adapter in a process of its own."""

PROBE_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference of a logit that rounding explains. On one machine the difference is 0."""


class ReloadMismatch(RuntimeError):
    """The adapter on disk does not compute what the trained model computed."""


def write_evaluation(table: "np.ndarray", split: Any, path: Path, seconds: float) -> Evaluation:
    """Probabilities (rows, classes) for the rows of `split` as a parquet file, whole or not at all, and their scores.

    Raises FloatingPointError where a probability is no finite number, and DiskFull.
    """
    import numpy as np
    import pandas as pd

    from tasks.metrics import score

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

    from tasks import serving

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


def start_offline(module: str) -> "subprocess.Popen[str]":
    """A module of this project in a fresh process with no Hub, which waits for its request on standard input."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    root = str(Path(tasks.__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    pipe = subprocess.PIPE
    command = [sys.executable, "-P", "-m", module]  # -P: the current folder may hold a tasks.py of its own
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def run_offline(module: str, request: dict[str, Any]) -> None:
    """What `start_offline` has started, or now, told and waited for; RuntimeError carries its last words."""
    free_device_memory()
    process = _waiting.pop(module, None)
    if not process or process.poll() is not None:
        process = start_offline(module)
    with process:
        try:
            _, words = process.communicate(json.dumps(request))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise RuntimeError(
            f"{module} failed in a fresh process (exit code {process.returncode}): {words.strip()[-2000:]}"
        )


_waiting: dict[str, "subprocess.Popen[str]"] = {}


@contextmanager
def reload_at_hand() -> Iterator[None]:
    """Within, a process for reading the adapter back has its imports done when it is needed.

    They take a core for 6 s: to be entered before this process imports as much, which leaves the other cores alone.
    """
    if RELOAD in _waiting:
        yield
        return
    process = _waiting[RELOAD] = start_offline(RELOAD)
    try:
        yield
    finally:
        if _waiting.pop(RELOAD, None):
            with process:
                process.kill()


def free_device_memory() -> None:
    """Give back what finished models hold on the GPU: the next process needs it."""
    import gc

    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
