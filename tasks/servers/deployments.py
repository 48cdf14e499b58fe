"""What a Prefect server needs to know of peft-flow: the work pool, the deployments, what to do about silent runs."""

import hashlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from datetime import timedelta
from importlib.metadata import distribution, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

import tasks
from tasks.base.closing import NO_HEARTBEAT
from tasks.base.device import gpus
from tasks.base.files import write_text
from tasks.base.machine import code_key
from tasks.base.progress import tell
from tasks.base.records import Record
from tasks.settings import config, fields, fixed, methods, rivals, sections
from tasks.settings import form as forms
from tasks.settings.fields import InputError
from tasks.settings.fixed import DEPLOYMENTS

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.actions import DeploymentScheduleCreate


POOL = "peft-flow"

TRIALS_POOL = "peft-flow-trials"
"""Work pool of the processes that run the trials of sweeps, or the shards of predictions: a run that waits for them
would hold the only place of its own pool."""

HEARTBEAT_SECONDS = 75.0
"""Two heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY in tasks/base/environment.py) may be missed, not three."""


def make_pools(client: "SyncPrefectClient", ours: str) -> int:
    """The work pools; how many runs at a time are for the worker `ours`.

    As long as it is the only one, the pool itself has that limit, which also counts runs that have outlived a worker:
    one for each GPU, unless people have set another.
    """
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    usual = runs_at_once()
    for pool, limit in ((POOL, usual), (TRIALS_POOL, None)):
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=pool, type="process", concurrency_limit=limit))
    found = client.read_work_pool(POOL).concurrency_limit
    if found is None and {worker.name for worker in client.read_workers_for_work_pool(POOL)} <= {ours}:
        client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=usual))
    return found or usual


def runs_at_once() -> int:
    """On one machine: one for each GPU; one, where there is none."""
    return max(1, len(gpus()))


FACTS = "peft_flow"
"""Variable in Prefect with what other machines must know of the one that has the servers."""


class Facts(Record):
    version: str
    """Of the package."""
    program: str
    """Digest of all in it that decides about results."""
    runs: int
    """At a time, by which the pool was limited when it had one machine."""
    studies: str | None
    """Address of the database for the trials of sweeps, without user and password."""


def own_facts(studies: str | None = None) -> Facts:
    return Facts(version=version("peft-flow"), program=code_key()[:12], runs=runs_at_once(), studies=studies)


def publish_facts(client: "SyncPrefectClient", facts: Facts) -> None:
    from prefect.client.schemas.actions import VariableCreate, VariableUpdate

    value = facts.model_dump(mode="json")
    if client.read_variable_by_name(FACTS):
        client.update_variable(VariableUpdate(name=FACTS, value=value))
    else:
        client.create_variable(VariableCreate(name=FACTS, value=value))


def read_facts(client: "SyncPrefectClient") -> Facts | None:
    """None where the deployments were not made by `peft-flow up`, or by another version of it."""
    found = client.read_variable_by_name(FACTS)
    with suppress(ValueError):
        return Facts.model_validate(found.value) if found else None
    return None


def deploy(client: "SyncPrefectClient", record: Path) -> None:
    """`prefect deploy --all`, where something changed since the last time.

    What people have changed in Prefect stays: parameters, and schedules that they added, switched, changed or removed.
    `record` is what prefect.yaml said the last time: only with it can their changes be told from the file's.
    """
    wanted, before = deployed_version(), deployed(client)
    said = yaml.safe_load(DEPLOYMENTS.read_text(encoding="utf-8"))
    entries = {entry["name"]: entry for entry in json.loads(json.dumps(said["deployments"], default=str))}
    if all(name in before and before[name].version == wanted for name in entries):
        return
    said_before = read_said(record)
    changed = [adapted(entry, before.get(name), said_before.get(name)) for name, entry in entries.items()]
    run_deploy({**said, "deployments": changed})
    after = deployed(client)
    for name, entry in entries.items():
        if name in before:
            set_schedules(client, after[name], entry, said_before.get(name, {}))
    write_text(record, json.dumps(entries))
    for name in entries:
        finish_deployment(client, after[name], wanted)


def read_said(record: Path) -> dict[str, Any]:
    """Entries of prefect.yaml by name; empty where it is not known what it said."""
    with suppress(FileNotFoundError, ValueError):
        return dict(json.loads(record.read_bytes()))
    return {}


def adapted(entry: dict[str, Any], before: Any, said_before: dict[str, Any] | None) -> dict[str, Any]:
    """For `prefect deploy`: with the parameters that people have set, and, where it is there, without schedules: it
    would put all of them back to what the file says, or lose those that people added."""
    said = entry.get("parameters", {})
    if before is None:
        return {**entry, "parameters": forms.folded(said, entry["entrypoint"])}
    parameters = merged((said_before or {}).get("parameters", {}), said, forms.unfolded(before.parameters))
    if parameters and has_older_form(before, entry["entrypoint"]):
        parameters = forms.with_names(parameters, {name: getattr(DEMO, name).name for name in forms.NOT_PREFILLED})
    if kept := [name for name in said if parameters.get(name) != said[name]]:
        tell("%s: %s stays as it was set in Prefect", entry["name"], ", ".join(kept))
    shown = forms.folded(parameters, entry["entrypoint"])
    return {**{key: value for key, value in entry.items() if key != "schedules"}, "parameters": shown}


DEMO = config.RunConfig()
"""Of which model and data were the demo's in a form where nobody had said otherwise."""


def has_older_form(deployment: Any, entrypoint: str) -> bool:
    """Whether it shows all fields at once."""
    if entrypoint.rpartition(".")[2] not in forms.FOLDED:
        return False
    return forms.ADVANCED not in (deployment.parameter_openapi_schema or {}).get("properties", {})


NOT_THERE: Any = object()


def merged(base: Any, ours: Any, theirs: Any) -> Any:
    """`ours`, but for what `theirs` has otherwise than `base`, from which both come."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return ours if theirs == base else theirs
    base = base if isinstance(base, dict) else {}
    pairs = ((name, (side.get(name, NOT_THERE) for side in (base, ours, theirs))) for name in {**ours, **theirs})
    return {name: value for name, sides in pairs if (value := merged(*sides)) is not NOT_THERE}


def run_deploy(said: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / DEPLOYMENTS.name
        write_text(file, yaml.safe_dump(said, sort_keys=False, allow_unicode=True))
        command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"prefect deploy --all failed: {result.stdout[-2000:]} {result.stderr[-2000:]}")


def deployed(client: "SyncPrefectClient") -> dict[str, Any]:
    """Those of our pools, by name."""
    from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName

    ours = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL, TRIALS_POOL]))
    return {deployment.name: deployment for deployment in client.read_deployments(work_pool_filter=ours)}


def deployed_version() -> str:
    """Changes with what deployments are made from: the file, and the code behind the forms."""
    flows = Path(tasks.__file__).resolve().parent.with_name("flows")
    modules = (config, fields, fixed, forms, methods, rivals, sections)
    shapes = [Path(__file__), *(Path(str(module.__file__)) for module in modules)]
    files = [DEPLOYMENTS, *sorted(flows.glob("*.py")), *shapes]
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()[:12]


def finish_deployment(client: "SyncPrefectClient", deployment: Any, version: str) -> None:
    """Have the server refuse parameters that the flow does not know: of its own it checks only those it knows."""
    from prefect.client.schemas.actions import DeploymentUpdate

    form = {**forms.form(fillable(deployment.parameter_openapi_schema)), "additionalProperties": False}
    client.update_deployment(deployment.id, DeploymentUpdate(parameter_openapi_schema=form, version=version))


def fillable(schema: Any) -> Any:
    """A form in which what may be None is simply left empty.

    As pydantic writes it Prefect shows two buttons and the word None, and refuses a value without naming its bounds.
    """
    if isinstance(schema, list):
        return [fillable(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: fillable(inner) for name, inner in schema.items() if inner is not None}  # also within defaults
    kinds = schema.get("anyOf", [])
    one = [kind for kind in kinds if kind != {"type": "null"}]
    if len(one) != 1 or len(kinds) != 2:
        return schema
    return {**one[0], **{name: inner for name, inner in schema.items() if name != "anyOf"}}


def set_schedules(
    client: "SyncPrefectClient", deployment: Any, entry: dict[str, Any], said_before: dict[str, Any]
) -> None:
    """What has changed in the file, where people have not changed the same; each step may be the last."""
    said, known = entry.get("schedules") or [], said_before.get("schedules") or []
    for one in said:
        there, old = found(deployment.schedules, one), same(known, one)
        wanted = parsed(one)
        if there is None and old is None:
            client.create_deployment_schedules(deployment.id, [wanted])
        elif there and old and is_as_said(there, old) and not is_as_said(there, one):
            client.update_deployment_schedule(
                deployment.id, there.id, wanted.active, wanted.schedule, parameters=wanted.parameters
            )
    for old in known:
        there = found(deployment.schedules, old)
        if there and same(said, old) is None and is_as_said(there, old):
            client.delete_deployment_schedule(deployment.id, there.id)


def parsed(said: Mapping[str, Any]) -> "DeploymentScheduleCreate":
    """A schedule of prefect.yaml as Prefect's client has it."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    own = ("slug", "active", "parameters", "max_scheduled_runs")
    when = {name: value for name, value in said.items() if name not in (*own, "replaces")}
    return DeploymentScheduleCreate.model_validate(
        {"schedule": when, **{name: said[name] for name in own if name in said}}
    )


def is_as_said(there: Any, said: Mapping[str, Any]) -> bool:
    wanted = parsed(said)
    when = wanted.schedule.model_fields_set
    return (
        there.active == wanted.active
        and (there.parameters or {}) == wanted.parameters
        and all(getattr(there.schedule, name, None) == getattr(wanted.schedule, name) for name in when)
    )


def found(schedules: Sequence[Any], said: Mapping[str, Any]) -> Any:
    """The one of the file: of the same slug; without one, the same in everything."""
    slug = said.get("slug")
    return next((one for one in schedules if (one.slug == slug if slug else is_as_said(one, said))), None)


def same(said: Sequence[Mapping[str, Any]], schedule: Mapping[str, Any]) -> Mapping[str, Any] | None:
    slug = schedule.get("slug")
    return next((one for one in said if (one.get("slug") == slug if slug else one == schedule)), None)


FLOWS = (
    *("finetune", "finetune-seeds", "learning-curve", "sweep", "sweep-runner", "retrain", "predict", "predict-shard"),
    *("rerun", "monitor"),
)
"""All that are ours, by the name that Prefect knows them by."""

AUTOMATION = "peft-flow: runs without a sign of life"


def make_automation(client: "SyncPrefectClient") -> None:
    """Runs on other machines that fall silent are marked as crashed; those of this machine are known by their locks.

    One that an earlier version has made knows from now on of the flows that are new.
    """
    from prefect.automations import AutomationCore, EventTrigger, Posture
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.events import ResourceSpecification

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
    for there in client.read_automations_by_name(AUTOMATION):
        if isinstance(there.trigger, EventTrigger) and there.trigger.match_related != trigger.match_related:
            known = dict(there)  # what people have set, too
            known["trigger"] = there.trigger.model_copy(update={"match_related": trigger.match_related})
            # a field that says nothing is refused where the server does not know it
            said = {name: known[name] for name in AutomationCore.model_fields if known[name] is not None}
            client.update_automation(there.id, AutomationCore(**said))
        return
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


MIGRATIONS = "prefect/server/database/_migrations/versions"
"""One file for each change that Prefect has made to its database of a kind, with the change's id."""


def refuse_newer_database(database: Path) -> None:
    """InputError where a newer Prefect has changed this SQLite file, and the one installed here uses it.

    Its server would end with a traceback, and the one inside a run would be started again for two minutes.
    """
    if not database.exists():
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, timeout=10)) as connection:
        changes = [change for (change,) in connection.execute("SELECT version_num FROM alembic_version")]
        if not are_known(changes, "sqlite") and is_used(database):
            raise InputError(
                f"{newer_prefect(str(database))}, or set PREFECT_HOME to a new folder, where flow runs, schedules and "
                "automations begin anew"
            )


def are_known(changes: Sequence[str], kind: str) -> bool:
    """Whether the Prefect installed here knows these changes to its database: sqlite or postgresql."""
    folder = Path(str(distribution("prefect").locate_file(f"{MIGRATIONS}/{kind}")))  # importing it takes seconds
    known = [file.read_text(encoding="utf-8") for file in folder.glob("*.py")] if changes else []
    return all(any(change in file for file in known) for change in changes)


def newer_prefect(database: str) -> str:
    return (
        f"{database} was changed by a newer Prefect than the {distribution('prefect').version} that is installed here, "
        "which cannot read it: install the newer one again"
    )


def is_used(database: Path) -> bool:
    """Whether it is the database of Prefect's server: its settings may name another."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
    from sqlalchemy import make_url

    named = make_url(PREFECT_API_DATABASE_CONNECTION_URL.value()).database or ""
    return Path(named).resolve() == database.resolve()
