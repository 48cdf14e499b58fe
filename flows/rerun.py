"""A recorded run once more, from its record alone: does the same come out?"""

from tasks import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

from typing import Annotated

from prefect import flow
from prefect.logging import get_run_logger
from pydantic import Field

from flows.finetune import finetune
from tasks.config import RunConfig
from tasks.outcomes import RerunResult
from tasks.recording import live
from tasks.rerun import judge_rerun, recall_run, rerun_folder, sentence
from tasks.work import as_one


@flow(name="rerun", flow_run_name="rerun of {run_id}", validate_parameters=True)
def rerun(run_id: Annotated[str, Field(min_length=1, max_length=100)], anyway: bool = False) -> RerunResult:
    """Do a finished run again from its record in MLflow, as a new run, and find out whether the same comes out.

    Args:
        run_id: Id of the run in MLflow, as its page shows it.
        anyway: Go on where its data set or model is no longer there as it was, with what is there now.
    """
    live()
    config = recall_run(run_id, anyway)
    with as_one(rerun_folder(run_id)):
        again = finetune(**{name: getattr(config, name) for name in RunConfig.model_fields})
        result = judge_rerun(run_id, again.run_id)
    get_run_logger().info("%s. %s", result.outcome.capitalize(), sentence(result))
    return result
