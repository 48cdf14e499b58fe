"""Two runs against each other: the paired test, and a clear word where there is nothing to test."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows.cli import DONE, USER_MUST_CHANGE, main
from tasks.base.outcomes import StoredRun
from tasks.settings.fields import InputError
from tasks.studies.two_runs import compare_runs, comparison_text
from tests.conftest import tracked

ROWS = 200


def probabilities(labels: np.ndarray, accuracy: float, seed: int) -> np.ndarray:
    """A made-up classifier that has this share of the rows right, (rows, 2)."""
    generator = np.random.default_rng(seed)
    predicted = np.where(generator.random(len(labels)) < accuracy, labels, 1 - labels)
    table = np.full((len(labels), 2), 0.2)
    table[np.arange(len(labels)), predicted] = 0.8
    return table


LABELS = np.arange(ROWS) % 2
GOOD, ALIKE, POOR = (probabilities(LABELS, share, seed) for share, seed in ((0.9, 1), (0.9, 2), (0.6, 3)))


def write_predictions(file: Path, table: np.ndarray, rows: Any = None, labels: Any = None) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    frame = {"row": np.arange(len(table)) if rows is None else rows, "label": LABELS if labels is None else labels}
    pd.DataFrame({**frame, "probabilities": list(table)}).to_parquet(file, index=False)
    return str(file)


@pytest.fixture
def stored(tmp_path: Path) -> Any:
    """`stored("a", GOOD)`: a run as it comes from the store."""

    def make(name: str, table: np.ndarray, fingerprint: str = "same", **more: Any) -> StoredRun:
        parameters = more.pop("parameters", {"seed": name})
        return StoredRun(
            run_id=name,
            name=f"run {name}",
            verdict="better than every reference",
            parameters=parameters,
            test_fingerprint=fingerprint,
            predictions=write_predictions(tmp_path / name / "tuned.parquet", table, **more),
        )

    return make


def test_confidence_is_that_of_the_runs_the_stricter_one_where_they_differ(stored: Any) -> None:
    def compared(*confidences: str) -> Any:
        runs = [
            stored(name, table, parameters={"evaluation.confidence": confidence})
            for name, table, confidence in zip("ab", (GOOD, POOR), confidences, strict=True)
        ]
        return compare_runs(*runs)

    usual, strict, mixed = compared("0.95", "0.95"), compared("0.99", "0.99"), compared("0.8", "0.99")
    assert (usual.confidence, strict.confidence, mixed.confidence) == (0.95, 0.99, 0.99)
    assert mixed.difference == strict.difference
    for wide, narrow in (
        (strict.first.primary, usual.first.primary),
        (strict.difference.primary, usual.difference.primary),
    ):
        assert wide.low < narrow.low and narrow.high < wide.high
    assert "Intervals at 99 %" in comparison_text(strict)


def test_difference_is_second_minus_first(stored: Any) -> None:
    from sklearn.metrics import f1_score, log_loss

    result = compare_runs(stored("a", GOOD), stored("b", POOR))
    for run, table in ((result.first, GOOD), (result.second, POOR)):
        assert run.primary.value == pytest.approx((table.argmax(1) == LABELS).mean())
        assert run.scores["macro_f1"].value == pytest.approx(f1_score(LABELS, table.argmax(1), average="macro"))
        assert run.scores["log_loss"].value == pytest.approx(log_loss(LABELS, table))
        assert run.primary.low < run.primary.value < run.primary.high
    for name in ("accuracy", "macro_f1", "log_loss"):
        gap = result.second.scores[name].value - result.first.scores[name].value
        interval = result.difference.scores[name]
        assert interval.value == pytest.approx(gap)
        assert interval.low < gap < interval.high
    assert result.difference.verdict == "worse"
    only_second = (POOR.argmax(1) == LABELS) & (GOOD.argmax(1) != LABELS)
    assert result.difference.fixed == only_second.sum()


def test_order_of_the_runs_only_turns_the_signs(stored: Any) -> None:
    one, other = stored("a", GOOD), stored("b", POOR)
    there, back = compare_runs(one, other).difference, compare_runs(other, one).difference
    assert (there.verdict, back.verdict) == ("worse", "improved")
    assert there.primary.value == -back.primary.value
    assert there.primary.low == pytest.approx(-back.primary.high)
    assert (there.fixed, there.broken, there.p_value) == (back.broken, back.fixed, back.p_value)


def test_runs_that_are_equally_good_are_not_called_different(stored: Any) -> None:
    difference = compare_runs(stored("a", GOOD), stored("b", ALIKE)).difference
    assert difference.verdict == "no evidence"
    assert difference.primary.low <= 0 <= difference.primary.high
    assert difference.p_value > 0.05


def test_same_predictions_differ_in_nothing(stored: Any) -> None:
    difference = compare_runs(stored("a", GOOD), stored("b", GOOD)).difference
    assert (difference.verdict, difference.p_value, difference.fixed, difference.broken) == ("no evidence", 1.0, 0, 0)
    assert difference.primary.low == difference.primary.high == 0


def test_one_run_twice_is_refused(stored: Any) -> None:
    with pytest.raises(InputError, match="both runs are a; name two"):
        compare_runs(stored("a", GOOD), stored("a", GOOD))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": slice(50)}, "200 and 50, 50 row numbers in common, other content"),
        ({"rows": np.arange(100, 300)}, "200 and 200, 100 row numbers in common, other content"),
        ({"rows": np.arange(ROWS)[::-1]}, "the same row numbers in another order, other content"),
        ({"labels": np.where(np.arange(ROWS) < 4, 1 - LABELS, LABELS)}, "4 of the common ones with another label"),
        ({}, "the same row numbers and labels, but other texts or class names"),
    ],
)
def test_other_test_rows_are_refused_with_how_they_differ(change: dict[str, Any], says: str, stored: Any) -> None:
    table, rows, labels = GOOD, change.get("rows"), change.get("labels", LABELS)
    if isinstance(rows, slice):
        table, rows, labels = GOOD[rows], np.arange(ROWS)[rows], LABELS[rows]
    elif rows is not None and rows[0] > rows[-1]:
        labels = LABELS[::-1]
    other = stored("b", table, fingerprint="other", rows=rows, labels=labels)
    with pytest.raises(InputError, match=f"different test rows: {re.escape(says)}") as refused:
        compare_runs(stored("a", GOOD), other)
    assert "\n" not in str(refused.value)


def test_row_numbers_and_labels_count_even_where_the_fingerprints_agree(stored: Any) -> None:
    with pytest.raises(InputError, match="different test rows: 200 and 200, 198 row numbers in common;"):
        compare_runs(stored("a", GOOD), stored("b", GOOD, rows=np.arange(2, ROWS + 2)))


def test_only_parameters_that_differ_are_shown(stored: Any) -> None:
    first = stored("a", GOOD, parameters={"seed": "0", "adapter.r": "8", "old": "x"})
    second = stored("b", ALIKE, parameters={"seed": "1", "adapter.r": "8", "new": "y"})
    result = compare_runs(first, second)
    assert result.parameters == {"seed": ("0", "1"), "old": ("x", None), "new": (None, "y")}
    text = comparison_text(result)
    assert re.search(r"\| seed +\| 0 +\| 1 +\|", text) and "adapter.r" not in text
    alike = second.model_copy(update={"parameters": first.parameters})
    assert "All parameters are the same." in comparison_text(compare_runs(first, alike))


@pytest.mark.parametrize(
    ("second", "words"),
    [(ALIKE, "NO EVIDENCE THAT THEY DIFFER"), (POOR, "THE SECOND IS WORSE")],
)
def test_text_says_the_verdict_first_and_fits_a_terminal(second: np.ndarray, words: str, stored: Any) -> None:
    lines = comparison_text(compare_runs(stored("a", GOOD), stored("b", second))).splitlines()
    assert lines[0] == words
    assert "run a" in lines[2] and "run b" in lines[3]
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) == 8 and max(map(len, tables)) <= 120


@pytest.fixture
def store(workplace: Path) -> Any:
    """`store(GOOD)`: the id of a finished run in this workplace's store, with predictions and tags."""

    def make(table: np.ndarray | None, *, leave_out: str = "", **values: Any) -> str:
        with tracked(values) as run_id:
            from mlflow import MlflowClient

            api = MlflowClient()
            tags = {
                "verdict": "better than every reference",
                "test_fingerprint": f"of {0 if table is None else len(table)}",
            }
            for name, value in tags.items():
                if name != leave_out:
                    api.set_tag(run_id, name, value)
            if table is not None:
                labels = LABELS[: len(table)]
                file = write_predictions(workplace / "tuned.parquet", table, labels=labels)
                api.log_artifact(run_id, file, "comparison")
        return run_id

    return make


def test_command_prints_the_comparison_of_two_stored_runs(store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = store(POOR, seed=0), store(GOOD, seed=1)
    assert main(["compare", first, second]) == DONE
    output, errors = capsys.readouterr()
    assert output.startswith("THE SECOND IS BETTER") and errors == ""
    assert first in output and second in output
    assert re.search(r"\| seed +\| 0 +\| 1 +\|", output)

    assert main(["compare", first, second, "--json"]) == DONE
    output, errors = capsys.readouterr()
    result = json.loads(output)
    assert errors == "" and output.count("\n") == 1
    assert result["difference"]["verdict"] == "improved"
    assert result["parameters"] == {"seed": ["0", "1"]}
    assert (result["first"]["run_id"], result["second"]["run_id"], result["rows"]) == (first, second, ROWS)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that `compare` refuses with."""
    assert main(["compare", *arguments]) == USER_MUST_CHANGE
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1
    return errors


def test_runs_on_other_rows_are_refused(store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    says = refused(capsys, store(GOOD), store(GOOD[:50]))
    assert "different test rows: 200 and 50, 50 row numbers in common, other content" in says


def test_run_that_cannot_be_compared_is_refused_with_the_reason(
    store: Any, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    good = store(GOOD)
    assert f"there is no run '{'0' * 32}' in sqlite:" in refused(capsys, good, "0" * 32)
    assert "there is no run 'what?' in" in refused(capsys, "what?", good)
    assert "both runs are" in refused(capsys, good, good)
    assert "is of an older version" in refused(capsys, good, store(GOOD, leave_out="test_fingerprint"))
    assert "was not made by peft-flow" in refused(capsys, store(GOOD, leave_out="verdict"), good)
    assert "comparison/tuned.parquet cannot be read" in refused(capsys, good, store(None))

    deleted = store(GOOD)
    mlflow.delete_run(deleted)
    assert f"run {deleted} was deleted" in refused(capsys, good, deleted)

    with pytest.raises(RuntimeError), tracked() as failed:
        raise RuntimeError
    assert f"run {failed} has not finished (FAILED)" in refused(capsys, good, failed)

    parent = store(GOOD)
    mlflow.MlflowClient().log_param(parent, "seeds", 3)
    assert f"run {parent} stands for 3 runs" in refused(capsys, parent, good)


def test_folder_without_runs_is_refused_and_stays_empty(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"there are no runs in {workplace / 'mlruns'}" in refused(capsys, "a", "b")
    assert list(workplace.iterdir()) == []


def test_server_that_does_not_answer_is_refused(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    says = refused(capsys, "a", "b")
    assert "MLFLOW_TRACKING_URI: http://127.0.0.1:9 does not answer" in says
