"""The rows of a data set, labelled, split, and checked: complete, and worth training on."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tasks.base.records import Source
from tasks.base.words import counted, named_rows
from tasks.data.corrections import Corrected, correct, describe_corrections
from tasks.data.duplicates import describe_conflicts, describe_sharing, refuse_hopeless, same_texts
from tasks.data.frozen import describe_kept_out, keep_out, read_test_file, renumbered
from tasks.data.labels import class_names_of, read_labels
from tasks.data.targets import find_task, labels_of, numbered_labels, reader, with_labels
from tasks.scores.objective import objective
from tasks.settings.fields import InputError
from tasks.settings.fixed import SPLITS
from tasks.settings.sections import DataConfig
from tasks.sources.columns import column_values, numbers
from tasks.sources.reading import (
    check_columns,
    check_letters,
    choose_splits,
    class_names,
    files_by_row,
    formulas_in,
    how_found,
    load,
    split_names,
    split_owner,
)

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
    """Checked rows, not yet tokenized: text columns, `label`, and `row`, the place in the source."""

    datasets: "DatasetDict"
    """Of the splits, test alone has `slice NAME` for each of `slice_columns` too."""
    task: str
    """A file of tasks/scores/objectives."""
    label_names: tuple[str, ...]
    slice_columns: tuple[str, ...]
    same_texts: "pd.DataFrame"
    """All rows, as `duplicates.same_texts` gives them; its labels are places in `label_words`."""
    label_words: tuple[str, ...]
    """What people call each of the different labels; of classes their names."""
    notes: tuple[str, ...]
    kept_out: dict[str, int]
    """Rows of train and validation left out for having the text of a row of `data.test_file`."""
    corrections: Corrected | None = None


@lru_cache(maxsize=1)
def read_splits(source: Source, config: DataConfig) -> Splits:
    """Train, validation and test rows of `source`, complete and checked; raises InputError naming split and row."""
    loaded = load(source, config)
    check_letters(loaded, source.name)
    chosen, notes = choose_splits(loaded, config)
    notes = [*how_found(source, config), *notes]
    if config.test_file:
        chosen["test"] = read_test_file(config)
    check_columns(chosen, config)
    task, found_out = find_task(chosen, config)
    target = reader(task).read(chosen, config)
    encoded = with_labels(chosen, target, config)
    text_faults = [fault for role, split in encoded.items() for fault in empty_texts(role, split, config.text_columns)]
    if text_faults or target.faults:
        # all at once, and what else would be found: the file is repaired in one go
        rows, words = told_rows(task, encoded, target.names, config)
        describe = describe_conflicts if config.test_file else describe_sharing
        sharing = describe(rows, words, objective(task).conflict)
        where = (*files_by_row(source, config), *formulas_in(source, config))
        raise InputError(". ".join((*text_faults, *target.faults, *sharing, *where)))
    kept_out = {}
    if config.test_file:
        kept_out = keep_out(encoded, told_rows(task, encoded, target.names, config)[0])
        notes.append(f"{len(encoded['test'])} test rows from data.test_file; {describe_kept_out(kept_out)}")
    splits, cut_notes = cut_missing(encoded, task, config)
    splits, limit_notes = limit_rows(splits, config, task)
    # last: which rows are cut and drawn hangs on the labels, and the test rows must stay those of the run before
    corrections = correct(splits, config, task, target.names) if config.corrections else None
    places = {role: numbers(split, "row") for role, split in splits.items()}
    reader(task).check({role: labels_of(split) for role, split in splits.items()}, places, target.names)
    slices = slice_values(chosen.get("test", chosen["train"]), numbers(splits["test"], "row"), config)
    for name, values in slices.items():
        splits["test"] = splits["test"].add_column(f"slice {name}", values)
    if config.test_file:
        splits["test"] = renumbered(splits["test"], chosen["test"])
    rows, words = told_rows(task, splits, target.names, config)
    refuse_hopeless(rows, words, objective(task).one_class)
    told = [*notes, *found_out, *cut_notes, *limit_notes]
    told += [describe_corrections(corrections.counts)] if corrections else []
    return Splits(splits, task, target.names, tuple(slices), rows, words, tuple(told), kept_out, corrections)


def told_rows(
    task: str, splits: "DatasetDict", names: Sequence[str], config: DataConfig
) -> "tuple[pd.DataFrame, tuple[str, ...]]":
    """`duplicates.same_texts`, and what its labels are called."""
    codes, words = numbered_labels(task, {role: labels_of(split) for role, split in splits.items()}, names)
    return same_texts(splits, config.text_columns, codes), words


def training_classes(source: Source, config: DataConfig) -> tuple[str, ...] | None:
    """The classes that the training rows have now; whether they are enough to train on is not looked at. None where a
    text has not one class only."""
    from datasets import DatasetDict

    chosen, _ = choose_splits(load(source, config), config)
    train, column = chosen["train"], config.label_column
    check_columns(DatasetDict(train=train), config)
    if not objective(find_task(DatasetDict(train=train), config)[0]).one_class:
        return None
    return class_names(train.features, column) or class_names_of(read_labels(train, column))


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


def cut_missing(chosen: "DatasetDict", task: str, config: DataConfig) -> tuple["DatasetDict", list[str]]:
    """Cut validation and test from train where they are missing: a tenth each, stratified and seeded."""
    import numpy as np

    notes, train, seed = [], chosen["train"], config.split_seed
    count = round(CUT_FRACTION * len(train))
    for offset, role in enumerate(("test", "validation")):
        if role in chosen:
            continue
        strata = objective(task).strata(labels_of(chosen["train"]))
        groups = int(strata.max()) + 1
        rows = stratified_rows(strata, groups, max(count, groups), seed + offset, leave=1)
        if not len(rows):
            raise InputError(f"data: {len(train)} training rows are too few to cut a {role} split from; add rows")
        left = np.setdiff1d(np.arange(len(chosen["train"])), rows)
        chosen[role], chosen["train"] = chosen["train"].select(rows), chosen["train"].select(left)
        notes.append(f"{why_cut(role, config)}: {len(rows)} rows were cut from train, stratified, split seed {seed}")
    return type(chosen)({role: chosen[role] for role in SPLITS}), notes


def why_cut(role: str, config: DataConfig) -> str:
    """Why a split is cut from train."""
    if (owner := split_owner(role, config)) == role:
        return f"no {role} split"
    return f"{role}: the split '{split_names(config)[role]}' is {owner} already"


def limit_rows(chosen: "DatasetDict", config: DataConfig, task: str) -> tuple["DatasetDict", list[str]]:
    """At most max_train_rows and max_test_rows of each split, stratified and seeded; of the same seed, fewer rows are
    among the more."""
    import numpy as np

    notes, seed = [], config.split_seed
    seeds = {"train": seed if config.draw_seed is None else config.draw_seed, "validation": seed + 1, "test": seed + 2}
    limits = {
        "train": config.max_train_rows,
        "validation": config.max_test_rows,
        "test": config.max_test_rows,
    }
    for role, limit in limits.items():
        if limit is not None and limit < len(chosen[role]):
            strata = objective(task).strata(labels_of(chosen[role]))
            present, one_class = len(np.unique(strata)), objective(task).one_class
            how = "drawn stratified"
            if limit < present and not one_class:
                strata, present, how = np.zeros_like(strata), 1, "drawn"
            if limit < present:
                field = "max_train_rows" if role == "train" else "max_test_rows"
                raise InputError(f"data.{field}: {limit} rows cannot hold the {present} classes; use more")
            own = role == "train" and config.draw_seed is not None
            told = f"draw seed {config.draw_seed}" if own else f"split seed {seed}"
            notes.append(f"{role}: {limit} of {len(chosen[role])} rows, {how}, {told}")
            rows = stratified_rows(strata, int(strata.max()) + 1, limit, seeds[role])
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


def slice_values(source: "Dataset", rows: "np.ndarray", config: DataConfig) -> dict[str, list[str]]:
    """Categorical columns that `source` has besides texts and label: what each of `rows` holds there, as text."""
    found: dict[str, list[str]] = {}
    for name, feature in source.features.items():
        taken = name in ("row", *config.text_columns, *config.target_columns) or f"slice {name}" in config.text_columns
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
