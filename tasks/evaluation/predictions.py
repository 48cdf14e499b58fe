"""Prediction files: written, read and paired by row."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.base.files import whole
from tasks.base.records import Evaluation, file_sha256
from tasks.scores.objective import objective
from tasks.sources.columns import array

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def write_evaluation(task: str, table: "np.ndarray", split: Any, path: Path, seconds: float) -> Evaluation:
    """Answers for the rows of `split`, (rows, ...), as a parquet file, whole or not at all, and their scores.

    Raises FloatingPointError where an answer is not a finite number, and DiskFull.
    """
    import numpy as np
    import pandas as pd

    labels, answers = array(split, "labels"), objective(task).answers
    if not (finite := np.isfinite(table).all(1)).all():
        raise FloatingPointError(f"the model gives no finite {answers} for row {int(np.argmin(finite))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"row": array(split, "row"), "label": labels if labels.ndim == 1 else list(labels)}
    frame = pd.DataFrame({**columns, answers: list(table)})
    with whole(path, table.nbytes + 16 * len(table)) as staged:  # runs at the same time may share the file
        frame.to_parquet(staged, index=False)
    return Evaluation(
        predictions=str(path),
        sha256=file_sha256(path),
        scores=objective(task).scores(table, labels),
        seconds=round(seconds, 3),
    )


def read_predictions(path: str) -> tuple["np.ndarray", "np.ndarray", "np.ndarray"]:
    """Row numbers (rows,), labels (rows, ...) and answers (rows, ...) of a prediction file."""
    import pandas as pd

    frame = pd.read_parquet(path)
    rows, labels, answers = (array_of(frame[name]) for name in frame.columns)
    return rows, labels, answers


def array_of(column: "pd.Series[Any]") -> "np.ndarray":
    """(rows,), or (rows, ...) where each cell holds several values."""
    import numpy as np

    values: np.ndarray = np.stack(column.to_list()) if column.dtype == object else column.to_numpy()
    return values


class Predictions(NamedTuple):
    """What several classifiers say about the same rows."""

    rows: "np.ndarray"
    """(rows,), their places in the test split's source."""
    labels: "np.ndarray"
    """(rows, ...)"""
    tables: dict[str, "np.ndarray"]
    """Answers by classifier, each (rows, ...)."""


def paired_predictions(files: Mapping[str, str]) -> Predictions:
    """Prediction files by classifier, read; ValueError unless all are about the same rows and labels."""
    import numpy as np

    read = {name: read_predictions(path) for name, path in files.items()}
    (first, (rows, labels, table)), *others = read.items()
    for name, (other_rows, other_labels, other_table) in others:
        same_rows = np.array_equal(rows, other_rows) and np.array_equal(labels, other_labels)
        if not same_rows or table.shape != other_table.shape:
            raise ValueError(f"the predictions of {first} and {name} are about different test rows or labels")
    return Predictions(rows, labels, {name: table for name, (_, _, table) in read.items()})
