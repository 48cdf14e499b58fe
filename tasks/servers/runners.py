"""Processes that do a part of a job: started, watched, stopped; here, or wherever the work pool has workers."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from tasks.base.device import THREADS
from tasks.base.fresh_process import command
from tasks.base.progress import warn
from tasks.base.trouble import first_line, is_network_trouble
from tasks.servers.database import check_driver, connected
from tasks.servers.deployments import TRIALS_POOL, read_facts
from tasks.settings.fields import InputError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

DEPLOYMENT = "sweep-runner/sweep-runner"

MODULE = "tasks.studies.runner"

STOP_SECONDS = 5.0

FINISH_SECONDS, FINISH_LOOK_SECONDS = 10.0, 0.25
"""So long runners may take to see that there are no more trials."""


class Runners(Protocol):
    """Each is known by a name that no other has, before or after."""

    def start(self) -> str:
        """Name of a new one, which may take a while to begin."""

    def alive(self, known: Sequence[str]) -> list[str]:
        """Those of `known`, started now or before the driver was killed, that work or are still to begin."""

    def last_words(self, name: str) -> str:
        """Of one that has ended."""

    def finish(self, ready: Sequence[str]) -> None:
        """All trials have ended; of the runners, those that are `ready` have been told."""

    def stop(self) -> None:
        """All that this one has started or taken over."""


class Processes:
    """Of this machine, which end with this one; their logs lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def begin(self, process: "subprocess.Popen[bytes]", request: Mapping[str, Any]) -> str:
        """Name of a process that now reads what it is to do."""
        name = f"{os.getpid()}-{len(self.processes) + 1}"
        self.processes[name] = process
        assert process.stdin
        with suppress(BrokenPipeError), process.stdin as asked:  # one that has ended has last words
            asked.write(json.dumps({**request, "name": name, "log": str(self.log(name))}).encode())
        return name

    def log(self, name: str) -> Path:
        return self.folder / f"runner-{name}.log"

    def alive(self, known: Sequence[str]) -> list[str]:
        return [name for name in known if name in self.processes and self.processes[name].poll() is None]

    def was_killed(self, name: str) -> bool:
        return (self.processes[name].poll() or 0) < 0

    def last_words(self, name: str) -> str:
        process, log = self.processes[name], self.log(name)
        code = process.poll()
        assert process.stderr
        with suppress(OSError, IndexError):
            words = log.read_bytes() if log.exists() else process.stderr.read()
            return f"exit code {code}, {words.decode(errors='replace').strip().splitlines()[-1][:500]}"
        return f"exit code {code}"

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in self.processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class ProcessRunners(Processes):
    """For the trials of the job in a file, `share` at a time."""

    def __init__(self, job: Path, share: int) -> None:
        super().__init__(job.parent)
        self.job, self.share = job, share

    def start(self) -> str:
        return self.begin(_at_hand.pop() if _at_hand else launch(self.share), {"job": str(self.job)})

    def finish(self, ready: Sequence[str]) -> None:
        """At once: they hold nothing that is not told, and a process that has imported torch takes seconds to end."""
        for process in self.processes.values():
            process.kill()


def launch(share: int) -> "subprocess.Popen[bytes]":
    """A runner, one of `share` on this machine, that imports what trials need and then reads what it is to run."""
    return launched(MODULE, str(share), without=THREADS)


def launched(module: str, *arguments: str, without: str = "") -> "subprocess.Popen[bytes]":
    """A module of this project in a process that reads what it is to do; its last argument is this process's number.

    It inherits the environment, but for one variable.
    """
    return subprocess.Popen(
        [*command(module), *arguments, str(os.getpid())],
        env={key: value for key, value in os.environ.items() if key != without},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,  # until it knows its log
        start_new_session=True,  # Ctrl-C is for the driver, which stops them
    )


_at_hand: "list[subprocess.Popen[bytes]]" = []


@contextmanager
def runners_at_hand(parallel: int) -> Iterator[None]:
    """Within, processes that run trials have their imports done when there are trials: these take a core for 8 s."""
    if parallel > 1 and not os.environ.get("PREFECT_API_URL"):
        _at_hand.extend(launch(parallel) for _ in range(parallel))
    try:
        yield
    finally:
        while _at_hand:
            with _at_hand.pop() as process:
                process.kill()


class FlowRuns:
    """Of a deployment, on whatever machines have workers of its pool."""

    def __init__(self, deployment: str) -> None:
        self.deployment = deployment
        self.known = set[str]()
        self.states: dict[str, str] = {}
        """Where the server does not answer, what it said last counts."""
        self.alone_since: float | None = None

    def begin(self, parameters: Mapping[str, Any], key: str | None = None) -> "FlowRun":
        """A new one; under a `key` that one was begun with before, that one."""
        from prefect.deployments import run_deployment

        run: Any = run_deployment(
            self.deployment,
            parameters=dict(parameters),
            timeout=0,
            as_subflow=False,
            tags=["peft-flow"],
            idempotency_key=key,
        )
        self.known.add(str(run.id))
        return run

    def alive(self, known: Sequence[str]) -> list[str]:
        self.known.update(name for name in known if is_flow_run(name))
        try:
            runs = self.runs()
        except Exception as error:
            if not is_network_trouble(error):
                raise
            return [name for name in self.known if self.states.get(name) != "over"]
        for run in runs:
            self.states[str(run.id)] = "over" if run.state and run.state.is_final() else "open"
        self.say_when_nobody_comes(runs)
        return [str(run.id) for run in runs if self.states[str(run.id)] == "open"]

    def runs(self) -> "list[FlowRun]":
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        asked = sorted(UUID(name) for name in self.known if self.states.get(name) != "over")
        if not asked:
            return []
        with get_client(sync_client=True) as client:
            return client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=asked)))

    def say_when_nobody_comes(self, runs: "Sequence[FlowRun]") -> None:
        waiting = bool(runs) and all(run.state and run.state.is_scheduled() for run in runs)
        if not waiting:
            self.alone_since = None
        elif self.alone_since is None:
            self.alone_since = time.monotonic()
        elif time.monotonic() - self.alone_since > NOBODY_SECONDS:
            self.alone_since = float("inf")
            warn(
                "No worker has begun a run of %s: `peft-flow up` starts one, and on other machines `peft-flow worker`",
                self.deployment.partition("/")[0],
            )

    def was_killed(self, name: str) -> bool:
        state = self.state(name)
        return bool(state and state.is_crashed())

    def last_words(self, name: str) -> str:
        state = self.state(name)
        return f"{state.name}: {state.message}" if state else "without a state"

    def state(self, name: str) -> "State[Any] | None":
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            return client.read_flow_run(UUID(name)).state

    def stop(self) -> None:
        from prefect.client.orchestration import get_client

        try:
            runs = [run for run in self.runs() if run.state and not run.state.is_final()]
            with get_client(sync_client=True) as client:
                for run in runs:
                    cancel(client, run)
        except Exception as error:  # the driver is on its way out
            warn("runners may go on for %s: %s", "some minutes", first_line(error))


NOBODY_SECONDS = 30.0


class PoolRunners(FlowRuns):
    """For the trials of a job, `parallel` at a time."""

    def __init__(self, job: Mapping[str, Any], parallel: int) -> None:
        super().__init__(DEPLOYMENT)
        self.job, self.parallel = job, parallel

    def start(self) -> str:
        return str(self.begin({"job": self.job, "share": self.share()}).id)

    def share(self) -> int:
        """How many runners come to each machine."""
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            machines = [one for one in client.read_workers_for_work_pool(TRIALS_POOL) if is_online(one)]
        return -(-self.parallel // max(1, len(machines)))

    def finish(self, ready: Sequence[str]) -> None:
        """Their flow runs shall be Completed, not Cancelled."""
        until = time.monotonic() + FINISH_SECONDS
        while time.monotonic() < until and set(self.alive(ready)) & set(ready):
            time.sleep(FINISH_LOOK_SECONDS)


def shared_studies() -> str | None:
    """Address of the database for trials that `peft-flow up --database` offers to all machines; None where there is
    none, or this process cannot use it."""
    from prefect.client.orchestration import get_client

    if not os.environ.get("PREFECT_API_URL"):
        return None
    with get_client(sync_client=True) as client:
        facts = read_facts(client)
    if not facts or not facts.studies:
        return None
    try:
        check_driver()
        with connected(facts.studies):
            return facts.studies
    except InputError as reason:
        warn("Only workers of this machine can run trials (%s); set PGUSER and PGPASSWORD for the others", reason)
        return None


def can_open(storage: str) -> bool:
    """Whether all workers that take trials now can open this study: a file is for those of this machine."""
    from prefect.client.orchestration import get_client

    if storage.startswith("postgresql:"):
        return True
    with get_client(sync_client=True) as client:
        online = [one.name for one in client.read_workers_for_work_pool(TRIALS_POOL) if is_online(one)]
    others = [name for name in online if name != socket.gethostname()]
    if others:
        warn("All trials run on this machine: %s cannot open %s; give --storage", " and ".join(others), storage)
    return not others


def is_deployed(deployment: str = DEPLOYMENT) -> bool:
    """Whether the server knows the deployment; another than that of `peft-flow up` may not."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            warn("Prefect's server does not know %s: everything runs on this machine", deployment)
            return False
    return True


def cancel(client: "SyncPrefectClient", run: "FlowRun") -> None:
    """A running one is stopped by its worker, one that waits is over."""
    from prefect.states import Cancelled, Cancelling

    waits = bool(run.state and run.state.is_scheduled())
    message = "What started it has ended"
    client.set_flow_run_state(run.id, Cancelled(message=message) if waits else Cancelling(message=message), force=waits)


def is_online(worker: Any) -> bool:
    return bool(worker.status and worker.status.value == "ONLINE")


def is_flow_run(name: str) -> bool:
    try:
        UUID(name)
    except ValueError:
        return False
    return True
