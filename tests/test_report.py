"""The page and the tables that a comparison leaves on disk."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.card import model_card
from tasks.comparison import confusion, ladder_table
from tasks.metrics import score
from tasks.records import Comparison
from tasks.report import class_report, comparison_page, row_table
from tests.conftest import Judged


def page(judged: Judged) -> str:
    return (Path(judged.result.folder) / "comparison.md").read_text()


def tables(judged: Judged) -> dict[str, pd.DataFrame]:
    return {
        file.stem: pd.read_json(file, orient="split") for file in (Path(judged.result.folder) / "tables").glob("*.json")
    }


def test_record_is_read_back_as_it_was(judged: Judged) -> None:
    file = Path(judged.result.folder) / "comparison.json"
    assert Comparison.model_validate_json(file.read_bytes()) == judged.result


def test_tables_can_be_read_and_are_complete(judged: Judged) -> None:
    found = tables(judged)
    assert set(found) == {"ladder", "slices", "flips", "mistakes", "label_errors"}
    assert found["ladder"]["classifier"].tolist()[:2] == ["adapter", "TF-IDF + logistic regression"]
    assert found["ladder"]["accuracy"].tolist() == pytest.approx(
        [rung.scores.accuracy for rung in judged.result.ladder], abs=1e-4
    )
    assert found["ladder"]["p_value"][4] == pytest.approx(judged.result.gain.p_value, rel=1e-6)
    gain = judged.result.gain
    assert found["flips"]["flip"].value_counts().to_dict() == {"fixed": gain.fixed, "broken": gain.broken}
    assert len(found["slices"]) == len(judged.result.slices)
    assert len(found["mistakes"]) == (judged.predictions.tables["tuned"].argmax(1) != judged.predictions.labels).sum()


def test_page_begins_with_the_verdict_and_has_every_section(judged: Judged) -> None:
    text = page(judged)
    assert text.startswith("# Improved: ")
    assert ladder_table(judged.result) in text
    assert "**Leakage**: 1 of 240 test rows is in train" in text
    sections = ("Slices", "Calibration", "Flips", "Most confident mistakes", "Likely label errors", "By class", "Conf")
    places = [text.index(f"## {section}") for section in sections]
    assert places == sorted(places)
    assert "head is untrained" in text


def test_page_shows_ten_rows_of_each_table_at_most(judged: Judged) -> None:
    mistakes = page(judged).split("## Most confident mistakes")[1].split("##")[0]
    assert len([line for line in mistakes.splitlines() if line.startswith("|")]) == 12


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
    text = comparison_page(judged.config, judged.data, predictions, judged.trained, judged.result, frames)
    assert "The adapter has every test row right." in text


def test_class_report_is_the_tables_for_programs(judged: Judged) -> None:
    labels = judged.predictions.labels
    report = json.loads(json.dumps(class_report(("a", "b"), judged.predictions)))
    assert report["label_names"] == ["a", "b"]
    for name in ("baseline", "tuned"):
        table = judged.predictions.tables[name]
        counts = np.array(report[name]["confusion"])
        assert counts.tolist() == confusion(labels, table).tolist()
        assert counts.sum(1).tolist() == report[name]["rows"] == np.bincount(labels).tolist()
        assert report[name]["recall"] == pytest.approx(np.diag(counts) / counts.sum(1))
        assert np.mean(report[name]["f1"]) == pytest.approx(score(table, labels).macro_f1)


def test_card_has_ladder_temperature_and_leak(judged: Judged) -> None:
    text = model_card(judged.config, judged.data, judged.trained, judged.result)
    assert ladder_table(judged.result) in text
    assert "1.5" in text and "temperature" in text
    assert "1 of 240 test rows is in train" in text
