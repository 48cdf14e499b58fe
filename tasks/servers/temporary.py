"""A Prefect server for one command, where no other is set: `python -m tasks.servers.temporary DOOR PARENT`.

Prefect would start the same one, but only when the flow is called, and would import all of the server into the command
for it, which takes a core for seconds. This one starts before the command imports anything else, as a fork of it where
that is possible, which need not import Prefect's client again, and ends with it even if that is killed.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from contextvars import Context
from http.client import HTTPConnection, HTTPException
from typing import Any

from tasks.base.fresh_process import Forked, can_fork, command, end_with, with_our_modules


class TemporaryServer:
    """Starts at once, and is this process's Prefect server until this process ends."""

    def __init__(self) -> None:
        from prefect.settings import (
            PREFECT_API_AUTH_STRING,
            PREFECT_API_URL,
            PREFECT_SERVER_API_AUTH_STRING,
            get_current_settings,
            temporary_settings,
        )

        settings = get_current_settings()
        self.patience = settings.server.ephemeral.startup_timeout_seconds
        environment = with_our_modules() | settings.to_environment_variables(exclude_unset=True) | EPHEMERAL
        with socket.socket() as door:
            door.bind(("127.0.0.1", 0))
            door.listen()  # who asks before the server is there waits
            self.port = door.getsockname()[1]
            # a terminal sends Ctrl-C to every process of the command; this one must live on to hear how the run ended
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self.process = start(door.fileno(), environment)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.settings = ExitStack()
        told: dict[Any, str] = {PREFECT_API_URL: f"http://127.0.0.1:{self.port}/api"}
        if password := PREFECT_SERVER_API_AUTH_STRING.value():  # meant for the server of all, and asked for by this too
            told[PREFECT_API_AUTH_STRING] = password
        self.settings.enter_context(temporary_settings(told))
        atexit.register(self.stop)  # before Prefect's own, which are called first: they tell the server the last of it

    def wait(self) -> None:
        """Until it answers. Raises RuntimeError where it does not."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=self.patience)
        try:
            connection.request("GET", "/api/health")
            answer = connection.getresponse().status
        except (OSError, HTTPException) as error:
            ended = self.process.poll()
            how = f"ended with exit code {ended}" if ended is not None else f"did not answer: {error}"
            raise RuntimeError(f"the Prefect server of this command {how}") from error
        finally:
            connection.close()
        if answer != 200:
            raise RuntimeError(f"the Prefect server of this command is not well: it answers {answer}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(self.patience)  # it first ends what it changes in its database's tables
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.settings.close()
        atexit.unregister(self.stop)


def start(door: int, environment: dict[str, str]) -> "subprocess.Popen[bytes] | Forked":
    if can_fork():
        return Forked(Context().run, serve_in_fork, door, os.getpid(), environment)
    numbers = [str(door), str(os.getpid())]
    return subprocess.Popen([*command("tasks.servers.temporary"), *numbers], env=environment, pass_fds=[door])


def serve_in_fork(door: int, parent: int, environment: dict[str, str]) -> None:
    """With the settings that a new process would have."""
    from prefect.context import refresh_global_settings_context

    os.environ.update(environment)
    refresh_global_settings_context()
    main(door, parent)


EPHEMERAL = {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1", "PREFECT_UI_ENABLED": "0"}
"""What Prefect tells the server that it starts for a process without one."""


def main(door: int, parent: int) -> None:
    end_with(parent, signal.SIGTERM)  # the other signal could leave half of a change in its database's tables

    import uvicorn

    from tasks.servers.waiting import let_writers_wait

    let_writers_wait()  # other commands, and `peft-flow up`, write to the same database
    server = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=3,  # seconds: a connection that somebody keeps open must not keep the command
    )
    uvicorn.Server(server).run(sockets=[socket.socket(fileno=door)])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
