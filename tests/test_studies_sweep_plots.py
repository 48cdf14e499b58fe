"""Optuna's pictures of studies of every kind: those that make sense are drawn, and nothing else changes."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.base.sweeps import SweepResult
from tasks.studies.sweep_plots import (
    by_importance,
    choice_words,
    contour,
    draw_sweep,
    history,
    importances,
    optuna_style,
    readable,
    slices,
)
from tests.sweeps import finished, sweep

ALL = ["history.png", "importances.png", "slices.png", "contour.png"]

RESULT: SweepResult = sweep([finished(0, {"adapter.r": 8})])


def study_of(
    trials: int, suggest: Callable[[Any], float], direction: str = "maximize", states: tuple[str, ...] = ()
) -> Any:
    """Asked and told like tasks/studies/trials.py does; `states` are repeated, all complete where there are none."""
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(0))
    for number in range(trials):
        trial = study.ask()
        score = suggest(trial)
        state = states[number % len(states)] if states else "COMPLETE"
        if state != "RUNNING":
            study.tell(trial, score if state == "COMPLETE" else None, state=TrialState[state])
    return study


def everything(trial: Any) -> float:
    """Ranges, choices, one of them None, lists as JSON, and fields that only some trials have."""
    rate = trial.suggest_float("training.learning_rate", 1e-5, 1e-1, log=True)
    method = trial.suggest_categorical("adapter.method", ["lora", "ia3"])
    trial.suggest_categorical("adapter.layers", [None, 1, 2])
    trial.suggest_categorical("adapter.target_modules", ["[]", json.dumps(["query", "value"])])
    trial.suggest_categorical("training.batch_size", [8, 16, 32])
    rank = trial.suggest_int("adapter.r", 4, 64, log=True) if method == "lora" else 0
    return float(0.8 - rate - 0.001 * rank)


def one_field(trial: Any) -> float:
    return float(trial.suggest_float("training.learning_rate", 1e-5, 1e-1, log=True))


def always_equal(trial: Any) -> float:
    everything(trial)
    return 0.5


def many_names(trial: Any) -> float:
    method = trial.suggest_categorical("adapter.method", [f"method_{place}" for place in range(30)])
    return float(len(method)) + 0.1 * trial.suggest_categorical("seed", [0, 1, 2])


MIXED = ("COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", "FAIL", "COMPLETE", "RUNNING")


@pytest.mark.parametrize(
    ("trials", "suggest", "states", "drawn"),
    [
        (5, everything, (), ["history.png", "slices.png"]),
        (25, everything, MIXED, ALL),
        (60, everything, MIXED, ALL),
        (25, always_equal, MIXED, ["history.png", "slices.png"]),
        (25, one_field, (), ["history.png", "slices.png"]),
        (40, many_names, (), ["history.png", "importances.png", "slices.png"]),
        (5, everything, ("COMPLETE", "FAIL", "FAIL", "PRUNED", "RUNNING"), []),
        (3, everything, ("FAIL", "RUNNING"), []),
        (0, everything, (), []),
    ],
)
def test_what_makes_sense_is_drawn(
    trials: int, suggest: Callable[[Any], float], states: tuple[str, ...], drawn: list[str], tmp_path: Path
) -> None:
    found = draw_sweep(tmp_path / "plots", study_of(trials, suggest, states=states), RESULT)
    assert [file.name for file in found] == drawn == [name for name in ALL if (tmp_path / "plots" / name).exists()]


def test_nothing_of_pyplot_and_optuna_stays_changed(tmp_path: Path) -> None:
    import matplotlib
    import matplotlib.pyplot as plt
    import optuna

    plt.switch_backend("svg")
    mine = plt.figure()
    study = study_of(12, everything)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert len(draw_sweep(tmp_path, study, RESULT)) == 4
    assert dict(matplotlib.rcParams) == before and matplotlib.get_backend() == "svg"
    assert plt.get_fignums() == [mine.number] and optuna.logging.get_verbosity() == optuna.logging.WARNING
    assert not told
    plt.close(mine)
    plt.switch_backend("agg")


def test_pictures_have_plain_words_and_true_colours() -> None:
    study = readable(study_of(30, everything, states=MIXED))
    fields = by_importance(study)
    with optuna_style():
        whole = history(study, "accuracy")
        bars, sliced = importances(study, fields), slices(study, fields, "accuracy")
        around = contour(study, fields, "accuracy")
        assert whole and bars and sliced and around
        assert [text.get_text() for text in whole.legends[0].get_texts()] == ["trial", "best so far"]
        for figure in (whole, bars, sliced, around):
            figure.draw_without_rendering()
            words = [text.get_text() for axis in figure.axes for text in (*axis.get_xticklabels(), axis.xaxis.label)]
            assert words and not any("mathdefault" in word or "." in word.strip("0.123456789") for word in words)
        *panels, bar = sliced.axes
        assert len(panels) == 4
        last = max(trial.number for trial in study.trials if trial.state.name == "COMPLETE")
        assert {points.get_clim() for panel in panels for points in panel.collections} == {(0, last)}
        assert bar.get_ylim() == (0, last)


def test_copy_keeps_numbers_and_scores_and_drops_trials_that_did_not_end() -> None:
    study = study_of(14, everything, states=MIXED)
    copy = readable(study)
    told = [(trial.number, trial.value) for trial in study.trials if trial.state.name == "COMPLETE"]
    assert [(trial.number, trial.value) for trial in copy.trials if trial.state.name == "COMPLETE"] == told
    assert {name for trial in copy.trials for name in trial.params} == {
        *("learning_rate", "method", "layers", "target_modules", "batch_size", "r")
    }
    assert {trial.params["target_modules"] for trial in copy.trials} == {"usual", "query+value"}
    assert {trial.params["layers"] for trial in copy.trials} == {"none", "1", "2"}


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ((8, 16), [8, 16]),
        ((None, 1), ["none", "1"]),
        ((None, "none"), ["null", '"none"']),
        ((True, False), ["yes", "no"]),
        (('{"n_frequency": 250}', "{}"), ["n_frequency 250", "no options"]),
        (("{not json", "lora"), ["{not json", "lora"]),
    ],
)
def test_choices_are_called_what_people_call_them(choices: tuple[Any, ...], words: list[Any]) -> None:
    assert list(choice_words(choices).values()) == words


def test_where_less_is_better_the_axis_says_so(tmp_path: Path) -> None:
    result = sweep([finished(0, {"adapter.r": 8}, 0.8, "regression")], "regression")
    found = draw_sweep(tmp_path, study_of(20, everything, "minimize"), result)
    assert [file.name for file in found] == ALL
