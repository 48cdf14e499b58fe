"""The pictures of a run."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from tasks.base import drawing
from tasks.base.records import Rung, Slice
from tasks.evaluation import answer_plots, plots
from tasks.evaluation.predictions import Predictions
from tasks.scores.objective import objective
from tasks.scores.statistics import reliability, wilson_interval, without_temperature
from tasks.settings.loading import validated
from tasks.settings.rivals import TITLES
from tests.conftest import Judged, made_up_classifier


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with matplotlib.rc_context(drawing.STYLE):
        yield


@pytest.fixture
def run(judged: Judged) -> Judged:
    return judged


def with_classes(run: Judged, classes: int) -> Judged:
    """The run as it would look with so many classes, long names, and a slice for each class."""
    names = tuple(f"a name that is rather long {i}" for i in range(classes))
    labels = np.arange(1000) % classes
    tables = {
        name: made_up_classifier(labels, share, classes, 1) for name, share in (("baseline", 0.1), ("tuned", 0.7))
    }
    counts = tuple(np.bincount(labels, minlength=classes).tolist())
    slices = tuple(a_slice("class", name, rows, rows * 7 // 10) for name, rows in zip(names, counts, strict=True))
    return run._replace(
        data=run.data.model_copy(update={"label_names": names, "class_counts": dict.fromkeys(plots.SPLITS, counts)}),
        predictions=Predictions(np.arange(1000), labels, tables),
        result=run.result.model_copy(update={"slices": run.result.slices + slices}),
    )


def a_slice(kind: str, name: str, rows: int, right: int) -> Slice:
    score = wilson_interval(right, rows, 0.95)
    return Slice(
        kind=kind, name=name, rows=rows, small=rows < 50, baseline=0.1, score=score, fixed=0, broken=0, p_value=1
    )


def pictures(run: Judged) -> dict[str, Figure]:
    return {
        "learning curves": plots.learning_curves(run.trained, objective(run.result.task)),
        **{
            name.replace("_", " "): answer_plots.PICTURES[name](run.data, run.predictions, run.result)
            for name in objective(run.result.task).pictures
        },
        "ladder": plots.ladder(run.data, run.result),
        "slices": plots.slices(run.result),
        "lengths": plots.lengths(run.check),
    }


def draw(run: Judged, folder: Path) -> None:
    plots.draw_all(folder, run.data, run.check, run.predictions, run.result, run.trained)


def visible_texts(figure: Figure) -> list[Text]:
    """Everything that is written in a drawn figure; matplotlib keeps ticks outside the axis too, unseen."""
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        for part in (axes, *axes.child_axes):
            found += [part.title, part.xaxis.label, part.yaxis.label, *part.texts]
            found += [label for axis in (part.xaxis, part.yaxis) for label in tick_labels(axis)]
    return [text for text in found if text.get_text().strip() and text.get_visible()]


def tick_labels(axis: Axis) -> list[Text]:
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and tick.get_visible()]
    return [label for tick in ticks for label in (tick.label1, tick.label2)]


def error_bars(figure: Figure) -> list[ErrorbarContainer]:
    return [part for part in figure.axes[0].containers if isinstance(part, ErrorbarContainer)]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


MANY = pytest.mark.endurance


@pytest.mark.parametrize("classes", [2, pytest.param(5, marks=MANY), pytest.param(10, marks=MANY), 20, 150])
def test_nothing_that_is_written_overlaps_or_is_cut_off_or_tiny(classes: int, run: Judged) -> None:
    check_writing(run if classes == 2 else with_classes(run, classes))


def test_pictures_of_the_other_tasks_are_as_readable(judged_labels: Judged, judged_numbers: Judged) -> None:
    check_writing(judged_labels)
    check_writing(judged_numbers)


def test_title_of_many_words_has_two_lines() -> None:
    words = "Better than every reference: mean absolute error -0.134 against linear probe"
    figure, _ = drawing.new_figure(words, 4)
    figure.draw_without_rendering()
    assert figure.get_suptitle().replace("\n", " ") == words and "\n" in figure.get_suptitle()
    assert figure._suptitle.get_window_extent().x0 > 0  # type: ignore[attr-defined]


def check_writing(run: Judged) -> None:
    for name, figure in pictures(run).items():
        figure.draw_without_rendering()
        texts = visible_texts(figure)
        boxes = {text: text.get_window_extent() for text in texts}
        assert len(texts) > 10, name
        for text, box in boxes.items():
            said = f"{name}: {text.get_text()!r}"
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, said
            shrunk = min(1, 800 / figure.bbox.width)
            assert float(text.get_fontsize()) * figure.dpi / 72 * shrunk > 11, said
        for one, other in combinations(texts, 2):
            assert not boxes[one].overlaps(boxes[other]), f"{name}: {one.get_text()!r} on {other.get_text()!r}"


@pytest.fixture(scope="module")
def drawn(judged: Judged, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run's pictures, whose tests read them and draw no others."""
    folder = tmp_path_factory.mktemp("drawn")
    draw(judged, folder)
    return folder


def test_every_picture_is_drawn_at_a_readable_size(drawn: Path, run: Judged) -> None:
    names = ["confusion_matrices", "ladder", "learning_curves", "lengths", "reliability", "slices"]
    assert sorted(file.stem for file in drawn.glob("*.png")) == names
    assert sorted(path.suffix for path in drawn.iterdir()) == [".png"] * len(names)
    for name, figure in pictures(run).items():
        with Image.open(drawn / f"{name.replace(' ', '_')}.png") as picture:
            assert picture.size == pytest.approx(figure.bbox.size, abs=1)
            assert_readable(*picture.size)


def test_pictures_of_many_classes_have_a_readable_size(run: Judged) -> None:
    for figure in pictures(with_classes(run, 40)).values():
        assert_readable(*figure.bbox.size)


def assert_readable(width: float, height: float) -> None:
    assert 880 <= width <= 1100 and 300 <= height <= 1700


def test_same_run_draws_the_same_bytes_and_leaves_no_figure_open(drawn: Path, run: Judged, tmp_path: Path) -> None:
    from matplotlib import pyplot

    draw(run, tmp_path)
    for file in drawn.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()
    assert pyplot.get_fignums() == []


def test_ladder_shows_every_rung_in_order_with_its_interval(run: Judged) -> None:
    figure = plots.ladder(run.data, run.result)
    (axis,) = figure.axes
    assert [" ".join(label.get_text().split()) for label in axis.get_yticklabels()] == [
        TITLES[rung.name] for rung in run.result.ladder
    ]
    bottom, top = axis.get_ylim()
    assert top < bottom  # the first is on top
    left, right = axis.get_xlim()
    for y, (rung, bar) in enumerate(zip(run.result.ladder, error_bars(figure), strict=True)):
        ((low, high),) = bar[2][0].get_segments()
        assert low == pytest.approx((rung.primary.low, y))
        assert high == pytest.approx((rung.primary.high, y))
        assert left < low[0] < high[0] < right
    assert [label.get_fontweight() for label in axis.get_yticklabels()].count("bold") == 1


def test_ladder_says_the_verdict_and_what_a_constant_answer_gets(run: Judged) -> None:
    figure = plots.ladder(run.data, run.result)
    assert figure.get_suptitle() == "Not shown better than TF-IDF: accuracy +0.033"
    assert legend(figure) == ["always the class commonest in train: 0.500"]
    (side,) = figure.axes[0].child_axes
    values = dict(zip([r.name for r in run.result.ladder], [t.get_text() for t in side.get_yticklabels()], strict=True))
    assert "no evidence" in values["tfidf"]
    assert "improved" in values["baseline"]
    assert "adapter" not in values["tuned"]


def test_ladder_of_nearly_equal_classifiers_does_not_zoom_into_noise(run: Judged) -> None:
    rungs: list[Rung] = []
    for rung in run.result.ladder:
        rungs.append(rung.model_copy(update={"accuracy": wilson_interval(500_000, 1_000_000, 0.95)}))
    figure = plots.ladder(run.data, run.result.model_copy(update={"ladder": tuple(rungs)}))
    low, high = figure.axes[0].get_xlim()
    assert high - low >= 0.1


def test_reliability_shows_the_bins_and_both_errors(run: Judged) -> None:
    figure = answer_plots.reliability_diagram(run.data, run.predictions, run.result)
    after, labels = run.predictions.tables["tuned"], run.predictions.labels
    before = without_temperature(after, run.trained.fitted["temperature"])
    for bar, table in zip(error_bars(figure), (before, after), strict=True):
        bins = reliability(table, labels)
        assert np.allclose(bar[0].get_xydata(), np.stack([bins.confidence, bins.accuracy], axis=1))
    calibration = run.result.calibration
    for error, text in (
        (calibration["error_before"], "without temperature"),
        (calibration["error_after"], "temperature 1.50"),
    ):
        assert f"{text}: expected calibration error {error:.3f}" in legend(figure)
    for counts in figure.axes[1].containers:
        assert sum(bar.get_height() for bar in counts) == run.result.rows


def test_temperature_one_is_one_curve(run: Judged) -> None:
    same = {"temperature": 1, "error_before": 0.1, "error_after": 0.1}
    figure = answer_plots.reliability_diagram(
        run.data, run.predictions, run.result.model_copy(update={"calibration": same})
    )
    assert len(error_bars(figure)) == 1


def test_slices_show_rows_and_interval_and_hollow_points_where_rows_are_few(run: Judged) -> None:
    figure = plots.slices(run.result)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    by_label = dict(
        zip((f"{part.name} · {part.rows:,} rows" for part in run.result.slices), run.result.slices, strict=True)
    )
    assert {part.small for part in run.result.slices} == {True, False}
    assert {"all · 240 rows", *by_label} <= set(labels)
    assert set(labels) - {"all · 240 rows", *by_label} == {part.kind for part in run.result.slices}
    for bar in error_bars(figure):
        ((low, high),) = bar[2][0].get_segments()
        label = labels[int(low[1])]
        if part := by_label.get(label):
            assert (low[0], high[0]) == pytest.approx((part.score.low, part.score.high))
            assert (bar[0].get_markerfacecolor() == "white") == part.small
    assert len(error_bars(figure)) == 1 + len(by_label)


def test_of_many_slices_the_weakest_are_shown_and_the_title_says_so(run: Judged) -> None:
    parts = [a_slice("class", f"class {i}", 100, 90) for i in range(49)]
    parts.insert(25, a_slice("class", "weak", 100, 20))
    figure = plots.slices(run.result.model_copy(update={"slices": tuple(parts)}))
    assert "the 30 weakest of 50" in figure.get_suptitle()
    assert "weak · 100 rows" in [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(error_bars(figure)) == 31


def test_without_slices_the_whole_is_shown(run: Judged) -> None:
    figure = plots.slices(run.result.model_copy(update={"slices": ()}))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["all · 240 rows"]


def test_lengths_are_shares_of_each_split_and_the_cut_is_marked_only_where_there_is_one(run: Judged) -> None:
    figure = plots.lengths(run.check)
    (axis,) = figure.axes
    for patch in axis.patches:
        assert patch.get_data().values.sum() == pytest.approx(100)  # type: ignore[attr-defined]
    (cut,) = axis.lines
    assert np.asarray(cut.get_xdata())[0] == run.config.data.max_length
    assert any(text.startswith("cut to 12 tokens") for text in legend(figure))
    whole = run.check.model_copy(update={"truncated": dict.fromkeys(plots.SPLITS, 0)})
    assert not plots.lengths(whole).axes[0].lines


def test_of_many_classes_the_most_mistaken_are_shown_and_the_title_says_so(run: Judged) -> None:
    many = with_classes(run, 30)
    labels = many.predictions.labels
    tables = {name: np.eye(30)[labels] for name in ("baseline", "tuned")}
    tables["tuned"][labels == 29] = np.eye(30)[7]
    figure = answer_plots.confusion_matrices(many.data, many.predictions._replace(tables=tables), many.result)
    assert "the 20 of 30" in figure.get_suptitle()
    numbers = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert {"8", "30"} < set(numbers)
    assert len(numbers) == 20


def test_a_class_without_test_rows_and_a_name_like_a_formula_are_drawn(run: Judged, tmp_path: Path) -> None:
    tables = {name: np.pad(table, ((0, 0), (0, 1))) for name, table in run.predictions.tables.items()}
    counts = {split: (*counts, 0) for split, counts in run.data.class_counts.items()}
    data = run.data.model_copy(update={"label_names": ("$bad_$", "good", "$x^$"), "class_counts": counts})
    draw(run._replace(data=data, predictions=run.predictions._replace(tables=tables)), tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 6


def test_names_that_begin_alike_stay_apart() -> None:
    names = [drawing.short(f"a rather long class name number {i}") for i in range(20)]
    assert len(set(names)) == 20
    assert max(map(len, names)) <= drawing.NAME_CHARACTERS


def test_card_says_nothing_of_an_untrained_head_where_there_is_none(run: Judged) -> None:
    from tasks.evaluation.card import model_card

    def card(fresh_modules: tuple[str, ...]) -> Any:
        trained = run.trained.model_copy(update={"fresh_modules": fresh_modules})
        return model_card(validated({}), run.data, trained, run.result)

    assert "head is untrained" in card(("score",))
    assert "head is untrained" not in card(())
    assert "head of its own" in card(())
