import base64
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tasks.base import events
from tests.conftest import ROOT

FACTS = {"experiment": "reviews", "verdict": "better than every reference"}


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
        "peft-flow.verdict": "better than every reference",
    }
    assert event["payload"] == {"run_id": "a1b2", "status": "FINISHED", **FACTS}
    assert event["related"][0]["prefect.resource.id"] == "prefect.flow-run.flow-1"


def test_verdicts_can_be_matched_as_the_documentation_says() -> None:
    from prefect.events.schemas.events import Resource, ResourceSpecification

    def matched(wanted: str) -> list[bool]:
        return [
            ResourceSpecification({"peft-flow.verdict": wanted}).matches(
                Resource({"prefect.resource.id": "a", "peft-flow.verdict": verdict})
            )
            for verdict in ("better than every reference", "not shown better than TF-IDF", "worse than linear probe")
        ]

    documentation = (ROOT / "docs/automations.md").read_text()
    for wanted, expected in (
        ("!better than every reference", [False, True, True]),
        ("worse than *", [False, False, True]),
    ):
        assert f'"{wanted}"' in documentation
        assert matched(wanted) == expected


def test_trouble_with_an_event_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_off(**event: Any) -> None:
        raise OSError("no server")

    monkeypatch.setattr("prefect.events.emit_event", break_off)
    events.announce("KILLED", "a1b2", "gpt2 · reviews", "flow-1", FACTS)
    assert "automations do not hear of the end of this run: no server" in caplog.text


# --- decisions about a registered model -------------------------------------------------------------------------------

DECIDED = {"version": "3", "previous": "2", "reason": "complaints", "by": "anna"}


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any]]]:
    """Address of a stand-in for Prefect's API, and what was posted to it: path, headers, body."""
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, self.headers, json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as api:
        threading.Thread(target=api.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{api.server_port}/api", received
        api.shutdown()


def test_decision_of_a_command_reaches_the_server_that_is_set(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address, received = server
    monkeypatch.setenv("PREFECT_API_URL", address)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "team:open")
    events.announce_decision("rolled back", "reviews", DECIDED)
    ((path, headers, (event,)),) = received
    assert path == "/api/events"
    assert headers["Authorization"] == f"Basic {base64.b64encode(b'team:open').decode()}"
    assert event["event"] == "peft-flow.model.rolled-back"
    assert event["resource"]["prefect.resource.id"] == "peft-flow.model.reviews"
    assert event["resource"]["peft-flow.by"] == "anna"
    assert event["payload"] == {"name": "reviews", "action": "rolled back", **DECIDED}


def test_real_server_takes_the_event(prefect_harness: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    events.announce_decision("promoted", "films", DECIDED)
    wanted = {"event": {"name": ["peft-flow.model.promoted"]}, "resource": {"id": ["peft-flow.model.films"]}}
    with get_client(sync_client=True) as client:
        for _ in range(100):
            found = client.request("POST", "/events/filter", json={"filter": wanted}).json()
            if found["events"]:
                break
            time.sleep(0.1)
    assert [event["resource"]["prefect.resource.id"] for event in found["events"]] == ["peft-flow.model.films"]


def test_decision_of_a_flow_goes_the_way_of_its_other_events(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted: list[dict[str, Any]] = []
    monkeypatch.setattr("prefect.events.emit_event", lambda **event: emitted.append(event))
    monkeypatch.setattr(events, "in_flow", lambda: True)
    for action in ("kept", "rejected", "rolled back"):
        events.announce_decision(action, "reviews", DECIDED)
    assert [event["event"] for event in emitted] == [
        "peft-flow.model.kept", "peft-flow.model.rejected", "peft-flow.model.rolled-back",
    ]  # fmt: skip


def test_drift_can_be_matched_by_model_and_test_and_has_its_p_values(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, received = server
    monkeypatch.setenv("PREFECT_API_URL", address)
    facts = {"version": "3", "drifted": "features", "features": "drift", "rows": "200"}
    events.announce_drift("reviews", facts, {"features": 0.003, "accuracy": 0.02})
    ((_, _, (event,)),) = received
    assert event["event"] == "peft-flow.drift.found"
    assert event["resource"] == {
        "prefect.resource.id": "peft-flow.model.reviews",
        "prefect.resource.name": "reviews",
        **{f"peft-flow.{name}": value for name, value in facts.items()},
    }
    assert event["payload"] == {"name": "reviews", **facts, "p_values": {"features": 0.003, "accuracy": 0.02}}


def test_server_that_is_gone_or_silent_holds_up_no_command(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    events.announce_decision("promoted", "reviews", DECIDED)
    assert "automations do not hear that version 3 of reviews was promoted: " in caplog.text
    with socket.socket() as silent:  # takes the connection and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/api")
        monkeypatch.setattr(events, "POST_SECONDS", 0.1)
        events.announce_decision("promoted", "reviews", DECIDED)
    assert "timed out" in caplog.text


def test_without_a_server_prefect_is_not_even_imported() -> None:
    code = (
        "import sys\nfrom tasks.base.events import announce_decision\n"
        "announce_decision('promoted', 'reviews', {})\nassert 'prefect' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT)})
