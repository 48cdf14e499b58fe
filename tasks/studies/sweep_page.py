"""STUB until the page is merged."""

from typing import Any


def verdict_of(best: int, gain: Any) -> str:
    return "x"


def headline(result: Any) -> str:
    return "headline"


def trials_table(result: Any, most: int = 30) -> str:
    return "table"


def sweep_markdown(config: Any, result: Any) -> str:
    return "page"


def description(result: Any) -> str:
    return "d"


def draw_sweep(folder: Any, study: Any, result: Any) -> None: ...
