"""Two prediction files on the same rows to a verdict: pure statistics, and the tables that show it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect import task

from tasks.config import RunConfig
from tasks.evaluation import measure_majority, read_predictions
from tasks.metrics import PROBABILITY_FLOOR
from tasks.records import (
    Comparison,
    Evaluation,
    Interval,
    PreparedData,
    Scores,
    TrainedAdapter,
    Verdict,
    write_text,
)

if TYPE_CHECKING:
    import numpy as np

CHUNK_CELLS = 4_000_000
"""Resampling weights held at once: 32 MB, whatever the number of rows and samples."""


class Predictions(NamedTuple):
    """What two classifiers said about the same rows."""

    labels: "np.ndarray"
    """(rows,)"""
    baseline: "np.ndarray"
    """Probabilities, (rows, classes)."""
    tuned: "np.ndarray"


@task(name="compare", task_run_name="compare")
def compare(
    config: RunConfig,
    data: PreparedData,
    baseline: Evaluation,
    tuned: Evaluation,
    trained: TrainedAdapter,
    work: str,
) -> Comparison:
    """The verdict, with its tables and pictures under `work/comparison`."""
    from tasks import plots

    folder = Path(work) / "comparison"
    folder.mkdir(parents=True, exist_ok=True)
    predictions = paired_predictions(baseline.predictions, tuned.predictions)
    result = judge(config, data, predictions, (baseline.scores, tuned.scores), folder)
    result.write(folder / "comparison.json")
    write_text(folder / "classes.json", json.dumps(class_report(data.label_names, predictions), indent=1) + "\n")
    write_text(folder / "comparison.md", comparison_markdown(config, data, result, predictions))
    plots.draw_all(folder.parent / "plots", data, predictions, result, trained)
    return result


def paired_predictions(baseline: str, tuned: str) -> Predictions:
    """Both files' probabilities; raises ValueError unless they are about the same rows with the same labels."""
    import numpy as np

    rows, labels, before = read_predictions(baseline)
    other_rows, other_labels, after = read_predictions(tuned)
    if not (np.array_equal(rows, other_rows) and np.array_equal(labels, other_labels)):
        raise ValueError("the two prediction files are about different test rows and cannot be compared")
    return Predictions(labels, before, after)


def judge(
    config: RunConfig,
    data: PreparedData,
    predictions: Predictions,
    scores: tuple[Scores, Scores],
    folder: Path,
) -> Comparison:
    settings = config.evaluation
    labels, before, after = predictions
    was_right, is_right = before.argmax(1) == labels, after.argmax(1) == labels
    fixed, broken = int((~was_right & is_right).sum()), int((was_right & ~is_right).sum())
    p_value = mcnemar_p_value(fixed, broken)
    intervals = bootstrap_intervals(predictions, settings.bootstrap_samples, settings.confidence, config.seed)
    references = {"majority": measure_majority(data, labels)} if "majority" in settings.references else {}
    return Comparison(
        folder=str(folder),
        rows=len(labels),
        verdict=verdict(intervals["accuracy"], p_value, settings.confidence),
        baseline=scores[0],
        tuned=scores[1],
        **intervals,
        p_value=p_value,
        fixed=fixed,
        broken=broken,
        references=references,
    )


def verdict(accuracy: Interval, p_value: float, confidence: float) -> Verdict:
    """`improved` or `worse` only where the interval leaves out 0 and the exact test agrees."""
    if p_value >= 1 - confidence:
        return "no evidence"
    return "improved" if accuracy.low > 0 else "worse" if accuracy.high < 0 else "no evidence"


def mcnemar_p_value(fixed: int, broken: int) -> float:
    """Exact two-sided McNemar test: of the rows on which two classifiers disagree, half favour each by chance.

    McNemar, Psychometrika 12 (1947); the exact binomial form as in Agresti, Categorical Data Analysis, 10.1.
    """
    from scipy.stats import binomtest

    return float(binomtest(fixed, fixed + broken, 0.5).pvalue) if fixed + broken else 1.0


def bootstrap_intervals(predictions: Predictions, samples: int, confidence: float, seed: int) -> dict[str, Interval]:
    """Percentile intervals of tuned minus baseline for accuracy, macro-F1 and log loss.

    The rows are resampled in pairs, so that what is hard for both cancels out.
    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    import numpy as np

    labels, before, after = predictions
    rows, classes = before.shape
    generator = np.random.default_rng(seed)
    quantities = np.concatenate([per_row(table, labels) for table in (before, after)], axis=1)

    def differences(weights: "np.ndarray") -> "np.ndarray":
        sums = weights @ quantities
        old, new = np.split(sums, 2, axis=1)
        return scores_from_sums(new, rows, classes) - scores_from_sums(old, rows, classes)

    drawn = []
    for start in range(0, samples, size := max(1, CHUNK_CELLS // rows)):
        count = min(size, samples - start)
        drawn.append(differences(generator.multinomial(rows, np.full(rows, 1 / rows), count).astype(float)))
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(np.concatenate(drawn), [tail, 100 - tail], axis=0)
    value = differences(np.ones((1, rows)))[0]
    names = ("accuracy", "macro_f1", "log_loss")
    return {
        name: Interval(value=float(value[i]), low=float(low[i]), high=float(high[i])) for i, name in enumerate(names)
    }


def per_row(table: "np.ndarray", labels: "np.ndarray") -> "np.ndarray":
    """What each row adds to the sums behind the scores, (rows, 2 + 3 * classes).

    Right or not; its loss in nats; then for each class: right, predicted, labelled.
    """
    import numpy as np

    classes = table.shape[1]
    predicted, actual = np.eye(classes)[table.argmax(1)], np.eye(classes)[labels]
    loss = -np.log(np.maximum(table[np.arange(len(table)), labels], PROBABILITY_FLOOR))
    right = predicted * actual
    return np.concatenate([right.sum(1, keepdims=True), loss[:, None], right, predicted, actual], axis=1)


def scores_from_sums(sums: "np.ndarray", rows: int, classes: int) -> "np.ndarray":
    """Accuracy, macro-F1 and log loss, (samples, 3), from sums of `per_row`."""
    import numpy as np

    right, predicted, actual = np.split(sums[:, 2:], 3, axis=1)
    f1 = 2 * right / np.maximum(predicted + actual, 1)
    return np.stack([sums[:, 0] / rows, f1.mean(1), sums[:, 1] / rows], axis=1)


def confusion(labels: "np.ndarray", table: "np.ndarray") -> "np.ndarray":
    """Counts, (actual, predicted)."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, table.argmax(1), labels=range(table.shape[1]))


def class_table(labels: "np.ndarray", table: "np.ndarray") -> "np.ndarray":
    """Precision, recall, F1 and rows of each class, (classes, 4)."""
    import numpy as np
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(labels, table.argmax(1), labels=range(table.shape[1]), zero_division=0)
    return np.stack(columns, axis=1)


def class_report(names: Sequence[str], predictions: Predictions) -> dict[str, Any]:
    """Both classifiers by class, for programs: lists in the order of `label_names`, confusion as (true, predicted)."""
    report: dict[str, Any] = {"label_names": list(names)}
    for name, table in (("baseline", predictions.baseline), ("tuned", predictions.tuned)):
        precision, recall, f1, rows = class_table(predictions.labels, table).T.tolist()
        report[name] = {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "rows": [int(count) for count in rows],
            "confusion": confusion(predictions.labels, table).tolist(),
        }
    return report


def comparison_markdown(config: RunConfig, data: PreparedData, result: Comparison, predictions: Predictions) -> str:
    """The whole comparison as a page: Prefect's artifact, MLflow's file, and the heart of the model card."""
    parts = [
        f"# {result.verdict.capitalize()}: {config.run_name()}",
        headline(config, result),
        score_table(config, result),
        *(f"*{note[:1].upper()}{note[1:]}.*" for note in data.notes),
        "## By class",
        markdown_table(
            (
                "class",
                "rows",
                *(f"{n} {s}" for s in ("before", "after") for n in ("precision", "recall", "F1")),
            ),
            class_rows(data.label_names, predictions),
        ),
        *confusion_section(data.label_names, predictions),
    ]
    return "\n\n".join(parts) + "\n"


def headline(config: RunConfig, result: Comparison) -> str:
    """The result in one sentence, with what it rests on."""
    delta, percent = result.accuracy, f"{100 * config.evaluation.confidence:g} %"
    return (
        f"Accuracy on {result.rows:,} test rows went from {result.baseline.accuracy:.3f} to "
        f"{result.tuned.accuracy:.3f}: {delta.value:+.3f} ({percent} interval {delta.low:+.3f} to {delta.high:+.3f}). "
        f"The adapter fixed {result.fixed} row{'s'[: result.fixed != 1]} "
        f"and broke {result.broken} (exact McNemar p {format_p(result.p_value)})."
    )


def format_p(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def score_rows(result: Comparison) -> list[tuple[str, Scores]]:
    """Every classifier of the run with its scores, best accuracy first."""
    named = {"adapter": result.tuned, "foundation model": result.baseline, **result.references}
    return sorted(named.items(), key=lambda item: -item[1].accuracy)


def score_table(config: RunConfig, result: Comparison) -> str:
    differences = [result.accuracy, result.macro_f1, result.log_loss]
    percent = f"{100 * config.evaluation.confidence:g} %"
    return markdown_table(
        ("classifier", "accuracy", "macro-F1", "log loss (nats)"),
        [
            *((name, *(f"{v:.3f}" for v in (s.accuracy, s.macro_f1, s.log_loss))) for name, s in score_rows(result)),
            (
                f"difference, {percent} interval",
                *(f"{d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f})" for d in differences),
            ),
        ],
    )


def class_rows(names: Sequence[str], predictions: Predictions) -> list[tuple[str, ...]]:
    before, after = (class_table(predictions.labels, table) for table in predictions[1:])
    return [
        (name, f"{int(before[i, 3])}", *(f"{v:.3f}" for v in (*before[i, :3], *after[i, :3])))
        for i, name in enumerate(names)
    ]


MOST_CLASSES_IN_A_MATRIX = 12


def confusion_section(names: Sequence[str], predictions: Predictions) -> list[str]:
    if len(names) > MOST_CLASSES_IN_A_MATRIX:
        return []
    parts = ["## Confusion matrices", "Rows are the true class, columns the predicted one."]
    for title, table in (("before", predictions.baseline), ("after", predictions.tuned)):
        counts = confusion(predictions.labels, table)
        rows = [(name, *(str(count) for count in counts[i])) for i, name in enumerate(names)]
        parts.append(markdown_table((title, *names), rows))
    return parts


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Padded, so that it reads as well in a terminal; cells cannot break out of it."""
    clean = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in clean) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in clean]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)
