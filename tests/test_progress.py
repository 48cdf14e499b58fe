import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tasks import progress
from tasks.progress import live_curve, progress_artifact
from tasks.records import Point


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def artifact(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The percentages that reach the API of a pretended run."""
    shown: list[float] = []
    monkeypatch.setattr("prefect.context.get_run_context", lambda: object())
    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", lambda **fields: "id")
    monkeypatch.setattr(
        "prefect.artifacts.update_progress_artifact", lambda artifact, progress, description: shown.append(progress)
    )
    yield shown


def fail(*args: Any, **kwargs: Any) -> None:
    raise ConnectionError("no route to the server")


def point(step: int) -> Point:
    return Point(step=step, metrics={"train/loss": 1.0 / (step + 1)})


def test_outside_a_run_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", lambda **fields: pytest.fail("asked the API"))
    with progress_artifact("training") as show:
        show(50, "half way")


def test_progress_is_shown_at_most_every_two_seconds_and_when_done(artifact: list[float], clock: Clock) -> None:
    with progress_artifact("training") as show:
        for percent in range(0, 101, 10):
            clock.now += 0.5
            show(percent, "")
    assert artifact == [30, 70, 100]


def test_an_api_that_fails_only_warns_once(
    artifact: list[float], clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("prefect.artifacts.update_progress_artifact", fail)
    with caplog.at_level(logging.WARNING), progress_artifact("training") as show:
        for _ in range(3):
            clock.now += 5
            show(10, "")
    assert [record.message for record in caplog.records] == ["progress is no longer shown: no route to the server"]


def test_an_api_that_is_down_from_the_start_only_warns(
    artifact: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", fail)
    with caplog.at_level(logging.WARNING), progress_artifact("training") as show:
        show(100, "")
    assert artifact == [] and "no route" in caplog.text


def test_points_are_sent_many_at_once_in_order_and_all(clock: Clock) -> None:
    calls: list[tuple[Point, ...]] = []
    with live_curve(lambda *points: calls.append(points)) as draw:
        for step in range(10):
            clock.now += 0.5
            draw(point(step))
        assert [len(call) for call in calls] == [4, 4]
    assert [p.step for call in calls for p in call] == list(range(10))


def test_one_call_never_holds_more_than_mlflow_takes(clock: Clock) -> None:
    sizes: list[int] = []
    with live_curve(lambda *points: sizes.append(len(points))) as draw:
        for step in range(250):
            draw(point(step))
    assert sizes == [100, 100, 50]


def test_points_before_a_failure_of_the_work_are_sent(clock: Clock) -> None:
    sent: list[Point] = []
    with pytest.raises(FloatingPointError), live_curve(lambda *points: sent.extend(points)) as draw:
        draw(point(1))
        raise FloatingPointError("the loss is nan")
    assert sent == [point(1)]


def test_a_store_that_fails_is_asked_again_at_the_end_and_only_then(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Point] = []
    asked: list[float] = []

    def send(*points: Point) -> None:
        asked.append(clock.now)
        if len(asked) == 1:
            fail()
        sent.extend(points)

    with caplog.at_level(logging.WARNING), live_curve(send) as draw:
        for step in range(5):
            clock.now += 3
            draw(point(step))
        assert asked == [3.0]
    assert [p.step for p in sent] == list(range(5))
    assert "curves in MLflow are incomplete" in caplog.text
