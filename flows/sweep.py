"""Many trials of a configuration, picked by their validation scores; then the best and the given one, in full."""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

from typing import Any

from prefect import flow
from prefect.logging import get_run_logger

from flows.parameters import parameters_of, told
from flows.seeds import named, run_one
from tasks.base.device import claim_device, processes_here
from tasks.base.records import RunResult
from tasks.base.sweeps import SweepResult
from tasks.base.verdict import capital
from tasks.base.work import WORK, work_folder
from tasks.data.prepare import found_input, prepare_data
from tasks.settings.config import RunConfig, SweepConfig
from tasks.studies.runner import Job, job_of
from tasks.studies.sweep import finals, run_trials, take_over
from tasks.studies.sweep_page import headline
from tasks.studies.sweep_result import summarize_sweep
from tasks.studies.trials import check_sweep
from tasks.tracking.address import where_to_find
from tasks.tracking.flow import first_sign_of_life, flow_tags, link_to_mlflow, live
from tasks.tracking.run import tracked_run


@first_sign_of_life
def flow_run_name() -> str:
    return whole(told(SweepConfig)).run_name()


@flow(name="sweep", flow_run_name=flow_run_name, validate_parameters=True)
@parameters_of(SweepConfig)
def sweep(**given: Any) -> SweepResult:
    """Look for better values of some fields on the validation rows, and find out on the test rows what that brought."""
    asked = SweepConfig(**given)
    config, together = asked.run_config(), whole(asked)
    logger = get_run_logger()
    claim_device(processes_here(config.training))
    live()
    source, base = found_input(config, together)
    work = work_folder(together, source, base)
    with tracked_run(together, work, flow_tags()):
        link_to_mlflow(work)
        prepared = prepare_data(config, source, base, str(WORK))
        job = job_of(asked, work, source, base, prepared.task)
        best = run_trials(job, work)
        logger.info("Trial %d is the best of %d on validation; now on the test rows", best, job.trials)
        runs = {number: in_full(job, number, one) for number, one in finals(job, best).items()}
        result = summarize_sweep(work, job, prepared, best, runs)
        logger.info("%s. %s", capital(result.verdict), headline(result))
        logger.info("Recorded: %s", where_to_find(result.run_id))
    return result


def whole(asked: SweepConfig) -> SweepConfig:
    """The run that all others belong to."""
    _, count = check_sweep(asked)
    return named(asked, f"sweep, {count} trials")


def in_full(job: Job, number: int, config: RunConfig) -> RunResult:
    """The plain run of a trial's configuration; where its adapter is here already, it is not trained again."""
    take_over(job, number, work_folder(config, *found_input(config, config)))
    return run_one(config, f"trial {number}")
