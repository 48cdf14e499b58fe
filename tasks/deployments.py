"""What a Prefect server needs to know of peft-flow: the work pool, the deployments, what to do about silent runs."""

import hashlib
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tasks.closing import NO_HEARTBEAT
from tasks.device import gpus

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POOL = "peft-flow"
DEPLOYMENTS = Path("prefect.yaml")

HEARTBEAT_SECONDS = 75.0
"""Two heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY in tasks/environment.py) may be missed, not three."""


def make_pool(client: "SyncPrefectClient") -> None:
    """The work pool; at most one flow run at a time for each GPU, unless people have set another limit."""
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    limit = max(1, len(gpus()))
    try:
        if client.read_work_pool(POOL).concurrency_limit is None:
            client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=limit))
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", concurrency_limit=limit))


def deploy(client: "SyncPrefectClient") -> None:
    """`prefect deploy --all`, where something changed since the last time.

    It sets everything back to what prefect.yaml says. What people have switched or added in the UI is put back: the
    schedules after every deployment; the parameters as long as there is nothing new.
    """
    version = deployed_version()
    before = deployed(client)
    names = [entry["name"] for entry in yaml.safe_load(DEPLOYMENTS.read_text(encoding="utf-8"))["deployments"]]
    if all(name in before and before[name].version == version for name in names):
        return
    result = subprocess.run(
        [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all"],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"prefect deploy --all failed: {result.stdout[-2000:]} {result.stderr[-2000:]}")
    after = deployed(client)
    for name in names:
        finish_deployment(client, after[name], version)
        if name in before:
            keep_schedules(client, before[name], after[name])


def deployed(client: "SyncPrefectClient") -> dict[str, Any]:
    """The pool's deployments by name."""
    from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName

    ours = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    return {deployment.name: deployment for deployment in client.read_deployments(work_pool_filter=ours)}


def deployed_version() -> str:
    """Changes with what deployments are made from: the file, the folder, and the code behind the forms."""
    here = Path(__file__).resolve().parent
    files = [DEPLOYMENTS, *sorted((here.parent / "flows").glob("*.py")), here / "config.py", here / "methods.py"]
    total = hashlib.sha256(str(Path.cwd()).encode())
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()[:12]


def finish_deployment(client: "SyncPrefectClient", deployment: Any, version: str) -> None:
    """Have the server refuse parameters that the flow does not know: of its own it checks only those it knows."""
    from prefect.client.schemas.actions import DeploymentUpdate

    form = {**deployment.parameter_openapi_schema, "additionalProperties": False}
    client.update_deployment(deployment.id, DeploymentUpdate(parameter_openapi_schema=form, version=version))


def keep_schedules(client: "SyncPrefectClient", before: Any, after: Any) -> None:
    now = {schedule.slug: schedule for schedule in after.schedules if schedule.slug}
    for schedule in before.schedules:
        if schedule.slug in now:
            if schedule.active != now[schedule.slug].active:
                client.update_deployment_schedule(after.id, now[schedule.slug].id, active=schedule.active)
        elif not schedule.slug:  # one with a slug was in prefect.yaml, and is not any more
            client.create_deployment_schedules(after.id, [(schedule.schedule, schedule.active)])


FLOWS = ("finetune", "finetune-seeds", "retrain", "predict", "rerun")
"""All that are ours, by the name that Prefect knows them by."""

AUTOMATION = "peft-flow: runs without a sign of life"


def make_automation(client: "SyncPrefectClient") -> None:
    """Runs on other machines that fall silent are marked as crashed; those of this machine are known by their locks."""
    from prefect.automations import AutomationCore, EventTrigger, Posture
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.events import ResourceSpecification

    if client.read_automations_by_name(AUTOMATION):
        return
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *ends},
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=HEARTBEAT_SECONDS),
    )
    action = ChangeFlowRunState(state=StateType.CRASHED, message=f"{NO_HEARTBEAT}; it was killed")
    client.create_automation(
        AutomationCore(
            name=AUTOMATION,
            description="Made by peft-flow up. It needs the heartbeat that peft-flow's runs send every 30 s.",
            trigger=trigger,
            actions=[action],
        )
    )


def forget_silence(database: Path) -> None:
    """Have the automation wait for each run's next heartbeat, before a server starts over this SQLite file.

    Else it would, the moment it starts, call every living run dead whose last one is longer ago: nobody took note of
    those that came while there was no server.
    """
    if not database.exists():
        return
    ours = "DELETE FROM automation_bucket WHERE automation_id IN (SELECT id FROM automation WHERE name = ?)"
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, timeout=10)) as connection, connection:
        connection.execute(ours, (AUTOMATION,))
