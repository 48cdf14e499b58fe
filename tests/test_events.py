from typing import Any

import pytest

from tasks import events

FACTS = {"experiment": "reviews", "verdict": "improved"}


def test_facts_can_be_matched_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted: list[dict[str, Any]] = []
    monkeypatch.setattr("prefect.events.emit_event", lambda **event: emitted.append(event))
    events.announce("FINISHED", "a1b2", "gpt2 · reviews", "flow-1", FACTS)
    (event,) = emitted
    assert event["event"] == "peft-flow.run.finished"
    assert event["resource"] == {
        "prefect.resource.id": "mlflow.run.a1b2",
        "prefect.resource.name": "gpt2 · reviews",
        "peft-flow.experiment": "reviews",
        "peft-flow.verdict": "improved",
    }
    assert event["payload"] == {"run_id": "a1b2", "status": "FINISHED", **FACTS}
    assert event["related"][0]["prefect.resource.id"] == "prefect.flow-run.flow-1"


def test_trouble_with_an_event_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_off(**event: Any) -> None:
        raise OSError("no server")

    monkeypatch.setattr("prefect.events.emit_event", break_off)
    events.announce("KILLED", "a1b2", "gpt2 · reviews", "flow-1", FACTS)
    assert "automations do not hear of the end of this run: no server" in caplog.text
