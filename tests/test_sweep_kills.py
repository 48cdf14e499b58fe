"""A real sweep in processes, some of which are killed: every trial ends once, and the same command goes on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.endurance

TRIALS = 12


@pytest.fixture
def command(foundation: Any, reviews: Path, workplace: Path, prefect_server: dict[str, str]) -> Callable[[], Any]:
    """Starts the sweep in a process of its own."""
    space = {"training": {"learning_rate": {"low": 0.001, "high": 0.03, "log": True}}}
    Path("space.json").write_text(json.dumps(space))
    options = [
        *("--model.name", str(foundation("gpt2")), "--data.name", str(reviews), "--data.max_length", "32"),
        *("--training.epochs", "6", "--training.batch_size", "4", "--evaluation.references", "[]"),
        *("--evaluation.bootstrap_samples", "200", "--sweep", "space.json", "--trials", str(TRIALS)),
        *("--parallel", "2", "--json"),
    ]

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "sweep", *options],
            env=os.environ | prefect_server | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=Path("log.txt").open("a"),
            text=True,
        )

    return start


def runners_of(process: Any) -> list[psutil.Process]:
    try:
        below = psutil.Process(process.pid).children(recursive=True)
        return [one for one in below if "tasks.studies.runner" in one.cmdline()]
    except psutil.Error:
        return []


def test_killed_runners_and_drivers_lose_no_trial_and_do_none_twice(command: Any) -> None:
    fates = random.Random(0)
    process, kills, deadline = command(), {"runner": 0, "driver": 0}, time.monotonic() + 500
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(fates.uniform(2, 5))
        runners = runners_of(process)
        if runners and kills["runner"] < 4:
            fates.choice(runners).send_signal(signal.SIGKILL)
            kills["runner"] += 1
        elif runners and kills["driver"] < 2:
            orphans = runners_of(process)
            process.kill()
            process.wait()
            kills["driver"] += 1
            process = command()
            _, left = psutil.wait_procs(orphans, timeout=20)
            assert not left  # nobody assigns trials to them any more
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, Path("log.txt").read_text()[-3000:]
    result = json.loads(text.strip().splitlines()[-1])
    assert kills == {"runner": 4, "driver": 2}
    assert [trial["number"] for trial in result["trials"]] == list(range(TRIALS))
    assert all(trial["outcome"]["state"] in ("finished", "pruned") for trial in result["trials"])
    check_mlflow(result)


def check_mlflow(result: dict[str, Any]) -> None:
    from tasks.tracking.address import client

    api = client()
    experiments = [one.experiment_id for one in api.search_experiments()]
    runs = api.search_runs(experiments, max_results=1000)
    assert {run.info.status for run in runs} == {"FINISHED"}
    trials = [run for run in runs if "trial" in run.data.params]
    assert sorted(int(run.data.params["trial"]) for run in trials) == list(range(TRIALS))
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {result["run_id"]}
    assert len(runs) == TRIALS + 1 + len({result["best_run"], result["given_run"]} - {None})
