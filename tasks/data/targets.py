"""What is learned: found out from the labels, which become numbers. Each task reads its labels in a file of its own."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tasks.base.words import named_rows
from tasks.data.labels import Labels, class_names_of, is_a_number, read_labels, several_labels
from tasks.scores.objective import objective
from tasks.settings.fields import InputError
from tasks.settings.sections import DataConfig
from tasks.sources.reading import class_names

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict

    from tasks.base.records import PreparedData


class Target(NamedTuple):
    """The labels of a data set, by split."""

    names: tuple[str, ...]
    """Of the classes or labels; of a number that of its column."""
    labels: "dict[str, np.ndarray]"
    """(rows, ...), as the task's objective takes them; -1 or NaN where a row has none that can be used."""
    feature: Any
    """The kind of a column that holds them."""
    faults: list[str]
    """What is wrong, a sentence each."""


class Reader(Protocol):
    """A file of tasks/data named `TASK.py`."""

    def read(self, chosen: "DatasetDict", config: DataConfig) -> Target:
        """The labels of these splits; InputError where they cannot be those of the task."""

    def check(self, labels: "Mapping[str, np.ndarray]", rows: "Mapping[str, np.ndarray]", names: Sequence[str]) -> None:
        """InputError where the splits, as they are used, cannot be learned from; `rows` are places in the source."""

    def encoded(self, cells: Sequence[Any], names: Sequence[str]) -> "tuple[np.ndarray, np.ndarray]":
        """Labels (rows, ...) of cells as `written` writes them in one column, and a mask of the rows, (rows,), whose
        labels are all among `names`."""

    def given(self, cells: Sequence[Any], names: Sequence[str], config: DataConfig) -> "tuple[np.ndarray, np.ndarray]":
        """The same of cells of any file: what `config.label_column`, or a list of what its `label_columns` hold."""

    def written(self, labels: "np.ndarray", names: Sequence[str], config: DataConfig) -> dict[str, list[Any]]:
        """The columns that `read` would make these of."""


def reader(task: str) -> Reader:
    found: Reader = import_module(f"tasks.data.{task}")
    return found


def as_written(labels: "np.ndarray", data: "PreparedData", config: DataConfig) -> dict[str, list[Any]]:
    """The label columns of a file with rows of `data`."""
    return reader(data.task).written(labels, data.label_names, config)


def find_task(chosen: "DatasetDict", config: DataConfig) -> tuple[str, list[str]]:
    """The task of these splits, and how it was found out where nobody has said it."""
    if config.task != "auto":
        return config.task, []
    if config.label_columns:
        return "multi_label", []
    column = read_labels(chosen["train"], config.label_column)
    if lists_alone(column):
        return "multi_label", [
            f"'{config.label_column}' holds lists: several labels for a text (data.task multi_label)"
        ]
    names = class_names_of(column)
    if not class_names(chosen["train"].features, config.label_column) and names:
        if told := several_labels(names):
            return "multi_label", [f"{told} (data.task multi_label; for a class of each combination: single_label)"]
        if is_a_number(names, column):
            if len(names) < FEW_NUMBERS:
                shown = next((name for name in names if not name.isdecimal()), names[0])
                where = named_rows("train", column.rows([i for i, name in enumerate(column.names) if name == shown]))
                raise InputError(
                    f"data.label_column: '{config.label_column}' looks like a number to predict: {shown} in {where}, "
                    f"but has only {len(names)} different values; correct it, or set data.task to regression, or to "
                    "single_label for a class of each"
                )
            return "regression", [
                f"'{config.label_column}' is a number to predict, {len(names)} different ones in "
                f"{len(column.places):,} rows (data.task regression; for a class of each number: single_label)"
            ]
    return "single_label", []


def lists_alone(column: Labels) -> bool:
    given = [value for value in column.values if value is not None]
    return bool(given) and all(isinstance(value, list) for value in given)


FEW_NUMBERS = 5
"""With fewer different ones it may as well be classes in which somebody has mistyped."""


def with_labels(chosen: "DatasetDict", target: Target, config: DataConfig) -> "DatasetDict":
    """Texts, `label` and `row`, the place in the source, of each split."""
    import numpy as np
    from datasets import DatasetDict, Features, Value

    encoded, features = DatasetDict(), Features({name: Value("string") for name in config.text_columns})
    for role, split in chosen.items():
        texts = split.select_columns(list(config.text_columns))
        encoded[role] = (
            (texts if texts.features == features else texts.cast(features))
            # as arrays: `datasets` hashes what is added, which takes seconds for a long list
            .add_column("label", column_of(target.labels[role]), feature=target.feature)
            .add_column("row", np.arange(len(split)), feature=Value("int64"))
        )
    return encoded


def column_of(labels: "np.ndarray") -> Any:
    return labels if labels.ndim == 1 else list(labels)


def labels_of(split: "Dataset") -> "np.ndarray":
    """The column `label`, (rows, ...)."""
    import numpy as np

    # not in the format "numpy", which makes float32 of all numbers
    batches = split.select_columns(["label"]).with_format(None).iter(batch_size=10_000)
    return np.concatenate([np.asarray(batch["label"]) for batch in batches])


def numbered_labels(
    task: str, labels: "Mapping[str, np.ndarray]", names: Sequence[str]
) -> "tuple[dict[str, np.ndarray], tuple[str, ...]]":
    """A number for each of the different labels, by split, (rows,), and what people call them; -1 for what is none."""
    import numpy as np

    if objective(task).one_class:
        return dict(labels), tuple(names)
    every = np.concatenate(list(labels.values()))
    bad: np.ndarray = np.any(every < 0, axis=1) if every.ndim == 2 else np.isnan(every)
    # of a row without a usable label any other does
    clean = np.where(bad[:, None] if every.ndim == 2 else bad, 0, every)
    different, codes = np.unique(clean, axis=0, return_inverse=True)
    codes = np.where(bad, -1, codes.reshape(-1))
    ends = np.cumsum([len(part) for part in labels.values()])[:-1]
    words = tuple(objective(task).words(different, names))
    return dict(zip(labels, np.split(codes, ends), strict=True)), words
