"""A promotion that waits for a person: the flow pauses in the Prefect UI, with the comparison in its dialog."""

from typing import Any, NamedTuple
from uuid import UUID

from tasks.base.closing import OVERDUE
from tasks.base.events import announce_decision
from tasks.base.liveness import hold
from tasks.base.outcomes import Gate
from tasks.base.progress import tell
from tasks.base.records import digest
from tasks.retraining.gate import page
from tasks.settings.config import RetrainConfig
from tasks.settings.fields import InputError

POLL_SECONDS = 5


class Approval(NamedTuple):
    approved: bool
    told: str
    """In a few words, for the record."""


def check_approval(config: RetrainConfig) -> None:
    """Raises InputError where nobody could click: no server, no page."""
    from prefect.settings import get_current_settings

    if config.gate.approval and not config.force and not get_current_settings().api.url:
        raise InputError(
            "gate.approval: needs a Prefect server to click in; run peft-flow up and set PREFECT_API_URL to its /api, "
            "or leave it off"
        )


def ask_for_approval(config: RetrainConfig, judged: Gate) -> Approval | None:
    """What a person said of a challenger that passed the gate; None where nobody is to be asked.

    A run that a worker started ends its process meanwhile: neither a restart nor the machine's end concerns the
    question, and Resume starts the run again, which finds everything done and comes here a second time.
    """
    from prefect.input import RunInput
    from pydantic import Field

    class Answer(RunInput):
        promote: bool = Field(True, description="Off: the champion stays.")
        reason: str = Field("", max_length=1000, description="Goes on record.")

    if not config.gate.approval or config.force or not judged.passed:
        return None
    name, hours = str(config.tracking.registered_model), config.gate.approval_hours
    asked = Answer.with_initial_data(description=page(name, f"Promote the challenger of {name}?", judged))
    ask = suspended if can_be_started_again() else paused
    answer = ask(asked, name, judged, int(3600 * hours))
    if answer is None:
        return Approval(False, f"nobody approved it within {hours:g} h")
    said = " ".join(answer.reason.split())
    return Approval(answer.promote, ("approved" if answer.promote else "declined") + (f": {said}" if said else ""))


def can_be_started_again() -> bool:
    """Whether a worker started this run, and can once more."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    run = context and context.flow_run
    return bool(run and run.deployment_id and not run.parent_task_run_id)


def announce(name: str, judged: Gate) -> None:
    tell("Waiting for approval: open this run in the Prefect UI and press Resume; Cancel stops the run undecided")
    announce_decision("waiting", name, {"reason": judged.reason})


def paused(asked: Any, name: str, judged: Gate, seconds: int) -> Any:
    """The answer, for which this process waits; None where nobody gave one in time."""
    from prefect import pause_flow_run
    from prefect.client.orchestration import get_client
    from prefect.exceptions import FlowPauseTimeout
    from prefect.runtime import flow_run
    from prefect.states import Running

    announce(name, judged)
    try:
        answer = pause_flow_run(wait_for_input=asked, timeout=seconds, poll_interval=POLL_SECONDS)
    except FlowPauseTimeout:
        answer = None
        with get_client(sync_client=True) as client:  # of itself Prefect calls the run failed, whatever it does then
            client.set_flow_run_state(UUID(flow_run.id), Running(message="Nobody approved it in time"), force=True)
    hold(str(flow_run.id))  # the run's state is newer than the note that this process lives
    return answer


def suspended(asked: Any, name: str, judged: Gate, seconds: int) -> Any:
    """The answer that this run was resumed with, None where nobody gave one in time; else the process ends here."""
    from prefect import suspend_flow_run
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run

    with get_client(sync_client=True) as client:
        states = sorted(client.read_flow_run_states(UUID(flow_run.id)), key=lambda state: state.timestamp)
    pauses = [state for state in states if state.is_paused() and state.state_details.run_input_keyset]
    about = digest([judged.rows, *(part and part.model_dump() for part in (judged.champion, judged.challenger))])
    if pauses and str(pauses[-1].state_details.pause_key).startswith(about):  # it has been asked, of the same two
        since = [state.name for state in states[states.index(pauses[-1]) + 1 :]]
        if OVERDUE in since:
            return None
        if "Resuming" in since:
            return asked.load(pauses[-1].state_details.run_input_keyset)
    announce(name, judged)
    return suspend_flow_run(wait_for_input=asked, timeout=seconds, key=f"{about}-{len(pauses)}")
