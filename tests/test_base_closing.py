import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import mlflow
import pytest
import yaml
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import (
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Paused,
    Pending,
    Running,
    Scheduled,
    State,
    Suspended,
)

from tasks.base import closing, liveness
from tasks.base.closing import FLOW_RUN
from tasks.base.work import WORK
from tasks.tracking import address, sending
from tasks.tracking import run as tracking
from tasks.tracking.flow import first_sign_of_life
from tasks.tracking.journal import LINES, Head, Journal, now
from tests.conftest import ROOT, only_run, tracked

DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]

STATES = {"COMPLETED": Completed, "FAILED": Failed, "CRASHED": Crashed, "CANCELLED": Cancelled}

pytestmark = pytest.mark.usefixtures("prefect_harness")


@flow
def some_flow() -> None: ...


def flow_run(state: State[Any]) -> str:
    """Id of a flow run that no process works on, in this state since now."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(some_flow)
        client.set_flow_run_state(run.id, state, force=True)
    return str(run.id)


def state_of(run: str) -> StateType:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(run)).state
    assert state
    return state.type


def leave_note(run: str, pid: int = 1, starting: bool = False) -> None:
    """As a process of this run leaves it that was killed."""
    liveness.LIVE.mkdir(parents=True, exist_ok=True)
    note = liveness.Note(flow_run_id=run, pid=pid, since=datetime.now(UTC), work=str(folder_of(run)), starting=starting)
    note.write(liveness.LIVE / f"{run}.json")


def folder_of(run: str) -> Path:
    return (WORK / run).resolve()


def mlflow_run(run: str) -> str:
    """Id of an MLflow run of this flow run that shows as running, in an experiment of its own."""
    folder_of(run).mkdir(parents=True)
    head = Head(key=run, name="a run", experiment=f"of {run}", started=now(), parent=None)
    journal = Journal.create(folder_of(run), head)
    journal.add("begin", {"flow_run_id": run, "tags": {address.FLOW_RUN_TAG: run}})
    sending.send(journal)
    return str(journal.sent.run_id)


def status(run_id: str) -> str:
    return str(mlflow.MlflowClient(address.tracking_uri()).get_run(run_id).info.status)


def test_run_that_was_killed_is_closed_everywhere(workplace: Path) -> None:
    run = flow_run(Running())
    run_id = mlflow_run(run)
    leave_note(run)
    with get_client(sync_client=True) as client:
        task_run = client.create_task_run(task(lambda: None, name="a task"), UUID(run), "key", state=Running())
    assert tracking.close_dead_runs() == [run]
    assert state_of(run) is StateType.CRASHED and status(run_id) == "KILLED"
    with get_client(sync_client=True) as client:
        state = client.read_task_run(task_run.id).state
    assert state and state.type is StateType.CRASHED
    assert list(liveness.notes()) == [] and tracking.close_dead_runs() == []


@pytest.mark.parametrize(
    ("state", "expected"),
    [("COMPLETED", "FINISHED"), ("FAILED", "FAILED"), ("CRASHED", "KILLED"), ("CANCELLED", "KILLED")],
)
def test_mlflow_says_what_prefect_knows(workplace: Path, state: str, expected: str) -> None:
    run = flow_run(STATES[state]())
    run_id = mlflow_run(run)
    leave_note(run)
    assert tracking.close_dead_runs() == [run]
    assert state_of(run).value == state and status(run_id) == expected


def test_run_of_another_folder_ends_in_mlflow_as_it_did_in_prefect(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, going = flow_run(Crashed()), flow_run(Running())
    ids = mlflow_run(over), mlflow_run(going)
    tracking.close_silent_runs()
    assert [status(run_id) for run_id in ids] == ["RUNNING", "RUNNING"]  # it may be about to say so itself
    monkeypatch.setattr(closing, "SETTLED_SECONDS", timedelta(0))
    tracking.close_silent_runs()
    assert [status(run_id) for run_id in ids] == ["KILLED", "RUNNING"]


def test_run_that_ended_in_good_order_is_no_news(workplace: Path) -> None:
    run = flow_run(Completed())
    run_id = mlflow_run(run)
    Journal(folder_of(run)).add("end", {"status": "FINISHED"})
    tracking.send_what_waits()
    leave_note(run)
    assert tracking.close_dead_runs() == []
    assert list(liveness.notes()) == [] and status(run_id) == "FINISHED"


def test_cancelled_run_whose_process_is_gone_is_cancelled(workplace: Path) -> None:
    run = flow_run(Running())
    leave_note(run)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run), Cancelling(), force=True)
    tracking.close_dead_runs()
    assert state_of(run) is StateType.CANCELLED


def message_of(run: str) -> str:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(run)).state
    return (state and state.message) or ""


def set_state(run: str, state: State[Any]) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run), state, force=True)


@pytest.mark.parametrize(
    ("states", "ends", "says"),
    [
        ((Running, Cancelling), StateType.CANCELLED, closing.CANCELLED),  # its worker has not said so yet
        ((Running, Cancelling, Crashed), StateType.CANCELLED, closing.CANCELLED),  # it took it for any other signal
        ((Running,), StateType.CRASHED, closing.GONE),
        ((Running, Paused), StateType.CRASHED, closing.WAITED),
        ((Running, Paused, Crashed), StateType.CRASHED, closing.WAITED),  # it was told to stop while it waited
        ((Running, Paused, Running, Crashed), StateType.CRASHED, "for its own reason"),
        ((Running, Suspended), StateType.PAUSED, ""),
        ((Running, Suspended, Cancelled), StateType.CANCELLED, ""),
    ],
)
def test_end_says_what_happened(workplace: Path, states: Any, ends: StateType, says: str) -> None:
    run = flow_run(Running())
    with get_client(sync_client=True) as client:
        task_run = client.create_task_run(task(lambda: None, name="a task"), UUID(run), "key", state=Running())
    for state in states[1:]:
        more: dict[str, Any] = {"timeout_seconds": 600} if state in (Paused, Suspended) else {}
        set_state(run, state(**more, **({"message": "for its own reason"} if state is Crashed else {})))
    leave_note(run)
    tracking.close_dead_runs()
    assert (state_of(run), message_of(run)) == (ends, says)
    assert list(liveness.notes()) == []
    with get_client(sync_client=True) as client:
        found = client.read_task_run(task_run.id).state
    assert found and (found.type is ends or ends is StateType.PAUSED)


def test_part_of_a_cancelled_run_is_cancelled_too(workplace: Path) -> None:
    whole, part = flow_run(Running()), flow_run(Running())
    with get_client(sync_client=True) as client:
        parent = client.create_task_run(task(lambda: None, name="finetune"), UUID(whole), "key", state=Running())
        part = str(client.create_flow_run(some_flow, parent_task_run_id=parent.id).id)
    set_state(part, Running())
    set_state(whole, Cancelling())
    for run in (part, whole):
        leave_note(run)
    tracking.close_dead_runs()
    assert state_of(part) is state_of(whole) is StateType.CANCELLED


def test_run_that_prefect_does_not_know_is_killed_in_mlflow(workplace: Path) -> None:
    run = "00000000-0000-4000-8000-000000000000"
    run_id = mlflow_run(run)
    leave_note(run)
    assert tracking.close_dead_runs() == [run]
    assert status(run_id) == "KILLED"


def test_living_run_is_left_alone(workplace: Path) -> None:
    run = flow_run(Running())
    run_id = mlflow_run(run)
    liveness.hold(run)
    assert tracking.close_dead_runs() == []
    assert state_of(run) is StateType.RUNNING and status(run_id) == "RUNNING"


def test_run_that_was_started_again_is_left_to_its_new_process(workplace: Path) -> None:
    run = flow_run(Crashed())
    leave_note(run)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run), Running(), force=True)
    tracking.close_dead_runs()
    assert state_of(run) is StateType.RUNNING


def test_run_that_was_killed_before_its_first_line_is_closed(workplace: Path) -> None:
    run = flow_run(Pending())
    leave_note(run, starting=True)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run), Running(), force=True)
    assert tracking.close_dead_runs() == [run]
    assert state_of(run) is StateType.CRASHED


def test_run_has_its_note_before_prefect_says_that_it_runs(workplace: Path) -> None:
    seen: list[tuple[bool, StateType]] = []

    @first_sign_of_life
    def name() -> str:
        (note,) = liveness.living()
        seen.append((note.starting, state_of(note.flow_run_id)))
        return "a run"

    flow(flow_run_name=name)(lambda: None)()
    assert seen == [(True, StateType.PENDING)]


@pytest.mark.parametrize("entry", sorted({entry["entrypoint"] for entry in DEPLOYMENTS}))
def test_every_flow_has_its_note_before_prefect_says_that_it_runs(entry: str) -> None:
    module, _, name = entry.rpartition(".")
    found = getattr(import_module(module), name)
    assert found.flow_run_name.__wrapped__ and "first_sign_of_life" in found.flow_run_name.__code__.co_qualname


def test_what_cannot_be_reached_now_is_closed_later(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = flow_run(Running())
    run_id = mlflow_run(run)
    leave_note(run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking.close_dead_runs() == [run]
    assert state_of(run) is StateType.CRASHED and list(liveness.notes()) == []
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert status(run_id) == "RUNNING"
    tracking._next_attempt.clear()
    tracking.send_what_waits()
    assert status(run_id) == "KILLED"


def test_run_that_died_before_mlflow_knew_it_is_there_as_killed(workplace: Path) -> None:
    run = flow_run(Running())
    folder_of(run).mkdir(parents=True)
    journal = Journal.create(folder_of(run), Head(key=run, name="a run", experiment="late", started=now(), parent=None))
    journal.add("begin", {"flow_run_id": run, "tags": {}})
    leave_note(run)
    assert tracking.close_dead_runs() == [run]
    assert only_run(workplace, "late").info.status == "KILLED"


@pytest.mark.parametrize("fault", ["journal", "id"])
def test_run_that_cannot_be_closed_holds_up_no_other(
    fault: str, workplace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoiled, other = flow_run(Running()), flow_run(Running())
    for run in (spoiled, other):
        mlflow_run(run)
        leave_note(run)
    if fault == "journal":
        (folder_of(spoiled) / LINES).write_text('{"kind": "later"}\n')
    else:
        (liveness.LIVE / f"{spoiled}.json").unlink()
        leave_note(spoiled := "0 is no id of a flow run")
    for _ in range(2):
        assert tracking.close_dead_runs() in ([other], [])
    assert state_of(other) is StateType.CRASHED
    assert [note.flow_run_id for note in liveness.notes()] == [spoiled]
    assert caplog.text.count(f"run {spoiled}, which died, cannot be closed") == 1


def test_run_begins_while_a_dead_one_is_being_closed(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect may be slow to answer."""
    leave_note("dead")

    def close(note: liveness.Note) -> closing.End:
        liveness.hold("new")
        return closing.End(state="CRASHED", time=datetime.now(UTC))

    monkeypatch.setattr(closing, "close_in_prefect", close)
    closing.close_dead_runs(lambda note, how: True)
    assert [note.flow_run_id for note in liveness.notes()] == ["new"]


def test_next_run_closes_what_died_before(workplace: Path) -> None:
    run = flow_run(Running())
    run_id = mlflow_run(run)
    leave_note(run)
    with tracked(tags={address.FLOW_RUN_TAG: flow_run(Running())}):
        assert state_of(run) is StateType.CRASHED and status(run_id) == "KILLED"


def test_cancelled_run_without_a_worker_is_stopped(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        run = flow_run(Cancelling())
        monkeypatch.setattr(closing, "CANCEL_SECONDS", timedelta(0))
        monkeypatch.setattr(os, "getpid", lambda: process.pid)
        liveness.hold(run)
        closing.set_right()
        assert process.wait(10) == -signal.SIGTERM
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    liveness._held.pop(run).release()
    with get_client(sync_client=True) as client:  # what it says of itself on its way out
        client.set_flow_run_state(UUID(run), Crashed(), force=True)
    tracking.close_dead_runs()
    assert state_of(run) is StateType.CANCELLED


def test_run_that_was_suspended_and_then_cancelled_is_cancelled_once_more(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = flow_run(Cancelled())
    monkeypatch.setattr(closing, "CANCEL_SECONDS", timedelta(0))
    liveness.hold(run)
    closing.set_right()
    assert state_of(run) is StateType.CANCELLING


def test_run_that_is_alive_after_all_is_not_crashed(workplace: Path) -> None:
    run = flow_run(Crashed(message=f"{closing.NO_HEARTBEAT}; it was killed"))
    other = flow_run(Crashed(message="for another reason"))
    liveness.hold(run)
    liveness.hold(other)
    closing.set_right()
    assert state_of(run) is StateType.RUNNING and state_of(other) is StateType.CRASHED


@pytest.fixture
def pool() -> str:
    return new_pool()


def new_pool() -> str:
    from prefect.client.schemas.actions import WorkPoolCreate

    name = f"pool-{datetime.now(UTC):%H%M%S%f}"
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
    return name


def claimed(pool: str, state: State[Any]) -> str:
    """Id of a flow run that a worker of the pool has taken."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(some_flow, work_pool_name=pool)
        client.set_flow_run_state(run.id, state, force=True)
    return str(run.id)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (Running(), StateType.CRASHED),
        (Cancelling(), StateType.CANCELLED),
        (Pending(), StateType.SCHEDULED),
    ],
)
def test_claimed_run_without_a_process_is_closed_or_queued_again(
    workplace: Path, pool: str, state: State[Any], expected: StateType, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = claimed(pool, state)
    assert closing.close_lost_runs(pool, "here") == []  # it may be about to start
    monkeypatch.setattr(closing, "LOST_SECONDS", 0)
    closing.close_lost_runs(pool, "here")
    assert state_of(run) is expected


def test_claimed_run_with_a_process_is_left_alone(workplace: Path, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LOST_SECONDS", 0)
    run = claimed(pool, Running())
    environment = os.environ | {FLOW_RUN: run}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment) as process:
        assert closing.close_lost_runs(pool, "here") == []
        process.kill()
    assert len(closing.close_lost_runs(pool, "here")) == 1


def test_claimed_run_may_be_another_machines(workplace: Path, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LOST_SECONDS", 0)
    run = claimed(pool, Running())
    with get_client(sync_client=True) as client:
        client.send_worker_heartbeat(pool, "elsewhere", heartbeat_interval_seconds=30)
    assert closing.close_lost_runs(pool, "here") == []
    assert state_of(run) is StateType.RUNNING


@pytest.mark.parametrize(("asked", "late", "woken"), [(True, True, True), (True, False, False), (False, True, False)])
def test_question_that_nobody_answered_in_time_is_taken_up_again(
    workplace: Path, pool: str, asked: bool, late: bool, woken: bool
) -> None:
    until = datetime.now(UTC) + timedelta(seconds=-1 if late else 600)
    state = Suspended(pause_expiration_time=until)
    if asked:
        state.state_details.run_input_keyset = {"schema": "s", "response": "r", "description": "d"}
    run = claimed(pool, Running())
    set_state(run, state)
    assert bool(closing.wake_overdue(pool)) == woken
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(UUID(run)).state
    assert found and (found.name == closing.OVERDUE) == found.is_scheduled() == woken


NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def due(days: int, state: State[Any], began: datetime | None = None) -> Any:
    """A run of a daily schedule."""
    return SimpleNamespace(
        expected_start_time=NOON + timedelta(days=days), state=state, start_time=began, run_count=int(began is not None)
    )


@pytest.mark.parametrize(
    ("runs", "dropped"),
    [
        ([due(0, Scheduled())], []),
        ([due(day, Scheduled()) for day in (2, 0, 1)], [1, 2]),  # the last of them stands for all
        ([due(0, Running(), NOON), due(1, Scheduled())], []),  # it began before the other was due
        ([due(0, Running(), NOON), *(due(day, Scheduled()) for day in (1, 2, 3))], [1, 2]),
        ([due(0, Running(), NOON + timedelta(days=5)), *(due(day, Scheduled()) for day in (1, 2))], [1, 2]),
        ([due(0, Scheduled(), NOON), due(1, Scheduled())], []),  # it goes on after a pause
    ],
)
def test_one_run_stands_for_all_that_a_schedule_has_missed(runs: list[Any], dropped: list[int]) -> None:
    assert [runs.index(run) for run in closing.superseded(runs)] == dropped


def test_missed_run_says_so_in_prefect(workplace: Path, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with get_client(sync_client=True) as client:
        runs = [client.create_flow_run(some_flow, work_pool_name=pool, parameters={}) for _ in range(3)]
    times = [NOON + timedelta(days=day) for day in range(3)]
    runs = [
        run.model_copy(update={"auto_scheduled": True, "expected_start_time": time, "state": Scheduled()})
        for run, time in zip(runs, times, strict=True)
    ]
    other = runs[0].model_copy(update={"parameters": {"seed": 1}, "expected_start_time": NOON})
    by_hand = runs[0].model_copy(update={"auto_scheduled": False})
    monkeypatch.setattr(closing, "runs_of", lambda *_: [*runs, other, by_hand])
    assert len(closing.drop_missed(pool)) == 2
    assert [state_of(str(run.id)) for run in runs[:2]] == [StateType.CANCELLED] * 2
    assert state_of(str(runs[2].id)) is not StateType.CANCELLED
    assert message_of(str(runs[1].id)) == "The run of 2026-06-02 12:00 UTC was missed; a later one stands for it"
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(runs[1].id).state
    assert state and state.name == closing.MISSED
