"""`peft-flow up` for real, but for what a browser shows (test_up_in_browser.py) and kills (test_kills.py)."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import psutil
import pytest
import yaml

from flows.cli import DONE, main
from tasks.servers import up as stacks
from tasks.settings.fields import InputError
from tests.conftest import ROOT, free_port
from tests.stacks import FINAL, Stack, until, used_by_newer_prefect
from tests.test_retrain import furnished

PASSWORDS = {
    "PREFECT_SERVER_API_AUTH_STRING": "team:a-good-password",
    "MLFLOW_TRACKING_USERNAME": "admin",
    "MLFLOW_TRACKING_PASSWORD": "another-good-password",
}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in stacks.CREDENTIALS:
        monkeypatch.delenv(name, raising=False)


def options(host: str) -> stacks.Options:
    return stacks.Options(host, 4200, 5000)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_at_home_nobody_needs_a_password(bare: None, host: str) -> None:
    stacks.refuse_open_doors(options(host))


@pytest.mark.parametrize("missing", list(PASSWORDS))
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5"])
def test_open_door_without_all_passwords_is_refused(
    bare: None, monkeypatch: pytest.MonkeyPatch, host: str, missing: str
) -> None:
    for name, value in PASSWORDS.items():
        monkeypatch.setenv(name, value)
    stacks.refuse_open_doors(options(host))
    monkeypatch.delenv(missing)
    with pytest.raises(InputError, match=f"--host {host} lets other machines in: set {missing} first"):
        stacks.refuse_open_doors(options(host))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PREFECT_SERVER_API_AUTH_STRING", "only-a-password", "must be USER:PASSWORD"),
        ("MLFLOW_TRACKING_PASSWORD", "short", "must have at least 12 characters"),
    ],
)
def test_password_that_a_server_would_not_take_is_refused(
    bare: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    for variable, given in (PASSWORDS | {name: value}).items():
        monkeypatch.setenv(variable, given)
    with pytest.raises(InputError, match=f"{name} {words}"):
        stacks.refuse_open_doors(options("0.0.0.0"))


def test_host_that_is_no_address_is_refused(bare: None) -> None:
    with pytest.raises(InputError, match="--host: 'my-machine' is not an IP address"):
        stacks.refuse_open_doors(options("my-machine"))


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("10.0.0.5", "10.0.0.5")],
)
def test_this_machine_reaches_its_servers(host: str, address: str) -> None:
    assert options(host).prefect == f"http://{address}:4200"


def test_links_lead_where_people_open_the_pages(bare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_UI_URL", raising=False)
    assert options("127.0.0.1").page("MLFLOW_UI_URL", 5000) == "http://127.0.0.1:5000"
    assert options("0.0.0.0").page("MLFLOW_UI_URL", 5000) == f"http://{socket.gethostname()}:5000"
    monkeypatch.setenv("MLFLOW_UI_URL", "https://mlflow.example.com/")
    assert options("127.0.0.1").page("MLFLOW_UI_URL", 5000) == "https://mlflow.example.com"


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.5"])
def test_servers_answer_at_the_address_that_was_asked_for_alone(
    bare: None, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    for name, value in stacks.clients_environment(options(host)).items():
        monkeypatch.setenv(name, value)
    commands = [list(program.command) for program in stacks.make_programs(options(host))]
    told = [command[command.index("--host") + 1] for command in commands if "--host" in command]
    assert told == [host, host]  # of Prefect and of MLflow; the worker answers nobody
    assert not any("0.0.0.0" in command for command in commands)


def let_in(doors: dict[str, str], host: str) -> bool:
    from mlflow.server.security_utils import is_allowed_host_header

    return bool(is_allowed_host_header(doors["MLFLOW_SERVER_ALLOWED_HOSTS"].split(","), host))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    ("page", "hosts", "origin"),
    [
        (
            "HTTP://MLflow.Example.com",
            "mlflow.example.com mlflow.example.com:80 MLflow.Example.com",
            "http://mlflow.example.com",
        ),
        ("https://mlflow.example.com:443/", "mlflow.example.com mlflow.example.com:443", "https://mlflow.example.com"),
        (
            "Https://MLFLOW.example.com:8443/ml",
            "mlflow.example.com mlflow.example.com:8443 MLFLOW.example.com:8443",
            "https://mlflow.example.com:8443",
        ),
        ("http://[2001:DB8::5]:5000", "[2001:db8::5] [2001:db8::5]:5000", "http://[2001:db8::5]:5000"),
        ("https://ana:secret@bücher.example", "xn--bcher-kva.example", "https://xn--bcher-kva.example"),
    ],
)
def test_mlflow_lets_in_who_comes_to_its_page_from_this_machine_or_through_a_tunnel_and_nobody_else(
    bare: None, monkeypatch: pytest.MonkeyPatch, host: str, page: str, hosts: str, origin: str
) -> None:
    from mlflow.server.security_utils import should_block_cors_request

    monkeypatch.setenv("MLFLOW_UI_URL", page)
    doors = stacks.doors(options(host))
    here = [f"{name}{port}" for name in ("localhost", "127.0.0.1", "[::1]") for port in ("", ":5000", ":8080", ":1")]
    assert [name for name in (*hosts.split(), *here) if not let_in(doors, name)] == []
    strangers = (
        *("evil.com", "evil.com:5000", "mlflow.example.com.evil.com", "other.example.com", "localhost.evil.com", ""),
        *("localhost:8080.evil.com", "127.0.0.1.evil.com", "127.0.0.1:evil", "localhost:123456", "10.evil.com"),
        *("192.168.evil.com:5000", "172.16.evil.com", "172.32.0.1", "11.0.0.1", "*", "mlflow.example.com:9999"),
    )
    assert [name for name in strangers if let_in(doors, name)] == []
    origins = doors["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert not should_block_cors_request(origin, "POST", origins)
    for stranger in ("http://evil.com", "http://10.evil.com", f"{origin}.evil.com", origin.replace("http", "ftp")):
        assert should_block_cors_request(stranger, "POST", origins), stranger
    private = ("10.0.0.7:5000", "192.168.178.20", "172.16.0.1:5000", "172.31.255.255:65535")
    assert {let_in(doors, name) for name in private} == {host == "0.0.0.0"}
    assert {should_block_cors_request(f"http://{name}", "POST", origins) for name in private} == {host != "0.0.0.0"}


@pytest.mark.parametrize("page", ["mlflow.example.com", "//mlflow", "http://", "https://name:port", "ftp://a.example"])
def test_page_that_is_no_address_is_refused(bare: None, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    monkeypatch.setenv("MLFLOW_UI_URL", page)
    with pytest.raises(InputError, match=r"MLFLOW_UI_URL: .* is not an address; give https://NAME or http://NAME:PORT"):
        options("127.0.0.1").page("MLFLOW_UI_URL", 5000)


def test_folder_without_deployments_is_refused(workplace: Path, bare: None) -> None:
    with pytest.raises(InputError, match=r"there is no prefect.yaml in .*; go to the folder of peft-flow"):
        stacks.up(options("127.0.0.1"))
    assert list(workplace.iterdir()) == []


def refused(stack: Stack, *arguments: str) -> str:
    """The one line with which `peft-flow up` ends at once, exit code 2."""
    command = [sys.executable, "-m", "flows.cli", "up", *arguments]
    result = subprocess.run(
        command, cwd=stack.folder, env=stack.environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    return line


def test_taken_port_is_refused_and_nothing_is_left_running(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "stack")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = refused(stack, "--prefect-port", str(free_port()), "--mlflow-port", port)
    assert f"--mlflow-port: port {port} of 127.0.0.1 cannot be used for the MLflow server" in line
    assert stack.processes() == []


def test_database_of_a_newer_prefect_is_refused_and_nothing_starts(
    workplace: Path, bare: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path_factory.mktemp("prefect")
    monkeypatch.setenv("PREFECT_HOME", str(home))
    monkeypatch.setattr(stacks, "start", None)
    (workplace / "prefect.yaml").touch()
    with (
        used_by_newer_prefect(home),
        pytest.raises(InputError, match="install the newer one again, or set PREFECT_HOME"),
    ):
        stacks.up(stacks.Options("127.0.0.1", free_port(), free_port()))
    assert [file.name for file in workplace.iterdir()] == ["prefect.yaml"]


def test_tilde_in_prefects_home_is_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("~/prefect", str(tmp_path / "prefect")):
        monkeypatch.setenv("PREFECT_HOME", given)
        with stacks.alone(options("127.0.0.1")) as register:
            assert register.parent == tmp_path / "prefect"


def test_server_that_cannot_start_takes_everything_down_and_is_named_with_its_log(
    tmp_path: Path, empty_prefect: Path
) -> None:
    stack = Stack(tmp_path / "stack")
    (stack.folder / "prefect").mkdir()
    shutil.copy(empty_prefect, stack.folder / "prefect/prefect.db")
    (stack.folder / "mlruns").mkdir()
    (stack.folder / "mlruns/mlflow.db").write_text("no database " * 100)
    stack.begin()
    assert stack.process and stack.process.wait(120) == 1
    last = stack.said().splitlines()[-1]
    assert last.startswith("peft-flow: failed: ") and "the MLflow server has ended" in last
    assert "mlruns/logs/mlflow.log" in last
    assert stack.processes() == []


@pytest.fixture(scope="module")
def parameters(foundation: Any, reviews: Path) -> dict[str, Any]:
    """A run of seconds."""
    return {
        "model": {"name": str(foundation("gpt2"))},
        "data": {"name": str(reviews), "max_length": 32},
        "training": {"epochs": 4, "batch_size": 8},
        "evaluation": {"bootstrap_samples": 200, "batch_size": 8, "references": []},
    }


class InTurn(NamedTuple):
    """Ids of two flow runs: the first was killed in its training; the second waited for it, and has completed."""

    killed: str
    finished: str
    niceness: int
    """Of the first one's process."""


@pytest.fixture(scope="module")
def in_turn(stack: Stack, parameters: dict[str, Any]) -> InTurn:
    first = stack.submit(parameters | {"training": {"epochs": 5000, "batch_size": 8}})
    second = stack.submit(parameters | {"seed": 1})
    until(lambda: stack.tasks(first).get("train adapter") == "RUNNING", 240, "training")
    assert stack.state(second) == "SCHEDULED"  # the worker has looked for work many times
    training = psutil.Process(int(stack.call("GET", f"/flow_runs/{first}")["infrastructure_pid"]))
    niceness = training.nice()
    training.kill()
    assert stack.until_state(first, *FINAL) == "CRASHED"
    assert stack.until_state(second, *FINAL) == "COMPLETED"
    return InTurn(first, second, niceness)


@pytest.fixture(scope="module")
def finished(in_turn: InTurn) -> str:
    """Id of a flow run that has completed."""
    return in_turn.finished


def test_second_start_is_refused_and_disturbs_nothing(stack: Stack) -> None:
    before = {process.pid for process in stack.processes()}
    line = refused(stack, "--prefect-port", str(free_port()), "--mlflow-port", str(free_port()))
    assert f"peft-flow up is already running, in {stack.folder}" in line
    assert {process.pid for process in stack.processes()} == before


def test_deployments_are_there_with_their_descriptions(stack: Stack) -> None:
    for name in ("finetune", "finetune-demo", "finetune-gpt2-rotten-tomatoes", "finetune-seeds"):
        deployment = stack.deployment(name)
        assert deployment["description"] and "peft-flow" in deployment["tags"]
        assert deployment["parameter_openapi_schema"]["additionalProperties"] is False
    (schedule,) = stack.deployment("finetune-gpt2-rotten-tomatoes")["schedules"]
    assert not schedule["active"] and schedule["schedule"]["timezone"] == "Europe/Berlin"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"model": {}}, "model"),  # the demo's is nobody's own
        ({"learning_rate": 3}, "learning_rate"),
        ({"training": {"learning_rat": 3}}, "learning_rat"),
        ({"training": {"learning_rate": 30}}, "training.learning_rate"),
        ({"adapter": {"method": "lorra"}}, "adapter.method"),
        ({"advanced": {"adapter": {"method": "lorra"}}}, "advanced.adapter.method"),
    ],
)
def test_wrong_parameters_are_refused_by_name_before_a_run_exists(
    stack: Stack, parameters: dict[str, Any], wrong: dict[str, Any], named: str
) -> None:
    path = f"/deployments/{stack.deployment('finetune')['id']}/create_flow_run"
    before = stack.call("POST", "/flow_runs/count", {})
    assert named in stack.refusal("POST", path, {"parameters": parameters | wrong, "state": {"type": "SCHEDULED"}})
    assert stack.call("POST", "/flow_runs/count", {}) == before


def test_schedules_that_many_switch_at_once_are_all_switched(stack: Stack) -> None:
    paths = []
    for name in ("finetune/finetune-gpt2-rotten-tomatoes", "retrain/retrain", "retrain/retrain-gpt2-rotten-tomatoes"):
        found = stack.call("GET", f"/deployments/name/{name}")
        paths.append(f"/deployments/{found['id']}/schedules/{found['schedules'][0]['id']}")

    def switch(path: str) -> list[str]:
        return [stack.refusal("PATCH", path, {"active": active}) for active in (True, False) * 5]

    with ThreadPoolExecutor(len(paths) * 2) as people:
        assert {words for refusals in people.map(switch, paths * 2) for words in refusals} == {""}


def test_server_that_dies_is_started_again(stack: Stack) -> None:
    server = stack.process_of("prefect server")
    assert server
    server.kill()
    until(lambda: "the Prefect server has ended (SIGKILL" in stack.said(), 20, "line")
    until(lambda: stack.process_of("prefect server") and stacks.answers(f"{stack.prefect}/api/health"), 60, "server")


def test_stack_stops_whole_and_starts_again_as_people_left_it(
    stack: Stack,
    parameters: dict[str, Any],
    prefect_harness: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One test, because it stops the stack that the others share: with a training at work, which is told to stop. Then
    there is a run without its servers, and the stack starts again, from now on with passwords."""
    settings = tmp_path / "alone.yaml"
    settings.write_text(yaml.safe_dump(parameters))
    name = "finetune-gpt2-rotten-tomatoes"
    deployment = stack.deployment(name)
    path = f"/deployments/{deployment['id']}"
    stack.call("PATCH", f"{path}/schedules/{deployment['schedules'][0]['id']}", {"active": True})
    stack.call("PATCH", path, {"parameters": {**deployment["parameters"], "seed": 3}})
    run = stack.submit(parameters | {"training": {"epochs": 5000, "batch_size": 8}})
    until(lambda: stack.tasks(run).get("train adapter") == "RUNNING", 240, "training")
    stack.stop()
    left = stack.processes()
    code = stack.process.returncode if stack.process else None

    monkeypatch.chdir(stack.folder)
    assert main(["finetune", str(settings), "--json"]) == DONE
    run_alone = json.loads(capsys.readouterr().out)["run_id"]

    stack.start_with_passwords(PASSWORDS)
    assert (stack.folder / "mlruns/live").is_dir()  # it ran here and nowhere else
    assert stack.state(run) == "CRASHED" and stack.mlflow_run(run).info.status == "KILLED"
    deployment = stack.deployment(name)
    assert deployment["schedules"][0]["active"] and deployment["parameters"]["seed"] == 3  # nothing was deployed anew
    stack.call("PATCH", f"{path}/schedules/{deployment['schedules'][0]['id']}", {"active": False})
    assert "comparison/comparison.md" in artifacts(stack, run_alone, "comparison")
    assert (left, code) == ([], 0)  # said last: the tests below need the stack


def test_servers_go_before_trainings_and_readers_wait_for_no_writer(stack: Stack, in_turn: InTurn) -> None:
    for words in ("prefect server start", "mlflow server"):
        server = stack.process_of(words)
        assert server and server.nice() == os.nice(0), words
    assert in_turn.niceness == min(os.nice(0) + stacks.NICENESS, 19)
    with closing(sqlite3.connect(stack.folder / "prefect/prefect.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_run_tells_its_story_without_noise(stack: Stack, finished: str) -> None:
    def story() -> list[str]:
        logs = stack.call(
            "POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [finished]}}, "sort": "TIMESTAMP_ASC"}
        )
        lines = [line["message"] for line in logs]
        return lines if lines and lines[-1].startswith("Recorded: ") else []

    lines = until(story, 20, "the last line of the log")
    assert lines[0].startswith("MLflow run ") and len(lines) < 15
    noise = ("Finished in", "Beginning", "Deployment", "Executing", "Running", "Worker", "Flow run", "All deployment")
    assert not [line for line in lines if line.startswith(noise)]


def test_run_has_its_artifacts_and_each_side_links_to_the_other(stack: Stack, finished: str) -> None:
    found = stack.call("POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [finished]}}})
    assert {artifact["key"] for artifact in found} == {"data-check", "training-progress", "comparison", "mlflow-run"}
    run = stack.mlflow_run(finished)
    (link,) = [artifact["data"] for artifact in found if artifact["key"] == "mlflow-run"]
    assert f"{stack.pages[1]}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" in link
    address = run.data.tags["prefect.flow_run_url"]
    assert address.startswith(stack.pages[0]) and address.endswith(f"/flow-run/{finished}")
    assert f"[Run page in Prefect]({address})" in run.data.tags["mlflow.note.content"]
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")


def events(stack: Stack, name: str) -> list[dict[str, Any]]:
    found: dict[str, Any] = stack.call("POST", "/events/filter", {"filter": {"event": {"name": [name]}}})
    return list(found["events"])


def test_end_of_a_run_is_an_event_with_its_mlflow_run(stack: Stack, finished: str) -> None:
    run = stack.mlflow_run(finished)
    (event,) = until(
        lambda: [e for e in events(stack, "peft-flow.run.finished") if run.info.run_id in json.dumps(e["resource"])],
        20,
        "event",
    )
    assert event["payload"]["run_id"] == run.info.run_id
    assert event["payload"]["verdict"] == event["resource"]["peft-flow.verdict"] == run.data.tags["verdict"]
    assert f"prefect.flow-run.{finished}" in json.dumps(event["related"])


def documented(title: str) -> str:
    """The Python under a heading of docs/automations.md."""
    section = (ROOT / "docs/automations.md").read_text().split(f"## {title}\n")[1]
    return section.split("```python\n")[1].split("```")[0]


def execute(stack: Stack, code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, env=stack.client_environment(), timeout=60)


@pytest.mark.endurance
def test_documented_automation_sends_a_message(stack: Stack, parameters: dict[str, Any]) -> None:
    messages: list[str] = []

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(unquote(self.rfile.read(int(self.headers["content-length"])).decode()))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    execute(
        stack,
        documented("A message when a run was not a success").replace("https://chat.example.com/hooks/our-room", url),
    )
    run = stack.submit(parameters | {"data": {"name": "no-such-file.csv"}})
    assert stack.until_state(run, *FINAL) == "FAILED"
    (message,) = until(lambda: messages, 30, "message")
    assert "FAILED" in message and stack.mlflow_run(run).info.run_id in message
    server.shutdown()


@pytest.mark.endurance
def test_documented_automation_starts_a_run(stack: Stack) -> None:
    execute(stack, documented("Retraining when there is new data"))
    deployment = stack.deployment("finetune-gpt2-rotten-tomatoes")["id"]
    command = [sys.executable, "-m", "prefect", "event", "emit", "reviews.updated", "--resource-id", "reviews"]

    def started() -> list[str]:
        found = stack.call("POST", "/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})
        return [run["id"] for run in found]

    time.sleep(3)  # the server reads its automations every few seconds
    subprocess.run(command, check=True, env=stack.client_environment(), timeout=60, capture_output=True)
    for run in until(started, 30, "run of the deployment"):
        stack.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLED"}, "force": True})


@pytest.mark.endurance
def test_documented_automation_retrains_on_drift(stack: Stack) -> None:
    execute(stack, documented("Retraining when what a model is asked has drifted"))
    deployment = stack.deployment("retrain")["id"]

    def started() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = stack.call(
            "POST", "/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}}
        )
        return [run for run in found if run["parameters"].get("data") == {"name": "/data/reviews"}]

    time.sleep(3)  # the server reads its automations every few seconds
    for name in ("films", "reviews"):  # the automation is about the second
        told = f"announce_drift({name!r}, {{'drifted': 'features'}}, {{'features': 0.003}})"
        execute(stack, f"from tasks.base.events import announce_drift; {told}")
    (run,) = until(started, 30, "run of the deployment")
    assert run["parameters"]["tracking"] == {"registered_model": "reviews"}
    stack.call("POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLED"}, "force": True})


def test_one_training_at_a_time_and_a_killed_one_gives_its_place_back(stack: Stack, in_turn: InTurn) -> None:
    assert (stack.state(in_turn.killed), stack.state(in_turn.finished)) == ("CRASHED", "COMPLETED")
    until(lambda: stack.mlflow_run(in_turn.killed).info.status == "KILLED", 30, "MLflow run closed")
    assert stack.tasks(in_turn.killed)["train adapter"] == "CRASHED"
    assert until(lambda: events(stack, "peft-flow.run.killed"), 20, "event")


def test_cancel_keeps_what_was_trained(stack: Stack, parameters: dict[str, Any]) -> None:
    run = stack.submit(parameters | {"training": {"epochs": 5000, "batch_size": 8}})
    until(lambda: stack.tasks(run).get("train adapter") == "RUNNING", 240, "training")
    time.sleep(2)
    process = psutil.Process(int(stack.call("GET", f"/flow_runs/{run}")["infrastructure_pid"]))
    stack.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    process.wait(10)
    assert stack.until_state(run, *FINAL) == "CANCELLED"
    until(lambda: stack.mlflow_run(run).info.status == "KILLED", 10, "MLflow run closed")
    files = stack.api.list_artifacts(stack.mlflow_run(run).info.run_id, "checkpoint")
    assert "checkpoint/adapter_model.safetensors" in {file.path for file in files}


@pytest.mark.endurance
def test_approval_waits_without_a_process_through_a_restart_and_resume_takes_it_up(
    stack: Stack, foundation: Any, tmp_path: Path
) -> None:
    values = furnished(tmp_path, foundation).values
    first = stack.submit(values | {"training": {"epochs": 1, "learning_rate": 0.0}, "force": True}, "retrain")
    assert stack.until_state(first, *FINAL) == "COMPLETED"
    run = stack.submit(values | {"gate": {"approval": True}}, "retrain")
    stack.until_state(run, "PAUSED", *FINAL)
    found = stack.call("GET", f"/flow_runs/{run}")
    assert found["state"]["name"] == "Suspended", found["state"]
    until(lambda: not psutil.pid_exists(int(found["infrastructure_pid"])), 20, "end of the process")
    assert stack.stop() < 10
    stack.start()
    time.sleep(12)  # whoever tidies up has had a look
    assert stack.call("GET", f"/flow_runs/{run}")["state"]["name"] == "Suspended"
    stack.call("POST", f"/flow_runs/{run}/resume", {"run_input": {"promote": True, "reason": "looks good"}})
    assert stack.until_state(run, *FINAL) == "COMPLETED"
    state = stack.call("GET", f"/flow_runs/{run}")["state"]
    assert state["name"] == "Promoted" and state["message"].endswith("approved: looks good")
    versions = stack.api.search_model_versions("name='reviews'")
    assert len(versions) == 2, "nothing is trained twice"


def artifacts(stack: Stack, run_id: str, folder: str) -> set[str]:
    return {file.path for file in stack.api.list_artifacts(run_id, folder)}


def test_after_the_power_went_no_run_shows_as_running(stack: Stack, parameters: dict[str, Any], finished: str) -> None:
    run = stack.submit(parameters | {"training": {"epochs": 5000, "batch_size": 8}})
    until(lambda: stack.tasks(run).get("train adapter") == "RUNNING", 240, "training")
    stack.kill()
    began = time.monotonic()
    stack.start()
    until(lambda: stack.state(run) == "CRASHED", 120, "Prefect's state")
    until(lambda: stack.mlflow_run(run).info.status == "KILLED", 120, "MLflow's status")
    assert timedelta(seconds=time.monotonic() - began) < timedelta(minutes=2)
    assert "comparison/comparison.md" in artifacts(stack, stack.mlflow_run(finished).info.run_id, "comparison")


@pytest.fixture(scope="module")
def guarded(stack: Stack) -> Stack:
    """The stack with passwords, as a test above has left it."""
    if not stack.login:
        stack.stop()
        stack.start_with_passwords(PASSWORDS)
    return stack


def test_passwords_are_asked_for_and_written_nowhere(guarded: Stack, finished: str) -> None:
    stack = guarded
    assert "401" in status_line(f"{stack.prefect}/api/deployments/count", "POST")
    assert "401" in status_line(f"{stack.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0")
    assert f"http://{socket.gethostname()}:{stack.ports[1]}/#/experiments" in stack.said()
    assert stack.mlflow_run(finished).info.status == "FINISHED"
    secrets = [PASSWORDS["MLFLOW_TRACKING_PASSWORD"], "a-good-password"]
    files = [file for file in stack.folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert len(files) > 20
    for file in files:
        content = file.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], file


def status_line(url: str, method: str = "GET") -> str:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, method=method, data=b"{}" if method == "POST" else None)
        ):
            return "200"
    except urllib.error.HTTPError as error:
        return str(error)
