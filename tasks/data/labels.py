"""What each value of a label column means, and which columns hold something else than classes."""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from tasks.base.words import counted, listed, named_rows
from tasks.data.duplicates import normal
from tasks.settings.fields import InputError
from tasks.settings.sections import DataConfig
from tasks.sources.advice import labelled_instead
from tasks.sources.columns import column_values
from tasks.sources.reading import class_names

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset


WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")
"""A whole number; pandas writes those of a column with gaps as 1.0."""

NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:[.,][0-9]+)?|[0-9]+(?:\.[0-9]+)?e-[0-9]+|inf|infinity)", re.IGNORECASE)

NOTHING = {"nan", "na", "n/a", "#n/a", "<na>", "null", "none", "?"}
"""Words that programs write where there is no label; in small letters."""

SEPARATORS = ("|", ";", ",")
"""Of several labels in one."""

MOST_LETTERS = 200
"""In the name of a class."""


class Labels(NamedTuple):
    """A column of labels. It has few different values, which are looked at instead of its rows."""

    values: list[object]
    """The different ones, by first appearance."""
    names: list[str | None]
    """The class that each of them names; None where it names none."""
    places: "np.ndarray"
    """For each row, the place of its value among them."""

    def rows(self, wanted: Sequence[int]) -> list[int]:
        """The rows whose value has one of these places."""
        import numpy as np

        return np.flatnonzero(np.isin(self.places, wanted)).tolist()


# --- what a value means ----------------------------------------------------------------------------------------------


def read_labels(split: "Dataset", column: str) -> Labels:
    import numpy as np

    place: dict[object, int] = {}
    values, places = list[object](), np.empty(len(split), np.int64)
    for row, value in enumerate(column_values(split, column)):
        # as a key True is 1, and neither a list nor NaN is found again
        key = value if type(value) in (str, int) else (repr(value),)
        if (at := place.setdefault(key, len(values))) == len(values):
            values.append(value)
        places[row] = at
    coded = class_names(split.features, column)
    return Labels(values, [decoded(value, coded) if coded else as_label(value) for value in values], places)


def decoded(value: object, coded: Sequence[str]) -> str | None:
    """The name that a number of a ClassLabel column stands for; -1 stands for none."""
    if not isinstance(value, int) or value < 0:
        return None
    return coded[value] if value < len(coded) else str(value)


def as_label(value: object) -> str | None:
    """`value` as the name of a class, the same from every format; None for nothing, and for what can be none."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, float | Decimal):
        if value != value:  # NaN
            return None
        return str(int(value)) if float(value).is_integer() else str(value)
    if isinstance(value, bool | int | date):
        return str(value).removesuffix(" 00:00:00")  # a day that a program has made a time of
    return None


def class_names_of(column: Labels) -> tuple[str, ...]:
    """The classes of a column, in order."""
    return in_order({name for name in column.names if name is not None})


def in_order(names: Collection[str]) -> tuple[str, ...]:
    """Whole numbers, where there is nothing else, without `.0`; `number_of` then finds both."""
    if all(WHOLE.fullmatch(name) for name in names):
        names = set(map(plain_number, names))
    return tuple(sorted(names, key=numbers_first))


def plain_number(name: str) -> str:
    return whole[1] if (whole := WHOLE.fullmatch(name)) else name


def numbers_first(name: str) -> tuple[bool, int, str]:
    """Sort key that puts class 9 before class 10, whether the file says numbers or words made of digits."""
    is_number = name.removeprefix("-").isdecimal() and len(name) <= MOST_LETTERS  # Python takes 4,300 digits at most
    return (False, int(name), name) if is_number else (True, 0, name)


def numbered(names: Sequence[str], coded: bool) -> dict[str, int]:
    """Number by name; where the training rows have numbers that stand for names, another file may have them bare."""
    return {str(i): i for i in range(len(names)) if coded} | {name: i for i, name in enumerate(names)}


def number_of(name: str | None, number: Mapping[str, int]) -> int:
    """-1 for what is not a class."""
    return -1 if name is None else number.get(name, number.get(plain_number(name), -1))


# --- rows that are not labelled, or with what is not a class --------------------------------------------------------


def label_faults(
    columns: Mapping[str, Labels], number: Mapping[str, int], names: Sequence[str], config: DataConfig
) -> list[str]:
    """What to say about rows whose label says nothing, cannot be a class, or is not one of the classes."""
    bare = [role for role, column in columns.items() if is_unlabelled(column, () if role == "train" else number)]
    faults = []
    for role, column in columns.items():
        if role in bare:
            faults.append(unlabelled_split(role, column, [r for r in columns if r not in bare], config))
        else:
            faults += no_classes(role, column)
            unknown = unknown_labels(role, column, number, names)
            if unknown and not any(number_of(name, number) >= 0 for name in column.names):
                unknown[0] += f"; if these rows are not labelled: {labelled_instead(role, columns, config)}"
            faults += unknown
    return faults


def is_unlabelled(column: Labels, known: Collection[str]) -> bool:
    """Whether no row has a label: nothing is there, or in all the same -1 or N/A, not a class of the others."""
    if not (said := {name for name in column.names if name is not None}):
        return all(map(says_nothing, column.values))
    word, *more = said
    return not more and word not in known and (word.lower() in NOTHING or bool(re.fullmatch("-[0-9]+", word)))


def unlabelled_split(role: str, column: Labels, labelled: Collection[str], config: DataConfig) -> str:
    values = shown_values(column.values) or "nothing"
    where = "the rows of data.test_file are" if role == "test" and config.test_file else f"the {role} rows are"
    return (
        f"data.label_column: {where} not labelled: {counted(len(column.places), 'row')} with {values} in column "
        f"'{config.label_column}'; {labelled_instead(role, labelled, config)}"
    )


def no_classes(role: str, column: Labels) -> list[str]:
    """What to say about single rows whose label is not a class, by kind of fault."""
    bad = [place for place, name in enumerate(column.names) if name is None]
    lists = [place for place in bad if isinstance(column.values[place], list)]
    nothing = [place for place in bad if says_nothing(column.values[place])]
    other = sorted(set(bad).difference(lists, nothing))
    faults = []
    if nothing:
        rows = column.rows(nothing)
        have = "row has" if len(rows) == 1 else "rows have"
        shown = shown_values([column.values[place] for place in nothing])
        faults.append(
            f"data.label_column: {len(rows):,} {have} no label{' but ' * bool(shown)}{shown} "
            f"({named_rows(role, rows)}); label or remove them"
        )
    if lists:
        faults.append(
            f"data.label_column: a list such as {column.values[lists[0]]!r:.80} is not a class "
            f"({named_rows(role, column.rows(lists))}); several labels for a text need data.task multi_label"
        )
    if other:
        faults.append(
            f"data.label_column: {column.values[other[0]]!r:.80} is not a class; use words or whole numbers "
            f"({named_rows(role, column.rows(other))})"
        )
    return faults


def shown_values(values: Sequence[object]) -> str:
    """Those that can be seen."""
    return listed([repr(value) for value in values if value is not None and str(value).strip()])


def says_nothing(value: object) -> bool:
    """Whether a value that names no class is an empty one; a number here is -1 of a ClassLabel, or NaN."""
    return value is None or isinstance(value, str | int | float | Decimal)


def unknown_labels(role: str, column: Labels, number: Mapping[str, int], names: Sequence[str]) -> list[str]:
    """What to say about rows whose label is not one of the classes."""
    bad = [place for place, name in enumerate(column.names) if name is not None and number_of(name, number) < 0]
    if not bad:
        return []
    different = list(dict.fromkeys(str(column.names[place]) for place in bad))
    many = len(different) > 1
    told = (
        f"data.label_column: label{'s' * many} {shortened(list(map(repr, different)))} {'are' if many else 'is'} not "
        f"one of {shortened(names)} ({named_rows(role, column.rows(bad))})"
    )
    written = {same_word(name): name for name in names}
    twins = [f"{name!r} like {written[word]!r}" for name in different if (word := same_word(name)) in written]
    if several := several_labels([*names, *different]):
        return [f"{told}; {several}"]
    if twins:
        return [f"{told}; write {listed(twins)} if they mean the same"]
    them = "them" if many else "it"
    return [f"{told}; correct {them}, or add training rows with {them}"]


def shortened(words: Sequence[str]) -> str:
    return ", ".join(words[:10]) + (", ..." if len(words) > 10 else "")


# --- columns that are no classes -------------------------------------------------------------------------------------


def check_names(names: Sequence[str], config: DataConfig) -> None:
    """The labels of the training rows must be at least two classes, with names."""
    field = "data.label_columns" if config.label_columns else "data.label_column"
    if len(names) < 2:
        raise InputError(f"{field}: '{config.label_column}' has only one class, {names[0]!r}; two are needed")
    for name in names:
        strange = next((f" (it holds {letter!r})" for letter in name if is_strange(letter)), "")
        if len(name) > MOST_LETTERS or strange:
            raise InputError(
                f"{field}: the class {name!r:.80} is not a name to show in tables{strange}; use a word or "
                f"two of at most {MOST_LETTERS} letters"
            )


def is_strange(letter: str) -> bool:
    """Whether it cannot be shown; spaces of any width can, and what Persian words and emoji are joined with."""
    return not letter.isprintable() and unicodedata.category(letter) != "Zs" and letter not in "\u200c\u200d"


def check_count(names: Sequence[str], rows: int, config: DataConfig) -> None:
    """Refuses nearly as many classes as rows."""
    if len(names) > 20 and 2 * len(names) > rows:
        several = several_labels(names)
        raise InputError(
            f"data.label_column: '{config.label_column}' has {len(names)} different values in {rows} rows; "
            f"{several or 'a class needs several rows; a number to predict needs data.task regression'}"
        )


def check_missing(names: Sequence[str], column: Labels) -> None:
    """Refuses a single word for nothing among numbers."""
    words = [name for name in names if not NUMBER.fullmatch(name)]
    if len(words) == 1 and words[0].lower() in NOTHING:
        numbers = shortened([name for name in names if name != words[0]])
        rows = column.rows([column.names.index(words[0])])
        raise InputError(
            f"data.label_column: {words[0]!r} among the numbers {numbers} means 'not labelled' "
            f"({named_rows('train', rows)}); label or remove such rows"
        )


def is_a_number(names: Sequence[str], column: Labels) -> bool:
    """Whether they are fractions, or nearly as many numbers as rows: something to predict, and no classes."""
    if not all(map(NUMBER.fullmatch, names)) or are_codes(names):
        return False
    fractions = any(not WHOLE.fullmatch(name.removeprefix("+")) for name in names)
    if len(column.places) >= MANY_ROWS * len(names) and (not fractions or are_long_decimals(names)):
        return False
    return fractions or are_many_numbers(names)


MANY_ROWS = 5
"""Of each, and numbers are taken for classes, however many they are."""


def are_many_numbers(names: Sequence[str]) -> bool:
    """Whether they are whole numbers, more than 20, and not just numbered from 0 or 1 on, as classes are."""
    if (
        len(names) <= 20
        or max(map(len, names)) > MOST_LETTERS
        or not all(map(WHOLE.fullmatch, names))
        or are_codes(names)
    ):
        return False
    return [int(name) for name in names] not in [list(range(start, start + len(names))) for start in (0, 1)]


def are_long_decimals(names: Sequence[str]) -> bool:
    """Whether they may be codes as well as numbers: 401.9 and 427.31, with three digits or more before the point."""
    wholes = [name.partition(".")[0] for name in names]
    alike = all(len(whole) == len(wholes[0]) >= 3 and whole.isdecimal() for whole in wholes)
    return alike and any("." in name for name in names) and all(map(NUMBER.fullmatch, names)) and not are_codes(names)


def are_codes(names: Sequence[str]) -> bool:
    """Whether they are written as no program writes numbers: 007.1, or 1.1 beside 1.10."""
    decimals = [name.partition(".")[2] for name in names if "." in name]
    padded = any(len(part) > 1 and part.endswith("0") for part in decimals) and len(set(map(len, decimals))) > 1
    return padded or any(re.match(r"-?0[0-9]", name) for name in names)


# --- names that may mean something else than they say ----------------------------------------------------------------


def same_word(name: str) -> str:
    """`name` without what people write differently: case, Unicode form, spaces, hyphens, joiners; of numbers, zeros."""
    bare = normal(name)
    if bare.isdecimal():
        return bare.lstrip("0") or "0"
    return re.sub(r"[\s_\u200c\u200d-]", "", bare) if any(map(str.isalpha, bare)) else bare


def several_labels(names: Sequence[str]) -> str:
    """That the classes look like several labels in one, with an example; empty where they do not.

    A comma in a name says nothing: the parts must come again, in more combinations than there are parts.
    """
    together = {name: parts for name in names if len(parts := parts_of(name)) > 1}
    pieces = {part for parts in together.values() for part in parts}
    alone = [name for name in names if name not in together and parts_of(name)[0] in pieces]
    again = len({frozenset(parts) for parts in together.values()}) < len(together)
    combinations = len(together) + len(alone)
    recombined = len(pieces) < combinations or (len(together) > 2 and len(pieces) == combinations)
    if not together or not (recombined or again):
        return ""
    example = max(together, key=lambda name: len(set(together[name]) & set(alone)))
    return f"labels such as {example!r} look like several labels for one text ({listed(sorted(pieces))})"


def parts_of(name: str) -> tuple[str, ...]:
    """The labels in one: `battery|price`, `["battery", "price"]`."""
    inner = name.strip()
    is_list = inner.startswith("[") and inner.endswith("]")
    inner = inner[1:-1] if is_list else inner
    separator = next((mark for mark in ("," if is_list else SEPARATORS) if mark in inner), None)
    parts = (part.strip(" '\"") for part in (inner.split(separator) if separator else [inner]))
    return tuple(part for part in parts if part) or (name,)
