"""The raw splits of a data set, read from anywhere: which there are, which are used, and that they can be."""

import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tasks.config import DATA_FILES, SPLITS, DataConfig, InputError
from tasks.disk import is_disk_full
from tasks.folders import kept_files, read_apart
from tasks.hub import HubUnreachable, first_line, is_network_trouble, visible_files
from tasks.records import Source, digest

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict

BATCH_ROWS = 10_000
"""Looked at in one go: a column of a million rows as Python objects would be most of the memory of preparing it."""

MOST_LEVELS = 100
"""Of lists and objects within each other in a json file."""


def load(source: Source, config: DataConfig) -> "DatasetDict":
    """The raw splits; an error in the file or on the Hub becomes an InputError that names it."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        if source.is_local:
            return load_local(source, config)
        if source.local_files_only:
            repository = f"datasets--{source.name.replace('/', '--')}"
            snapshot = Path(HF_HUB_CACHE) / repository / "snapshots" / source.revision
            return datasets.load_dataset(str(snapshot), config.config)
        return datasets.load_dataset(source.name, config.config, revision=source.revision)
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
        if source.is_local and isinstance(error, datasets.exceptions.DatasetGenerationError):
            check_files_alone(source, config)
        raise InputError(f"data.name: {source.name} cannot be read: {reason(error)}") from error


def load_local(source: Source, config: DataConfig) -> "DatasetDict":
    """The splits of a file (all of it is train) or folder, which holds one; InputError where that is empty."""
    import datasets

    path = Path(source.name)
    files = data_files(path)
    options: dict[str, Any] = {
        # datasets knows a file by its path and time only: content that changed and kept its time would not be read
        "cache_dir": str(Path(datasets.config.HF_DATASETS_CACHE) / digest(source.revision)),
        # pandas takes the words NA, null and None for missing values; in a text or a label they are words
        **({"keep_default_na": False} if {file.suffix.lower() for file in files} == {".csv"} else {}),
    }
    if path.is_dir():
        builder = datasets.load_dataset_builder(str(path), config.config, **options)
        kept = kept_files(builder)
        for file in files:
            if str(file) not in kept or not kept[str(file)].exists():
                check_file(file)
        loaded = kept and read_apart(builder, kept)
        loaded = loaded or datasets.load_dataset(str(path), config.config, **options)
        if any(file.suffix == ".parquet" for file in files):
            check_class_names(loaded, builder.config.data_files, config)
        return loaded
    check_file(path)
    if config.config:
        raise InputError(f"data.config: only Hub data sets and folders have configurations, not the file {path.name}")
    kind = path.suffix[1:].lower().replace("jsonl", "json")
    return datasets.load_dataset(kind, data_files={"train": str(path)}, **options)


def check_file(file: Path) -> None:
    """InputError for a file that would end the process, or be taken for something else than it is."""
    if not file.stat().st_size:
        raise InputError(f"data.name: {file} is empty; it needs a text and a label column")
    checks = {".csv": check_header, ".parquet": check_parquet}
    checks.get(file.suffix.lower(), check_json)(file)


def check_header(file: Path) -> None:
    """Refuses a csv file whose columns nobody can tell apart: pandas would rename or shift them without a word."""
    import pandas as pd

    # without a header each line must be as long as the first; else the first column would be taken for row names
    lines = pd.read_csv(file, header=None, nrows=2, dtype=str, keep_default_na=False)
    refuse_twins(file, lines.iloc[0].tolist())


def check_json(file: Path) -> None:
    """Refuses what ends the whole process in pyarrow, null for a row and values in values for ever, and what it takes
    for text although it is none."""
    depth = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip() == b"null":
                raise InputError(f"data.name: {file} holds null instead of an object (line {number}); remove it")
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"data.name: {file} cannot be read: {error} (line {number}); save it as UTF-8"
                ) from None
            for bracket in NO_BRACKETS.sub(b"", line):
                depth += 1 if bracket in b"[{" else -1
                if depth > MOST_LEVELS:
                    raise InputError(
                        f"data.name: {file} is nested deeper than {MOST_LEVELS} levels (line {number}); "
                        "give one object for each row"
                    )


NO_BRACKETS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[^\[\]{}"]+|"')
"""Of JSON: strings, and all else that is no bracket."""


def check_parquet(file: Path) -> None:
    """Refuses a parquet file without rows or with a column twice, in our words."""
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_metadata(file)
    if not metadata.num_rows:
        raise InputError(f"data.name: {file} has no rows; add some")
    refuse_twins(file, metadata.schema.to_arrow_schema().names)


def refuse_twins(file: Path, columns: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise InputError(f"data.name: {file} has the column {twice[0]!r:.80} twice; rename or remove one")


def data_files(path: Path) -> list[Path]:
    return [file for file in ([path] if path.is_file() else visible_files(path)) if file.suffix.lower() in DATA_FILES]


def check_class_names(loaded: "DatasetDict", files: Mapping[str, Sequence[str]], config: DataConfig) -> None:
    """Refuses parquet files whose label numbers stand for other classes: `datasets` goes by the first file's names."""
    import pyarrow.parquet
    from datasets import Features

    for split in (config.train_split, config.validation_split, config.test_split):
        for file in files.get(split, ()):
            if split not in loaded or not file.endswith(".parquet"):
                continue
            own = class_names(Features.from_arrow_schema(pyarrow.parquet.read_schema(file)), config.label_column)
            taken = class_names(loaded[split].features, config.label_column)
            if own and own != taken:
                others = f"stand for {', '.join(taken)}" if taken else "have no names"
                raise InputError(
                    f"data.label_column: the labels of {Path(file).name} stand for {', '.join(own)}, but those of "
                    f"the first file {others}; write all files with the same classes in the same order"
                )


def class_names(features: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """What the label numbers stand for; empty where the column says nothing about it."""
    return tuple(getattr(features.get(column), "names", ()) or ())


def numbers(split: "Dataset", column: str) -> "np.ndarray":
    """A column of whole numbers, int64 (rows,).

    By batches, because `datasets` makes an object and a table of each row that it looks up in a cut or selected split.
    """
    import numpy as np

    batches = split.select_columns([column]).with_format("numpy").iter(batch_size=BATCH_ROWS)
    parts = [np.empty(0, np.int64), *(batch[column] for batch in batches)]
    return np.concatenate(parts, dtype=np.int64, casting="unsafe")


def column_values(split: "Dataset", column: str) -> Iterator[Any]:
    """A column of anything, a batch of it in memory at a time."""
    for batch in split.select_columns([column]).iter(batch_size=BATCH_ROWS):
        yield from batch[column]


def check_files_alone(source: Source, config: DataConfig) -> None:
    """After a folder could not be read: raises InputError that names the file at fault, or says that they differ."""
    if Path(source.name).is_dir():
        for file in data_files(Path(source.name)):
            load(source.model_copy(update={"name": str(file)}), config.model_copy(update={"config": None}))
        raise InputError(
            f"data.name: each file in {source.name} can be read, but not together; "
            "all need the same columns, with the same kind of value in each"
        )


def reason(error: BaseException) -> str:
    """The innermost cause: `datasets` wraps it in 'An error occurred while generating the dataset'."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, yaml.YAMLError):
        return "the head of its README.md is not valid YAML"
    told = str(error).removeprefix("An error occurred while generating the dataset").strip()
    return first_line(told or type(error).__name__)


def check_letters(loaded: "DatasetDict", source: Source) -> None:
    """Refuses a column that says it is text and is not: nothing of it could be read later."""
    import pyarrow

    for split in loaded.values():
        try:
            split.data.validate(full=True)
        except pyarrow.ArrowInvalid as error:
            raise InputError(f"data.name: {source.name} cannot be read: {reason(error)}; save it as UTF-8") from None


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
            raise InputError(f"data.{role}_split: there is no split '{name}'; the data set has {available}")
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


def labelled_instead(role: str, labelled: Collection[str], config: DataConfig) -> str:
    """What to do where the rows of `role` have no labels and those of `labelled` have."""
    if role == "test" and config.test_file:
        return "label the rows of data.test_file, or leave it away"
    if role == "train":
        return "name the column of the classes with --data.label_column, or labelled rows with --data.train_split"
    if role == "test" and "validation" in labelled:
        return (
            f"--data.test_split {config.validation_split} tests on the validation rows and cuts a new validation from "
            "train"
        )
    return f"--data.{role}_split {config.train_split} cuts {role} rows from train"


def columns_instead(split: "Dataset") -> str:
    """Which options name the columns, with those that look like texts and classes in the first rows."""
    first = split.select(range(min(len(split), 100))).to_dict()
    texts = {name: sum(map(len, values)) for name, values in first.items() if all(isinstance(v, str) for v in values)}
    text = max(texts, key=lambda name: texts[name], default="")
    kinds = {name: len(set(map(repr, values))) for name, values in first.items() if name != text}
    label = min((name for name in kinds if kinds[name] > 1), key=lambda name: kinds[name], default="")
    if not text or not label or len(text + label) > MOST_NAME_LETTERS:
        return "name them with --data.text_columns and --data.label_column"
    return f"perhaps --data.text_columns {shlex.quote(text)} --data.label_column {shlex.quote(label)}"


MOST_NAME_LETTERS = 60
"""Of both columns that a message names: longer ones are no names, but rows where a header is missing."""


def check_columns(chosen: "DatasetDict", config: DataConfig) -> None:
    for role, split in chosen.items():
        for field, column in (
            *(("text_columns", name) for name in config.text_columns),
            ("label_column", config.label_column),
        ):
            if column not in split.column_names:
                told = f"data.{field}: there is no column '{column}' in {role}; it has {', '.join(split.column_names)}"
                if column == config.label_column and role != "train":
                    labelled = [other for other in chosen if column in chosen[other].column_names]
                    told += f"; {labelled_instead(role, labelled, config)}"
                raise InputError(told if role != "train" else f"{told}; {columns_instead(split)}")
        for column in config.text_columns:
            kind = getattr(split.features[column], "dtype", str(split.features[column]))
            if kind.startswith("Json"):
                kind = "different kinds of value"
            if kind not in ("string", "large_string", "string_view", "null"):
                raise InputError(f"data.text_columns: column '{column}' in {role} holds {kind}, not text")
