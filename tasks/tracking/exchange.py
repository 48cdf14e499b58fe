"""A run in MLflow that carries files between machines without a common disk, for as long as they work on one thing."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tasks.base.progress import tell
from tasks.settings.sections import TrackingConfig
from tasks.tracking.address import EXCHANGE_TAG, client, tracking_uri
from tasks.tracking.artifacts import repository
from tasks.tracking.asking import attach as attach_files
from tasks.tracking.asking import fetched, run_facts
from tasks.tracking.flow import flow_tags
from tasks.tracking.patience import answered, in_one_line, reason
from tasks.tracking.run import PATIENCE_SECONDS
from tasks.tracking.sending import open_experiment

WANTED, GIVEN = "exchange.wanted", "exchange.given"

FILE = "given.tar"

LOOK_SECONDS, WAIT_SECONDS = 2.0, 1800.0
"""A machine looks whether it has been given what it wants; so long, for there may be much of it."""

T = TypeVar("T")


def open_exchange(name: str) -> str | None:
    """Id of a new run; None where there is no server that other machines could reach. InputError where it is silent."""
    if not is_shared():
        return None
    api = client()
    with in_one_line():
        experiment = open_experiment(api, TrackingConfig().experiment)
        return str(api.create_run(experiment, tags={EXCHANGE_TAG: name, **flow_tags()}, run_name=name).info.run_id)


def is_shared() -> bool:
    return tracking_uri().startswith("http")


def is_open(run_id: str) -> bool:
    facts = run_facts(run_id)
    return bool(facts and not facts.deleted)


def close_exchange(run_id: str) -> None:
    """Nothing is left of it but a deleted run, which `mlflow gc` removes."""
    api = client()
    repository(api.get_run(run_id).info.artifact_uri, tracking_uri()).delete_artifacts()
    api.set_terminated(run_id)
    api.delete_run(run_id)


def is_wanted(run_id: str) -> bool:
    """Whether a machine waits for what it has not been given."""
    tags = client().get_run(run_id).data.tags
    return WANTED in tags and GIVEN not in tags


def give(run_id: str, file: Path) -> None:
    attach_files(run_id, "", file)
    client().set_tag(run_id, GIVEN, FILE)


def given(run_id: str, folder: Path) -> Path:
    """What this machine asks for, in `folder`, once it is there."""
    patiently(lambda: client().set_tag(run_id, WANTED, "yes"))
    until = time.monotonic() + WAIT_SECONDS
    while GIVEN not in patiently(lambda: client().get_run(run_id).data.tags):
        if time.monotonic() > until:
            raise RuntimeError(f"nobody has given this machine what it asked for in MLflow run {run_id}")
        time.sleep(LOOK_SECONDS)
    return patiently(lambda: fetched(run_id, FILE, folder))


def attach(run_id: str, to: str, *files: Path) -> None:
    """In this order: whoever finds the last has all of them."""
    patiently(lambda: attach_files(run_id, to, *files))


def names(run_id: str, folder: str) -> list[str]:
    """Of the files in a folder of the run."""
    return [Path(file.path).name for file in client().list_artifacts(run_id, folder)]


def patiently(ask: Callable[[], T]) -> T:
    """What `ask` gives; an MLflow that does not answer is waited for."""
    return answered(ask, PATIENCE_SECONDS, lambda error: tell("MLflow does not answer (%s); waiting", reason(error)))
