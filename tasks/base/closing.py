"""An honest end, in Prefect and in MLflow, for runs that could not tell it themselves; living ones are left alone."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psutil
from filelock import FileLock

from tasks.base.liveness import GATE, LIVE, Note, if_dead, living, notes
from tasks.base.progress import warn
from tasks.base.records import Record, digest
from tasks.base.trouble import first_line, is_silence

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State


GONE = "The process of this run is gone: it was killed, or the machine stopped. Run it again."

NO_HEARTBEAT = "No sign of life from this run for more than a minute"
"""Message of the state that the heartbeat automation sets; see tasks/servers/up.py."""


class End(Record):
    """How and when a run ended, as Prefect has it."""

    state: str
    """Type of the final state: COMPLETED, FAILED, CRASHED or CANCELLED."""
    time: datetime
    found_open: bool = False
    """Prefect did not know."""


def close_dead_runs(end: Callable[[Note, End], bool]) -> list[str]:
    """Close every run that has a note and no living process; `end(note, how)` says so in MLflow.

    Returns the ids of the flow runs that showed as running: most have ended in good order and leave only their note.
    Raises where nobody answers; what is not closed then is left for whoever comes next. What stands in the way of one
    run is said, and the others are closed.
    """
    closed: list[str] = []
    for note in notes():
        with if_dead(note) as dead:
            if not dead:  # or someone else is at it
                continue
            try:
                how = close_in_prefect(note)
                if end(note, how) or how.found_open:
                    closed.append(note.flow_run_id)
            except Exception as error:
                if is_silence(error):
                    raise
                if note.flow_run_id not in _not_closed:
                    _not_closed.add(note.flow_run_id)
                    warn("run %s, which died, cannot be closed: %s", note.flow_run_id, first_line(error))
                continue
            with FileLock(GATE.resolve()):  # only now: Prefect may be slow, and no run begins without it
                for kind in ("json", "lock"):
                    (LIVE / f"{note.flow_run_id}.{kind}").unlink(missing_ok=True)
    return closed


_not_closed = set[str]()
"""Flow runs of which that was said."""


def close_in_prefect(note: Note) -> End:
    """How Prefect says that the run ended, once it has been told where it did not know, or said less than it could.

    A run that was started again since, whose state is newer than the note, is left to its new process; one that is
    suspended, to whoever resumes it.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    run_id, now = UUID(note.flow_run_id), datetime.now(UTC)
    with get_client(sync_client=True) as client:
        try:
            state: State[Any] | None = client.read_flow_run(run_id).state
        except ObjectNotFound:  # another Prefect knew it
            return End(state="CRASHED", time=now)
        if state and state.is_crashed():  # which is what a process says that was told to stop, for whatever reason
            end = end_of(client, run_id)
            if end.message != GONE and end.message != state.message:
                state = end.model_copy(update={"timestamp": state.timestamp})
                client.set_flow_run_state(run_id, state, force=True)
        if state and state.is_final():
            close_tasks(client, run_id, state)
            return End(state=state.type.value, time=state.timestamp)
        if state and is_anothers(state, note):
            return End(state="CRASHED", time=now)
        end = end_of(client, run_id)
        client.set_flow_run_state(run_id, end, force=True)
        close_tasks(client, run_id, end)
    return End(state=end.type.value, time=now, found_open=True)


def is_anothers(state: "State[Any]", note: Note) -> bool:
    """Whether the run goes on, or will, in another process than the one that left the note."""
    if state.is_paused():
        return bool(state.state_details.pause_reschedule)
    said_since = state.timestamp > note.since and not state.is_cancelling()
    return said_since and not (note.starting and state.is_running())


CANCELLED = "It was cancelled."

WAITED = (
    "The process that waited for approval has ended, and nothing was decided. Run it again, or press Retry: nothing is "
    "trained twice, and it asks again."
)


def end_of(client: "SyncPrefectClient", run_id: UUID) -> "State[Any]":
    """What to call the end of a run whose process is gone, by what it was at: cancelled, while it waited, or killed.

    The worker that stops a cancelled run says so a moment later than its process ends; whoever looks in between must
    not say otherwise.
    """
    from prefect.states import Cancelled, Crashed

    history = sorted(client.read_flow_run_states(run_id), key=lambda state: state.timestamp)
    at_work = [state for state in history if not state.is_final()]
    if str(run_id) in _stopped or (at_work and at_work[-1].is_cancelling()) or is_of_cancelled(client, run_id):
        return Cancelled(message=CANCELLED)
    return Crashed(message=WAITED if at_work and at_work[-1].is_paused() else GONE)


def is_of_cancelled(client: "SyncPrefectClient", run_id: UUID) -> bool:
    """Whether the run is part of one that was cancelled."""
    part = client.read_flow_run(run_id).parent_task_run_id
    whole = client.read_task_run(part).flow_run_id if part else None
    state = client.read_flow_run(whole).state if whole else None
    return bool(state and (state.is_cancelling() or state.is_cancelled()))


def close_tasks(client: "SyncPrefectClient", flow_run_id: UUID, end: "State[Any]") -> None:
    """The tasks of a run that has ended do not run either."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.states import Cancelled, Crashed

    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    state: State[Any] = Cancelled(message=CANCELLED) if end.is_cancelled() else Crashed(message=GONE)
    for task in client.read_task_runs(flow_run_filter=of_run):
        if task.state and not task.state.is_final():
            client.set_task_run_state(task.id, state, force=True)


SETTLED_SECONDS = timedelta(seconds=10)


def settled_end(flow_run_id: str) -> End | None:
    """How a run ended that has been over for a while; None for one that goes on, or that this Prefect does not know."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(flow_run_id)).state
        except (ObjectNotFound, ValueError):
            return None
    if state is None or not state.is_final() or datetime.now(UTC) - state.timestamp < SETTLED_SECONDS:
        return None
    return End(state=state.type.value, time=state.timestamp)


_stopped = set[str]()
"""Runs that were told to stop because they were cancelled. Of themselves they say that they crashed."""

CANCEL_SECONDS = timedelta(seconds=5)
"""So long a run may take to hear from its worker that it is cancelled."""


def set_right() -> None:
    """Do for living runs what Prefect leaves undone: stop a cancelled run that no worker stops (it has none, or was
    suspended before), and, as long as no other has begun it, take back a crash that was declared for want of signs of
    life, which is also what a machine that slept looks like."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Cancelling, Running

    with get_client(sync_client=True) as client:
        for note in living():
            run_id = UUID(note.flow_run_id)
            try:
                state = client.read_flow_run(run_id).state
            except ObjectNotFound:
                continue
            if state is None:
                continue
            if datetime.now(UTC) - state.timestamp > CANCEL_SECONDS:
                if state.is_cancelled():  # it was suspended before, which stops nothing: have its worker stop it
                    client.set_flow_run_state(run_id, Cancelling(), force=True)
                elif state.is_cancelling() and note.flow_run_id not in _stopped and not has_worker(note.pid):
                    _stopped.add(note.flow_run_id)
                    os.kill(note.pid, signal.SIGTERM)
            silent = state.is_crashed() and (state.message or "").startswith(NO_HEARTBEAT)
            if silent or (state.is_scheduled() and is_queued_again(client, run_id)):
                client.set_flow_run_state(run_id, Running(message="It is alive"), force=True)


AGAIN = "Again"  # state of a run of whose machine nothing is heard; see tasks/base/again.py


def is_queued_again(client: "SyncPrefectClient", run_id: UUID) -> bool:
    """Whether a run that waits does so because it was taken for dead; Prefect calls what waits for long `Late`."""
    history = sorted(client.read_flow_run_states(run_id), key=lambda state: state.timestamp)
    return [state.name for state in history if state.name != "Late"][-1:] == [AGAIN]


LOST_SECONDS = 20.0
"""So long a flow run may be without a process: its worker has claimed it and is about to start one."""

BY_WORKER = "prefect.worker.name"  # label of a run: who has claimed it


def close_lost_runs(pool: str, worker: str) -> list[str]:
    """Close what `worker` of this machine has claimed and what ended before it could hold a lock; names of the runs.

    What had not begun is queued again. Where it is not known whose a run is, and the pool has workers on other
    machines, it is left to tasks/base/again.py.
    """
    from prefect.client.orchestration import get_client
    from prefect.states import Scheduled

    closed: list[str] = []
    with get_client(sync_client=True) as client:
        others = [one for one in client.read_workers_for_work_pool(pool) if one.name != worker]
        alone = not any(one.status and one.status.value == "ONLINE" for one in others)
        alive = {note.flow_run_id for note in living()}
        of_nobody = worker if alone else None
        ours = [run for run in claimed_runs(client, pool) if run.labels.get(BY_WORKER, of_nobody) == worker]
        suspects = [run for run in ours if str(run.id) not in alive]
        processes = flow_runs() if suspects else {}
        for run in suspects:
            assert run.state
            if str(run.id) in processes or datetime.now(UTC) - run.state.timestamp < timedelta(seconds=LOST_SECONDS):
                continue
            if run.state.is_pending():
                state: Any = Scheduled(message="Its worker was gone before it began; queued again")
            else:
                state = end_of(client, run.id)
            client.set_flow_run_state(run.id, state, force=True)
            close_tasks(client, run.id, state)
            closed.append(run.name)
    return closed


def claimed_runs(client: "SyncPrefectClient", pool: str) -> "list[FlowRun]":
    from prefect.client.schemas.objects import StateType

    return runs_of(client, pool, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


def runs_of(
    client: "SyncPrefectClient", pool: str, *states: Any, ended_after: datetime | None = None
) -> "list[FlowRun]":
    """Runs of the pool in these states that were due by now."""
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterEndTime,
        FlowRunFilterExpectedStartTime,
        FlowRunFilterState,
        FlowRunFilterStateType,
        WorkPoolFilter,
        WorkPoolFilterName,
    )

    asked = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states))),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),  # a schedule's next are many
        end_time=FlowRunFilterEndTime(after_=ended_after) if ended_after else None,
    )
    runs: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_run_filter=asked,
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
            limit=PAGE,
            offset=len(runs),
        )
        runs += page
        if len(page) < PAGE:
            return runs


PAGE = 200
"""Most that Prefect gives at once."""

OVERDUE = "Overdue"
"""State of a run that is started again because nobody answered in time; see tasks/retraining/approval.py."""


def wake_overdue(pool: str) -> list[str]:
    """Start again the runs that nobody approved in time, so that they say so and come to their end; their names."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.states import Scheduled

    woken: list[str] = []
    with get_client(sync_client=True) as client:
        for run in runs_of(client, pool, StateType.PAUSED):
            assert run.state
            details = run.state.state_details
            until = details.pause_timeout if details.pause_reschedule and details.run_input_keyset else None
            if until and until < datetime.now(UTC):
                state: Any = Scheduled(name=OVERDUE, message="Nobody approved it in time")
                client.set_flow_run_state(run.id, state, force=True)
                woken.append(run.name)
    return woken


MISSED = "Missed"


def drop_missed(pool: str) -> list[str]:
    """One run of a schedule for all that it missed while the machine was off, or busy; a sentence for each dropped.

    The last is kept; none, where one began since they were due.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.states import Cancelled

    sentences: list[str] = []
    with get_client(sync_client=True) as client:
        groups: dict[str, list[FlowRun]] = {}
        for run in runs_of(client, pool, StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING):
            if run.auto_scheduled:
                groups.setdefault(digest([str(run.deployment_id), run.parameters]), []).append(run)
        for run in (run for runs in groups.values() for run in superseded(runs)):
            told = f"the run of {due(run):%Y-%m-%d %H:%M} UTC was missed; a later one stands for it"
            client.set_flow_run_state(run.id, Cancelled(name=MISSED, message=f"T{told[1:]}"), force=True)
            sentences.append(f"{run.name}: {told}")
    return sentences


def superseded(runs: "Sequence[FlowRun]") -> "list[FlowRun]":
    """Of runs that are due and do the same those that another stands for: one that began since, or the last of them."""
    begun = [run.start_time or run.state.timestamp for run in runs if run.state and not run.state.is_scheduled()]
    last = max(runs, key=due)
    return [
        run
        for run in runs
        if run.state and run.state.is_scheduled() and run.run_count == 0  # else it goes on after a pause
        if run is not last or any(due(run) < moment for moment in begun)
    ]


def due(run: "FlowRun") -> datetime:
    assert run.expected_start_time
    return run.expected_start_time


FLOW_RUN = "PREFECT__FLOW_RUN_ID"
"""Set in the environment of a process that a worker has started for a flow run."""


def flow_run_of(process: psutil.Process) -> str | None:
    """Id of the flow run that a process was started for.

    A process that is just being started shows no environment at all until its program is loaded: it is asked again.
    """
    try:
        while not (environment := process.environ()) and is_starting(process):
            time.sleep(0.005)
        return environment.get(FLOW_RUN)
    except (psutil.Error, OSError):
        return None


def is_starting(process: psutil.Process) -> bool:
    return time.time() - process.create_time() < 1 and process.status() != psutil.STATUS_ZOMBIE


def has_worker(pid: int) -> bool:
    """Whether a worker that is alive has started this process."""
    try:
        return any("worker" in parent.cmdline() for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return False


def flow_runs() -> dict[str, list[psutil.Process]]:
    """Every flow run of this user that has a process on this machine, with its processes."""
    found: dict[str, list[psutil.Process]] = {}
    user = os.getuid()
    for process in psutil.process_iter():
        try:
            if process.uids().real == user and (flow_run := flow_run_of(process)):
                found.setdefault(flow_run, []).append(process)
        except psutil.Error:
            continue
    return found
