import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.base import device
from tasks.settings.fields import InputError
from tasks.settings.training import TrainingConfig
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
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that what is chosen here is undone as well
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


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


def training(**fields: object) -> TrainingConfig:
    return TrainingConfig.model_validate(fields)


@pytest.mark.parametrize(("rows", "count"), [(33, 3), (32, 2), (2, 2), (1, 1)])
def test_auto_is_one_process_for_each_gpu_as_far_as_a_batch_can_be_divided(
    machine: None, rows: int, count: int
) -> None:
    assert device.processes(training(processes="auto", batch_size=rows)) == count


def test_machines_have_as_many_processes_each(machine: None) -> None:
    where = {"machines": 2, "rendezvous": "10.0.0.1:29400"}
    for asked, here in (("4", 2), ("auto", 2)):
        four = training(processes=asked, batch_size=32, **where)
        assert (device.processes(four), device.processes_here(four)) == (2 * here, here)


def test_auto_is_one_process_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device.processes(training(processes="auto")) == 1


@pytest.mark.parametrize(
    ("choice", "says"), [("0,1,2", "a GPU each, and this machine has 3 GPUs"), ("", "a core each")]
)
def test_more_processes_than_gpus_or_cores_are_refused(choice: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", choice)
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    assert device.processes(training(processes=3, batch_size=12)) == 3
    with pytest.raises(InputError, match=f"^training.processes: 4 processes need {says}"):
        device.processes(training(processes=4))


def test_run_of_several_processes_takes_as_many_gpus_or_none(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_claimed", [])
    device.claim_gpus(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    first, device._claimed = device._claimed, []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    device.claim_gpus(2)  # one is left, which stays free for another run
    assert "CUDA_VISIBLE_DEVICES" not in os.environ and not device._claimed
    device.claim_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    for lock in (*first, *device._claimed):
        lock.release()


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
