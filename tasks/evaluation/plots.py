"""The pictures of a run, in one look: colour-blind safe, readable at MLflow's preview size."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from tasks.base.drawing import (
    AFTER,
    BEFORE,
    MOST_SLICES,
    NEUTRAL,
    STYLE,
    THIRD,
    legend_below,
    new_figure,
    reach,
    short,
)
from tasks.base.records import Comparison, DataCheck, Interval, Point, PreparedData, Slice, TrainedAdapter
from tasks.base.verdict import capital
from tasks.base.words import signed
from tasks.evaluation.answer_plots import PICTURES
from tasks.evaluation.predictions import Predictions
from tasks.evaluation.wording import name_of, title_of
from tasks.scores.objective import Objective, objective
from tasks.settings.fixed import SPLITS

if TYPE_CHECKING:
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
    task = objective(result.task)
    with matplotlib.rc_context(STYLE):
        for name, figure in (
            ("learning_curves", learning_curves(trained, task)),
            *((name, PICTURES[name](data, predictions, result)) for name in task.pictures),
            ("ladder", ladder(data, result)),
            ("slices", slices(result)),
            ("lengths", lengths(check)),
        ):
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})


def score_rows(axis: "Axes", names: Sequence[str], shown: Sequence[float], result: Comparison) -> None:
    """One named row per classifier or slice, first on top."""
    metric = objective(result.task).metrics[0]
    axis.set_xlim(*metric.limits(shown))
    axis.set_xlabel(
        f"{metric.title}{metric.direction} on {result.rows:,} test rows, {100 * result.confidence:g} % interval"
    )
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)


def learning_curves(trained: TrainedAdapter, task: Objective) -> "Figure":
    metric = task.metrics[0]
    figure, (loss, score) = new_figure("Learning curves", 4, ncols=2, sharex=True)
    loss.plot(*zip(*final_points(trained.history, "train/loss"), strict=True), color=NEUTRAL, label="train")
    for axis, name, unit in (
        (loss, "validation/loss", task.loss_title),
        (score, f"validation/{metric.name}", task.score_title + metric.direction),
    ):
        if points := final_points(trained.history, name):
            axis.plot(*zip(*points, strict=True), color=AFTER, marker="o", label="validation")
        axis.axvline(trained.best_step, color=BEFORE, linestyle=":", label=f"chosen: step {trained.best_step:,}")
        axis.set(xlabel="optimizer step", ylabel=unit)
    legend_below(figure, 3)
    return figure


def ladder(data: PreparedData, result: Comparison) -> "Figure":
    """Every classifier, best first, beside an answer that is always the same, where one can be said to be best."""
    task, metric = objective(result.task), objective(result.task).metrics[0]
    title = f"{capital(result.verdict)}: {metric.short_title} {signed(result.lead(result.against).primary)[0]}"
    title += f" against {name_of(result, result.against)}" if result.verdict.startswith("better") else ""
    figure, (axis,) = new_figure(title, 2 + 0.5 * len(result.ladder))
    values: list[str] = []
    shown: list[float] = []
    if chance := task.chance(data.class_counts):
        axis.axvline(chance[0], color=NEUTRAL, linestyle=":", label=chance[1])
        shown.append(chance[0])
    for y, rung in enumerate(result.ladder):
        own, interval = rung.name == "tuned", rung.primary
        color = {"tuned": AFTER, "baseline": BEFORE}.get(rung.name, NEUTRAL)
        look: Any = {"color": color, "marker": "o", "markersize": 9 if own else 6, "linewidth": 3 if own else 2}
        axis.errorbar(interval.value, y, xerr=reach([interval]), **look)
        text = f"{metric.shown(interval.value)} ({' to '.join(metric.ends(interval))})"
        if rung.adapter_gain:
            text += f"\nadapter {signed(rung.adapter_gain.primary)[0]}: {rung.adapter_gain.verdict}"
        values.append(text)
        shown += [interval.low, interval.high]
    score_rows(axis, [fill(title_of(result, rung.name), 20) for rung in result.ladder], shown, result)
    side = axis.secondary_yaxis("right")
    side.set_yticks(range(len(values)), values)
    side.tick_params(length=0, labelsize=10)
    side.spines["right"].set_visible(False)
    if chance:
        legend_below(figure, 1)
    for name, *labels in zip(result.ladder, axis.get_yticklabels(), side.get_yticklabels(), strict=True):
        for label in labels:
            label.set_fontweight("bold" if name.name == "tuned" else "normal")
    return figure


def slices(result: Comparison) -> "Figure":
    """The adapter's score on all rows and on each slice, by kind; of many slices the weakest.

    These lie furthest below the whole, measured by the widths of their own intervals.
    """
    whole, before = result.rung("tuned").primary, result.rung("baseline").primary.value
    metric = objective(result.task).metrics[0]

    def weakness(part: Slice) -> float:
        width = max(part.score.high - part.score.low, 1e-12)
        return metric.sign * (part.score.value - whole.value) / width

    weakest = sorted(result.slices, key=weakness)[:MOST_SLICES]
    shown = [part for part in result.slices if part in weakest]
    title = f"{capital(metric.title)} by slice of the test rows"
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
    score_rows(axis, [row[0] for row in rows], ends, result)
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
