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


def test_killed_shard_and_killed_driver_change_no_byte_and_start_nothing_twice(
    trained: Trained, many: Path, stack: Stack, prefect_harness: None
) -> None:
    assert main(["predict", trained.adapter.folder, "many.csv", "whole.csv", "--offline"]) == DONE
    shutil.rmtree("mlruns")

    def begin() -> "subprocess.Popen[bytes]":
        words = ["predict", trained.adapter.folder, "many.csv", "out.csv", "--shards", "2", "--offline"]
        told = stack.client_environment() | {"MLFLOW_TRACKING_URI": stack.mlflow, "PYTHONPATH": str(ROOT)}
        told["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
        return subprocess.Popen([sys.executable, "-m", "flows.cli", *words], env=told, stderr=Path("log").open("ab"))

    driver = begin()
    first = until(
        lambda: next((one for run in shards_of(stack) if (one := process_of(stack, run))), None), 120, "begin"
    )
    first.kill()
    until(lambda: "was killed" in Path("log").read_text(), 120, "news of the shard that was killed")
    driver.kill()
    driver.wait()
    driver = begin()
    assert driver.wait(400) == DONE, Path("log").read_text()
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
    states = [run["state_type"] for run in shards_of(stack)]
    assert sorted(states) == ["COMPLETED", "COMPLETED", "CRASHED"]  # of the driver that came after, none is new
