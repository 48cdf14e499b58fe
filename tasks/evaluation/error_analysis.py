"""Where the adapter fails: flips, confident mistakes, likely label errors, and slices of the test rows."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tasks.base.records import PreparedData, Slice
from tasks.evaluation.predictions import Predictions, array_of
from tasks.scores.objective import objective
from tasks.scores.statistics import primary_interval
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
    labels = array_of(frame["labels"])
    if not (np.array_equal(frame["row"], predictions.rows) and np.array_equal(labels, predictions.labels)):
        raise ValueError(f"the predictions are about other test rows than those in {data.folder}")
    return frame


def flips(data: PreparedData, test: "pd.DataFrame", predictions: Predictions) -> "pd.DataFrame":
    """Rows that tuning fixed or broke, those that say most first."""
    import numpy as np

    task, names, labels = objective(data.task), data.label_names, predictions.labels
    better, weight = task.flips(predictions.tables["tuned"], predictions.tables["baseline"], labels)
    columns = {**task.truth(labels, names), "flip": np.where(better > 0, "fixed", "broken")}
    for name in ("baseline", "tuned"):
        said = task.said(predictions.tables[name], labels, names)
        columns |= {f"{name}_{column}": values for column, values in said.items()}
    return described(data, test, most(weight, np.flatnonzero(better), MOST_FLIPS), columns)


def mistakes(data: PreparedData, test: "pd.DataFrame", predictions: Predictions) -> "pd.DataFrame":
    """Rows that the adapter has wrong, those that say most first."""
    import numpy as np

    task, labels, table = objective(data.task), predictions.labels, predictions.tables["tuned"]
    weight, columns = task.mistakes(table, labels, data.label_names)
    rows = most(weight, np.flatnonzero(task.errors(table, labels)), MOST_MISTAKES)
    return described(data, test, rows, task.truth(labels, data.label_names) | columns)


def likely_label_errors(
    data: PreparedData, test: "pd.DataFrame", predictions: Predictions, fitted: Mapping[str, Any], confidence: float
) -> "pd.DataFrame":
    """Rows whose label is more likely wrong than the adapter, the largest margin first; `fitted` is the adapter's."""
    import numpy as np

    judges = ("tuned", *learning_from_train())
    tables = {name: predictions.tables[name] for name in judges if name in predictions.tables}
    task = objective(data.task)
    margin, suspect, columns = task.suspects(tables, predictions.labels, data.label_names, fitted, confidence)
    return described(data, test, most(margin, np.flatnonzero(suspect), MOST_LABEL_ERRORS), columns)


def most(scores: "np.ndarray", rows: "np.ndarray", count: int) -> "np.ndarray":
    """The `count` of `rows` with the highest scores, highest first; of equal ones the earlier row."""
    import numpy as np

    best: np.ndarray = rows[np.argsort(-scores[rows], kind="stable")[:count]]
    return best


def described(
    data: PreparedData, test: "pd.DataFrame", rows: "np.ndarray", columns: Mapping[str, Any]
) -> "pd.DataFrame":
    """Place in the source, texts and `columns`, which are about all rows, of these rows."""
    import pandas as pd

    about = pd.DataFrame(columns)
    parts = test[["row", *data.text_columns]], about
    return pd.concat([part.iloc[rows].reset_index(drop=True) for part in parts], axis=1)


def find_slices(
    data: PreparedData, test: "pd.DataFrame", predictions: Predictions, confidence: float
) -> tuple[Slice, ...]:
    """Both classifiers on rows that have something in common. The slices of one kind hold each row once; of labels, of
    which a row can have several, once or more."""
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
    truncated = tokens > test["length"].to_numpy()
    kinds: list[tuple[str, list[tuple[str, np.ndarray]]]] = [
        ("tokens", length_quartiles(tokens)),
        ("negation", [("with negation", negated), ("without negation", ~negated)]),
        ("truncated", [("truncated", truncated), ("whole", ~truncated)]),
        objective(data.task).parts(array_of(test["labels"]), data.label_names),
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
