"""A picture of what configurations are worth against what they cost, with Pareto's front."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.base.drawing import BEFORE, NEUTRAL, STYLE, log_scale, new_figure, reach, short
from tasks.base.verdict import capital
from tasks.base.words import counted
from tasks.studies.shootout import COSTS, MOST_GROUPS, Shootout
from tasks.studies.values import values_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

LEAST_GROUPS = 3
"""For a picture: with two there is nothing to choose along a front."""


def draw_pareto(folder: Path, found: Shootout) -> bool:
    """`pareto.png`: score against each cost, with the front; False where there is too little to draw."""
    import matplotlib

    if len(found.contenders) < LEAST_GROUPS or not costs_known(found):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        pareto_figure(found).savefig(folder / "pareto.png", metadata={"Software": None})
    return True


def costs_known(found: Shootout) -> list[int]:
    """Places of costs that some configurations have."""
    return [place for place in range(len(COSTS)) if any(one.costs[place] is not None for one in found.contenders)]


def pareto_figure(found: Shootout) -> "Figure":
    places = costs_known(found)
    rows = counted(found.validation_rows, "validation row")
    title = f"{capital(found.metric.title)} on {rows} against cost\nOrange: nothing beats it at the same cost or less"
    figure, axes = new_figure(title, 0.8 + 3.8 * len(places), nrows=len(places))
    for axis, place in zip(axes, places, strict=True):
        draw_panel(axis, found, place)
    figure.draw_without_rendering()  # from here on it is known where points are, and labels do not move them
    for axis, place in zip(axes, places, strict=True):
        label_points(axis, labels_of(found, place), front_lines(found, place))
    return figure


def draw_panel(axis: "Axes", found: Shootout, place: int) -> None:
    """One cost: all points, those on the front with their intervals, and the front."""
    known = [(one.costs[place] or 0.0, one) for one in found.contenders if one.costs[place] is not None]
    front = sorted([pair for pair in known if pair[1].fronts[place]], key=lambda pair: pair[0])
    others = [pair for pair in known if not pair[1].fronts[place]]
    axis.plot([cost for cost, _ in others], [one.score for _, one in others], "o", color=NEUTRAL, markersize=5)
    look: Any = {"color": BEFORE, "zorder": 3}
    axis.step([cost for cost, _ in front], [one.score for _, one in front], where="post", linewidth=1.2, **look)
    axis.plot([cost for cost, _ in front], [one.score for _, one in front], "o", markersize=7, **look)
    if sure := [(cost, one.score, one.interval) for cost, one in front if one.interval]:
        ends = reach([interval.model_copy(update={"value": score}) for _, score, interval in sure])
        bars: Any = {"fmt": "none", "alpha": 0.6, "linewidth": 1.2}
        axis.errorbar([cost for cost, _, _ in sure], [score for _, score, _ in sure], yerr=ends, **bars, **look)
    costs = [cost for cost, _ in known]
    if min(costs) > 0 and max(costs) > 8 * min(costs):
        log_scale(axis, "x", max(costs) / min(costs))
    axis.margins(0.1)
    axis.set_xlabel(COSTS[place].title)
    axis.set_ylabel(found.metric.title + found.metric.direction)


class Label(NamedTuple):
    x: float
    y: float
    text: str
    few: str
    """What must do where there is no room for `text`."""
    important: bool


def labels_of(found: Shootout, place: int) -> list[Label]:
    """Those on the front first, with their names; of the others the numbers that they have in the table."""
    labels = [
        Label(
            one.costs[place] or 0.0,
            one.score,
            f"{number} {short(values_words(one.values))}" if one.fronts[place] else f"{number}",
            f"{number}",
            one.fronts[place],
        )
        for number, one in enumerate(found.contenders, 1)
        if one.costs[place] is not None and (one.fronts[place] or number <= MOST_GROUPS)
    ]
    return sorted(labels, key=lambda label: not label.important)


def front_lines(found: Shootout, place: int) -> list[tuple[float, float, float, float]]:
    """What is drawn of the front, as (left, low, right, high): labels should not stand on it."""
    front = sorted(
        ((one.costs[place] or 0.0, one.score, one.interval) for one in found.contenders if one.fronts[place]),
        key=lambda one: one[0],
    )
    steps = [
        line
        for (left, before, _), (right, after, _) in pairwise(front)
        for line in ((left, before, right, before), (right, min(before, after), right, max(before, after)))
    ]
    return steps + [(cost, ends.low, cost, ends.high) for cost, _, ends in front if ends]


NEAR, FAR = (7, 11), (7, 11, 18, 28, 40, 55, 75)
"""Points between a point and its label: that of a point on the front may stand far off, with a line to it."""


def label_points(axis: "Axes", labels: Sequence[Label], lines: Sequence[tuple[float, float, float, float]]) -> None:
    """Each where it covers no other label and no point, or not at all: a number that is missing hides nothing."""
    from matplotlib.transforms import Bbox

    unit = axis.figure.dpi / 72
    points = [axis.transData.transform((label.x, label.y)) for label in labels]
    taken = [Bbox.from_extents(x - 4 * unit, y - 4 * unit, x + 4 * unit, y + 4 * unit) for x, y in points]
    for line in lines:
        (left, low), (right, high) = axis.transData.transform([line[:2], line[2:]])
        taken.append(Bbox.from_extents(left - unit, low - unit, right + unit, high + unit))
    for label, point in zip(labels, points, strict=True):
        for text, distances in ((label.text, FAR if label.important else NEAR), (label.few, FAR)):
            if (label.important or text == label.text) and place_label(axis, label, point, text, distances, taken):
                break


def place_label(
    axis: "Axes", label: Label, point: Any, text: str, distances: Sequence[int], taken: "list[Bbox]"
) -> bool:
    from matplotlib.transforms import Bbox

    size = 10 if label.important else 8
    drawn = axis.annotate(text, (label.x, label.y), fontsize=size, color="black" if label.important else NEUTRAL)
    drawn.set_in_layout(False)
    box = drawn.get_window_extent()
    unit, inside = axis.figure.dpi / 72, axis.get_window_extent()
    for distance in distances:
        for across, up in ((1, 0), (1, 1), (-1, 1), (0, 1), (1, -1), (-1, -1), (0, -1), (-1, 0)):
            x = point[0] + distance * unit * across + (across - 1) / 2 * box.width
            y = point[1] + distance * unit * up + (up - 1) / 2 * box.height
            found = Bbox.from_bounds(x, y, box.width, box.height)
            within = inside.x0 <= found.x0 and found.x1 <= inside.x1 and inside.y0 <= found.y0 and found.y1 <= inside.y1
            if within and not found.count_overlaps(taken):
                drawn.remove()
                line: Any = {"arrowstyle": "-", "color": NEUTRAL, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
                final = axis.annotate(
                    text,
                    (label.x, label.y),
                    xytext=((x - point[0]) / unit, (y - point[1]) / unit),
                    textcoords="offset points",
                    fontsize=size,
                    color=drawn.get_color(),
                    arrowprops=line if distance > 18 else None,
                    zorder=4,
                )
                final.set_in_layout(False)
                taken.append(found)
                return True
    drawn.remove()
    return False
