"""A new reference takes one record and one measure: tables, gate and error analysis follow."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from tasks.base.records import Comparison
from tasks.base.verdict import standing
from tasks.evaluation import references, verdict, wording
from tasks.evaluation.cautions import learned
from tasks.evaluation.error_analysis import likely_label_errors
from tasks.evaluation.references import MEASURES, Measure, measure
from tasks.evaluation.report import ladder_frame
from tasks.retraining.gate import without_champion
from tasks.scores.objective import objective
from tasks.settings import rivals
from tasks.settings.config import GateConfig
from tasks.settings.rivals import RIVALS, Reference, ReferenceName
from tasks.settings.sections import EvaluationConfig
from tests.test_evaluation_error_analysis import Case, sure
from tests.test_retraining_gate import ladder

GOOD = ("improved", 0.02)


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reference that learns from the run's training rows, and has to be beaten."""
    for table in (rivals.RIVALS, rivals.TITLES, rivals.NAMES, rivals.SHORT_TITLES):
        monkeypatch.setitem(table, "oracle", None)  # type: ignore[arg-type]  # taken out in the end
    rivals.add(Reference("oracle", "oracle + a coin", "orc", learns_from_train=True, must_be_beaten=True))
    yield


def test_every_reference_of_a_configuration_has_a_record_and_can_be_measured() -> None:
    assert RIVALS.keys() == {"baseline", *get_args(ReferenceName)} == MEASURES.keys()
    assert EvaluationConfig().references == get_args(ReferenceName)


def test_new_reference_is_in_the_tables(oracle: None, tmp_path: Path) -> None:
    case = Case(tmp_path / "data")
    case.tables["oracle"] = sure(1 - case.labels)
    rungs = verdict.ladder(objective("single_label"), case.predictions, 50, 0.95, 0)
    result = Comparison.model_construct(rows=len(case.labels), confidence=0.95, ladder=rungs)
    assert "| oracle + a coin " in wording.ladder_table(result)
    assert "oracle + a coin" in ladder_frame(result)["classifier"].tolist()
    assert standing([("oracle", "worse")]) == ("worse than oracle", "oracle")


def test_new_reference_is_asked_for_by_the_gate(oracle: None) -> None:
    told = without_champion(GateConfig(), ladder(tfidf=GOOD, probe=GOOD), None)
    assert (told.passed, told.reason) == (False, "oracle + a coin was not measured")
    assert without_champion(GateConfig(), ladder(tfidf=GOOD, probe=GOOD, oracle=GOOD), None).passed


@pytest.mark.parametrize("agrees", [True, False])
def test_new_reference_is_a_judge_of_labels(agrees: bool, oracle: None, tmp_path: Path) -> None:
    case = Case(tmp_path / "data")
    case.tables["oracle"] = sure(case.labels)
    for name in ("tuned", "tfidf", "probe", *(["oracle"] if agrees else [])):
        case.says(name, 104, 1, 0.95)  # its label is 0
    data, test = case.read()
    found = likely_label_errors(data, test, case.predictions, {}, 0.95)
    assert found["row"].tolist() == ([104] if agrees else [])


def test_new_reference_has_learned_something(oracle: None) -> None:
    result = ladder(oracle=GOOD).model_copy(update={"untrained_head": True})
    assert learned(result) == {"oracle"}


def test_new_reference_is_measured(oracle: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path / "data")
    data, _ = case.read()
    monkeypatch.setitem(MEASURES, "oracle", Measure(lambda config, data, champion: sure(case.labels)))
    monkeypatch.setattr(references, "measurement_key", lambda *_: "key")
    found = measure("oracle", None, data, tmp_path)  # type: ignore[arg-type]
    assert found.scores["accuracy"] == 1
    assert np.isclose(found.scores["log_loss"], -np.log(0.9))
