"""Page, tables, card, description, metrics and pictures of a run with classes, with several labels, with numbers."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from datasets import load_from_disk

from tasks.base import drawing
from tasks.base.records import Comparison
from tasks.evaluation import error_analysis, plots
from tasks.evaluation.card import model_card
from tasks.evaluation.cautions import find_cautions
from tasks.evaluation.predictions import paired_predictions, read_predictions, write_evaluation
from tasks.evaluation.recording import final_metrics, prediction_table
from tasks.evaluation.wording import description, headline, ladder_table, step_sentence
from tasks.scores.objective import objective
from tasks.settings.fixed import RESERVED_COLUMNS
from tests.conftest import Judged
from tests.test_evaluation_plots import pictures, visible_texts


def page(judged: Judged) -> str:
    return (Path(judged.result.folder) / "comparison.md").read_text()


def tables(judged: Judged) -> dict[str, pd.DataFrame]:
    folder = Path(judged.result.folder) / "tables"
    return {file.stem: pd.read_json(file, orient="split") for file in folder.glob("*.json")}


def measured(judged: Judged, folder: Path) -> dict[str, Any]:
    """Prediction files of all its classifiers."""
    split = load_from_disk(judged.data.folder)["test"]
    return {
        name: write_evaluation(judged.data.task, table, split, folder / f"{name}.parquet", 1.0)
        for name, table in judged.predictions.tables.items()
    }


# --- every task


def test_predictions_are_read_back_as_they_were(any_judged: Judged, tmp_path: Path) -> None:
    evaluations = measured(any_judged, tmp_path)
    found = paired_predictions({name: evaluation.predictions for name, evaluation in evaluations.items()})
    assert np.array_equal(found.labels, any_judged.predictions.labels)
    for name, table in any_judged.predictions.tables.items():
        assert np.array_equal(found.tables[name], table)
        assert evaluations[name].scores == pytest.approx(any_judged.result.rung(name).values)


def test_record_is_read_back_as_it_was(any_judged: Judged) -> None:
    file = Path(any_judged.result.folder) / "comparison.json"
    assert Comparison.model_validate_json(file.read_bytes()) == any_judged.result


def test_best_is_first_and_a_better_adapter_has_improved(any_judged: Judged) -> None:
    result = any_judged.result
    assert result.ladder[0].name == "tuned" and result.gain.verdict == "improved"
    metric = objective(result.task).metrics[0]
    values = [metric.sign * rung.primary.value for rung in result.ladder]
    assert values == sorted(values, reverse=True)


def test_flips_are_those_that_the_verdict_counts(any_judged: Judged) -> None:
    flips, gain = tables(any_judged)["flips"], any_judged.result.gain
    assert flips["flip"].value_counts().to_dict() == {"fixed": gain.fixed, "broken": gain.broken}


def test_tables_show_rows_with_their_own_labels(any_judged: Judged) -> None:
    task, truth = objective(any_judged.data.task), any_judged.predictions.labels
    names = any_judged.data.label_names
    for name in ("flips", "mistakes"):
        frame = tables(any_judged)[name]
        assert len(frame) > 5
        for column, expected in task.truth(truth[frame["row"]], names).items():
            assert frame[column].tolist() == list(expected)
        said = task.said(any_judged.predictions.tables["tuned"][frame["row"]], truth[frame["row"]], names)
        first = next(iter(said))
        assert frame[f"tuned_{first}"].to_numpy().tolist() == pytest.approx(list(said[first]), abs=1e-6)


def test_our_columns_are_kept_from_texts(any_judged: Judged) -> None:
    for name in ("flips", "mistakes", "label_errors"):
        assert set(tables(any_judged)[name].columns) - {"text"} <= RESERVED_COLUMNS


def test_page_has_its_sections_and_no_word_of_another_task(any_judged: Judged) -> None:
    text, task = page(any_judged), objective(any_judged.data.task)
    assert headline(any_judged.config, any_judged.result) in text and ladder_table(any_judged.result) in text
    for section in ("Slices", "Calibration", "Flips", task.mistakes_title, "Likely label errors"):
        assert f"## {section}" in text
    assert ("accuracy" in text.lower()) == (task.name == "single_label")
    assert ("lower is better" in text) != task.metrics[0].higher_is_better


def test_card_and_description_have_no_word_of_another_task(any_judged: Judged) -> None:
    task, result = objective(any_judged.data.task), any_judged.result
    card = model_card(any_judged.config, any_judged.data, any_judged.trained, result)
    assert f"scored best by validation {objective(any_judged.data.task).metrics[0].name}." in card
    assert f"that {task.purpose} `{any_judged.data.label_names[0]}`" in card
    assert task.snippet(any_judged.trained.fitted, any_judged.data.label_names) in card
    lines = description(result).splitlines()
    assert len(lines) <= 5 and f"{task.metrics[0].title} " in lines[0]
    for text in (card, description(result)):
        assert ("temperature" in text or "detectable" in text) == (task.name == "single_label")
        assert "majority" not in text or task.name == "single_label"


def test_ladder_fits_a_terminal(any_judged: Judged) -> None:
    text = ladder_table(any_judged.result)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert max(map(len, lines)) <= 120
    assert all(metric.short_title in text for metric in objective(any_judged.result.task).metrics)


def test_metrics_have_the_names_of_the_task(any_judged: Judged, tmp_path: Path) -> None:
    metrics = final_metrics(measured(any_judged, tmp_path), any_judged.trained, any_judged.result)
    for metric in objective(any_judged.data.task).metrics:
        assert metrics[f"tuned/{metric.name}"] == any_judged.result.rung("tuned").values[metric.name]
    assert {name for name in metrics if name.startswith("calibration/")} == {
        f"calibration/{name}" for name in any_judged.result.calibration
    }
    assert np.isfinite(list(metrics.values())).all()


def test_table_of_predictions_has_every_row(any_judged: Judged, tmp_path: Path) -> None:
    frame = prediction_table(any_judged.data, measured(any_judged, tmp_path))
    assert frame["row"].tolist() == list(range(240))
    assert {column.split("_")[0] for column in frame.columns} == {"row", "text", "true", "baseline", "tuned"}


def test_cautions_of_a_sound_run_are_none(any_judged: Judged) -> None:
    assert find_cautions(any_judged.result, any_judged.data, any_judged.predictions) == ()


def test_answer_that_is_no_number_is_refused_by_row(any_judged: Judged, tmp_path: Path) -> None:
    split, table = load_from_disk(any_judged.data.folder)["test"], any_judged.predictions.tables["tuned"].copy()
    table[7, 0] = np.inf
    answers = objective(any_judged.data.task).answers
    with pytest.raises(FloatingPointError, match=f"no finite {answers} for row 7"):
        write_evaluation(any_judged.data.task, table, split, tmp_path / "a.parquet", 1.0)


def test_pictures_can_be_read(any_judged: Judged) -> None:
    with matplotlib.rc_context(drawing.STYLE):
        for name, figure in pictures(any_judged).items():
            figure.draw_without_rendering()
            texts = visible_texts(figure)
            boxes = {text: text.get_window_extent() for text in texts}
            for text, box in boxes.items():
                inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
                assert inside, f"{name}: {text.get_text()!r}"
            for one, other in combinations(texts, 2):
                assert not boxes[one].overlaps(boxes[other]), f"{name}: {one.get_text()!r} on {other.get_text()!r}"


def test_every_picture_of_the_task_is_drawn(any_judged: Judged, tmp_path: Path) -> None:
    plots.draw_all(
        tmp_path, any_judged.data, any_judged.check, any_judged.predictions, any_judged.result, any_judged.trained
    )
    own = objective(any_judged.data.task).pictures
    assert {file.stem for file in tmp_path.iterdir()} == {*own, "ladder", "learning_curves", "lengths", "slices"}


# --- several labels


def test_label_that_is_never_given_is_named(judged_labels: Judged) -> None:
    table = judged_labels.predictions.tables["tuned"].copy()
    table[:, 3 + 1] = 0
    predictions = judged_labels.predictions._replace(tables=judged_labels.predictions.tables | {"tuned": table})
    rows = judged_labels.predictions.labels[:, 1].sum()
    found = find_cautions(judged_labels.result, judged_labels.data, predictions)
    assert found == (f"never predicts 'complaint' ({rows} test rows)",)


def test_label_report_is_that_of_scikit_learn(judged_labels: Judged) -> None:
    from sklearn.metrics import average_precision_score, f1_score

    found = json.loads((Path(judged_labels.result.folder) / "classes.json").read_text())["tuned"]
    labels, table = judged_labels.predictions.labels, judged_labels.predictions.tables["tuned"]
    assert found["f1"] == pytest.approx(f1_score(labels, table[:, 3:], average=None))
    assert found["average_precision"] == pytest.approx(average_precision_score(labels, table[:, :3], average=None))
    assert found["rows"] == labels.sum(0).tolist() and found["threshold"] == [0.5] * 3
    assert "| praise " in page(judged_labels) and "threshold after" in page(judged_labels)


def test_planted_wrong_label_among_several_is_found(judged_labels: Judged) -> None:
    truth = judged_labels.predictions.labels
    given = truth.copy()
    given[20, 1] = 1 - given[20, 1]
    table = np.concatenate([0.05 + 0.9 * truth, truth], axis=1)
    table[20, 1] = 0.01 + 0.98 * truth[20, 1]  # surer than of others
    columns = objective("multi_label").suspects(
        {"tuned": table, "tfidf": table}, given, judged_labels.data.label_names, {}, 0.95
    )
    assert np.flatnonzero(columns[1]).tolist() == [20]
    assert columns[2]["likely_label"][20] == objective("multi_label").words(truth, judged_labels.data.label_names)[20]
    assert columns[2]["given_label_probability"][20] == pytest.approx(0.01)


def test_row_with_two_labels_is_in_both_slices(judged_labels: Judged) -> None:
    rows = {part.name: part.rows for part in judged_labels.result.slices if part.kind == "label"}
    assert list(rows.values()) == judged_labels.predictions.labels.sum(0).tolist()


# --- numbers


def test_planted_wrong_number_is_found(judged_numbers: Judged) -> None:
    truth = judged_numbers.predictions.labels
    given = truth.copy()
    given[20] += 9
    tables = {"tuned": (truth + 0.1)[:, None], "tfidf": (truth - 0.1)[:, None]}
    margin, suspect, columns = objective("regression").suspects(tables, given, ("stars",), {"half_width": 1.0}, 0.95)
    assert np.flatnonzero(suspect).tolist() == [20]
    assert columns["likely_number"][20] == pytest.approx(truth[20]) and margin[20] == pytest.approx(8.9)
    doubted = tables | {"tfidf": tables["tfidf"].copy()}
    doubted["tfidf"][20] = given[20]  # one reference that agrees with the label clears it
    assert not objective("regression").suspects(doubted, given, ("stars",), {"half_width": 1.0}, 0.95)[1].any()


def test_direction_is_said_in_words_and_numbers(judged_numbers: Judged) -> None:
    result = judged_numbers.result
    assert result.lead("tfidf").primary.high < 0 and result.lead("tfidf").verdict == "improved"
    assert headline(judged_numbers.config, result).startswith("Mean absolute error (lower is better) on 240 test rows")
    assert "came nearer to the true number on" in step_sentence(result)
    for figure in (plots.ladder(judged_numbers.data, result), plots.slices(result)):
        assert "(lower is better)" in figure.axes[0].get_xlabel() and figure.axes[0].get_xlim()[1] > 1.5


def test_constant_reference_is_called_what_it_is(judged_numbers: Judged, judged_labels: Judged) -> None:
    for judged, name in ((judged_numbers, "mean of train"), (judged_labels, "label frequencies")):
        gain = judged.result.rung("majority").adapter_gain
        assert gain
        worse = gain.model_copy(update={"verdict": "worse"})
        rungs = tuple(
            rung.model_copy(update={"adapter_gain": worse}) if rung.name == "majority" else rung
            for rung in judged.result.ladder
        )
        assert judged.result.model_copy(update={"ladder": rungs}).verdict == f"worse than {name}"


@pytest.mark.parametrize(
    ("half_width", "expected"),
    [
        (1.0, ""),
        (0.3, "the 90 % intervals hold "),
        (9.0, "the 90 % intervals hold 1.000 "),
        (float("inf"), "validation has too few rows for 90 % intervals"),
    ],
)
def test_coverage_off_its_promise_is_a_caution(half_width: float, expected: str, judged_numbers: Judged) -> None:
    task, predictions = objective("regression"), judged_numbers.predictions
    fitted = {"half_width": half_width, "validation_rows": 200}
    found = task.calibration(predictions.tables["tuned"], predictions.labels, fitted, 0.95)
    within = (abs(predictions.tables["tuned"][:, 0].astype(float) - predictions.labels) <= half_width).mean()
    assert found["coverage"] == within and found["coverage_low"] <= within <= found["coverage_high"]
    told = task.calibration_cautions(found)
    assert (told[0].startswith(expected) and len(told) == 1) if expected else told == []


def test_infinite_interval_is_no_metric_of_mlflow(judged_numbers: Judged, tmp_path: Path) -> None:
    calibration = judged_numbers.result.calibration | {"half_width": float("inf")}
    result = judged_numbers.result.model_copy(update={"calibration": calibration})
    metrics = final_metrics(measured(judged_numbers, tmp_path), judged_numbers.trained, result)
    assert "calibration/half_width" not in metrics and "calibration/coverage" in metrics
    result.write(tmp_path / "comparison.json")
    assert Comparison.model_validate_json((tmp_path / "comparison.json").read_bytes()) == result


def test_quarters_by_number_keep_equal_numbers_together(judged_numbers: Judged) -> None:
    kind, parts = objective("regression").parts(judged_numbers.predictions.labels, ("stars",))
    assert kind == "true number" and [name for name, _ in parts] == ["1 to 2", "3", "4", "5"]
    assert np.sum([inside for _, inside in parts], axis=0).tolist() == [1] * 240


def test_predictions_with_other_labels_are_refused(judged_labels: Judged, tmp_path: Path) -> None:
    evaluations = measured(judged_labels, tmp_path)
    _, labels, _ = read_predictions(evaluations["tuned"].predictions)
    other = judged_labels.predictions._replace(labels=1 - labels)
    with pytest.raises(ValueError, match="other test rows"):
        error_analysis.read_test_rows(judged_labels.data, other)
