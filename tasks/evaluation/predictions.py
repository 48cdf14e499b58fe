"""Prediction files: written, read and paired by row."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.base.files import whole
from tasks.base.records import Evaluation, file_sha256
from tasks.scores.objective import objective

if TYPE_CHECKING:
    import numpy as np


def write_evaluation(task: str, table: "np.ndarray", split: Any, path: Path, seconds: float) -> Evaluation:
    """Answers for the rows of `split`, (rows, ...), as a parquet file, whole or not at all, and their scores.

    Raises FloatingPointError where a probability is not a finite number, and DiskFull.
    """
    import numpy as np
    import pandas as pd

    labels = np.asarray(split["labels"])
    if not np.isfinite(table).all():
        raise FloatingPointError(f"the model gives no finite probabilities for row {int(np.argmin(table.min(1)))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"row": np.asarray(split["row"]), "label": labels, "probabilities": list(table)})
    with whole(path, table.nbytes + 16 * len(table)) as staged:  # runs at the same time may share the file
        frame.to_parquet(staged, index=False)
    return Evaluation(
        predictions=str(path),
        sha256=file_sha256(path),
        scores=objective(task).scores(table, labels),
        seconds=round(seconds, 3),
    )


def read_predictions(path: str) -> tuple["np.ndarray", "np.ndarray", "np.ndarray"]:
    """Row numbers (rows,), labels (rows,) and probabilities (rows, classes) of a prediction file."""
    import numpy as np
    import pandas as pd

    frame = pd.read_parquet(path)
    return frame["row"].to_numpy(), frame["label"].to_numpy(), np.stack(frame["probabilities"].to_list())


class Predictions(NamedTuple):
    """What several classifiers say about the same rows."""

    rows: "np.ndarray"
    """(rows,), their places in the test split's source."""
    labels: "np.ndarray"
    """(rows,)"""
    tables: dict[str, "np.ndarray"]
    """Probabilities by classifier, each (rows, classes)."""


def paired_predictions(files: Mapping[str, str]) -> Predictions:
    """Prediction files by classifier, read; ValueError unless all are about the same rows, labels and classes."""
    import numpy as np

    read = {name: read_predictions(path) for name, path in files.items()}
    (first, (rows, labels, table)), *others = read.items()
    for name, (other_rows, other_labels, other_table) in others:
        same_rows = np.array_equal(rows, other_rows) and np.array_equal(labels, other_labels)
        if not same_rows or table.shape != other_table.shape:
            raise ValueError(f"the predictions of {first} and {name} are about different test rows or classes")
    return Predictions(rows, labels, {name: table for name, (_, _, table) in read.items()})
