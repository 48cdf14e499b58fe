"""A number for each text."""

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tasks.base.words import named_rows
from tasks.data.labels import read_labels
from tasks.data.targets import Target
from tasks.settings.fields import InputError
from tasks.settings.sections import DataConfig
from tasks.sources.reading import class_names

if TYPE_CHECKING:
    import numpy as np
    from datasets import DatasetDict


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def read(chosen: "DatasetDict", config: DataConfig) -> Target:
    """(rows,) numbers; NaN where a row has none."""
    import numpy as np
    from datasets import Value

    faults, labels = list[str](), {}
    for role, split in chosen.items():
        column, coded = read_labels(split, config.label_column), class_names(split.features, config.label_column)
        values = column.names if coded and all(map(is_number, coded)) else column.values
        found = [number(value) for value in values]
        if bad := [place for place, one in enumerate(found) if math.isnan(one)]:
            shown = column.values[bad[0]]
            comma = f"; write {str(shown).replace(',', '.')}" if re.fullmatch(r"\s*[+-]?\d+,\d+\s*", str(shown)) else ""
            said = "nothing" if shown is None or not str(shown).strip() else f"{shown!r:.80}"
            faults.append(
                f"data.label_column: {said} is not a number ({named_rows(role, column.rows(bad))}){comma}; correct or "
                "remove such rows"
            )
        labels[role] = np.asarray(found, np.float64)[column.places]
    return Target((config.label_column,), labels, Value("float64"), faults)


def is_number(value: object) -> bool:
    return not math.isnan(number(value))


def number(value: object) -> float:
    """NaN for what is none, infinity too."""
    if isinstance(value, str):
        value = float(value) if NUMBER.fullmatch(value.strip()) else math.nan
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return math.nan
    found = float(value)
    return found if math.isfinite(found) else math.nan


def check(labels: "Mapping[str, np.ndarray]", rows: "Mapping[str, np.ndarray]", names: Sequence[str]) -> None:
    first = labels["train"][0]
    if (labels["train"] == first).all():
        raise InputError(f"data.label_column: all training rows have the number {first:g}; there is nothing to learn")


def encoded(cells: Sequence[Any], names: Sequence[str]) -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np

    labels = np.asarray(cells, np.float64)
    return labels, np.isfinite(labels)


def given(cells: Sequence[Any], names: Sequence[str], config: DataConfig) -> "tuple[np.ndarray, np.ndarray]":
    return encoded([number(cell) for cell in cells], names)


def written(labels: "np.ndarray", names: Sequence[str], config: DataConfig) -> dict[str, list[Any]]:
    return {config.label_column: labels.tolist()}
