"""Kills at random, as `make chaos` does, in small; and many runs at once."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chaos import Chaos, Outages, mlflow_server, open_flow_runs, prefect_server, run_cases
from tests.conftest import ROOT

pytestmark = pytest.mark.endurance

KILLS, KILLS_WITH_OUTAGES = 15, 4
AT_ONCE = 20


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server, address = prefect_server(tmp_path_factory.mktemp("prefect"))
    server.start()
    yield address
    left_open = open_flow_runs(address)
    left_open.pop("Pending", None)  # a kill in the milliseconds between its creation and its first sign of life
    server.kill()
    assert left_open == {}, "what was killed was not closed by the command that followed it"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, foundation: Any, reviews: Path) -> Path:
    values = {
        "model": {"name": str(foundation("gpt2"))},
        "data": {"name": str(reviews), "max_length": 32},
        "training": {"epochs": 6, "batch_size": 4, "learning_rate": 0.01},
        "evaluation": {"bootstrap_samples": 200, "batch_size": 8, "references": ["majority", "tfidf"]},
    }
    file = tmp_path_factory.mktemp("settings") / "small.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.mark.timeout(1200)
def test_killed_runs_end_as_if_nothing_had_happened(prefect: str, settings: Path, tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, [str(settings)], prefect)
    chaos.measure()
    assert (chaos.expected["models"], chaos.expected["versions"]) == (["READY"], 1)
    assert chaos.expected["runs"] == ["FINISHED"] and len(chaos.expected["points"]["train/loss"]) > 20
    outcomes = run_cases(chaos, KILLS, seed=5, jobs=2, say=print)
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert sum(outcome.kills for outcome in outcomes) >= KILLS


@pytest.mark.timeout(1200)
def test_every_point_arrives_once_when_mlflow_is_killed_too(prefect: str, settings: Path, tmp_path: Path) -> None:
    server, uri = mlflow_server(tmp_path / "server")
    server.start()
    try:
        chaos = Chaos(tmp_path, [str(settings)], prefect, uri)
        chaos.measure()
        with Outages(server, seed=3, up_seconds=10, down_seconds=4) as outages:
            outcomes = run_cases(chaos, KILLS_WITH_OUTAGES, seed=6, jobs=1, say=print)
    finally:
        server.kill()
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert outages.count >= 2


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("at_once", [4, pytest.param(AT_ONCE, marks=pytest.mark.slow)])
def test_runs_at_once_on_one_store_are_complete_and_correct(
    at_once: int, prefect: str, settings: Path, tmp_path: Path
) -> None:
    """Different seeds, and one of them twice: the second of these waits for the first and takes its result."""
    from mlflow import MlflowClient

    chaos = Chaos(tmp_path, [str(settings)], prefect)
    seeds = [0, *range(at_once - 1)]  # the two start one after the other, or one might be over when the other begins

    def run(seed: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", "finetune", str(settings), "--seed", str(seed), "--json"],
            cwd=tmp_path,
            env=chaos.environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )

    with ThreadPoolExecutor(at_once) as pool:
        done = list(pool.map(run, seeds))
    assert [one.returncode for one in done] == [0] * at_once, [one.stderr[-2000:] for one in done if one.returncode]
    results = [json.loads(one.stdout) for one in done]
    assert len({result["run_id"] for result in results}) == at_once - 1
    assert len({result["adapter_sha256"] for result in results}) == at_once - 1
    assert results[0]["run_id"] == results[1]["run_id"] and results[0]["tuned"] == results[1]["tuned"]
    assert sum("being run by another process; waiting" in one.stderr for one in done) == 1
    assert sum("The same run has just been finished; its result is used" in one.stderr for one in done) == 1
    api = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    for seed, result in zip(seeds, results, strict=True):
        found = api.get_run(result["run_id"])
        assert found.info.status == "FINISHED" and found.data.params["seed"] == str(seed)
        assert found.data.metrics["tuned/accuracy"] == result["tuned"]["accuracy"]
        points = [(point.step, point.value) for point in api.get_metric_history(result["run_id"], "train/loss")]
        assert len(points) == len(dict(points)) == found.data.metrics["train/steps"]
        logged = {file.path for file in api.list_artifacts(result["run_id"])}
        assert {"adapter", "comparison", "plots", "data_check", "config.yaml"} <= logged
