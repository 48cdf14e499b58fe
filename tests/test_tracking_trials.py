"""Trials of a sweep in MLflow: each one light run under the sweep's, told once."""

from pathlib import Path
from typing import Any

import pytest

from tasks.base.sweeps import Outcome, Trial
from tasks.settings.loading import validated
from tasks.tracking.address import client
from tasks.tracking.journal import run_id_of
from tasks.tracking.run import tracked_run
from tasks.tracking.trials import tell_trial, told_trials

WORK = "mlruns/work/sweep"


def trial(number: int, state: Any = "finished", **outcome: Any) -> Trial:
    return Trial(
        number=number,
        values={"training.learning_rate": 0.01, "adapter.target_modules": ["query", "value"]},
        outcome=Outcome(state=state, **outcome),
        started=1_700_000_000_000,
        ended=1_700_000_060_000,
    )


@pytest.fixture
def sweep(workplace: Path) -> Any:
    """Within the run of a sweep."""
    work = workplace / WORK
    work.mkdir(parents=True)
    with tracked_run(validated({}), str(work), {}):
        yield str(work)


def children(work: str) -> list[Any]:
    parent = run_id_of(work)
    experiments = [one.experiment_id for one in client().search_experiments()]
    return list(client().search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent}'"))


def test_trial_told_twice_is_there_once_with_its_values_scores_and_times(sweep: str) -> None:
    one = trial(7, score=0.8, metrics={"validation/accuracy": 0.8, "cost/train_seconds": 12.5})
    for _ in range(2):
        assert tell_trial(sweep, one, {"model.name": "tiny", "training.learning_rate": 0.5})
    (run,) = children(sweep)
    assert run.info.run_name == "trial 7" and run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (one.started, one.ended)
    assert run.data.metrics == {"validation/accuracy": 0.8, "cost/train_seconds": 12.5}
    assert run.data.params == {
        **{"trial": "7", "model.name": "tiny", "training.learning_rate": "0.01"},
        **{"adapter.target_modules": "query,value"},
    }
    assert len(client().get_metric_history(run.info.run_id, "validation/accuracy")) == 1
    assert told_trials(sweep) == {7}


def test_failed_trial_is_a_failed_run_with_its_reason_and_a_pruned_one_says_so(sweep: str) -> None:
    tell_trial(sweep, trial(1, "failed", reason="ValueError: no such layer"), {})
    tell_trial(sweep, trial(2, "pruned", reason="validation/loss 0.9 after epoch 1"), {})
    found = {run.info.run_name: run for run in children(sweep)}
    failed, pruned = found["trial 1"], found["trial 2"]
    assert failed.info.status == "FAILED" and "no such layer" in failed.data.tags["mlflow.note.content"]
    assert pruned.info.status == "FINISHED" and pruned.data.tags["trial.state"] == "pruned"
    assert told_trials(sweep) == {1, 2}


def test_trial_of_which_mlflow_has_only_the_beginning_is_told_to_its_end(
    sweep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def cut(*_: Any, **__: Any) -> None:
        raise ConnectionError("reset")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", cut)
        with pytest.raises(ConnectionError):
            tell_trial(sweep, trial(3, metrics={"validation/accuracy": 0.7}), {})
    assert told_trials(sweep) == set()
    tell_trial(sweep, trial(3, metrics={"validation/accuracy": 0.7}), {})
    (run,) = children(sweep)
    assert run.info.status == "FINISHED" and run.data.metrics == {"validation/accuracy": 0.7}
    assert told_trials(sweep) == {3}


def test_more_trials_than_mlflow_gives_at_once_are_all_known(sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    for number in range(5):
        tell_trial(sweep, trial(number), {})
    search = MlflowClient.search_runs
    monkeypatch.setattr(
        MlflowClient, "search_runs", lambda *asked, **more: search(*asked, **{"max_results": 2, **more})
    )
    assert told_trials(sweep) == {0, 1, 2, 3, 4}


def test_sweep_that_mlflow_has_not_yet_tells_no_trial(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = workplace / WORK
    work.mkdir(parents=True)
    from tasks.tracking.journal import Head, Journal

    Journal.create(work, Head(key="a" * 32, name="sweep", experiment="peft-flow", started=0, parent=None))
    assert told_trials(str(work)) == set()
    assert not tell_trial(str(work), trial(0), {})
