"""What needs a server is in test_stack.py."""

import inspect
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks import deployments
from tasks.config import PredictionConfig, RetrainConfig, RunConfig, checked, load_config, validated
from tests.conftest import ROOT

ENTRIES = {entry["name"]: entry for entry in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_deployment_has_what_its_page_shows_and_valid_parameters(name: str) -> None:
    entry = ENTRIES[name]
    assert entry["description"] and "peft-flow" in entry["tags"]
    assert entry["work_pool"]["name"] == deployments.POOL
    kind = RetrainConfig if entry["entrypoint"].endswith(":retrain") else RunConfig
    checked(kind, entry.get("parameters", {}))


def test_form_of_predict_has_every_field_as_the_configuration_has_it() -> None:
    from flows.predict import predict

    form = predict.parameters.model_dump_for_openapi()["properties"]
    fields = PredictionConfig.model_json_schema()["properties"]
    assert set(form) == set(fields)
    for name, field in fields.items():
        for key in ("minimum", "maximum", "enum"):
            assert form[name].get(key) == field.get(key), (name, key)
        assert form[name]["description"], name
        default = inspect.signature(predict.fn).parameters[name].default
        assert default in (PredictionConfig.model_fields[name].default, inspect.Parameter.empty), name


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


def test_version_changes_with_file_folder_and_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = set()
    for folder, text in (("a", "one"), ("a", "two"), ("b", "two")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "prefect.yaml").write_text(text)
        monkeypatch.chdir(tmp_path / folder)
        versions.add(deployments.deployed_version())
        assert deployments.deployed_version() in versions
    assert len(versions) == 3


class Client:
    """Takes note of what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def update_deployment_schedule(self, deployment: str, schedule: str, *, active: bool) -> None:
        self.asked.append((deployment, schedule, active))

    def create_deployment_schedules(self, deployment: str, schedules: list[Any]) -> None:
        self.asked.append((deployment, *schedules))


class Thing:
    def __init__(self, **fields: Any) -> None:
        self.__dict__ |= fields


def test_schedules_that_people_switched_or_added_stay_and_removed_ones_go() -> None:
    client: Any = Client()
    weekly = Thing(id="new", slug="weekly", active=False, schedule="mondays")
    before = [
        Thing(id="old", slug="weekly", active=True, schedule="mondays"),
        Thing(id="own", slug=None, active=True, schedule="daily"),
        Thing(id="gone", slug="yearly", active=True, schedule="in may"),
    ]
    deployments.keep_schedules(client, Thing(id="d", schedules=before), Thing(id="d", schedules=[weekly]))
    assert client.asked == [("d", "new", True), ("d", ("daily", True))]


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
