"""What a run computes on: a free GPU for each of its processes where there are several, no more threads than cores."""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.base.words import counted
from tasks.settings.fields import InputError
from tasks.settings.training import TrainingConfig

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


def processes(training: TrainingConfig) -> int:
    """How many train one run together, on all its machines."""
    return training.machines * processes_here(training)


def processes_here(training: TrainingConfig) -> int:
    """How many of them on this machine. Raises InputError for more than it has GPUs, or else cores."""
    if training.processes == "auto":
        share = training.batch_size // training.machines
        return max(count for count in range(1, max(1, len(gpus())) + 1) if share % count == 0)
    if (count := int(training.processes) // training.machines) > 1:
        from joblib import cpu_count

        found, kind = (len(gpus()), "GPU") if gpus() else (cpu_count(), "core")
        if count > found:
            raise InputError(
                f"training.processes: {count} processes need a {kind} each, and this machine has "
                f"{counted(found, kind)}; lower it, or say auto"
            )
    return count


def claim_device(count: int = 1) -> None:
    """For so many processes that train together. To be called before torch looks for its device; processes started
    from here inherit the choice."""
    limit_threads()
    claim_gpus(count)


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


def peak_memory_of_children_mb() -> float:
    """Most memory that a process which was started here, and has ended, ever held, in MiB."""
    import resource

    return round(mib(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss), 1)


def mib(maxrss: float) -> float:
    """Of what the system says of a process's memory, which macOS counts in bytes, Linux in KiB."""
    return maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def claim_gpus(count: int = 1) -> None:
    """Keep this process to so many free GPUs; where fewer are free, leave it as it is.

    The work pool lets in as many runs as there are GPUs. Without this, all of them would take the first.
    """
    names = gpus()
    if _claimed or len(names) < 2:
        return
    taken: dict[str, FileLock] = {}
    for name in names:
        lock = FileLock(Path(tempfile.gettempdir()) / f"peft-flow-gpu-{name}.lock")
        with suppress(Timeout):
            lock.acquire(timeout=0)
            taken[name] = lock
        if len(taken) == count:
            os.environ[CHOICE] = ",".join(taken)
            _claimed.extend(taken.values())
            return
    for lock in taken.values():
        lock.release()
