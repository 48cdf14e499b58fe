"""What needs a server is in test_servers_up.py."""

import json
import re
import sqlite3
from contextlib import closing
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
import yaml

from tasks.base import environment
from tasks.servers import deployments
from tasks.settings.config import RetrainConfig, RunConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import checked, load_config, validated
from tests.conftest import ROOT
from tests.stacks import used_by_newer_prefect

ENTRIES = {entry["name"]: entry for entry in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_deployment_has_what_its_page_shows_and_valid_parameters(name: str) -> None:
    entry = ENTRIES[name]
    assert entry["description"] and "peft-flow" in entry["tags"]
    is_part = name in ("sweep-runner", "predict-shard")
    assert entry["work_pool"]["name"] == (deployments.TRIALS_POOL if is_part else deployments.POOL)
    kind = RetrainConfig if entry["entrypoint"].endswith(".retrain") else RunConfig
    checked(kind, entry.get("parameters", {}))


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_run_of_any_worker_shows_signs_of_life_as_often_as_the_automation_wants_them(name: str) -> None:
    """Also that of a worker on another machine, whose environment is Prefect's own."""
    told = ENTRIES[name]["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
    assert told == environment.DEFAULTS["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
    assert 2 * float(told) < deployments.HEARTBEAT_SECONDS


@pytest.mark.parametrize("name", ["finetune", "retrain", "predict"])
def test_what_may_be_none_is_an_empty_field_of_one_kind_with_its_bounds(name: str) -> None:
    from prefect.utilities.schema_tools.validation import validate

    form = deployments.fillable(getattr(import_module(f"flows.{name}"), name).parameters.model_dump_for_openapi())
    assert not {'"anyOf"', '"null"', "null"} & set(re.findall(r'"anyOf"|"null"|\bnull\b', json.dumps(form)))
    if name == "predict":
        assert "default" not in form["properties"]["split"] and form["properties"]["split"]["type"] == "string"
        return
    rate = form["definitions"]["TrainingConfig"]["properties"]["learning_rate"]
    assert (rate["type"], rate["minimum"], rate["maximum"]) == ("number", 0, 10) and "default" not in rate
    assert "learning_rate" not in form["properties"]["training"]["default"]
    (refused,) = validate({"training": {"learning_rate": 50}}, form)
    assert refused.message == "50 is greater than the maximum of 10"
    for kept in ({}, {"training": {"learning_rate": None, "max_steps": None}}, {"training": {"learning_rate": 0.1}}):
        assert not validate(kept, form, ignore_required=True)


def test_reference_job_is_the_one_of_its_configuration_file() -> None:
    given = validated(ENTRIES["finetune-gpt2-rotten-tomatoes"]["parameters"])
    assert given == load_config(ROOT / "configs/gpt2-rotten-tomatoes.yaml") != RunConfig()


def test_retrained_reference_job_is_the_reference_job() -> None:
    given = {**ENTRIES["retrain-gpt2-rotten-tomatoes"]["parameters"]}
    assert given.pop("tracking") == {"registered_model": "gpt2-rotten-tomatoes"}
    assert given == ENTRIES["finetune-gpt2-rotten-tomatoes"]["parameters"]


def test_schedules_ship_switched_off_with_a_time_zone() -> None:
    schedules = [schedule for entry in ENTRIES.values() for schedule in entry.get("schedules", [])]
    assert schedules
    for schedule in schedules:
        assert schedule["active"] is False and "/" in schedule["timezone"] and schedule["slug"]


def test_version_changes_with_the_file_and_not_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = []
    for folder, text in (("a", "one"), ("a", "two"), ("b", "two")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "prefect.yaml").write_text(text)
        monkeypatch.chdir(tmp_path / folder)
        versions.append(deployments.deployed_version())
    assert versions[0] != versions[1] == versions[2]


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "expected"),
    [
        ({"a": 1}, {"a": 2}, {"a": 1}, {"a": 2}),
        ({"a": 1}, {"a": 1}, {"a": 3}, {"a": 3}),
        ({"a": 1}, {"a": 2}, {"a": 3}, {"a": 3}),
        ({"a": 1}, {}, {"a": 1}, {}),
        ({"a": 1}, {"a": 1, "b": 2}, {}, {"b": 2}),
        ({}, {}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": {"b": 1, "c": 1}}, {"a": {"b": 2, "c": 1}}, {"a": {"b": 1, "c": 3}}, {"a": {"b": 2, "c": 3}}),
        ({}, {"a": 1, "b": 2}, {"a": 3}, {"a": 3, "b": 2}),
    ],
)
def test_parameter_that_people_changed_stays_and_the_others_are_the_files(
    base: Any, ours: Any, theirs: Any, expected: Any
) -> None:
    assert deployments.merged(base, ours, theirs) == expected


def test_deployment_that_is_there_is_deployed_with_peoples_parameters_and_without_schedules() -> None:
    entry = {"name": "retrain", "entrypoint": "e", "parameters": {"seed": 1}, "schedules": [WEEKLY]}
    assert deployments.adapted(entry, None, None) == entry
    there = Thing(parameters={"seed": 1, "tracking": {"registered_model": "reviews"}})
    assert deployments.adapted({**entry, "parameters": {"seed": 2}}, there, entry) == {
        "name": "retrain", "entrypoint": "e", "parameters": {"seed": 2, "tracking": {"registered_model": "reviews"}},
    }  # fmt: skip


class Thing:
    def __init__(self, **fields: Any) -> None:
        self.__dict__ |= fields


WEEKLY = {"slug": "weekly", "cron": "0 3 * * 1", "timezone": "Europe/Berlin", "active": False}
LATER = {**WEEKLY, "cron": "0 5 * * 1"}


@pytest.mark.usefixtures("prefect_harness")
class TestSchedules:
    """On a server, as redeploying finds and leaves them: cron, active and slug of each."""

    def left(
        self,
        there: list[dict[str, Any]],
        said: list[dict[str, Any]],
        said_before: list[dict[str, Any]],
        times: int = 2,
    ) -> list[tuple[str, bool, str | None]]:
        from prefect import flow
        from prefect.client.orchestration import get_client

        @flow
        def some_flow() -> None: ...

        with get_client(sync_client=True) as client:
            identity = client.create_deployment(
                client.create_flow(some_flow), f"d-{uuid4()}", schedules=[deployments.parsed(one) for one in there]
            )
            for _ in range(times):
                deployment = client.read_deployment(identity)
                deployments.set_schedules(client, deployment, {"schedules": said}, {"schedules": said_before})
                said_before = said
            now = client.read_deployment(identity).schedules
        return sorted((one.schedule.cron, one.active, one.slug) for one in now)

    OWN: ClassVar[dict[str, Any]] = {"cron": "0 6 * * *", "active": True}

    @pytest.mark.parametrize("said", [[], [WEEKLY]])
    def test_one_that_people_added_stays_once_however_often_it_is_deployed(self, said: list[dict[str, Any]]) -> None:
        expected = [("0 3 * * 1", False, "weekly"), ("0 6 * * *", True, None)][-1 - len(said) :]
        assert self.left([*said, self.OWN], said, said, times=3) == expected

    @pytest.mark.parametrize(
        "changed", [{"active": True}, {"cron": "30 4 * * 2"}, {"active": True, "cron": "1 1 1 * *"}]
    )
    def test_one_that_people_switched_or_changed_stays_so_also_when_the_file_changes(self, changed: Any) -> None:
        theirs = {**WEEKLY, **changed}
        expected = [(theirs["cron"], theirs["active"], "weekly")]
        assert self.left([theirs], [WEEKLY], [WEEKLY]) == self.left([theirs], [LATER], [WEEKLY]) == expected

    def test_one_that_people_removed_does_not_come_back(self) -> None:
        assert self.left([], [WEEKLY], [WEEKLY]) == self.left([], [LATER], [WEEKLY]) == []

    def test_what_the_file_changes_adds_or_drops_is_done_where_people_left_it_alone(self) -> None:
        yearly = {"slug": "yearly", "cron": "0 0 1 1 *", "active": False}
        assert self.left([WEEKLY], [LATER, yearly], [WEEKLY]) == [
            ("0 0 1 1 *", False, "yearly"), ("0 5 * * 1", False, "weekly"),
        ]  # fmt: skip
        assert self.left([WEEKLY, self.OWN], [], [WEEKLY]) == [("0 6 * * *", True, None)]
        assert self.left([{**WEEKLY, "active": True}], [], [WEEKLY]) == [("0 3 * * 1", True, "weekly")]

    def test_nothing_is_lost_where_it_is_not_known_what_the_file_said(self) -> None:
        theirs = {**WEEKLY, "active": True, "cron": "0 1 * * *"}
        assert self.left([theirs, self.OWN], [WEEKLY], []) == [("0 1 * * *", True, "weekly"), ("0 6 * * *", True, None)]


def test_interval_of_the_file_is_read_as_prefect_reads_it() -> None:
    said = {"interval": 3600, "timezone": "UTC", "parameters": {"seed": 1}}
    schedule = deployments.parsed(said)
    assert schedule.active and schedule.schedule.interval == timedelta(hours=1)
    assert deployments.is_as_said(schedule, said) and not deployments.is_as_said(schedule, {**said, "interval": 60})


def test_automation_of_an_earlier_version_learns_of_new_flows_and_keeps_what_people_set(
    prefect_harness: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client

    def automation() -> Any:
        deployments.make_automation(client)
        (found,) = client.read_automations_by_name(deployments.AUTOMATION)
        return found

    with get_client(sync_client=True) as client:
        with monkeypatch.context() as patch:
            patch.setattr(deployments, "FLOWS", ("finetune",))
            first = automation()
        client.pause_automation(first.id)
        second = automation()
        names = second.trigger.match_related.model_dump()["prefect.resource.name"]
        assert names == list(deployments.FLOWS) and "predict-shard" in names
        assert second.id == first.id and not second.enabled and second.trigger.within == first.trigger.within
        client.delete_automation(first.id)


def test_silence_while_there_was_no_server_is_forgotten_for_our_automation_only(tmp_path: Path) -> None:
    database = tmp_path / "prefect.db"
    deployments.forget_silence(database)
    assert not database.exists()
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE automation (id, name)")
        connection.execute("CREATE TABLE automation_bucket (automation_id)")
        connection.executemany("INSERT INTO automation VALUES (?, ?)", [(1, deployments.AUTOMATION), (2, "theirs")])
        connection.executemany("INSERT INTO automation_bucket VALUES (?)", [(1,), (1,), (2,)])
    deployments.forget_silence(database)
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT automation_id FROM automation_bucket").fetchall() == [(2,)]


def test_strange_database_stops_nobody(tmp_path: Path) -> None:
    database = tmp_path / "prefect.db"
    database.write_text("no database at all, but long enough to be read as one" * 20)
    deployments.forget_silence(database)
    deployments.refuse_newer_database(database)


@pytest.fixture
def backup(prefect_harness: None, tmp_path: Path) -> Path:
    """A copy of a database as Prefect makes it."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
    from sqlalchemy import make_url

    theirs, backup = make_url(PREFECT_API_DATABASE_CONNECTION_URL.value()).database, tmp_path / "backup.db"
    with closing(sqlite3.connect(str(theirs))) as connection, closing(sqlite3.connect(backup)) as copy:
        connection.backup(copy)
    return backup


def test_prefect_has_the_tables_that_silence_is_forgotten_in(backup: Path) -> None:
    with closing(sqlite3.connect(backup)) as connection:
        connection.execute("SELECT id, name FROM automation")
        connection.execute("SELECT automation_id FROM automation_bucket")


def test_only_a_database_that_a_newer_prefect_has_changed_is_refused(backup: Path, tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings

    with used_by_newer_prefect(tmp_path) as database:
        with pytest.raises(InputError, match=r"^\S+prefect.db was changed by a newer Prefect than the [\d.]+ that"):
            deployments.refuse_newer_database(database)
        with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{database}x"}):
            deployments.refuse_newer_database(database)
        backup.replace(database)
        deployments.refuse_newer_database(database)
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        with pytest.raises(InputError, match="newer Prefect"):
            deployments.refuse_newer_database(database)
