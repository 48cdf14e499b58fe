"""One trial after the other in one process: its score, its answers, how it ends, and what is kept of it."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.base.sweeps import Outcome
from tasks.settings.config import RunConfig, SweepConfig
from tasks.settings.loading import checked
from tasks.studies import runner as runners
from tasks.studies.runner import Job, Runner
from tasks.studies.trials import OVER, unpacked

LEAST: dict[str, Any] = {"training": {"learning_rate": [0.001, 0.01, 0.02]}, "data": {"max_length": [8, 32]}}


def job(config: RunConfig, space: dict[str, Any] | None = None, **fields: Any) -> Job:
    """Of a sweep in the current folder, on data and model of `config`."""
    from tasks.data.prepare import find_input

    source, base = find_input.fn(config)
    asked = checked(SweepConfig, {**config.model_dump(), "space": space or LEAST, "pruner": "none", **fields})
    return Job(
        config=asked,
        name="sweep-a",
        storage=str(Path("study.jsonl").resolve()),
        task="single_label",
        source=source,
        base=base,
        trials=asked.trials or 20,
        host="somewhere",
    )


def asked(job: Job, *values: dict[str, Any]) -> Runner:
    """A runner whose trials try these values, after the configuration as given."""
    trials = job.open()
    for number, one in enumerate(({}, *values)):
        trials.ask()
        trials.open(number).set_user_attr("values", {**trials.values(number), **one})
        trials.assign(number, "me")
    return Runner(job, trials)


def made_up(score: float) -> Outcome:
    return Outcome(state="finished", score=score)


# with a real training


def test_trial_keeps_score_and_answers_of_its_adapter_whatever_length_it_cuts_texts_to(
    small_config: Any, workplace: Path
) -> None:
    from datasets import load_from_disk

    from tasks.data.prepare import prepare
    from tasks.models import serving
    from tasks.scores.objective import objective

    one = job(small_config(family="bert"))
    runner = asked(one, {"data.max_length": 4, "training.learning_rate": 0.02})
    runner.clear = lambda number: None  # type: ignore[method-assign]
    labels = load_from_disk(prepare(one.config.run_config(), Path("data"), (one.source, one.base)).folder)["validation"]
    for number in (0, 1):
        outcome = runner.run(number)
        table = unpacked(outcome.answers)
        assert outcome.state == "finished" and outcome.score == outcome.metrics["validation/accuracy"]
        scores = objective("single_label").scores(table, np.asarray(labels["labels"]))
        assert scores["accuracy"] == pytest.approx(outcome.score)
        assert outcome.metrics["train/steps"] == 12 and outcome.metrics["cost/train_seconds"] > 0
        assert outcome.metrics["adapter/trainable_parameters"] > 500 and outcome.metrics["cost/adapter_mb"] > 0.001
        model, tokenizer = serving.load_adapter(one.trial_folder(number) / "adapter", local_files_only=True)
        rows = runner.prepared(one.trial_config(runner.trials.values(number)))
        read = serving.model_rows(load_from_disk(rows.folder)["validation"], tokenizer)
        said = serving.classify(model, tokenizer, read, 8).softmax(1)
        assert np.allclose(table, said.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("regression", [3.14, 1.37, 4.77, 2.01, 1.1, 4.9, 2.72, 3.3]),
        ("multi_label", ["battery", "price", "battery|price", "screen", "price|screen", "battery", "price", "screen"]),
    ],
)
def test_trials_of_other_tasks_keep_their_answers_too(
    task: Any, labels: list[Any], foundation: Any, workplace: Path
) -> None:
    import pandas as pd
    from datasets import load_from_disk

    from tasks.scores.objective import objective

    texts = [f"unit {row} of {'many words ' * (row % 5)}" for row in range(64)]
    pd.DataFrame({"text": texts, "label": labels * 8}).to_csv("rows.csv", index=False)
    values = {"name": "rows.csv", "max_length": 32}
    config = checked(RunConfig, {"model": {"name": str(foundation("bert"))}, "data": values, "training": {"epochs": 1}})
    one = job(config).model_copy(update={"task": task})
    runner = asked(one)
    outcome = runner.run(0)
    assert outcome.state == "finished", outcome.reason
    first = objective(task).metrics[0].name
    rows = load_from_disk(runner.prepared(one.config.run_config()).folder)["validation"]
    scores = objective(task).scores(unpacked(outcome.answers), np.asarray(rows["labels"]))
    assert outcome.score == outcome.metrics[f"validation/{first}"] == pytest.approx(scores[first], rel=1e-5)


def test_trial_trains_the_very_adapter_that_its_configuration_trains_as_a_run(
    small_config: Any, workplace: Path
) -> None:
    from tasks.base.records import file_sha256
    from tasks.training.fit import fit_adapter
    from tasks.training.watching import Watcher

    one = job(small_config())
    runner = asked(one, {"training.learning_rate": 0.02, "data.max_length": 8})
    runner.clear = lambda number: None  # type: ignore[method-assign]
    for number in (0, 1):  # the second in a process that has trained before
        runner.run(number)
    config = one.trial_config(runner.trials.values(1))
    alone = fit_adapter(config, runner.prepared(config), Path("alone"), Watcher(lambda progress: None))
    assert file_sha256(one.trial_folder(1) / "adapter/adapter_model.safetensors") == alone.sha256


# without one


@pytest.fixture
def fake(small_config: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`fake(values, ...)`: a runner whose trials do not train but return, or raise, what `ends` says."""

    def make(*values: dict[str, Any], ends: dict[int, Any], **fields: Any) -> Runner:
        runner = asked(job(small_config(), **fields), *values)
        runner.prepared = lambda config: None  # type: ignore[method-assign,assignment,return-value]

        def fit(config: Any, data: Any, folder: Path, number: int) -> Any:
            end = ends[number]
            if isinstance(end, BaseException):
                raise end
            (folder / "adapter").mkdir(exist_ok=True)
            return end

        runner.fit = fit  # type: ignore[method-assign]
        monkeypatch.setattr(runners, "outcome_of", lambda job, data, trained: trained)
        return runner

    return make


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("Target modules ['x'] not found in the base model"), "ValueError: Target modules ['x'] not found"),
        (FloatingPointError("the loss is nan at step 3"), "FloatingPointError: the loss is nan at step 3"),
        (RuntimeError("the GPU's memory is too small"), "RuntimeError: the GPU's memory is too small"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_what_a_trial_cannot_do_is_its_own_failure_with_its_reason(error: Any, reason: str, fake: Any) -> None:
    runner = fake({}, ends={0: made_up(0.5), 1: error})
    runner.run(0)
    assert runner.run(1).reason.startswith(reason)
    assert [trial.outcome.state for trial in runner.trials.all()] == ["finished", "failed"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ConnectionError("refused")])
def test_what_no_trial_could_do_ends_the_runner_and_the_trial_goes_on_later(error: Any, fake: Any) -> None:
    runner = fake(ends={0: error})
    with pytest.raises(OSError):
        runner.run(0)
    assert runner.trials.running() == {0: "me"} and runner.trials.starts(0) == 1


def test_trial_that_is_told_to_stop_is_not_counted_against(fake: Any) -> None:
    runner = fake(ends={0: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        runner.run(0)
    assert runner.trials.running() == {0: "me"} and runner.trials.starts(0) == 0


def test_values_that_the_configuration_refuses_together_fail_that_trial(fake: Any) -> None:
    runner = fake({"adapter.r": -1}, ends={0: made_up(0.5)})
    assert "adapter.r" in runner.run(1).reason


def test_trial_that_was_trained_and_not_told_is_told_and_not_trained_again(fake: Any) -> None:
    runner = fake(ends={0: RuntimeError("trained again")})
    folder = runner.job.trial_folder(0)
    folder.mkdir(parents=True)
    made_up(0.75).write(folder / "outcome.json")
    assert runner.run(0).score == 0.75
    assert runner.trials.best() == 0


def test_only_the_adapters_of_the_given_and_the_best_configuration_stay(fake: Any) -> None:
    scores = [0.6, 0.5, 0.8, 0.7, 0.9]
    runner = fake({}, {}, {}, {}, ends=dict(enumerate(map(made_up, scores))))
    kept = []
    for number in range(5):
        if number == 3:  # another process goes on
            runner.kept = Runner(runner.job, runner.trials).kept
        runner.run(number)
        kept.append({int(path.parent.name) for path in runner.job.folder.glob("*/adapter")})
    assert kept == [{0}, {0}, {0, 2}, {0, 2}, {0, 4}]


class Points:
    """Stands for the training: reports these validation losses, one an epoch of 6 steps."""

    def __init__(self, *losses: float) -> None:
        self.losses = losses

    def __call__(self, config: Any, data: Any, folder: Path, watcher: Any) -> Any:
        from tasks.base.records import Point
        from tasks.training.watching import Progress

        for epoch, loss in enumerate(self.losses, 1):
            metrics = {"validation/loss": loss, "validation/accuracy": 1 - loss}
            watcher.report(Progress(6 * epoch - 3, 6 * len(self.losses), 0.0, Point(step=3, metrics={"train/loss": 1})))
            point = Point(step=6 * epoch, metrics=metrics)
            watcher.report(Progress(6 * epoch, 6 * len(self.losses), 0.0, point))
        raise StopIteration


@pytest.mark.parametrize(("more", "seen"), [({}, 0.7), ({"training": {"focal_gamma": [0, 1, 2]}}, -0.3)])
def test_pruner_sees_the_validation_loss_of_each_epoch_or_the_score_where_losses_differ(
    more: dict[str, Any], seen: float, small_config: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = asked(job(small_config(), {**LEAST, **more}), {})
    data: Any = type("Data", (), {"rows": staticmethod(lambda split: 48)})
    told: list[Any] = []
    monkeypatch.setattr("tasks.training.fit.fit_adapter", Points(0.9, 0.7, 0.6))
    runner.trials.report = lambda *reported: told.append(reported) or len(told) > 1  # type: ignore[method-assign]
    with pytest.raises(StopIteration):
        runner.fit(runner.job.config, data, Path("folder"), 0)  # the given one is never ended
    assert [epoch for _, _, epoch in told] == [1, 2, 3] and told[1][1] == pytest.approx(seen)
    told.clear()
    with pytest.raises(runners.Hopeless, match="after epoch 2") as caught:
        runner.fit(runner.job.config, data, Path("folder"), 1)
    assert caught.value.metrics["validation/loss"] == 0.7


def test_runner_says_that_it_is_ready_runs_what_it_is_assigned_and_ends_when_it_is_over(
    fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = fake({}, {}, ends={number: made_up(0.5) for number in range(3)})
    driver, job = runner.trials, runner.job
    driver.assign(2, "another")
    monkeypatch.setattr(runners, "Runner", lambda job, trials: runner)
    monkeypatch.setattr(runners, "take_share", lambda *asked: None)
    monkeypatch.setattr(runners, "get_ready", lambda: None)
    looked = []

    def look(seconds: float) -> None:
        driver.look()
        looked.append(driver.ready())
        driver.tell_study(OVER, True)

    monkeypatch.setattr("tasks.studies.runner.time.sleep", look)
    runners.serve(job, "me", 1)
    assert list(looked[0]) == ["me"]
    assert driver.running() == {2: "another"} and driver.best() == 0
    assert not job.folder.exists()  # on another machine than the sweep's nobody needs them


def test_runner_whose_driver_is_gone_does_not_wait_for_ever(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = fake(ends={})
    runner.trials.assign(0, "another")
    for name in ("take_share", "get_ready"):
        monkeypatch.setattr(runners, name, lambda *given: None)
    monkeypatch.setattr(runners, "Runner", lambda job, trials: runner)
    monkeypatch.setattr(runners, "IDLE_SECONDS", 0.01)
    monkeypatch.setattr(runners, "LOOK_SECONDS", 0.01)
    runners.serve(runner.job, "me", 1)
