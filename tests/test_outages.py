"""MLflow down, slow, refusing, or gone with the answer: the run goes on, and all of it arrives once."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.base.work import WORK
from tasks.settings.fields import InputError
from tasks.tracking import journal
from tasks.tracking import run as tracking
from tasks.tracking.address import experiment_url, run_url
from tasks.tracking.journal import Journal
from tests.chaos import mlflow_server
from tests.conftest import tracked
from tests.faults import Proxy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server, address = mlflow_server(tmp_path_factory.mktemp("server"))
    server.start()
    yield address
    server.kill()


@pytest.fixture
def proxy(server: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What stands between the run and its MLflow."""
    with Proxy(server) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        monkeypatch.setattr(tracking, "UPDATE_SECONDS", 0.0)
        monkeypatch.setattr(tracking, "MOST_SHARE", 1e9)
        yield proxy


def experiment(request: pytest.FixtureRequest) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


def folder() -> str:
    return str((WORK / "a").resolve())


def tell(points: int = 6) -> None:
    for step in range(1, points + 1):
        tracking.log(folder(), "metrics", {"train/loss": 1 / step, "train/rate": 0.1}, step)
    tracking.log(folder(), "params", {"found": "yes"})
    (Path(folder()) / "page.md").write_text("# Page\n")
    tracking.log_files(folder(), "pages", Path(folder()) / "page.md")
    tracking.log(folder(), "tags", {"verdict": "better than every reference"})


def check_whole(server: str, name: str, points: int = 6) -> Any:
    """Everything is in MLflow, once, in one run."""
    from mlflow import MlflowClient

    api = MlflowClient(server)
    (run,) = api.search_runs([api.get_experiment_by_name(name).experiment_id])
    for metric in ("train/loss", "train/rate"):
        history = api.get_metric_history(run.info.run_id, metric)
        assert sorted(point.step for point in history) == list(range(1, points + 1)), metric
    assert run.info.status == "FINISHED" and run.data.params["found"] == "yes"
    assert run.data.tags["verdict"] == "better than every reference" and run.data.params["training.epochs"] == "3"
    assert {file.path for file in api.list_artifacts(run.info.run_id)} == {"config.yaml", "environment.txt", "pages"}
    return run


LOST = [(1, "before"), (5, "after"), (13, "before"), (17, "after")]
MORE_LOST = [(number, when) for number in range(1, 22) for when in ("before", "after") if (number, when) not in LOST]


@pytest.mark.parametrize(
    ("number", "when"), [*LOST, *(pytest.param(*point, marks=pytest.mark.endurance) for point in MORE_LOST)]
)
def test_any_lost_request_or_answer_changes_nothing(
    number: int, when: str, proxy: Proxy, server: str, request: pytest.FixtureRequest
) -> None:
    name = experiment(request)
    cut = proxy.cut(number, when)
    with tracked_anyway(name):
        tell()
        tracking.send_all(folder())
    assert cut.happened
    tracking.try_to_send(folder(), at_once=True)
    check_whole(server, name)


class tracked_anyway:
    """Like `tracked`, also where MLflow has not answered yet."""

    def __init__(self, name: str) -> None:
        from tasks.settings.loading import validated

        Path(folder()).mkdir(parents=True, exist_ok=True)
        self.run = tracking.tracked_run(validated({"tracking": {"experiment": name}}), folder(), {})

    def __enter__(self) -> None:
        self.run.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.run.__exit__(*error)


def test_answer_of_the_creation_that_is_lost_makes_no_second_run(
    proxy: Proxy, server: str, request: pytest.FixtureRequest
) -> None:
    name = experiment(request)
    cut = proxy.cut(1, "after", match=b"POST /api/2.0/mlflow/runs/create")
    with tracked_anyway(name):
        assert cut.happened and journal.run_id_of(folder()) is None
        tell()
    assert check_whole(server, name).info.run_id == journal.run_id_of(folder())


def test_address_of_a_run_is_known_when_mlflow_has_gone_again(proxy: Proxy, request: pytest.FixtureRequest) -> None:
    """The command shows it at its very end, and must not fail there."""
    with tracked_anyway(experiment(request)):
        tell()
    run_id = str(journal.run_id_of(folder()))
    proxy.down()
    assert run_url(run_id).endswith(f"/runs/{run_id}?workflowType=machine_learning")
    assert experiment_url(run_id).startswith(f"{proxy.url}/#/experiments/")


def test_down_from_start_to_end_is_told_by_the_next_command(
    proxy: Proxy,
    server: str,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = experiment(request)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.0)
    proxy.down()
    begun = time.monotonic()
    with tracked_anyway(name):
        tell()
    assert time.monotonic() - begun < 10
    assert len([record for record in caplog.records if "does not accept what this run records" in record.message]) == 1
    assert "Connection refused" in caplog.text and folder() in caplog.text
    assert Journal(Path(folder())).status == "FINISHED" and Journal(Path(folder())).sent.lines == 0
    proxy.up()
    tracking._next_attempt.clear()
    tracking.tidy_up()  # as at the start of any other run
    check_whole(server, name)


def test_down_in_the_middle_and_back_loses_nothing(
    proxy: Proxy, server: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    import logging

    name = experiment(request)
    with caplog.at_level(logging.INFO), tracked_anyway(name):
        tell(3)
        proxy.down()
        tell(6)
        proxy.up()
        tell(9)
    check_whole(server, name, 9)
    assert "answers again and has everything" in caplog.text


@pytest.mark.parametrize("down_after", ["training", "the results"])
def test_end_waits_for_a_server_that_comes_back(
    down_after: str, proxy: Proxy, server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, sleep = experiment(request), time.sleep
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        sleep(0.01)
        if len(pauses) == 4:
            proxy.up()

    with tracked_anyway(name):
        if down_after == "the results":
            tell()
            tracking.send_all(folder())
        proxy.down()
        monkeypatch.setattr(tracking.time, "sleep", pause)
        if down_after == "training":
            tell()
            tracking.send_all(folder())
    assert pauses == [1, 2, 4, 8]
    check_whole(server, name)


def test_end_without_an_answer_keeps_the_results_and_says_where(
    proxy: Proxy, server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = experiment(request)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match=r"did not accept the results \(Connection refused\)\. They are kept in"):  # noqa: SIM117
        with tracked_anyway(name):
            proxy.down()
            tell()
            tracking.send_all(folder())
    proxy.up()
    with tracked_anyway(name):  # the same command
        tell()
        tracking.send_all(folder())
    check_whole(server, name)


def test_slow_server_slows_the_curves_and_not_the_run(
    proxy: Proxy, server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = experiment(request)
    monkeypatch.setattr(tracking, "MOST_SHARE", 0.02)
    with tracked_anyway(name):
        proxy.delay_seconds = 0.5
        tracking.log(folder(), "tags", {"a": "b"})  # takes half a second, and the next attempt is far away
        begun = time.monotonic()
        tell(200)
        assert time.monotonic() - begun < 3
        proxy.delay_seconds = 0.0
    check_whole(server, name, 200)


@pytest.mark.parametrize("answer", ["401", "403"])
def test_server_that_turns_the_user_away_is_reported_at_once(
    answer: str, proxy: Proxy, request: pytest.FixtureRequest
) -> None:
    refusal = f"HTTP/1.1 {answer} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    proxy.cut(1, refusal, ever=True)
    with pytest.raises(InputError, match="refuses access; check MLFLOW_TRACKING_USERNAME"), tracked_anyway("refused"):
        pass


def test_server_in_trouble_is_no_reason_to_stop(proxy: Proxy, server: str, request: pytest.FixtureRequest) -> None:
    name = experiment(request)
    proxy.cut(1, "refuse", ever=True)
    with tracked_anyway(name):
        tell()
        proxy.heal()
    check_whole(server, name)


def test_run_that_was_deleted_meanwhile_is_told_as_a_new_one(
    proxy: Proxy, server: str, request: pytest.FixtureRequest
) -> None:
    from mlflow import MlflowClient

    name = experiment(request)
    with pytest.raises(ValueError), tracked_anyway(name):
        tell(3)
        first = journal.run_id_of(folder())
        raise ValueError
    MlflowClient(server).delete_run(first)
    with tracked_anyway(name):
        tell()
    assert check_whole(server, name).info.run_id != first


def test_another_store_gets_everything(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was begun without a server goes on with one that has another store."""
    with pytest.raises(ValueError), tracked({}):
        tell(3)
        raise ValueError
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workplace}/mlruns/other.db")
    with tracked_anyway("peft-flow"):
        tell()
    check_whole(f"sqlite:///{workplace}/mlruns/other.db", "peft-flow")
