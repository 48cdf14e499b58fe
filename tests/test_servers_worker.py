import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.cli import USER_MUST_CHANGE, main
from tasks.servers import deployments, worker
from tasks.servers.worker import Options
from tasks.settings.fields import InputError
from tests.conftest import ROOT, free_port
from tests.machines import postgresql
from tests.stacks import FINAL, Stack, until


def options(prefect: str = "http://h:4200", mlflow: str = "http://h:5000") -> Options:
    return Options(prefect, mlflow, None)


@pytest.mark.parametrize("given", ["http://h:4200", "http://h:4200/", "http://h:4200/api", "http://h:4200/api/"])
def test_address_of_prefect_may_be_that_of_its_page_or_of_its_api(given: str) -> None:
    assert options(given).api == "http://h:4200/api"


@pytest.mark.parametrize("given", ["h:4200", "ftp://h", "http://", "http://h:port", "http://me:secret@h:4200", ""])
def test_what_is_no_address_is_refused_without_its_password(given: str) -> None:
    with pytest.raises(InputError, match="--mlflow: give an address like http://HOST:PORT") as refused:
        worker.check_address("--mlflow", given)
    assert "secret" not in str(refused.value) and "MLFLOW_TRACKING_PASSWORD" in str(refused.value)


def test_password_of_the_server_is_that_of_the_client(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    monkeypatch.delenv(worker.PREFECT_LOGIN, raising=False)
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "team:theirs")
    assert worker.environment(options())[worker.PREFECT_LOGIN] == "team:theirs"
    monkeypatch.setenv(worker.PREFECT_LOGIN, "team:mine")
    told = worker.environment(options(mlflow="http://h:5000/"))
    assert told[worker.PREFECT_LOGIN] == "team:mine" and told["MLFLOW_TRACKING_URI"] == "http://h:5000"
    assert told["PWD"] == str(workplace)


class Answers:
    """A server that answers everything alike."""

    def __init__(self) -> None:
        self.code, self.text, self.login = 200, "{}", ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.login = self.headers.get("authorization", "")
                self.send_response(outer.code)
                self.end_headers()
                self.wfile.write(outer.text.encode())

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Answers]:
    answers = Answers()
    yield answers
    answers.server.shutdown()
    answers.server.server_close()


@pytest.mark.parametrize(
    ("code", "text", "says"),
    [
        (401, "", "the Prefect server at URL does not let this user in; set PREFECT_API_AUTH_STRING"),
        (404, "", r"what answers at URL \(404\) is no Prefect server of peft-flow up"),
        (200, "<html>", "what answers at URL is no Prefect server"),
    ],
)
def test_server_that_is_another_or_does_not_let_us_in_is_refused(
    server: Answers, monkeypatch: pytest.MonkeyPatch, code: int, text: str, says: str
) -> None:
    monkeypatch.setenv(worker.PREFECT_LOGIN, "team:a-password")
    server.code, server.text = code, text
    with pytest.raises(InputError, match=f"--prefect: {says.replace('URL', server.url)}"):
        worker.check_prefect(options(server.url))
    server.code, server.text = 200, "{}"
    worker.check_prefect(options(server.url))
    assert server.login == "Basic dGVhbTphLXBhc3N3b3Jk"


def test_server_that_does_not_answer_is_refused_before_anything_is_left(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ})
    address = f"http://127.0.0.1:{free_port()}"
    assert main(["worker", "--prefect", address, "--mlflow", address]) == USER_MUST_CHANGE
    assert capsys.readouterr().err.startswith(f"peft-flow: --prefect: nothing answers at {address} (")
    assert list(workplace.iterdir()) == []


def test_folder_with_other_modules_of_our_names_is_refused(tmp_path: Path) -> None:
    worker.refuse_other_packages(tmp_path)
    worker.refuse_other_packages(ROOT)
    (tmp_path / "tasks.py").touch()
    with pytest.raises(InputError, match=r"tasks\.py stands in the place of peft-flow's own package `tasks`"):
        worker.refuse_other_packages(tmp_path)


def test_workers_of_two_folders_have_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for folder in ("a", "b", "a"):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        names.add(worker.worker_name())
    assert len(names) == 2


def test_second_worker_in_a_folder_is_refused(workplace: Path) -> None:
    Path("mlruns").mkdir()
    with (
        worker.sole_worker(),
        pytest.raises(InputError, match=r"a peft-flow worker is already running in .*; use another folder"),
        worker.sole_worker(),
    ):
        pass


@pytest.mark.parametrize(
    ("changed", "says"),
    [({}, ""), ({"program": "another"}, "results may differ"), ({"version": "9.9"}, "results may differ")],
)
def test_another_version_than_the_servers_is_said(
    changed: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.compare(deployments.own_facts().model_copy(update=changed))
    said = capsys.readouterr().out
    assert said.count("\n") == bool(says) and says in said


@pytest.mark.parametrize("user", ["", "team"])
def test_machine_that_cannot_open_the_database_of_sweeps_takes_no_trials(
    user: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGUSER", user)
    worker.compare(deployments.own_facts("postgresql://h/n?options=x"))
    assert worker.can_have_trials() == bool(user)
    assert ("set PGUSER and PGPASSWORD, of postgresql://h/n;" in capsys.readouterr().out) == (not user)


@pytest.mark.usefixtures("prefect_harness")
@pytest.mark.parametrize(("limit", "left"), [(1, None), (7, 7), (None, None)])
def test_limit_that_was_for_one_machine_is_lifted_and_that_of_people_stays(
    limit: int | None, left: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolUpdate

    monkeypatch.setattr(deployments, "gpus", lambda: ())
    with get_client(sync_client=True) as client:
        assert deployments.make_pools(client, "the first") == 1
        deployments.publish_facts(client, deployments.own_facts())
        client.update_work_pool(deployments.POOL, WorkPoolUpdate(concurrency_limit=limit))
        worker.lift_limit(client)
        assert client.read_work_pool(deployments.POOL).concurrency_limit == left
        assert ("limited the pool peft-flow to 7" in capsys.readouterr().out) == (left == 7)
        client.send_worker_heartbeat(deployments.POOL, "another", heartbeat_interval_seconds=30)
        assert deployments.make_pools(client, "the first") == (left or 1)
        assert client.read_work_pool(deployments.POOL).concurrency_limit == left, "it is not alone any more"
        client.delete_work_pool(deployments.POOL)


# --- for real ---------------------------------------------------------------------------------------------------------

PASSWORDS = {
    "PREFECT_SERVER_API_AUTH_STRING": "team:a-good-password",
    "MLFLOW_TRACKING_USERNAME": "admin",
    "MLFLOW_TRACKING_PASSWORD": "another-good-password",
}

SECRETS = ("a-good-password", "another-good-password", "that-of-the-database")


class Elsewhere:
    """A worker with a folder of its own, which knows of the servers what `peft-flow worker` is told."""

    def __init__(self, folder: Path, stack: Stack) -> None:
        folder.mkdir()
        self.folder, self.log = folder, folder / "worker.log"
        told = {name: value for name, value in stack.environment.items() if name not in ("PGUSER", "PGPASSWORD")}
        command = [sys.executable, "-m", "flows.cli", "worker", "--prefect", stack.prefect, "--mlflow", stack.mlflow]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=told | {"PREFECT_HOME": str(folder / "prefect")},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(lambda: "This machine takes 1 run" in self.log.read_text(), 120, "the worker")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@pytest.mark.endurance
def test_runs_of_another_machine_are_read_by_that_of_the_servers(
    tmp_path: Path, foundation: Any, reviews: Path
) -> None:
    job = {
        "model": {"name": str(foundation("gpt2"))},
        "data": {"name": str(reviews), "max_length": 32},
        "training": {"epochs": 4, "batch_size": 8},
        "evaluation": {"bootstrap_samples": 200, "batch_size": 8, "references": []},
    }
    stack = Stack(tmp_path / "app", PASSWORDS)
    with postgresql() as database:
        stack.begin("--database", f"postgresql://postgres:{SECRETS[2]}@{database.place}/peft_flow")
        try:
            until(lambda: "is up" in stack.said() or not stack.is_running(), 600, "start")
            assert stack.is_running(), stack.said()
            others = stack.process_of("worker start --pool peft-flow ")
            assert others
            others.suspend()
            elsewhere = Elsewhere(tmp_path / "elsewhere", stack)
            check_a_run_from_elsewhere(stack, elsewhere, job, reviews)
            check_stop(stack, elsewhere, job)
        finally:
            stack.stop()
            stack.kill()


def check_a_run_from_elsewhere(stack: Stack, elsewhere: Elsewhere, job: dict[str, Any], reviews: Path) -> None:
    run = stack.submit(job)
    assert stack.until_state(run, *FINAL) == "COMPLETED", elsewhere.log.read_text()
    assert list(elsewhere.folder.glob("mlruns/work/*/adapter")) and not list(stack.folder.glob("mlruns/work/*/adapter"))
    run_id, output = stack.mlflow_run(run).info.run_id, stack.folder / "labels.csv"
    command = [sys.executable, "-m", "flows.cli", "predict", run_id[:8], str(reviews / "test.csv"), str(output)]
    here = stack.client_environment() | {"MLFLOW_TRACKING_URI": stack.mlflow}
    subprocess.run(command, cwd=stack.folder, env=here, check=True, timeout=300)
    assert len(output.read_text().splitlines()) == 1 + len((reviews / "test.csv").read_text().splitlines()[1:])
    missing = stack.submit(job | {"data": {"name": "/only/there/reviews.csv"}})
    assert stack.until_state(missing, *FINAL) == "FAILED"
    said = stack.call("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [missing]}}})
    told = [line["message"] for line in said if "/only/there/reviews.csv" in line["message"]]
    assert told and f"this run is done by {socket.gethostname()}" in told[0] and "Traceback" not in told[0]
    for process in stack.processes():
        assert not [secret for secret in SECRETS if secret in " ".join(process.cmdline())]
    files = [file for folder in (stack.folder, elsewhere.folder) for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 20
    for file in files:
        assert not [secret for secret in SECRETS if secret.encode() in file.read_bytes()], file


def check_stop(stack: Stack, elsewhere: Elsewhere, job: dict[str, Any]) -> None:
    run = stack.submit(job | {"training": {"epochs": 5000, "batch_size": 8}})
    until(lambda: stack.tasks(run).get("train adapter") == "RUNNING", 240, "training")
    began = time.monotonic()
    elsewhere.stop()
    assert time.monotonic() - began < 15 and elsewhere.process.returncode == 0
    assert stack.state(run) == "CRASHED"
    until(lambda: stack.mlflow_run(run).info.status == "KILLED", 30, "MLflow's status")
