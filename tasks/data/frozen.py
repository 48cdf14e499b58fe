"""A test set that stays as it is while the data grow: the rows of a file, whose texts are kept out of training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.base.records import PreparedData
from tasks.base.words import counted
from tasks.data.duplicates import leaked_rows
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.sections import DataConfig
from tasks.sources.columns import array, numbers
from tasks.sources.kept import as_kinds, rows_of
from tasks.sources.reading import as_field, check_letters, check_test_file

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, DatasetDict


def read_test_file(config: DataConfig) -> "Dataset":
    """The rows of `data.test_file`; InputError names the file."""
    assert config.test_file
    path = Path(config.test_file).expanduser().resolve()
    check_test_file(path, config)
    with as_field("data.test_file"):
        test = with_row_numbers(rows_of([(path,)]))
        if not len(test):
            raise InputError(f"data.name: {path} has no rows; add some")
        check_letters({"test": test}, path)
    check_rows(test, path)
    return test


def with_row_numbers(test: "Dataset") -> "Dataset":
    """With numbers in the column `row`, where a csv has them as text."""
    from datasets import Features, Value

    if "row" in test.column_names and all(isinstance(row, str) and row.isdecimal() for row in test["row"][:]):
        return as_kinds(test, Features(test.features | {"row": Value("int64")}))
    return test


def check_rows(test: "Dataset", path: Path) -> None:
    """Refuses a column `row` that cannot say where the rows were first found."""
    if "row" not in test.column_names:
        return
    rows = test["row"][:]
    if any(type(row) is not int or row < 0 for row in rows) or len(set(rows)) < len(rows):
        raise InputError(
            f"data.test_file: the column 'row' of {path} must hold a different whole number in each row; "
            "rename or remove it"
        )


def renumbered(test: "Dataset", file: "Dataset") -> "Dataset":
    """`test`, whose `row` is the place in `file`, with the number that the file itself gives each row, if it does."""
    from datasets import Value

    if "row" not in file.column_names:
        return test
    rows, places = numbers(file, "row"), numbers(test, "row")
    return (
        test.remove_columns("row")
        .add_column("row", rows[places], feature=Value("int64"))
        .select_columns(test.column_names)
    )


def keep_out(splits: "DatasetDict", rows: "pd.DataFrame") -> dict[str, int]:
    """Take rows that have the text of a test row out of train and validation; how many those were, by split. `rows` are
    those of `duplicates.same_texts`."""
    import numpy as np

    kept_out = dict[str, int]()
    for role in sorted(splits.keys() - {"test"}):
        leaked = leaked_rows(rows, role, "test")["place"].to_numpy()
        if len(leaked) == len(splits[role]):
            raise InputError(
                f"data.test_file: all {len(leaked):,} {role} rows have the text of a test row; give other {role} rows"
            )
        if kept_out.setdefault(role, len(leaked)):
            splits[role] = splits[role].select(np.setdiff1d(np.arange(len(splits[role])), leaked))
    return kept_out


def describe_kept_out(kept_out: Mapping[str, int]) -> str:
    rows = ", ".join(counted(count, f"{role} row") for role, count in kept_out.items())
    return f"excluded because their text is in data.test_file: {rows}"


def frozen_rows(config: RunConfig, data: PreparedData) -> "pd.DataFrame":
    """The test rows as `data.test_file` takes them: `row`, texts, label by name, and categorical columns."""
    import pandas as pd
    from datasets import load_from_disk

    from tasks.data.targets import as_written

    test = load_from_disk(data.folder)["test"]
    columns = {name: test[name][:] for name in ("row", *data.text_columns)}
    columns |= as_written(array(test, "labels"), data, config.data)
    return pd.DataFrame(columns | {name: test[f"slice {name}"][:] for name in data.slice_columns})


def paired_columns(theirs: Sequence[str], ours: Sequence[str]) -> dict[str, str]:
    """What we call each text column of another run: by name; where one has a new name, by place."""
    return dict(zip(theirs, theirs if set(theirs) == set(ours) else ours, strict=True))


def in_our_columns(rows: "pd.DataFrame", theirs: Sequence[str], data: DataConfig) -> "pd.DataFrame":
    """`frozen_rows` of a run whose text columns are `theirs`, with the names that columns have in `data`."""
    # the label comes after the texts, whatever it is called; several columns of 0 and 1 are known by name
    label = {name: name for name in data.label_columns} or {rows.columns[1 + len(theirs)]: data.label_column}
    if not set(label) <= set(rows.columns):
        missing = ", ".join(name for name in label if name not in rows.columns)
        raise InputError(
            f"data.label_columns: the champion's test rows have no {missing}; draw new ones with --refresh_test"
        )
    names = {"row": "row", **paired_columns(theirs, data.text_columns), **label}
    slices = [name for name in rows.columns[len(names) :] if name not in names.values()]
    return rows[[*names, *slices]].rename(columns=names)
