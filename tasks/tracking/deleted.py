"""What was deleted in MLflow, and the command that restores it."""

import shlex

from tasks.tracking.address import client, public_uri
from tasks.tracking.patience import ABSENT, in_one_line, may_recover, why_refused


def is_gone(error: Exception, run_id: str) -> bool:
    """Whether a server that answers has the run no longer."""
    if isinstance(error, Deleted):
        return True
    return not may_recover(error) and not why_refused(error) and bool(what_is_gone(run_id))


class Deleted(Exception):
    """Somebody has deleted the run in MLflow."""


def what_is_gone(run_id: str) -> str:
    """In a sentence, with what brings it back, where the run or its experiment was deleted; empty where both are there.

    MLflow keeps what was deleted until `mlflow gc` removes it.
    """
    from mlflow.exceptions import MlflowException

    api = client()
    with in_one_line():
        try:
            run = api.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ABSENT:
                return f"run {run_id} is not in MLflow any more"
            raise
        if run.info.lifecycle_stage != "deleted":
            return ""
        experiment = api.get_experiment(run.info.experiment_id)
    if experiment.lifecycle_stage == "deleted":
        command = restore("experiments restore --experiment-id", experiment.experiment_id)
        return f"experiment '{experiment.name}', with run {run_id}, was deleted in MLflow; restore it ({command})"
    command = restore("runs restore --run-id", run_id)
    return f"run {run_id} was deleted in MLflow; restore it ({command})"


def restore(command: str, what: str) -> str:
    return f"MLFLOW_TRACKING_URI={shlex.quote(public_uri())} mlflow {command} {what}"
