"""What an error is about, in a line, and trying again where that may help."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat, takewhile
from typing import TypeVar

from tasks.base.disk import causes
from tasks.settings.secrets import redact

T = TypeVar("T")


def ask_again(
    ask: Callable[[], T],
    pauses: Iterable[float],
    may_help: Callable[[Exception], bool],
    waiting: Callable[[Exception], None] = lambda error: None,
) -> T:
    """What `ask` gives. Where it raises what waiting `may_help`, it is asked again after each of `pauses` (seconds).

    `waiting` hears why, before each pause. The last error is raised.
    """
    left = iter(pauses)
    while True:
        try:
            return ask()
        except Exception as error:
            pause = next(left, None) if may_help(error) else None
            if pause is None:
                raise
            waiting(error)
        time.sleep(pause)


def growing_pauses(seconds: float) -> Iterator[float]:
    """One second, then twice as long up to 15, as long as the next try comes within `seconds` from now."""
    until = time.monotonic() + seconds
    return takewhile(lambda pause: time.monotonic() + pause <= until, chain((1.0, 2.0, 4.0, 8.0), repeat(15.0)))


def is_network_trouble(error: BaseException) -> bool:
    """Whether waiting may help: a refused, cut or timed-out connection, or a server error."""
    return any(isinstance(cause, ConnectionError | TimeoutError) or of_http_client(cause) for cause in causes(error))


def is_silence(error: BaseException) -> bool:
    """Whether nobody answered: who is asked next will not either. An error that a server answers with is none."""
    return timed_out(error) or any(
        isinstance(cause, ConnectionError) or (of_http_client(cause) and SILENT.search(type(cause).__name__))
        for cause in causes(error)
    )


SILENT = re.compile("Connect|Protocol|Read|Write|Network")
"""Names of the errors of HTTP clients where no answer came, or half of one."""


def timed_out(error: BaseException) -> bool:
    return any("Timeout" in type(cause).__name__ for cause in causes(error))


def of_http_client(error: BaseException) -> bool:
    # the Hub client's httpx has been renamed between versions, so its errors are known by their module
    return any(base.__module__.split(".")[0] in ("httpx", "httpx2", "requests") for base in type(error).__mro__)


def first_line(error: BaseException | str) -> str:
    """What an error says first; with the next line where that only announces it."""
    first, *others = (redact(str(error)).strip() or type(error).__name__).splitlines()  # before half of one is cut off
    return (f"{first} {others[0].strip()}" if first.endswith(":") and others else first)[:200]
