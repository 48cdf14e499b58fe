"""All classifiers on the same test rows to a ladder and a verdict, and the words for them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task

from tasks import error_analysis
from tasks.config import RunConfig
from tasks.duplicates import counted
from tasks.evaluation import Predictions, paired_predictions
from tasks.metrics import PROBABILITY_FLOOR
from tasks.records import (
    Calibration,
    Comparison,
    DataCheck,
    Evaluation,
    Interval,
    PreparedData,
    Rung,
    Scores,
    TrainedAdapter,
)
from tasks.statistics import (
    bootstrap,
    calibration_error,
    difference,
    score_intervals,
    wilson_interval,
    without_temperature,
)

if TYPE_CHECKING:
    import numpy as np

TITLES = {
    "tuned": "adapter",
    "baseline": "foundation model",
    "majority": "majority class",
    "tfidf": "TF-IDF + logistic regression",
    "probe": "linear probe",
    "champion": "champion",
}
"""What people read for each rung of the ladder."""

SHORT_TITLES = TITLES | {"baseline": "foundation", "majority": "majority", "tfidf": "TF-IDF", "probe": "probe"}


@task(name="compare", task_run_name="compare")
def compare(
    config: RunConfig,
    data: PreparedData,
    check: DataCheck,
    evaluations: Mapping[str, Evaluation],
    trained: TrainedAdapter,
    work: str,
) -> Comparison:
    """The verdict, with its page and tables under `work/comparison` and its pictures under `work/plots`.

    `evaluations` holds `tuned`, `baseline`, and the references by name.
    """
    from tasks import plots
    from tasks.report import write_report

    folder = Path(work) / "comparison"
    predictions = paired_predictions({name: evaluation.predictions for name, evaluation in evaluations.items()})
    result = judge(config, data, check, predictions, trained, folder)
    write_report(config, data, predictions, trained, result)
    plots.draw_all(folder.parent / "plots", data, check, predictions, result, trained)
    return result


def judge(
    config: RunConfig,
    data: PreparedData,
    check: DataCheck,
    predictions: Predictions,
    trained: TrainedAdapter,
    folder: Path,
) -> Comparison:
    """What the predictions say; nothing is written. The test rows are read from `data`."""
    import numpy as np

    confidence = config.evaluation.confidence
    leaked = np.isin(predictions.rows, check.leaked["test"])
    right = {name: table.argmax(1) == predictions.labels for name, table in predictions.tables.items()}
    some_leaked = leaked.any() and not leaked.all()
    test = error_analysis.read_test_rows(data, predictions)
    return Comparison(
        folder=str(folder),
        rows=len(predictions.labels),
        confidence=confidence,
        detectable=check.detectable,
        ladder=ladder(predictions, config.evaluation.bootstrap_samples, confidence, config.seed),
        leaked=int(leaked.sum()),
        accuracy_without_leaked={name: float(rows[~leaked].mean()) for name, rows in right.items() if some_leaked},
        calibration=measure_calibration(predictions, trained.temperature),
        slices=error_analysis.find_slices(data, test, predictions, confidence),
    )


def ladder(predictions: Predictions, samples: int, confidence: float, seed: int) -> tuple[Rung, ...]:
    """Every classifier, best accuracy first, and by how much the adapter is better on the same resampled rows."""
    labels, names, tables = predictions.labels, list(predictions.tables), list(predictions.tables.values())
    resampled, rungs = bootstrap(labels, tables, samples, seed), []
    for i, name in enumerate(names):
        right = int((tables[i].argmax(1) == labels).sum())
        intervals = score_intervals(resampled, i, confidence)
        pair = (names.index("tuned"), i)
        rungs.append(
            Rung(
                name=name,
                scores=Scores(**{score: interval.value for score, interval in intervals.items()}),
                **{**intervals, "accuracy": wilson_interval(right, len(labels), confidence)},
                adapter_gain=None if name == "tuned" else difference(labels, tables, resampled, pair, confidence),
            )
        )
    return tuple(sorted(rungs, key=lambda rung: (-rung.scores.accuracy, rung.scores.log_loss)))


def measure_calibration(predictions: Predictions, temperature: float) -> Calibration:
    """The adapter's probabilities on the test rows, before and after its logits are divided by `temperature`."""
    labels, after = predictions.labels, predictions.tables["tuned"]
    before = without_temperature(after, temperature)
    return Calibration(
        temperature=temperature,
        error_before=calibration_error(before, labels),
        error_after=calibration_error(after, labels),
        log_loss_before=log_loss(before, labels),
        log_loss_after=log_loss(after, labels),
    )


def log_loss(table: "np.ndarray", labels: "np.ndarray") -> float:
    """Mean negative log probability of the true class, in nats."""
    import numpy as np

    given = table[np.arange(len(labels)), labels].astype(float)
    return float(-np.log(np.maximum(given, PROBABILITY_FLOOR)).mean())


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


def headline(config: RunConfig, result: Comparison) -> str:
    """The result in a few words, with what it rests on: against the foundation model and the strongest reference."""
    gain, percent = result.gain, f"{100 * config.evaluation.confidence:g} %"
    before, after = (result.rung(name).scores.accuracy for name in ("baseline", "tuned"))
    told = (
        f"Accuracy on {counted(result.rows, 'test row')} went from {before:.3f} to {after:.3f}: "
        f"{shown(gain.accuracy, f'{percent} interval ')}. "
        f"The adapter fixed {counted(gain.fixed, 'row')} and broke {gain.broken:,} "
        f"(exact McNemar p {format_p(gain.p_value)})."
    )
    reference = strongest_reference(result)
    if reference and (lead := reference.adapter_gain):
        title = TITLES[reference.name]
        told += f" Against {title}, the strongest reference, the difference is {shown(lead.accuracy)}: {lead.verdict}."
    return told


def description(result: Comparison) -> str:
    """The result in five lines of markdown, the verdict first, for the page of the run.

    They are short: MLflow shows about 90 characters of five lines, and hides the rest.
    """
    gain, calibration, reference = result.gain, result.calibration, strongest_reference(result)
    before, after = (result.rung(name).scores.accuracy for name in ("baseline", "tuned"))
    against = "none was measured"
    if reference and (lead := reference.adapter_gain):
        against = f"{SHORT_TITLES[reference.name]}, {shown(lead.accuracy)}, p {format_p(lead.p_value)}, {lead.verdict}"
    lines = (
        f"**{result.verdict.capitalize()}**: accuracy {before:.3f} to {after:.3f}, {shown(gain.accuracy)}, McNemar "
        f"p {format_p(gain.p_value)}",
        "Ladder: " + ", ".join(f"{SHORT_TITLES[rung.name]} {rung.scores.accuracy:.3f}" for rung in result.ladder),
        f"Strongest reference: {against}",
        f"Data: {leak_sentence(result, ['tuned'])}; {detectable_sentence(result)}",
        f"Calibration error {calibration.error_before:.3f} to {calibration.error_after:.3f}; weakest slice: "
        f"{plain(weakest_slice(result))}",
    )
    return "  \n".join(lines)  # two spaces: a line break in markdown


def strongest_reference(result: Comparison) -> Rung | None:
    """The best of the classifiers that are neither the adapter nor its foundation model."""
    return next((rung for rung in result.ladder if rung.name not in ("tuned", "baseline")), None)


def leak_sentence(result: Comparison, names: Sequence[str] = tuple(TITLES)) -> str:
    """How many test rows are in train, and the accuracy without them of those of `names` that were measured."""
    if not result.leaked:
        return f"none of {counted(result.rows, 'test row')} is in train"
    without = result.accuracy_without_leaked
    named = ", ".join(
        f"{TITLES[rung.name]} {without[rung.name]:.3f}"
        for rung in result.ladder
        if rung.name in names and rung.name in without
    )
    verb, these = ("is", "it") if result.leaked == 1 else ("are", "them")
    without_these = f"; accuracy without {these}: {named}" if named else ""
    return f"{result.leaked:,} of {counted(result.rows, 'test row')} {verb} in train{without_these}"


def detectable_sentence(result: Comparison) -> str:
    if result.detectable is None:
        return "too few to detect any difference"
    return f"detectable difference {result.detectable:.3f}"


def weakest_slice(result: Comparison) -> str:
    """The slice that the adapter has the fewest rows right of, in words; small ones do not count."""
    large = [part for part in result.slices if not part.small]
    if not large:
        return "none has enough rows"
    part = min(large, key=lambda part: part.accuracy.value)
    return f"{slice_title(part.kind, part.name)}, {part.accuracy.value:.3f} of {counted(part.rows, 'row')}"


def slice_title(kind: str, name: str) -> str:
    """`7 to 10 tokens`, `with negation`, `class good`, `outlet web`."""
    if kind in ("negation", "truncated"):
        return name
    return f"{name} tokens" if kind == "tokens" else f"{kind} {name}"


def ladder_table(result: Comparison) -> str:
    """Every classifier, best accuracy first, in a table under 120 characters wide, and what its columns are."""
    percent = f"{100 * result.confidence:g} %"
    rows = []
    for rung in result.ladder:
        scores, gain = (f"{rung.scores.macro_f1:.3f}", f"{rung.scores.log_loss:.3f}"), rung.adapter_gain
        lead = ("", "", "")
        if gain:
            interval = f"({gain.accuracy.low:+.3f}, {gain.accuracy.high:+.3f})"
            lead = (f"{gain.accuracy.value:+.3f} {interval}", short_p(gain.p_value), gain.verdict)
        rows.append((TITLES[rung.name], bounds(rung.accuracy), *scores, *lead))
    header = ("classifier", f"accuracy ({percent})", "F1", "loss", "adapter minus it", "p", "verdict")
    return (
        f"{markdown_table(header, rows)}\n\nF1: macro-F1; loss: log loss in nats; adapter minus it: accuracy, with its "
        f"{percent} interval; p: exact McNemar."
    )


def bounds(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f}-{interval.high:.3f})"


def shown(gain: Interval, title: str = "") -> str:
    return f"{gain.value:+.3f} ({title}{gain.low:+.3f} to {gain.high:+.3f})"


def format_p(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def short_p(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def plain(text: str) -> str:
    """`text` on one line, so that markdown shows it letter by letter: one of the data can be a link or HTML."""
    return re.sub(r"([\\`*_~\[\]<>&])", r"\\\1", " ".join(text.split()))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Padded, so that it reads as well in a terminal; cells cannot break out of it."""
    clean = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in clean) for i in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in clean]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)
