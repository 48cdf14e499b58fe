"""The picture of a registered model's life, with one version and with sixty."""

from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path

import matplotlib
import pytest
from matplotlib.container import ErrorbarContainer
from PIL import Image

from tasks.base.drawing import STYLE
from tasks.base.records import Interval
from tasks.registry.history import History, VersionHistory, letters_of
from tasks.registry.timeline import LOOKS, draw, slots_of, timeline
from tasks.scores.statistics import wilson_interval
from tasks.settings.fields import InputError
from tasks.tracking.decision import Decision
from tests.test_evaluation_plots import visible_texts


def life(count: int, rows_change: int = 20, metric: str = "accuracy") -> History:
    """`count` weekly versions: each fifth one is promoted, the second promotion is rolled back the day after, and new
    test rows come every `rows_change` versions."""
    import random

    generator, start = random.Random(3), datetime(2026, 1, 5, tzinfo=UTC)
    decisions: list[Decision] = []
    versions, champion = [], None

    def decide(at: datetime, version: str, action: str) -> None:
        reason, by = ("worse on sarcasm", "anna") if action == "rolled back" else ("as the intervals say", "gate")
        made = {"name": "reviews", "version": version, "action": action, "previous": champion}
        decisions.append(Decision(at=int(1000 * at.timestamp()), reason=reason, by=by, **made))  # type: ignore[arg-type]

    for number in range(1, count + 1):
        at, version = start + timedelta(weeks=number - 1), str(number)
        right = 840 + generator.randrange(-14, 14) + min(60, 3 * number)
        promoted = number % 5 == 1
        decide(at + timedelta(minutes=1), version, "promoted" if promoted else "kept")
        champion, before = (version, champion) if promoted else (champion, champion)
        if number == 6 and before:
            decide(at + timedelta(days=1), before, "rolled back")
            champion = before
        versions.append((number, at, wilson_interval(right, 1066, 0.95), str((number - 1) // rows_change)))
    letters = letters_of([rows for *_, rows in versions])
    return History(
        name="reviews",
        champion=champion,
        versions=tuple(
            VersionHistory(
                version=str(number),
                registered=int(1000 * at.timestamp()),
                run_id=f"{number:032x}",
                run_name="",
                url="",
                metric=metric,
                score=score,
                confidence=0.95,
                test_fingerprint=rows,
                test_rows=letters[rows],
                aliases=(),
                decisions=(),
            )
            for number, at, score, rows in versions
        ),
        decisions=tuple(decisions),
    )


@pytest.mark.parametrize(
    ("count", "rows_change", "metric"),
    [
        (1, 20, "accuracy"), (2, 1, "accuracy"), (12, 20, "accuracy"), (12, 1, "micro_f1"), (12, 20, "mae"),
        (24, 8, "accuracy"), (60, 20, "accuracy"), (60, 6, "mae"),
    ],
)  # fmt: skip
def test_nothing_that_is_written_overlaps_or_is_cut_off(count: int, rows_change: int, metric: str) -> None:
    with matplotlib.rc_context(STYLE):
        figure = timeline(life(count, rows_change, metric))
        figure.draw_without_rendering()
        boxes = {text: text.get_window_extent() for text in visible_texts(figure)}
    assert len(boxes) > 5
    for text, box in boxes.items():
        said = text.get_text()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, said
        assert float(text.get_fontsize()) * figure.dpi / 72 > 11, said
    for one, other in combinations(boxes, 2):
        assert not boxes[one].overlaps(boxes[other]), f"{one.get_text()!r} on {other.get_text()!r}"


def test_every_version_is_drawn_with_its_interval() -> None:
    history = life(12)
    bars = [part for part in timeline(history).axes[0].containers if isinstance(part, ErrorbarContainer)]
    assert len(bars) == 12
    for bar, version in zip(bars, history.versions, strict=True):
        (segment,) = bar[2][0].get_segments()
        assert version.score
        assert segment[:, 1].tolist() == pytest.approx([version.score.low, version.score.high])


def test_axis_says_the_score_and_which_way_is_better() -> None:
    assert timeline(life(2)).axes[0].get_ylabel() == "accuracy, 95 % interval"
    axis = timeline(prices := life(2, metric="mae")).axes[0]
    assert axis.get_ylabel() == "MAE (lower is better), 95 % interval"
    large = Interval(value=8000.0, low=7900.0, high=8100.0)
    versions = tuple(version.model_copy(update={"score": large}) for version in prices.versions)
    low, high = timeline(prices.model_copy(update={"versions": versions})).axes[0].get_ylim()
    assert low < 7900 and high > 8100 and 500 < high - low < 2000


def test_line_of_the_champion_steps_as_the_alias_moved() -> None:
    history = life(12)
    champions = [slot.champion for slot in slots_of(history)]
    assert champions == [*"11111", "6", "1", *"11111"[:4], "11", "11"]
    (line,) = (line for line in timeline(history).axes[0].lines if line.get_label() == "champion")
    scores = {version.version: version.score for version in history.versions}
    expected = [interval.value for name in champions if name and (interval := scores[name])]
    assert line.get_ydata()[:-1].tolist() == pytest.approx(expected)


def test_versions_on_other_test_rows_look_different() -> None:
    for rows_change, kinds in ((4, 3), (1, 5)):
        axis = timeline(life(12, rows_change)).axes[0]
        looks = {(bar[0].get_marker(), bar[0].get_color()) for bar in axis.containers}  # type: ignore[attr-defined]
        assert len(looks) == kinds <= len(LOOKS) + 1


def test_promoted_versions_are_filled_and_the_legend_says_so() -> None:
    figure = timeline(life(12))
    filled = [
        bar[0].get_markerfacecolor() != "white"
        for bar in figure.axes[0].containers
        if isinstance(bar, ErrorbarContainer)
    ]
    assert [number for number, is_filled in enumerate(filled, 1) if is_filled] == [1, 6, 11]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["champion", "promoted", "hollow: not promoted", "rolled back"]


def test_same_history_draws_the_same_bytes(tmp_path: Path) -> None:
    assert draw(life(12)) == draw(life(12))
    (tmp_path / "life.png").write_bytes(draw(life(60)))
    with Image.open(tmp_path / "life.png") as picture:
        assert 880 <= picture.width <= 1100 and 400 <= picture.height <= 800


def test_history_without_a_score_cannot_be_drawn() -> None:
    history = life(2)
    bare = tuple(version.model_copy(update={"metric": None, "score": None}) for version in history.versions)
    with pytest.raises(InputError, match="reviews has no version with a test score"):
        draw(history.model_copy(update={"versions": bare}))
