"""A picture of what configurations are worth against what they cost, with Pareto's front."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.base.drawing import BEFORE, NEUTRAL, STYLE, log_scale, new_figure, reach
from tasks.base.verdict import capital
from tasks.base.words import counted
from tasks.studies.shootout import COSTS, MOST_GROUPS, Shootout
from tasks.studies.values import values_words

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    numbers = "numbers of trials" if found.seeds == 1 else "numbers as in the table"
    meaning = f"Orange: nothing beats it for as little; {numbers}"
    title = f"{capital(found.metric.title)} on {rows} against cost\n{meaning}"
    figure, axes = new_figure(title, 0.8 + 3.8 * len(places), nrows=len(places))
    for axis, place in zip(axes, places, strict=True):
        draw_panel(axis, found, place)
    figure.draw_without_rendering()  # from here on it is known where points are, and labels do not move them
    for axis, place in zip(axes, places, strict=True):
        label_points(axis, labels_of(found, place), drawn_things(found, place))
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
    labels = []
    for order, (number, one) in enumerate(zip(found.numbers, found.contenders, strict=True)):
        cost, front = one.costs[place], one.fronts[place]
        if cost is not None and (front or order < MOST_GROUPS):
            name = values_words(one.values)
            text = f"{number} {name}" if len(name) <= NAME_ROOM else f"{number}"
            labels.append(Label(cost, one.score, text, f"{number}", front))
    return sorted(labels, key=lambda label: not label.important)


def drawn_things(found: Shootout, place: int) -> list[tuple[float, float, float, float]]:
    """All points, and what is drawn of the front, as (left, low, right, high): labels should not stand on them."""
    front = sorted(
        ((one.costs[place] or 0.0, one.score, one.interval) for one in found.contenders if one.fronts[place]),
        key=lambda one: one[0],
    )
    points = [(cost, one.score) * 2 for one in found.contenders if (cost := one.costs[place]) is not None]
    steps = [
        line
        for (left, before, _), (right, after, _) in pairwise(front)
        for line in ((left, before, right, before), (right, min(before, after), right, max(before, after)))
    ]
    return points + steps + [(cost, ends.low, cost, ends.high) for cost, _, ends in front if ends]


NEAREST = 18
NEAR, FAR = (7, 11), (7, 11, NEAREST, 28, 40, 55, 75)
"""Points between a point and its label: that of a point on the front may stand far off, with a line to it."""

SIDES = ((1, 0), (1, 1), (-1, 1), (0, 1), (1, -1), (-1, -1), (0, -1), (-1, 0))
"""Where a label may stand, the first that is free: right of its point, right above, left above and so on."""

NAME_ROOM = 30
"""Characters of a label; of a longer name only the number is written."""


def label_points(axis: "Axes", labels: Sequence[Label], boxes: Sequence[tuple[float, float, float, float]]) -> None:
    """Each where it covers no other label and nothing in `boxes`, which are as (left, low, right, high), or not at all:
    a number that is missing hides nothing."""
    import numpy as np

    margin = 3 * axis.figure.dpi / 72
    corners = axis.transData.transform(np.reshape(boxes, (-1, 2))).reshape(-1, 4)
    taken = corners + np.array([-margin, -margin, margin, margin])
    for label in labels:
        for text, distances in ((label.text, FAR), (label.few, FAR)) if label.important else ((label.few, NEAR),):
            if (box := place_label(axis, label, text, distances, taken)) is not None:
                taken = np.vstack([taken, box])
                break


def place_label(
    axis: "Axes", label: Label, text: str, distances: Sequence[int], taken: "np.ndarray"
) -> "np.ndarray | None":
    """The box, in pixels, that the label has got; None where there was no room."""
    import numpy as np

    unit, inside = axis.figure.dpi / 72, axis.get_window_extent()
    look: Any = {"fontsize": 10 if label.important else 8, "color": "black" if label.important else NEUTRAL}
    probe = axis.text(label.x, label.y, text, **look)
    size = probe.get_window_extent().size
    probe.remove()
    point = axis.transData.transform((label.x, label.y))
    for distance in distances:
        for side in SIDES:
            across = np.array(side)
            corner = point + distance * unit * across + (across - 1) / 2 * size
            box = np.concatenate([corner, corner + size])
            free = (box[:2] >= taken[:, 2:]).any(1) | (box[2:] <= taken[:, :2]).any(1)
            if free.all() and (box[:2] >= inside.min).all() and (box[2:] <= inside.max).all():
                line: Any = {"arrowstyle": "-", "color": NEUTRAL, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
                placed = axis.annotate(
                    text,
                    (label.x, label.y),
                    xytext=(corner - point) / unit,
                    textcoords="offset points",
                    arrowprops=line if distance > NEAREST else None,
                    zorder=4,
                    **look,
                )
                placed.set_in_layout(False)
                return box
    return None
