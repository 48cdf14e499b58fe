"""Configurations with several seeds, compared: groups, fronts, significance, words and picture of made-up sweeps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.base.sweeps import Outcome, SweepResult, Trial
from tasks.settings.config import SweepConfig
from tasks.studies.pareto_plot import draw_pareto, drawn_things, labels_of, pareto_figure
from tasks.studies.shootout import Shootout, better_words, compare_groups, grouped, shootout_markdown, worth_a_table
from tests import sweeps
from tests.sweeps import ROWS, ended, finished, sweep

CONFIG = SweepConfig.model_validate({"space": {"seed": [0, 1, 2]}, "evaluation": {"bootstrap_samples": 300}})


def compared(result: SweepResult, config: SweepConfig = CONFIG) -> Shootout:
    return compare_groups(config, result, sweeps.labels_of(result.task))


def three_methods(task: str = "single_label") -> list[Trial]:
    """lora is best and dear, ia3 nearly as good and cheap, vera bad and between."""
    told = {"lora": (0.93, 100_000, 60, 4.0), "ia3": (0.91, 2_000, 50, 0.5), "vera": (0.6, 30_000, 55, 1.0)}
    return [
        finished(
            3 * place + seed,
            {"adapter.method": method, "seed": seed},
            right + 0.005 * seed,
            task,
            parameters=parameters,
            seconds=seconds,
            mb=mb,
        )
        for place, (method, (right, parameters, seconds, mb)) in enumerate(told.items())
        for seed in range(3)
    ]


@pytest.mark.parametrize("task", ["single_label", "regression"])
def test_the_best_is_first_and_significance_and_fronts_are_told(task: str) -> None:
    found = compared(sweep(three_methods(task), task))
    assert [one.values["adapter.method"] for one in found.contenders] == ["lora", "ia3", "vera"]
    lora, ia3, vera = found.contenders
    assert 2 in lora.beats and ia3.beats == (2,) and vera.beats == ()
    assert (lora.fronts, ia3.fronts, vera.fronts) == ((True,) * 3, (True,) * 3, (False,) * 3)
    assert lora.costs == (100_000, 60, 4) and found.seeds == 3 and found.tested == 3
    scores = [trial.outcome.score or 0 for trial in lora.trials]
    assert lora.score == pytest.approx(sum(scores) / 3)
    assert lora.interval and lora.interval.low < lora.score < lora.interval.high
    assert found.metric.least <= lora.interval.low and lora.interval.high <= found.metric.most


def test_trials_that_did_not_end_or_were_tried_twice_do_not_count() -> None:
    trials = [
        finished(0, {"adapter.r": 4, "seed": 0}),
        finished(1, {"adapter.r": 4, "seed": 0}, 0.9),  # the same once more
        finished(2, {"adapter.r": 4, "seed": 1}),
        ended(3, {"adapter.r": 4, "seed": 2}, "failed"),
        ended(4, {"adapter.r": 8, "seed": 0}, "pruned"),
        finished(5, {"adapter.r": 8, "seed": 1}),
    ]
    assert [[trial.number for trial in one] for one in grouped(trials)] == [[0, 2], [5]]


def test_without_seeds_each_trial_stands_for_itself() -> None:
    trials = [finished(place, {"adapter.r": r, "adapter.options": {"a": [r]}}) for place, r in enumerate((2, 4, 8))]
    found = compared(sweep(trials))
    assert [len(one.trials) for one in found.contenders] == [1, 1, 1]
    assert "Each has one seed: intervals and tests are about other rows" in shootout_markdown(found)


def test_what_has_fewer_seeds_is_named() -> None:
    found = compared(sweep(three_methods()[:-1]))
    assert "Fewer seeds than the 3 of the others: #3." in found.notes


@pytest.mark.parametrize("answers", ["", sweeps.packed(sweeps.answers_of("single_label", 0.9, rows=50))])
def test_missing_answers_are_said_and_cost_only_the_interval(answers: str) -> None:
    trials = three_methods()
    outcome = trials[0].outcome.model_copy(update={"answers": answers})
    trials[0] = trials[0].model_copy(update={"outcome": outcome})
    found = compared(sweep(trials))
    lora, ia3, _ = found.contenders
    assert lora.interval is None and lora.beats == () and lora.fronts[0]
    assert ia3.interval and ia3.beats == (2,) and found.tested == 2
    assert "not all of their answers about the validation rows were kept: #1." in found.notes[0]
    page = shootout_markdown(found)
    assert f"| {found.metric.shown(lora.score)} " in page


def test_no_answers_at_all_leave_scores_and_fronts() -> None:
    bare = [
        trial.model_copy(update={"outcome": trial.outcome.model_copy(update={"answers": ""})})
        for trial in three_methods()
    ]
    found = compared(sweep(bare))
    assert found.tested == 0 and [one.interval for one in found.contenders] == [None] * 3
    assert "Better means" not in shootout_markdown(found)
    assert "not shown better" in shootout_markdown(found)


def test_unknown_costs_stay_empty() -> None:
    found = compared(sweep([finished(place, {"adapter.r": place}) for place in (2, 4)]))
    assert all(one.costs == (None,) * 3 and one.fronts == (False,) * 3 for one in found.contenders)
    assert "| -                  | -" in shootout_markdown(found)


def test_page_has_table_front_and_significance() -> None:
    page = shootout_markdown(compared(sweep(three_methods())))
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert lines[2].startswith("| 1 | lora") and lines[2].endswith("| parameters, seconds, MB | #3          |")
    assert "100,000" in lines[2] and "4.00" in lines[2]
    assert "all 3 pairs together at 95 %: tests on the same rows and seeds" in page
    assert "Best is lora, with accuracy" in page and "significantly better than 1 of the 2 others" in page


def test_single_configuration_has_nothing_to_be_compared_with() -> None:
    page = shootout_markdown(compared(sweep([finished(0, {"seed": 0}), finished(1, {"seed": 1})])))
    assert "Best is as given" in page and "nothing to compare it with" in page


def test_many_places_are_counted() -> None:
    assert (better_words([]), better_words([3, 1]), better_words(range(7))) == ("-", "#3, #1", "7 others")


def test_answers_about_part_of_the_rows_are_said() -> None:
    found = compared(sweep(three_methods(), validation_rows=5000))
    assert found.notes == (
        "Intervals and tests rest on the answers that were kept, about 200 of the 5,000 validation rows; they are "
        "wider than all rows would make them.",
    )


@pytest.mark.parametrize(
    ("space", "sampler", "worth"),
    [
        ({"seed": [0, 1]}, "tpe", True),
        ({"adapter": {"r": [4, 8]}}, "grid", True),
        ({"adapter": {"r": [4, 8]}}, "tpe", False),
    ],
)
def test_a_table_is_worth_it_for_seeds_or_a_grid(space: dict[str, Any], sampler: str, worth: bool) -> None:
    config = SweepConfig.model_validate({"space": space, "sampler": sampler})
    result = sweep([finished(0, {})], fields=("seed",) if "seed" in space else ("adapter.r",))
    assert worth_a_table(config, result) is worth


def test_picture_names_the_front_and_hides_no_name(tmp_path: Path) -> None:
    found = compared(sweep(three_methods()))
    assert draw_pareto(tmp_path / "plots", found)
    assert (tmp_path / "plots/pareto.png").stat().st_size > 10_000
    figure = pareto_figure(found)
    assert figure.axes[0].get_xlabel() == "trained parameters"
    assert figure.axes[0].get_xscale() == "log" and figure.axes[1].get_xscale() == "linear"
    for axis in figure.axes:
        assert {text.get_text() for text in axis.texts} == {"1 lora", "2 ia3", "3"}
    assert drawn_things(found, 0)[3][:3] == (2_000, found.contenders[1].score, 100_000)


def test_sixty_points_have_labels_that_cover_nothing() -> None:
    from matplotlib.text import Text

    generator = np.random.default_rng(0)
    trials = [
        finished(place, {"adapter.method": "lora", "adapter.r": place}, 0.7 + 0.001 * place, parameters=float(cost))
        for place, cost in enumerate(generator.integers(1000, 9_000_000, 60), 1)
    ]
    outcomes = [Outcome(**(trial.outcome.model_dump() | {"answers": ""})) for trial in trials]
    bare = [trial.model_copy(update={"outcome": outcome}) for trial, outcome in zip(trials, outcomes, strict=True)]
    found = compared(sweep(bare))
    figure = pareto_figure(found)
    figure.draw_without_rendering()
    (axis,) = figure.axes
    boxes = [Text.get_window_extent(text) for text in axis.texts]  # without the line to the point
    assert len(boxes) > 30
    for place, box in enumerate(boxes):
        assert not box.shrunk(0.9, 0.9).count_overlaps(boxes[:place])
    front = [label.text for label in labels_of(found, 0) if label.important]
    assert set(front) <= {text.get_text() for text in axis.texts}


@pytest.mark.parametrize(
    "trials", [three_methods()[:6], [finished(place, {"adapter.r": place}) for place in (2, 4, 8)]]
)
def test_too_little_for_a_picture(trials: list[Trial], tmp_path: Path) -> None:
    assert not draw_pareto(tmp_path / "plots", compared(sweep(trials)))
    assert not (tmp_path / "plots").exists()


def test_made_up_answers_have_the_scores_that_they_say() -> None:
    assert finished(0, {}, 0.9).outcome.score == pytest.approx(0.9)
    assert finished(0, {}, 0.9, "regression").outcome.score == pytest.approx(0.1) and ROWS == 200
