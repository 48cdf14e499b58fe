"""The page and the tables that a comparison leaves on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.base.records import Comparison, Interval, PreparedData, Slice, TrainedAdapter
from tasks.evaluation.card import model_card
from tasks.evaluation.predictions import Predictions
from tasks.evaluation.report import (
    class_report,
    class_section,
    comparison_page,
    confusion_section,
    row_table,
    set_section,
    slice_table,
    write_report,
)
from tasks.evaluation.verdict import judge
from tasks.evaluation.wording import ladder_table, leak_sentence
from tasks.scores.classes import confusion
from tasks.scores.metrics import score
from tasks.scores.objective import objective
from tests.conftest import Judged


def page(judged: Judged) -> str:
    return (Path(judged.result.folder) / "comparison.md").read_text()


def tables(judged: Judged) -> dict[str, pd.DataFrame]:
    return {
        file.stem: pd.read_json(file, orient="split") for file in (Path(judged.result.folder) / "tables").glob("*.json")
    }


def cells(table: str) -> list[list[str]]:
    """The rows of a markdown table below its header."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_line_of_a_slice_says_what_the_slice_holds(judged: Judged) -> None:
    score = Interval(value=0.8, low=0.7, high=0.875)
    few = Slice(
        kind="genre",
        name="sci_fi",
        rows=20,
        small=True,
        baseline=0.5,
        score=score,
        fixed=9,
        broken=3,
        p_value=0.146,
    )
    many = few.model_copy(update={"rows": 1200, "small": False, "p_value": 1e-8})
    assert cells(slice_table(judged.result.model_copy(update={"slices": (few, many)}))) == [
        ["genre", r"sci\_fi", "20 (few)", "0.500", "0.800 (0.700-0.875)", "9", "3", "0.146"],
        ["genre", r"sci\_fi", "1,200", "0.500", "0.800 (0.700-0.875)", "9", "3", "<0.001"],
    ]


def test_calibration_is_told_before_and_after() -> None:
    calibration = {"temperature": 1.25, "error_before": 0.1, "error_after": 0.02}
    losses = {"log_loss_before": 0.6, "log_loss_after": 0.45}
    _, rows = objective("single_label").calibration_table(calibration | losses)
    assert [list(row) for row in rows] == [
        ["as trained", "1", "0.100", "0.600"],
        ["fitted on validation", "1.250", "0.020", "0.450"],
    ]


def classes_of(predictions: Predictions, names: tuple[str, ...]) -> Any:
    """The class report of these predictions."""
    data = PreparedData.model_construct(task="single_label", label_names=names)
    return class_report(data, predictions, TrainedAdapter.model_construct(fitted={"temperature": 1.0}), 0.95)


@pytest.fixture
def uneven() -> Predictions:
    """Three classes of 1, 2 and 3 rows; the foundation model says b everywhere, the adapter errs once, a for c."""
    labels = np.array([0, 1, 1, 2, 2, 2])
    return Predictions(np.arange(6), labels, {"baseline": np.eye(3)[[1] * 6], "tuned": np.eye(3)[[0, 1, 1, 2, 2, 0]]})


def test_classes_are_told_before_and_after(uneven: Predictions) -> None:
    classes = classes_of(uneven, ("a", "b", "c"))
    title, table = class_section("class", classes)
    assert title == "## By class" and cells(table) == [
        ["a", "1", "0.000", "0.000", "0.000", "0.500", "1.000", "0.667"],
        ["b", "2", "0.333", "1.000", "0.500", "1.000", "1.000", "1.000"],
        ["c", "3", "0.000", "0.000", "0.000", "1.000", "0.667", "0.800"],
    ]
    _, _, before, after = confusion_section(classes)
    assert before.startswith("| before |") and after.startswith("| after |")
    assert cells(before) == [["a", "0", "1", "0"], ["b", "0", "2", "0"], ["c", "0", "3", "0"]]
    assert cells(after) == [["a", "1", "0", "0"], ["b", "0", "2", "0"], ["c", "1", "0", "2"]]


def test_class_report_of_uneven_classes(uneven: Predictions) -> None:
    tuned = classes_of(uneven, ("a", "b", "c"))["tuned"]
    assert tuned["rows"] == [1, 2, 3]
    assert tuned["precision"] == pytest.approx([1 / 2, 1, 1])
    assert tuned["recall"] == pytest.approx([1, 1, 2 / 3])
    assert tuned["confusion"] == [[1, 0, 0], [0, 2, 0], [1, 0, 2]]


def test_record_is_read_back_as_it_was(judged: Judged) -> None:
    file = Path(judged.result.folder) / "comparison.json"
    assert Comparison.model_validate_json(file.read_bytes()) == judged.result


def test_tables_can_be_read_and_are_complete(judged: Judged) -> None:
    found = tables(judged)
    assert set(found) == {"ladder", "slices", "flips", "mistakes", "label_errors"}
    assert found["ladder"]["classifier"].tolist()[:2] == ["adapter", "TF-IDF + logistic regression"]
    assert found["ladder"]["accuracy"].tolist() == pytest.approx(
        [rung.values["accuracy"] for rung in judged.result.ladder], abs=1e-4
    )
    assert found["ladder"]["p_value"][4] == pytest.approx(judged.result.gain.p_value, rel=1e-6)
    gain = judged.result.gain
    assert found["ladder"].loc[4, ["gain_low", "gain_high"]].tolist() == pytest.approx(
        [gain.primary.low, gain.primary.high], abs=1e-4
    )
    assert found["flips"]["flip"].value_counts().to_dict() == {"fixed": gain.fixed, "broken": gain.broken}
    for part, line in zip(judged.result.slices, found["slices"].itertuples(index=False), strict=True):
        assert list(line[:4]) == [part.kind, part.name, part.rows, part.small]
        shares = (part.baseline, part.score.value, part.score.low, part.score.high)
        assert list(line[4:8]) == pytest.approx(list(shares), abs=1e-4)
        assert list(line[8:10]) == [part.fixed, part.broken]
        assert line[10] == pytest.approx(part.p_value, rel=1e-4, abs=1e-15)  # tiny ones stay
    assert len(found["mistakes"]) == (judged.predictions.tables["tuned"].argmax(1) != judged.predictions.labels).sum()


def test_page_begins_with_the_verdict_and_has_every_section(judged: Judged) -> None:
    text = page(judged)
    assert text.startswith("# Not shown better than TF-IDF: ")
    assert ladder_table(judged.result) in text
    assert "**Leakage**: 1 of 240 test rows is in train" in text
    sections = ("Slices", "Calibration", "Flips", "Most confident mistakes", "Likely label errors", "By class")
    sections += ("Prediction sets", "Confusion matrices")
    places = [text.index(f"## {section}") for section in sections]
    assert places == sorted(places)
    assert "head is untrained" in text


@pytest.mark.parametrize(
    ("section", "table", "headers"),
    [("Flips", "flips", 2), ("Most confident mistakes", "mistakes", 1), ("Likely label errors", "label_errors", 1)],
)
def test_page_shows_ten_rows_of_each_table_at_most(judged: Judged, section: str, table: str, headers: int) -> None:
    frames = tables(judged)
    many = {name: ["fixed", "broken"] * 30 if name == "flip" else range(60) for name in frames[table].columns}
    frames[table] = pd.DataFrame(many)
    text = comparison_page(judged.config, judged.data, judged.trained, judged.result, {}, frames)
    shown = [line for line in text.split(f"## {section}")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    assert len(shown) == 10 + 2 * headers


def test_tables_have_the_same_columns_whether_or_not_there_is_something_to_tell(judged: Judged, tmp_path: Path) -> None:
    labels = judged.predictions.labels
    perfect = np.eye(2)[labels]
    one_wrong = perfect.copy()
    one_wrong[0] = 1 - perfect[0]
    columns, told = [], []
    for name, table in (("quiet", perfect), ("loud", one_wrong)):
        tables = {"tuned": table, "tfidf": table, "baseline": perfect}
        predictions = judged.predictions._replace(tables=tables)
        folder = tmp_path / name
        result = judge(judged.config, judged.data, judged.check, predictions, judged.trained, folder)
        write_report(judged.config, judged.data, predictions, judged.trained, result)
        read = {file.stem: pd.read_json(file, orient="split") for file in sorted(folder.glob("tables/*.json"))}
        columns.append({stem: frame.columns.tolist() for stem, frame in read.items()})
        told.append([len(read[stem]) for stem in ("flips", "mistakes", "label_errors")])
    assert told == [[0, 0, 0], [1, 1, 1]]
    assert columns[0] == columns[1]


def test_text_of_the_data_cannot_break_out_of_its_cell() -> None:
    frame = pd.DataFrame({"row": [1], "text": ["a | b\n![x](http://y) <b> " + "long " * 40]})
    lines = row_table(frame).splitlines()
    assert len(lines) == 3
    assert "\\|" in lines[2] and "![" not in lines[2] and "<b>" not in lines[2].replace("\\<b\\>", "")
    assert len(lines[2]) < 120


def test_adapter_without_a_mistake_has_a_page_too(judged: Judged) -> None:
    perfect = np.eye(2)[judged.predictions.labels].astype(np.float32)
    predictions = judged.predictions._replace(tables={**judged.predictions.tables, "tuned": perfect})
    frames = {name: frame.iloc[:0] for name, frame in tables(judged).items()}
    classes = class_report(judged.data, predictions, judged.trained, 0.95)
    text = comparison_page(judged.config, judged.data, judged.trained, judged.result, classes, frames)
    assert "The adapter has every test row right." in text


def test_class_report_is_the_tables_for_programs(judged: Judged) -> None:
    labels = judged.predictions.labels
    report = json.loads(json.dumps(classes_of(judged.predictions, ("a", "b"))))
    assert report["label_names"] == ["a", "b"]
    for name in ("baseline", "tuned"):
        table = judged.predictions.tables[name]
        counts = np.array(report[name]["confusion"])
        assert counts.tolist() == confusion(labels, table).tolist()
        assert counts.sum(1).tolist() == report[name]["rows"] == np.bincount(labels).tolist()
        assert report[name]["recall"] == pytest.approx(np.diag(counts) / counts.sum(1))
        assert report[name]["precision"] == pytest.approx(np.diag(counts) / counts.sum(0))
        assert np.mean(report[name]["f1"]) == pytest.approx(score(table, labels)["macro_f1"])


def test_prediction_sets_are_told_by_class_with_their_rows(judged: Judged) -> None:
    table, labels = judged.predictions.tables["tuned"].astype(float), judged.predictions.labels
    sets = 1 - table <= 0.7 + 1e-6
    sets[np.arange(240), table.argmax(1)] = True
    held = sets[np.arange(240), labels]
    text = page(judged).split("## Prediction sets")[1].split("\n## ")[0]
    assert f"Of all test rows the sets hold {held.mean():.3f} (" in text
    for line, label in zip(cells("\n".join(text.strip().splitlines()[2:])), (0, 1), strict=True):
        mine = labels == label
        assert line[:2] == [judged.data.label_names[label], f"{mine.sum()}"]
        assert line[2].startswith(f"{held[mine].mean():.3f} (") and line[3] == f"{sets[mine].sum(1).mean():.2f}"
    assert judged.result.calibration["coverage"] == held.mean()
    assert 0.7 < held.mean() < 1 and sets.sum(1).max() > 1


def test_class_without_test_rows_has_no_coverage_and_no_sets_have_no_section(uneven: Predictions) -> None:
    data = PreparedData.model_construct(task="single_label", label_names=("a", "b", "c"))
    trained = TrainedAdapter.model_construct(fitted={"temperature": 1.0, "surprise": 0.5})
    missing = uneven._replace(labels=np.array([1, 1, 1, 2, 2, 2]))
    tuned = class_report(data, missing, trained, 0.95)["tuned"]
    assert tuned["coverage"] == [None, pytest.approx(2 / 3), pytest.approx(2 / 3)]
    assert json.loads(json.dumps(tuned)) == tuned
    assert "coverage" not in classes_of(uneven, ("a", "b", "c"))["tuned"]
    assert "Prediction sets" not in "".join(set_section("class", classes_of(uneven, ("a", "b", "c")), None))  # type: ignore[arg-type]


def test_page_and_card_have_the_cautions_beside_the_verdict(judged: Judged) -> None:
    told = "never predicts '<b>' (9 test rows)"
    result = judged.result.model_copy(update={"cautions": (told,)})
    page = comparison_page(judged.config, judged.data, judged.trained, result, {}, tables(judged))
    for text in (page, model_card(judged.config, judged.data, judged.trained, result)):
        before, after = text.split(r"Caution: never predicts '\<b\>' (9 test rows).")
        assert "against TF-IDF with 0.825" in before and "| classifier" in after
        assert "From the foundation model with an untrained head accuracy went from 0.500" in after


def test_card_has_ladder_temperature_and_leak(judged: Judged) -> None:
    text = model_card(judged.config, judged.data, judged.trained, judged.result)
    assert ladder_table(judged.result) in text
    assert "by the temperature 1.5, " in text and "(logits / 1.5)" in text
    calibration = judged.result.calibration
    assert f"from {calibration['error_before']:.3f} to {calibration['error_after']:.3f}" in text
    assert f"Leakage: {leak_sentence(judged.result)}." in text and "1 of 240 test rows is in train" in text
