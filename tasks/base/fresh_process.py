"""A module of this project in a fresh, offline process, or in a fork of this one that has computed nothing yet."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


class Fork:
    """What `start_offline` gives, without importing everything again: a fork of this process.

    This one has computed nothing yet. The fork has what `prepare` of the module imports, and only ever reads files:
    what is wrong on disk shows as in a process that was started anew. What it prints are its last words.
    """

    def __init__(self, module: str) -> None:
        self.ours, theirs = multiprocessing.Pipe()
        self.words = TemporaryFile("w+")  # noqa: SIM115  (closed with this)
        # daemon: it ends with this process
        self.process = multiprocessing.get_context("fork").Process(
            target=self.serve, args=(module, theirs), daemon=True
        )
        self.process.start()
        theirs.close()

    def serve(self, module: str, asked: Connection) -> None:
        self.ours.close()  # else nobody would notice that the other process is gone
        for stream in (sys.stdout, sys.stderr):
            os.dup2(self.words.fileno(), stream.fileno())
        import datasets
        import huggingface_hub

        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        try:
            request = asked.recv()
        except EOFError:  # who started this needs nothing, or is gone
            return
        import_module(module).main(json.loads(request))

    def communicate(self, request: str) -> tuple[str, str]:
        self.ours.send(request)
        self.process.join()
        self.words.seek(0)
        return "", self.words.read()

    def poll(self) -> int | None:
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def __enter__(self) -> "Fork":
        return self

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self.process.join()
        self.words.close()


def fork(module: str) -> Fork | None:
    """None where a fork would not be as good as a fresh process: something may have been computed here, or a thread
    would be missing in it, or a GPU is open, which a fork cannot use."""
    if sys.platform != "linux" or "torch" in sys.modules or threading.active_count() > 1:
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
    with process:
        try:
            _, words = process.communicate(json.dumps(request))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise RuntimeError(
            f"{module} failed in a fresh process (exit code {process.returncode}): {words.strip()[-2000:]}"
        )


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
