"""A trained adapter on new rows: find adapter and rows, label them chunk by chunk, say how many."""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect import flow, runtime
from prefect.logging import get_run_logger

from flows.parameters import parameters_of, told
from tasks.base.outcomes import PredictionResult
from tasks.inference.job import find_job
from tasks.inference.prediction import describe_result, predict_rows
from tasks.inference.shards import label_in_shards
from tasks.servers.shards import shard_runners
from tasks.settings.config import PredictionConfig
from tasks.settings.fields import InputError
from tasks.tracking.flow import first_sign_of_life, live
from tasks.tracking.run import tidy_up


@first_sign_of_life
def flow_run_name() -> str:
    return told(PredictionConfig).run_name()


@flow(name="predict", flow_run_name=flow_run_name, validate_parameters=True)
@parameters_of(PredictionConfig)
def predict(**given: Any) -> PredictionResult:
    """Label rows with a trained adapter; a flow that was killed goes on where it stopped."""
    settings = PredictionConfig(**given)
    if runtime.deployment.id and "-" in (settings.input, settings.output):
        raise InputError("input, output: - is for the command line; give files that the worker can reach")
    logger = get_run_logger()
    live()
    tidy_up()
    with TemporaryDirectory(prefix="peft-flow-") as folder:
        job = find_job(settings, Path(folder))
        logger.info("%s with %s: %s", settings.input, job.version, ", ".join(job.label_names))
        if settings.shards > 1:
            label_in_shards(settings, job, shard_runners)
        result = predict_rows(settings, job)
    logger.info("%s", describe_result(result))
    return result
