"""What to do about columns that are missing, by what the first rows hold."""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

from tasks.settings.sections import DataConfig


def name_columns(first: Mapping[str, Sequence[Any]], texts: Sequence[str], label: str | None = None) -> str:
    """What to do where one of `texts` and `label` is missing: which options name those that look like them."""
    wanted = [*texts, *([label] if label else [])]
    if len(first) == 1 and not any(first.values()):  # no row has as few fields
        return "its rows have more columns than its first line; where that is a title or remark, take it away"
    if any(re.search(r"\w\s+\w+\s+\w", name) or re.fullmatch(r"[-+.\d]+", name) for name in first):
        return f"if this is its first row and no names, write the names above it: {','.join(wanted)}"
    if nested := holds_nested(first, texts, label):
        return f"{nested!r:.80} holds objects: write what is in them as columns (in pandas: json_normalize)"
    if first and sum(not name.startswith("unnamed ") for name in first) < len(wanted):
        return (
            f"columns for {' and '.join(wanted)} are needed, named in the first row, and in a csv with a comma, a tab, "
            "';' or '|' between them"
        )
    section = "data." if label else ""
    others = {name: [value for value in values if value is not None] for name, values in first.items()}
    letters = {
        name: sum(map(len, values)) for name, values in others.items() if all(isinstance(v, str) for v in values)
    }
    longest = sorted((name for name in letters if letters[name] and name != label), key=letters.__getitem__)[
        -len(texts) :
    ]
    found = texts if set(texts) <= set(first) else [name for name in first if name in longest]
    kinds = {name: len(set(map(repr, values))) for name, values in others.items() if name not in found}
    classes = label if label in first else min((n for n in kinds if kinds[n] > 1), key=kinds.__getitem__, default=None)
    unfit = next((name for name in found if "," in name or name != name.strip()), None)  # for an option
    if unfit and found is not texts:
        return f"rename {unfit!r:.80} to {texts[found.index(unfit)]}"
    options = [] if found is texts else [f"--{section}text_columns {shlex.quote(','.join(found))}"]
    if label and label not in first:
        options.append(f"--{section}label_column {shlex.quote(classes or '')}")
    if len(found) < len(texts) or (label and not classes) or len(" ".join(options)) > MOST_OPTION_LETTERS:
        return "name them with " + " and ".join(
            f"--{section}{name}" for name in ("text_columns", "label_column")[: 1 + bool(label)]
        )
    sentences = [name for name in letters if name != label and looks_like_text(others[name])]
    pair = ",".join(sentences) if len(texts) == 1 and len(sentences) == 2 and found is not texts else ""
    both = f", or for pairs of texts --{section}text_columns {shlex.quote(pair)}" if pair else ""
    return f"perhaps {' '.join(options)}{both}"


def holds_nested(first: Mapping[str, Sequence[Any]], texts: Sequence[str], label: str | None) -> str | None:
    """The column whose objects hold a column that is missing, or must hold it because there is no text beside."""
    inner: dict[str, set[str]] = {}
    for name, values in first.items():
        flat = chain.from_iterable(value if isinstance(value, list) else [value] for value in values)
        if name not in (*texts, label) and (
            keys := set(chain.from_iterable(one for one in flat if isinstance(one, dict)))
        ):
            inner[name] = keys
    missing = {*texts, label} - first.keys()
    has_text = any(isinstance(value, str) for name in first if name != label for value in first[name])
    return next((name for name, keys in inner.items() if keys & missing or not has_text), None)


def looks_like_text(values: Sequence[str]) -> bool:
    """Whether most have several words and there are few twice."""
    words = sum(" " in value.strip() for value in values)
    return 2 * words > len(values) and 2 * len(set(values)) > len(values)


MOST_OPTION_LETTERS = 100
"""Of options that a message names: longer ones have no names in them, but rows where a header is missing."""


def labelled_instead(role: str, labelled: Collection[str], config: DataConfig) -> str:
    """What to do where the rows of `role` have no labels and those of `labelled` have."""
    if role == "test" and config.test_file:
        return "label the rows of data.test_file, or leave it out"
    if role == "train":
        return "name the column of the classes with --data.label_column, or labelled rows with --data.train_split"
    if role == "test" and "validation" in labelled:
        return (
            f"--data.test_split {config.validation_split} tests on the validation rows and cuts a new validation from "
            "train"
        )
    return f"--data.{role}_split {config.train_split} cuts {role} rows from train"
