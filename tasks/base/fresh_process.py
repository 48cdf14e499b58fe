"""A module of this project in a fresh, offline process, or in a fork of this one that has computed nothing yet."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import tasks

RELOAD = "tasks.models.reload"
"""Module that reads an adapter in a process of its own."""


def start_offline(module: str) -> "subprocess.Popen[str]":
    """A module of this project in a fresh process with no Hub, which waits for its request on standard input."""
    environment = with_our_modules() | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command(module), env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def with_our_modules() -> dict[str, str]:
    """The environment of a process that finds this project's modules, whatever folder it is in."""
    root = str(Path(tasks.__file__).resolve().parent.parent)
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


def command(module: str) -> list[str]:
    return [sys.executable, "-P", "-m", module]  # -P: the current folder may hold a tasks.py of its own


class Forked:
    """What Popen gives of a process, of a fork of this one that calls a function. It ends with this process."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        def begin() -> None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as in a new process
            function(*arguments)

        self.process = multiprocessing.get_context("fork").Process(target=begin, daemon=True)
        self.process.start()

    @property
    def pid(self) -> int | None:
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> None:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0)

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


class Fork(Forked):
    """What `start_offline` gives, without importing everything again: a fork of this process.

    This one has computed nothing yet. The fork has what `prepare` of the module imports, and computes nothing either:
    it forks once more for each request. That process only ever reads files: what is wrong on disk shows as in one that
    was started anew. What it prints are its last words.
    """

    def __init__(self, module: str) -> None:
        self.ours, theirs = multiprocessing.Pipe()
        self.words = TemporaryFile("w+")  # noqa: SIM115  (closed with this)
        self.code: int | None = None
        super().__init__(self.serve, module, theirs)
        theirs.close()

    def serve(self, module: str, asked: Connection) -> None:
        self.ours.close()  # else nobody would notice that the other process is gone
        for stream in (sys.stdout, sys.stderr):
            os.dup2(self.words.fileno(), stream.fileno())
        import datasets
        import huggingface_hub

        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        while True:
            try:
                request = asked.recv()
            except EOFError:  # who started this needs no more, or is gone
                return
            asked.send(os.waitstatus_to_exitcode(os.waitpid(self.answer(module, request), 0)[1]))

    @staticmethod
    def answer(module: str, request: str) -> int:
        """The process that does it."""
        here = os.getpid()
        if child := os.fork():
            return child
        code = 1
        try:
            end_with(here)
            import_module(module).main(json.loads(request))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def communicate(self, request: str) -> tuple[str, str]:
        self.words.seek(0)
        self.words.truncate()
        self.ours.send(request)
        try:
            self.code = self.ours.recv()
        except EOFError:
            self.wait()
            self.code = self.process.exitcode
        self.words.seek(0)
        return "", self.words.read()

    @property
    def returncode(self) -> int | None:
        """Of the last request."""
        return self.code

    def __enter__(self) -> "Fork":
        return self

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self.process.join()
        self.words.close()


def can_fork() -> bool:
    """Whether a fork of this process is as good as a fresh one: nothing has been computed here, and no thread would be
    missing in it."""
    return sys.platform == "linux" and "torch" not in sys.modules and threading.active_count() == 1


def fork(module: str) -> Fork | None:
    """None where a fork would not be as good as a fresh process: see `can_fork`; or a GPU is open, which a fork cannot
    use."""
    if not can_fork():
        return None
    import_module(module).prepare()
    import torch

    return None if torch.accelerator.is_available() or threading.active_count() > 1 else Fork(module)


def run_offline(module: str, request: dict[str, Any]) -> None:
    """What `start_offline` has started, or now, told and waited for; RuntimeError carries its last words."""
    free_device_memory()
    process: subprocess.Popen[str] | Fork | None = _waiting.pop(module, None)
    if not process or process.poll() is not None:
        process = start_offline(module)
    with ExitStack() as closing:
        closing.enter_context(process)
        try:
            _, words = process.communicate(json.dumps(request))
        except BaseException:
            process.kill()
            raise
        if process.returncode:
            raise RuntimeError(
                f"{module} failed in a fresh process (exit code {process.returncode}): {words.strip()[-2000:]}"
            )
        if isinstance(process, Fork):  # is there for the next request, of another seed's run
            closing.pop_all()
            _waiting[module] = process


_waiting: "dict[str, subprocess.Popen[str] | Fork]" = {}


def end_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Let this process live no longer than that one, which has started it, however that ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), by)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def reload_at_hand() -> Iterator[None]:
    """Within, a process for reading the adapter back has its imports done when it is needed.

    They take a core for 6 s. To be entered before this process imports as much: then both do it once, or each on a core
    of its own.
    """
    if RELOAD in _waiting:
        yield
        return
    process = _waiting[RELOAD] = fork(RELOAD) or start_offline(RELOAD)
    try:
        yield
    finally:
        if _waiting.pop(RELOAD, None):
            with process:
                process.kill()


def free_device_memory() -> None:
    """Give back what finished models hold on the GPU: the next process needs it."""
    import gc

    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
