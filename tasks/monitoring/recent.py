"""Recent rows: read, drawn, and with the model's answers, those that predict wrote or new ones."""

import random
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.base.words import counted
from tasks.data.duplicates import stable_keys
from tasks.data.targets import reader
from tasks.inference.prediction import CHUNK_ROWS, label, load_classifier, shown_digits
from tasks.inference.rows import Row, read_rows
from tasks.models import serving
from tasks.monitoring.watched import Watched, as_monitor, truth_columns
from tasks.settings.config import MonitorConfig
from tasks.settings.fields import InputError
from tasks.settings.sections import DataConfig

if TYPE_CHECKING:
    import numpy as np


class Drawn(NamedTuple):
    """Of the inputs."""

    rows: list[Row]
    """Drawn from all, in their order."""
    labelled: list[Row]
    """Drawn from those with a true label whose text the model has not learned from, in their order."""
    read: int
    """Rows that can be used."""
    copies: int
    """Of these, with the text of an earlier one."""
    rejected: int


class Reservoir:
    """A draw of `size` rows from any number, each as likely. Vitter, ACM TOMS 11 (1985), algorithm R."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.random, self.offered = size, random.Random(seed), 0
        self.rows: list[Row] = []

    def offer(self, row: Row) -> None:
        self.offered += 1
        if len(self.rows) < self.size:
            self.rows.append(row)
        elif (place := self.random.randrange(self.offered)) < self.size:
            self.rows[place] = row

    def drawn(self) -> list[Row]:
        return sorted(self.rows, key=lambda row: row.number)


def draw_rows(config: MonitorConfig, watched: Watched, learned: Collection[int], each_once: bool) -> Drawn:
    """`each_once`: of rows with the same text the first only."""
    truth = truth_columns(config, watched)
    labels = list(truth.label_columns or (truth.label_column,))
    also = dict.fromkeys((*watched.job.answers, "model_version", *labels))
    every, labelled = Reservoir(config.max_rows, config.seed), Reservoir(config.max_rows, config.seed)
    seen, read, copies, rejected = set[int](), 0, 0, 0
    with as_monitor():
        for row in read_rows(config.prediction, watched.job.source, watched.job.columns, tuple(also)):
            if row.fault:
                rejected += 1
                continue
            (key,) = stable_keys([[text] for text in row.texts])
            read, copies, is_copy = read + 1, copies + (key in seen), key in seen
            seen.add(key)
            if is_copy and each_once:
                continue
            every.offer(row)
            if key not in learned and has_truth(row, labels, watched, asked=bool(config.label_columns)):
                labelled.offer(row)
    if not read:
        raise InputError(f"inputs: {config.inputs} has no row with a text")
    return Drawn(every.drawn(), labelled.drawn(), read, copies, rejected)


def has_truth(row: Row, columns: Sequence[str], watched: Watched, asked: bool) -> bool:
    """Whether the row has a true label. What predict has written in a column of this name is none."""
    if not asked and "model_version" in row.also and set(columns) & set(watched.job.answers):
        return False
    cells = [row.also.get(name) for name in columns]
    return not any(cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()) for cell in cells)


def true_labels(rows: Sequence[Row], truth: DataConfig, watched: Watched) -> "tuple[np.ndarray, np.ndarray]":
    """Labels of the rows, (rows, ...), and a mask, (rows,), of those that are the model's."""
    cells: list[Any] = [
        [row.also[name] for name in truth.label_columns] if truth.label_columns else row.also[truth.label_column]
        for row in rows
    ]
    return reader(watched.task).given(cells, watched.job.label_names, truth)


# --- answers ---------------------------------------------------------------------------------------------------------


def answer(config: MonitorConfig, watched: Watched, rows: Sequence[Row]) -> "tuple[np.ndarray, int]":
    """Answers about the rows, (rows, columns), as the task's objective takes them; and how many rows brought them."""
    import numpy as np

    outputs = [given_outputs(row, watched) for row in rows]
    missing = [place for place, found in enumerate(outputs) if found is None]
    if missing:
        classifier, names = load_classifier(config.prediction, watched.job), output_columns(watched)
        for start in range(0, len(missing), CHUNK_ROWS):
            places = missing[start : start + CHUNK_ROWS]
            columns = label(watched.job, classifier, [rows[place] for place in places], 0.0, False)
            for place, *values in zip(places, *(columns[name] for name in names), strict=True):
                outputs[place] = values
    return decided(np.asarray(outputs, float).reshape(len(rows), -1), watched), len(rows) - len(missing)


def output_columns(watched: Watched) -> list[str]:
    """Those of the answers from which all others follow."""
    numbers = [name for name, kind in watched.job.answers.items() if kind == "number"]
    return ["prediction"] if "prediction" in numbers else [name for name in numbers if name != "probability"]


def given_outputs(row: Row, watched: Watched) -> list[float] | None:
    """What predict wrote about the row, with this version of the model."""
    if row.also.get("model_version") != watched.job.version:
        return None
    try:
        return [float(row.also[name]) for name in output_columns(watched)]
    except (KeyError, TypeError, ValueError):
        return None


def decided(outputs: "np.ndarray", watched: Watched) -> "np.ndarray":
    """Outputs, (rows, outputs), with as many digits as predict writes: recent ones may come from its files."""
    from pathlib import Path

    shown = shown_digits(outputs, watched.job.answers)
    return serving.decided(shown, serving.read_settings(Path(watched.job.adapter)))


def rows_sentences(config: MonitorConfig, drawn: Drawn, each_once: bool) -> list[str]:
    """What the reader must know of which rows were looked at."""
    told = []
    if drawn.rejected:
        told.append(f"{counted(drawn.rejected, 'row')} could not be read or had no text, and are left out.")
    if drawn.copies:
        how = (
            "each text counts once, as the model's own rows are"
            if each_once
            else "they count as rows of their own, because the model's own rows hold copies too: if the same row was "
            "sent again, the tests are too sure"
        )
        told.append(f"{drawn.copies:,} of {drawn.read:,} rows have the text of an earlier one; {how}.")
    if (count := drawn.read - drawn.copies * each_once) > len(drawn.rows):
        told.append(f"{len(drawn.rows):,} of {count:,} rows are examined, drawn at random with seed {config.seed}.")
    return told
