"""Measure the untouched foundation model, and the adapter as it lies on disk, on the test rows."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.tasks import exponential_backoff

from tasks import model as models
from tasks.config import RunConfig
from tasks.hub import network_may_recover
from tasks.records import Evaluation, PreparedData, Scores, TrainedAdapter, digest, file_sha256

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PROBE_ROWS = 64
"""Validation rows whose logits are compared between memory and disk."""

PROBE_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference of a logit that rounding explains. On one machine the difference is 0."""


class ReloadMismatch(RuntimeError):
    """The adapter on disk does not compute what the trained model computed."""


def baseline_key(config: RunConfig, data: PreparedData) -> str:
    """Name of a baseline measurement by all that it depends on."""
    model, evaluation = config.model.model_dump(), config.evaluation.batch_size
    return digest([data.model.revision, model, data.fingerprint, Path(data.folder).name, evaluation, config.seed])


def baseline_cache_key(context: Any, parameters: dict[str, Any]) -> str:
    # the path is part of it: a cached result points to a file in this folder
    work = Path(parameters["work"]).resolve()
    return f"baseline-{baseline_key(parameters['config'], parameters['data'])}-{digest(work)}"


@task(
    name="evaluate baseline",
    task_run_name="evaluate baseline",
    retries=3,  # it downloads the weights
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_condition_fn=network_may_recover,
    cache_key_fn=baseline_cache_key,
    persist_result=True,
    result_serializer="json",
    description="The untouched foundation model with its fresh head, on the test rows",
)
def evaluate_baseline(config: RunConfig, data: PreparedData, work: str) -> dict[str, Any]:
    """An Evaluation as plain values: Prefect keeps it as JSON, never as pickle."""
    return measure_baseline(config, data, Path(work)).model_dump()


def baseline_is_intact(config: RunConfig, data: PreparedData, work: str) -> bool:
    """Whether the file that a cached baseline points to is still there."""
    return baseline_file(config, data, Path(work)).exists()


def baseline_file(config: RunConfig, data: PreparedData, work: Path) -> Path:
    return (work / f"baseline-{baseline_key(config, data)}").resolve() / "baseline.parquet"


def measure_baseline(config: RunConfig, data: PreparedData, work: Path) -> Evaluation:
    from datasets import load_from_disk

    from tasks import serving

    started = time.monotonic()
    tokenizer = models.load_tokenizer(data.model, config.model)
    model, _ = models.load_foundation(data.model, config, data.label_names, tokenizer)
    test = load_from_disk(data.folder)["test"]
    rows = model_rows(test, tokenizer)
    logits = serving.classify(serving.on_best_device(model).eval(), tokenizer, rows, config.evaluation.batch_size)
    return write_evaluation(logits, test, baseline_file(config, data, work), time.monotonic() - started)


def model_rows(split: Any, tokenizer: Any) -> dict[str, list[list[int]]]:
    """The columns of `split` that the model reads, in memory; its texts are as large again and stay on disk."""
    columns = [name for name in tokenizer.model_input_names if name in split.column_names]
    rows: dict[str, list[list[int]]] = split.select_columns(columns)[:]
    return rows


def write_evaluation(logits: "Tensor", split: Any, path: Path, seconds: float) -> Evaluation:
    """Predictions as a parquet file, whole or not at all, and their scores."""
    import numpy as np
    import pandas as pd

    from tasks import serving
    from tasks.metrics import score

    table, labels = serving.probabilities(logits), np.asarray(split["labels"])
    if not np.isfinite(table).all():
        raise FloatingPointError(f"the model gives no finite probabilities for row {int(np.argmin(table.min(1)))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    frame = pd.DataFrame({"row": np.asarray(split["row"]), "label": labels, "probabilities": list(table)})
    frame.to_parquet(partial, index=False)
    partial.replace(path)
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


@task(
    name="evaluate adapter",
    task_run_name="evaluate adapter",
    description="The adapter read back from disk in a fresh, offline process, on the test rows",
)
def evaluate_adapter(config: RunConfig, data: PreparedData, trained: TrainedAdapter) -> Evaluation:
    return measure_adapter(config, data, trained)


def measure_adapter(config: RunConfig, data: PreparedData, trained: TrainedAdapter) -> Evaluation:
    """Scores of the saved adapter, and proof that it is the model that was trained.

    A new Python process without network reads the folder, as a user would; its logits for the probe rows must be
    those that were in memory after training. Raises ReloadMismatch.
    """
    from datasets import load_from_disk
    from safetensors.torch import load_file

    started = time.monotonic()
    logits_file = Path(trained.folder).parent / "reloaded.safetensors"
    request = {
        "adapter": trained.folder,
        "data": data.folder,
        "batch_size": config.evaluation.batch_size,
        "out": str(logits_file),
    }
    run_offline("tasks.reload", request)
    reloaded, probe = load_file(logits_file), load_file(trained.probe)["logits"]
    difference = float((reloaded["probe"] - probe).abs().max())
    if not difference <= PROBE_TOLERANCE[config.model.dtype]:
        raise ReloadMismatch(
            f"the adapter read back from {trained.folder} differs from the trained model by {difference:.3g} "
            "in its logits; it was not logged"
        )
    test, out = load_from_disk(data.folder)["test"], Path(trained.folder).parent / "tuned.parquet"
    return write_evaluation(reloaded["test"], test, out, time.monotonic() - started)


def run_offline(module: str, request: dict[str, Any]) -> None:
    """Run a module of this project in a fresh process with no Hub; RuntimeError carries its last words."""
    import os

    free_device_memory()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    root = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    command = [sys.executable, "-m", module, json.dumps(request)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    if finished.returncode:
        words = finished.stderr.strip()[-2000:]
        raise RuntimeError(f"{module} failed in a fresh process (exit code {finished.returncode}): {words}")


def free_device_memory() -> None:
    """Give back what finished models hold on the GPU: the next process needs it."""
    import gc

    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def measure_majority(data: PreparedData, test_labels: "np.ndarray") -> Scores:
    """The classifier that knows only how often each class occurs in training."""
    import numpy as np

    from tasks.metrics import score

    counts = np.asarray(data.class_counts["train"], dtype=float)
    return score(np.tile(counts / counts.sum(), (len(test_labels), 1)), test_labels)
