"""The pictures of a run, in one look: colour-blind safe, readable at MLflow's preview size."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from tasks.base.drawing import (
    AFTER,
    BEFORE,
    MOST_CLASSES,
    MOST_SLICES,
    NAME_CHARACTERS,
    NEUTRAL,
    STYLE,
    THIRD,
    WIDTH,
    legend_below,
    new_figure,
    reach,
    short,
)
from tasks.base.records import Comparison, DataCheck, Interval, Point, PreparedData, TrainedAdapter
from tasks.base.verdict import capital
from tasks.base.words import ends, shown_share, signed
from tasks.evaluation.predictions import Predictions
from tasks.evaluation.verdict import confusion
from tasks.scores.objective import objective
from tasks.scores.statistics import BINS, reliability, wilson_interval, without_temperature
from tasks.settings.fixed import SPLITS
from tasks.settings.rivals import NAMES, TITLES

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_all(
    folder: Path,
    data: PreparedData,
    check: DataCheck,
    predictions: Predictions,
    result: Comparison,
    trained: TrainedAdapter,
) -> None:
    """The run's six pictures as PNG files under `folder`, the same bytes for the same run."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, figure in (
            ("learning_curves", learning_curves(trained)),
            ("confusion_matrices", confusion_matrices(data, predictions)),
            ("reliability", reliability_diagram(predictions, result)),
            ("ladder", ladder(data, result)),
            ("slices", slices(result)),
            ("lengths", lengths(check)),
        ):
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})


def accuracy_rows(axis: "Axes", names: Sequence[str], shown: Sequence[float], result: Comparison) -> None:
    """One named row per classifier or slice, first on top; zoomed, but never until noise looks like a gain."""
    low, high = min(shown), max(shown)
    margin = max(0.06 * (high - low), (0.1 - (high - low)) / 2)
    axis.set_xlim(max(-0.01, low - margin), min(1.01, high + margin))
    axis.set_xlabel(f"accuracy on {result.rows:,} test rows, {100 * result.confidence:g} % interval")
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)


def learning_curves(trained: TrainedAdapter) -> "Figure":
    figure, (loss, accuracy) = new_figure("Learning curves", 4, ncols=2, sharex=True)
    loss.plot(*zip(*final_points(trained.history, "train/loss"), strict=True), color=NEUTRAL, label="train")
    for axis, name, unit in (
        (loss, "validation/loss", "cross-entropy (nats)"),
        (accuracy, "validation/accuracy", "accuracy (share of rows)"),
    ):
        if points := final_points(trained.history, name):
            axis.plot(*zip(*points, strict=True), color=AFTER, marker="o", label="validation")
        axis.axvline(trained.best_step, color=BEFORE, linestyle=":", label=f"chosen: step {trained.best_step:,}")
        axis.set(xlabel="optimizer step", ylabel=unit)
    legend_below(figure, 3)
    return figure


def confusion_matrices(data: PreparedData, predictions: Predictions) -> "Figure":
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


def reliability_diagram(predictions: Predictions, result: Comparison) -> "Figure":
    """How often the adapter is right where it says that it is this sure, with and without its temperature."""
    title = f"Reliability of the adapter's probabilities on {result.rows:,} test rows"
    figure, (axis, strip) = new_figure(title, 6.4, nrows=2, sharex=True, height_ratios=(4, 1))
    temperature, after = result.calibration.temperature, predictions.tables["tuned"]
    curves = [(f"temperature {temperature:.2f}", after, result.calibration.error_after, AFTER, "o")]
    if temperature != 1:
        before = without_temperature(after, temperature)
        curves.insert(0, ("without temperature", before, result.calibration.error_before, BEFORE, "s"))
    for name, table, error, color, marker in curves:
        bins = reliability(table, predictions.labels)
        right = (bins.accuracy * bins.rows).round().astype(int)
        ranges = [wilson_interval(*pair, result.confidence) for pair in zip(right, bins.rows, strict=True)]
        label = f"{name}: expected calibration error {error:.3f}"
        look: Any = {"color": color, "marker": marker, "elinewidth": 1, "capsize": 0, "label": label}
        axis.errorbar(bins.confidence, bins.accuracy, reach(ranges), **look)
    least = 1 / after.shape[1]
    axis.plot([least, 1], [least, 1], color=NEUTRAL, linestyle="--", label="perfect calibration")
    axis.set(xlim=(int(least * BINS) / BINS - 0.01, 1.01), ylim=(-0.02, 1.02))
    axis.set_ylabel(f"accuracy, {100 * result.confidence:g} % interval")
    strip.hist([curve[1].max(1) for curve in curves], BINS, range=(0, 1), color=[curve[3] for curve in curves])
    strip.set(xlabel="probability of the predicted class", ylabel="rows")
    legend_below(figure, 1)
    return figure


def ladder(data: PreparedData, result: Comparison) -> "Figure":
    """Every classifier's accuracy, best first, beside that of always answering what is commonest in train."""
    metric = objective(result.task).metrics[0]
    title = f"{capital(result.verdict)}: {metric.title} {signed(result.lead(result.against).primary)[0]}"
    title += f" against {NAMES[result.against]}" if result.verdict.startswith("better") else ""
    figure, (axis,) = new_figure(title, 2 + 0.5 * len(result.ladder))
    train, test = data.class_counts["train"], data.class_counts["test"]
    least = test[train.index(max(train))] / sum(test)
    axis.axvline(
        least, color=NEUTRAL, linestyle=":", label=f"always the class commonest in train: {shown_share(least)}"
    )
    values, shown = [], [least]
    for y, rung in enumerate(result.ladder):
        own, interval = rung.name == "tuned", rung.primary
        color = {"tuned": AFTER, "baseline": BEFORE}.get(rung.name, NEUTRAL)
        look: Any = {"color": color, "marker": "o", "markersize": 9 if own else 6, "linewidth": 3 if own else 2}
        axis.errorbar(interval.value, y, xerr=reach([interval]), **look)
        text = f"{shown_share(interval.value)} ({' to '.join(ends(interval))})"
        if rung.adapter_gain:
            text += f"\nadapter {signed(rung.adapter_gain.primary)[0]}: {rung.adapter_gain.verdict}"
        values.append(text)
        shown += [interval.low, interval.high]
    accuracy_rows(axis, [fill(TITLES[rung.name], 20) for rung in result.ladder], shown, result)
    side = axis.secondary_yaxis("right")
    side.set_yticks(range(len(values)), values)
    side.tick_params(length=0, labelsize=10)
    side.spines["right"].set_visible(False)
    legend_below(figure, 1)
    for name, *labels in zip(result.ladder, axis.get_yticklabels(), side.get_yticklabels(), strict=True):
        for label in labels:
            label.set_fontweight("bold" if name.name == "tuned" else "normal")
    return figure


def slices(result: Comparison) -> "Figure":
    """The adapter's accuracy on all rows and on each slice, by kind; of many slices the weakest.

    These lie furthest below the whole, measured by the widths of their own intervals.
    """
    whole, before = result.rung("tuned").primary, result.rung("baseline").primary.value
    weakness = sorted(result.slices, key=lambda s: (s.score.value - whole.value) / (s.score.high - s.score.low))
    shown = [part for part in result.slices if part in weakness[:MOST_SLICES]]
    title = "Accuracy by slice of the test rows"
    if len(shown) < len(result.slices):
        title += f": the {len(shown)} weakest of {len(result.slices)}"
    rows: list[tuple[str, Interval | None, float, bool]] = [(f"all · {result.rows:,} rows", whole, before, False)]
    for kind in dict.fromkeys(part.kind for part in shown):
        rows.append((short(kind), None, 0, False))
        for s in (part for part in shown if part.kind == kind):
            rows.append((f"{short(s.name)} · {s.rows:,} rows", s.score, s.baseline, s.small))
    figure, (axis,) = new_figure(title, 2.2 + 0.29 * len(rows))
    axis.axvline(whole.value, color=AFTER, linestyle=":", label="adapter, all rows")
    ends = []
    for y, (_, interval, other, small) in enumerate(rows):
        if interval:
            axis.plot(other, y, color=BEFORE, marker="D", linestyle="", label="foundation model")
            look: Any = {"markerfacecolor": "white", "label": "few rows"} if small else {"label": "adapter"}
            axis.errorbar(interval.value, y, xerr=reach([interval]), color=AFTER, marker="o", **look)
            ends += [interval.low, interval.high, other]
    accuracy_rows(axis, [row[0] for row in rows], ends, result)
    for text, row in zip(axis.get_yticklabels(), rows, strict=True):
        text.set_fontweight("normal" if row[1] else "bold")
    legend_below(figure, 4)
    return figure


def lengths(check: DataCheck) -> "Figure":
    """Tokens of the rows, by split, and where they are cut if any are."""
    figure, (axis,) = new_figure("Lengths of the texts", 4.4)
    edges, cut = check.length_edges, sum(check.truncated.values())
    looks: Any = (
        {"color": "#CCCCCC", "fill": True},
        {"color": THIRD, "linestyle": "--", "zorder": 3},
        {"color": AFTER},
    )
    for split, look in zip(SPLITS, looks, strict=True):
        rows = sum(check.lengths[split])
        share = [100 * count / rows for count in check.lengths[split]]
        axis.stairs(share, edges, label=f"{split}, {rows:,} rows", linewidth=2, **look)
    end = edges[-1]
    if cut:
        percent = 100 * cut / sum(sum(counts) for counts in check.lengths.values())
        axis.axvline(
            check.max_length,
            color=BEFORE,
            linestyle=":",
            label=f"cut to {check.max_length:,} tokens: {percent:.1f} % of all rows",
        )
        end = max(end, round(1.05 * check.max_length))
    axis.set_xlim(-end / 50, end)
    axis.locator_params(axis="x", integer=True)
    axis.set_xlabel(f"tokens before any are cut off ({edges[-2]:,} or more in the last bin)")
    axis.set_ylabel("share of the split's rows (%)")
    axis.yaxis.set_major_formatter("{x:g}")
    legend_below(figure, 2)
    return figure


def final_points(history: Sequence[Point], name: str) -> list[tuple[int, float]]:
    """Step and value of each point of one curve."""
    return [(point.step, point.metrics[name]) for point in history if name in point.metrics]
