"""What there is to say of each class of probabilities, (rows, classes), and of labels that may be wrong."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from tasks.scores.metrics import PROBABILITY_FLOOR
from tasks.scores.statistics import wilson_interval

if TYPE_CHECKING:
    import numpy as np


def log_loss(table: "np.ndarray", labels: "np.ndarray") -> float:
    """Mean negative log probability of the true class, in nats."""
    import numpy as np

    given = table[np.arange(len(labels)), labels].astype(float)
    return max(0.0, float(-np.log(np.maximum(given, PROBABILITY_FLOOR)).mean()))


def confusion(labels: "np.ndarray", table: "np.ndarray") -> "np.ndarray":
    """Counts, (actual, predicted)."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, table.argmax(1), labels=range(table.shape[1]))


def class_table(labels: "np.ndarray", table: "np.ndarray") -> "np.ndarray":
    """Precision, recall, F1 and rows of each class, (classes, 4)."""
    import numpy as np
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(labels, table.argmax(1), labels=range(table.shape[1]), zero_division=0)
    return np.stack(columns, axis=1)


class Suspicion(NamedTuple):
    """Which labels are likely wrong, by row."""

    likely: "np.ndarray"
    """(rows,), the class that is more likely than the label, or the label."""
    margin: "np.ndarray"
    """(rows,), by how much."""
    suspect: "np.ndarray"
    """(rows,), whether the label is more likely wrong than the classifiers."""


def suspicion(
    table: "np.ndarray", said: "Mapping[str, np.ndarray]", labels: "np.ndarray", confidence: float
) -> Suspicion:
    """Confident learning: a row is suspect where the most probable of the classes that reach their threshold, the mean
    probability of the class over the rows labelled with it, is another one than the label. Northcutt, Jiang and
    Chuang, Journal of Artificial Intelligence Research 70 (2021).

    `table` are the adapter's probabilities, `said` what it (`tuned`) and the others have decided, (rows,). We add that
    all of them that learned something must have decided for that class too: what only one believes is as likely its
    own mistake. Nothing is suspect where the adapter itself has learned nothing.
    """
    import numpy as np

    chance = np.bincount(labels).max() / len(labels)
    able = [
        name
        for name, classes in said.items()
        if wilson_interval(int((classes == labels).sum()), len(labels), confidence).low > chance
    ]
    place, likely = np.arange(len(labels)), suspected_classes(table, labels)
    margin = table[place, likely] - table[place, labels]
    suspect = (margin > 0) & ("tuned" in able) & np.logical_and.reduce([said[name] == likely for name in able])
    return Suspicion(likely, margin, suspect)


def suspected_classes(table: "np.ndarray", labels: "np.ndarray") -> "np.ndarray":
    """The most probable class of each row among those that reach their threshold, (rows,); the label if none does."""
    import numpy as np

    classes = table.shape[1]
    given = table[np.arange(len(labels)), labels].astype(float)
    counts = np.bincount(labels, minlength=classes)
    # nothing is known of a class without rows: no row can reach it
    thresholds = np.where(counts > 0, np.bincount(labels, given, classes) / np.maximum(counts, 1), np.inf)
    reached = np.where(table >= thresholds, table, -1)
    found: np.ndarray = np.where(reached.max(1) >= 0, reached.argmax(1), labels)
    return found
