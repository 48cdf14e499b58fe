"""The pictures of a run, in one look: colour-blind safe, readable at MLflow's preview size."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.comparison import Predictions, confusion, score_rows
from tasks.records import Comparison, PreparedData, TrainedAdapter
from tasks.training import final_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE, AFTER, NEUTRAL = "#E69F00", "#0072B2", "#7F7F7F"
"""Okabe and Ito's orange and blue: distinct to every kind of colour vision, and in print."""

STYLE: Any = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "figure.dpi": 110,
}


def draw_all(
    folder: Path, data: PreparedData, predictions: Predictions, result: Comparison, trained: TrainedAdapter
) -> None:
    """Learning curves, confusion matrices and scores as PNG files under `folder`."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        save(learning_curves(trained), folder / "learning_curves.png")
        save(confusion_matrices(data, predictions), folder / "confusion_matrices.png")
        save(score_bars(result), folder / "scores.png")


def save(figure: "Figure", path: Path) -> None:
    # no creation date inside: the same run draws the same bytes
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})


def new_figure(width: float, height: float, columns: int = 1) -> tuple["Figure", list[Any]]:
    """A figure that no pyplot state knows of, so that nothing piles up in a long-lived worker."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def learning_curves(trained: TrainedAdapter) -> "Figure":
    figure, (loss, accuracy) = new_figure(10, 4, 2)
    loss.plot(*zip(*final_points(trained.history, "train/loss"), strict=True), color=NEUTRAL, label="train")
    for axis, name, title, color in (
        (loss, "validation/loss", "cross-entropy (nats)", AFTER),
        (accuracy, "validation/accuracy", "accuracy", AFTER),
    ):
        points = final_points(trained.history, name)
        if points:
            axis.plot(*zip(*points, strict=True), color=color, marker="o", label="validation")
        axis.axvline(trained.best_step, color=BEFORE, linestyle=":", label=f"chosen: step {trained.best_step}")
        axis.set(xlabel="optimizer step", ylabel=title)
        axis.legend(frameon=False)
    figure.suptitle("Learning curves")
    return figure


def confusion_matrices(data: PreparedData, predictions: Predictions) -> "Figure":
    """Both matrices side by side; shade is the share of the true class, so that rare classes show too."""
    import numpy as np

    classes = len(data.label_names)
    side = min(14.0, 2.5 + 0.8 * classes)
    figure, axes = new_figure(2 * side + 1, side + 0.6, 2)
    crowded = sum(map(len, data.label_names)) > 30
    slant: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    for axis, title, table in zip(axes, ("foundation model", "adapter"), predictions[1:], strict=True):
        counts = confusion(predictions.labels, table)
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axis.grid(False)
        axis.set(title=title, xlabel="predicted class", ylabel="true class")
        axis.set_xticks(range(classes), data.label_names, **slant)
        axis.set_yticks(range(classes), data.label_names)
        if classes <= 12:
            for i, j in np.ndindex(counts.shape):
                color = "white" if share[i, j] > 0.55 else "black"
                axis.text(j, i, f"{counts[i, j]}\n{share[i, j]:.1%}", ha="center", va="center", color=color)
    figure.suptitle("Test rows by true and predicted class")
    return figure


def score_bars(result: Comparison) -> "Figure":
    figure, (axis,) = new_figure(8, 1.5 + 0.6 * len(score_rows(result)))
    rows = score_rows(result)[::-1]
    colors = {"adapter": AFTER, "foundation model": BEFORE}
    bars = axis.barh(
        [name for name, _ in rows],
        [s.accuracy for _, s in rows],
        color=[colors.get(n, NEUTRAL) for n, _ in rows],
    )
    axis.bar_label(bars, fmt="%.3f", padding=4)
    axis.set(xlim=(0, 1.08), xlabel="accuracy on the test rows", title=f"Verdict: {result.verdict}")
    axis.grid(axis="y", visible=False)
    return figure
