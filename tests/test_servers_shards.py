"""Processes that label shards: here and in the work pool, where none is started twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.servers import shards
from tasks.servers.deployments import TRIALS_POOL, make_pools
from tasks.servers.shards import ShardProcesses, ShardRuns, shard_runners
from tests.stacks import until
from tests.test_servers_runners import set_state

LABELLER = """
import json, os, signal, sys
assert sys.argv[1:] == [str(os.getppid())], sys.argv
asked = json.load(sys.stdin)
with open(asked["log"], "w") as log:
    log.write("InputError: model: there is no such layer")
if asked["shard"]["number"] == 1:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(1)
"""


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShardProcesses]:
    """Of which the first is killed, and the others fail."""
    (tmp_path / "labeller.py").write_text(LABELLER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(shards, "MODULE", "labeller")
    made = ShardProcesses(tmp_path, 2)
    yield made
    made.stop()


def test_process_that_was_killed_is_told_from_one_that_failed(processes: ShardProcesses) -> None:
    names = [processes.start("a", {"number": number}) for number in (1, 2)]
    until(lambda: processes.alive(names) == [], 60, "their end")
    assert [processes.was_killed(name) for name in names] == [True, False]
    assert processes.last_words(names[1]) == "exit code 1, InputError: model: there is no such layer"


def test_shards_take_the_places_of_this_machine_or_all_of_the_pools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 4)
    monkeypatch.setattr(shards, "gpus", lambda: [])
    for number, places in ((2, 2), (9, 4)):
        found = shard_runners(tmp_path, number)
        assert isinstance(found, ShardProcesses) and found.places == places and not found.elsewhere
    monkeypatch.setattr(shards, "gpus", lambda: ["0"])
    assert shard_runners(tmp_path, 9) is None and "One process labels all rows" in caplog.text
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    monkeypatch.setattr(shards, "is_deployed", lambda name: name == "predict-shard/predict-shard")
    found = shard_runners(tmp_path, 9)
    assert isinstance(found, ShardRuns) and found.places == 9 and found.elsewhere


@pytest.fixture
def deployment(prefect_harness: None) -> Iterator[None]:
    from prefect.client.orchestration import get_client

    from flows.predict_shard import predict_shard

    with get_client(sync_client=True) as client:
        make_pools(client, "here")
        flow_id = client.create_flow(predict_shard)
        made = client.create_deployment(flow_id, "predict-shard", work_pool_name=TRIALS_POOL)
        yield
        client.delete_deployment(made)


def test_driver_that_was_killed_finds_its_runs_and_starts_anew_only_those_that_have_ended(deployment: None) -> None:
    from prefect.states import Crashed, Failed

    first, second = ShardRuns(2), ShardRuns(2)
    names = [first.start(key, {"number": 1}) for key in ("a-1-of-2", "a-2-of-2")]
    assert len(set(names)) == 2
    assert [second.start(key, {"number": 1}) for key in ("a-1-of-2", "a-2-of-2")] == names
    set_state(names[0], Crashed(message="Process exited with status code: -9"))
    set_state(names[1], Failed(message="Flow run encountered an exception: InputError: model: no such layer"))
    assert second.alive(names) == []
    assert second.was_killed(names[0]) and not second.was_killed(names[1])
    assert "InputError: model: no such layer" in second.last_words(names[1])
    third = ShardRuns(2)
    new = third.start("a-1-of-2", {"number": 1})
    assert new not in names and second.start("a-1-of-2", {"number": 1}) == new


def test_run_has_the_name_of_its_prediction_and_its_rows(deployment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import predict_shard as flow
    from tasks.inference.job import Job
    from tasks.inference.shard import Shard, Ticket
    from tasks.settings.config import PredictionConfig

    config = PredictionConfig(model="reviews@champion", input="july.csv", output="out.csv", shards=3)
    job = Job(adapter="a", version="reviews/1", source=None, columns=(), label_names=(), answers={}, work=None)
    more: dict[str, Any] = {
        "ids": None,
        "threads": 1,
        "chunk_rows": 4096,
        "rows": 9000,
        "number": 2,
        "of": 3,
        "start": 1,
        "stop": 3,
    }
    shard = Shard(config=config, job=job, ticket=Ticket(id="a", exchange=None), adapter_sha256="", **more)
    told = json.loads(shard.model_dump_json())
    assert Shard.model_validate(told) == shard
    monkeypatch.setattr(flow.runtime.flow_run, "parameters", {"shard": told}, raising=False)
    name = flow.predict_shard.flow_run_name
    assert callable(name)
    assert name() == "reviews@champion · july.csv · shard 2 of 3 (rows 4,096 to 8,999)"
