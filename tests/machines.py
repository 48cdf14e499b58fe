"""Machines that are none: network namespaces with a host name, a folder and a worker of their own; and PostgreSQL."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest

from tasks.base.closing import flow_run_of
from tests.conftest import free_port
from tests.stacks import until

SLOTS = 2
"""Runs, and trials, at a time on each machine."""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Database:
    """PostgreSQL in a folder of its own, reachable from all machines."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder, self.port = folder, free_port()
        self.place = f"{host}:{self.port}"
        self.address = f"postgresql://{self.place}/postgres"
        self.programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True)
        shutil.chown(self.folder, "postgres")
        data = self.folder / "data"
        as_postgres = ["runuser", "-u", "postgres", "--"]
        run(*as_postgres, str(self.programs / "initdb"), "-D", str(data), "--auth", "trust")
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.213.0.0/16 trust\n")
        command = [str(self.programs / "postgres"), "-D", str(data), "-p", str(self.port), "-h", "*", "-k", str(data)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([*as_postgres, *command], stdout=log, stderr=log, start_new_session=True)
        until(lambda: self.ask("select 1"), 60, "PostgreSQL")

    def ask(self, question: str) -> list[Any]:
        """Rows; none while the table is not there."""
        import psycopg2

        with suppress(psycopg2.Error):
            connection = psycopg2.connect(self.address, user="postgres", connect_timeout=5)
            try:
                with connection.cursor() as cursor:
                    cursor.execute(question)
                    return list(cursor.fetchall())
            finally:
                connection.close()
        return []

    def ended(self) -> int:
        rows = self.ask("select count(*) from trials where state not in ('RUNNING', 'WAITING')")
        return int(rows[0][0]) if rows else 0

    def stop(self) -> None:
        if self.process:
            started = int((self.folder / "data/postmaster.pid").read_text().split()[0])
            os.kill(started, signal.SIGINT)  # itself: `runuser` hands on none that its own parent ignores
            self.process.wait(30)


@contextmanager
def postgresql() -> Iterator[Database]:
    """PostgreSQL, for this machine; skips the test where it cannot be had."""
    if os.getuid() or not list(Path("/usr/lib/postgresql").glob("*/bin")):
        pytest.skip("needs root, and the server of PostgreSQL (Debian: postgresql)")
    with TemporaryDirectory() as folder:  # not in pytest's, which shuts all others out
        Path(folder).chmod(0o755)
        database = Database(Path(folder) / "postgresql")
        try:
            database.start()
            yield database
        finally:
            database.stop()


class Machine:
    """A network namespace with a host name, a folder and a `peft-flow worker` of its own."""

    def __init__(self, number: int, folder: Path, ports: tuple[int, int], environment: dict[str, str]) -> None:
        """`ports` are those of Prefect and MLflow, on the machine that has all the others."""
        self.number, self.name = number, f"peft-flow-host{number}"
        self.cable, self.folder = f"pfchaos{number}", folder
        self.prefect, self.mlflow = (f"http://{self.gateway(number)}:{port}" for port in ports)
        self.environment = environment | {"PREFECT_HOME": str(self.folder / "prefect")}
        self.folder.mkdir(parents=True)
        self.workers: list[subprocess.Popen[bytes]] = []

    @staticmethod
    def gateway(number: int) -> str:
        return f"10.213.{number}.1"

    def plug_in(self) -> None:
        here, inside = self.cable, f"{self.cable}n"
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", here, "type", "veth", "peer", "name", inside, "netns", self.name)
        run("ip", "addr", "add", f"{self.gateway(self.number)}/24", "dev", here)
        run("ip", "link", "set", here, "up")
        within = ("ip", "-n", self.name)
        run(*within, "addr", "add", f"10.213.{self.number}.2/24", "dev", inside)
        run(*within, "link", "set", inside, "up")
        run(*within, "link", "set", "lo", "up")
        run(*within, "route", "add", "default", "via", self.gateway(self.number))

    def unplug(self) -> None:
        for command in (("link", "del", self.cable), ("netns", "del", self.name)):
            subprocess.run(["ip", *command], capture_output=True, check=False)

    def start_worker(self) -> None:
        """As docs/operations.md says."""
        servers = ("--prefect", self.prefect, "--mlflow", self.mlflow)
        self.workers.append(self.start("worker", *servers, "--limit", str(SLOTS)))

    def start(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        """`peft-flow COMMAND` there; what it prints is in COMMAND.log."""
        enter = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", f'hostname {self.name}; exec "$@"']
        with (self.folder / f"{command}.log").open("ab") as log:
            return subprocess.Popen(
                [*enter, "sh", sys.executable, "-m", "flows.cli", command, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def processes(self) -> list[psutil.Process]:
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        there = []
        for pid in found.stdout.split():
            with suppress(psutil.Error):
                there.append(psutil.Process(int(pid)))
        return there

    def runners(self) -> dict[str, list[psutil.Process]]:
        """By flow run."""
        found: dict[str, list[psutil.Process]] = {}
        for process in self.processes():
            if flow_run := flow_run_of(process):
                found.setdefault(flow_run, []).append(process)
        return found

    def kill_worker(self) -> None:
        kill([process for process in self.processes() if flow_run_of(process) is None])
        for worker in self.workers:
            worker.wait()

    def cut_off(self) -> None:
        """Nobody on the other side hears that a connection ended; here everything goes on."""
        run("ip", "link", "set", self.cable, "down")

    def connect_again(self) -> None:
        run("ip", "link", "set", self.cable, "up")

    def die(self) -> None:
        """As when the power goes."""
        self.cut_off()
        kill(self.processes())
        for worker in self.workers:
            worker.wait()
        self.unplug()


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
