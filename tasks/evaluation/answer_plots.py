"""The pictures of the answers themselves, those that a task names in `pictures`; see tasks/scores/objective.py."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tasks.base.drawing import (
    AFTER,
    BEFORE,
    MOST_CLASSES,
    NAME_CHARACTERS,
    NEUTRAL,
    WIDTH,
    legend_below,
    new_figure,
    reach,
    short,
)
from tasks.base.records import Comparison, PreparedData
from tasks.evaluation.predictions import Predictions
from tasks.scores.classes import confusion
from tasks.scores.objective import objective
from tasks.scores.statistics import BINS, Reliability, binned, reliability, wilson_interval, without_temperature
from tasks.settings.rivals import TITLES

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Draw = Callable[[PreparedData, Predictions, Comparison], Figure]


def confusion_matrices(data: PreparedData, predictions: Predictions, result: Comparison) -> "Figure":
    """Both matrices side by side; shade is the share of the true class, so that rare classes show too."""
    import numpy as np

    counts = {name: confusion(predictions.labels, predictions.tables[name]) for name in ("baseline", "tuned")}
    mistakes = counts["tuned"].sum(0) + counts["tuned"].sum(1) - 2 * counts["tuned"].diagonal()
    chosen = np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CLASSES])
    classes, names = len(chosen), [short(data.label_names[i]) for i in chosen]
    title, numbers = "Test rows by true and predicted class", [str(i + 1) for i in chosen]
    if classes < len(data.label_names):
        title += f":\nthe {classes} of {len(data.label_names)} that the adapter mistakes most often"
    # where names have no room below, numbers stand for them
    roomy, crowded = sum(map(len, names)) <= NAME_CHARACTERS, classes > 10
    rows = names if roomy else [f"{name}  {number}" for name, number in zip(names, numbers, strict=True)]
    width = WIDTH + 2 * crowded
    side = (width - 0.8 - (0.07 if crowded else 0.09) * max(map(len, rows))) / 2
    figure, axes = new_figure(title, side + 2.05 + 0.2 * title.count("\n"), width, ncols=2, sharey=True)
    for axis, (name, table) in zip(axes, counts.items(), strict=True):
        share = (table / np.maximum(table.sum(1, keepdims=True), 1))[np.ix_(chosen, chosen)]
        shades = axis.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
        axis.grid(False)
        axis.set(title=TITLES[name], xlabel="predicted class")
        axis.set_xticks(range(classes), names if roomy else numbers, rotation=90 if crowded else 0)
        axis.set_yticks(range(classes), rows)
        axis.tick_params(labelsize=10 if crowded else 12)
        if not crowded:
            write_cells(axis, share, table if classes <= 4 else None)
    axes[0].set_ylabel("true class")
    figure.colorbar(shades, ax=axes, label="share of the true class (%)", location="bottom", shrink=0.5, aspect=40)
    return figure


def write_cells(axis: "Axes", share: "np.ndarray", counts: "np.ndarray | None") -> None:
    """Percentages, (classes, classes), into the cells of a matrix; the counts too where there is room."""
    import numpy as np

    for i, j in np.ndindex(share.shape):
        some = 0 < share[i, j] < 1
        text = f"{min(max(100 * share[i, j], 1), 99) if some else 100 * share[i, j]:.0f}"
        if counts is not None:
            text = f"{counts[i, j]:,}\n{text} %"
        color = "white" if share[i, j] > 0.55 else "black"
        axis.text(j, i, text, ha="center", va="center", color=color, fontsize=11)


def reliability_diagram(data: PreparedData, predictions: Predictions, result: Comparison) -> "Figure":
    """How often the adapter is right where it says that it is this sure, with and without its temperature."""
    title = f"Reliability of the adapter's probabilities on {result.rows:,} test rows"
    figure, (axis, strip) = new_figure(title, 6.4, nrows=2, sharex=True, height_ratios=(4, 1))
    temperature, after = result.calibration["temperature"], predictions.tables["tuned"]
    curves = [(f"temperature {temperature:.2f}", after, result.calibration["error_after"], AFTER, "o")]
    if temperature != 1:
        before = without_temperature(after, temperature)
        curves.insert(0, ("without temperature", before, result.calibration["error_before"], BEFORE, "s"))
    for name, table, error, color, marker in curves:
        label = f"{name}: expected calibration error {error:.3f}"
        draw_bins(axis, reliability(table, predictions.labels), result, color=color, marker=marker, label=label)
    least = 1 / after.shape[1]
    axis.plot([least, 1], [least, 1], color=NEUTRAL, linestyle="--", label="perfect calibration")
    axis.set(xlim=(int(least * BINS) / BINS - 0.01, 1.01), ylim=(-0.02, 1.02))
    axis.set_ylabel(f"accuracy, {100 * result.confidence:g} % interval")
    strip.hist([curve[1].max(1) for curve in curves], BINS, range=(0, 1), color=[curve[3] for curve in curves])
    strip.set(xlabel="probability of the predicted class", ylabel="rows")
    legend_below(figure, 1)
    return figure


def draw_bins(axis: "Axes", bins: Reliability, result: Comparison, **look: Any) -> None:
    """How often what was given each probability came true, with intervals."""
    right = (bins.accuracy * bins.rows).round().astype(int)
    ranges = [wilson_interval(*pair, result.confidence) for pair in zip(right, bins.rows, strict=True)]
    axis.errorbar(bins.confidence, bins.accuracy, reach(ranges), elinewidth=1, capsize=0, **look)


def label_scores(data: PreparedData, predictions: Predictions, result: Comparison) -> "Figure":
    """F1 of each label before and after; of many labels those that the adapter has worst."""
    import numpy as np

    task = objective(result.task)
    found = {name: task.by_label(predictions.tables[name], predictions.labels) for name in ("baseline", "tuned")}
    worst = np.sort(np.argsort(found["tuned"]["f1"], kind="stable")[:MOST_CLASSES])
    title = "F1 of each label"
    if len(worst) < len(data.label_names):
        title += f": the {len(worst)} of {len(data.label_names)} that the adapter has worst"
    figure, (axis,) = new_figure(title, 2 + 0.45 * len(worst))
    for y, i in enumerate(worst):
        before, after = (found[name]["f1"][i] for name in ("baseline", "tuned"))
        axis.plot([before, after], [y, y], color=NEUTRAL, linewidth=1.5)
        axis.plot(before, y, color=BEFORE, marker="D", linestyle="", label=TITLES["baseline"])
        axis.plot(after, y, color=AFTER, marker="o", markersize=9, linestyle="", label=TITLES["tuned"])
    rows = found["tuned"]["rows"]
    axis.set_yticks(range(len(worst)), [f"{short(data.label_names[i])} · {rows[i]:,} rows" for i in worst])
    axis.set(xlim=(-0.02, 1.02), ylim=(len(worst) - 0.5, -0.5))
    axis.set_xlabel(f"F1 on {result.rows:,} test rows, each label with its own threshold")
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)
    legend_below(figure, 2)
    return figure


def label_reliability(data: PreparedData, predictions: Predictions, result: Comparison) -> "Figure":
    """How often a text has a label to which the adapter gives this probability, over all labels."""
    title = f"Reliability of the adapter's probabilities: all labels of {result.rows:,} test rows"
    figure, (axis, strip) = new_figure(title, 6.4, nrows=2, sharex=True, height_ratios=(4, 1))
    probability = predictions.tables["tuned"][:, : predictions.labels.shape[1]].ravel()
    label = f"adapter: expected calibration error {result.calibration['error']:.3f}"
    draw_bins(axis, binned(probability, predictions.labels.ravel()), result, color=AFTER, marker="o", label=label)
    axis.plot([0, 1], [0, 1], color=NEUTRAL, linestyle="--", label="perfect calibration")
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.02, 1.02))
    axis.set_ylabel(f"share with the label, {100 * result.confidence:g} % interval")
    strip.hist(probability, BINS, range=(0, 1), color=AFTER)
    strip.set(xlabel="probability of the label", ylabel="labels")
    legend_below(figure, 1)
    return figure


MOST_POINTS = 3_000


def predicted_and_true(data: PreparedData, predictions: Predictions, result: Comparison) -> "Figure":
    """The number of each row against what foundation model and adapter said, the latter on one scale."""
    import numpy as np

    task, metric, labels = objective(result.task), objective(result.task).metrics[0], predictions.labels
    rows = np.arange(len(labels))[:: -(-len(labels) // MOST_POINTS)]
    said = {name: task.decide(predictions.tables[name])[rows] for name in ("baseline", "tuned")}
    values = np.concatenate([labels[rows], *said.values()])
    # equal numbers, such as stars, would lie on each other
    aside = np.random.default_rng(0).uniform(-0.5, 0.5, len(rows)) * jitter(labels)
    scale, ends = room(values), room(labels[rows] + aside)
    title = f"Predicted and true {short(data.label_names[0])}, {len(rows):,} test rows"
    figure, axes = new_figure(title, 4.9, ncols=2, sharex=True, sharey=True)
    for axis, (name, numbers), color in zip(axes, said.items(), (BEFORE, AFTER), strict=True):
        axis.plot(scale, scale, color=NEUTRAL, linestyle="--", label="exactly right", zorder=3)
        axis.plot(labels[rows] + aside, numbers, color=color, marker="o", markersize=4, alpha=0.35, linestyle="")
        score = metric.shown(result.rung(name).primary.value)
        axis.set(title=f"{TITLES[name]}: {metric.short_title} {score}", xlabel="true number", xlim=ends, ylim=scale)
    axes[0].set_ylabel("predicted number")
    legend_below(figure, 1)
    return figure


def room(values: "np.ndarray") -> tuple[float, float]:
    """The ends of an axis that has these values."""
    margin = 0.04 * float((values.max() - values.min()) or 1.0)
    return float(values.min()) - margin, float(values.max()) + margin


def jitter(labels: "np.ndarray") -> float:
    """Room between neighbouring numbers where there are few different ones."""
    import numpy as np

    steps = np.diff(np.unique(labels))
    return float(0.6 * steps.min()) if 0 < len(steps) < MOST_CLASSES else 0.0


def errors_by_size(data: PreparedData, predictions: Predictions, result: Comparison) -> "Figure":
    """The mean error, and how many intervals hold the true number, of the rows of each quarter by true number."""
    import numpy as np

    from tasks.scores.objectives.regression import COVERAGE

    task, labels = objective(result.task), predictions.labels
    half_width = result.calibration["half_width"]
    errors = {name: task.errors(predictions.tables[name], labels) for name in ("baseline", "tuned")}
    _, parts = task.parts(labels, data.label_names)
    figure, (size, held) = new_figure("Errors and intervals by true number", 4.9, ncols=2, sharex=True)
    places = np.arange(len(parts))
    for (name, error), color, aside, marker in zip(errors.items(), (BEFORE, AFTER), (-0.08, 0.08), "Do", strict=True):
        means = [error[inside].mean() for _, inside in parts]
        size.plot(places + aside, means, color=color, marker=marker, markersize=8, linestyle="", label=TITLES[name])
    within = [int((errors["tuned"][inside] <= half_width).sum()) for _, inside in parts]
    ranges = [
        wilson_interval(count, int(part.sum()), result.confidence)
        for count, (_, part) in zip(within, parts, strict=True)
    ]
    held.errorbar(
        places, [share.value for share in ranges], reach(ranges), color=AFTER, marker="o", markersize=8, linestyle=""
    )
    held.axhline(COVERAGE, color=NEUTRAL, linestyle="--")
    size.plot([], [], color=NEUTRAL, linestyle="--", label=f"promised: {100 * COVERAGE:g} %")
    size.set(ylim=(0, None), ylabel="mean absolute error (lower is better)", xlabel="true number, quarters of the rows")
    held.set(ylim=(min(0.5, min(share.low for share in ranges)), 1.02), xlabel="true number, quarters of the rows")
    held.set_ylabel(f"share of rows within ±{half_width:.3g}, {100 * result.confidence:g} % interval")
    size.set_xticks(places, [name for name, _ in parts])
    size.set_xlim(-0.5, len(parts) - 0.5)
    legend_below(figure, 3)
    return figure


PICTURES: "dict[str, Draw]" = {
    "confusion_matrices": confusion_matrices,
    "reliability": reliability_diagram,
    "labels": label_scores,
    "label_reliability": label_reliability,
    "predicted_and_true": predicted_and_true,
    "errors_by_size": errors_by_size,
}
