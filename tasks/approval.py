"""A promotion that waits for a person: the flow pauses in the Prefect UI, with the comparison in its dialog."""

from typing import NamedTuple

from tasks.config import InputError, RetrainConfig
from tasks.gate import page
from tasks.progress import tell
from tasks.records import Gate

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
    """What a person said of a challenger that passed the gate; None where nobody is to be asked."""
    from prefect import pause_flow_run
    from prefect.exceptions import FlowPauseTimeout
    from prefect.input import RunInput
    from pydantic import Field

    class Answer(RunInput):
        promote: bool = Field(True, description="Off: the champion stays.")
        reason: str = Field("", max_length=1000, description="Goes on record.")

    if not config.gate.approval or config.force or not judged.passed:
        return None
    name, hours = str(config.tracking.registered_model), config.gate.approval_hours
    tell("Waiting for approval: open this run in the Prefect UI and press Resume; Cancel stops the run undecided")
    asked = Answer.with_initial_data(description=page(name, f"Promote the challenger of {name}?", judged))
    try:
        answer = pause_flow_run(wait_for_input=asked, timeout=int(3600 * hours), poll_interval=POLL_SECONDS)
    except FlowPauseTimeout:
        return Approval(False, f"nobody approved it within {hours:g} h")
    said = " ".join(answer.reason.split())
    return Approval(answer.promote, ("approved" if answer.promote else "declined") + (f": {said}" if said else ""))
