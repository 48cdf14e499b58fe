"""The trials of a sweep in Optuna: what they try does not hang on restarts, and each ends once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.base.sweeps import Outcome
from tasks.scores.objective import objective
from tasks.settings.config import SweepConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import checked, from_text
from tasks.settings.space import values_of
from tasks.studies import trials as studies
from tasks.studies.trials import Trials, check_sweep, kept_rows, packed, unpacked

ACCURACY = objective("single_label").metrics[0]
ERROR = objective("regression").metrics[0]

SPACE: dict[str, Any] = {
    "training": {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "weight_decay": {"low": 0, "high": 0.5}},
    "adapter": {"method": ["lora", "ia3"], "r": [2, 4, 8]},
}


def config(space: dict[str, Any] | None = None, **fields: Any) -> SweepConfig:
    return checked(SweepConfig, {"space": space or SPACE, **fields})


def opened(folder: Path, asked: SweepConfig | None = None, metric: Any = ACCURACY) -> Trials:
    return Trials(asked or config(), "sweep-a", str(folder / "study.jsonl"), metric)


def finished(score: float, **more: Any) -> Outcome:
    return Outcome(state="finished", score=score, **more)


def ended(trials: Trials, number: int) -> None:
    """As good as its values, in no order that a sampler could not learn."""
    values = trials.values(number)
    trials.finish(number, finished(0.5 + values["training.weight_decay"] - values.get("adapter.r", 3) / 100))


# asking


def test_first_trial_is_the_configuration_as_given_whatever_is_sampled(tmp_path: Path) -> None:
    asked = config(training={"learning_rate": 0.002}, adapter={"r": 4})
    trials = opened(tmp_path, asked)
    assert trials.ask() == 0
    assert trials.values(0) == {
        **{"training.learning_rate": 0.002, "training.weight_decay": 0.01},
        **{"adapter.method": "lora", "adapter.r": 4},
    }
    assert trials.frozen(0).params == trials.values(0)


def test_configuration_outside_the_space_is_tried_all_the_same(tmp_path: Path) -> None:
    trials = opened(tmp_path, config(training={"learning_rate": 0.5}, adapter={"r": 3}))
    trials.ask()
    assert trials.values(0)["training.learning_rate"] == 0.5 and trials.values(0)["adapter.r"] == 3
    assert set(trials.frozen(0).params) == {"training.weight_decay", "adapter.method"}


def test_field_that_a_method_has_not_is_not_tried_with_it(tmp_path: Path) -> None:
    trials = opened(tmp_path)
    for _ in range(12):
        ended(trials, trials.ask())
    tried = [trial.values for trial in trials.all()]
    assert {values["adapter.method"] for values in tried} == {"lora", "ia3"}
    assert all(("adapter.r" in values) == (values["adapter.method"] == "lora") for values in tried)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_what_trials_try_does_not_hang_on_restarts(sampler: str, tmp_path: Path) -> None:
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    asked = config(sampler=sampler, seed=3)
    for folder in (whole, cut):
        folder.mkdir()
        trials = opened(folder, asked)
        for number in range(16):
            if folder == cut and number % 5 == 4:
                trials = opened(folder, asked)
            ended(trials, trials.ask())
    tried = [[trial.values for trial in opened(folder, asked).all()] for folder in (whole, cut)]
    assert tried[0] == tried[1]
    assert len({str(values) for values in tried[0]}) == 16


def test_another_seed_tries_other_values(tmp_path: Path) -> None:
    tried = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        trials = opened(tmp_path / str(seed), config(seed=seed))
        for _ in range(3):
            trials.ask()
        tried.append(trials.values(2))
    assert tried[0] != tried[1]


def test_trial_that_a_killed_process_had_only_begun_to_ask_for_gets_its_values(tmp_path: Path) -> None:
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    for folder in (whole, cut):
        folder.mkdir()
        trials = opened(folder)
        ended(trials, trials.ask())
    sure = opened(whole)
    sure.ask()
    trials.study.sampler = trials.sampler(1)
    trials.study.ask()  # and killed
    again = opened(cut)
    assert again.running() == {1: ""} and again.all()[1].values == {}
    again.complete_asking(1)
    assert again.values(1) == sure.values(1)
    again.complete_asking(1)
    assert again.values(1) == sure.values(1)


def test_grid_tries_each_combination_once_the_given_one_first(tmp_path: Path) -> None:
    space = {"adapter": {"method": ["lora", "ia3"], "r": [2, 4]}, "seed": {"low": 0, "high": 2, "step": 2}}
    asked = config(space, sampler="grid", adapter={"method": "lora", "r": 4})
    trials = opened(tmp_path, asked)
    _, count = check_sweep(asked)
    assert count == (2 + 1) * 2
    for _ in range(count):
        trials.ask()
    tried = [trial.values for trial in trials.all()]
    assert tried[0] == {"adapter.method": "lora", "adapter.r": 4, "seed": 0}
    assert len({str(sorted(values.items())) for values in tried}) == count
    assert [trial.params for trial in trials.study.trials] == tried


def test_given_configuration_that_is_not_in_the_grid_comes_before_it(tmp_path: Path) -> None:
    asked = config({"adapter": {"r": [2, 4]}}, sampler="grid", adapter={"r": 3})
    assert check_sweep(asked)[1] == 3
    trials = opened(tmp_path, asked)
    assert [trials.values(trials.ask())["adapter.r"] for _ in range(3)] == [3, 2, 4]


def test_choices_that_are_no_plain_values_are_tried_as_they_are(tmp_path: Path) -> None:
    choices = ["all-linear", ["query"], None]
    trials = opened(tmp_path, config({"adapter": {"target_modules": ["all-linear", ["query"], ["value", "key"]]}}))
    for _ in range(8):
        trials.finish(trials.ask(), finished(0.5))
    tried = {str(trial.values["adapter.target_modules"]) for trial in trials.all()}
    assert choices and any("query" in one for one in tried) and len(tried) > 1


def test_number_of_trials_is_twenty_or_as_asked_or_the_grid() -> None:
    assert check_sweep(config())[1] == 20
    assert check_sweep(config(trials=7))[1] == 7
    small = {"adapter": {"r": [2, 4, 8]}}
    assert check_sweep(config(small, sampler="grid"))[1] == 3
    assert check_sweep(config(small, sampler="grid", trials=2))[1] == 2
    assert check_sweep(config(small, sampler="grid", trials=50))[1] == 3


def test_grid_without_end_is_refused() -> None:
    fields = {name: {"low": 1, "high": 100, "step": 1} for name in ("epochs", "batch_size", "max_steps")}
    with pytest.raises(InputError, match="more than 10,000 combinations"):
        check_sweep(config({"training": fields}, sampler="grid"))


def test_postgresql_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"storage: postgresql needs one more package: .*peft-flow\[postgresql\]"):
        check_sweep(config(storage="postgresql://host/sweeps"))


def test_trials_at_the_same_time_have_one_process_each() -> None:
    assert check_sweep(config(parallel=2, training={"processes": "auto"}))[1] == 20
    assert check_sweep(config(training={"processes": 2}))[1] == 20
    with pytest.raises(InputError, match=r"^parallel: 2 trials at the same time have one process each; leave training"):
        check_sweep(config(parallel=2, training={"processes": 2}))


# ending


def test_trial_ends_once_and_the_first_word_counts(tmp_path: Path) -> None:
    trials = opened(tmp_path)
    number = trials.ask()
    trials.finish(number, finished(0.7, metrics={"validation/loss": 0.6}))
    trials.finish(number, finished(0.7))
    (trial,) = opened(tmp_path).all()
    assert (trial.outcome.state, trial.outcome.score) == ("finished", 0.7)
    assert trial.ended and trial.seconds is not None and trials.running() == {}


@pytest.mark.parametrize(("metric", "best"), [(ACCURACY, 1), (ERROR, 3)])
def test_best_is_the_first_of_the_best_scores_in_the_direction_of_the_metric(
    metric: Any, best: int, tmp_path: Path
) -> None:
    trials = opened(tmp_path, metric=metric)
    assert trials.best() is None
    for score in (0.6, 0.8, 0.8, 0.5, 0.5):
        trials.finish(trials.ask(), finished(score))
    trials.finish(trials.ask(), Outcome(state="failed", reason="ValueError: no"))
    trials.ask()
    assert trials.best() == best


@pytest.mark.parametrize("metric", [ACCURACY, ERROR])
@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_hopeless_trial_ends_early_and_a_good_one_does_not(pruner: Any, metric: Any, tmp_path: Path) -> None:
    trials = opened(tmp_path, config(pruner=pruner), metric)
    for number in range(8):
        trials.ask()
        for epoch in (1, 2):
            trials.report(number, 0.5 / epoch + number / 100, epoch)
        trials.finish(number, finished(0.5))
    bad, good = trials.ask(), trials.ask()
    assert trials.report(bad, 0.9, 1)
    assert not trials.report(good, 0.1, 1)
    trials.finish(bad, Outcome(state="pruned", reason="validation/loss 0.9 after epoch 1"))
    found = trials.all()[bad]
    assert found.outcome.state == "pruned" and found.losses == {1: 0.9} and found.outcome.score is None


def test_no_pruner_can_be_asked_for_on_the_command_line() -> None:
    assert config(pruner=from_text("pruner", "none")).pruner == "none"


def test_without_a_pruner_nothing_ends_early(tmp_path: Path) -> None:
    trials = opened(tmp_path, config(pruner="none"))
    for number in range(8):
        trials.ask()
        assert not trials.report(number, float(number), 1)
        trials.finish(number, finished(0.5))


def test_twin_is_a_trial_of_the_same_values_that_has_ended(tmp_path: Path) -> None:
    trials = opened(tmp_path, config({"adapter": {"r": [2, 4]}}))
    found = [trials.ask() for _ in range(8)]
    same = [number for number in found[1:] if trials.values(number) == trials.values(found[1])]
    assert len(same) > 1 and trials.twin(same[-1]) is None
    trials.finish(same[0], finished(0.7))
    twin = trials.twin(same[-1])
    assert twin and twin.number == same[0]


def test_who_runs_a_trial_and_how_often_it_was_started_is_known_to_all(tmp_path: Path) -> None:
    trials = opened(tmp_path)
    number = trials.ask()
    trials.assign(number, "first")
    trials.assign(number, "second")
    assert opened(tmp_path).running() == {number: "second"}
    assert opened(tmp_path).starts(number) == 2
    trials.excuse(number)
    assert opened(tmp_path).starts(number) == 1


def test_runner_says_that_it_is_ready_and_where(tmp_path: Path) -> None:
    trials = opened(tmp_path)
    trials.tell_study("runner 77", "host")
    assert trials.ready() == {"77": "host"} and not trials.told().get("over")


# keeping


def test_half_a_line_of_a_full_disk_is_cut_off(tmp_path: Path) -> None:
    trials = opened(tmp_path)
    trials.finish(trials.ask(), finished(0.7))
    file = tmp_path / "study.jsonl"
    with file.open("ab") as journal:
        journal.write(b'{"op_code": 5, "wor')
    again = opened(tmp_path)
    assert again.best() == 0
    again.finish(again.ask(), finished(0.8))
    assert opened(tmp_path).best() == 1


def test_database_that_is_locked_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    monkeypatch.setattr("tasks.base.trouble.time.sleep", lambda seconds: None)
    answers = [OperationalError("select", {}, Exception("database is locked")), 7]

    def ask() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert studies.patiently(ask) == 7
    with pytest.raises(ValueError):
        studies.patiently(lambda: int("x"))


@pytest.mark.parametrize("shape", [(5, 2), (4, 1), (3, 8)])
def test_answers_come_back_as_they_were(shape: tuple[int, int]) -> None:
    table = np.random.default_rng(0).random(shape)
    assert np.array_equal(unpacked(packed(table)), table.astype(np.float32).astype(float))


def test_answers_of_all_rows_are_kept_unless_there_are_very_many() -> None:
    assert kept_rows(1066, 2, 1000) == 1066
    assert kept_rows(1_000_000, 2, 1000) == 8388
    assert kept_rows(1_000_000, 1000, 10_000) == 1000
    assert kept_rows(500, 1000, 10_000) == 500


# what the configuration says


@pytest.mark.parametrize(("asked", "seconds"), [("90s", 90), ("45min", 2700), ("2h", 7200), ("1.5 h", 5400)])
def test_budget_is_a_time(asked: str, seconds: float) -> None:
    assert config(budget=asked).budget_seconds == seconds
    assert config().budget_seconds == float("inf")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"budget": "2 days"}, "budget: must be a time such as 90s, 45min or 2h, not '2 days'"),
        ({"budget": "0h"}, "budget: must be a time"),
        ({"budget": "soon"}, "budget: must be a time"),
        ({"trials": 1}, "trials: input should be greater than or equal to 2"),
        ({"parallel": 0}, "parallel: input should be greater than or equal to 1"),
        ({"sampler": "cmaes"}, "sampler: input should be 'tpe', 'random' or 'grid', not 'cmaes'"),
        ({"pruner": "hyperband"}, "pruner: input should be 'median', 'halving' or 'none'"),
        ({"storage": "mysql://host/db"}, "storage: must be an address such as postgresql://host/database"),
        ({"storage": "sweeps.db"}, "storage: must be an address such as"),
        ({"storage": "postgresql://me:swordfish@host/db"}, "storage: holds "),
        ({"space": None}, "space"),
    ],
)
def test_what_a_sweep_cannot_be_told_is_refused_in_a_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        checked(SweepConfig, {"space": SPACE, **fields})
    assert says in str(caught.value) and "swordfish" not in str(caught.value)


def test_all_values_of_the_configuration_are_known() -> None:
    assert set(values_of(config().run_config())) >= {"training.learning_rate", "adapter.r", "seed"}
