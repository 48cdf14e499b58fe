"""What all pictures share: colours, sizes, names that fit."""

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

from tasks.base.records import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


BEFORE, AFTER, THIRD, NEUTRAL = "#E69F00", "#0072B2", "#009E73", "#7F7F7F"
"""Okabe and Ito's orange, blue and green: distinct to every kind of colour vision, and in print."""

WIDTH = 8.0
"""Inches: 880 pixels at the style's dpi, which MLflow's preview of about 800 hardly shrinks."""

STYLE: Any = {
    "font.size": 12,
    "axes.titlesize": 12,
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "legend.fontsize": 11,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "lines.linewidth": 2,
    "errorbar.capsize": 4,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.dpi": 110,
    "text.parse_math": False,  # a class may be called $a$
}

TITLE_CHARACTERS = 66
"""In one line of a title as wide as WIDTH."""

MOST_CLASSES, MOST_SLICES, NAME_CHARACTERS = 20, 30, 26
"""What a picture can hold and stay readable."""


def new_figure(title: str, height: float, width: float = WIDTH, **grid: Any) -> tuple["Figure", list["Axes"]]:
    """A figure that no pyplot state knows of, so that nothing piles up in a long-lived worker."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    characters = round(TITLE_CHARACTERS * width / WIDTH)
    figure.suptitle("\n".join(fill(line, characters) for line in title.splitlines()))
    return figure, list(figure.subplots(squeeze=False, **grid).flat)


def legend_below(figure: "Figure", columns: int) -> None:
    """Outside the axes, where it can cover nothing; what is drawn many times is named once."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=columns)


def short(name: str) -> str:
    """Start and end of a long name: names that begin alike stay apart."""
    half = NAME_CHARACTERS // 2
    return name if len(name) <= NAME_CHARACTERS else f"{name[:half]}…{name[1 - half :]}"


def reach(intervals: Sequence[Interval]) -> list[list[float]]:
    """Intervals as matplotlib takes them: how far below and above the values."""
    return [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]


def log_scale(axis: "Axes", which: Literal["x", "y"], ratio: float, whole: bool = False) -> None:
    """With numbers, or only `whole` ones, as people write them: matplotlib's are formulas, which stay unread here."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (axis.set_xscale if which == "x" else axis.set_yscale)("log")
    side = axis.xaxis if which == "x" else axis.yaxis
    side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio < 100 else (1.0,)))
    side.set_major_formatter(FuncFormatter(lambda value, place: "" if whole and value % 1 else f"{value:,.10g}"))
    side.set_minor_formatter(NullFormatter())
