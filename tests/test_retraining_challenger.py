"""What a challenger is measured on, and on what it can be compared with the champion."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.base.outcomes import Finding, Gate
from tasks.base.records import PreparedData, Source
from tasks.base.work import RunFolder
from tasks.data.duplicates import stable_keys
from tasks.retraining import challenger as retraining
from tasks.retraining import trials
from tasks.retraining.approval import Approval
from tasks.retraining.trials import LABEL, new_classes, own_trial, trial_of
from tasks.settings.config import RetrainConfig
from tasks.settings.loading import checked, validated
from tasks.settings.sections import DataConfig
from tasks.sources.hub import find
from tasks.tracking.decision import Decision
from tasks.tracking.versions import Champion
from tests.conftest import bare_data, made_up_data
from tests.test_data_splits import film_reviews, write

CHAMPION = Champion(uri="models:/reviews/1", version="1", source="m-1", run_id="0")
Frozen = Callable[..., pd.DataFrame | None]


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Frozen:
    """The champion's test rows, `film_reviews` with these labels, as test rows of the data `now`."""

    def make(
        now: pd.DataFrame, columns: tuple[str, ...] = ("text",), logged: list[str] | None = None, **fields: Any
    ) -> pd.DataFrame | None:
        rows = film_reviews(1).assign(row=range(12))[["row", "text", "label"]]
        rows = rows.assign(label=logged or rows["label"])
        file = tmp_path / "logged.parquet"
        rows.to_parquet(file, index=False)
        settings = {"text_columns": columns, "label_names": ["bad", "good"]}
        monkeypatch.setattr(retraining, "download", lambda *_: file)
        monkeypatch.setattr(retraining, "settings_of", lambda *_: settings)
        source = find("dataset", str(write(now, tmp_path / "now.csv")), "main", offline=True)
        found = retraining.frozen_test("0", source, DataConfig(name=source.name, **fields), tmp_path)
        if found is None:
            return None
        assert (found == file) == (list(pd.read_parquet(found)) == list(rows) and len(pd.read_parquet(found)) == 12)
        return pd.read_parquet(found)

    return make


def test_champions_test_rows_are_taken_as_they_are_where_nothing_has_changed(frozen: Frozen) -> None:
    rows = frozen(film_reviews())
    assert rows is not None and list(rows) == ["row", "text", "label"] and len(rows) == 12


def test_champion_that_cannot_be_asked_any_more_does_not_stand_in_the_way_for_ever() -> None:
    model = Source(name="m", revision="1", is_local=True, local_files_only=True)
    told = retraining.why_not_asked(validated({}), bare_data(model), CHAMPION, None, "peft-flow promote reviews 2")
    assert told.startswith("models:/reviews/1 could not be asked") and told.endswith("peft-flow promote reviews 2")


def test_new_class_leaves_the_test_rows_as_they_are(frozen: Frozen) -> None:
    rows = frozen(pd.concat([film_reviews(), film_reviews(2)[12:].assign(label="late")]))
    assert rows is not None and len(rows) == 12


def test_test_rows_of_a_class_that_went_are_left_out(frozen: Frozen) -> None:
    rows = frozen(film_reviews(), logged=["bad", "good", "odd"] * 4)
    assert rows is not None and set(rows["label"]) == {"bad", "good"} and len(rows) == 8


def test_rows_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = retraining.write_rows(pd.DataFrame({"text": ["a"]}), tmp_path / "rows.parquet")
    before = file.read_bytes()

    def killed(_: pd.DataFrame, place: Path, **__: Any) -> None:
        place.write_bytes(b"PAR1")
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_parquet", killed)
    with pytest.raises(KeyboardInterrupt):
        retraining.write_rows(pd.DataFrame({"text": ["b"]}), file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_test_rows_get_the_present_names_of_their_columns(frozen: Frozen) -> None:
    now = film_reviews().rename(columns={"text": "review", "label": "stars"})
    rows = frozen(now, text_columns=("review",), label_column="stars")
    assert rows is not None and list(rows) == ["row", "review", "stars"] and len(rows) == 12


def test_without_two_classes_that_both_know_there_is_a_new_test(frozen: Frozen) -> None:
    assert frozen(film_reviews().replace({"good": "fine", "bad": "poor"})) is None
    assert frozen(film_reviews().replace({"good": "fine"})) is None
    assert frozen(film_reviews(), columns=("one", "two")) is None


def test_data_that_cannot_be_read_are_left_to_the_run(frozen: Frozen) -> None:
    rows = frozen(film_reviews(), label_column="stars")
    assert rows is not None and len(rows) == 12


def data_of(*names: str) -> PreparedData:
    counts = {"test": tuple(range(10, 10 + len(names)))}
    return bare_data(Source(name="made-up", revision="0", is_local=True, local_files_only=True), names).model_copy(
        update={"class_counts": counts}
    )


def test_what_came_and_went_is_counted() -> None:
    known, rows = ["bad", "good", "odd"], pd.DataFrame({LABEL: ["bad", "odd", "odd"]})
    assert new_classes(known, data_of("good", "bad", "odd"), rows, "promote it") is None
    came = new_classes(known, data_of("bad", "good", "late", "odd"), None, "promote it")
    assert came == (("late",), (), ("bad", "good", "odd"), 12, "promote it")
    renamed = new_classes(known, data_of("bad", "good", "strange"), rows, "promote it")
    assert renamed and renamed[:4] == (("strange",), ("odd",), ("bad", "good"), 14)
    assert renamed.forward == "--refresh_test draws test rows of all present classes; promote it"


def test_own_rows_of_a_class_that_went_are_not_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = pd.DataFrame({"row": range(3), "text": ["one", "two", "three"], LABEL: ["good", "odd", "bad"]})
    table = np.array([[0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.3, 0.2, 0.5]], np.float32)  # of bad, good, odd
    file = tmp_path / "tuned.parquet"
    pd.DataFrame({"row": range(3), "label": [1, 2, 0], "probabilities": list(table)}).to_parquet(file)
    monkeypatch.setattr(trials, "download", lambda *_: file)
    answers = pd.DataFrame({"probability_bad": [0.0, 0.5, 1.0], "probability_good": [1.0, 0.5, 0.0]})
    answers.assign(probability_late=0.0).to_parquet(RunFolder(tmp_path).answers)
    own = own_trial(CHAMPION, ["bad", "good", "odd"], data_of("bad", "good", "late"), rows, set(), RunFolder(tmp_path))
    assert own.labels.tolist() == [1, 0] and own.left_out == 0
    assert own.challenger.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert own.champion == pytest.approx(np.array([[2 / 9, 7 / 9, 0], [0.6, 0.4, 0]]))


def test_rows_of_new_classes_and_rows_that_either_has_learned_are_no_trial(tmp_path: Path) -> None:
    texts = film_reviews()["text"][:6]
    frame = pd.DataFrame({"row": range(6), "text": texts, "labels": [0, 1, 2] * 2, "length": 5, "full_length": 5})
    data = made_up_data(tmp_path / "data", frame, ("bad", "good", "late"))
    (tmp_path / "staged").mkdir()
    table = np.eye(3, dtype=np.float32)[[0, 1, 2] * 2]
    said = pd.DataFrame({"row": range(6), "label": frame["labels"], "probabilities": list(table)})
    said.to_parquet(tmp_path / "staged/champion.parquet")
    said.to_parquet(tmp_path / "tuned.parquet")
    whole = trial_of(data, RunFolder(tmp_path), ["bad", "good", "odd"])
    assert whole.labels.tolist() == [0, 1, 0, 1] and whole.left_out == 0
    assert (whole.challenger == table[[0, 1, 3, 4]]).all() and (whole.champion == whole.challenger).all()
    assert {title for title, _ in whole.slices if title.startswith("class")} == {"class bad", "class good"}
    theirs, ours = (set(stable_keys([texts[rows]])) for rows in ([0, 2], [1]))
    less = trial_of(data, RunFolder(tmp_path), ["bad", "good", "odd"], ((("text",), theirs), (("text",), ours)))
    assert less.labels.tolist() == [0, 1] and less.left_out == 3


@pytest.mark.parametrize(
    ("passed", "force", "approval", "action", "by", "reason"),
    [
        (True, False, None, "promoted", "gate", "told"),
        (False, False, None, "kept", "gate", "told"),
        (False, True, None, "promoted", "force", "forced, although told"),
        (True, False, Approval(True, "approved"), "promoted", "gate", "told; approved"),
        (True, False, Approval(False, "declined: no"), "kept", "gate", "told; declined: no"),
    ],
)
def test_promotion_needs_the_gate_and_nobody_who_declines(
    passed: bool,
    force: bool,
    approval: Approval | None,
    action: Any,
    by: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def put_on_record(did: Any) -> Callable[..., Decision]:
        def record(name: str, version: str, why: str, who: str, *_: Any) -> Decision:
            return Decision(name=name, version=version, action=did, reason=f"{who}: {why}", by=who, at=1, previous="1")

        return record

    monkeypatch.setattr(retraining, "version_of", lambda *_: "2")
    monkeypatch.setattr(retraining, "find_champion", lambda _: CHAMPION)
    monkeypatch.setattr(retraining.registry, "promote", put_on_record("promoted"))
    monkeypatch.setattr(retraining.registry, "keep", put_on_record("kept"))
    config = checked(RetrainConfig, {"force": force, "tracking": {"registered_model": "reviews"}})
    finding = Finding(rule="gain", passed=passed, told="told")
    gate = Gate(findings=(finding,), rows=1, champion=None, challenger=None, difference=None)
    run: Any = SimpleNamespace(run_id="r")
    found = retraining.decide.fn(config, run, CHAMPION, gate, approval)
    assert (found.action, found.reason) == (action, f"{by}: {reason}")
