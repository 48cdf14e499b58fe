from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Crashed, Pending, Running, Scheduled, State

from tasks.base import again, closing, liveness
from tests.test_base_closing import claimed, new_pool, state_of

pytestmark = pytest.mark.usefixtures("prefect_harness", "workplace")

SILENT = f"{closing.NO_HEARTBEAT}; it was killed"


@pytest.fixture
def pool() -> str:
    return new_pool()


def by(worker: str, run: str) -> str:
    """The run, as claimed by this worker."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(run), {closing.BY_WORKER: worker})
    return run


def history(run: str) -> list[str | None]:
    with get_client(sync_client=True) as client:
        states = sorted(client.read_flow_run_states(UUID(run)), key=lambda state: state.timestamp)
    return [state.name for state in states]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is waited for was waited for: the server alone says since when a state is there."""
    for name in ("OBJECTION_SECONDS", "BEGIN_SECONDS"):
        monkeypatch.setattr(again, name, timedelta(seconds=-60))


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize(
    ("state", "is_done_again"),
    [
        (Crashed(message=SILENT), True),
        (Crashed(message="Process exited with status code: -9"), False),
        (Running(), False),
        (Pending(), True),  # its worker was never seen again
    ],
)
def test_what_nothing_is_heard_of_is_queued_again_once(pool: str, state: State[Any], is_done_again: bool) -> None:
    run = by("gone", claimed(pool, state))
    assert bool(again.start_again(pool)) is is_done_again
    assert (history(run)[-1] == closing.AGAIN) is is_done_again
    assert again.start_again(pool) == []


@pytest.mark.parametrize("state", [Crashed(message=SILENT), Pending()])
def test_what_may_yet_be_heard_of_is_waited_for(pool: str, state: State[Any]) -> None:
    by("gone", claimed(pool, state))
    assert again.start_again(pool) == []


@pytest.mark.usefixtures("later")
def test_run_that_a_living_worker_is_about_to_begin_is_left_to_it(pool: str) -> None:
    with get_client(sync_client=True) as client:
        client.send_worker_heartbeat(pool, "busy", heartbeat_interval_seconds=30)
    by("busy", claimed(pool, Pending()))
    assert again.start_again(pool) == []


@pytest.mark.usefixtures("later")
def test_run_that_falls_silent_again_and_again_is_given_up(pool: str) -> None:
    run = by("gone", claimed(pool, Crashed(message=SILENT)))
    for _ in range(again.MOST_TIMES + 2):
        again.start_again(pool)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(run), Crashed(message=SILENT), force=True)
    assert history(run).count(closing.AGAIN) == again.MOST_TIMES


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("late", [False, True])
def test_living_process_takes_back_that_its_run_was_queued_again(pool: str, late: bool) -> None:
    run = by("elsewhere", claimed(pool, Crashed(message=SILENT)))
    liveness.hold(run)
    again.start_again(pool)
    if late:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(run), Scheduled(name="Late"), force=True)
    closing.set_right()
    assert state_of(run).value == "RUNNING"


@pytest.mark.usefixtures("later")
def test_living_process_leaves_a_run_to_the_machine_that_has_begun_it(pool: str) -> None:
    run = by("elsewhere", claimed(pool, Crashed(message=SILENT)))
    liveness.hold(run)
    again.start_again(pool)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run), Pending(), force=True)
    closing.set_right()
    assert history(run)[-1] == "Pending"


def test_workers_close_the_runs_that_they_have_claimed_and_no_others(
    pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "LOST_SECONDS", 0)
    mine, theirs = by("here", claimed(pool, Running())), by("elsewhere", claimed(pool, Running()))
    assert len(closing.close_lost_runs(pool, "here")) == 1
    assert (state_of(mine).value, state_of(theirs).value) == ("CRASHED", "RUNNING")
