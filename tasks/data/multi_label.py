"""Any number of labels for each text: as lists, as words with a separator between them, or as columns of 0 and 1."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.base.words import named_rows
from tasks.data.labels import as_label, check_names, in_order, number_of, parts_of, read_labels, says_nothing, shortened
from tasks.data.targets import Target
from tasks.settings.fields import InputError
from tasks.settings.sections import DataConfig

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict


YES, NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
"""What a column of 0 and 1 may hold; in small letters."""


def read(chosen: "DatasetDict", config: DataConfig) -> Target:
    """(rows, labels) of 0 and 1; -1 in all of a row that cannot be read."""
    from datasets import List, Value

    names, labels, faults = by_column(chosen, config) if config.label_columns else in_one_column(chosen, config)
    return Target(names, labels, List(Value("int8"), length=len(names)), faults)


def by_column(chosen: "DatasetDict", config: DataConfig) -> "tuple[tuple[str, ...], dict[str, np.ndarray], list[str]]":
    import numpy as np

    names, faults, labels = config.label_columns, list[str](), {}
    check_names(names, config)
    for role, split in chosen.items():
        columns = []
        for name in names:
            column = read_labels(split, name)
            found = [yes_or_no(value) for value in column.values]
            if bad := [place for place, one in enumerate(found) if one < 0]:
                faults.append(
                    f"data.label_columns: {column.values[bad[0]]!r:.80} in '{name}' is not 0 or 1 "
                    f"({named_rows(role, column.rows(bad))}); write 1 where a text has the label, else 0"
                )
            columns.append(np.asarray(found, np.int8)[column.places])
        table = np.stack(columns, axis=1)
        labels[role] = np.where(np.any(table < 0, axis=1)[:, None], np.int8(-1), table)
    if never := [repr(name) for name, has in zip(names, (labels["train"] == 1).any(0), strict=True) if not has]:
        them = "it" if len(never) == 1 else "them"
        faults.append(
            f"data.label_columns: no training row has a 1 in {shortened(never)}, and what is never seen cannot be "
            f"learned; add training rows with it, or take {them} out of data.label_columns"
        )
    return names, labels, faults


def yes_or_no(value: object) -> int:
    """1, 0, or -1 for neither."""
    word = str(value).strip().lower()
    return 1 if word in YES else 0 if word in NO else -1


def in_one_column(
    chosen: "DatasetDict", config: DataConfig
) -> "tuple[tuple[str, ...], dict[str, np.ndarray], list[str]]":
    import numpy as np

    columns = {role: read_labels(split, config.label_column) for role, split in chosen.items()}
    coded = inner_names(chosen["train"], config.label_column)
    sets = {role: [labels_in(value, coded, config) for value in column.values] for role, column in columns.items()}
    names = coded or in_order({name for one in sets["train"] for name in one or ()})
    faults = [fault for role, column in columns.items() for fault in unreadable(role, column, sets[role])]
    if len(names) < 2 and not faults:
        only = f"only the label {names[0]!r}" if names else "no label"
        raise InputError(f"data.label_column: the rows of '{config.label_column}' have {only}; two are needed")
    if not faults:
        check_names(names, config)
    place, labels = {name: i for i, name in enumerate(names)}, {}
    for role, column in columns.items():
        unknown = sorted({name for one in sets[role] for name in one or () if number_of(name, place) < 0})
        if unknown:
            bad = [i for i, one in enumerate(sets[role]) if one and set(unknown).intersection(one)]
            faults.append(
                f"data.label_column: {shortened(list(map(repr, unknown)))} in {role} is not one of {shortened(names)} "
                f"({named_rows(role, column.rows(bad))}); correct it, or add training rows with it"
            )
        table = np.zeros((len(column.values), len(names)), np.int8)
        for i, one in enumerate(sets[role]):
            table[i] = -1 if one is None else 0
            table[i, [at for name in one or () if (at := number_of(name, place)) >= 0]] = 1
        labels[role] = table[column.places]
    return names, labels, faults


def inner_names(split: "Dataset", column: str) -> tuple[str, ...]:
    """What the numbers in a column of lists stand for; empty where it says nothing about it."""
    return tuple(getattr(getattr(split.features[column], "feature", None), "names", ()) or ())


def labels_in(value: object, coded: Sequence[str], config: DataConfig) -> tuple[str, ...] | None:
    """The labels that a cell names; None where that cannot be told. An empty cell is no label where the task was given:
    it may be a gap."""
    if isinstance(value, list):
        inner = [
            coded[one] if coded and isinstance(one, int) and 0 <= one < len(coded) else as_label(one) for one in value
        ]
        return None if None in inner else tuple(name.strip() for name in inner if name)
    name = as_label(value)
    if name is None:
        return () if config.task == "multi_label" and says_nothing(value) else None
    return () if name.strip() == "[]" else tuple(dict.fromkeys(parts_of(name)))


def unreadable(role: str, column: Any, sets: Sequence[tuple[str, ...] | None]) -> list[str]:
    if not (bad := [place for place, one in enumerate(sets) if one is None]):
        return []
    value = column.values[bad[0]]
    shown = "an empty cell" if value is None or not str(value).strip() else f"{value!r:.80}"
    return [
        f"data.label_column: {shown} does not say which labels the text has ({named_rows(role, column.rows(bad))}); "
        "write [] for none, or set data.task to multi_label where an empty cell means none"
    ]


def check(labels: "Mapping[str, np.ndarray]", rows: "Mapping[str, np.ndarray]", names: Sequence[str]) -> None:
    """Each label that validation or test asks for must be in train."""
    import numpy as np

    known: np.ndarray = np.any(labels["train"], axis=0)
    for role, part in labels.items():
        if len(new := np.flatnonzero(np.any(part, axis=0) & ~known)):
            row = rows[role][int(part[:, new[0]].argmax())]
            raise InputError(
                f"data: label {names[new[0]]!r} in {role} never appears in train ({role} row {row}); add "
                f"training rows with it, or remove it from {role}"
            )
    if not known.any():
        raise InputError("data: no training row has a label; is it the right column?")


def encoded(cells: Sequence[Any], names: Sequence[str]) -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np

    labels = np.asarray([[name in cell for name in names] for cell in map(list, cells)], np.int8)
    return labels.reshape(-1, len(names)), np.asarray([set(cell) <= set(names) for cell in cells], bool)


def given(cells: Sequence[Any], names: Sequence[str], config: DataConfig) -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np

    if config.label_columns:
        table = np.asarray([[yes_or_no(value) for value in cell] for cell in cells], np.int8).reshape(-1, len(names))
        known: np.ndarray = np.all(table >= 0, axis=1)
        return np.maximum(table, 0), known
    sets = [labels_in(cell, (), config) for cell in cells]
    labels, known = encoded([one or () for one in sets], names)
    told: np.ndarray = known & np.asarray([one is not None for one in sets], bool)
    return labels, told


def written(labels: "np.ndarray", names: Sequence[str], config: DataConfig) -> dict[str, list[Any]]:
    if config.label_columns:
        return {name: labels[:, i].tolist() for i, name in enumerate(names)}
    return {config.label_column: [[names[i] for i in row.nonzero()[0]] for row in labels]}
