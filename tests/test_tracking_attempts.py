import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks.base.closing import FLOW_RUN
from tasks.base.records import RunResult, Seconds
from tasks.base.work import WORK
from tasks.settings.loading import validated
from tasks.tracking import attempts, run, sending
from tasks.tracking.address import FLOW_RUN_TAG, JOB_TAG, TAKEN_OVER_TAG
from tasks.tracking.journal import Head, Journal, now
from tasks.tracking.run import log, send_what_waits
from tests.conftest import tracked

FLOW = "0192f8a5-0000-7000-8000-000000000000"

RESULT = RunResult(
    run_id="r", experiment="e", status="finished", verdict="no evidence", baseline={}, tuned={}, delta={},
    references={}, adapter_path="/elsewhere/adapter", adapter_sha256="0", model_uri="models:/m-1", version=None,
    data_fingerprint="0",
    seconds=Seconds(
        total=1, prepare=0, check=0, baseline=0, references=0, train=1, tuned=0, compare=0, record=0
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def started_by_a_worker(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(FLOW_RUN, FLOW)
    yield
    attempts._begun_before.clear()


def api() -> MlflowClient:
    return MlflowClient(f"sqlite:///{Path.cwd()}/mlruns/mlflow.db")


def begun(work: str, tags: dict[str, str] | None = None) -> str:
    """Id of a run that this machine has begun and not ended."""
    told = attempts.started_for() | {FLOW_RUN_TAG: work} | (tags or {})
    with tracked(tags=told, work=work) as run_id:
        pass
    api().update_run(run_id, "RUNNING")
    return run_id


def moved_elsewhere(work: str) -> Path:
    """The folder of a run, where this machine does not see it."""
    return (WORK / work).rename(Path.cwd() / f"another-{work}")


def status(run_id: str) -> tuple[str, bool]:
    found = api().get_run(run_id)
    return found.info.status, TAKEN_OVER_TAG in found.data.tags


def test_what_another_machine_has_not_finished_is_ended_and_marked() -> None:
    theirs, ours, others = begun("theirs"), begun("ours"), begun("others", {"prefect.started_for": "another flow run"})
    moved_elsewhere("theirs")
    attempts.take_over(FLOW)
    assert status(theirs) == ("KILLED", True)
    assert status(ours) == status(others) == ("RUNNING", False)


@pytest.mark.parametrize("is_open", [True, False])
def test_machine_that_was_taken_for_dead_changes_nothing_any_more(
    is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    theirs = begun("theirs")
    folder = moved_elsewhere("theirs")
    attempts.take_over(FLOW)
    back = folder.rename(WORK / "theirs").resolve()
    journal = Journal(back)
    run._next_attempt.clear()
    if is_open:
        sending._open[str(back)] = journal
        log(str(back), "metrics", {"train/loss": 0.5})
        del sending._open[str(back)]
    else:
        journal.add("end", {"status": "FINISHED"})  # as a machine does that hears how its dead run ended elsewhere
        send_what_waits()
    assert status(theirs) == ("KILLED", True)
    assert "train/loss" not in api().get_run(theirs).data.metrics
    assert ended == [0] * is_open and not Journal(back).waiting


@pytest.mark.parametrize("is_first", [True, False])
def test_machine_that_had_not_reached_mlflow_before_makes_no_second_run(is_first: bool) -> None:
    """It had begun first; who begins later does so because somebody pressed Retry."""
    tags, begun = attempts.started_for() | {FLOW_RUN_TAG: FLOW}, now()
    with tracked(tags=tags, work="ours") as ours:
        pass
    started = begun - 1 if is_first else now() + 1
    head = Head(key="k" * 32, name="late", experiment="peft-flow", started=started, parent=None)
    (WORK / "late").mkdir()
    late = Journal.create((WORK / "late").resolve(), head)
    late.add("begin", {"flow_run_id": FLOW, "tags": tags})
    late.add("end", {"status": "FINISHED"})
    send_what_waits()
    found = [run.info.run_id for run in api().search_runs(["1"])]
    assert ours in found and len(found) == (1 if is_first else 2) and not Journal(late.folder).waiting


def test_what_another_machine_has_finished_is_not_done_again(capsys: pytest.CaptureFixture[str]) -> None:
    config = validated({"seed": 3})
    tags = attempts.started_for() | attempts.job_tag(config) | {FLOW_RUN_TAG: "child"}
    with tracked({"seed": 3}, tags, "child") as child:
        attempts.keep_result(str((WORK / "child").resolve()), RESULT)
    moved_elsewhere("child")
    assert attempts.done_elsewhere(tags) is None, "nobody has begun this flow run before"
    attempts.take_over(FLOW)
    with tracked(tags=attempts.started_for() | {FLOW_RUN_TAG: FLOW}, work="parent") as parent:
        assert attempts.done_elsewhere(tags) == RESULT
        assert attempts.done_elsewhere(attempts.started_for() | attempts.job_tag(validated({"seed": 4}))) is None
    assert api().get_run(child).data.tags["mlflow.parentRunId"] == parent
    assert status(child) == ("FINISHED", False)


def test_run_of_a_command_knows_no_other_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FLOW_RUN)
    assert attempts.started_for() == attempts.job_tag(validated({})) == {}
    with tracked() as run_id:
        attempts.keep_result(str((WORK / "a").resolve()), RESULT)
    assert not [file.path for file in api().list_artifacts(run_id) if file.path == attempts.RESULT]


def test_work_is_about_the_same_on_every_machine() -> None:
    one, other = validated({"offline": True}), validated({"seed": 7})
    assert attempts.job_tag(validated({})) == attempts.job_tag(one) != attempts.job_tag(other)
    assert set(attempts.job_tag(one)) == {JOB_TAG}
