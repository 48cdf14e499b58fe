"""The flow run of Prefect that an MLflow run belongs to, and the links between both."""

import os

from prefect import runtime

from tasks.base.liveness import hold
from tasks.tracking.address import FLOW_RUN_TAG, FLOW_RUN_URL_TAG, run_url
from tasks.tracking.journal import run_id_of


def link_to_mlflow(work: str) -> None:
    """Put the MLflow run's address onto the Prefect run page, while there is much to see live."""
    from prefect.artifacts import create_link_artifact

    run_id = run_id_of(work)
    if run_id is None:  # MLflow has not answered yet; the comparison will have the link
        return
    create_link_artifact(run_url(run_id), f"MLflow run {run_id}", key="mlflow-run", description="The run in MLflow")


def live() -> None:
    """Show that this process works on the flow run, before anything of it can be left behind."""
    if flow_run := runtime.flow_run.id:
        hold(flow_run)


def flow_tags() -> dict[str, str]:
    """Tags that lead from the MLflow run back to the Prefect flow run."""
    flow_run = runtime.flow_run.id
    if not flow_run:
        return {}
    # without a server the run is in Prefect's local database, which `prefect server start` shows at this address
    address = runtime.flow_run.ui_url if os.environ.get("PREFECT_API_URL") else None
    return {
        FLOW_RUN_TAG: flow_run,
        FLOW_RUN_URL_TAG: address or f"http://127.0.0.1:4200/runs/flow-run/{flow_run}",
    }
