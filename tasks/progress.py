"""Live progress: on the Prefect run page, and as curves in MLflow."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tasks.records import Point

UPDATE_SECONDS = 2.0
"""Each update is a call to an API, about 20 ms; more often tells nobody more and slows training."""


@contextmanager
def progress_artifact(key: str) -> Iterator[Callable[[float, str], None]]:
    """A function that shows percent done and a line of text as a Prefect progress artifact, at most every 2 s.

    It never disturbs the work: outside a run it does nothing, and an API that is down only stops the display.
    """
    from prefect.artifacts import create_progress_artifact, update_progress_artifact
    from prefect.context import get_run_context
    from prefect.exceptions import MissingContextError

    try:
        get_run_context()
        artifact: Any = create_progress_artifact(progress=0.0, key=key, description="starting")
    except MissingContextError:
        yield lambda percent, text: None
        return
    except Exception as error:
        warn("progress is not shown: %s", error)
        yield lambda percent, text: None
        return
    shown = time.monotonic()
    failed = False

    def show(percent: float, text: str) -> None:
        nonlocal shown, failed
        now = time.monotonic()
        if failed or (now - shown < UPDATE_SECONDS and percent < 100):
            return
        shown = now
        try:
            update_progress_artifact(artifact, progress=percent, description=text)
        except Exception as error:
            failed = True
            warn("progress is no longer shown: %s", error)

    yield show


class Send(Protocol):
    def __call__(self, *points: Point) -> None: ...


@contextmanager
def live_curve(send: Send) -> Iterator[Callable[[Point], None]]:
    """A function that takes the points of a curve and sends them on, many at once, at most every 2 s.

    What waits is sent at the end, also after an error. A store that fails is asked once more at the end, and only
    then: the work goes on, and the points are in the history that it returns.
    """
    waiting: list[Point] = []
    sent = time.monotonic()
    failed = False

    def flush() -> None:
        nonlocal failed, sent
        sent = time.monotonic()
        try:
            while waiting:
                send(*waiting[:MOST_POINTS])
                del waiting[:MOST_POINTS]
        except Exception as error:
            failed = True
            warn("the curves in MLflow are incomplete: %s", error)

    def draw(point: Point) -> None:
        waiting.append(point)
        if not failed and time.monotonic() - sent >= UPDATE_SECONDS:
            flush()

    try:
        yield draw
    finally:
        flush()


MOST_POINTS = 100
"""Points in one call: MLflow takes 1000 values at once, and a point has up to seven."""


def warn(message: str, error: Exception) -> None:
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    try:
        logger: Any = get_run_logger()
    except MissingContextError:
        logger = logging.getLogger(__name__)
    logger.warning(message, error)
