#!/usr/bin/env bash
# Prefect 3.9.1, Python 3.11.
#
# To change one field of an automation, one reads it with the client, copies it with the field changed, and gives the
# copy to client.update_automation(id, automation). What the client reads is an Automation, which is an AutomationCore
# (the type of that parameter) with an id, so it passes every type checker. The client sends the id along, and the
# server refuses it: 422, extra_forbidden. The fields that were set, but for the id, have to be copied into a new
# AutomationCore.
#
# Seen: what was read and changed: HTTP 422 extra_forbidden ['body', 'id']; the same without the id: updated
# Expected: what the client has read can be sent back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check prefect==3.9.1
cd "$folder"
PREFECT_HOME="$folder/home" PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=120 venv/bin/python - <<'PYTHON'
from prefect.client.orchestration import get_client
from prefect.events.actions import DoNothing
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import PrefectHTTPStatusError

trigger = EventTrigger(expect={"made-up.event"}, posture=Posture.Reactive, threshold=1, within=0)
with get_client(sync_client=True) as client:
    client.create_automation(AutomationCore(name="one", trigger=trigger, actions=[DoNothing()]))
    (read,) = client.read_automations_by_name("one")
    changed = read.model_copy(update={"description": "changed"})
    assert isinstance(changed, AutomationCore)
    try:
        client.update_automation(read.id, changed)
    except PrefectHTTPStatusError as error:
        (detail,) = error.response.json()["exception_detail"]
        print(f"what was read and changed: HTTP {error.response.status_code} {detail['type']} {detail['loc']}")
        assert (error.response.status_code, detail["type"], detail["loc"]) == (422, "extra_forbidden", ["body", "id"])
    else:
        raise SystemExit("what was read can be sent back now")
    same = {name: getattr(changed, name) for name in changed.model_fields_set - {"id"}}
    client.update_automation(read.id, AutomationCore(**same))
    assert client.read_automations_by_name("one")[0].description == "changed"
    print("the same without the id: updated")
PYTHON
