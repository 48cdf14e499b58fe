"""`peft-flow up`: Prefect server, MLflow server, deployments and a worker, as one thing that starts and stops whole."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
from filelock import FileLock, Timeout

from tasks.base import liveness
from tasks.base.closing import close_lost_runs, drop_missed, flow_runs, set_right, wake_overdue
from tasks.base.device import gpus
from tasks.base.trouble import is_network_trouble
from tasks.servers.deployments import (
    POOL,
    TRIALS_POOL,
    deploy,
    forget_silence,
    make_automation,
    make_pools,
    refuse_newer_database,
)
from tasks.servers.doors import (
    CREDENTIALS,
    clients_environment,
    doors,
    names_of,
    refuse_open_doors,
    refuse_other_password,
    write_auth_config,
)
from tasks.servers.processes import Processes, Program, Register, clear_leftovers, end, refuse_taken_port
from tasks.settings.fields import InputError
from tasks.settings.fixed import DEPLOYMENTS, STORE
from tasks.settings.secrets import redact, without_login
from tasks.sources.demo import demo_folder
from tasks.tracking.opening import make_store
from tasks.tracking.run import close_dead_runs, close_silent_runs, send_what_waits

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


LOGS = STORE / "logs"

PREFECT, MLFLOW, WORKER = "the Prefect server", "the MLflow server", "the worker"

TRIALS_WORKER = "the worker for trials"

START_SECONDS = 120.0

LOOK_SECONDS = 2.0

TIDY_SECONDS = 5.0

FLOWS_STOP_SECONDS = 5.0
"""What is left of the ten seconds in which all must be gone, for flow runs to save and say what they have."""


class Options(NamedTuple):
    host: str
    prefect_port: int
    mlflow_port: int

    def reachable(self, port: int) -> str:
        """Address of a server here as this machine reaches it."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else "::1" if self.host == "::" else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def prefect(self) -> str:
        return self.reachable(self.prefect_port)

    @property
    def mlflow(self) -> str:
        return self.reachable(self.mlflow_port)

    def page(self, variable: str, port: int) -> str:
        """Address at which people open a server: what the environment variable says, else this machine's."""
        everywhere = self.host in ("0.0.0.0", "::")
        here = f"http://{socket.gethostname()}:{port}" if everywhere else self.reachable(port)
        page = without_login(os.environ.get(variable, "")).rstrip("/") or here
        try:
            names_of(page)
        except (KeyError, ValueError):  # no http, no name, a port that is not a number
            raise InputError(
                f"{variable}: {page!r:.200} is not an address; give https://NAME or http://NAME:PORT"
            ) from None
        return page


def up(options: Options) -> None:
    """Start everything, say what to click, and stay until told to stop; then stop everything.

    Raises InputError for what the user must change, RuntimeError where a server does not come up or dies for good.
    """
    signal.signal(signal.SIGHUP, signal.default_int_handler)  # the terminal was closed
    if not DEPLOYMENTS.exists():
        raise InputError(f"there is no {DEPLOYMENTS} in {Path.cwd()}; go to the folder of peft-flow")
    refuse_open_doors(options)
    began = time.monotonic()
    with alone(options) as register:
        refuse_taken_port(options.host, options.prefect_port, PREFECT, "--prefect-port")
        refuse_taken_port(options.host, options.mlflow_port, MLFLOW, "--mlflow-port")
        refuse_newer_database(register.with_name("prefect.db"))
        os.environ |= clients_environment(options)
        make_store()
        processes = Processes(register)
        try:
            start(options, processes)
            welcome(options, time.monotonic() - began)
            with demo_in_the_making():
                watch(options, processes)
        finally:
            stop(processes)


@contextmanager
def alone(options: Options) -> Iterator[Path]:
    """Where to note what runs. One stack for one Prefect database; what a killed one has left behind is ended."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    home.mkdir(parents=True, exist_ok=True)
    register = home / "peft-flow-up.json"
    lock = FileLock(home / "peft-flow-up.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        folder = Register.model_validate_json(register.read_bytes()).folder if register.exists() else "another folder"
        raise InputError(
            f"peft-flow up is already running, in {folder}; use that one, stop it first, or set PREFECT_HOME"
        ) from None
    try:
        if left := clear_leftovers(register):
            say(f"an earlier peft-flow up was killed; ended what it had left: {', '.join(left)}")
        yield register
    finally:
        lock.release()


def start(options: Options, processes: Processes) -> None:
    for log in LOGS.glob("*.log"):
        log.replace(log.with_suffix(".log.1"))
    programs = {program.name: program for program in make_programs(options)}
    os.environ |= IMPATIENT
    forget_silence(processes.register.with_name("prefect.db"))
    processes.start(programs[PREFECT])
    processes.start(programs[MLFLOW])
    from prefect.client.orchestration import get_client  # 2 s, in which the servers start

    processes.wait(PREFECT, lambda: answers(f"{options.prefect}/api/health"), START_SECONDS)
    with get_client(sync_client=True) as client:
        make_pools(client)
        for sentence in drop_missed(POOL):  # before a worker can begin with them
            say(f"{'missed':<10}  {sentence}")
        began = datetime.now(UTC)
        processes.start(programs[WORKER])
        processes.start(programs[TRIALS_WORKER])
        deploy(client, processes.register.with_name("peft-flow-deployed.json"))
        make_automation(client)
        processes.wait(MLFLOW, lambda: answers(f"{options.mlflow}/health"), START_SECONDS)
        refuse_other_password(options)
        processes.wait(WORKER, lambda: worker_is_online(client, began), START_SECONDS)


IMPATIENT = {"PREFECT_CLIENT_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""For this process: as long as it waits for a server that has died it does not start it again."""


def make_programs(options: Options) -> Iterator[Program]:
    python, everyone = [sys.executable, "-P", "-m"], dict(os.environ)  # -P: modules are ours, not the current folder's
    address = ["--host", options.host, "--port"]
    yield Program(
        PREFECT,
        [*python, "tasks.servers.waiting", "prefect", "server", "start", *address, str(options.prefect_port)],
        # the page asks the address that it came from, whatever that was called
        everyone | {"PREFECT_SERVER_UI_API_URL": "/api"},
        LOGS / "prefect.log",
    )
    store = STORE.resolve()
    command = [*python, "mlflow", "server", *address, str(options.mlflow_port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{store}/mlflow.db", "--artifacts-destination", f"{store}/artifacts"]
    # its job runner serves LLM evaluation, with seven processes
    environment = {**doors(options), **everyone, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI")
    if os.environ.get(CREDENTIALS[1]) and os.environ.get(CREDENTIALS[2]):
        command += ["--app-name", "basic-auth"]
        environment |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(write_auth_config()),
            "MLFLOW_AUTH_ADMIN_PASSWORD": os.environ[CREDENTIALS[2]],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY") or secrets.token_hex(),
        }
    yield Program(MLFLOW, command, environment, LOGS / "mlflow.log")
    # in the pool of trials nothing else limits how many come to this machine
    for name, pool, log, limit in (
        (WORKER, POOL, "worker.log", []),
        (TRIALS_WORKER, TRIALS_POOL, "worker-trials.log", ["--limit", str(len(gpus()) or os.cpu_count() or 1)]),
    ):
        yield Program(
            name,
            [
                *python,
                "prefect",
                "worker",
                "start",
                "--pool",
                pool,
                "--type",
                "process",
                "--name",
                worker_name(),
                *limit,
            ],
            everyone
            | {
                "PREFECT_WORKER_QUERY_SECONDS": str(LOOK_SECONDS),
                "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",  # should the first be lost, the start need not wait for 30 s
                # how it fetches and starts a run is not the run's story; tasks/base/environment.py turns it up again
                "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "WARNING",
            },
            LOGS / log,
        )


def worker_name() -> str:
    return socket.gethostname()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def worker_is_online(client: "SyncPrefectClient", since: datetime) -> bool:
    return any(
        worker.name == worker_name() and worker.last_heartbeat_time and worker.last_heartbeat_time >= since
        for worker in client.read_workers_for_work_pool(POOL)
    )


def welcome(options: Options, seconds: float) -> None:
    from tasks.tracking import runlist

    ui = os.environ["PREFECT_UI_URL"]
    mlflow = os.environ["MLFLOW_UI_URL"]
    print(
        f"peft-flow is up, after {seconds:.0f} s. Ctrl-C stops it.\n\n"
        f"  Prefect  {ui}/deployments\n"
        "           finetune-demo, Run, Quick run: a first run, done in a minute\n"
        "           finetune, Run, Custom run: the form, for any model, data and method\n"
        f"  MLflow   {mlflow}/#/experiments?{runlist.KIND}\n"
        "           runs, to browse and compare; the page of each run in Prefect links to it\n\n"
        f"Runs of the command line join in with\n"
        f"  export PREFECT_API_URL={options.prefect}/api MLFLOW_TRACKING_URI={options.mlflow}\n",
        flush=True,
    )


@contextmanager
def demo_in_the_making() -> Iterator[None]:
    """The first click on finetune-demo need not wait for the demo's own model, which takes longer than the run."""
    if (demo_folder() / "model").is_dir():
        yield
        return
    say("making the demo's model in the background: once, about two minutes")
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from tasks.sources.demo import demo_model; demo_model()"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    psutil.Process(process.pid).nice(10)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def watch(options: Options, processes: Processes) -> None:
    """One line for each thing that happens, for ever; what dies is started again, runs that died get their end."""
    seen: dict[Any, str] = {}
    since, tidied, trouble = datetime.now(UTC), 0.0, ""
    while True:
        for sentence in processes.revive():
            say(sentence)
        try:
            look(options, seen, since)
            if time.monotonic() - tidied > TIDY_SECONDS:
                tidy()
                tidied = time.monotonic()
        except Exception as error:
            # a server that is being started again is not news; nor is the same as before
            if not is_network_trouble(error) and trouble != str(error):
                trouble = str(error)
                say(f"{type(error).__name__}: {trouble}")
        time.sleep(LOOK_SECONDS)


def look(options: Options, seen: dict[Any, str], since: datetime) -> None:
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
    for run in reversed(runs):
        if run.state and run.state.name and run.state.timestamp > since and seen.get(run.id) != run.state.name:
            seen[run.id] = run.state.name
            words = (run.state.message or "").split("\n")[0] if run.state.is_failed() or run.state.is_crashed() else ""
            say("  ".join(filter(None, (f"{run.state.name.lower():<10}", run.name, words, run_page(run.id)))))


def tidy() -> None:
    """Every run that shows as running has a living process, or gets its end."""
    for flow_run_id in close_dead_runs():
        say(f"{'closed':<10}  a run whose process was gone  {run_page(flow_run_id)}")
    set_right()
    send_what_waits()
    close_silent_runs()
    for name in wake_overdue(POOL):
        say(f"{'overdue':<10}  {name}: nobody approved it in time")
    for sentence in drop_missed(POOL):
        say(f"{'missed':<10}  {sentence}")
    for name in (*close_lost_runs(POOL, worker_name()), *close_lost_runs(TRIALS_POOL, worker_name())):
        say(f"{'closed':<10}  {name}: its process was gone")


def run_page(flow_run_id: Any) -> str:
    return f"{os.environ['PREFECT_UI_URL']}/runs/flow-run/{flow_run_id}"


def stop(processes: Processes) -> None:
    """Flow runs first, while there are servers to tell; then the worker, then the servers."""
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
            tidy()
        except Exception as error:  # the next start does it
            say(f"not everything could be closed: {error}")
    processes.stop([WORKER, TRIALS_WORKER, MLFLOW, PREFECT])
    say("stopped")


def say(message: str) -> None:
    with suppress(OSError):  # the terminal is gone, and what runs must still be stopped
        print(f"{datetime.now():%H:%M:%S}  {redact(message)}", flush=True)
