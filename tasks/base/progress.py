"""What a run says while it goes on: a line in its log, and how far it is, on the Prefect run page."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

UPDATE_SECONDS = 5.0
"""Each update is a call to an API, about 20 ms, and as much work for the server, on the cores that train."""


@contextmanager
def progress_artifact(key: str) -> Iterator[Callable[[float, str], None]]:
    """A function that shows percent done and a line of text as a Prefect progress artifact, at most every 5 s.

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


def table_artifact(key: str) -> Callable[..., None]:
    """`show(rows, at_once=False)` shows a table on the Prefect run page, at most every 5 s; each row is a mapping.

    It never disturbs the work: outside a run it does nothing, and an API that is down only delays the display.
    """
    from prefect.artifacts import create_table_artifact
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactUpdate
    from prefect.context import get_run_context
    from prefect.exceptions import MissingContextError

    artifact: Any = None
    shown, failed = -UPDATE_SECONDS, False

    def show(rows: list[dict[str, str]], at_once: bool = False) -> None:
        nonlocal artifact, shown, failed
        now = time.monotonic()
        if now - shown < UPDATE_SECONDS and not at_once:
            return
        shown = now
        try:
            if artifact is None:
                get_run_context()
                artifact = create_table_artifact(rows, key=key)
            else:
                with get_client(sync_client=True) as client:
                    client.update_artifact(artifact, ArtifactUpdate(data=json.dumps(rows)))
        except MissingContextError:
            return
        except Exception as error:
            if not failed:
                warn("the table is not shown for now: %s", error)
            failed = True

    return show


def amount(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`"""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def tell(message: str, *values: object) -> None:
    log(logging.INFO, message, *values)


def warn(message: str, *values: object) -> None:
    log(logging.WARNING, message, *values)


def log(level: int, message: str, *values: object) -> None:
    """Into the log of the run at hand, where there is one."""
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    try:
        logger: Any = get_run_logger()
    except MissingContextError:
        logger = logging.getLogger(__name__)
    logger.log(level, message, *values)
