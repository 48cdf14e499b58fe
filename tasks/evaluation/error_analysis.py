"""Where the adapter fails: flips, confident mistakes, likely label errors, and slices of the test rows."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.base.records import PreparedData, Slice
from tasks.evaluation.predictions import Predictions
from tasks.scores.objective import objective
from tasks.scores.statistics import primary_interval, wilson_interval
from tasks.settings.rivals import learning_from_train

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


MOST_FLIPS, MOST_MISTAKES, MOST_LABEL_ERRORS = 1_000, 100, 100

SMALL = 30
"""Rows. The interval of an accuracy near a half is wider than 0.33 below that."""

NEGATION = re.compile(
    r"\b(?:not|no|never|neither|nor|none|nobody|nothing|nowhere|cannot|without)\b|n['’]t\b", re.IGNORECASE
)


def read_test_rows(data: PreparedData, predictions: Predictions) -> "pd.DataFrame":
    """The prepared test split without its tokens, a line for each row of `predictions`; ValueError if it differs."""
    import numpy as np
    from datasets import load_from_disk

    slices = (f"slice {name}" for name in data.slice_columns)
    columns = ["row", "labels", "length", "full_length", *data.text_columns, *slices]
    frame: pd.DataFrame = load_from_disk(data.folder)["test"].select_columns(columns).to_pandas()
    if not (np.array_equal(frame["row"], predictions.rows) and np.array_equal(frame["labels"], predictions.labels)):
        raise ValueError(f"the predictions are about other test rows than those in {data.folder}")
    return frame


def flips(data: PreparedData, test: "pd.DataFrame", predictions: Predictions) -> "pd.DataFrame":
    """Rows that tuning fixed or broke, the adapter's most confident first."""
    import numpy as np

    labels, before, after = predictions.labels, predictions.tables["baseline"], predictions.tables["tuned"]
    was_right, is_right = before.argmax(1) == labels, after.argmax(1) == labels
    rows = most(after.max(1), np.flatnonzero(was_right != is_right), MOST_FLIPS)
    return described(data, test, rows).assign(
        true_label=named(data, labels[rows]),
        flip=np.where(is_right[rows], "fixed", "broken"),
        baseline_label=named(data, before[rows].argmax(1)),
        baseline_probability=before[rows].max(1),
        tuned_label=named(data, after[rows].argmax(1)),
        tuned_probability=after[rows].max(1),
    )


def confident_mistakes(data: PreparedData, test: "pd.DataFrame", predictions: Predictions) -> "pd.DataFrame":
    """Rows that the adapter has wrong, the most confident first."""
    import numpy as np

    labels, table = predictions.labels, predictions.tables["tuned"]
    rows = most(table.max(1), np.flatnonzero(table.argmax(1) != labels), MOST_MISTAKES)
    return described(data, test, rows).assign(
        true_label=named(data, labels[rows]),
        tuned_label=named(data, table[rows].argmax(1)),
        tuned_probability=table[rows].max(1),
        true_label_probability=table[rows, labels[rows]],
    )


def likely_label_errors(
    data: PreparedData, test: "pd.DataFrame", predictions: Predictions, confidence: float
) -> "pd.DataFrame":
    """Rows whose label is more likely wrong than the adapter, the largest margin of another label first.

    Confident learning: a row is suspect where the most probable of the classes that reach their threshold, the mean
    probability of the class over the rows labelled with it, is another one than the label. Northcutt, Jiang and
    Chuang, Journal of Artificial Intelligence Research 70 (2021). We add that every other classifier which learned
    something must predict that class too: what only one of them believes is as likely its own mistake.
    """
    import numpy as np

    labels, table = predictions.labels, predictions.tables["tuned"]
    chance = np.bincount(labels).max() / len(labels)
    judges = [name for name in ("tuned", *learning_from_train()) if name in predictions.tables]
    said = {name: predictions.tables[name].argmax(1) for name in judges}
    able = [
        name
        for name, classes in said.items()
        if wilson_interval(int((classes == labels).sum()), len(labels), confidence).low > chance
    ]
    place, likely = np.arange(len(labels)), suspected_classes(table, labels)
    margin = table[place, likely] - table[place, labels]
    suspect = (margin > 0) & np.logical_and.reduce([said[name] == likely for name in able])
    rows = most(margin, np.flatnonzero(suspect) if "tuned" in able else place[:0], MOST_LABEL_ERRORS)
    return described(data, test, rows).assign(
        given_label=named(data, labels[rows]),
        likely_label=named(data, likely[rows]),
        given_label_probability=table[rows, labels[rows]],
        likely_label_probability=table[rows, likely[rows]],
    )


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


def most(scores: "np.ndarray", rows: "np.ndarray", count: int) -> "np.ndarray":
    """The `count` of `rows` with the highest scores, highest first; of equal ones the earlier row."""
    import numpy as np

    best: np.ndarray = rows[np.argsort(-scores[rows], kind="stable")[:count]]
    return best


def described(data: PreparedData, test: "pd.DataFrame", rows: "np.ndarray") -> "pd.DataFrame":
    """Place in the source and texts of these rows."""
    return test.loc[rows, ["row", *data.text_columns]].reset_index(drop=True)


def named(data: PreparedData, labels: "np.ndarray") -> list[str]:
    return [data.label_names[label] for label in labels]


def find_slices(
    data: PreparedData, test: "pd.DataFrame", predictions: Predictions, confidence: float
) -> tuple[Slice, ...]:
    """Both classifiers on rows that have something in common; the slices of one kind hold each row once."""
    import numpy as np

    task, first = objective(data.task), objective(data.task).metrics[0].name
    slices = []
    for kind, name, inside in slice_masks(data, test):
        before, after = (predictions.tables[name][inside] for name in ("baseline", "tuned"))
        labels, rows = predictions.labels[inside], int(np.count_nonzero(inside))
        fixed, broken, p_value = task.compared(after, before, labels)
        slices.append(
            Slice(
                kind=kind,
                name=name,
                rows=rows,
                small=rows < SMALL,
                baseline=task.scores(before, labels)[first],
                score=primary_interval(task, after, labels, confidence),
                fixed=fixed,
                broken=broken,
                p_value=p_value,
            )
        )
    return tuple(slices)


def slice_masks(data: PreparedData, test: "pd.DataFrame") -> Iterator[tuple[str, str, "np.ndarray"]]:
    """Kind, name and rows (a mask) of each slice. A kind that does not tell rows apart is left out."""
    import numpy as np

    tokens = test["full_length"].to_numpy()
    negated = np.logical_or.reduce([[bool(NEGATION.search(text)) for text in test[name]] for name in data.text_columns])
    labels, truncated = test["labels"].to_numpy(), tokens > test["length"].to_numpy()
    kinds: list[tuple[str, list[tuple[str, np.ndarray]]]] = [
        ("tokens", length_quartiles(tokens)),
        ("negation", [("with negation", negated), ("without negation", ~negated)]),
        ("truncated", [("truncated", truncated), ("whole", ~truncated)]),
        ("class", [(name, labels == label) for label, name in enumerate(data.label_names)]),
    ]
    ours = {kind for kind, _ in kinds}
    for column in data.slice_columns:
        values, kind = test[f"slice {column}"], f"column {column}" if column in ours else column
        kinds.append((kind, [(str(value), (values == value).to_numpy()) for value in sorted(values.unique())]))
    for kind, masks in kinds:
        filled = [(name, inside) for name, inside in masks if inside.any()]
        if len(filled) > 1:
            yield from ((kind, name, inside) for name, inside in filled)


def length_quartiles(tokens: "np.ndarray") -> list[tuple[str, "np.ndarray"]]:
    """Up to four groups of rows by number of tokens, about equal in size: equal lengths stay together."""
    import numpy as np

    edges = np.unique(np.quantile(tokens, [0.25, 0.5, 0.75], method="inverted_cdf"))
    place = np.searchsorted(edges, tokens)
    groups = [place == i for i in np.unique(place)]
    return [(span(tokens[group]), group) for group in groups]


def span(tokens: "np.ndarray") -> str:
    low, high = int(tokens.min()), int(tokens.max())
    return f"{low}" if low == high else f"{low} to {high}"
