"""What a run computes on: one free GPU where a machine has several, and no more threads than it has cores to use."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

CHOICE = "CUDA_VISIBLE_DEVICES"

THREADS = "OMP_NUM_THREADS"

_claimed: list[FileLock] = []
"""Kept, like the GPU's memory, until this process ends."""


def gpus() -> list[str]:
    """Names of the GPUs that runs here may use, as CUDA_VISIBLE_DEVICES has them."""
    if (chosen := os.environ.get(CHOICE)) is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if not (program := shutil.which("nvidia-smi")):
        return []
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False).stdout.splitlines()
    return [str(number) for number, _ in enumerate(line for line in listed if line.startswith("GPU "))]


def claim_device() -> None:
    """To be called before torch looks for its device; processes started from here inherit the choice."""
    limit_threads()
    claim_gpu()


def limit_threads() -> None:
    """No more than a container may use: torch would start one for each core of the machine, and they would wait.

    Everywhere else torch's own choice, one for each core, is the right one.
    """
    from joblib import cpu_count

    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (allowed := cpu_count()) < seen:
        os.environ.setdefault(THREADS, str(allowed))


def peak_memory_mb() -> float:
    """Most memory this process ever held, in MiB: on the GPU where one is used, else resident."""
    import resource

    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(mib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss), 1)


def mib(maxrss: float) -> float:
    """Of what the system says of a process's memory, which macOS counts in bytes, Linux in KiB."""
    return maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def claim_gpu() -> None:
    """Keep this process to one free GPU; where all are taken, leave it as it is.

    The work pool lets in as many runs as there are GPUs. Without this, all of them would take the first.
    """
    names = gpus()
    if _claimed or len(names) < 2:
        return
    for name in names:
        lock = FileLock(Path(tempfile.gettempdir()) / f"peft-flow-gpu-{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        os.environ[CHOICE] = name
        _claimed.append(lock)
        return
