"""Two prediction files to a verdict."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from tasks.comparison import (
    Predictions,
    bootstrap_intervals,
    class_report,
    class_table,
    confusion,
    markdown_table,
    mcnemar_p_value,
    paired_predictions,
    verdict,
)
from tasks.metrics import score
from tasks.records import Interval


def classifier(labels: np.ndarray, accuracy: float, classes: int, seed: int) -> np.ndarray:
    """Probabilities of a made-up classifier that is right about as often as asked."""
    generator = np.random.default_rng(seed)
    right = generator.random(len(labels)) < accuracy
    said = np.where(right, labels, (labels + generator.integers(1, classes, len(labels))) % classes)
    table = generator.random((len(labels), classes)) * 0.5
    table[np.arange(len(labels)), said] += 1
    return table / table.sum(1, keepdims=True)


@pytest.fixture
def predictions() -> Predictions:
    labels = np.random.default_rng(0).integers(0, 3, 400)
    return Predictions(labels, classifier(labels, 0.6, 3, 1), classifier(labels, 0.8, 3, 2))


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (9, 3), (40, 41), (120, 30)])
def test_mcnemar_is_that_of_statsmodels(fixed: int, broken: int) -> None:
    expected = mcnemar([[50, fixed], [broken, 50]], exact=True).pvalue if fixed + broken else 1.0
    assert mcnemar_p_value(fixed, broken) == pytest.approx(min(expected, 1.0), abs=1e-12)


def test_mcnemar_does_not_care_which_is_called_baseline() -> None:
    assert mcnemar_p_value(31, 12) == pytest.approx(mcnemar_p_value(12, 31))


def test_differences_are_those_of_the_scores(predictions: Predictions) -> None:
    intervals = bootstrap_intervals(predictions, 200, 0.95, seed=0)
    old, new = score(predictions.baseline, predictions.labels), score(predictions.tuned, predictions.labels)
    for name, interval in intervals.items():
        assert interval.value == pytest.approx(getattr(new, name) - getattr(old, name), abs=1e-12)
        assert interval.low < interval.value < interval.high


def test_interval_is_that_of_scipys_paired_bootstrap(predictions: Predictions) -> None:
    labels, old, new = predictions
    gain = (new.argmax(1) == labels).astype(float) - (old.argmax(1) == labels)
    theirs = stats.bootstrap(
        (gain,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    ours = bootstrap_intervals(predictions, 20_000, 0.95, seed=0)["accuracy"]
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_resampled_macro_f1_is_that_of_the_resampled_rows(predictions: Predictions) -> None:
    """One resample, done by hand with sklearn's F1 through `score`, against the sums."""
    from tasks.comparison import per_row, scores_from_sums

    rows = len(predictions.labels)
    weights = np.random.default_rng(3).multinomial(rows, np.full(rows, 1 / rows))
    drawn = np.repeat(np.arange(rows), weights)
    ours = scores_from_sums(weights[None] @ per_row(predictions.tuned, predictions.labels), rows, 3)[0]
    expected = score(predictions.tuned[drawn], predictions.labels[drawn])
    assert ours == pytest.approx([expected.accuracy, expected.macro_f1, expected.log_loss], abs=1e-9)


def test_same_seed_gives_the_same_interval_in_any_chunks(
    predictions: Predictions, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bootstrap_intervals(predictions, 500, 0.9, seed=7)
    monkeypatch.setattr("tasks.comparison.CHUNK_CELLS", 400 * 7)
    chunked = bootstrap_intervals(predictions, 500, 0.9, seed=7)
    for name, interval in whole.items():
        assert chunked[name].model_dump() == pytest.approx(interval.model_dump(), abs=1e-12)
    assert bootstrap_intervals(predictions, 500, 0.9, seed=8) != whole


def test_more_confidence_gives_wider_intervals(predictions: Predictions) -> None:
    narrow, wide = (bootstrap_intervals(predictions, 2000, level, seed=0)["accuracy"] for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_verdict_needs_interval_and_test_to_agree() -> None:
    better, worse, unclear = (Interval(value=v, low=v - 0.02, high=v + 0.02) for v in (0.1, -0.1, 0.01))
    assert verdict(better, 0.001, 0.95) == "improved"
    assert verdict(worse, 0.001, 0.95) == "worse"
    assert verdict(unclear, 0.001, 0.95) == "no evidence"
    assert verdict(better, 0.2, 0.95) == "no evidence"
    assert verdict(worse, 0.2, 0.95) == "no evidence"


def test_equally_good_classifiers_are_rarely_told_apart() -> None:
    """The verdict `improved` or `worse` on 400 pairs without a difference: at most 5 %, and the noise of 400."""
    wrong = 0
    for trial in range(400):
        labels = np.random.default_rng(trial).integers(0, 2, 200)
        pair = Predictions(
            labels, classifier(labels, 0.75, 2, 10_000 + trial), classifier(labels, 0.75, 2, 20_000 + trial)
        )
        right = [(table.argmax(1) == labels) for table in pair[1:]]
        p_value = mcnemar_p_value(int((~right[0] & right[1]).sum()), int((right[0] & ~right[1]).sum()))
        wrong += verdict(bootstrap_intervals(pair, 200, 0.95, trial)["accuracy"], p_value, 0.95) != "no evidence"
    assert wrong <= 400 * 0.05 + 2 * (400 * 0.05 * 0.95) ** 0.5


def test_clearly_better_classifier_is_told(predictions: Predictions) -> None:
    right = [(table.argmax(1) == predictions.labels) for table in predictions[1:]]
    p_value = mcnemar_p_value(int((~right[0] & right[1]).sum()), int((right[0] & ~right[1]).sum()))
    assert verdict(bootstrap_intervals(predictions, 500, 0.95, 0)["accuracy"], p_value, 0.95) == "improved"


def test_files_about_different_rows_are_not_compared(tmp_path: Path) -> None:
    def write(name: str, rows: list[int], labels: list[int]) -> str:
        path = tmp_path / name
        table = [[0.5, 0.5]] * len(rows)
        pd.DataFrame({"row": rows, "label": labels, "probabilities": table}).to_parquet(path)
        return str(path)

    one = write("one", [0, 1, 2], [0, 1, 0])
    assert paired_predictions(one, write("same", [0, 1, 2], [0, 1, 0])).labels.tolist() == [0, 1, 0]
    for other in (write("rows", [0, 1, 3], [0, 1, 0]), write("labels", [0, 1, 2], [0, 1, 1]), write("few", [0], [0])):
        with pytest.raises(ValueError, match="different test rows"):
            paired_predictions(one, other)


def test_tables_by_class_count_every_row(predictions: Predictions) -> None:
    labels, _, tuned = predictions
    counts = confusion(labels, tuned)
    assert counts.sum() == len(labels)
    table = class_table(labels, tuned)
    assert table[:, 1] == pytest.approx(np.diag(counts) / counts.sum(1))
    assert table[:, 3].tolist() == np.bincount(labels).tolist()


def test_class_report_is_the_tables_for_programs(predictions: Predictions) -> None:
    report = json.loads(json.dumps(class_report(("a", "b", "c"), predictions)))
    assert report["label_names"] == ["a", "b", "c"]
    for name, table in (("baseline", predictions.baseline), ("tuned", predictions.tuned)):
        counts = np.array(report[name]["confusion"])
        assert counts.sum(1).tolist() == report[name]["rows"] == np.bincount(predictions.labels).tolist()
        assert report[name]["recall"] == pytest.approx(np.diag(counts) / counts.sum(1))
        assert report[name]["precision"] == pytest.approx(np.diag(counts) / counts.sum(0))
        assert np.mean(report[name]["f1"]) == pytest.approx(score(table, predictions.labels).macro_f1)


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
