"""`peft-flow worker`: this machine takes runs and trials of servers that run elsewhere, in a folder of its own."""

import base64
import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

import tasks
from tasks.base.closing import BY_WORKER
from tasks.base.records import digest
from tasks.base.words import counted
from tasks.servers.deployments import POOL, Facts, own_facts, read_facts, runs_at_once
from tasks.servers.doors import CREDENTIALS
from tasks.servers.processes import Processes, clear_leftovers
from tasks.servers.workers import (
    IMPATIENT,
    START_SECONDS,
    WORKER,
    answers,
    keep_last_logs,
    say,
    stop,
    tidy_here,
    trials_at_once,
    watch,
    worker_is_online,
    worker_programs,
)
from tasks.settings.fields import InputError
from tasks.settings.fixed import STORE
from tasks.settings.secrets import without_login
from tasks.tracking.opening import make_store

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

REGISTER, LOCK = STORE / "worker.json", STORE / "worker.lock"

PREFECT_LOGIN = "PREFECT_API_AUTH_STRING"


class Options(NamedTuple):
    prefect: str
    """Addresses of the servers, as they were given."""
    mlflow: str
    limit: int | None
    """Runs at a time; None: one for each GPU, or one."""

    @property
    def api(self) -> str:
        return f"{self.prefect.rstrip('/').removesuffix('/api')}/api"


def worker(options: Options) -> None:
    """Take what the pools of these servers have to do, until told to stop.

    Raises InputError for what the user must change, RuntimeError where the workers do not come up or die for good.
    """
    signal.signal(signal.SIGHUP, signal.default_int_handler)  # the terminal was closed
    refuse_other_packages(Path.cwd())
    for option, address in (("--prefect", options.prefect), ("--mlflow", options.mlflow)):
        check_address(option, address)
    os.environ |= environment(options)
    check_prefect(options)
    check_mlflow(options)
    make_store()
    with sole_worker():
        processes, name = Processes(REGISTER), worker_name()
        tidy = partial(tidy_here, name)
        try:
            start(options, processes, name)
            watch(
                processes,
                tidy,
                can_revive=lambda: answers(f"{options.api}/health"),
                concerns=lambda run: run.labels.get(BY_WORKER) == name,
            )
        finally:
            stop(processes, tidy)


def worker_name() -> str:
    """Several on one machine, in a folder each, must not take each other's runs for their own."""
    return f"{socket.gethostname()}-{digest(str(Path.cwd()))[:6]}"


def environment(options: Options) -> dict[str, str]:
    """What makes every run of these workers use these two servers."""
    told = {
        "PREFECT_API_URL": options.api,
        "PREFECT_UI_URL": os.environ.get("PREFECT_UI_URL") or options.api.removesuffix("/api"),
        "MLFLOW_TRACKING_URI": options.mlflow.rstrip("/"),
        "PWD": str(Path.cwd()),  # where runs go; only a shell keeps it true
    }
    if login := os.environ.get(PREFECT_LOGIN) or os.environ.get(CREDENTIALS[0]):
        told[PREFECT_LOGIN] = login
    return told


@contextmanager
def sole_worker() -> Iterator[None]:
    """One in each folder; what a killed one has left behind is ended."""
    lock = FileLock(LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"a peft-flow worker is already running in {Path.cwd()}; use another folder") from None
    try:
        if left := clear_leftovers(REGISTER):
            say(f"an earlier peft-flow worker was killed; ended what it had left: {', '.join(left)}")
        yield
    finally:
        lock.release()


def start(options: Options, processes: Processes, name: str) -> None:
    keep_last_logs()
    runs, trials = options.limit or runs_at_once(), options.limit or trials_at_once()
    programs = list(worker_programs(name, runs, trials, os.environ))[: 1 + can_have_trials()]
    os.environ |= IMPATIENT
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        compare(read_facts(client))
        lift_limit(client)
        began = datetime.now(UTC)
        for program in programs:
            processes.start(program)
        processes.wait(WORKER, lambda: worker_is_online(client, name, began), START_SECONDS)
    of_sweeps = f" and {counted(trials, 'trial')} of sweeps" if can_have_trials() else ""
    print(
        f"This machine takes {counted(runs, 'run')}{of_sweeps} at a time, as {name}, in {Path.cwd()}. "
        "Ctrl-C stops it.\n\n"
        f"  Prefect  {os.environ['PREFECT_UI_URL']}/work-pools/work-pool/{POOL}\n",
        flush=True,
    )


def compare(theirs: Facts | None) -> None:
    """Say where this machine would not do what the machine of the servers does."""
    ours = own_facts()
    if theirs and (theirs.version, theirs.program) != (ours.version, ours.program):
        say(
            f"this machine has peft-flow {ours.version} (program {ours.program}), that of the servers {theirs.version} "
            f"({theirs.program}): results may differ; install the same here"
        )
    if theirs and theirs.studies and not can_have_trials():
        say(
            f"for trials of sweeps, set PGUSER and PGPASSWORD, of {theirs.studies.partition('?')[0]}; runs need neither"
        )


def can_have_trials() -> bool:
    """Whether this machine may open the database of a sweep, wherever that is."""
    return bool(os.environ.get("PGUSER") or os.environ.get("PGPASSWORD"))


def lift_limit(client: "SyncPrefectClient") -> None:
    """Each worker has a limit of its own; that of the pool, which `peft-flow up` gave it, was for one machine."""
    from prefect.client.schemas.actions import WorkPoolUpdate

    limit, facts = client.read_work_pool(POOL).concurrency_limit, read_facts(client)
    if limit is None:
        return
    if facts and limit == facts.runs:
        client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=None))
    else:
        say(
            f"somebody has limited the pool {POOL} to {limit} runs at a time on all machines together; if it is not "
            f"meant so: prefect work-pool clear-concurrency-limit {POOL}"
        )


# --- what is refused before anything starts ---------------------------------------------------------------------------


def refuse_other_packages(folder: Path) -> None:
    """InputError where runs, which begin in this folder, would find other modules than ours there."""
    ours = Path(tasks.__file__).resolve().parent
    for name in ("tasks", "flows"):
        for found in (folder / name, folder / f"{name}.py"):
            if found.exists() and found.resolve() != ours.with_name(name):
                raise InputError(
                    f"{found} stands in the place of peft-flow's own package `{name}`; start the worker in another "
                    "folder, an empty one for example"
                )


def check_address(option: str, address: str) -> None:
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        good = False
    if not good or address != without_login(address):
        raise InputError(
            f"{option}: give an address like http://HOST:PORT, not {without_login(address)!r:.100}; who you are goes "
            f"into {login_variables(option)}"
        )


def login_variables(option: str) -> str:
    return PREFECT_LOGIN if option == "--prefect" else " and ".join(CREDENTIALS[1:])


def check_prefect(options: Options) -> None:
    ask("--prefect", "Prefect server", f"{options.api}/work_pools/{POOL}", os.environ.get(PREFECT_LOGIN))


def check_mlflow(options: Options) -> None:
    user, password = (os.environ.get(name) for name in CREDENTIALS[1:])
    login = f"{user}:{password}" if user and password else None
    ask(
        "--mlflow",
        "MLflow server",
        f"{options.mlflow.rstrip('/')}/api/2.0/mlflow/experiments/get?experiment_id=0",
        login,
    )


ANSWER_SECONDS = 30


def ask(option: str, server: str, address: str, login: str | None) -> Any:
    """The server's answer; InputError where there is none, or it does not let us in, or is none of `peft-flow up`."""
    request = urllib.request.Request(address)
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    where = address.partition("/api/")[0]
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            who = "this user" if login else "anybody"
            reason = f"does not let {who} in; set {login_variables(option)} as on its own machine"
            raise InputError(f"{option}: the {server} at {where} {reason}") from None
        raise InputError(
            f"{option}: what answers at {where} ({error.code}) is no {server} of peft-flow up; check the address"
        ) from None
    except ValueError:
        raise InputError(f"{option}: what answers at {where} is no {server}; check the address") from None
    except OSError as error:
        words = getattr(error, "reason", error)
        raise InputError(f"{option}: nothing answers at {where} ({words}); does peft-flow up run there?") from None
