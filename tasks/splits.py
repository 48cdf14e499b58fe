"""The rows of a data set, read from anywhere, split, and checked: complete, labelled, worth training on."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks.config import DATA_FILES, SPLITS, DataConfig, InputError
from tasks.hub import HubUnreachable, first_line, is_network_trouble, visible_files
from tasks.records import Source, digest

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

CUT_FRACTION = 0.1
"""Share of the training rows that becomes a validation or test split where there is none."""

ROW_EXAMPLES = 3
"""How many offending rows an error names."""


class Splits(NamedTuple):
    """Checked rows, not yet tokenized: text columns, `label` as ClassLabel, and `row`, the place in the source."""

    datasets: "DatasetDict"
    label_names: tuple[str, ...]
    notes: tuple[str, ...]


@lru_cache(maxsize=1)
def read_splits(source: Source, config: DataConfig, seed: int) -> Splits:
    """Train, validation and test rows of `source`, complete and checked; raises InputError naming split and row."""
    loaded = load(source, config)
    chosen, notes = choose_splits(loaded, config)
    check_columns(chosen, config)
    chosen, label_names = encode_labels(chosen, config)
    for name, split in chosen.items():
        check_texts(name, split, config.text_columns)
    chosen, cut_notes = cut_missing(chosen, len(label_names), seed)
    chosen, limit_notes = limit_rows(chosen, config, len(label_names), seed)
    check_classes(chosen, label_names, config)
    return Splits(chosen, label_names, (*notes, *cut_notes, *limit_notes))


def load(source: Source, config: DataConfig) -> "DatasetDict":
    """The raw splits; an error in the file or on the Hub becomes an InputError that names it."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        if source.is_local:
            return load_local(source, config.config)
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


def load_local(source: Source, config_name: str | None) -> "DatasetDict":
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
    options = {
        # datasets knows a file by its path and time only: content that changed and kept its time would not be read
        "cache_dir": str(Path(datasets.config.HF_DATASETS_CACHE) / digest(source.revision)),
        # pandas takes the words NA, null and None for missing values; in a text or a label they are words
        **({"keep_default_na": False} if {file.suffix.lower() for file in files} == {".csv"} else {}),
    }
    if path.is_dir():
        return datasets.load_dataset(str(path), config_name, **options)
    if config_name:
        raise InputError(f"data.config: only Hub data sets and folders have configurations, not the file {path.name}")
    builder = path.suffix[1:].lower().replace("jsonl", "json")
    return datasets.load_dataset(builder, data_files={"train": str(path)}, **options)


def data_files(path: Path) -> list[Path]:
    return [file for file in ([path] if path.is_file() else visible_files(path)) if file.suffix.lower() in DATA_FILES]


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


def encode_labels(chosen: "DatasetDict", config: DataConfig) -> tuple["DatasetDict", tuple[str, ...]]:
    """Text, `label` as a number 0..classes-1, and `row`. Classes come from ClassLabel, else from the train rows."""
    from datasets import ClassLabel, DatasetDict, Features, Value

    feature = chosen["train"].features[config.label_column]
    labels = {
        role: [check_label(role, row, value) for row, value in enumerate(split[config.label_column])]
        for role, split in chosen.items()
    }
    number: dict[str | int, int]
    if isinstance(feature, ClassLabel):
        names: list[str] = list(feature.names)
        number = {name: i for i, name in enumerate(names)} | {i: i for i in range(len(names))}
    else:
        names = sorted({str(label) for label in labels["train"]}, key=numbers_first)
        number = {name: i for i, name in enumerate(names)} | {int(n): i for i, n in enumerate(names) if n.isdecimal()}
    if len(names) < 2:
        raise InputError(f"data.label_column: '{config.label_column}' has only one class, {names[0]!r}; two are needed")
    if len(names) > 20 and 2 * len(names) > len(chosen["train"]):
        raise InputError(
            f"data.label_column: '{config.label_column}' has {len(names)} different values in "
            f"{len(chosen['train'])} rows; a class needs several rows (regression is not supported)"
        )
    encoded = DatasetDict()
    for role, split in chosen.items():
        for row, label in enumerate(labels[role]):
            if label not in number:
                known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
                raise InputError(f"data.label_column: label {label!r} is not one of {known} ({role} row {row})")
        texts = split.select_columns(list(config.text_columns))
        features = Features({name: Value("string") for name in config.text_columns})
        encoded[role] = (
            texts.cast(features)
            .add_column("label", [number[label] for label in labels[role]], feature=ClassLabel(names=names))
            .add_column("row", list(range(len(split))), feature=Value("int64"))
        )
    return encoded, tuple(names)


def numbers_first(name: str) -> tuple[bool, int, str]:
    """Sort key that puts class 9 before class 10, whether the file says numbers or words made of digits."""
    return (False, int(name), name) if name.isdecimal() else (True, 0, name)


def check_label(role: str, row: int, value: object) -> str | int:
    """`value` as a class name or number; None, fractions and containers are refused with their row."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        if value < 0:
            raise InputError(
                f"data.label_column: label {value} means 'not labelled' ({role} row {row}); "
                f"choose another {role}_split or remove such rows"
            )
        return value
    if isinstance(value, float) and value.is_integer() and value >= 0:
        return int(value)
    raise InputError(
        f"data.label_column: {value!r} is no class; use words or whole numbers ({role} row {row}), "
        f"or choose another {role}_split where rows are not labelled"
    )


def check_texts(role: str, split: "Dataset", columns: Sequence[str]) -> None:
    for column in columns:
        bad = [row for row, text in enumerate(split[column]) if not (isinstance(text, str) and text.strip())]
        if bad:
            rows = ", ".join(map(str, bad[:ROW_EXAMPLES])) + (", ..." if len(bad) > ROW_EXAMPLES else "")
            raise InputError(
                f"data.text_columns: {len(bad)} empty text{'s'[: len(bad) > 1]} in column '{column}' "
                f"({role} row{'s'[: len(bad) > 1]} {rows}); fill or remove them"
            )


def cut_missing(chosen: "DatasetDict", classes: int, seed: int) -> tuple["DatasetDict", list[str]]:
    """Cut validation and test from train where they are missing: a tenth each, stratified and seeded."""
    notes, train = [], chosen["train"]
    count = round(CUT_FRACTION * len(train))
    for offset, role in enumerate(("test", "validation")):
        if role in chosen:
            continue
        rows = stratified_rows(chosen["train"]["label"], classes, max(count, classes), seed + offset, leave=1)
        if not rows:
            raise InputError(f"data: {len(train)} training rows are too few to cut a {role} split from; add rows")
        left = sorted(set(range(len(chosen["train"]))) - set(rows))
        chosen[role], chosen["train"] = chosen["train"].select(rows), chosen["train"].select(left)
        notes.append(f"no {role} split: {len(rows)} rows were cut from train, stratified, seed {seed}")
    return type(chosen)({role: chosen[role] for role in SPLITS}), notes


def limit_rows(chosen: "DatasetDict", config: DataConfig, classes: int, seed: int) -> tuple["DatasetDict", list[str]]:
    """At most max_train_rows and max_test_rows of each split, stratified and seeded."""
    notes = []
    limits = {
        "train": config.max_train_rows,
        "validation": config.max_test_rows,
        "test": config.max_test_rows,
    }
    for offset, (role, limit) in enumerate(limits.items()):
        if limit is not None and limit < len(chosen[role]):
            if limit < classes:
                field = "max_train_rows" if role == "train" else "max_test_rows"
                raise InputError(f"data.{field}: {limit} rows cannot hold the {classes} classes; use more")
            notes.append(f"{role}: {limit} of {len(chosen[role])} rows, drawn stratified, seed {seed}")
            chosen[role] = chosen[role].select(stratified_rows(chosen[role]["label"], classes, limit, seed + offset))
    return chosen, notes


def stratified_rows(labels: Sequence[int], classes: int, count: int, seed: int, leave: int = 0) -> list[int]:
    """`count` row numbers in rising order, each class in its share (largest remainder), at least one of each.

    `leave` rows of each class are never taken; fewer than `count` rows come back where that leaves too few.
    """
    import numpy as np

    array, generator = np.asarray(labels), np.random.default_rng(seed)
    free = np.maximum(np.bincount(array, minlength=classes) - leave, 0)
    count = min(count, int(free.sum()))
    exact = free * (count / max(free.sum(), 1))
    take = np.minimum(np.maximum(np.floor(exact).astype(int), free > 0), free)
    for label in np.argsort(-(exact - np.floor(exact)), kind="stable").tolist() * 2:
        if take.sum() < count and take[label] < free[label]:
            take[label] += 1
    while take.sum() > count:  # the guaranteed single rows were too many: take from the largest class
        take[take.argmax()] -= 1
    rows = [generator.permutation(np.flatnonzero(array == label))[: take[label]] for label in range(classes)]
    return sorted(np.concatenate(rows).tolist())


def check_classes(chosen: "DatasetDict", label_names: Sequence[str], config: DataConfig) -> None:
    """Train must hold two classes, and every class that validation or test asks for."""
    present = {role: set(split["label"]) for role, split in chosen.items()}
    if len(present["train"]) < 2:
        only = label_names[min(present["train"])]
        raise InputError(f"data: the training rows hold only one class, {only!r}; two are needed")
    for role in ("validation", "test"):
        unknown = present[role] - present["train"]
        if unknown:
            row = list(chosen[role]["label"]).index(min(unknown))
            raise InputError(
                f"data.label_column: label {label_names[min(unknown)]!r} in {role} never appears in train "
                f"({role} row {chosen[role][row]['row']})"
            )
