"""Errors on their way from one process to another: of the same kind, with the same words."""

import importlib
import traceback
from collections.abc import Sequence
from typing import Any

from tasks.base.disk import causes

LONGEST = 2_000
"""Characters of a text: a message is to fit into a pipe, whatever is in it."""


def told(error: BaseException) -> list[dict[str, Any]]:
    """The error and those that it came from, as values of JSON."""
    return [told_alone(one) for one in causes(error)[:4]]


def told_alone(error: BaseException) -> dict[str, Any]:
    arguments = list(error.args)
    if isinstance(error, OSError) and isinstance(error.filename, str):
        arguments.append(error.filename)
    plain = all(isinstance(one, str | int | float | None) for one in arguments)
    return {
        "kind": [type(error).__module__, type(error).__qualname__],
        "words": str(error)[:LONGEST],
        "arguments": [one[:LONGEST] if isinstance(one, str) else one for one in arguments] if plain else None,
        "trace": "".join(traceback.format_tb(error.__traceback__))[-LONGEST:],
    }


def error_of(chain: Sequence[dict[str, Any]]) -> Exception:
    """What `told` has told of; RuntimeError where there is no such kind here."""
    first, *others = chain
    error = error_alone(first)
    error.add_note(f"In another process of the training:\n{first['trace']}")
    if others:
        error.__cause__ = error_of(others)
    return error


def error_alone(one: dict[str, Any]) -> Exception:
    module, name = one["kind"]
    if module.split(".")[0] in ("builtins", "tasks", "torch"):
        kind = getattr(importlib.import_module(module), name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                error: Exception = kind(*([one["words"]] if one["arguments"] is None else one["arguments"]))
            except TypeError:
                pass
            else:
                return error
    return RuntimeError(f"{name}: {one['words']}")
