"""`peft-flow up` as the tests start it: in a folder, a Prefect database and at ports of its own."""

import base64
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from tasks.sources.demo import demo_folder
from tests.conftest import ROOT, free_port

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def until(claim: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true answer of `claim`."""
    deadline = time.monotonic() + seconds
    while not (answer := claim()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)
    return answer


@contextmanager
def used_by_newer_prefect(home: Path) -> Iterator[Path]:
    """Within, this is Prefect's home, its database has a change that the Prefect installed here does not know, and no
    server is set."""
    from prefect.settings import (
        PREFECT_API_DATABASE_CONNECTION_URL,
        PREFECT_API_URL,
        PREFECT_HOME,
        temporary_settings,
    )

    database = home / "prefect.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
    settings = {PREFECT_HOME: home, PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{database}"}
    with temporary_settings(settings, restore_defaults={PREFECT_API_URL}):
        yield database


def with_the_demo_made(cache: Path) -> dict[str, str]:
    """Environment of which `peft-flow up` takes the demo's model for made: at each start, it would pretrain it."""
    (cache / "peft-flow" / demo_folder().name / "model").mkdir(parents=True, exist_ok=True)
    fonts = os.environ.get("MPLCONFIGDIR") or str(demo_folder().parent.with_name("matplotlib"))  # listed in seconds
    return {"XDG_CACHE_HOME": str(cache), "MPLCONFIGDIR": fonts}


class Stack:
    """A stack in `folder`; it can be stopped or killed and started again there."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None, source: Path = ROOT) -> None:
        """`source`: where the program lies, which may be another version of it."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("flows", "tasks", "prefect.yaml"):
            if not (folder / name).exists():
                (folder / name).symlink_to(source / name)
        self.ports = free_port(), free_port()
        self.prefect, self.mlflow = (f"http://127.0.0.1:{port}" for port in self.ports)
        self.pages = self.prefect, self.mlflow
        """Addresses at which people open them."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_"))}
        self.environment = {
            **inherited,
            "PREFECT_HOME": str(folder / "prefect"),
            "PYTHONPATH": str(source),
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",  # of its own it looks once a minute
            **with_the_demo_made(folder / "cache"),
            **(environment or {}),
        }
        self.options: tuple[str, ...] = ()
        self.log = folder / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self, *options: str) -> None:
        self.options = options or self.options
        ports = ("--prefect-port", str(self.ports[0]), "--mlflow-port", str(self.ports[1]))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "up", *ports, *self.options],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self, *options: str) -> "Stack":
        self.begin(*options)
        assert self.process
        process = self.process
        until(lambda: "is up" in self.said() or process.poll() is not None, 180, "start")
        assert process.poll() is None, self.said()
        return self

    def is_running(self) -> bool:
        return bool(self.process and self.process.poll() is None)

    def start_with_passwords(self, passwords: Mapping[str, str]) -> None:
        """From now on it lets other machines in who know them, and so does what a client is told."""
        self.environment |= passwords
        self.start("--host", "0.0.0.0")
        self.pages = tuple(f"http://{socket.gethostname()}:{port}" for port in self.ports)  # type: ignore[assignment]

    @property
    def login(self) -> str:
        """USER:PASSWORD of Prefect; nothing where it asks for none."""
        return self.environment.get("PREFECT_SERVER_API_AUTH_STRING", "")

    def client_environment(self) -> dict[str, str]:
        """What a command that uses this stack's Prefect server is told."""
        told = self.environment | {"PREFECT_API_URL": f"{self.prefect}/api"}
        return told | ({"PREFECT_API_AUTH_STRING": self.login} if self.login else {})

    @property
    def api(self) -> Any:
        """MLflow's client."""
        from mlflow import MlflowClient

        user, password = (self.environment.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
        return MlflowClient(self.mlflow.replace("//", f"//{user}:{password}@") if password else self.mlflow)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 30) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL for everything of this stack at once, as when the power goes."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(self.processes(), timeout=10)
        if self.process:
            self.process.wait(10)

    def processes(self) -> list[psutil.Process]:
        """All processes of this stack, flow runs and orphans too: they carry its Prefect home."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("PREFECT_HOME") == self.environment["PREFECT_HOME"]
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def process_of(self, words: str) -> psutil.Process | None:
        """The process with these words in its command line: `prefect server`, `mlflow server`, `worker start`."""
        for process in self.processes():
            try:
                if re.search(words, " ".join(process.cmdline())):
                    return process
            except psutil.Error:
                continue
        return None

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Prefect's answer; urllib.error.HTTPError where it refuses."""
        request = urllib.request.Request(
            f"{self.prefect}/api{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        if self.login:
            request.add_header("authorization", f"Basic {base64.b64encode(self.login.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def refusal(self, method: str, path: str, body: Any) -> str:
        """Prefect's words when it refuses; nothing when it does not."""
        try:
            self.call(method, path, body)
        except urllib.error.HTTPError as error:
            return error.read().decode()
        return ""

    def deployment(self, name: str) -> dict[str, Any]:
        flow = name if name in ("finetune-seeds", "learning-curve", "retrain") else "finetune"
        answer: dict[str, Any] = self.call("GET", f"/deployments/name/{flow}/{name}")
        return answer

    def submit(self, parameters: Mapping[str, Any], deployment: str = "finetune") -> str:
        """Id of a flow run, queued now."""
        path = f"/deployments/{self.deployment(deployment)['id']}/create_flow_run"
        return str(self.call("POST", path, {"parameters": parameters, "state": {"type": "SCHEDULED"}})["id"])

    def state(self, flow_run: str) -> str:
        return str(self.call("GET", f"/flow_runs/{flow_run}")["state"]["type"])

    def tasks(self, flow_run: str) -> dict[str, str]:
        """State of each task of a flow run, by name."""
        found = self.call("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
        return {task["name"]: task["state_type"] for task in found}

    def until_state(self, flow_run: str, *states: str, seconds: float = 300) -> str:
        def reached() -> str:
            state = self.state(flow_run)
            return state if state in states else ""

        return str(until(reached, seconds, f"flow run in {' or '.join(states)}"))

    def mlflow_run(self, flow_run: str) -> Any:
        """The MLflow run that a flow run opened, None before it has; OSError where MLflow does not answer."""
        from mlflow.exceptions import MlflowException

        api = self.api
        try:
            experiments = [experiment.experiment_id for experiment in api.search_experiments()]
            found = api.search_runs(experiments, filter_string=f"tags.`prefect.flow_run_id` = '{flow_run}'")
        except MlflowException as error:
            raise OSError(str(error)) from error
        return found[0] if found else None
