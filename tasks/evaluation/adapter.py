"""The adapter on the test rows, read back from disk in a fresh process."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task

from tasks.base.fresh_process import RELOAD, run_offline
from tasks.base.records import Evaluation, PreparedData, TrainedAdapter, file_sha256, read_record
from tasks.base.work import RunFolder
from tasks.evaluation.predictions import write_evaluation
from tasks.models.adapter import PROBE_ROWS, PROBE_TOLERANCE
from tasks.settings.config import RunConfig

if TYPE_CHECKING:
    pass


class ReloadMismatch(RuntimeError):
    """The adapter on disk does not compute what the trained model computed."""


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
    settings = serving.read_settings(Path(trained.folder))
    base = settings["base_model"]
    if not difference <= PROBE_TOLERANCE[base["quantization"]["compute"] if "quantization" in base else base["dtype"]]:
        raise ReloadMismatch(
            f"the adapter read back from {trained.folder} differs from the trained model by {difference:.3g} "
            "in its logits; it was not logged"
        )
    test = load_from_disk(data.folder)["test"]
    table = serving.answers(reloaded["test"], settings)
    return write_evaluation(data.task, table, test, run.predictions, time.monotonic() - started)
