"""The store as others meet it: made where it is missing, refused where it is gone."""

import os

from tasks.settings.fields import InputError
from tasks.settings.fixed import STORE
from tasks.tracking.store import make_database


def make_store() -> None:
    try:
        (STORE / "artifacts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{STORE.resolve()} cannot be made: {error.strerror}; run in a folder you can write to"
        ) from None
    make_database()


def is_there() -> bool:
    """Whether there is a store; MLflow would make an empty one of whatever it is asked for."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or (STORE / "mlflow.db").exists()


class NoRun(InputError):
    """Nothing is called so."""


def check_store() -> None:
    if not is_there():
        raise NoRun(f"there are no runs in {STORE.resolve()}; go to the folder of your runs")
