"""The workers of a machine, whether its servers run beside them or elsewhere: started, watched, stopped."""

import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tasks.base import liveness
from tasks.base.closing import close_lost_runs, flow_runs, set_right
from tasks.base.device import gpus
from tasks.base.trouble import is_network_trouble
from tasks.servers.deployments import POOL, TRIALS_POOL
from tasks.servers.processes import Processes, Program, end
from tasks.settings.fixed import STORE
from tasks.settings.secrets import redact
from tasks.tracking.run import close_dead_runs, send_what_waits

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

LOGS = STORE / "logs"

WORKER, TRIALS_WORKER = "the worker", "the worker for trials"

START_SECONDS = 120.0

LOOK_SECONDS = 2.0

TIDY_SECONDS = 5.0

FLOWS_STOP_SECONDS = 5.0
"""What is left of the ten seconds in which all must be gone, for flow runs to save and say what they have."""

IMPATIENT = {"PREFECT_CLIENT_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""For the process that watches: as long as it waits for a server that has died it does not start it again."""

PYTHON = [sys.executable, "-P", "-m"]
"""-P: modules are ours, not the current folder's."""


def trials_at_once() -> int:
    """In the pool of trials nothing else limits how many come to this machine."""
    return len(gpus()) or os.cpu_count() or 1


def worker_programs(name: str, runs: int, trials: int, environment: Mapping[str, str]) -> Iterator[Program]:
    """The workers, which call themselves `name`, for so many runs and trials at a time, which have this environment."""
    for program, pool, log, limit in (
        (WORKER, POOL, "worker.log", runs),
        (TRIALS_WORKER, TRIALS_POOL, "worker-trials.log", trials),
    ):
        command = [*PYTHON, "prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", name]
        yield Program(
            program,
            [*command, "--limit", str(limit)],
            {
                **environment,
                "PREFECT_WORKER_QUERY_SECONDS": str(LOOK_SECONDS),
                "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",  # should the first be lost, the start need not wait for 30 s
                # how it fetches and starts a run is not the run's story; tasks/base/environment.py turns it up again
                "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "WARNING",
            },
            LOGS / log,
        )


def keep_last_logs() -> None:
    for log in LOGS.glob("*.log"):
        log.replace(log.with_suffix(".log.1"))


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def worker_is_online(client: "SyncPrefectClient", name: str, since: datetime) -> bool:
    return any(
        worker.name == name and worker.last_heartbeat_time and worker.last_heartbeat_time >= since
        for worker in client.read_workers_for_work_pool(POOL)
    )


def watch(
    processes: Processes,
    tidy: Callable[[], None],
    can_revive: Callable[[], bool] = lambda: True,
    concerns: "Callable[[FlowRun], bool]" = lambda run: True,
) -> None:
    """One line for each thing that happens, for ever; what dies is started again, runs that died get their end."""
    seen: dict[Any, str] = {}
    since, tidied, trouble = datetime.now(UTC), 0.0, ""
    while True:
        for sentence in processes.revive() if can_revive() else ():
            say(sentence)
        try:
            look(seen, since, concerns)
            if time.monotonic() - tidied > TIDY_SECONDS:
                tidy()
                tidied = time.monotonic()
        except Exception as error:
            # a server that is being started again is not news; nor is the same as before
            if not is_network_trouble(error) and trouble != str(error):
                trouble = str(error)
                say(f"{type(error).__name__}: {trouble}")
        time.sleep(LOOK_SECONDS)


def look(seen: dict[Any, str], since: datetime, concerns: "Callable[[FlowRun], bool]") -> None:
    """Say which runs have a new state."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    begun = [state for state in StateType if state not in (StateType.SCHEDULED, StateType.PENDING)]
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=begun))),
            sort=FlowRunSort.START_TIME_DESC,
            limit=50,
        )
    for run in filter(concerns, reversed(runs)):
        if run.state and run.state.name and run.state.timestamp > since and seen.get(run.id) != run.state.name:
            seen[run.id] = run.state.name
            words = (run.state.message or "").split("\n")[0] if run.state.is_failed() or run.state.is_crashed() else ""
            say("  ".join(filter(None, (f"{run.state.name.lower():<10}", run.name, words, run_page(run.id)))))


def tidy_here(name: str) -> None:
    """Every run of the workers called `name` that shows as running has a living process, or gets its end."""
    for flow_run_id in close_dead_runs():
        say(f"{'closed':<10}  a run whose process was gone  {run_page(flow_run_id)}")
    set_right()
    send_what_waits()
    for run in (*close_lost_runs(POOL, name), *close_lost_runs(TRIALS_POOL, name)):
        say(f"{'closed':<10}  {run}: its process was gone")


def run_page(flow_run_id: Any) -> str:
    return f"{os.environ['PREFECT_UI_URL']}/runs/flow-run/{flow_run_id}"


def stop(processes: Processes, close_runs: Callable[[], None], servers: Sequence[str] = ()) -> None:
    """Flow runs first, while there are servers to tell; then the workers, then `servers`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not processes.running:
        return
    say("stopping")
    heads = [*processes.flow_runs(WORKER), *processes.flow_runs(TRIALS_WORKER)]
    orphans = [process for note in liveness.living() for process in flow_runs().get(note.flow_run_id, [])]
    end({*heads, *orphans}, seconds=FLOWS_STOP_SECONDS)
    if heads or orphans:
        try:
            close_runs()
        except Exception as error:  # the next start does it
            say(f"not everything could be closed: {error}")
    processes.stop((WORKER, TRIALS_WORKER), servers)
    say("stopped")


def say(message: str) -> None:
    with suppress(OSError):  # the terminal is gone, and what runs must still be stopped
        print(f"{datetime.now():%H:%M:%S}  {redact(message)}", flush=True)
