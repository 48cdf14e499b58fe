"""What happened to a run or a registered model, as Prefect events. docs/automations.md shows what can wait for them."""

import base64
import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

from tasks.base.progress import warn

STATUSES = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
"""MLflow's word for the end of a run, and the last part of the event's name."""


def announce(status: str, run_id: str, name: str, flow_run_id: str, facts: Mapping[str, str]) -> None:
    """Emit `peft-flow.run.finished`, `.failed` or `.killed` for MLflow run `run_id`.

    `facts` are its payload, for messages, and labels `peft-flow.NAME` of its resource, for triggers to match. The
    resource is `mlflow.run.RUN_ID`, related to the flow run. No trouble with it disturbs the run.
    """
    from prefect.events import emit_event

    related = [{"prefect.resource.id": f"prefect.flow-run.{flow_run_id}", "prefect.resource.role": "flow-run"}]
    try:
        emit_event(
            event=f"peft-flow.run.{STATUSES[status]}",
            resource={
                "prefect.resource.id": f"mlflow.run.{run_id}",
                "prefect.resource.name": name,
                **{f"peft-flow.{fact}": value for fact, value in facts.items()},
            },
            related=related,
            payload={"run_id": run_id, "status": status, **facts},
        )
    except Exception as error:
        warn("automations do not hear of the end of this run: %s", error)


def announce_decision(action: str, name: str, facts: Mapping[str, str]) -> None:
    """Emit `peft-flow.model.promoted`, `.kept`, `.rejected` or `.rolled-back` for registered model `name`.

    `facts`, which say what was decided, are payload and labels as above; the resource is `peft-flow.model.NAME`. Where
    no server is set (by the address in PREFECT_API_URL) and no flow is at hand, nobody listens, and nothing happens.
    """
    payload = {"name": name, "action": action, **facts}
    unheard = f"version {facts.get('version')} of {name} was {action}"
    about_model(f"peft-flow.model.{action.replace(' ', '-')}", name, facts, payload, unheard)


def announce_drift(name: str, facts: Mapping[str, str], p_values: Mapping[str, float]) -> None:
    """Emit `peft-flow.drift.found` for registered model `name`, with the same resource, labels and payload, and the
    adjusted p-value of each test in the payload."""
    payload = {"name": name, **facts, "p_values": dict(p_values)}
    about_model("peft-flow.drift.found", name, facts, payload, f"what {name} is asked has drifted")


def about_model(event: str, name: str, facts: Mapping[str, str], payload: Mapping[str, Any], unheard: str) -> None:
    told: dict[str, Any] = {
        "event": event,
        "resource": {
            "prefect.resource.id": f"peft-flow.model.{name}",
            "prefect.resource.name": name,
            **{f"peft-flow.{fact}": value for fact, value in facts.items()},
        },
        "payload": dict(payload),
    }
    try:
        if in_flow():
            from prefect.events import emit_event

            emit_event(**told)
        elif address := os.environ.get("PREFECT_API_URL"):
            post(address, told)
    except Exception as error:
        warn("automations do not hear that %s: %s", unheard, error)


def in_flow() -> bool:
    """Whether this is part of a flow run; Prefect is not imported to find out."""
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext, TaskRunContext

    return bool(FlowRunContext.get() or TaskRunContext.get())


POST_SECONDS = 2.0
"""So long a command waits for Prefect's server to take an event."""


def post(address: str, event: Mapping[str, Any]) -> None:
    """One event to the server at `address`, without the two seconds that importing Prefect takes, and its retries."""
    headers = {"Content-Type": "application/json"}
    if password := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"
    elif key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    body = [{"id": str(uuid4()), "occurred": datetime.now(UTC).isoformat(), "related": [], **event}]
    request = Request(f"{address.rstrip('/')}/events", json.dumps(body).encode(), headers, method="POST")
    with urlopen(request, timeout=POST_SECONDS):
        pass
