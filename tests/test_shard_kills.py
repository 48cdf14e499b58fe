"""A real prediction in shards that are runs of `peft-flow up`: one is killed, then the driver; the bytes stay."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from flows.cli import DONE, main
from tests.conftest import ROOT, Trained
from tests.stacks import Stack, until
from tests.test_predict import REVIEWS

pytestmark = pytest.mark.endurance

CHUNKS = 6


@pytest.fixture
def many(workplace: Path) -> Path:
    texts = [f"{REVIEWS[row % 36]} {row}" for row in range((CHUNKS - 1) * 4096 + 100)]
    pd.DataFrame({"text": texts}).to_csv("many.csv", index=False)
    return workplace / "many.csv"


def shards_of(stack: Stack) -> list[dict[str, Any]]:
    """Flow runs of shards, as Prefect has them."""
    found = stack.call("POST", "/flow_runs/filter", {"flows": {"name": {"any_": ["predict-shard"]}}})
    return [dict(run) for run in found]


def process_of(stack: Stack, run: dict[str, Any]) -> psutil.Process | None:
    for process in stack.processes():
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID") == run["id"]:
                return process
        except psutil.Error:
            continue
    return None


def begin(trained: Trained, stack: Stack, *before: str) -> "subprocess.Popen[bytes]":
    """The command, after `before`, with the servers of `stack`."""
    words = ["predict", trained.adapter.folder, "many.csv", "out.csv", "--shards", "2", "--offline"]
    told = stack.client_environment() | {"MLFLOW_TRACKING_URI": stack.mlflow, "PYTHONPATH": str(ROOT)}
    told["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    command = [*before, sys.executable, "-m", "flows.cli", *words]
    return subprocess.Popen(command, env=told, stderr=Path("log").open("ab"))


def kill_first(stack: Stack, known: set[str]) -> None:
    def begun() -> psutil.Process | None:
        new = (run for run in shards_of(stack) if run["id"] not in known)
        return next((one for run in new if (one := process_of(stack, run))), None)

    until(begun, 120, "beginning of a shard").kill()


def states(stack: Stack, known: set[str]) -> list[str]:
    return sorted(run["state_type"] for run in shards_of(stack) if run["id"] not in known)


@pytest.fixture
def whole(trained: Trained, many: Path, prefect_harness: None) -> bytes:
    assert main(["predict", trained.adapter.folder, "many.csv", "whole.csv", "--offline"]) == DONE
    shutil.rmtree("mlruns")
    return Path("whole.csv").read_bytes()


def test_killed_shard_and_killed_driver_change_no_byte_and_start_nothing_twice(
    trained: Trained, whole: bytes, stack: Stack
) -> None:
    known = {run["id"] for run in shards_of(stack)}
    driver = begin(trained, stack)
    kill_first(stack, known)
    until(lambda: "was killed" in Path("log").read_text(), 120, "news of the shard that was killed")
    driver.kill()
    driver.wait()
    assert begin(trained, stack).wait(400) == DONE, Path("log").read_text()
    assert Path("out.csv").read_bytes() == whole
    assert states(stack, known) == ["COMPLETED", "COMPLETED", "CRASHED"]  # the second command has started none


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give the command a disk of its own")
def test_workers_that_do_not_see_the_disk_of_the_command_give_the_same_bytes(
    trained: Trained, whole: bytes, stack: Stack
) -> None:
    known = {run["id"] for run in shards_of(stack)}
    Path("mlruns").mkdir()
    own_disk = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none mlruns && exec "$@"', "sh")
    if subprocess.run([*own_disk, "true"], capture_output=True).returncode:
        pytest.skip("this root may not mount a disk")
    driver = begin(trained, stack, *own_disk)
    kill_first(stack, known)
    assert driver.wait(400) == DONE, Path("log").read_text()
    assert Path("out.csv").read_bytes() == whole and not list(Path("mlruns").rglob("*"))
    assert states(stack, known) == ["COMPLETED", "COMPLETED", "CRASHED"]
    assert not [file for file in (stack.folder / "mlruns/artifacts").rglob("*/given.tar")]
