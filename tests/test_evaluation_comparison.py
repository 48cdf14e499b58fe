"""All classifiers to a ladder, a verdict and words; every number against one from elsewhere."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.base.records import DataCheck, Interval
from tasks.base.words import bounds, markdown_table, plain, shown
from tasks.evaluation.predictions import Predictions
from tasks.evaluation.verdict import judge, ladder
from tasks.evaluation.wording import caution, description, headline, ladder_table, leak_sentence, step_sentence
from tasks.scores.classes import class_table, confusion, log_loss
from tasks.scores.metrics import score
from tasks.scores.objective import objective
from tasks.scores.statistics import bootstrap, calibration_error, difference, wilson_interval, without_temperature
from tasks.settings.rivals import SHORT_TITLES, TITLES
from tests.conftest import Judged, made_up_classifier

SINGLE = objective("single_label")


def judge_again(judged: Judged, **changes: Any) -> Any:
    check: DataCheck = judged.check.model_copy(update=changes)
    folder = Path(judged.result.folder)
    return judge(judged.config, judged.data, check, judged.predictions, judged.trained, folder)


def test_ladder_is_sorted_by_accuracy_and_then_by_loss(judged: Judged) -> None:
    names = [rung.name for rung in judged.result.ladder]
    assert names == ["tuned", "tfidf", "probe", "majority", "baseline"]
    scores = {rung.name: rung.values for rung in judged.result.ladder}
    assert scores["majority"]["accuracy"] == scores["baseline"]["accuracy"]
    assert scores["majority"]["log_loss"] < scores["baseline"]["log_loss"]


def test_scores_of_every_rung_are_those_of_the_metrics(judged: Judged) -> None:
    for rung in judged.result.ladder:
        expected = score(judged.predictions.tables[rung.name], judged.predictions.labels)
        assert rung.values == pytest.approx(expected, abs=1e-6), rung.name
        right = int((judged.predictions.tables[rung.name].argmax(1) == judged.predictions.labels).sum())
        assert rung.primary == wilson_interval(right, 240, 0.95)
        f1 = rung.scores["macro_f1"]
        assert f1.low < f1.value < f1.high or rung.name == "majority"


def test_each_gain_is_the_paired_test_of_that_pair_alone(judged: Judged) -> None:
    labels, tables = judged.predictions.labels, judged.predictions.tables
    for rung in judged.result.ladder:
        if rung.name == "tuned":
            assert rung.adapter_gain is None
            continue
        pair = [tables["tuned"], tables[rung.name]]
        assert rung.adapter_gain == difference(
            SINGLE, labels, pair, bootstrap(SINGLE, labels, pair, 500, 0), (0, 1), 0.95
        )


def test_verdict_is_about_the_strongest_reference_and_not_about_chance(judged: Judged) -> None:
    gains = {rung.name: rung.adapter_gain for rung in judged.result.ladder}
    assert judged.result.gain == gains["baseline"]
    assert gains["baseline"].verdict == "improved" and gains["tfidf"].verdict == "no evidence"
    assert judged.result.verdict == "not shown better than TF-IDF"
    assert judged.result.lead(judged.result.against) == gains["tfidf"]


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ({"tuned": 0.9, "tfidf": 0.7, "probe": 0.6}, "better than every reference"),
        ({"tuned": 0.45, "tfidf": 0.6, "probe": 0.925}, "worse than linear probe"),
        ({"tuned": 0.5, "majority": 0.5, "baseline": 0.45}, "not shown better than majority class"),
        ({"tuned": 0.9, "baseline": 0.98}, "worse than foundation model"),  # a model that came with its head
    ],
)
def test_verdict_says_what_the_ladder_shows(accuracies: dict[str, float], verdict: str, judged: Judged) -> None:
    labels = judged.predictions.labels
    tables = {
        name: made_up_classifier(labels, accuracy, 2, i)
        for i, (name, accuracy) in enumerate(({"baseline": 0.5} | accuracies).items())
    }
    predictions = Predictions(judged.predictions.rows, labels, tables)
    rungs = ladder(SINGLE, predictions, 300, 0.95, 0)
    assert judged.result.model_copy(update={"ladder": rungs}).verdict == verdict


def test_accuracy_without_leaked_rows_leaves_out_these_rows_and_no_others(judged: Judged) -> None:
    leaked = (3, 17, 18, 200)
    result = judge_again(judged, leaked={"validation": (1, 2), "test": leaked})
    keep = ~np.isin(judged.predictions.rows, leaked)
    assert result.leaked == 4
    for name, table in judged.predictions.tables.items():
        expected = (table.argmax(1) == judged.predictions.labels)[keep].mean()
        assert result.score_without_leaked[name] == pytest.approx(expected, abs=1e-12)
    assert "4 of 240 test rows are in train" in leak_sentence(result)
    assert f"adapter {result.score_without_leaked['tuned']:.3f}" in leak_sentence(result)


def test_without_leaked_rows_there_is_no_second_accuracy(judged: Judged) -> None:
    result = judge_again(judged, leaked={"validation": (5,), "test": ()})
    assert (result.leaked, result.score_without_leaked) == (0, {})
    assert leak_sentence(result) == "none of 240 test rows is in train"


def test_calibration_compares_the_probabilities_with_and_without_temperature(judged: Judged) -> None:
    after, labels = judged.predictions.tables["tuned"], judged.predictions.labels
    before, found = without_temperature(after, 1.5), judged.result.calibration
    assert found["temperature"] == 1.5
    assert (found["error_before"], found["error_after"]) == (
        pytest.approx(calibration_error(before, labels)),
        pytest.approx(calibration_error(after, labels)),
    )
    assert found["log_loss_before"] == pytest.approx(score(before, labels)["log_loss"], abs=1e-6)
    assert found["log_loss_after"] == pytest.approx(judged.result.rung("tuned").values["log_loss"], abs=1e-6)
    assert found["error_before"] != found["error_after"]


def test_headline_is_the_difference_to_the_strongest_reference_and_the_step_a_line_below(judged: Judged) -> None:
    told, lead, gain = headline(judged.config, judged.result), judged.result.lead("tfidf"), judged.result.gain
    difference = lead.primary
    assert told.startswith("Accuracy on 240 test rows is 0.858: ")
    assert f"{difference.value:+.3f} (95 % interval {difference.low:+.3f} to {difference.high:+.3f})" in told
    assert "against TF-IDF with 0.825, the strongest reference (exact McNemar p = " in told
    step = step_sentence(judged.result)
    assert f"from 0.500 to 0.858: {shown(gain.primary)}" in step
    assert f"fixed {gain.fixed} rows and broke {gain.broken}" in step


def test_reference_that_is_not_the_strongest_is_not_called_that(judged: Judged) -> None:
    tuned, tfidf, probe, *others = judged.result.ladder
    better = tfidf.adapter_gain and tfidf.adapter_gain.model_copy(update={"verdict": "improved"})
    unclear = probe.adapter_gain and probe.adapter_gain.model_copy(update={"verdict": "no evidence"})
    rungs = (
        tuned,
        tfidf.model_copy(update={"adapter_gain": better}),
        probe.model_copy(update={"adapter_gain": unclear}),
    )
    result = judged.result.model_copy(update={"ladder": (*rungs, *others)})
    assert result.verdict == "not shown better than linear probe"
    told = headline(judged.config, result)
    assert "against linear probe with 0.750 (exact" in told and "strongest" not in told


def test_description_has_five_lines_with_the_verdict_first(judged: Judged) -> None:
    lines = description(judged.result).splitlines()
    assert len(lines) == 5
    assert max(len(line) for i, line in enumerate(lines) if i != 3) <= 92
    lead = judged.result.lead("tfidf").primary
    assert lines[0] == f"**Not shown better than TF-IDF**: accuracy 0.858, {shown(lead)}  "
    places = [lines[1].index(f"{SHORT_TITLES[rung.name]} ") for rung in judged.result.ladder]
    assert places == sorted(places)
    assert lines[2].startswith("From the foundation model: 0.500 to 0.858, +0.358 (")
    assert "1 of 240 test rows is in train" in lines[3] and f"{judged.check.detectable:.3f}" in lines[3]
    assert "adapter 0." in lines[3] and TITLES["baseline"] not in lines[3]  # one accuracy has room
    assert lines[4].startswith("Calibration error ") and "weakest slice: " in lines[4]


def test_description_has_the_cautions_next_to_the_verdict(judged: Judged) -> None:
    told = ("never predicts '<b>' (9 test rows)", "240 test rows can show no difference")
    lines = description(judged.result.model_copy(update={"cautions": told})).splitlines()
    assert len(lines) == 5 and lines[0].startswith("**Not shown")
    assert lines[1] == r"Caution: never predicts '\<b\>' (9 test rows); 240 test rows can show no difference.  "
    assert "Ladder: " in lines[2] and "From the foundation" in lines[3] and "weakest slice" in lines[4]
    assert caution(()) == ""


def test_description_names_the_reference_where_the_verdict_does_not(judged: Judged) -> None:
    rungs = tuple(rung for rung in judged.result.ladder if rung.name != "tfidf")
    result = judged.result.model_copy(update={"ladder": rungs})
    first = description(result).splitlines()[0]
    assert first.startswith("**Better than every reference**: ") and first.endswith(" against probe  ")
    assert len(first) <= 92


def test_description_keeps_its_five_lines_whatever_a_slice_is_called(judged: Judged) -> None:
    worst = min((part for part in judged.result.slices if not part.small), key=lambda part: part.score.value)
    odd = worst.model_copy(
        update={"kind": "outlet", "name": "a\n\n# b\r\nc", "score": Interval(value=0, low=0, high=0)}
    )
    result = judged.result.model_copy(update={"slices": (*judged.result.slices, odd)})
    lines = description(result).splitlines()
    assert len(lines) == 5
    assert "weakest slice: outlet a # b c, 0.000 of" in lines[4]


def test_weakest_slice_is_one_with_enough_rows(judged: Judged) -> None:
    one = judged.result.slices[0]
    parts = [
        one.model_copy(update={"kind": "class", "name": name, "rows": rows, "small": small, "score": accuracy})
        for name, rows, small, accuracy in (
            ("a", 40, False, wilson_interval(30, 40, 0.95)),
            ("b", 50, False, wilson_interval(20, 50, 0.95)),
            ("c", 9, True, wilson_interval(0, 9, 0.95)),
        )
    ]
    told = description(judged.result.model_copy(update={"slices": tuple(parts)}))
    assert told.endswith("weakest slice: class b, 0.400 of 50 rows")
    assert "none has enough rows" in description(judged.result.model_copy(update={"slices": (parts[2],)}))


def test_run_without_references_is_described_too(judged: Judged) -> None:
    ladder = tuple(rung for rung in judged.result.ladder if rung.name in ("tuned", "baseline"))
    alone = judged.result.model_copy(update={"ladder": ladder})
    assert alone.verdict == "better than every reference"
    assert "against foundation model with 0.500" in headline(judged.config, alone)
    assert len(description(alone).splitlines()) == 5


def test_ladder_table_fits_a_terminal_and_has_every_rung(judged: Judged) -> None:
    rungs = list(judged.result.ladder)
    gain = rungs[1].adapter_gain
    assert gain
    wide = gain.model_copy(
        update={
            "scores": gain.scores | {"accuracy": Interval(value=-0.123, low=-0.456, high=-0.001)},
            "verdict": "no evidence",
            "p_value": 1e-9,
        }
    )
    rungs[1] = rungs[1].model_copy(update={"adapter_gain": wide})
    table = ladder_table(judged.result.model_copy(update={"ladder": tuple(rungs)}))
    lines = table.splitlines()
    assert max(map(len, lines)) <= 120
    assert [re.split(r"\s{2,}|\|", line)[1].strip() for line in lines[2:7]] == [TITLES[rung.name] for rung in rungs]
    assert "<0.001" in lines[3] and "-0.123 (-0.456, -0.001)" in lines[3]


def test_ladder_table_fits_at_the_widest_numbers_and_names(judged: Judged) -> None:
    tuned, other = judged.result.rung("tuned"), judged.result.rung("tfidf")
    loss = -np.log(1e-7)
    scores = {
        "accuracy": Interval(value=0, low=0, high=1),
        "macro_f1": Interval(value=1, low=1, high=1),
        "log_loss": Interval(value=loss, low=loss, high=loss),
    }
    lead = {"accuracy": Interval(value=-1, low=-1, high=-1)}
    gain = other.adapter_gain and other.adapter_gain.model_copy(
        update={"scores": other.adapter_gain.scores | lead, "verdict": "no evidence", "p_value": 1e-9}
    )
    rungs = [
        other.model_copy(update={"name": name, "scores": scores, "adapter_gain": gain})
        for name in TITLES
        if name != "tuned"
    ]
    table = ladder_table(judged.result.model_copy(update={"ladder": (tuned, *rungs), "confidence": 0.999}))
    assert "16.118" in table and "-1.000 (-1.000, -1.000)" in table and TITLES["tfidf"] in table
    assert max(map(len, table.splitlines())) <= 120


def test_tie_in_everything_keeps_the_given_order() -> None:
    labels = np.array([0, 1] * 20)
    table = made_up_classifier(labels, 0.75, 2, 0)
    predictions = Predictions(np.arange(40), labels, {"tuned": table, "baseline": table.copy()})
    rungs = ladder(SINGLE, predictions, 200, 0.95, 0)
    assert [rung.name for rung in rungs] == ["tuned", "baseline"]
    gain = rungs[1].adapter_gain
    assert gain and (gain.verdict, gain.p_value, gain.primary.low, gain.primary.high) == ("no evidence", 1.0, 0, 0)


def test_tables_by_class_count_every_row(judged: Judged) -> None:
    labels, table = judged.predictions.labels, judged.predictions.tables["tuned"]
    counts = confusion(labels, table)
    assert counts.sum() == len(labels)
    found = class_table(labels, table)
    assert found[:, 1] == pytest.approx(np.diag(counts) / counts.sum(1))
    assert found[:, 3].tolist() == np.bincount(labels).tolist()


def test_class_never_predicted_counts_as_zero_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    labels = np.array([0, 1, 2, 2])
    table = np.tile([0.9, 0.05, 0.05], (4, 1))
    assert class_table(labels, table)[2, :3].tolist() == [0, 0, 0]
    assert not recwarn.list


def test_cells_cannot_break_a_table() -> None:
    table = markdown_table(("a|b", "c"), [("x\ny", "|")])
    assert len(table.splitlines()) == 3
    assert "a\\|b" in table
    assert "x y" in table


def test_texts_of_the_data_are_shown_and_not_obeyed() -> None:
    assert plain("![x](http://a/b) <img src=c> *d*") == r"!\[x\](http://a/b) \<img src=c\> \*d\*"
    assert plain("__init__ and ~~gone~~") == r"\_\_init\_\_ and \~\~gone\~\~"


def test_text_of_the_data_begins_no_line_of_the_page() -> None:
    assert plain("a\n\n# b\r\n\tc\u2028d") == "a # b c d"


@pytest.mark.parametrize("text", ["a|b", r"a\|b", r"a\\|b", "a\\"])
def test_backslash_of_the_data_does_not_free_the_bar_after_it(text: str) -> None:
    line = markdown_table(("text", "end"), [(plain(text), "x")]).splitlines()[2]
    assert len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) == 4  # a bar after an even number of backslashes ends a cell


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.9996, 0.9989, 0.9999, "0.999 (0.999-1.000)"),  # not all rows are right
        (1.0, 0.998, 1.0, "1.000 (0.998-1.000)"),
        (0.0004, 0.0001, 0.0009, "0.001 (0.000-0.001)"),
        (0.0, 0.0, 0.004, "0.000 (0.000-0.004)"),
        (0.99964, 0.9996, 0.99968, "0.999 (0.999-1.000)"),
        (0.8278, 0.8041, 0.8492, "0.828 (0.804-0.849)"),
    ],
)
def test_share_is_1_or_0_only_where_it_is_that_exactly(value: float, low: float, high: float, expected: str) -> None:
    assert bounds(Interval(value=value, low=low, high=high)) == expected


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (-0.0002, -0.004, 0.003, "+0.000 (-0.004 to +0.003)"),
        (-0.0, -0.0, 0.0, "+0.000 (+0.000 to +0.000)"),
        (-0.0004, -0.0007, -0.0002, "-0.0004 (-0.0007 to -0.0002)"),  # worse, and to be seen as that
        (0.034, 0.007, 0.062, "+0.034 (+0.007 to +0.062)"),
        (-1.234, -2.5, 0.0041, "-1.23 (-2.50 to +0.00)"),
        (-123.456, -1234.5, -23.4, "-123 (-1,234 to -23)"),
        (-1e-5, -4.4e-5, 2e-5, "-0.00001 (-0.00004 to +0.00002)"),  # of a small unit
        (60.0, 0.2, 150.0, "+60.0 (+0.2 to +150.0)"),
    ],
)
def test_difference_is_never_minus_nothing(value: float, low: float, high: float, expected: str) -> None:
    assert shown(Interval(value=value, low=low, high=high)) == expected


def test_loss_of_certain_and_right_answers_is_0_and_not_below() -> None:
    labels = np.array([0, 1])
    for table in (np.eye(2), np.float32([[1.0000001, 0], [0, 1.0000001]])):
        losses = (
            log_loss(table, labels),
            score(table, labels)["log_loss"],
            bootstrap(SINGLE, labels, [table], 5, 0).observed[0, 2],
        )
        assert [f"{loss:.3f}" for loss in losses] == ["0.000"] * 3
