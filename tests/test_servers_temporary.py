"""The Prefect server of one command."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.base.fresh_process import with_our_modules
from tasks.servers import temporary
from tasks.servers.temporary import EPHEMERAL, TemporaryServer
from tasks.servers.waiting import WaitingSqlite
from tests.stacks import until


@pytest.fixture
def home(tmp_path: Path, empty_prefect: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a Prefect that no server uses yet."""
    from prefect.settings import (
        PREFECT_API_DATABASE_CONNECTION_URL,
        PREFECT_API_URL,
        PREFECT_HOME,
        temporary_settings,
    )

    monkeypatch.setattr(temporary, "can_fork", lambda: False)  # this process has seen other tests, or will
    shutil.copy(empty_prefect, tmp_path / "prefect.db")
    address = f"sqlite+aiosqlite:///{tmp_path}/prefect.db"
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", address)
    settings = {PREFECT_HOME: tmp_path, PREFECT_API_DATABASE_CONNECTION_URL: address}
    with temporary_settings(settings, restore_defaults={PREFECT_API_URL}):
        yield tmp_path


def test_server_is_that_of_this_process_until_it_is_stopped(home: Path) -> None:
    from prefect.settings import PREFECT_API_URL

    assert PREFECT_API_URL.value() is None
    server = TemporaryServer()
    server.wait()
    address = PREFECT_API_URL.value()
    assert address == f"http://127.0.0.1:{server.port}/api"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", "/api/flow_runs/count", "{}", {"content-type": "application/json"})
    assert connection.getresponse().read() == b"0"
    connection.close()
    assert isinstance(server.process, subprocess.Popen)
    server.process.send_signal(signal.SIGINT)  # as a terminal sends to every process of a command
    server.wait()
    server.stop()
    assert server.process.returncode in (0, -signal.SIGTERM) and PREFECT_API_URL.value() is None


def test_password_of_the_server_of_all_does_not_shut_this_process_out(home: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING, temporary_settings

    with temporary_settings({PREFECT_SERVER_API_AUTH_STRING: "team:secret"}):
        server = TemporaryServer()
        try:
            server.wait()
            with get_client(sync_client=True) as client:
                assert client.read_flows() == []
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            connection.request("GET", "/api/admin/settings")
            assert connection.getresponse().status == 401  # others it still does
        finally:
            server.stop()


def test_its_writers_wait_for_those_of_other_servers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn
    from prefect.server.database.dependencies import MODELS_DEPENDENCIES

    monkeypatch.setitem(MODELS_DEPENDENCIES, "database_config", None)
    monkeypatch.setattr(temporary, "end_with", lambda parent, number: None)
    seen = []
    served = lambda server, sockets: seen.append(MODELS_DEPENDENCIES["database_config"])  # noqa: E731
    monkeypatch.setattr(uvicorn.Server, "run", served)
    with socket.socket() as door:
        temporary.main(os.dup(door.fileno()), os.getpid())
    assert isinstance(seen[0], WaitingSqlite) and str(home) in seen[0].connection_url


@pytest.mark.endurance
def test_commands_with_servers_of_their_own_write_at_once(home: Path) -> None:
    """Over one database, as two commands at the same time do."""
    servers = TemporaryServer(), TemporaryServer()
    for server in reversed(servers):  # each ends what it has set for this process, the last first
        server.wait()

    def asked(port: int, method: str, path: str, body: Any) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(method, f"/api{path}", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text or "{}")

    def switch(port: int) -> list[int]:
        """A schedule, on and off: the server reads it, and then writes."""
        flow = asked(port, "POST", "/flows/", {"name": "one"})[1]
        schedules = [{"active": False, "schedule": {"cron": "0 3 * * 1"}}]
        given = {"name": str(threading.get_ident()), "flow_id": flow["id"], "schedules": schedules}
        status, made = asked(port, "POST", "/deployments/", given)
        path = f"/deployments/{made['id']}/schedules/{made['schedules'][0]['id']}"
        return [status, *(asked(port, "PATCH", path, {"active": active})[0] for active in (True, False) * 5)]

    try:
        with ThreadPoolExecutor(4) as people:
            found = list(people.map(switch, [server.port for server in servers] * 2))
    finally:
        for server in reversed(servers):
            server.stop()
    assert found == [[201, *[204] * 10]] * 4


def test_server_that_ends_is_an_error_in_words(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "command", lambda module: [sys.executable, "-c", "raise SystemExit(3)"])
    server = TemporaryServer()
    with pytest.raises(RuntimeError, match="the Prefect server of this command ended with exit code 3"):
        server.wait()
    server.stop()


def in_new_process(code: str) -> "subprocess.CompletedProcess[str]":
    """In one that has imported nothing yet, and so can be forked."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | with_our_modules()
    code = f"from tasks.base import environment\nfrom tasks.servers.temporary import TemporaryServer\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_server_ends_with_its_command_that_is_killed_and_leaves_a_database_that_serves_again(home: Path) -> None:
    killed = in_new_process(
        "import os, signal\n"
        "server = TemporaryServer()\n"
        "print(server.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = int(killed.stdout)
    until(lambda: not psutil.pid_exists(left), 60, "end of the server")
    server = TemporaryServer()
    server.wait()
    server.stop()


def test_fork_is_the_same_server_and_ends_as_quietly(home: Path) -> None:
    done = in_new_process(
        "import os, signal, urllib.request\n"
        "from tasks.base.fresh_process import Forked\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"  # as the command does
        "server = TemporaryServer()\n"
        "assert isinstance(server.process, Forked) and server.process.poll() is None\n"
        "server.wait()\n"
        "os.kill(server.process.pid, signal.SIGINT)\n"
        "server.wait()\n"
        "address = f'http://127.0.0.1:{server.port}'\n"
        "print(urllib.request.urlopen(f'{address}/api/admin/settings').read().decode())\n"
        "try:\n"
        "    urllib.request.urlopen(address)\n"
        "except OSError as error:\n"
        "    print(error)\n"
        "server.stop()\n"
        "print(server.process.returncode)\n"
    )
    assert done.returncode == 0 and done.stderr == ""
    settings, page, code = done.stdout.splitlines()
    assert json.loads(settings)["home"] == str(home), "the settings of this process"
    assert "404" in page, "the pages would be unpacked for nobody"
    assert code in ("0", str(-signal.SIGTERM))


def test_it_is_the_server_that_prefect_would_start(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn
    from prefect.server.api import server

    theirs: dict[str, Any] = {}
    monkeypatch.setattr(server.subprocess, "Popen", lambda args, env: theirs.update(args=args, env=env))
    server.SubprocessASGIServer._run_uvicorn_command(server.SubprocessASGIServer(4999))
    assert EPHEMERAL.items() <= theirs["env"].items()
    ours: list[Any] = []
    monkeypatch.setattr(temporary, "end_with", lambda *_: None)
    monkeypatch.setattr(temporary.socket, "socket", lambda fileno: fileno)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: ours.append((self.config, sockets)))
    temporary.main(7, 8)
    ((config, sockets),) = ours
    assert sockets == [7] and config.factory
    for option, value in {"--log-level": config.log_level, "--lifespan": config.lifespan}.items():
        assert theirs["args"][theirs["args"].index(option) + 1] == value
    assert config.app in theirs["args"]
