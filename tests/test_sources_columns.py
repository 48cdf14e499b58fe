"""Columns of a split as arrays, the same whether the split is whole, cut or reordered."""

from typing import Any

import numpy as np
import pytest

from tasks.sources.columns import array

VALUES = {"class": [2, 0, 1, 0], "labels": [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]], "number": [0.1, 2, -3, 4]}


@pytest.mark.parametrize("column", VALUES)
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 1], []], ids=["whole", "reordered", "empty"])
def test_column_is_that_of_the_rows(column: str, rows: list[int]) -> None:
    from datasets import Dataset

    split = Dataset.from_dict(VALUES)
    found = array(split if len(rows) == 4 else split.select(rows), column)
    assert np.array_equal(found, np.asarray([VALUES[column][row] for row in rows]))


def test_no_row_is_looked_up_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    asked: list[Any] = []
    looked_up = Dataset._getitem
    monkeypatch.setattr(
        Dataset, "_getitem", lambda self, key, **named: asked.append(key) or looked_up(self, key, **named)
    )
    array(Dataset.from_dict(VALUES), "class")
    assert len(asked) == 1
