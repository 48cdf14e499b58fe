"""The flow run of Prefect that an MLflow run belongs to, and the links between both."""

import functools
import os
from collections.abc import Callable
from contextlib import suppress

from prefect import runtime

from tasks.base.closing import FLOW_RUN
from tasks.base.liveness import hold, is_taken
from tasks.tracking.address import FLOW_RUN_TAG, FLOW_RUN_URL_TAG, run_url
from tasks.tracking.attempts import started_for, take_over
from tasks.tracking.journal import run_id_of


def link_to_mlflow(work: str) -> None:
    """Put the MLflow run's address onto the Prefect run page, while there is much to see live."""
    from prefect.artifacts import create_link_artifact

    run_id = run_id_of(work)
    if run_id is None:  # MLflow has not answered yet; the comparison will have the link
        return
    create_link_artifact(run_url(run_id), f"MLflow run {run_id}", key="mlflow-run", description="The run in MLflow")


def live() -> None:
    """Show that this process works on the flow run, before anything of it can be left behind.

    A worker that begins a flow run which was begun before may do so in place of another machine.
    """
    if flow_run := runtime.flow_run.id:
        hold(flow_run)
        if flow_run == os.environ.get(FLOW_RUN) and runtime.flow_run.run_count > 1:
            take_over(flow_run)


def first_sign_of_life(name: Callable[[], str]) -> Callable[[], str]:
    """`name` as Prefect's `flow_run_name`, for which it asks as the last thing before it says that the run is running.

    A process that is killed between that and the flow's first line would otherwise leave a run that runs for ever.
    """

    @functools.wraps(name)
    def name_of_living() -> str:
        with suppress(OSError):  # which the flow itself meets again, and says
            is_taken(
                str(runtime.flow_run.id), starting=True
            )  # where another process has it, the flow waits for that one: see `live`
        return name()

    return name_of_living


def flow_tags() -> dict[str, str]:
    """Tags that lead from the MLflow run back to the Prefect flow run."""
    flow_run = runtime.flow_run.id
    if not flow_run:
        return {}
    # without a server the run is in Prefect's local database, which `prefect server start` shows at this address
    address = runtime.flow_run.ui_url if os.environ.get("PREFECT_API_URL") else None
    return {
        **started_for(),
        FLOW_RUN_TAG: flow_run,
        FLOW_RUN_URL_TAG: address or f"http://127.0.0.1:4200/runs/flow-run/{flow_run}",
    }
