"""A module of this project in a fresh, offline process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


def run_offline(module: str, request: dict[str, Any]) -> None:
    """What `start_offline` has started, or now, told and waited for; RuntimeError carries its last words."""
    free_device_memory()
    process = _waiting.pop(module, None)
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


_waiting: dict[str, "subprocess.Popen[str]"] = {}


def end_with(parent: int) -> None:
    """Let this process live no longer than that one, which has started it, however that ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def reload_at_hand() -> Iterator[None]:
    """Within, a process for reading the adapter back has its imports done when it is needed.

    They take a core for 6 s: to be entered before this process imports as much, which leaves the other cores alone.
    """
    if RELOAD in _waiting:
        yield
        return
    process = _waiting[RELOAD] = start_offline(RELOAD)
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
