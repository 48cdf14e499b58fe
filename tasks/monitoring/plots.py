"""Pictures of a monitoring: recent rows beside known ones."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base.drawing import AFTER, BEFORE, MOST_CLASSES, STYLE, legend_below, new_figure, reach, short
from tasks.base.outcomes import MonitorResult
from tasks.base.verdict import capital
from tasks.monitoring.page import metric_of
from tasks.scores.drift import View, comparable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


KNOWN: Any = {"color": BEFORE, "label": "known rows"}
RECENT: Any = {"color": AFTER, "label": "recent rows"}

MOST_POINTS = 500
"""Of each group, in a cloud that can still be looked through."""


def draw_all(folder: Path, result: MonitorResult, views: Mapping[str, View]) -> None:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        for name, panels in PICTURES.items():
            wanted: list[tuple[str, Panel]] = [(one, panel) for one, panel in panels.items() if one in views]
            if result.score and name == "answers":
                wanted.append(("score", lambda axis, view, found: draw_score(axis, found)))
            if wanted:
                figure = picture(result, name, wanted, views)
                figure.savefig(folder / f"{name}.png", metadata={"Software": None})


Panel = Callable[["Axes", View | None, MonitorResult], None]


def picture(result: MonitorResult, name: str, panels: list[tuple[str, Panel]], views: Mapping[str, View]) -> "Figure":
    metric = metric_of(result).name
    tests = {"score" if test.name == metric else test.name: test for test in result.tests}
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    title = f"{capital(name)}: {result.name} version {result.version} on {Path(result.inputs).name}"
    figure, axes = new_figure(title, 0.9 + 3.3 * lines, nrows=lines, ncols=columns)
    for axis in axes[len(panels) :]:
        axis.remove()
    for (one, panel), axis in zip(panels, axes, strict=False):
        panel(axis, views.get(one), result)
        if test := tests.get(one):
            axis.set_title("drift" if test.found else "no drift found")
    legend_below(figure, 2)
    return figure


def draw_features(axis: "Axes", view: View | None, result: MonitorResult) -> None:
    """Both groups along the two directions in which all rows together differ the most."""
    import numpy as np

    assert view
    rows = comparable(view)
    sides, strengths, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    places, recent = sides[:, :2] * strengths[:2], len(view.recent)
    for group, look in ((places[recent:], KNOWN), (places[:recent], RECENT)):
        axis.plot(group[:MOST_POINTS, 0], group[:MOST_POINTS, -1], "o", markersize=3, alpha=0.45, **look)
    axis.set_xlabel("features, first component")
    axis.set_ylabel("second component")


def histogram(words: str, most: float = 100.0) -> Panel:
    """Up to this percentile; the others are in the last bar."""

    def draw(axis: "Axes", view: View | None, result: MonitorResult) -> None:
        import numpy as np

        assert view
        both = np.concatenate([view.recent, view.known])
        start = float(both.min())
        end = max(float(np.percentile(both, most)), start + 1e-9)
        edges = np.linspace(start, end, 25).tolist()
        for rows, look in ((view.known, KNOWN), (view.recent, RECENT)):
            shares = np.full(len(rows), 1 / len(rows))
            axis.hist(np.minimum(rows, end), edges, weights=shares, histtype="stepfilled", alpha=0.35, **look)
            axis.hist(np.minimum(rows, end), edges, weights=shares, histtype="step", color=look["color"])
        axis.set_xlabel(words)
        axis.set_ylabel("share of rows")

    return draw


def draw_labels(axis: "Axes", view: View | None, result: MonitorResult) -> None:
    """Those whose share has changed the most, first."""
    shares = sorted(result.label_shares.items(), key=lambda item: -abs(item[1][0] - item[1][1]))[:MOST_CLASSES]
    places = range(len(shares))
    for offset, group, look in ((-0.2, 1, KNOWN), (0.2, 0, RECENT)):
        axis.barh([place + offset for place in places], [pair[group] for _, pair in shares], 0.38, **look)
    axis.set_yticks(list(places), [short(name) for name, _ in shares])
    axis.invert_yaxis()
    axis.set_xlabel("share of rows given the label")


def draw_shares(axis: "Axes", view: View | None, result: MonitorResult) -> None:
    assert view
    for place, rows, look in ((0, view.known, KNOWN), (1, view.recent, RECENT)):
        axis.bar(place, rows.mean(), 0.6, **look)
    axis.set_xticks((0, 1), ("known rows", "recent rows"))
    axis.set_ylabel("abstentions, share of rows")


def draw_score(axis: "Axes", result: MonitorResult) -> None:
    assert result.score
    for place, score, look in ((0, result.test_score, KNOWN), (1, result.score, RECENT)):
        axis.errorbar(place, score.value, yerr=reach([score]), fmt="o", markersize=8, **look)
    axis.set_xticks((0, 1), ("test rows", "recent rows"))
    axis.set_xlim(-0.6, 1.6)
    metric = metric_of(result)
    axis.set_ylim(metric.limits([end for one in (result.score, result.test_score) for end in (one.low, one.high)]))
    axis.set_ylabel(f"{metric.title}{metric.direction}")


PICTURES: dict[str, dict[str, Panel]] = {
    "texts": {"features": draw_features, "lengths": histogram("tokens of a text", 99.5)},
    "answers": {
        "labels": draw_labels,
        "predictions": histogram("number given"),
        "confidence": histogram("confidence of the answer"),
        "abstentions": draw_shares,
    },
}
