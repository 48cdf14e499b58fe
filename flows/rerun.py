"""A recorded run once more, from its record alone: does the same come out?"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

from typing import Any

from prefect import flow, runtime
from prefect.logging import get_run_logger

from flows.finetune import finetune
from flows.parameters import parameters_of
from tasks.base.outcomes import RerunResult
from tasks.base.work import as_one
from tasks.settings.config import RerunConfig
from tasks.studies.rerun import judge_rerun, recall_run, rerun_folder, sentence
from tasks.tracking.flow import first_sign_of_life, live
from tasks.tracking.listing import find_run


@first_sign_of_life
def flow_run_name() -> str:
    return f"rerun of {runtime.flow_run.parameters['run_id']}"


@flow(name="rerun", flow_run_name=flow_run_name, validate_parameters=True)
@parameters_of(RerunConfig)
def rerun(**given: Any) -> RerunResult:
    """Do a finished run again from its record in MLflow, as a new run, and find out whether the same comes out."""
    asked = RerunConfig(**given)
    live()
    run_id = find_run(asked.run_id)  # once: the newest run will be another in the end
    config = recall_run(run_id, asked.anyway)
    with as_one(rerun_folder(run_id)):
        again = finetune(**dict(config))
        result = judge_rerun(run_id, again.run_id)
    get_run_logger().info("%s. %s", result.outcome.capitalize(), sentence(result))
    return result
