"""A recorded run done again: the same bits, or a true word about what is not the same."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from flows.cli import DONE, USER_MUST_CHANGE, main
from tasks.base.outcomes import RecordedRun, RerunResult, StoredRun
from tasks.base.records import RunResult, Source
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import validated
from tasks.sources.hub import HubUnreachable
from tasks.studies import rerun
from tasks.studies.rerun import changes, judge, pinned, recall, rerun_markdown, rerun_text
from tests.conftest import ROOT, Hub, tracked, without_pictures
from tests.test_studies_two_runs import ALIKE, GOOD, POOR, write_predictions

COMMIT, OTHER = "a" * 40, "b" * 40
ENVIRONMENT = """\
# python 3.11.9
# device x86_64, 2 threads
# code 123
numpy==2.4.6
torch==2.13.0
"""


@pytest.fixture
def recorded(tmp_path: Path) -> Any:
    """`recorded("a", GOOD, environment=...)`: a run as the store has it."""

    def make(
        run_id: str,
        table: np.ndarray = GOOD,
        *,
        adapter: str = "1" * 64,
        environment: str = ENVIRONMENT,
        data: str = "sha256:1",
        test: str = "same",
        config: RunConfig | None = None,
    ) -> RecordedRun:
        return RecordedRun(
            run=StoredRun(
                run_id=run_id,
                name=f"run {run_id}",
                verdict="better than every reference",
                parameters={"model.revision": COMMIT, "data.revision": data},
                test_fingerprint=test,
                predictions=write_predictions(tmp_path / run_id / "tuned.parquet", table),
            ),
            config=config or validated({"model": {"name": "a/b"}, "data": {"name": "c/d"}}),
            environment=environment,
            data_fingerprint=f"of {data}",
            adapter_sha256=adapter,
        )

    return make


# --- what came out ---------------------------------------------------------------------------------------------------


def test_same_adapter_and_predictions_are_bit_identical(recorded: Any) -> None:
    result = judge(recorded("a"), recorded("b"))
    assert (result.outcome, result.changes) == ("bit-identical", ())
    assert (result.rerun_of, result.run_id) == ("a", "b")
    assert rerun_text(result).startswith(
        "BIT-IDENTICAL\n\nThe same adapter, and the same probabilities on all 200 test"
    )


@pytest.mark.parametrize(
    ("table", "adapter", "outcome"),
    [
        (GOOD, "2" * 64, "equal within noise"),
        (GOOD + np.array([1e-9, -1e-9]), "1" * 64, "equal within noise"),
        (ALIKE, "2" * 64, "equal within noise"),
        (POOR, "2" * 64, "different"),
    ],
)
def test_least_difference_is_not_called_bit_identical(
    table: np.ndarray, adapter: str, outcome: str, recorded: Any
) -> None:
    result = judge(recorded("a"), recorded("b", table, adapter=adapter))
    assert result.outcome == outcome
    assert "Nothing that is recorded differs: the computation itself does not repeat" in rerun_text(result)
    assert rerun_markdown(result).startswith(f"# Rerun: {outcome}\n")


def test_other_test_rows_are_different_and_not_compared(recorded: Any) -> None:
    result = judge(recorded("a"), recorded("b", data="sha256:2", test="other"))
    assert (result.outcome, result.comparison) == ("different", None)
    assert "What differs: data." in rerun_text(result)


def test_everything_that_differs_is_named(recorded: Any) -> None:
    environment = "# python 3.12.1\n# device x86_64, 8 threads\nnumpy==2.4.6\nrich==1.0\ntorch==2.14.0\n"
    first, second = recorded("a"), recorded("b", POOR, environment=environment, data="sha256:2")
    found = {(change.kind, change.name): (change.first, change.second) for change in changes(first, second)}
    assert found == {
        ("data", "content"): ("of sha256:1", "of sha256:2"),
        ("data", "revision"): ("sha256:1", "sha256:2"),
        ("code", "code"): ("123", None),
        ("packages", "python"): ("3.11.9", "3.12.1"),
        ("packages", "rich"): (None, "1.0"),
        ("packages", "torch"): ("2.13.0", "2.14.0"),
        ("hardware", "device"): ("x86_64, 2 threads", "x86_64, 8 threads"),
    }
    text = rerun_text(judge(first, second))
    assert "What differs: data, code, packages, hardware." in text
    assert "torch" in text and "2.14.0" in text and "numpy" not in text


# --- what is done again ----------------------------------------------------------------------------------------------


def test_commits_are_those_that_the_run_found_and_no_model_is_registered(recorded: Any) -> None:
    ours = (f"{rerun.RERUN_OF}=older", "peft_flow.inputs=of a retraining")
    tracking = {"registered_model": "reviewer", "tags": ["team=search", *ours]}
    config = validated({"model": {"name": "a/b"}, "data": {"name": "c/d"}, "seed": 7, "tracking": tracking})
    again = pinned(recorded("first", config=config, data=OTHER))
    assert (again.model.revision, again.data.revision, again.seed) == (COMMIT, OTHER, 7)
    assert again.tracking.registered_model is None
    assert again.tracking.tags == ("team=search", f"{rerun.RERUN_OF}=first")
    assert again.tracking.run_name == "run first · rerun"
    same = {"model", "data", "tracking"}
    assert again.model_dump(exclude=same) == config.model_dump(exclude=same)


def test_a_local_file_keeps_its_name_and_a_rerun_of_a_rerun_its_run_name(recorded: Any) -> None:
    first = recorded("x")
    first = first.model_copy(update={"run": first.run.model_copy(update={"name": "run x · rerun"})})
    again = pinned(first)
    assert again.data.revision == "main"
    assert again.tracking.run_name == "run x · rerun"


def test_frozen_test_rows_are_those_that_the_run_kept(
    recorded: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "reviews.csv").write_text("text,label\n")
    config = validated({"data": {"name": "reviews.csv", "test_file": "gone.parquet"}})
    kept = workplace / "test.parquet"
    source = Source(name="x", revision=COMMIT, is_local=False, local_files_only=False)
    monkeypatch.setattr(rerun, "recorded_run", lambda run_id, folder: recorded(run_id, data=COMMIT, config=config))
    monkeypatch.setattr(rerun, "fetched", lambda run_id, artifact, folder: kept)
    monkeypatch.setattr(rerun, "SECTIONS", dict.fromkeys(("data", "model"), lambda config: source))
    assert recall("a", anyway=False).data.test_file == str(kept)


@pytest.fixture
def hub_with(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`hub_with("main")`: a Hub on which the run's data set has only this revision left."""

    def make(*there: str, error: type[InputError] = InputError) -> None:
        def find(section: str) -> Any:
            def found(config: RunConfig) -> Source:
                name, revision = getattr(config, section).name, getattr(config, section).revision
                if section == "data" and revision not in there:
                    raise error(f"data.revision: {name} has no revision {revision!r}")
                revision = OTHER if revision == "main" else revision
                return Source(name=name, revision=revision, is_local=False, local_files_only=False)

            return found

        monkeypatch.setattr(rerun, "recorded_run", lambda run_id, folder: recorded(run_id, data=COMMIT))
        monkeypatch.setattr(rerun, "SECTIONS", {section: find(section) for section in ("data", "model")})

    return make


def test_commit_that_is_still_there_is_used(hub_with: Any) -> None:
    hub_with(COMMIT, "main")
    assert recall("a", anyway=False).data.revision == COMMIT


def test_commit_that_is_gone_is_refused_unless_told_to_go_on(hub_with: Any) -> None:
    hub_with("main")
    with pytest.raises(InputError, match=f"run a: data.revision: c/d has no revision '{COMMIT}'; --anyway takes what"):
        recall("a", anyway=False)
    config = recall("a", anyway=True)
    assert (config.data.revision, config.model.revision) == ("main", COMMIT)


def test_hub_that_does_not_answer_is_no_reason_to_take_other_data(hub_with: Any) -> None:
    hub_with(error=HubUnreachable)
    with pytest.raises(HubUnreachable):
        recall("a", anyway=True)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["rerun", *arguments]) == USER_MUST_CHANGE
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1
    return errors


def test_run_that_cannot_be_done_again_is_refused_with_the_reason(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    assert "there are no runs in" in refused(capsys, "a")
    with pytest.raises(RuntimeError), tracked() as failed:
        raise RuntimeError
    assert f"run {failed} has not finished (FAILED)" in refused(capsys, failed)
    assert "there is no run 'what?' in" in refused(capsys, "what?")
    api = MlflowClient(f"sqlite:///{workplace}/mlruns/mlflow.db")
    with tracked(work="b") as other:
        pass
    assert "was not made by peft-flow" in refused(capsys, other, "--anyway")
    api.set_tag(other, "verdict", "better than every reference")
    api.set_tag(other, "test_fingerprint", "x")
    api.log_artifact(other, write_predictions(workplace / "tuned.parquet", GOOD), "comparison")
    assert "did not record all that a rerun needs" in refused(capsys, other)
    api.log_param(other, "seeds", 3)
    assert "stands for 3 runs" in refused(capsys, other)
    api.delete_run(other)
    assert "was deleted" in refused(capsys, other)


# --- the whole of it -------------------------------------------------------------------------------------------------


class Finished(NamedTuple):
    result: RunResult
    folder: Path

    @property
    def api(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.folder}/mlruns/mlflow.db")


@pytest.fixture(scope="module")
def place(
    foundation: Any, reviews: Path, tmp_path_factory: pytest.TempPathFactory, prefect_harness: None
) -> Iterator[Finished]:
    """A run on a copy of the reviews, which is registered; its folder and its data are there for all tests."""
    from tests.test_finetune_flow import run_flow

    folder = tmp_path_factory.mktemp("rerun")
    shutil.copytree(reviews, folder / "reviews")
    config = validated(
        {
            "model": {"name": str(foundation("gpt2"))},
            "data": {"name": "reviews", "max_length": 32},
            "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
            "evaluation": {"bootstrap_samples": 200, "batch_size": 8, "references": []},
            "tracking": {"registered_model": "reviewer", "tags": ["team=search"]},
            "seed": 3,
        }
    )
    with without_pictures():
        with chdir(folder):
            result = run_flow(config)
        yield Finished(result, folder)


@pytest.fixture
def finished(place: Finished, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """The run, in the current folder."""
    monkeypatch.chdir(place.folder)
    return place


def last_json(capsys: pytest.CaptureFixture[str]) -> RerunResult:
    return RerunResult.model_validate_json(capsys.readouterr().out.splitlines()[-1])


def test_rerun_trains_anew_is_bit_identical_and_leads_back_to_the_first_run(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.rerun import rerun as flow
    from tasks.training import fit as training

    fitted: list[Path] = []
    fit = training.fit_adapter

    def count(config: Any, data: Any, folder: Path, *rest: Any, **more: Any) -> Any:
        fitted.append(folder)
        return fit(config, data, folder, *rest, **more)

    monkeypatch.setattr(training, "fit_adapter", count)
    given, api = finished.result, finished.api
    before = Path(given.adapter_path, "adapter_model.safetensors").stat()
    capsys.readouterr()
    assert main(["rerun", given.run_id, "--json"]) == DONE
    result = last_json(capsys)
    assert (result.outcome, result.changes, result.rerun_of) == ("bit-identical", (), given.run_id)
    assert result.adapters == (given.adapter_sha256,) * 2
    assert len(fitted) == 1 and Path(given.adapter_path).parent not in (fitted[0], fitted[0].parent)
    assert Path(given.adapter_path, "adapter_model.safetensors").stat().st_mtime_ns == before.st_mtime_ns

    first, second = (api.get_run(run_id) for run_id in (given.run_id, result.run_id))
    assert second.info.run_id != first.info.run_id and second.info.experiment_id == first.info.experiment_id
    assert second.info.status == "FINISHED" and second.info.run_name.endswith(" · rerun")
    assert second.data.tags["rerun"] == "bit-identical" and second.data.tags["team"] == "search"
    assert second.data.tags["peft_flow.rerun_of"] == given.run_id
    assert second.data.tags["mlflow.note.content"].startswith("**Rerun of [")
    assert given.run_id in second.data.tags["mlflow.note.content"]
    assert "rerun.md" in {file.path for file in api.list_artifacts(result.run_id)}
    ours = {"data.revision", "model.revision", "seed"}
    assert {name: second.data.params[name] for name in ours} == {name: first.data.params[name] for name in ours}
    (version,) = api.search_model_versions("name='reviewer'")
    assert version.run_id == given.run_id

    again = flow(run_id=given.run_id)  # trains once more, though the same rerun lies finished on this disk
    assert again.outcome == "bit-identical" and len(fitted) == 2 and again.run_id != result.run_id


def test_changed_data_are_refused_and_with_anyway_named(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    file, run_id, api = finished.folder / "reviews/test.csv", finished.result.run_id, finished.api
    before, runs = file.read_text(), len(api.search_runs(["1"]))
    file.write_text(before + "one more film,good\nand another one,bad\n")
    capsys.readouterr()
    says = refused(capsys, run_id)
    assert f"run {run_id}: data.name: reviews has changed since (sha256:" in says and "--anyway" in says
    assert len(api.search_runs(["1"])) == runs

    assert main(["rerun", run_id, "--anyway"]) == DONE
    file.write_text(before)
    output = capsys.readouterr().out
    assert "\nDIFFERENT\n" in output and "What differs: data." in output
    newest, *_ = api.search_runs(["1"])
    assert len(api.search_runs(["1"])) == runs + 1 and newest.data.tags["rerun"] == "different"


def test_package_of_another_version_is_named(finished: Finished, tmp_path: Path) -> None:
    """From the records of two runs as MLflow has them."""
    from tasks.tracking.asking import fetched, recorded_run

    run_id, api = finished.result.run_id, finished.api
    now = recorded_run(run_id, tmp_path / "now")
    text = fetched(run_id, "environment.txt", tmp_path).read_text()
    assert "\n# code " in text and "\n# cpu " in text
    api.log_text(run_id, text.replace("torch==", "torch==0.", 1), "environment.txt")
    api.set_tag(run_id, "adapter_sha256", "0" * 64)  # it came out differently then
    before = recorded_run(run_id, tmp_path / "before")
    api.log_text(run_id, text, "environment.txt")
    api.set_tag(run_id, "adapter_sha256", now.adapter_sha256)
    result = judge(before, now.model_copy(update={"run": now.run.model_copy(update={"run_id": "b"})}))
    assert result.outcome == "equal within noise"
    (change,) = result.changes
    assert (change.kind, change.name) == ("packages", "torch")
    assert change.first == f"0.{change.second}"


@pytest.mark.endurance
@pytest.mark.hub
def test_rerun_through_the_hub_uses_the_recorded_commit(hub: Hub, tmp_path: Path) -> None:
    job = (
        "--model.name", "openai-community/gpt2-tiny", "--data.name", "rotten_tomatoes", "--data.max_train_rows", "64",
        "--data.max_test_rows", "64", "--training.max_steps", "2",
    )  # fmt: skip
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    first, again = run_and_rerun(tmp_path, environment, *job)
    assert again.outcome == "bit-identical" and again.adapters == (first.adapter_sha256,) * 2
    configs = [file.read_text() for file in sorted(tmp_path.glob("mlruns/artifacts/*/artifacts/config.yaml"))]
    revisions = sorted(validated(yaml.safe_load(text)).data.revision for text in configs)
    assert len(revisions) == 2 and revisions[1] == "main" and len(revisions[0]) == 40


def run_and_rerun(folder: Path, environment: dict[str, str], *job: str) -> tuple[RunResult, RerunResult]:
    """A job and its rerun, each in a process of its own."""

    def said(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments, "--json"],
            cwd=folder,
            env=environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    first = RunResult.model_validate_json(said("finetune", *job))
    return first, RerunResult.model_validate_json(said("rerun", first.run_id))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rerun_of_the_demo_is_bit_identical(tmp_path: Path) -> None:
    first, again = run_and_rerun(tmp_path, dict(os.environ))
    assert (again.outcome, again.changes) == ("bit-identical", ())
    assert again.adapters == (first.adapter_sha256,) * 2


@pytest.mark.slow
@pytest.mark.timeout(7200)  # twice five minutes on two free cores
@pytest.mark.hub
def test_rerun_of_the_minilm_job_is_bit_identical(hub: Hub, tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    first, again = run_and_rerun(tmp_path, environment, str(ROOT / "configs/minilm-rotten-tomatoes.yaml"))
    assert (again.outcome, again.changes) == ("bit-identical", ())
    assert again.adapters == (first.adapter_sha256,) * 2
    assert json.loads(first.model_dump_json())["verdict"] == "better than every reference"
