"""The raw splits of a data set, read from anywhere: which there are, which are used, and that they can be."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base.disk import is_disk_full
from tasks.base.records import Source, digest
from tasks.base.trouble import first_line, is_network_trouble
from tasks.settings.fields import InputError
from tasks.settings.fixed import DEMO_DATA, SPLITS
from tasks.settings.sections import DataConfig
from tasks.sources.advice import labelled_instead, name_columns
from tasks.sources.columns import column_values
from tasks.sources.folders import Folder, Piece, are_known, describe, how_read, look_into, options_of, saved_by_datasets
from tasks.sources.formats import columns_of, notes_of, read_rows
from tasks.sources.hub import HubUnreachable, cached_data, note_cached
from tasks.sources.kept import as_kinds, rows_of
from tasks.sources.local import file_path, local_path, test_path
from tasks.sources.opened import kind_of
from tasks.sources.tables import TABLES, table, unsaved_formulas

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def load(source: Source, config: DataConfig) -> "DatasetDict":
    """The raw splits; an error in the file or on the Hub becomes an InputError that names it."""
    import datasets

    try:
        if source.is_local:
            return load_local(source, config)
        if source.local_files_only:
            snapshot = cached_data(source) / "snapshots" / source.revision
            return load_hub(partial(datasets.load_dataset_builder, str(snapshot), config.config))
        loaded = load_hub(partial(datasets.load_dataset_builder, source.name, config.config, revision=source.revision))
        note_cached(source, config.revision)
        return loaded
    except InputError:
        raise
    except Exception as error:
        if is_network_trouble(error):
            raise HubUnreachable(f"data.name: the Hub broke off while sending {source.name}; try again") from error
        if source.local_files_only and not source.is_local:
            raise HubUnreachable(
                f"data.name: {source.name} is only partly in the local cache and the Hub was not asked; "
                "run once with the Hub reachable"
            ) from error
        if is_disk_full(error) or (isinstance(error, OSError) and error.errno):
            raise
        if empty := re.search(r'Instruction "(.+)" corresponds to no data', str(error)):
            raise InputError(f"data.name: the split '{empty[1]}' of {source.name} has no rows; add some") from error
        raise InputError(f"data.name: {source.name} cannot be read: {reason(error)}") from error


def load_hub(build: Callable[..., Any]) -> "DatasetDict":
    """The splits of a data set on the Hub: csv and json as they are read on this machine, for `datasets` guesses at
    what they hold (label `0100` would be the number 100); all else by `datasets`."""
    import datasets

    builder = build()
    options = options_of(builder)
    if builder.name not in ("csv", "json") or not are_known(options):
        return by_datasets(build)
    found = {str(split): list(files) for split, files in builder.config.data_files.items()}
    files = datasets.DownloadManager().download(found)
    splits: dict[str, list[Piece]] = {split: [(Path(file),) for file in there] for split, there in files.items()}
    return in_splits(Folder(splits, [], options.get("sep"), builder.info.features))


def by_datasets(build: Callable[..., Any]) -> "DatasetDict":
    """The splits as only `datasets` can read them; what is in a csv as text, as we read it, and not as it guesses."""
    import datasets
    import pandas as pd

    builder = build()
    said, options = builder.info.features, options_of(builder)
    if builder.name == "csv":
        file = datasets.DownloadManager().download_and_extract(next(iter(builder.config.data_files.values()))[0])
        names = pd.read_csv(file, **builder.config.pd_read_csv_kwargs | {"chunksize": None, "nrows": 0}).columns
        nothing = {} if {"na_values", "keep_default_na", "na_filter"} & options.keys() else {"na_filter": False}
        builder = build(converters=dict.fromkeys(names, str), features=None, **nothing)
    builder.download_and_prepare()
    loaded = builder.as_dataset()
    if builder.name == "csv" and said:
        loaded = datasets.DatasetDict({role: with_features(split, said) for role, split in loaded.items()})
    return loaded


def in_splits(folder: Folder) -> "DatasetDict":
    import datasets

    loaded = datasets.DatasetDict({role: rows_of(pieces, folder.sep) for role, pieces in folder.splits.items()})
    if folder.features:
        loaded = datasets.DatasetDict({role: with_features(split, folder.features) for role, split in loaded.items()})
    return loaded


def load_local(source: Source, config: DataConfig) -> "DatasetDict":
    """The splits of a file (all of it is train) or folder, which holds one; InputError names the file at fault."""
    import datasets

    path = Path(source.name)
    if saved_by_datasets(path):
        saved = datasets.load_from_disk(str(path))
        return saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict(train=saved)
    folder = find_files(path, config)
    if not folder.splits:
        raise InputError(f"data.name: the text files of {path} must lie in folders named by class, such as pos/1.txt")
    if folder.whole:
        # datasets knows a file by its path and time only: content that changed and kept its time would not be read
        cache = str(Path(datasets.config.HF_DATASETS_CACHE) / digest(source.revision))
        return by_datasets(partial(datasets.load_dataset_builder, str(path), config.config, cache_dir=cache))
    check_files(folder, config)
    loaded = in_splits(folder)
    if path.is_file() and not len(loaded["train"]):
        raise InputError(". ".join((f"data.name: {path} has no rows; add some", *formulas_in(source, config))))
    check_class_names(loaded, folder, config)
    return loaded


def how_found(source: Source, config: DataConfig) -> list[str]:
    """Which files of a folder are which split, and how they were read, where that had to be found out."""
    path = Path(source.name)
    if not source.is_local or saved_by_datasets(path) or (folder := find_files(path, config)).whole:
        return []
    files = [piece[0] for pieces in folder.splits.values() for piece in pieces]
    return [*(describe(path, folder) if path.is_dir() else ()), *how_read(files)]


def files_by_row(source: Source, config: DataConfig, most: int = 8) -> list[str]:
    """Which rows of a split are in which of its files, where it has several."""
    path, told = Path(source.name), []
    if not source.is_local or saved_by_datasets(path) or (folder := find_files(path, config)).whole:
        return []
    for role, name in split_names(config).items():
        pieces, start, parts = folder.splits.get(name, []), 0, []
        for piece in pieces[:most] if len(pieces) > 1 else ():
            if count := len(rows_of([piece], folder.sep)):
                parts.append(f"{start} to {start + count - 1} are in {piece[0].relative_to(path)}")
                start += count
        told += [f"{role} rows {', '.join(parts)}"] if parts else []
    return told


def formulas_in(source: Source, config: DataConfig) -> list[str]:
    """Why cells of Excel files are empty that do not look so."""
    path, files = Path(source.name), list[Path]()
    if source.is_local and not saved_by_datasets(path) and not (folder := find_files(path, config)).whole:
        files = [piece[0] for name in split_names(config).values() for piece in folder.splits.get(name, ())]
    files += [test_path(config.test_file)] if config.test_file else []
    return unsaved_formulas(files, (*config.text_columns, *config.target_columns))


def find_files(path: Path, config: DataConfig) -> Folder:
    """The files of a data set on this machine, by split."""
    if path.is_dir():
        return look_into(path, config.config)
    if config.config:
        raise InputError(f"data.config: only Hub data sets and folders have configurations, not the file {path.name}")
    return Folder({"train": [(path,)]}, [])


def with_features(split: "Dataset", features: Mapping[str, Any]) -> "Dataset":
    """With the kinds that the head of a README.md gives the columns."""
    from datasets import Features

    said = {name: kind for name, kind in features.items() if name in split.features}
    return as_kinds(split, Features(split.features | said))


def check_files(folder: Folder, config: DataConfig) -> None:
    """Refuses a file of a split that is used in which a column is missing, before any of them is read to its end."""
    roles = {role: name for role, name in split_names(config).items() if role != "test" or not config.test_file}
    used = [(role, piece[0]) for role, name in roles.items() for piece in folder.splits.get(name, ())]
    columns = {file: names_in(file, folder.sep) for _, file in used}
    complete = [role for role, file in used if not missing_of(columns[file], config)]
    for role, file in used:
        check_names(role, file, columns[file], config, complete, folder.sep)


def names_in(file: Path, sep: str | None) -> list[str]:
    """The columns of a file, of json those that its first rows have."""
    names = columns_of(file, sep)
    return list(dict.fromkeys(chain.from_iterable(first_rows(file, sep)))) if names is None else names


def first_rows(file: Path, sep: str | None) -> list[Mapping[str, Any]]:
    return [raw for raw, _ in islice(read_rows(file, sep=sep), FIRST_ROWS) if isinstance(raw, dict)]


def missing_of(columns: Sequence[str], config: DataConfig) -> list[str]:
    """Those that the run needs; none where there are no columns, for then no row of json could be read."""
    return [name for name in (*config.text_columns, *config.target_columns) if columns and name not in columns]


def check_names(
    role: str, file: Path, columns: Sequence[str], config: DataConfig, complete: Collection[str], sep: str | None
) -> None:
    if missing := missing_of(columns, config):
        rows = first_rows(file, sep)
        first = {name: [row.get(name) for row in rows] for name in columns}
        error = no_column(missing[0], file.name, first, config, role, complete)
        raise InputError(". ".join((str(error), *notes_of(file))))  # perhaps they are in another sheet


def no_column(
    name: str,
    where: str,
    first: Mapping[str, Sequence[Any]],
    config: DataConfig,
    role: str,
    complete: Collection[str],
) -> InputError:
    """The error that a column is missing; `first` are the first rows, and `complete` the splits that have a file with
    all columns."""
    field = (
        "text_columns" if name in config.text_columns else "label_columns" if config.label_columns else "label_column"
    )
    if field == "label_columns":
        advice = "name the columns of 0 and 1 that there are"
    elif role == "train" and role not in complete:
        advice = name_columns(first, config.text_columns, config.label_column)
    elif field == "label_column" and role not in complete:
        advice = labelled_instead(role, complete, config)
    else:
        advice = "add it, or take the file away"
    return InputError(
        f"data.{field}: {where} has no column '{name}'; it has {', '.join(first) or 'none':.200}; {advice}"
    )


FIRST_ROWS = 100
"""Looked at to find out which columns hold texts and classes."""


def check_early(config: DataConfig) -> None:
    """InputError for what files on this machine tell at once: a wrong path, a wrong column, no text.

    In a second and before anything heavy is imported; what is on the Hub is asked later.
    """
    if config.name != DEMO_DATA and (path := local_path("dataset", config.name)) and not saved_by_datasets(path):
        folder = find_files(path, config)
        if not folder.whole:
            check_files(folder, config)
    if config.test_file:
        check_test_file(test_path(config.test_file), config)
    if config.corrections:
        check_corrections(file_path(CORRECTIONS, config.corrections))


def check_test_file(path: Path, config: DataConfig) -> None:
    with as_field("data.test_file"):
        check_names("test", path, names_in(path, None), config, (), None)


CORRECTIONS, CORRECTION_COLUMNS = "data.corrections", ("id", "corrected_label")
"""The field, and what a correction is read from; the other columns of its file are for people."""


def check_corrections(path: Path) -> None:
    """InputError where a file is not one of `peft-flow review`."""
    with as_field(CORRECTIONS):
        names = names_in(path, None)
    if missing := [name for name in CORRECTION_COLUMNS if name not in names]:
        raise InputError(
            f"{CORRECTIONS}: {path.name} has no column '{missing[0]}'; it has {', '.join(names) or 'none':.200}; fill "
            "in the file that peft-flow review has written, and leave its columns as they are"
        )


@contextmanager
def as_field(field: str) -> Iterator[None]:
    """Errors of a file that `field` gives, by that name."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("data.name: ", f"{field}: ", 1)) from error


def check_class_names(loaded: "DatasetDict", folder: Folder, config: DataConfig) -> None:
    """Refuses files whose label numbers stand for other classes than those of the first file of train."""
    from datasets import Features

    roles = [role for role in (config.train_split, config.validation_split, config.test_split) if role in loaded]
    taken = class_names(loaded[roles[0]].features, config.label_column) if roles else ()
    for file in (piece[0] for role in roles for piece in folder.splits[role] if kind_of(piece[0]) in TABLES):
        with table(file) as (schema, _):
            if config.label_column not in schema.names:
                continue
            label = schema.empty_table().select([config.label_column]).schema
            own = class_names(Features.from_arrow_schema(label), config.label_column)
        if own and own != taken:
            others = f"stand for {', '.join(taken)}" if taken else "have no names"
            raise InputError(
                f"data.label_column: the labels of {file.name} stand for {', '.join(own)}, but those of "
                f"the first file {others}; write all files with the same classes in the same order"
            )


def class_names(features: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """What the label numbers stand for; empty where the column says nothing about it."""
    return tuple(getattr(features.get(column), "names", ()) or ())


def reason(error: BaseException) -> str:
    """The innermost cause: `datasets` wraps it in 'An error occurred while generating the dataset'."""
    while error.__cause__ is not None:
        error = error.__cause__
    told = str(error).removeprefix("An error occurred while generating the dataset").strip()
    return first_line(told or type(error).__name__)


def check_letters(loaded: Mapping[str, "Dataset"], name: str | Path) -> None:
    """Refuses a column that says it is text and is not: nothing of it could be read later."""
    import pyarrow

    for split in loaded.values():
        try:
            split.data.validate(full=True)
        except pyarrow.ArrowInvalid as error:
            raise InputError(f"data.name: {name} cannot be read: {reason(error)}; save it as UTF-8") from None


def choose_splits(loaded: "DatasetDict", config: DataConfig) -> tuple["DatasetDict", list[str]]:
    """The configured splits that exist; with `test_file`, without test.

    Cut later are a split left at its usual name that is missing, and one whose rows another has already.
    """
    from datasets import DatasetDict

    wanted = split_names(config)
    if config.test_file:
        del wanted["test"]
    available = ", ".join(sorted(loaded))
    for role, name in wanted.items():
        if name not in loaded and (role == "train" or name != role):
            raise InputError(
                f"data.{role}_split: there is no split '{name}'; the data set has {available}; name one of them with "
                f"--data.{role}_split"
            )
    own = {role: name for role, name in wanted.items() if name in loaded and split_owner(role, config) == role}
    chosen = DatasetDict({role: loaded[name] for role, name in own.items()})
    for role, split in chosen.items():
        if not len(split):
            raise InputError(f"data.{role}_split: the split '{wanted[role]}' has no rows")
    unused = sorted(set(loaded) - set(wanted.values()))
    return chosen, [f"not used: the split{'s'[: len(unused) > 1]} {', '.join(unused)}"] if unused else []


def split_names(config: DataConfig) -> dict[str, str]:
    """What the data set calls each of the three splits."""
    return dict(zip(SPLITS, (config.train_split, config.validation_split, config.test_split), strict=True))


def split_owner(role: str, config: DataConfig) -> str:
    """The split that has the rows which `role` asks for: another where both ask for the same, train before test."""
    names = split_names(config)
    return next(owner for owner in ("train", "test", "validation") if names[owner] == names[role])


def is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def check_columns(chosen: "DatasetDict", config: DataConfig) -> None:
    for role, split in chosen.items():
        missing = [name for name in (*config.text_columns, *config.target_columns) if name not in split.column_names]
        if missing:
            complete = [other for other in chosen if not missing_of(chosen[other].column_names, config)]
            first = split.select(range(min(len(split), FIRST_ROWS))).to_dict()
            raise no_column(missing[0], role, first, config, role, complete)
        for column in config.text_columns:
            kind = getattr(split.features[column], "dtype", str(split.features[column]))
            if kind.startswith("Json"):
                bad = ((row, value) for row, value in enumerate(column_values(split, column)) if not is_text(value))
                kind = next((f"{value!r:.80} in row {row}" for row, value in bad), "different kinds of value")
            if kind not in ("string", "large_string", "string_view", "null"):
                raise InputError(f"data.text_columns: column '{column}' in {role} holds {kind}, not text")
