"""Runs of machines that fell silent are done again by whoever has a place free: see also tasks/tracking/attempts.py."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tasks.base.closing import AGAIN, BY_WORKER, NO_HEARTBEAT, close_tasks, runs_of

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

MOST_TIMES = 3

OBJECTION_SECONDS = timedelta(seconds=15)
"""So long a process that is alive after all may say so: its worker looks every five seconds, see closing.set_right."""

BEGIN_SECONDS = timedelta(seconds=60)
"""Longer than a worker takes that is there, from claiming a run until the run gives its first sign of life."""

UNKNOWN_SECONDS = timedelta(minutes=5)
"""The same, where it is not known which worker it was."""

RECENTLY = timedelta(hours=1)
"""What went silent before is left: whoever was there then has seen it."""


def start_again(pool: str) -> list[str]:
    """Queue again what was being done by machines of which nothing is heard any more; a sentence for each run."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType

    sentences = []
    with get_client(sync_client=True) as client:
        crashed = runs_of(client, pool, StateType.CRASHED, ended_after=datetime.now(UTC) - RECENTLY)
        pending = runs_of(client, pool, StateType.PENDING)
        online = online_workers(client, pool) if pending else ()
        for run in (*filter(fell_silent, crashed), *(run for run in pending if is_abandoned(run, online))):
            if sentence := queue_again(client, run):
                sentences.append(f"{run.name}: {sentence}")
    return sentences


def fell_silent(run: "FlowRun") -> bool:
    """Whether nothing but silence says that the run has crashed, and nobody has objected."""
    state = run.state
    return bool(
        state
        and (state.message or "").startswith(NO_HEARTBEAT)
        and datetime.now(UTC) - state.timestamp > OBJECTION_SECONDS
    )


def is_abandoned(run: "FlowRun", online: Collection[str]) -> bool:
    """Whether the worker that has claimed the run is gone, before anything of the run could be heard."""
    assert run.state
    age, worker = datetime.now(UTC) - run.state.timestamp, run.labels.get(BY_WORKER)
    return age > UNKNOWN_SECONDS if worker is None else worker not in online and age > BEGIN_SECONDS


def online_workers(client: "SyncPrefectClient", pool: str) -> list[str]:
    found = client.read_workers_for_work_pool(pool)
    return [one.name for one in found if one.status and one.status.value == "ONLINE"]


def queue_again(client: "SyncPrefectClient", run: "FlowRun") -> str:
    """What is done; nothing where it was done often enough."""
    from prefect.states import Scheduled

    times = sum(state.name == AGAIN for state in client.read_flow_run_states(run.id))
    if times >= MOST_TIMES:
        return ""
    message = f"Nothing is heard of its machine; it is done again ({times + 1} of at most {MOST_TIMES} times)"
    state: Any = Scheduled(name=AGAIN, message=message)
    client.set_flow_run_state(run.id, state, force=True)
    close_tasks(client, run.id, run.state or state)
    return message
