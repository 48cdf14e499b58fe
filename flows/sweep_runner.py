"""A process that runs trials of a sweep, where the work pool has a worker."""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

from typing import Any

from prefect import flow, runtime

from tasks.studies.runner import Job, serve
from tasks.tracking.flow import first_sign_of_life, live


@first_sign_of_life
def flow_run_name() -> str:
    return f"trials of {Job.model_validate(runtime.flow_run.parameters['job']).name}"


@flow(name="sweep-runner", flow_run_name=flow_run_name, validate_parameters=True)
def sweep_runner(job: dict[str, Any], share: int = 1) -> None:
    """Run trials of a sweep, one after the other. Sweeps start this themselves.

    Args:
        job: What the sweep tells its runners.
        share: How many of them share this machine.
    """
    live()
    serve(Job.model_validate(job), str(runtime.flow_run.id), share)
