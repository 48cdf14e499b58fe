"""A promotion that waits for a click, as the Prefect UI does it: resumed, declined, and left alone."""

import contextvars
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tasks.base import closing
from tasks.base.outcomes import Finding, Gate
from tasks.retraining import approval
from tasks.settings.config import RetrainConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import checked


def config(**gate: Any) -> RetrainConfig:
    return checked(
        RetrainConfig,
        {"gate": {"approval": True, "approval_hours": 60 / 3600, **gate}, "tracking": {"registered_model": "reviews"}},
    )


def gate(passed: bool = True) -> Gate:
    finding = Finding(rule="gain", passed=passed, told="better than the champion: accuracy +0.100")
    return Gate(findings=(finding,), rows=100, champion=None, challenger=None, difference=None)


def answered(given: RetrainConfig, answer: dict[str, Any] | None) -> approval.Approval | None:
    """What comes of asking, in a flow that is resumed with `answer` as soon as it has paused."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    seen: list[str] = []

    def click(flow_run_id: str) -> None:
        with get_client(sync_client=True) as api:
            for _ in range(300):
                time.sleep(0.2)
                state = api.read_flow_run(flow_run_id).state
                if not state or not state.is_paused():
                    continue
                with suppress(PrefectHTTPStatusError):  # the dialog is saved a moment after the state
                    keys = state.state_details.run_input_keyset
                    seen.append(api.read_flow_run_input(flow_run_id, keys["description"]))
                    api.resume_flow_run(flow_run_id, run_input=answer)
                    return

    @flow(name="asking")
    def asking() -> Any:
        from prefect import runtime

        if answer is not None:
            # the context says which Prefect server the tests talk to
            context, flow_run_id = contextvars.copy_context(), str(runtime.flow_run.id)
            threading.Thread(target=lambda: context.run(click, flow_run_id), daemon=True).start()
        return approval.ask_for_approval(given, gate())

    result: approval.Approval | None = asking()
    if answer is not None:
        assert "Promote the challenger of reviews?" in seen[0] and "accuracy +0.100" in seen[0]
    return result


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, workplace: Path, prefect_harness: None) -> None:
    monkeypatch.setattr(approval, "POLL_SECONDS", 1)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"promote": True, "reason": ""}, (True, "approved")),
        ({"promote": False, "reason": "not\nbefore Monday"}, (False, "declined: not before Monday")),
    ],
)
def test_flow_pauses_with_the_comparison_and_goes_on_as_the_person_said(answer: Any, expected: Any) -> None:
    assert answered(config(), answer) == expected


def test_nobody_there_means_no(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answered(config(approval_hours=2 / 3600), None) == (False, "nobody approved it within 0.000555556 h")


def test_nobody_is_asked_without_need() -> None:
    assert approval.ask_for_approval(config(approval=False), gate()) is None
    assert approval.ask_for_approval(config(), gate(passed=False)) is None
    assert approval.ask_for_approval(config().model_copy(update={"force": True}), gate()) is None


def test_approval_without_a_server_to_click_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    approval.check_approval(config())
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(InputError, match=r"gate\.approval: needs a Prefect server"),
    ):
        approval.check_approval(config())


def test_run_that_nobody_approved_in_time_comes_to_its_end() -> None:
    from prefect import flow, task

    @task
    def decide(told: str) -> str:
        return told

    @flow(name="asking")
    def asking() -> Any:
        answer = approval.ask_for_approval(config(approval_hours=2 / 3600), gate())
        assert answer
        return decide(answer.told)

    state: Any = asking(return_state=True)
    assert state.is_completed() and state.result().startswith("nobody approved it")


class Stopped(BaseException):
    """In place of what ends a process."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `suspend_flow_run` was called with; the run is in that state then."""
    import prefect
    from prefect.client.orchestration import get_client
    from prefect.input import keyset_from_paused_state
    from prefect.states import Suspended

    calls: list[dict[str, Any]] = []

    def suspend(**call: Any) -> None:
        from prefect.runtime import flow_run

        calls.append(call)
        state = Suspended(timeout_seconds=call["timeout"], pause_key=call["key"])
        state.state_details.run_input_keyset = keyset_from_paused_state(state)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(flow_run.id), state, force=True)
        raise Stopped

    monkeypatch.setattr(prefect, "suspend_flow_run", suspend)
    monkeypatch.setattr(approval, "can_be_started_again", lambda: True)
    return calls


@pytest.mark.parametrize(
    ("then", "answer", "expected"),
    [
        ("Resuming", {"promote": False, "reason": "no"}, (False, "declined: no")),
        ("Resuming", None, (True, "approved")),  # resumed without a word, as `prefect flow-run resume` does
        (closing.OVERDUE, None, (False, "nobody approved it within 0.0166667 h")),
        ("AwaitingRetry", None, "asks again"),
        ("another challenger", None, "asks again"),
    ],
)
def test_run_of_a_worker_ends_while_it_waits_and_finds_its_answer_when_it_is_started_again(
    then: str, answer: Any, expected: Any, asked: list[dict[str, Any]]
) -> None:
    from prefect import flow, runtime
    from prefect.client.orchestration import get_client
    from prefect.input import create_flow_run_input, keyset_from_base_key
    from prefect.states import Running, Scheduled

    @flow(name="asking")
    def asking() -> Any:
        with pytest.raises(Stopped):
            approval.ask_for_approval(config(), gate())
        run_id, keyset = UUID(runtime.flow_run.id), keyset_from_base_key(f"suspended-{asked[0]['key']}")
        if answer:
            create_flow_run_input(keyset["response"], answer)
        name = then if then != "another challenger" else "Resuming"
        with get_client(sync_client=True) as client:
            for state in (Scheduled(name=name), Running()):
                client.set_flow_run_state(run_id, state, force=True)
        judged = gate().model_copy(update={"rows": 7}) if then == "another challenger" else gate()
        if expected == "asks again":
            with pytest.raises(Stopped):
                approval.ask_for_approval(config(), judged)
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(run_id, Running(), force=True)
            return expected
        return approval.ask_for_approval(config(), judged)

    assert asking() == expected
    assert len(asked) == (2 if expected == "asks again" else 1)
    assert len({call["key"] for call in asked}) == len(asked), "Prefect asks once for each key"
