"""What a trial tries, as people read it."""

import re
from collections.abc import Mapping
from typing import Any

from tasks.base.words import plain


def values_words(values: Mapping[str, Any]) -> str:
    """`lora, r 16, learning_rate 0.001`: fields without their section, which nobody needs to tell them apart."""
    return ", ".join(one_word(field, value) for field, value in values.items()) or "as given"


def marked(words: str) -> str:
    """`words` for markdown that is read in a terminal too: the underscore within a name means nothing there."""
    return re.sub(r"(?<=\w)\\_(?=\w)", "_", plain(words))


SPEAKS_FOR_ITSELF = ("adapter.method", "adapter.options", "model.name")


def one_word(field: str, value: Any) -> str:
    return value_words(value) if field in SPEAKS_FOR_ITSELF else f"{short_field(field)} {value_words(value)}"


def short_field(field: str) -> str:
    section, _, name = field.rpartition(".")
    return section if name == "name" else name


def value_words(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {value_words(one)}" for name, one in value.items()) or "no options"
    if isinstance(value, list | tuple):
        return "+".join(map(value_words, value)) or "usual"
    return str(value)
