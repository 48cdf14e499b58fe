"""Processes for the trials of a sweep: started, known when they end, stopped; here and in the work pool."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tasks.servers import runners
from tasks.servers.runners import PoolRunners, ProcessRunners
from tasks.settings.fields import InputError
from tests.stacks import until
from tests.test_base_closing import new_pool

SLEEPER = """
import json, os, sys, time
assert sys.argv[1:] == ["2", str(os.getppid())], sys.argv
asked = json.load(sys.stdin)
assert asked["job"].endswith("job.json"), asked
if asked["name"].endswith("-1"):
    sys.exit("there is no such layer")
open(asked["log"], "w").close()
time.sleep(600)
"""


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessRunners]:
    """Of which the first fails and the others sleep."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(runners, "MODULE", "sleeper")
    made = ProcessRunners(tmp_path / "job.json", 2)
    yield made
    made.stop()


def test_process_that_has_ended_is_not_alive_and_has_last_words(processes: ProcessRunners) -> None:
    first, second = processes.start(), processes.start()
    assert first != second
    until(lambda: processes.alive([first, second]) == [second], 60, "end of the first")
    assert processes.last_words(first) == "exit code 1, there is no such layer"


def test_processes_are_gone_when_they_are_stopped(processes: ProcessRunners) -> None:
    names = [processes.start() for _ in range(3)][1:]
    until(lambda: all(processes.log(name).exists() for name in names), 60, "begin")
    began = time.monotonic()
    processes.stop()
    assert time.monotonic() - began < runners.STOP_SECONDS + 2
    assert processes.alive(names) == []


def test_processes_are_gone_when_all_trials_have_ended(processes: ProcessRunners) -> None:
    names = [processes.start() for _ in range(2)][1:]
    until(lambda: processes.log(names[0]).exists(), 60, "begin")
    processes.finish(names)
    processes.processes[names[0]].wait(5)
    assert processes.alive(names) == []


def test_processes_at_hand_are_used_and_what_is_left_of_them_ends(
    processes: ProcessRunners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with runners.runners_at_hand(2):
        spare, used = runners._at_hand
        name = processes.start()
        assert processes.processes[name] is used and used.poll() is None
    assert spare.poll() is not None and not runners._at_hand
    processes.stop()
    with runners.runners_at_hand(1):  # the trials run in this process
        assert not runners._at_hand
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    with runners.runners_at_hand(2):  # in those of the work pool
        assert not runners._at_hand


def test_process_of_a_driver_that_was_killed_is_not_one_of_ours(processes: ProcessRunners) -> None:
    assert processes.alive(["77-1"]) == []


@pytest.fixture
def pool(prefect_harness: None) -> Iterator[PoolRunners]:
    """Of a server that knows the deployment of runners; nobody works for its pool."""
    from prefect.client.orchestration import get_client

    from flows.sweep_runner import sweep_runner
    from tasks.servers.deployments import TRIALS_POOL, make_pools

    with get_client(sync_client=True) as client:
        make_pools(client, "here")
        flow_id = client.create_flow(sweep_runner)
        deployment = client.create_deployment(flow_id, "sweep-runner", work_pool_name=TRIALS_POOL)
        yield PoolRunners({"name": "sweep-a"}, 4)
        client.delete_deployment(deployment)


def set_state(name: str, state: Any) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(name), state, force=True)


def state_of(name: str) -> Any:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(name)).state


def test_flow_run_is_alive_until_its_state_is_final(pool: PoolRunners) -> None:
    from prefect.states import Crashed, Running

    first, second = pool.start(), pool.start()
    assert sorted(pool.alive([first, second])) == sorted([first, second])
    set_state(first, Running())
    set_state(second, Crashed(message="Process exited with status code: -9"))
    assert pool.alive([first, second]) == [first]
    assert "status code: -9" in pool.last_words(second)


def test_runner_of_a_driver_that_was_killed_is_taken_over(pool: PoolRunners) -> None:
    name = pool.start()
    again = PoolRunners({"name": "sweep-a"}, 4)
    assert again.alive([name, "77-1"]) == [name]
    again.stop()
    assert state_of(name).is_cancelled()


def test_stopping_cancels_those_that_wait_and_has_the_others_stopped(pool: PoolRunners) -> None:
    from prefect.states import Running

    waits, runs = pool.start(), pool.start()
    set_state(runs, Running())
    pool.stop()
    assert state_of(waits).is_cancelled() and state_of(runs).is_cancelling()


def test_flow_runs_complete_by_themselves_when_all_trials_have_ended(
    pool: PoolRunners, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.states import Completed, Running

    sees_it, still_starts = pool.start(), pool.start()
    set_state(sees_it, Running())
    monkeypatch.setattr("tasks.servers.runners.time.sleep", lambda seconds: set_state(sees_it, Completed()))
    pool.finish([sees_it])  # not of the other, which nobody has told
    assert state_of(sees_it).is_completed() and state_of(still_starts).is_scheduled()


def test_server_that_does_not_answer_says_nothing_about_who_is_alive(
    pool: PoolRunners, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> Any:
        raise ConnectionError("refused")

    name = pool.start()
    assert pool.alive([name]) == [name]
    monkeypatch.setattr(pool, "runs", refused)
    assert pool.alive([name]) == [name]


def test_runners_share_machines_by_the_workers_that_there_are(
    pool: PoolRunners, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pool.share() == 4
    from prefect.client.orchestration import SyncPrefectClient

    online = type("Worker", (), {"status": type("Status", (), {"value": "ONLINE"})})
    monkeypatch.setattr(SyncPrefectClient, "read_workers_for_work_pool", lambda self, name: [online, online, online])
    assert pool.share() == 2


def test_where_nobody_comes_it_is_said_once(
    pool: PoolRunners, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runners, "NOBODY_SECONDS", 0.0)
    name = pool.start()
    for _ in range(4):
        pool.alive([name])
    assert caplog.text.count("No worker has begun a run of sweep-runner") == 1


def test_server_without_the_deployment_runs_no_trials(prefect_harness: None, caplog: pytest.LogCaptureFixture) -> None:
    assert not runners.is_deployed() and "does not know sweep-runner/sweep-runner" in caplog.text


def test_server_with_the_deployment_runs_them(pool: PoolRunners) -> None:
    assert runners.is_deployed()


@pytest.mark.parametrize(
    ("studies", "lets_us_in", "found"),
    [("postgresql://h/n", True, "postgresql://h/n"), ("postgresql://h/n", False, None), (None, True, None)],
)
def test_trials_are_kept_where_all_machines_see_them_if_this_one_may(
    pool: PoolRunners,
    monkeypatch: pytest.MonkeyPatch,
    studies: str | None,
    lets_us_in: bool,
    found: str | None,
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    from tasks.servers.deployments import own_facts, publish_facts

    said: list[str] = []
    monkeypatch.setattr(runners, "warn", lambda text, *values: said.append(text % values))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    @contextmanager
    def connected(address: str) -> Iterator[None]:
        if not lets_us_in:
            raise InputError("no password supplied")
        yield

    with get_client(sync_client=True) as client:
        publish_facts(client, own_facts(studies))
    monkeypatch.setattr(runners, "connected", connected)
    assert runners.shared_studies() is None, "no server is set"
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    assert runners.shared_studies() == found
    assert said == ([] if lets_us_in else [said[0]]) and all(
        "(no password supplied); set PGUSER" in one for one in said
    )


@pytest.mark.usefixtures("prefect_harness")
def test_study_in_a_file_is_for_workers_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client

    said: list[str] = []
    monkeypatch.setattr(runners, "warn", lambda text, *values: said.append(text % values))
    monkeypatch.setattr(runners, "TRIALS_POOL", new_pool())
    with get_client(sync_client=True) as client:
        client.send_worker_heartbeat(runners.TRIALS_POOL, socket.gethostname(), heartbeat_interval_seconds=30)
        assert runners.can_open("sqlite:////here/sweeps.db") and not said
        client.send_worker_heartbeat(runners.TRIALS_POOL, "elsewhere-1a2b3c", heartbeat_interval_seconds=30)
        assert not runners.can_open("sqlite:////here/sweeps.db") and "elsewhere-1a2b3c cannot open" in said[0]
        assert runners.can_open("postgresql://h/n")
