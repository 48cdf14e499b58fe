"""One flow run on two machines, one after the other, because nothing was heard of the first, which may yet be at work.

What the first has finished counts, and is not done again. What it has not is ended in MLflow and marked: whoever sends
to a run that is marked so finds out that another machine does it now, see tasks/tracking/sending.py.
"""

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from tasks.base.closing import FLOW_RUN
from tasks.base.progress import tell, warn
from tasks.base.records import RunResult, Source, digest, read_record
from tasks.base.trouble import first_line
from tasks.base.work import WORK, enclosing, settings_of
from tasks.settings.config import RunConfig
from tasks.tracking.address import JOB_TAG, STARTED_FOR_TAG, TAKEN_OVER_TAG, client, every_page
from tasks.tracking.asking import download
from tasks.tracking.journal import SENT, Sent, run_id_of
from tasks.tracking.patience import answered
from tasks.tracking.run import log_files

RESULT = "result.json"
"""Artifact of a run of a worker: what the flow has returned."""

T = TypeVar("T")

PATIENCE_SECONDS = 300.0
"""So long an MLflow that does not answer is waited for: nothing may be begun twice."""

_begun_before = set[str]()
"""Flow runs that this process does, and that another may have begun."""


def started_for() -> dict[str, str]:
    """The tag, in a process that a worker has started."""
    flow_run = os.environ.get(FLOW_RUN)
    return {STARTED_FOR_TAG: flow_run} if flow_run else {}


def job_tag(config: RunConfig, *found: Source) -> dict[str, str]:
    """The tag, in a process that a worker has started."""
    return {JOB_TAG: digest([settings_of(config), *(source.content for source in found)])} if started_for() else {}


def take_over(flow_run: str) -> None:
    """End what other machines have begun of this flow run and not finished."""
    _begun_before.add(flow_run)
    for run_id in patiently(lambda: taken_over(flow_run)):
        tell("MLflow run %s, of a machine of which nothing was heard any more, is ended: it is done anew here", run_id)


def patiently(ask: Callable[[], T]) -> T:
    return answered(ask, PATIENCE_SECONDS, lambda error: warn("%s", first_line(error)))


def taken_over(flow_run: str) -> list[str]:
    """Ids of the runs in MLflow that were ended: none that lies in this folder, where it goes on, and none with a
    result that can be used."""
    api, ours = client(), own_runs()
    found = [run for run in runs_for(flow_run) if run.info.run_id not in ours and not is_final(run)]
    for run in found:
        api.set_tag(run.info.run_id, TAKEN_OVER_TAG, socket.gethostname())  # first: from now on it stays ended
        api.set_terminated(run.info.run_id, "KILLED")
    return [run.info.run_id for run in found]


def is_final(run: Any) -> bool:
    return run.info.status == "FAILED" or (run.info.status == "FINISHED" and JOB_TAG in run.data.tags)


def runs_for(flow_run: str, more: str = "") -> list[Any]:
    """Runs in MLflow that count, of all processes for this flow run."""
    api = client()
    experiments = [experiment.experiment_id for experiment in api.search_experiments()]
    asked = f"tags.`{STARTED_FOR_TAG}` = '{flow_run}'{more}"
    found = every_page(partial(api.search_runs, experiments, asked))
    return [run for run in found if TAKEN_OVER_TAG not in run.data.tags]


def own_runs() -> set[str | None]:
    return {sent.run_id for file in WORK.glob(f"*/{SENT}") if (sent := read_record(Sent, file))}


def keep_result(work: str, result: RunResult) -> None:
    """With the run, where a worker does it: another may go on with what it is a part of."""
    if started_for():
        result.write(Path(work) / RESULT)
        log_files(work, "", Path(work) / RESULT)


def done_elsewhere(tags: dict[str, str]) -> RunResult | None:
    """What another machine has finished of this flow run, by the tags that the run would get."""
    flow_run = tags.get(STARTED_FOR_TAG)
    return patiently(lambda: finished_elsewhere(flow_run, tags[JOB_TAG])) if flow_run in _begun_before else None


def finished_elsewhere(flow_run: str, job: str) -> RunResult | None:
    ours, parent = own_runs(), enclosing()
    for run in runs_for(flow_run, f" AND tags.`{JOB_TAG}` = '{job}' AND attributes.status = 'FINISHED'"):
        if run.info.run_id in ours:
            continue
        with TemporaryDirectory() as folder:
            file = download(run.info.run_id, RESULT, Path(folder))
            result = read_record(RunResult, file) if file else None
        if result:
            if parent and (above := run_id_of(parent)):
                client().set_tag(run.info.run_id, "mlflow.parentRunId", above)
            tell("Another machine has finished this: MLflow run %s, whose result is used", run.info.run_id)
            return result
    return None
