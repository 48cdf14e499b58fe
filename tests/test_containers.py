"""Dockerfile and compose.yaml say what is true of the program. No daemon is needed: nothing is built here."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.cli import build_parser
from tasks.servers.doors import CREDENTIALS
from tasks.settings.fixed import DEPLOYMENTS, STORE
from tests.conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {name: one for name, one in COMPOSE["services"].items() if "build" in one}
PASSWORDS = {name: "a-password-of-tests" for name in ("POSTGRES_PASSWORD", "PREFECT_PASSWORD", "MLFLOW_PASSWORD")}


def test_image_has_the_python_that_the_packages_were_tested_with() -> None:
    (python,) = re.findall(r"^ARG PYTHON=(.*)$", DOCKERFILE, re.MULTILINE)
    assert f"Python {python}." in (ROOT / "constraints.txt").read_text()
    assert PROJECT["requires-python"] == f">={python}"


def test_layer_of_packages_installs_those_of_the_project() -> None:
    """Its command is run as it stands, but for pip."""
    (command,) = re.findall(r"^RUN (python -c .*?) > requirements\.txt", DOCKERFILE, re.MULTILINE)
    command = command.replace("${EXTRAS}", "postgresql quantized")
    _, *words = shlex.split(command)
    told = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    extras = PROJECT["optional-dependencies"]
    assert told.splitlines() == [*PROJECT["dependencies"], *extras["postgresql"], *extras["quantized"]]
    assert "--constraint constraints.txt" in DOCKERFILE


def test_image_holds_what_runs_need_and_nothing_of_ours_besides() -> None:
    first, *others = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    taken = {line[1:] for line in others if line.startswith("!")}
    assert first == "*" and all((ROOT / name).exists() for name in taken)
    assert {"flows", "tasks", "pyproject.toml", "constraints.txt", PROJECT["readme"], str(DEPLOYMENTS)} <= taken
    assert not taken & {str(STORE), ".venv", ".git", "tests", "benchmarks"} and "**/__pycache__" in others


def test_image_runs_as_a_user_without_rights_and_keeps_what_is_to_be_kept() -> None:
    assert re.search(r"^USER 10001$", DOCKERFILE, re.MULTILINE) and "--uid 10001" in DOCKERFILE
    assert "ENTRYPOINT" not in DOCKERFILE  # a work pool gives its own command
    volumes = set(re.findall(r'"(/[^"]+)"', re.findall(r"^VOLUME (.*)$", DOCKERFILE, re.MULTILINE)[0]))
    for service in OURS.values():
        assert {volume.rpartition(":")[2] for volume in service["volumes"]} == volumes
    (home,) = re.findall(r"PREFECT_HOME=(\S+)", DOCKERFILE)
    assert any(home.startswith(volume) for volume in volumes)


def test_no_index_address_and_no_password_is_written_down() -> None:
    for name in ("Dockerfile", "compose.yaml"):
        text = (ROOT / name).read_text()
        assert not re.search(r"--(extra-)?index-url|--find-links|https?://\S*(pypi|simple|wheel)", text)
    values = [pair for one in COMPOSE["services"].values() for pair in one["environment"].items()]
    secret = [value for name, value in values if re.search("PASSWORD|AUTH_STRING", name)]
    assert len(secret) >= 5 and all(re.fullmatch(r"(team:)?\$\{\w+:\?[^}]+\}", value) for value in secret)


def test_pages_are_published_to_this_machine_only_and_the_servers_ask_for_passwords() -> None:
    ports = [port for one in COMPOSE["services"].values() for port in one.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    assert {*CREDENTIALS} <= COMPOSE["services"]["servers"]["environment"].keys()


@pytest.mark.parametrize("name", OURS)
def test_commands_are_commands_of_the_program(name: str) -> None:
    program, *command = OURS[name]["command"]
    options, rest = build_parser().parse_known_args(command)
    assert program == "peft-flow" and not rest and callable(options.command)


def test_worker_finds_servers_and_database_under_the_names_of_their_containers() -> None:
    servers, worker = COMPOSE["services"]["servers"], COMPOSE["services"]["worker"]
    names = re.findall(r"http://(\w+):(\d+)", " ".join(worker["command"]))
    assert names == [("servers", "4200"), ("servers", "5000")]
    assert "servers:5000," in servers["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert "postgresql://peft_flow@postgres/peft_flow" in servers["command"]
    database = COMPOSE["services"]["postgres"]["environment"]
    assert (database["POSTGRES_USER"], database["POSTGRES_DB"]) == ("peft_flow", "peft_flow")


def test_health_is_asked_where_the_servers_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("urllib.request.urlopen", lambda page, timeout: asked.append(page))
    exec(COMPOSE["services"]["servers"]["healthcheck"]["test"][-1], {})
    source = (ROOT / "tasks/servers/up.py").read_text()
    assert asked == ["http://127.0.0.1:4200/api/health", "http://127.0.0.1:5000/health"]
    assert '/api/health")' in source and '/health")' in source


@pytest.mark.parametrize("missing", ["", *PASSWORDS])
def test_compose_takes_the_file_and_misses_a_password(missing: str, tmp_path: Path) -> None:
    command = next((one for one in (["docker-compose"], ["docker", "compose"]) if has_compose(one)), None)
    if not command:
        pytest.skip("there is no docker-compose on this machine")
    shutil.copy(ROOT / "compose.yaml", tmp_path)
    environment = {"PATH": os.environ["PATH"], **{name: word for name, word in PASSWORDS.items() if name != missing}}
    told = subprocess.run([*command, "config"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (told.returncode == 0) == (not missing), told.stderr
    assert (
        f"set {missing}" in told.stderr
        if missing
        else {*yaml.safe_load(told.stdout)["services"]} == {*COMPOSE["services"]}
    )


def has_compose(command: list[str]) -> bool:
    return bool(shutil.which(command[0])) and not subprocess.run([*command, "version"], capture_output=True).returncode
