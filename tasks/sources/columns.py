"""The values of a column of a split, as an array, or a part at a time."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset


BATCH_ROWS = 10_000
"""Looked at in one go: a column of a million rows as Python objects would be most of the memory of preparing it."""


def numbers(split: "Dataset", column: str) -> "np.ndarray":
    """A column of whole numbers, int64 (rows,).

    By batches, because `datasets` makes an object and a table of each row that it looks up in a cut or selected split.
    """
    import numpy as np

    batches = split.select_columns([column]).with_format("numpy").iter(batch_size=BATCH_ROWS)
    parts = [np.empty(0, np.int64), *(batch[column] for batch in batches)]
    return np.concatenate(parts, dtype=np.int64, casting="unsafe")


def array(split: "Dataset", column: str) -> "np.ndarray":
    """A column of numbers, or of lists of as many numbers each, as an array (rows, ...).

    Read in one go: numpy would have `datasets` look up each row of the column, which takes 3 s for 100,000 rows.
    """
    import numpy as np

    return np.asarray(split[column][:])


def column_values(split: "Dataset", column: str) -> Iterator[Any]:
    """A column of anything, a batch of it in memory at a time."""
    for batch in split.select_columns([column]).iter(batch_size=BATCH_ROWS):
        yield from batch[column]
