"""Where the store is, and the addresses of its pages."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tasks.settings.fixed import DEPLOYMENTS, STORE
from tasks.settings.secrets import without_login
from tasks.tracking import runlist
from tasks.tracking.artifacts import folder_of

if TYPE_CHECKING:
    from mlflow import MlflowClient


UI = "http://127.0.0.1:5000"
"""Where `peft-flow up` shows a local store."""

FLOW_RUN_TAG, FLOW_RUN_URL_TAG = "prefect.flow_run_id", "prefect.flow_run_url"

STARTED_FOR_TAG = "prefect.started_for"
"""Flow run for which a worker has started the process that a run comes from; the parts of a run carry it too."""

JOB_TAG = "peft_flow.job"
"""What a run of a worker is about, on whatever machine it is done."""

TAKEN_OVER_TAG = "peft_flow.taken_over_by"
"""On a run that does not count: the machine on which its flow run was begun anew; see tasks/tracking/attempts.py."""

NOTE = "mlflow.note.content"
"""Where MLflow keeps a run's description."""

EXCHANGE_TAG = "exchange"
"""Of a run that only carries files between machines: what for."""


def tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or default_store()


def client() -> "MlflowClient":
    """MLflow's client for the store of `tracking_uri`, which may be another one than a moment ago."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri())


def every_page(search: Callable[..., Any]) -> Iterator[Any]:
    """All that a search of MLflow's client finds; it gives what is on one page, and where the next begins."""
    page = None
    while True:
        found = search(page_token=page)
        yield from found
        page = found.token
        if not page:
            return


def default_store() -> str:
    return f"sqlite:///{STORE.resolve()}/mlflow.db"


def store_is_ours() -> bool:
    """Whether runs go into a file here; a server decides itself where artifacts lie."""
    return tracking_uri().startswith("sqlite:")


def public_uri() -> str:
    """The tracking address without user and password, to be shown and stored."""
    return without_login(tracking_uri())


def run_url(run_id: str) -> str:
    """Address of the run in the MLflow UI."""
    return f"{ui()}/{runlist.run_address(experiment_of(run_id), run_id)}"


def experiment_url(run_id: str) -> str:
    """Address of the list of all runs of the run's experiment, with the columns that runs are compared by."""
    return f"{ui()}/{runlist.address(experiment_of(run_id))}"


def ui() -> str:
    """Where people open MLflow, without a slash at the end: MLFLOW_UI_URL (behind a proxy), else the server."""
    server = public_uri() if tracking_uri().startswith("http") else UI
    return without_login(os.environ.get("MLFLOW_UI_URL") or server).rstrip("/")


def is_served() -> bool:
    """Whether something answers where people open MLflow; a page that MLFLOW_UI_URL names is taken to be there."""
    if os.environ.get("MLFLOW_UI_URL"):
        return True
    address = urlsplit(ui())
    with suppress(OSError, ValueError):
        place = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection(place, timeout=1).close()
        return True
    return False


def where_to_find(run_id: str) -> str:
    """The address of the run's page, where something answers there; else its id."""
    return run_url(run_id) if is_served() else f"MLflow run {run_id}"


def serve_command() -> list[str]:
    """What to run to see a store in a file; nothing where there is a server."""
    if not store_is_ours():
        return []
    if tracking_uri() == default_store() and DEPLOYMENTS.exists():  # elsewhere it would not start
        return ["peft-flow", "up"]
    store = tracking_uri()
    return ["mlflow", "server", "--backend-store-uri", store, "--artifacts-destination", str(folder_of(store))]


def experiment_of(run_id: str) -> str:
    if run_id in _experiments:
        return _experiments[run_id]
    return str(client().get_run(run_id).info.experiment_id)


_experiments: dict[str, str] = {}
"""Of the runs of this process, by id: MLflow may be gone again when their addresses are shown."""


def link_to_prefect(tags: Mapping[str, str]) -> str:
    """The last line of a run's description: MLflow shows tags as plain text."""
    return f"[Run page in Prefect]({tags[FLOW_RUN_URL_TAG]})" if FLOW_RUN_URL_TAG in tags else ""
