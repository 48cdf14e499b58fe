import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tasks.base import progress
from tasks.base.progress import amount, progress_artifact
from tasks.base.records import Point


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


def test_progress_is_shown_at_most_every_five_seconds_and_when_done(artifact: list[float], clock: Clock) -> None:
    with progress_artifact("training") as show:
        for percent in range(0, 101, 10):
            clock.now += 1
            show(percent, "")
    assert artifact == [40, 90, 100]


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


def test_time_is_reported_in_the_unit_that_people_would_use() -> None:
    assert [amount(seconds) for seconds in (0.4, 40, 89, 90, 720, 12_600)] == [
        "0 s", "40 s", "89 s", "2 min", "12 min", "3.5 h",
    ]  # fmt: skip
