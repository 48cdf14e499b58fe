"""A trained adapter on new rows: find adapter and rows, label them chunk by chunk, say how many."""

from tasks import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from prefect import flow, runtime
from prefect.logging import get_run_logger
from pydantic import Field

from tasks.config import InputError, PredictionConfig, Revision, checked
from tasks.device import claim_device
from tasks.job import find_job
from tasks.outcomes import PredictionResult
from tasks.prediction import describe_result, predict_rows
from tasks.recording import live
from tasks.tracking import tidy_up


def flow_run_name() -> str:
    return checked(PredictionConfig, runtime.flow_run.parameters).run_name()


@flow(name="predict", flow_run_name=flow_run_name, validate_parameters=True)
def predict(
    model: str,
    input: str,
    output: str,
    split: str | None = None,
    config: str | None = None,
    revision: Revision = "main",
    text_columns: tuple[str, ...] = (),
    abstain_below: Annotated[float, Field(ge=0, le=1)] = 0.0,
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64,
    on_error: Literal["stop", "skip"] = "stop",
    overwrite: bool = False,
    trust_remote_code: bool = False,
    offline: bool = False,
) -> PredictionResult:
    """Label rows with a trained adapter; a flow that was killed goes on where it stopped.

    Args:
        model: Registered model (NAME@ALIAS, NAME/3; NAME is its champion), id of an MLflow run, or adapter folder.
        input: A csv, tsv, json, jsonl, parquet, xlsx or arrow file, also packed, local folder, or Hub data set.
        output: File to write: csv, jsonl or parquet by its name.
        split: Split of a data set or folder. None: its only one.
        config: Configuration (subset) of a Hub data set that has several. None: its only one.
        revision: Branch, tag or commit of a data set on the Hub.
        text_columns: Columns of the input that hold the texts. Empty: called as in training.
        abstain_below: Give no label to a row whose most probable class has less than this probability (0 to 1).
        batch_size: Most rows in one forward pass.
        on_error: Stop at a row that cannot be read or has no text, or skip it and set it aside beside the output.
        overwrite: Replace an output that is there already and is of something else.
        trust_remote_code: Run Python code that comes with the foundation model.
        offline: Use only what is already on this machine; ask no Hub.
    """
    settings = PredictionConfig(
        model=model,
        input=input,
        output=output,
        split=split,
        config=config,
        revision=revision,
        text_columns=text_columns,
        abstain_below=abstain_below,
        batch_size=batch_size,
        on_error=on_error,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        offline=offline,
    )
    if runtime.deployment.id and "-" in (input, output):
        raise InputError("input, output: - is for the command line; give files that the worker can reach")
    logger = get_run_logger()
    claim_device()
    live()
    tidy_up()
    with TemporaryDirectory(prefix="peft-flow-") as folder:
        job = find_job(settings, Path(folder))
        logger.info("%s with %s: %s", settings.input, job.version, ", ".join(job.label_names))
        result = predict_rows(settings, job)
    logger.info("%s", describe_result(result))
    return result
