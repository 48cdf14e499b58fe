"""One class for each text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.data.labels import (
    as_label,
    check_count,
    check_missing,
    check_names,
    class_names_of,
    is_unlabelled,
    label_faults,
    no_classes,
    number_of,
    numbered,
    plain_number,
    read_labels,
)
from tasks.data.targets import Target
from tasks.settings.fields import InputError
from tasks.settings.sections import DataConfig
from tasks.sources.reading import class_names

if TYPE_CHECKING:
    import numpy as np
    from datasets import DatasetDict


def read(chosen: "DatasetDict", config: DataConfig) -> Target:
    """(rows,) class numbers; -1 for a label that is not a class. Classes come from ClassLabel, else from train."""
    import numpy as np
    from datasets import ClassLabel

    columns = {role: read_labels(split, config.label_column) for role, split in chosen.items()}
    coded = class_names(chosen["train"].features, config.label_column)
    names = coded or class_names_of(columns["train"])
    number = numbered(names, bool(coded))
    if not is_unlabelled(columns["train"], ()) and not no_classes("train", columns["train"]):
        check_names(names, config)
        if not coded:
            check_missing(names, columns["train"])
        check_count(names, len(chosen["train"]), config)
    labels = {}
    for role, column in columns.items():
        own = np.asarray([number_of(name, number) for name in column.names], np.int64)
        labels[role] = own[column.places]
    return Target(names, labels, ClassLabel(names=list(names)), label_faults(columns, number, names, config))


def check(labels: "Mapping[str, np.ndarray]", rows: "Mapping[str, np.ndarray]", names: Sequence[str]) -> None:
    """Train must hold two classes, and every class that validation or test asks for."""
    import numpy as np

    present = {role: set(np.unique(column).tolist()) for role, column in labels.items()}
    if len(present["train"]) < 2:
        only = names[min(present["train"])]
        raise InputError(f"data: the training rows hold only one class, {only!r}; two are needed")
    for role in ("validation", "test"):
        if unknown := present[role] - present["train"]:
            row = int(rows[role][int((labels[role] == min(unknown)).argmax())])
            raise InputError(
                f"data.label_column: label {names[min(unknown)]!r} in {role} never appears in train "
                f"({role} row {row}); add training rows with it, or remove it from {role}"
            )


def encoded(cells: Sequence[Any], names: Sequence[str]) -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np

    place = {name: i for i, name in enumerate(names)}
    labels = np.asarray([place.get(cell, -1) for cell in cells], np.int64)
    return labels, labels >= 0


def given(cells: Sequence[Any], names: Sequence[str], config: DataConfig) -> "tuple[np.ndarray, np.ndarray]":
    """Numbers stand for the classes in their order where no class is called by one and each is one of theirs."""
    import numpy as np

    words = [as_label(cell) for cell in cells]
    bare = not any(name.isdecimal() for name in names)
    coded = bare and {plain_number(word) for word in words if word} <= {str(i) for i in range(len(names))}
    number = numbered(names, coded)
    labels = np.asarray([number_of(word, number) for word in words], np.int64)
    return labels, labels >= 0


def written(labels: "np.ndarray", names: Sequence[str], config: DataConfig) -> dict[str, list[Any]]:
    return {config.label_column: [names[label] for label in labels]}
