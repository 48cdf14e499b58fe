"""Trials of a sweep in MLflow: light runs under the run of the sweep, each told once, when it has ended."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from tasks.base.sweeps import Trial
from tasks.tracking.address import NOTE, client, every_page
from tasks.tracking.journal import journal_of
from tasks.tracking.sending import KEY_TAG, runs_of

STATE_TAG = "trial.state"

STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


def told_trials(work: str) -> set[int]:
    """Numbers of the trials of this sweep that MLflow has."""
    sent, key = journal_of(work).sent, journal_of(work).head.key
    if not sent.run_id:
        return set()
    children = f"tags.`mlflow.parentRunId` = '{sent.run_id}'"
    runs = every_page(partial(client().search_runs, [str(sent.experiment_id)], children))
    told = (run.data.tags.get(KEY_TAG, "") for run in runs if run.info.status != "RUNNING")
    return {int(own.removeprefix(f"{key}-")) for own in told if own.startswith(f"{key}-")}


def tell_trial(work: str, trial: Trial, config: Mapping[str, Any]) -> bool:
    """A run for the trial under that of the sweep in `work`; `config` has what single runs have as parameters.

    False where the sweep has no run yet. Told again, nothing is there twice. Raises what MLflow answers.
    """
    from mlflow.entities import Metric, Param, RunTag

    journal = journal_of(work)
    sent, key, outcome = journal.sent, f"{journal.head.key}-{trial.number}", trial.outcome
    if not sent.run_id or not sent.experiment_id:
        return False
    api = client()
    tags = {KEY_TAG: key, "mlflow.parentRunId": sent.run_id, STATE_TAG: outcome.state}
    tags |= {NOTE: outcome.reason} if outcome.reason else {}
    found = runs_of(api, sent.experiment_id, key)
    run = found[0] if found else api.create_run(sent.experiment_id, trial.started, tags, f"trial {trial.number}")
    ended = trial.ended or trial.started
    params = {"trial": trial.number, **config, **trial.values}
    api.log_batch(
        run.info.run_id,
        metrics=[Metric(name, value, ended, 0) for name, value in outcome.metrics.items()],
        params=[Param(name, plain(value)) for name, value in params.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )
    api.set_terminated(run.info.run_id, STATUS[outcome.state], end_time=ended)
    return True


def plain(value: Any) -> str:
    """As single runs have it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
