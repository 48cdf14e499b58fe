"""`peft-flow up`: Prefect server, MLflow server, deployments and a worker, as one thing that starts and stops whole."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import psutil
from filelock import FileLock, Timeout

from tasks.base.again import start_again
from tasks.base.closing import drop_missed, wake_overdue
from tasks.servers import database as databases
from tasks.servers.database import Database
from tasks.servers.deployments import (
    AUTOMATION,
    POOL,
    are_known,
    deploy,
    forget_silence,
    make_automation,
    make_pools,
    newer_prefect,
    own_facts,
    publish_facts,
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
from tasks.servers.processes import Processes, Program, Register, clear_leftovers, refuse_taken_port
from tasks.servers.workers import (
    IMPATIENT,
    LOGS,
    PYTHON,
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
from tasks.settings.fixed import DEPLOYMENTS, STORE
from tasks.settings.secrets import without_login
from tasks.sources.demo import demo_folder
from tasks.tracking.opening import make_store
from tasks.tracking.run import close_silent_runs

PREFECT, MLFLOW = "the Prefect server", "the MLflow server"

NICENESS = 5
"""Of the workers, and so of all that runs do: the servers answer while trainings keep all cores busy. A training that
has the machine to itself loses nothing by it."""

TABLES_SECONDS = 600.0
"""So long a server may take that makes its tables in a database: a busy one took two minutes."""


class Options(NamedTuple):
    host: str
    prefect_port: int
    mlflow_port: int
    database: Database | None = None
    """None: SQLite files of this machine."""

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
        options = with_database(options, register.with_name("prefect.db"))
        os.environ |= clients_environment(options)
        make_store()
        processes = Processes(register)
        try:
            start(options, processes)
            welcome(options, time.monotonic() - began)
            with demo_in_the_making():
                watch(processes, tidy)
        finally:
            stop(processes, close_runs, (MLFLOW, PREFECT))


def with_database(options: Options, file: Path) -> Options:
    """With what Prefect needs to use its database, which may be this SQLite file; InputError where it cannot be used.

    Who may use PostgreSQL is from now on in the environment of this process, as the servers and the runs get it.
    """
    if not options.database:
        refuse_newer_database(file)
        return options
    os.environ |= options.database.environment
    database = databases.prepare(options.database)
    if not are_known(databases.changes_of_prefect(database), "postgresql"):
        raise InputError(f"--database: {newer_prefect(database.address)}, or give another database")
    return options._replace(database=database)


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
    keep_last_logs()
    programs, everyone = {program.name: program for program in make_programs(options)}, dict(os.environ)
    os.environ |= IMPATIENT
    if options.database:
        databases.forget_silence(options.database, AUTOMATION)
    else:
        forget_silence(processes.register.with_name("prefect.db"))
    processes.start(programs[PREFECT])
    processes.start(programs[MLFLOW])
    from prefect.client.orchestration import get_client  # 2 s, in which the servers start

    patience = TABLES_SECONDS if options.database else START_SECONDS
    processes.wait(PREFECT, lambda: answers(f"{options.prefect}/api/health"), patience)
    with get_client(sync_client=True) as client:
        name = worker_name()
        runs = make_pools(client, name)
        for sentence in drop_missed(POOL):  # before a worker can begin with them
            say(f"{'missed':<10}  {sentence}")
        began = datetime.now(UTC)
        for program in worker_programs(name, runs, trials_at_once(), everyone):
            processes.start(program._replace(niceness=NICENESS))
        deploy(client, processes.register.with_name("peft-flow-deployed.json"))
        publish_facts(client, own_facts(options.database.studies if options.database else None))
        make_automation(client)
        processes.wait(MLFLOW, lambda: answers(f"{options.mlflow}/health"), patience)
        refuse_other_password(options)
        processes.wait(WORKER, lambda: worker_is_online(client, name, began), START_SECONDS)


def make_programs(options: Options) -> Iterator[Program]:
    everyone, database = dict(os.environ), options.database
    address = ["--host", options.host, "--port"]
    yield Program(
        PREFECT,
        [*PYTHON, "tasks.servers.waiting", "prefect", "server", "start", *address, str(options.prefect_port)],
        # the page asks the address that it came from, whatever that was called
        everyone | {"PREFECT_SERVER_UI_API_URL": "/api"} | (database.for_prefect() if database else {}),
        LOGS / "prefect.log",
    )
    store = STORE.resolve()
    command = [*PYTHON, "mlflow", "server", *address, str(options.mlflow_port), "--workers", "1"]
    command += ["--artifacts-destination", f"{store}/artifacts"]  # which it serves: nobody else needs this disk
    # its job runner serves LLM evaluation, with seven processes
    environment = {**doors(options), **everyone, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment |= database.for_mlflow() if database else {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{store}/mlflow.db"}
    environment.pop("MLFLOW_TRACKING_URI")
    if os.environ.get(CREDENTIALS[1]) and os.environ.get(CREDENTIALS[2]):
        command += ["--app-name", "basic-auth"]
        environment |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(write_auth_config(database.address if database else None)),
            "MLFLOW_AUTH_ADMIN_PASSWORD": os.environ[CREDENTIALS[2]],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY") or secrets.token_hex(),
        }
    yield Program(MLFLOW, command, environment, LOGS / "mlflow.log")


def worker_name() -> str:
    return socket.gethostname()


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


def close_runs() -> None:
    """Nothing shows as running that has no process."""
    tidy_here(worker_name())
    close_silent_runs()


def tidy() -> None:
    """Nor does anything wait for ever."""
    close_runs()
    for sentence in start_again(POOL):
        say(f"{'again':<10}  {sentence}")
    for name in wake_overdue(POOL):
        say(f"{'overdue':<10}  {name}: nobody approved it in time")
    for sentence in drop_missed(POOL):
        say(f"{'missed':<10}  {sentence}")
