"""What the page of a sweep says, for every way that a sweep can end."""

import re
from typing import Any

import pytest

from tasks.base.sweeps import SweepResult, Trial
from tasks.settings.config import SweepConfig
from tasks.studies.shootout import compare_groups
from tasks.studies.sweep_page import description, headline, sweep_markdown, trials_table, verdict_of
from tasks.studies.values import values_words
from tests.sweeps import difference, ended, finished, labels_of, sweep

CONFIG = SweepConfig.model_validate({"space": {"adapter": {"r": [4, 8]}}, "evaluation": {"bootstrap_samples": 200}})


def usual(*more: Trial) -> list[Trial]:
    return [
        finished(0, {"adapter.r": 8}, 0.78),
        finished(1, {"adapter.r": 16}, 0.82),
        finished(2, {"adapter.r": 4}, 0.75),
        *more,
    ]


@pytest.mark.parametrize(
    ("best", "said", "verdict"),
    [
        (3, "improved", "tuning helped"),
        (3, "no evidence", "no evidence that tuning helped"),
        (3, "worse", "tuning hurt"),
        (3, None, "no evidence that tuning helped"),
        (0, None, "the configuration as given was best"),
    ],
)
def test_verdict_is_that_of_the_test_rows(best: int, said: Any, verdict: str) -> None:
    assert verdict_of(best, said and difference("accuracy", 0.01, said)) == verdict


def test_headline_tells_what_each_number_is_worth() -> None:
    told = headline(sweep(usual()))
    assert told == (
        "The best of 3 finished trials is trial 1 (r 16): accuracy 0.820 on 200 validation rows. It was picked for "
        "that score, which is too good therefore; a trial picked like this has 0.781 (95 % interval 0.752 to 0.811) on "
        "rows that it was not picked on. On 500 test rows, which no trial has seen, it has accuracy 0.774 (95 % "
        "interval 0.741 to 0.805). The configuration as given has 0.766 on them; the best one minus that is +0.008 "
        "(95 % interval -0.004 to +0.022), p = 0.481: no evidence that tuning helped."
    )


def test_where_less_is_better_it_says_so() -> None:
    trials = [finished(place, {"adapter.r": place}, 0.2 + 0.1 * place, "regression") for place in range(3)]
    result = sweep(
        trials, "regression", gain=difference("mae", -0.05, "improved", 0.0002), verdict="tuning helped", naive=0.6
    )
    told = headline(result)
    assert "trial 2 (r 2): mean absolute error 0.600 on 200 validation rows (lower is better)" in told
    assert "-0.050 (95 % interval -0.062 to -0.036) (lower is better), p < 0.001: tuning helped." in told
    assert [row.split("|")[1].strip() for row in trials_table(result).splitlines()[2:]] == ["2", "1", "0"]


def given_is_best() -> SweepResult:
    trials = [finished(0, {"adapter.r": 8}, 0.9), finished(1, {"adapter.r": 4}, 0.7)]
    words = {"verdict": "the configuration as given was best", "gain": None, "given_test": None, "given_run": None}
    return sweep(trials, **words)


def given_failed() -> SweepResult:
    trials = [ended(0, {"adapter.r": 8}, "failed", "out of <memory>"), *usual()[1:]]
    return sweep(trials, gain=None, given_test=None, given_run=None)


def only_one_finished() -> SweepResult:
    trials = [finished(0, {"adapter.r": 8}, 0.8), ended(1, {"adapter.r": 4}, "failed", "no"), ended(2, {}, "pruned")]
    words = {"verdict": "the configuration as given was best", "gain": None, "given_test": None, "given_run": None}
    return sweep(trials, **words)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (given_is_best(), "is the configuration as given (trial 0): accuracy 0.900"),
        (given_is_best(), "Tuning has found nothing better: none of 1 other was better on the validation rows."),
        (
            given_failed(),
            r"Whether tuning helped cannot be told: the configuration as given failed (out of \<memory\>).",
        ),
        (only_one_finished(), "Only the configuration as given (trial 0) came to its end, so nothing was picked"),
        (only_one_finished(), "Tuning has found nothing better: there is no other to compare it with"),
        (sweep(usual(), picked_on=120), "on rows that it was not picked on, as 120 of these rows say."),
    ],
)
def test_special_endings_are_told(result: SweepResult, said: str) -> None:
    assert said in headline(result)
    assert said in sweep_markdown(CONFIG, result)
    assert description(result).startswith(f"**{result.verdict[:1].upper()}{result.verdict[1:]}**  \n")


def test_single_finished_trial_has_no_correction() -> None:
    assert "not picked" not in description(only_one_finished()) and "0.781" not in headline(only_one_finished())
    assert "not picked for it 0.781 (0.752-0.811)" in description(sweep(usual()))


def test_page_has_verdict_choice_trials_and_reasons() -> None:
    trials = usual(
        ended(3, {"adapter.r": 64}, "failed", "out of memory:\n2 GB | more"),
        ended(4, {"adapter.r": 65}, "failed", "out of memory:\n2 GB | more"),
        ended(5, {"adapter.r": 2}, "pruned"),
    )
    page = sweep_markdown(CONFIG, sweep(trials, verdict="tuning helped"))
    assert page.startswith("# Tuning helped: ") and "sweep, 6 trials\n" in page
    assert "Of 6 trials: 3 finished, 1 ended early, 2 failed; 10 min in all.\n\n- 2 failed: out of memory: 2 GB" in page
    assert re.search(r"\| r +\| 8 +\| 16 +\|", page)
    rows = [line.split(" | ") for line in trials_table(sweep(trials)).splitlines()[2:]]
    assert [row[0].strip("| ") for row in rows] == ["1", "0", "2", "5", "3", "4"]
    assert rows[0][1].strip() == "r 16" and rows[0][3].strip() == "2" and rows[0][4].strip() == "41"
    assert rows[4][5].startswith("failed: out of memory: 2 GB \\")
    assert "b" * 32 in page and "c" * 32 in page


def test_long_tables_and_reasons_are_cut_and_say_so() -> None:
    trials = usual(
        *(ended(place, {"adapter.r": place}, "failed", f"reason {place} " + 400 * "x") for place in range(3, 60))
    )
    page = sweep_markdown(CONFIG, sweep(trials))
    assert "And 30 more trials (30 failed): see MLflow." in page
    assert "- and 52 more reasons" in page
    table = trials_table(sweep(trials), most=5)
    assert len(table.splitlines()) == 9 and max(map(len, table.splitlines())) < 240
    assert "And 55 more trials (55 failed)" in table


def test_comparison_is_on_the_page_where_there_are_seeds() -> None:
    trials = [finished(place, {"adapter.r": 2 + place // 2, "seed": place % 2}) for place in range(6)]
    result = sweep(trials)
    found = compare_groups(CONFIG, result, labels_of("single_label"))
    assert "## Compared with each other" in sweep_markdown(CONFIG, result, found)
    without = result.model_copy(update={"fields": ("adapter.r",)})
    assert "## Compared with each other" not in sweep_markdown(CONFIG, without, found)
    grid = CONFIG.model_copy(update={"sampler": "grid"})
    assert "## Compared with each other" in sweep_markdown(grid, without, found)


def test_description_is_a_few_short_lines() -> None:
    lines = description(sweep(usual())).split("  \n")
    assert lines == [
        "**No evidence that tuning helped**",
        "Best: trial 1 (r 16)",
        "Validation accuracy: 0.820; not picked for it 0.781 (0.752-0.811)",
        "Test accuracy: 0.774 (0.741-0.805)",
        "Best minus given on 500 test rows: +0.008 (95 % interval -0.004 to +0.022), p = 0.481",
        "Of 3 trials: 3 finished; 10 min in all.",
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "as given"),
        ({"adapter.method": "lora", "adapter.r": 8, "seed": 1}, "lora, r 8, seed 1"),
        ({"training.learning_rate": 0.000123456, "model.name": "org/name"}, "learning_rate 0.0001235, org/name"),
        ({"adapter.layers": None, "adapter.target_modules": ["q", "v"]}, "layers none, target_modules q+v"),
        ({"adapter.target_modules": ()}, "target_modules usual"),
        ({"adapter.options": {"n_frequency": 250, "on": True}}, "n_frequency 250, on yes"),
        ({"adapter.options": {}}, "no options"),
    ],
)
def test_values_are_said_without_their_sections(values: dict[str, Any], words: str) -> None:
    assert values_words(values) == words


def test_what_data_say_is_no_markdown() -> None:
    result = sweep([finished(0, {"adapter.target_modules": ["<b>[x](y)"]}), *usual()[1:]])
    assert "<b>" not in sweep_markdown(CONFIG, result)


def test_names_of_fields_are_read_in_a_terminal_as_well() -> None:
    from tasks.studies.values import marked

    assert marked("learning_rate 0.003, batch_size 8") == "learning_rate 0.003, batch_size 8"
    assert marked("_hidden <b>") == "\\_hidden \\<b\\>"
