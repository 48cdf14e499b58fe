"""Runs as a table, and found by an id, its first digits, a name, or `latest`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.cli import DONE, USER_MUST_CHANGE, main
from tasks.settings.fields import InputError
from tasks.tracking import listing
from tasks.tracking.adapters import find_adapter
from tasks.tracking.listing import WIDTH, NoRun, chosen_runs, find_run, runs_text

TUNED = {"tuned/accuracy": 0.75, "tuned/accuracy_low": 0.7, "tuned/accuracy_high": 0.8, "validation/accuracy": 0.9}

RUNS: list[tuple[str, str, dict[str, str], dict[str, str], dict[str, float]]] = [
    ("first", "FINISHED", {"verdict": "no evidence"}, {"adapter.method": "lora", "adapter.r": "16"}, TUNED),
    (
        "better",
        "FINISHED",
        {"verdict": "improved"},
        {"adapter.method": "dora", "adapter.r": "4"},
        {"tuned/accuracy": 0.8},
    ),
    ("prices", "FINISHED", {"verdict": "improved"}, {"adapter.r": "8"}, {"tuned/mae": 3.0}),
    ("twice", "FAILED", {}, {"adapter.method": "lora"}, {}),
    ("twice", "FINISHED", {}, {"seeds": "3"}, TUNED),
    ("trial 1", "FINISHED", {"trial.state": "pruned"}, {"trial": "1"}, {"validation/accuracy": 0.6}),
    ("all trials", "FINISHED", {"verdict": "tuning helped"}, {"parallel": "2"}, {"tuned/accuracy": 0.9}),
    ("goes on" + " and on" * 20, "RUNNING", {}, {}, {}),
]
"""Oldest first: name, status, tags, parameters, metrics."""


@pytest.fixture(scope="module")
def folder(store_made_once: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    from tasks.tracking.address import default_store
    from tasks.tracking.opening import make_store

    with pytest.MonkeyPatch.context() as place:
        place.chdir(tmp_path_factory.mktemp("runs"))
        place.delenv("MLFLOW_TRACKING_URI", raising=False)
        make_store()
        api = MlflowClient(default_store())
        experiment = api.create_experiment("reviews")
        for hour, (name, status, tags, parameters, metrics) in enumerate(RUNS):
            started = 1_700_000_000_000 + 3_600_000 * hour
            run_id = api.create_run(experiment, started, run_name=name).info.run_id
            api.log_batch(
                run_id,
                metrics=[Metric(key, value, started, 0) for key, value in metrics.items()],
                params=[Param(key, value) for key, value in parameters.items()],
                tags=[RunTag(key, value) for key, value in tags.items()],
            )
            if status != "RUNNING":
                api.set_terminated(run_id, status, started + 1000 * (hour + 1))
        yield Path.cwd()


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def names(*filters: str, sort: str = "started") -> list[str]:
    return [run.name[:10].strip() for run in chosen_runs(filters, sort)]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ([], ["goes on an", "all trials", "twice", "twice", "prices", "better", "first"]),
        (["kind=trial"], ["trial 1"]),
        (["trial=1"], ["trial 1"]),
        (["kind=sweep"], ["all trials"]),
        (["kind=seeds"], ["twice"]),
        (["status=running"], ["goes on an"]),
        (["verdict=Improved"], ["prices", "better"]),
        (["improved", "dora"], []),
        (["improved", "adapter.method=dora"], ["better"]),
        (["TWICE"], ["twice", "twice"]),
        (["experiment=reviews", "name=first"], ["first"]),
    ],
)
def test_all_filters_must_apply(filters: list[str], found: list[str]) -> None:
    assert names(*filters) == found


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("score", ["all trials", "better"]),
        ("seconds", ["all trials", "twice", "twice", "prices"]),
        ("name", ["all trials", "better"]),
        ("adapter.r", ["better", "prices", "first"]),  # 4, 8, 16
        ("adapter.method", ["better"]),
    ],
)
def test_sorted_by_a_field(sort: str, first: list[str]) -> None:
    assert names(sort=sort)[: len(first)] == first


def test_every_page_of_mlflow_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    search = MlflowClient.search_runs
    monkeypatch.setattr(
        MlflowClient, "search_runs", lambda *given, **more: search(*given, **{"max_results": 2, **more})
    )
    assert len(listing.all_runs()) == len(RUNS)


def test_table_fits_a_terminal_and_names_what_a_run_needs() -> None:
    runs = chosen_runs([], "started")
    text = runs_text(runs, 20)
    assert max(map(len, text.splitlines())) == WIDTH
    last = next(line for line in text.splitlines() if "| first" in line)
    assert f"| {find_run('first')[:8]} | 2023-11-14 22:13 | accuracy 0.750 | no evidence" in last
    assert "MAE 3.00" in text and "| running" in text and "…" in text
    assert runs_text(runs, 2).endswith("2 of 7 runs; --limit shows more") and "twice" not in runs_text(runs, 2)


def test_json_is_a_list_of_whole_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--filter", "first", "--json"]) == DONE
    (run,) = json.loads(capsys.readouterr().out)
    assert run["run_id"] == find_run("first") and run["score"] == {"value": 0.75, "low": 0.7, "high": 0.8}
    assert run["parameters"]["adapter.r"] == "16" and run["seconds"] == 1.0


def test_a_run_has_several_names() -> None:
    run_id = find_run("better")
    assert len(run_id) == 32
    assert {find_run(asked) for asked in (run_id, run_id[:8], run_id[:31])} == {run_id}
    assert find_run("latest") == find_run("prices"), "the newest that finished, not what stands for many"
    assert find_run("0" * 32) == "0" * 32, "whether it is there is for others to say"


def test_two_of_a_name_are_told_with_their_ids() -> None:
    with pytest.raises(InputError, match=r"2 runs are called 'twice'; give the id of one: [0-9a-f]{8} \(2023-11-15 02"):
        find_run("twice")


@pytest.mark.parametrize(
    ("asked", "words"), [("bettr", "did you mean better?"), ("abcdef012345", "peft-flow runs shows them")]
)
def test_what_no_run_is_called_is_said_with_a_way_out(asked: str, words: str) -> None:
    with pytest.raises(NoRun) as refused:
        find_run(asked)
    assert words in str(refused.value)


def test_a_model_may_be_named_as_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    for gone in ("0" * 32, f"m-{'0' * 32}"):
        with pytest.raises(InputError, match="no run, registered model, version or alias"):
            find_adapter(gone)
    monkeypatch.setattr(MlflowClient, "list_artifacts", lambda *given: ["adapter"])
    run_id = find_run("better")
    for asked in ("better", run_id[:8], run_id):
        assert find_adapter(asked) == (f"runs:/{run_id}/adapter", run_id)
    with pytest.raises(InputError, match="no run, registered model, version or alias 'reviews@best'"):
        find_adapter("reviews@best")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--filter", "adapter.methd=lora"],
            "--filter: no run has a field 'adapter.methd'; did you mean adapter.method?",
        ),
        (["--sort", "scor"], "--sort: no run has a field 'scor'; did you mean score?"),
        (
            ["--sort", "zzz"],
            "there are started, seconds, score, name, experiment, kind, status, verdict and each param",
        ),
        (["--limit", "0"], "--limit: must be a whole number from 1 to 1,000,000, not '0'"),
    ],
)
def test_what_cannot_be_listed_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", *arguments]) == USER_MUST_CHANGE
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_no_store_is_no_list(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == USER_MUST_CHANGE
    assert "go to the folder of your runs" in capsys.readouterr().err and not list(tmp_path.iterdir())
