import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.base import device
from tests.conftest import ROOT

CLAIM = """
import os, time
from tasks.base.device import claim_gpus
claim_gpus()
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
time.sleep(60)
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose nvidia-smi lists three GPUs, with a folder for locks of its own."""
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\nfor n in 0 1 2; do echo "GPU $n: Some GPU (UUID: GPU-$n)"; done\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(("choice", "names"), [(None, ["0", "1", "2"]), ("2, 1", ["2", "1"]), ("", []), ("-1", [])])
def test_gpus_are_those_that_runs_may_use(
    machine: None, monkeypatch: pytest.MonkeyPatch, choice: str | None, names: list[str]
) -> None:
    if choice is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", choice)
    assert device.gpus() == names


@pytest.mark.parametrize(("cores", "set_before", "threads"), [(1, None, "1"), (10_000, None, None), (1, "3", "3")])
def test_container_with_fewer_cores_than_its_machine_has_as_many_threads(
    monkeypatch: pytest.MonkeyPatch, cores: int, set_before: str | None, threads: str | None
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_before:
        monkeypatch.setenv("OMP_NUM_THREADS", set_before)
    device.limit_threads()
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_each_run_has_a_gpu_of_its_own_and_gives_it_back(machine: None) -> None:
    runs: list[subprocess.Popen[str]] = []

    def claim() -> str:
        command = [sys.executable, "-c", CLAIM]
        runs.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        output = runs[-1].stdout
        assert output
        return output.readline().strip()

    assert [claim(), claim(), claim()] == ["0", "1", "2"]
    runs[1].kill()
    runs[1].wait()
    assert claim() == "1"
    for run in runs:
        run.kill()
        run.wait()


def test_one_gpu_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    device.claim_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5" and not device._claimed


@pytest.mark.parametrize(("system", "counted"), [("linux", 512 * 2**10), ("darwin", 512 * 2**20)])
def test_memory_is_the_same_however_the_system_counts_it(
    system: str, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=counted))
    monkeypatch.setattr(sys, "platform", system)
    assert device.peak_memory_mb() == 512


def test_memory_is_asked_for_in_one_place() -> None:
    files = [*ROOT.glob("tasks/**/*.py"), *ROOT.glob("flows/*.py")]
    assert [file.name for file in files if "getrusage" in file.read_text(encoding="utf-8")] == ["device.py"]
