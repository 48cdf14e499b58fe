"""The raw splits of a data set, read from anywhere: which there are, which are used, and that they can be."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import DATA_FILES, SPLITS, DataConfig, InputError
from tasks.hub import HubUnreachable, first_line, is_network_trouble, visible_files
from tasks.records import Source, digest

if TYPE_CHECKING:
    from datasets import DatasetDict


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
        if isinstance(error, OSError) and error.errno:
            raise
        if empty := re.search(r'Instruction "(.+)" corresponds to no data', str(error)):
            raise InputError(f"data.name: the split '{empty[1]}' of {source.name} has no rows; add some") from error
        if source.is_local and isinstance(error, datasets.exceptions.DatasetGenerationError):
            check_files_alone(source, config)
        raise InputError(f"data.name: {source.name} cannot be read: {reason(error)}") from error


def load_local(source: Source, config: DataConfig) -> "DatasetDict":
    """The splits of a file (all of it is train) or folder; raises InputError when it holds no data."""
    import datasets

    path = Path(source.name)
    files = data_files(path)
    if not files:
        what = "is not a" if path.is_file() else "holds no"
        raise InputError(f"data.name: {path} {what} {', '.join(DATA_FILES[:-1])} or {DATA_FILES[-1]} file")
    for file in files:
        if not file.stat().st_size:
            raise InputError(f"data.name: {file} is empty; it needs a text and a label column")
    options: dict[str, Any] = {
        # datasets knows a file by its path and time only: content that changed and kept its time would not be read
        "cache_dir": str(Path(datasets.config.HF_DATASETS_CACHE) / digest(source.revision)),
        # pandas takes the words NA, null and None for missing values; in a text or a label they are words
        **({"keep_default_na": False} if {file.suffix.lower() for file in files} == {".csv"} else {}),
    }
    if path.is_dir():
        loaded = datasets.load_dataset(str(path), config.config, **options)
        if any(file.suffix == ".parquet" for file in files):
            builder = datasets.load_dataset_builder(str(path), config.config, **options)
            check_class_names(loaded, builder.config.data_files, config)
        return loaded
    if config.config:
        raise InputError(f"data.config: only Hub data sets and folders have configurations, not the file {path.name}")
    kind = path.suffix[1:].lower().replace("jsonl", "json")
    return datasets.load_dataset(kind, data_files={"train": str(path)}, **options)


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
    told = str(error).removeprefix("An error occurred while generating the dataset").strip()
    return first_line(told or type(error).__name__)


def choose_splits(loaded: "DatasetDict", config: DataConfig) -> tuple["DatasetDict", list[str]]:
    """The configured splits that exist. Only a split left at its usual name may be missing: it is cut later."""
    from datasets import DatasetDict

    wanted = dict(zip(SPLITS, (config.train_split, config.validation_split, config.test_split), strict=True))
    available = ", ".join(sorted(loaded))
    for role, name in wanted.items():
        if name not in loaded and (role == "train" or name != role):
            raise InputError(f"data.{role}_split: there is no split '{name}'; the data set has {available}")
    chosen = DatasetDict({role: loaded[name] for role, name in wanted.items() if name in loaded})
    for role, split in chosen.items():
        if not len(split):
            raise InputError(f"data.{role}_split: the split '{wanted[role]}' has no rows")
    unused = sorted(set(loaded) - set(wanted.values()))
    return chosen, [f"not used: the split{'s'[: len(unused) > 1]} {', '.join(unused)}"] if unused else []


def check_columns(chosen: "DatasetDict", config: DataConfig) -> None:
    for role, split in chosen.items():
        for field, column in (
            *(("text_columns", name) for name in config.text_columns),
            ("label_column", config.label_column),
        ):
            if column not in split.column_names:
                raise InputError(
                    f"data.{field}: there is no column '{column}' in {role}; it has {', '.join(split.column_names)}"
                )
        for column in config.text_columns:
            kind = getattr(split.features[column], "dtype", str(split.features[column]))
            if kind not in ("string", "large_string", "null"):
                raise InputError(f"data.text_columns: column '{column}' in {role} holds {kind}, not text")
