"""The rows of a data set, labelled, split, and checked: complete, and worth training on."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tasks.config import SPLITS, DataConfig, InputError
from tasks.duplicates import counted, describe_sharing, named_rows, refuse_hopeless, same_texts
from tasks.frozen import describe_kept_out, keep_out, read_test_file, renumbered
from tasks.reading import check_columns, check_letters, choose_splits, column_values, how_found, load, numbers
from tasks.records import Source

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from datasets import Dataset, DatasetDict

CUT_FRACTION = 0.1
"""Share of the training rows that becomes a validation or test split where there is none."""

MOST_SLICE_COLUMNS, MOST_SLICES = 5, 20
"""Further columns worth scoring by, and different values in each."""

NO_VALUE = "(none)"


class Splits(NamedTuple):
    """Checked rows, not yet tokenized: text columns, `label` as ClassLabel, and `row`, the place in the source."""

    datasets: "DatasetDict"
    """Of the splits, test alone has `slice NAME` for each of `slice_columns` too."""
    label_names: tuple[str, ...]
    slice_columns: tuple[str, ...]
    same_texts: "pd.DataFrame"
    """All rows, as `duplicates.same_texts` gives them."""
    notes: tuple[str, ...]
    kept_out: dict[str, int]
    """Rows of train and validation left out for having the text of a row of `data.test_file`."""


@lru_cache(maxsize=1)
def read_splits(source: Source, config: DataConfig) -> Splits:
    """Train, validation and test rows of `source`, complete and checked; raises InputError naming split and row."""
    loaded = load(source, config)
    check_letters(loaded, source)
    chosen, notes = choose_splits(loaded, config)
    notes = [*how_found(source, config), *notes]
    if config.test_file:
        chosen["test"] = read_test_file(source, config)
    check_columns(chosen, config)
    encoded, label_names, label_faults = encode_labels(chosen, config)
    text_faults = [fault for role, split in encoded.items() for fault in empty_texts(role, split, config.text_columns)]
    if text_faults or label_faults:
        # all at once, and what else would be found: the file is repaired in one go
        sharing = describe_sharing(same_texts(encoded, config.text_columns), label_names)
        raise InputError(". ".join((*text_faults, *label_faults, *sharing)))
    kept_out = keep_out(encoded, config.text_columns) if config.test_file else {}
    if config.test_file:
        notes.append(f"{len(encoded['test'])} test rows from data.test_file; {describe_kept_out(kept_out)}")
    splits, cut_notes = cut_missing(encoded, len(label_names), config.split_seed)
    splits, limit_notes = limit_rows(splits, config, len(label_names))
    check_classes(splits, label_names)
    slices = slice_values(chosen.get("test", chosen["train"]), numbers(splits["test"], "row"), config)
    for name, values in slices.items():
        splits["test"] = splits["test"].add_column(f"slice {name}", values)
    if config.test_file:
        splits["test"] = renumbered(splits["test"], chosen["test"])
    rows = same_texts(splits, config.text_columns)
    refuse_hopeless(rows, label_names)
    return Splits(splits, label_names, tuple(slices), rows, (*notes, *cut_notes, *limit_notes), kept_out)


def encode_labels(chosen: "DatasetDict", config: DataConfig) -> tuple["DatasetDict", tuple[str, ...], list[str]]:
    """Text, `label` as a number 0..classes-1, and `row`; the classes' names; and what is wrong, a sentence each.

    Classes come from ClassLabel, else from the train rows. A label that is none of them is -1.
    """
    import numpy as np
    from datasets import ClassLabel, DatasetDict, Features, Value

    feature = chosen["train"].features[config.label_column]
    columns = {role: read_labels(split, config.label_column) for role, split in chosen.items()}
    faults = [fault for role, column in columns.items() for fault in no_classes(role, column)]
    number: dict[str | int | None, int]
    if isinstance(feature, ClassLabel):
        names: list[str] = list(feature.names)
        number = {name: i for i, name in enumerate(names)} | {i: i for i in range(len(names))}
    else:
        names = sorted({str(label) for label in columns["train"].labels if label is not None}, key=numbers_first)
        number = {name: i for i, name in enumerate(names)} | {int(n): i for i, n in enumerate(names) if n.isdecimal()}
    if not faults:
        check_names(names, len(chosen["train"]), config)
    for role, column in columns.items():
        faults += unknown_labels(role, column, number, names)
    encoded = DatasetDict()
    features = Features({name: Value("string") for name in config.text_columns})
    for role, split in chosen.items():
        texts = split.select_columns(list(config.text_columns))
        own = np.asarray([number.get(label, -1) for label in columns[role].labels], np.int64)
        encoded[role] = (
            (texts if texts.features == features else texts.cast(features))
            # as arrays: `datasets` hashes what is added, which takes seconds for a long list
            .add_column("label", own[columns[role].places], feature=ClassLabel(names=names))
            .add_column("row", np.arange(len(split)), feature=Value("int64"))
        )
    return encoded, tuple(names), faults


class Labels(NamedTuple):
    """A column of labels. It has few different values, which are looked at instead of its rows."""

    values: list[object]
    """The different ones, by first appearance."""
    labels: list[str | int | None]
    """What each of them is, as `as_label` has it."""
    places: "np.ndarray"
    """For each row, the place of its value among them."""

    def rows(self, wanted: Sequence[int]) -> list[int]:
        """The rows whose value has one of these places."""
        import numpy as np

        return np.flatnonzero(np.isin(self.places, wanted)).tolist()


def read_labels(split: "Dataset", column: str) -> Labels:
    import numpy as np

    place: dict[object, int] = {}
    values, places = list[object](), np.empty(len(split), np.int64)
    for row, value in enumerate(column_values(split, column)):
        # neither a list nor NaN is found again as a key
        key = value if isinstance(value, str | int | None) else repr(value)
        if (at := place.setdefault(key, len(values))) == len(values):
            values.append(value)
        places[row] = at
    return Labels(values, [as_label(value) for value in values], places)


def as_label(value: object) -> str | int | None:
    """`value` as a class name or number; None where it cannot be one: nothing, a fraction, below 0, a container."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int) and value >= 0:
        return value
    return int(value) if isinstance(value, float) and value.is_integer() and value >= 0 else None


def no_classes(role: str, column: Labels) -> list[str]:
    """What to say about rows whose label cannot be a class."""
    values = column.values
    bad = [place for place, label in enumerate(column.labels) if label is None]
    unlabelled = [place for place in bad if isinstance(value := values[place], int) and value < 0]
    other = sorted(set(bad).difference(unlabelled))
    faults = []
    if unlabelled:
        faults.append(
            f"data.label_column: label {values[unlabelled[0]]} means 'not labelled' "
            f"({named_rows(role, column.rows(unlabelled))}); choose another {role}_split or remove such rows"
        )
    if other:
        faults.append(
            f"data.label_column: {values[other[0]]!r:.80} is no class; use words or whole numbers "
            f"({named_rows(role, column.rows(other))}), or choose another {role}_split where rows are not labelled"
        )
    return faults


def unknown_labels(
    role: str, column: Labels, number: Mapping[str | int | None, int], names: Sequence[str]
) -> list[str]:
    """What to say about rows whose label is not one of the classes."""
    bad = [place for place, label in enumerate(column.labels) if label is not None and label not in number]
    if not bad:
        return []
    different = list(dict.fromkeys(column.labels[place] for place in bad))
    known, given = shortened(names), shortened([repr(label) for label in different])
    many = len(different) > 1
    return [
        f"data.label_column: label{'s' * many} {given} {'are' if many else 'is'} not one of {known} "
        f"({named_rows(role, column.rows(bad))})"
    ]


def shortened(words: Sequence[str]) -> str:
    return ", ".join(words[:10]) + (", ..." if len(words) > 10 else "")


def check_names(names: Sequence[str], train_rows: int, config: DataConfig) -> None:
    """The labels must be at least two classes, and not a number to predict."""
    if len(names) < 2:
        raise InputError(f"data.label_column: '{config.label_column}' has only one class, {names[0]!r}; two are needed")
    if len(names) > 20 and 2 * len(names) > train_rows:
        raise InputError(
            f"data.label_column: '{config.label_column}' has {len(names)} different values in {train_rows} rows; "
            "a class needs several rows (regression is not supported)"
        )

    for name in names:
        if len(name) > MOST_LETTERS or not name.isprintable():
            raise InputError(
                f"data.label_column: the class {name!r:.80} is no name to show in tables; use a word or two "
                f"of at most {MOST_LETTERS} letters"
            )
    numbers = [name for name in names if name.isdecimal()]
    if numbers and len(numbers) == len(names) - 1:
        (word,) = set(names).difference(numbers)
        if word.lower() in ("nan", "na", "n/a", "null", "none"):
            raise InputError(
                f"data.label_column: {word!r} among the numbers {shortened(numbers)} means 'not labelled'; "
                "remove such rows"
            )


MOST_LETTERS = 200
"""In the name of a class."""


def numbers_first(name: str) -> tuple[bool, int, str]:
    """Sort key that puts class 9 before class 10, whether the file says numbers or words made of digits."""
    return (False, int(name), name) if name.isdecimal() else (True, 0, name)


def empty_texts(role: str, split: "Dataset", columns: Sequence[str]) -> list[str]:
    """What to say about rows without text, by column."""
    faults = []
    for column in columns:
        bad = [row for row, text in enumerate(column_values(split, column)) if not (text and text.strip())]
        if bad:
            faults.append(
                f"data.text_columns: {counted(len(bad), 'empty text')} in column '{column}' "
                f"({named_rows(role, bad)}); fill or remove them"
            )
    return faults


def cut_missing(chosen: "DatasetDict", classes: int, seed: int) -> tuple["DatasetDict", list[str]]:
    """Cut validation and test from train where they are missing: a tenth each, stratified and seeded."""
    import numpy as np

    notes, train = [], chosen["train"]
    count = round(CUT_FRACTION * len(train))
    for offset, role in enumerate(("test", "validation")):
        if role in chosen:
            continue
        rows = stratified_rows(numbers(chosen["train"], "label"), classes, max(count, classes), seed + offset, leave=1)
        if not len(rows):
            raise InputError(f"data: {len(train)} training rows are too few to cut a {role} split from; add rows")
        left = np.setdiff1d(np.arange(len(chosen["train"])), rows)
        chosen[role], chosen["train"] = chosen["train"].select(rows), chosen["train"].select(left)
        notes.append(f"no {role} split: {len(rows)} rows were cut from train, stratified, split seed {seed}")
    return type(chosen)({role: chosen[role] for role in SPLITS}), notes


def limit_rows(chosen: "DatasetDict", config: DataConfig, classes: int) -> tuple["DatasetDict", list[str]]:
    """At most max_train_rows and max_test_rows of each split, stratified and seeded."""
    notes, seed = [], config.split_seed
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
            notes.append(f"{role}: {limit} of {len(chosen[role])} rows, drawn stratified, split seed {seed}")
            rows = stratified_rows(numbers(chosen[role], "label"), classes, limit, seed + offset)
            chosen[role] = chosen[role].select(rows)
    return chosen, notes


def stratified_rows(labels: "np.ndarray", classes: int, count: int, seed: int, leave: int = 0) -> "np.ndarray":
    """`count` row numbers in rising order, each class in its share (largest remainder), at least one of each.

    `leave` rows of each class are never taken; fewer than `count` rows come back where that leaves too few.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    free = np.maximum(np.bincount(labels, minlength=classes) - leave, 0)
    count = min(count, int(free.sum()))
    exact = free * (count / max(free.sum(), 1))
    take = np.minimum(np.maximum(np.floor(exact).astype(int), free > 0), free)
    for label in np.argsort(-(exact - np.floor(exact)), kind="stable").tolist() * 2:
        if take.sum() < count and take[label] < free[label]:
            take[label] += 1
    while take.sum() > count:  # the guaranteed single rows were too many: take from the largest class
        take[take.argmax()] -= 1
    rows = [generator.permutation(np.flatnonzero(labels == label))[: take[label]] for label in range(classes)]
    return np.sort(np.concatenate(rows))


def check_classes(chosen: "DatasetDict", label_names: Sequence[str]) -> None:
    """Train must hold two classes, and every class that validation or test asks for."""
    import numpy as np

    labels = {role: numbers(split, "label") for role, split in chosen.items()}
    present = {role: set(np.unique(column).tolist()) for role, column in labels.items()}
    if len(present["train"]) < 2:
        only = label_names[min(present["train"])]
        raise InputError(f"data: the training rows hold only one class, {only!r}; two are needed")
    for role in ("validation", "test"):
        unknown = present[role] - present["train"]
        if unknown:
            row = int((labels[role] == min(unknown)).argmax())
            raise InputError(
                f"data.label_column: label {label_names[min(unknown)]!r} in {role} never appears in train "
                f"({role} row {chosen[role][row]['row']})"
            )


def slice_values(source: "Dataset", rows: "np.ndarray", config: DataConfig) -> dict[str, list[str]]:
    """Categorical columns that `source` has besides texts and label: what each of `rows` holds there, as text."""
    found: dict[str, list[str]] = {}
    for name, feature in source.features.items():
        taken = name in ("row", *config.text_columns, config.label_column) or f"slice {name}" in config.text_columns
        if not taken and is_categorical(feature) and len(found) < MOST_SLICE_COLUMNS:
            values = few_values(source.select_columns([name]).select(rows), name)
            if 2 <= len(set(values)) <= len(rows) / 2:
                found[name] = values
    return found


def is_categorical(feature: object) -> bool:
    from datasets import ClassLabel, Value

    kinds = ("string", "large_string", "bool", "int", "uint")
    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and feature.dtype.startswith(kinds))


def few_values(split: "Dataset", column: str) -> list[str]:
    """The column's values as text; none when they are more than MOST_SLICES different ones."""
    feature, values, different = split.features[column], list[str](), set[str]()
    for batch in split.iter(batch_size=1000):
        for value in batch[column]:
            if hasattr(feature, "int2str") and value is not None:
                value = feature.int2str(value) if value >= 0 else None
            values.append(NO_VALUE if value is None or not str(value).strip() else str(value))
        different.update(values[-1000:])
        if len(different) > MOST_SLICES:
            return []
    return values
