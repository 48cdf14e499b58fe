"""All classifiers on the same test rows to a ladder and a verdict, and the words for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task

from tasks import error_analysis
from tasks.base.records import (
    Calibration,
    Comparison,
    DataCheck,
    Evaluation,
    PreparedData,
    Rung,
    Scores,
    TrainedAdapter,
)
from tasks.base.verdict import capital
from tasks.base.words import bounds, counted, format_p, markdown_table, plain, short_p, shown, shown_share
from tasks.base.work import RunFolder
from tasks.cautions import find_cautions
from tasks.evaluation import Predictions, paired_predictions
from tasks.scores.metrics import PROBABILITY_FLOOR
from tasks.scores.statistics import (
    bootstrap,
    calibration_error,
    difference,
    score_intervals,
    wilson_interval,
    without_temperature,
)
from tasks.settings.config import RunConfig
from tasks.settings.rivals import NAMES, SHORT_TITLES, TITLES

if TYPE_CHECKING:
    import numpy as np


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

    run = RunFolder(work)
    predictions = paired_predictions({name: evaluation.predictions for name, evaluation in evaluations.items()})
    result = judge(config, data, check, predictions, trained, run.comparison)
    write_report(config, data, predictions, trained, result)
    plots.draw_all(run.plots, data, check, predictions, result, trained)
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
    result = Comparison(
        folder=str(folder),
        rows=len(predictions.labels),
        confidence=confidence,
        detectable=check.detectable,
        ladder=ladder(predictions, config.evaluation.bootstrap_samples, confidence, config.seed),
        leaked=int(leaked.sum()),
        accuracy_without_leaked={name: float(rows[~leaked].mean()) for name, rows in right.items() if some_leaked},
        calibration=measure_calibration(predictions, trained.temperature),
        slices=error_analysis.find_slices(data, test, predictions, confidence),
        untrained_head=bool(trained.fresh_modules),
    )
    return result.model_copy(update={"cautions": find_cautions(result, data, predictions)})


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
    return max(0.0, float(-np.log(np.maximum(given, PROBABILITY_FLOOR)).mean()))


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
    """What the verdict rests on: the adapter and the reference that it is about."""
    lead, percent = result.lead(result.against), f"{100 * config.evaluation.confidence:g} %"
    ours, theirs = (shown_share(result.rung(name).scores.accuracy) for name in ("tuned", result.against))
    strongest = ", the strongest reference" if result.against == result.rivals[0] else ""
    return (
        f"Accuracy on {counted(result.rows, 'test row')} is {ours}: {shown(lead.accuracy, f'{percent} interval ')} "
        f"against {NAMES[result.against]} with {theirs}{strongest} (exact McNemar p {format_p(lead.p_value)})."
    )


def step_sentence(result: Comparison) -> str:
    """How far it is from the foundation model, which with an untrained head is from chance."""
    gain, head = result.gain, " with an untrained head" if result.untrained_head else ""
    before, after = (shown_share(result.rung(name).scores.accuracy) for name in ("baseline", "tuned"))
    return (
        f"From the foundation model{head} accuracy went from {before} to {after}: {shown(gain.accuracy)}. "
        f"The adapter fixed {counted(gain.fixed, 'row')} and broke {gain.broken:,} "
        f"(exact McNemar p {format_p(gain.p_value)})."
    )


def caution(cautions: Sequence[str]) -> str:
    """What a reader of the verdict must know besides, in one sentence; empty where there is nothing."""
    return f"Caution: {'; '.join(cautions)}." if cautions else ""


def description(result: Comparison) -> str:
    """The result in five lines of markdown, the verdict first, for the page of the run.

    They are short: MLflow shows about 90 characters of five lines, and hides the rest.
    """
    calibration, lead, gain = result.calibration, result.lead(result.against).accuracy, result.gain
    before, after = (shown_share(result.rung(name).scores.accuracy) for name in ("baseline", "tuned"))
    about = f" against {SHORT_TITLES[result.against]}" if result.verdict.startswith("better") else ""
    lines = [
        f"**{capital(result.verdict)}**: accuracy {after}, {shown(lead)}{about}",
        "Ladder: "
        + ", ".join(f"{SHORT_TITLES[rung.name]} {shown_share(rung.scores.accuracy)}" for rung in result.ladder),
        f"From the foundation model: {before} to {after}, {shown(gain.accuracy)}, p {format_p(gain.p_value)}",
        f"Data: {leak_sentence(result, ['tuned'])}; {detectable_sentence(result)}",
        f"Calibration error {calibration.error_before:.3f} to {calibration.error_after:.3f}; weakest slice: "
        f"{plain(weakest_slice(result))}",
    ]
    if result.cautions:
        lines[1:] = [plain(caution(result.cautions)), *lines[1:3], "; ".join(lines[3:])]
    return "  \n".join(lines)  # two spaces: a line break in markdown


def leak_sentence(result: Comparison, names: Sequence[str] = tuple(TITLES)) -> str:
    """How many test rows are in train, and the accuracy without them of those of `names` that were measured."""
    if not result.leaked:
        return f"none of {counted(result.rows, 'test row')} is in train"
    without = result.accuracy_without_leaked
    named = ", ".join(
        f"{TITLES[rung.name]} {shown_share(without[rung.name])}"
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
    return f"{slice_title(part.kind, part.name)}, {shown_share(part.accuracy.value)} of {counted(part.rows, 'row')}"


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
        scores, gain = (shown_share(rung.scores.macro_f1), f"{rung.scores.log_loss:.3f}"), rung.adapter_gain
        lead = ("", "", "")
        if gain:
            lead = (shown(gain.accuracy, middle=", "), short_p(gain.p_value), gain.verdict)
        rows.append((TITLES[rung.name], bounds(rung.accuracy), *scores, *lead))
    header = ("classifier", f"accuracy ({percent})", "F1", "loss", "adapter minus it", "p", "verdict")
    return (
        f"{markdown_table(header, rows)}\n\nF1: macro-F1; loss: log loss in nats; adapter minus it: accuracy, with its "
        f"{percent} interval; p: exact McNemar."
    )
