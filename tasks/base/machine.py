"""This machine and its packages, as far as results depend on them."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import socket
import sys
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import tasks
from tasks.base.closing import FLOW_RUN
from tasks.base.records import digest


def describe_environment() -> str:
    """What a run needs to be done again elsewhere, by line: Python, system, device, threads, CPU, this program, and
    every package. tasks/studies/rerun.py reads it."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    packages = sorted(
        {f"{dist.name}=={dist.version}" for dist in importlib.metadata.distributions() if dist.name},
        key=str.lower,
    )
    facts = (
        f"# python {sys.version.split()[0]}",
        f"# system {platform.platform()}",
        f"# device {device}, {torch.get_num_threads()} threads",
        f"# cpu {cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        f"# code {code_key()}",
    )
    return "\n".join((*facts, *packages)) + "\n"


def where_paths_lead() -> str:
    """What to do about a path that leads nowhere: whoever asked for the run of a worker may sit at another machine."""
    if not os.environ.get(FLOW_RUN):
        return "check the path"
    return (
        f"this run is done by {socket.gethostname()}: check the path, and put it there, and at the same path on every "
        "machine with a worker, or use the Hub"
    )


def cpu_name() -> str:
    """Its model, which decides how numbers are added up; Python itself knows it on some systems only."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has units for products of bfloat16 matrices; others compute them several times as slowly."""
    import torch

    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def public_version(package: str) -> str:
    """Without the local part: `2.13.0+cpu` can be installed from nowhere else."""
    return importlib.metadata.version(package).split("+")[0]


BFLOAT16_WIDTH = 256
"""Hidden size from which bfloat16 pays on a CPU: below, casting costs more than the products win."""


def bfloat16_pays(device: str, width: int) -> bool:
    """Whether products in bfloat16 are faster on this kind of device, for a model of this hidden size."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and width >= BFLOAT16_WIDTH and cpu_multiplies_bfloat16()


@lru_cache
def environment_key() -> str:
    """Digest of what else decides about bits: this program, the packages that compute, device and threads."""
    import torch

    names = ["torch", "transformers", "peft", "tokenizers", "numpy", *filter(find_spec, ["bitsandbytes"])]
    packages = [f"{name} {version(name)}" for name in names]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return digest([packages, code_key(), device, cpu_multiplies_bfloat16(), torch.get_num_threads()])


ONLY_SHOWING = frozenset(
    {
        *("plots", "answer_plots", "drawing", "report", "card", "history", "timeline", "publishing", "overview"),
        *("servers", "sweep_page", "sweep_plots", "pareto_plot"),
    }
)
"""Files and folders of this program that draw, word or serve what others have computed."""


@lru_cache
def code_key(program: Path = Path(tasks.__file__).parent) -> str:
    """sha256 of this program, but for what only shows: of all that decides how a step is done."""
    code = hashlib.sha256()
    for file in sorted(program.rglob("*.py")):
        place = file.relative_to(program).with_suffix("")
        if ONLY_SHOWING.isdisjoint(place.parts):
            code.update(f"{place.as_posix()}\0{file.stat().st_size}\0".encode())
            code.update(file.read_bytes())
    return code.hexdigest()
