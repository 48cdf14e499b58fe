"""The driver: each trial is run once and told once, whoever dies; and one whole sweep through the command."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.cli import DONE, USER_MUST_CHANGE, main
from tasks.base.records import TrainedAdapter, read_record
from tasks.base.sweeps import Outcome, SweepResult
from tasks.base.work import RunFolder
from tasks.studies import sweep as sweeps
from tasks.studies.runner import Job, Runner
from tasks.studies.sweep import Driver, finals, take_over
from tasks.studies.trials import OVER, RUNNER
from tests.conftest import without_pictures
from tests.test_studies_runner import job

SPACE = {"training": {"weight_decay": {"low": 0, "high": 0.5}, "learning_rate": {"low": 0.001, "high": 0.1}}}


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """MLflow is not asked; the numbers of the trials that it would have been told."""
    told: list[int] = []
    monkeypatch.setattr(sweeps, "told_trials", lambda work: {*told})
    monkeypatch.setattr(sweeps, "tell_trial", lambda work, trial, names: told.append(trial.number) or True)
    return told


@pytest.fixture
def sweep(small_config: Any, workplace: Path, untold: list[int]) -> Any:
    """`sweep(trials=6)`: a driver in an empty folder."""

    def make(**fields: Any) -> Driver:
        one = job(small_config(), **{"trials": 6, "space": SPACE, **fields})
        return Driver(one, one.open(), "work")

    return make


def again(driver: Driver) -> Driver:
    """After a `kill -9`: what is on disk is all that is left."""
    return Driver(driver.job, driver.job.open(), driver.work)


def made_up(number: int) -> Outcome:
    return Outcome(state="finished", score=0.5 + number / 100)


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trials end at once; the numbers of those that were run."""
    ran: list[int] = []

    def outcome(self: Runner, number: int, folder: Path) -> Outcome:
        ran.append(number)
        return made_up(number)

    monkeypatch.setattr(Runner, "outcome", outcome)
    return ran


# in this process


def test_each_trial_is_run_once_and_told_once(sweep: Any, instant: list[int], untold: list[int]) -> None:
    driver = sweep()
    driver.run_here()
    assert instant == untold == [0, 1, 2, 3, 4, 5]
    assert driver.is_over() and driver.trials.best() == 5
    again(driver).run_here()
    assert instant == untold == [0, 1, 2, 3, 4, 5]


def test_interrupted_trial_comes_first_and_no_other_is_asked_for_in_its_place(sweep: Any, instant: list[int]) -> None:
    driver = sweep()
    number = driver.next(())
    driver.trials.assign(number, "here")
    resumed = again(driver)
    resumed.run_here()
    assert instant == [0, 1, 2, 3, 4, 5] and resumed.trials.starts(0) == 2


def test_trial_whose_process_is_killed_again_and_again_fails_and_the_others_go_on(
    sweep: Any, instant: list[int]
) -> None:
    driver = sweep()
    for _ in range(sweeps.MOST_STARTS):
        assert driver.next(()) == 0
        driver.trials.assign(0, "here")
    again(driver).run_here()
    assert instant == [1, 2, 3, 4, 5]
    outcome = driver.trials.all()[0].outcome
    assert outcome.state == "failed" and "killed 4 times" in outcome.reason


def test_trial_with_the_values_of_another_takes_its_result(sweep: Any, instant: list[int]) -> None:
    driver = sweep(space={"training": {"learning_rate": [0.001, 0.01]}}, trials=8)
    driver.run_here()
    found = driver.trials.all()
    assert len(found) == 8 and len(instant) == 2
    for trial in found:
        first = next(one for one in found if one.values == trial.values)
        assert trial.outcome.score == first.outcome.score
        assert trial is first or trial.outcome.reason == f"the same as trial {first.number}"


def test_no_trial_begins_after_the_budget_also_over_several_commands(sweep: Any, instant: list[int]) -> None:
    driver = sweep(budget="90s")
    driver.begun -= 50
    driver.trials.finish(driver.next(()), made_up(0))
    driver.tell([])
    resumed = again(driver)
    assert 50 <= resumed.seconds < 70 and not resumed.is_over()
    resumed.begun -= 50
    resumed.run_here()
    assert instant == [] and resumed.is_over() and len(resumed.trials.all()) == 1


def test_given_configuration_is_tried_whatever_the_budget(sweep: Any, instant: list[int]) -> None:
    driver = sweep(budget="1s")
    driver.begun -= 50
    driver.run_here()
    assert instant == [0]


def test_where_every_trial_fails_it_ends_with_the_reason(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Outcome(state="failed", reason="ValueError: no such layer")
    monkeypatch.setattr(Runner, "outcome", lambda self, number, folder: bad)
    with pytest.raises(RuntimeError, match="all of the first 5 trials failed; the last: ValueError: no such layer"):
        sweep(trials=20).run_here()


def test_mlflow_that_does_not_answer_is_told_later(sweep: Any, instant: list[int], untold: list[int]) -> None:
    driver = sweep()
    real, answers = sweeps.tell_trial, iter([ConnectionError("refused"), ConnectionError("refused")])

    def broken(*arguments: Any) -> bool:
        if error := next(answers, None):
            raise error
        return real(*arguments)

    sweeps.tell_trial = broken
    try:
        driver.run_here()
    finally:
        sweeps.tell_trial = real
    assert untold == [0, 1, 2, 3, 4, 5]


def test_what_people_see_is_how_far_it_is(sweep: Any, instant: list[int], caplog: pytest.LogCaptureFixture) -> None:
    driver = sweep(trials=5)
    for number in range(3):
        driver.trials.finish(driver.next(()), made_up(number))
    driver.trials.assign(driver.next(()), "here")
    with caplog.at_level("INFO"):
        driver.tell(["here"])
    rows = {row["of the sweep"]: row["now"] for row in driver.table(driver.trials.all(), ["here"])}
    assert rows["trials ended"] == "3 of 5" and rows["running"] == "3" and rows["failed"] == "0"
    assert rows["best so far"].startswith("accuracy 0.520 on validation, trial 2: ")
    assert rows["time left"].startswith("about ")
    assert "Trial 2 of 5: accuracy 0.520; best so far: 0.520, trial 2; " in caplog.text


# in other processes


class Threads:
    """Runners that are no processes: at each look each runs a trial, or dies, as `fates` says."""

    def __init__(self, job: Job, fates: random.Random, share_of_deaths: float) -> None:
        self.trials, self.fates, self.share = job.open(), fates, share_of_deaths
        self.living: list[str] = []
        self.started = self.deaths = 0
        self.finished: list[int] = []

    def start(self) -> str:
        self.started += 1
        self.living.append(f"runner-{self.started}")
        return self.living[-1]

    def alive(self, known: Sequence[str]) -> list[str]:
        self.trials.look()
        for name in [*self.living]:
            self.live(name)
        return [name for name in self.living if name in known]

    def live(self, name: str) -> None:
        if self.trials.told().get(OVER):
            self.living.remove(name)
            return
        if self.fates.random() < self.share:
            self.living.remove(name)
            self.deaths += 1
            return
        if name not in self.trials.ready():
            self.trials.tell_study(RUNNER + name, self.fates.choice(["one", "two"]))
            return
        for number in [number for number, who in self.trials.running().items() if who == name][:1]:
            if self.fates.random() < 0.5:  # else it takes longer
                self.trials.finish(number, made_up(number))
                self.finished.append(number)

    def last_words(self, name: str) -> str:
        return "exit code -9"

    def finish(self, ready: Sequence[str]) -> None:
        self.trials.look()
        assert self.trials.told()[OVER]

    def stop(self) -> None:
        self.living = []


@pytest.mark.parametrize("seed", range(4))
def test_every_trial_ends_once_whoever_dies(seed: int, sweep: Any, untold: list[int], monkeypatch: Any) -> None:
    monkeypatch.setattr("tasks.studies.sweep.time.sleep", lambda seconds: None)
    monkeypatch.setattr(sweeps, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(sweeps, "MOST_STARTS", 50)
    driver = sweep(trials=12, parallel=3)
    fates = random.Random(seed)
    runners = Threads(driver.job, fates, 0.08)
    for _ in range(3):  # the driver is killed as well
        alive = runners.alive(sorted(driver.trials.ready()))
        driver.assign(alive)
        for _ in range(driver.wanted() - len(alive)):
            runners.start()
        driver = again(driver)
    driver.run_elsewhere(runners)
    assert [trial.outcome.state for trial in driver.trials.all()] == ["finished"] * 12
    assert sorted(untold) == list(range(12)) and sorted(runners.finished) == list(range(12))
    assert driver.trials.running() == {} and runners.living == []


def test_runner_that_a_killed_driver_had_started_and_that_is_ready_late_is_used(sweep: Any, monkeypatch: Any) -> None:
    """It may hold the only place on its machine."""
    monkeypatch.setattr("tasks.studies.sweep.time.sleep", lambda seconds: None)
    driver = sweep(trials=4, parallel=1)
    runners = Threads(driver.job, random.Random(0), 0.0)
    assert runners.start() not in driver.trials.ready()
    driver.run_elsewhere(runners)
    assert "runner-1" in {driver.trials.frozen(number).user_attrs["runner"] for number in range(4)}


def test_no_more_trials_run_at_a_time_than_were_asked_for(sweep: Any) -> None:
    driver = sweep(parallel=2)
    for name in ("first", "second", "third"):
        driver.trials.tell_study(RUNNER + name, "one")
    driver.assign(["first", "second", "third"])
    assert len(driver.trials.running()) == 2


def test_interrupted_trial_goes_to_the_machine_where_its_checkpoint_lies(sweep: Any) -> None:
    driver = sweep(parallel=3)
    for name, host in (("dead", "two"), ("first", "one"), ("second", "two")):
        driver.trials.tell_study(RUNNER + name, host)
    driver.trials.assign(driver.trials.ask(), "dead")
    driver.assign(["first", "second"])
    assert driver.trials.running() == {0: "second", 1: "first"}


def test_server_that_does_not_answer_when_a_runner_is_to_start_is_asked_again(sweep: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("tasks.studies.sweep.time.sleep", lambda seconds: None)
    driver = sweep(trials=3, parallel=1)
    runners = Threads(driver.job, random.Random(0), 0.0)
    start, answers = runners.start, iter([ConnectionError("refused"), ConnectionError("refused")])

    def broken() -> str:
        if error := next(answers, None):
            raise error
        return start()

    runners.start = broken  # type: ignore[method-assign]
    driver.run_elsewhere(runners)
    assert driver.is_over() and runners.started == 1


def test_runner_that_is_not_ready_gets_no_trial(sweep: Any) -> None:
    driver = sweep(parallel=2)
    driver.assign(["first"])
    assert driver.trials.all() == []


def test_runners_that_cannot_start_end_the_sweep_with_their_last_words(sweep: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("tasks.studies.sweep.time.sleep", lambda seconds: None)
    monkeypatch.setattr(sweeps, "PAUSE_SECONDS", 0.0)
    driver = sweep(parallel=2)
    runners = Threads(driver.job, random.Random(0), 1.0)
    with pytest.raises(RuntimeError, match="that were to run trials have ended: exit code -9"):
        driver.run_elsewhere(runners)
    assert runners.living == []


def test_no_more_runners_are_started_than_there_are_trials_left(sweep: Any) -> None:
    driver = sweep(trials=3, parallel=8)
    assert driver.wanted() == 3
    driver.trials.finish(driver.next(()), made_up(0))
    assert driver.wanted() == 2


# the end


def test_best_and_given_configuration_are_run_in_full_and_only_the_best_is_registered(sweep: Any) -> None:
    driver = sweep(tracking={"registered_model": "reviews"})
    for number, score in enumerate((0.6, 0.9, 0.8)):
        driver.trials.finish(driver.next(()), Outcome(state="finished", score=score))
        assert number < 3
    found = finals(driver.job, 1)
    assert list(found) == [1, 0]
    assert [one.tracking.registered_model for one in found.values()] == ["reviews", None]
    assert found[1].training.learning_rate == driver.trials.values(1)["training.learning_rate"]
    assert found[1].tracking.run_name.endswith(" · trial 1")
    assert list(finals(driver.job, 0)) == [0]


def test_given_configuration_that_failed_is_not_run_in_full(sweep: Any) -> None:
    driver = sweep()
    driver.trials.finish(driver.next(()), Outcome(state="failed", reason="ValueError: no"))
    driver.trials.finish(driver.next(()), made_up(1))
    assert list(finals(driver.job, 1)) == [1]


@pytest.mark.parametrize("same", [True, False])
def test_adapter_of_a_trial_is_taken_over_where_the_run_would_train_the_same(
    same: bool, sweep: Any, trained: Any, tmp_path: Path
) -> None:
    from tasks.base.machine import environment_key
    from tasks.training.fit import is_whole

    driver = sweep()
    there, here = driver.job.trial_folder(1), tmp_path / "run"
    import shutil

    source = Path(trained.adapter.folder)
    shutil.copytree(source, there / "adapter")
    shutil.copy(trained.adapter.probe, there / "probe.safetensors")
    trained.adapter.write(there / "trained.json")
    key = environment_key() if same else "another number of threads"
    Outcome(state="finished", score=0.9, environment=key).write(there / "outcome.json")
    here.mkdir()
    take_over(driver.job, 1, str(here))
    taken = read_record(TrainedAdapter, RunFolder(here).trained)
    assert (taken is not None and is_whole(taken) and Path(taken.folder).parent == here) == same


# the whole


@pytest.fixture(scope="module")
def whole(foundation: Any, reviews: Path, prefect_harness: None, tmp_path_factory: Any) -> Iterator[Any]:
    """A sweep of six trials by the command, two of them of a method that does not fit the model; its result."""
    folder = tmp_path_factory.mktemp("sweep")
    space = {"training": {"learning_rate": {"low": 0.001, "high": 0.03, "log": True}}, "adapter": {"r": [2, 8]}}
    (folder / "space.json").write_text(json.dumps(space))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        options = [
            *("--model.name", str(foundation("gpt2")), "--data.name", str(reviews), "--data.max_length", "32"),
            *("--training.epochs", "2", "--training.batch_size", "8", "--evaluation.references", "[]"),
            *("--evaluation.bootstrap_samples", "200", "--sweep", "space.json", "--trials", "5"),
            *("--page", "page.md"),
        ]
        from contextlib import redirect_stdout
        from io import StringIO

        stream = StringIO()
        with without_pictures(), redirect_stdout(stream):
            assert main(["sweep", *options, "--json"]) == DONE
        yield SweepResult.model_validate_json(stream.getvalue().strip().splitlines()[-1]), folder
        patch.undo()


@pytest.fixture
def at_home(whole: Any, monkeypatch: pytest.MonkeyPatch) -> SweepResult:
    result, folder = whole
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return result


def test_sweep_says_what_its_best_trial_is_worth(at_home: SweepResult) -> None:
    result = at_home
    assert [trial.number for trial in result.trials] == [0, 1, 2, 3, 4]
    done = [trial for trial in result.trials if trial.outcome.state == "finished"]
    assert result.naive == max(trial.outcome.score or 0 for trial in done) == result.trial(result.best).outcome.score
    assert result.corrected.low <= result.corrected.value <= result.corrected.high
    assert (result.validation_rows, result.picked_on, result.test_rows) == (12, 12, 12)
    assert (result.gain is None) == (result.best == 0) and result.verdict


def test_mlflow_has_each_trial_once_under_the_sweep_and_the_full_runs_beside_them(at_home: SweepResult) -> None:
    from tasks.tracking.address import client

    result, api = at_home, client()
    parent = api.get_run(result.run_id)
    assert parent.info.status == "FINISHED" and parent.data.tags["verdict"] == result.verdict
    assert parent.data.metrics["validation/accuracy"] == result.naive
    runs = api.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.run_id}'", max_results=100
    )
    trials = {run.data.params["trial"]: run for run in runs if "trial" in run.data.params}
    full = {run.info.run_id for run in runs} - {run.info.run_id for run in trials.values()}
    assert sorted(trials) == ["0", "1", "2", "3", "4"] and len(runs) == 5 + len(full)
    assert full == {run for run in (result.best_run, result.given_run) if run}
    for number, run in trials.items():
        trial = result.trial(int(number))
        assert float(run.data.params["training.learning_rate"]) == trial.values["training.learning_rate"]
        assert run.data.tags["trial.state"] == trial.outcome.state and run.info.status == "FINISHED"
        assert trial.outcome.score is None or run.data.metrics["validation/accuracy"] == trial.outcome.score
        assert not any(name.startswith("tuned/") for name in run.data.metrics) and run.info.end_time


def test_best_run_used_the_adapter_of_its_trial(at_home: SweepResult) -> None:
    from tasks.tracking.address import client

    best = client().get_run(at_home.best_run)
    trial = at_home.trial(at_home.best)
    history = client().get_metric_history(at_home.best_run, "validation/accuracy")
    assert trial.outcome.score in [point.value for point in history]
    assert best.data.metrics["cost/train_seconds"] == trial.outcome.metrics["cost/train_seconds"]


def test_nothing_of_the_trials_is_left_on_disk(at_home: SweepResult) -> None:
    assert list(Path("mlruns/work").glob("*/adapter")) and not list(Path("mlruns/work").glob("sweep-*"))


def test_page_is_written_where_it_was_asked_for(at_home: SweepResult) -> None:
    from tasks.studies.sweep_page import headline

    text = Path("page.md").read_text(encoding="utf-8")
    assert at_home.verdict in text.splitlines()[0].lower() and headline(at_home) in text
    assert at_home.best_run in text and "| trial " in text


@pytest.mark.parametrize("of", ["parent", "trial"])
def test_sweep_and_its_trials_cannot_be_compared_as_runs(of: str, at_home: SweepResult, tmp_path: Path) -> None:
    from tasks.settings.fields import InputError
    from tasks.tracking.address import client
    from tasks.tracking.asking import stored_run

    experiment = client().get_run(at_home.run_id).info.experiment_id
    (trial,) = client().search_runs([experiment], "params.trial = '1'")
    run_id, says = (
        (at_home.run_id, "stands for the trials of a sweep")
        if of == "parent"
        else (trial.info.run_id, "is a trial of a sweep, which has not seen the test rows")
    )
    with pytest.raises(InputError, match=says):
        stored_run(run_id, tmp_path)


# what is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "space: field required"),
        (["--sweep", "nowhere.yaml"], "no configuration file at nowhere.yaml"),
        (["--space", "{training: {learning_rat: [1, 2]}}"], "did you mean training.learning_rate?"),
        (["--space", "{seed: [0, 1]}", "--page", "page.html"], "--page must be a file NAME.md"),
        (["--space", "{seed: [0, 1]}", "--budget", "late"], "budget: must be a time"),
        (["--space", "{seed: [0, 1]}", "--trials", "0"], "trials: input should be greater than or equal to 2"),
        (["--space", "{seed: {low: 0, high: 9}}", "--sampler", "grid"], "seed is a range without step"),
        (["--space", "{seed: [0, 1]}", "--data.name", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_a_line(
    options: list[str], says: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *options]) == USER_MUST_CHANGE
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1 and says in errors
    assert not Path("mlruns").exists()
