"""The picture of a registered model's life: the score of each version, and which one was champion when."""

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.base.drawing import AFTER, BEFORE, NEUTRAL, STYLE, THIRD, legend_below, new_figure, reach, short
from tasks.base.records import Interval
from tasks.registry.history import History, VersionHistory
from tasks.scores.objective import Metric
from tasks.settings.fields import InputError
from tasks.tracking.decision import Decision

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LOOKS = ((AFTER, "o"), (THIRD, "s"), ("#CC79A7", "D"), ("#56B4E9", "^"))
"""Colour and marker for each of the newest test rows, from the oldest of them; Okabe and Ito's again."""

OLD = (NEUTRAL, "p")

MOST_DAYS, MOST_NUMBERS = 7, 24
"""Days, and version numbers, that fit below the picture."""


class Slot(NamedTuple):
    """One place on the axis: a version, or a later change of champion."""

    version: VersionHistory | None
    change: Decision | None
    champion: str | None
    """From here on."""

    def label(self) -> tuple[str, str]:
        """Number and day."""
        at = self.version.registered if self.version else self.change.at if self.change else 0
        number = self.version.version if self.version else f"→{self.champion}"
        return number, f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d}"


def draw(history: History) -> bytes:
    """A PNG file, the same bytes for the same history; InputError where no version has a score."""
    import matplotlib

    if not history.scores:
        raise InputError(f"{history.name} has no version with a test score to draw")
    with matplotlib.rc_context(STYLE), io.BytesIO() as file:
        timeline(history).savefig(file, metadata={"Software": None})
        return file.getvalue()


def slots_of(history: History) -> list[Slot]:
    """Versions in the order of their registration; a promotion that follows at once has no place of its own."""
    happened: list[tuple[int, VersionHistory | Decision]] = [(one.registered, one) for one in history.versions]
    happened += [(change.at, change) for change in history.changes]
    slots: list[Slot] = []
    champion = None
    for _, one in sorted(happened, key=lambda pair: pair[0]):
        last = slots[-1] if slots else None
        if isinstance(one, VersionHistory):
            slots.append(Slot(one, None, champion))
            continue
        champion = one.version
        if last and last.version and last.version.version == champion:
            slots[-1] = Slot(last.version, None, champion)
        else:
            slots.append(Slot(None, one, champion))
    return slots


def timeline(history: History) -> "Figure":
    champion = f"champion: version {history.champion}" if history.champion else "no champion"
    metric = history.metric
    assert metric
    figure, (axis,) = new_figure(f"{short(history.name)}: test {metric.short_title} by version, {champion}", 4.8)
    slots, scores = slots_of(history), history.scores
    draw_champion(axis, slots, scores)
    draw_versions(axis, slots, history)
    draw_changes(axis, slots, scores)
    frame(axis, slots, scores, metric)
    interval = f"{100 * history.confidence:g} % interval" if history.confidence else "with its interval"
    axis.set_ylabel(f"{metric.short_title}{metric.direction}, {interval}")
    legend_below(figure, 4 if len(axis.get_legend_handles_labels()[1]) == 4 else 3)
    return figure


def draw_champion(axis: "Axes", slots: Sequence[Slot], scores: Any) -> None:
    """A line that steps to the score of whichever version comes into use."""
    values = [scores.get(slot.champion) for slot in slots]
    heights = [interval.value if interval else float("nan") for interval in values]
    look: Any = {"color": NEUTRAL, "alpha": 0.5, "linewidth": 6, "solid_capstyle": "butt", "label": "champion"}
    axis.step([*range(len(slots)), len(slots) - 0.5], [*heights, heights[-1]], where="post", zorder=1, **look)


def draw_versions(axis: "Axes", slots: Sequence[Slot], history: History) -> None:
    """Filled where the version was ever promoted, hollow where it was not."""
    scores = history.scores
    rows = list(dict.fromkeys(version.test_rows for version in history.versions if version.version in scores))
    looks = dict(zip([name for name in rows if name][-len(LOOKS) :], LOOKS, strict=False))
    crowded = len(slots) > MOST_NUMBERS
    size: Any = {"markersize": 5, "linewidth": 1, "capsize": 0} if crowded else {"markersize": 8}
    used: dict[str, tuple[str, str]] = {}
    for x, slot in enumerate(slots):
        version = slot.version
        if not version or version.version not in scores:
            continue
        score = scores[version.version]
        color, marker = looks.get(version.test_rows, OLD)
        name = f"test rows {version.test_rows}" if version.test_rows in looks else "other test rows"
        used[name if len(rows) > 1 else "promoted"] = (color, marker)
        fill = color if version.version in {change.version for change in history.changes} else "white"
        look = size | {"color": color, "marker": marker, "markerfacecolor": fill}
        axis.errorbar(x, score.value, reach([score]), zorder=2, **look)
    for name, (color, marker) in used.items():
        axis.plot([], [], color=color, marker=marker, markersize=8, label=name)
    axis.plot([], [], color=NEUTRAL, marker="o", markersize=8, markerfacecolor="white", label="hollow: not promoted")


def draw_changes(axis: "Axes", slots: Sequence[Slot], scores: Any) -> None:
    """Where the champion was changed later: an arrow from the one to the other."""
    for x, slot in enumerate(slots):
        change = slot.change
        to = scores.get(slot.champion)
        if not change or not to:
            continue
        label = "rolled back" if change.action == "rolled back" else "promoted later"
        marker = "X" if change.action == "rolled back" else "P"
        if before := scores.get(change.previous):
            axis.plot([x, x], [before.value, to.value], color=BEFORE, linestyle=":", zorder=3)
        axis.plot(x, to.value, color=BEFORE, marker=marker, markersize=10, linestyle="", label=label, zorder=4)


def frame(axis: "Axes", slots: Sequence[Slot], scores: Mapping[str, Interval], metric: Metric) -> None:
    """Numbers and days below."""
    axis.set_ylim(*metric.limits([end for score in scores.values() for end in (score.low, score.high)]))
    axis.set_xlim(-0.6, len(slots) - 0.4)
    labels = [slot.label() for slot in slots]
    numbered, dated = (range(0, len(slots), -(-len(slots) // most)) for most in (MOST_NUMBERS, MOST_DAYS))
    axis.set_xticks(numbered, [labels[x][0] for x in numbered])
    axis.grid(axis="x", visible=False)
    days = axis.secondary_xaxis("bottom")
    days.set_xticks(dated, [labels[x][1] for x in dated])
    days.tick_params(length=0, pad=22)
    again = "; → a version that became champion later" if any(slot.change for slot in slots) else ""
    days.set_xlabel(f"version, and the day it was registered (UTC){again}")
