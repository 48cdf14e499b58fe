"""The rows of any input, one at a time: a million of them take no more memory than a thousand.

A row that cannot be read says so itself, with its number; what makes all that follows unreadable is an InputError.
"""

import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tasks.base.records import Source
from tasks.settings.config import PredictionConfig
from tasks.settings.fields import InputError
from tasks.settings.fixed import data_kind
from tasks.settings.sections import DataConfig
from tasks.sources import formats
from tasks.sources.advice import name_columns
from tasks.sources.delimited import lines
from tasks.sources.folders import Folder, data_files, how_read, look_into, names, saved_by_datasets
from tasks.sources.hub import find
from tasks.sources.jsonrows import objects
from tasks.sources.opened import Broken, Read, clean
from tasks.sources.reading import load
from tasks.sources.tables import BATCH_ROWS, unsaved_formulas


class Row(NamedTuple):
    number: int
    """Place in the input, from 0."""
    texts: tuple[str, ...]
    id: str | float | None
    """What the input's column `id` holds; None where it has none."""
    share: float | None
    """How much of the input has been read with this row, 0 to 1; None for standard input."""
    fault: str = ""
    """Why the row cannot be used, in words; its texts are then empty."""
    given: Any = None
    """The row as it was, where it cannot be used."""
    may_have_id: bool = False
    """It is an object of standard input, where later ones may have an id if this one has none."""
    also: Mapping[str, Any] = {}
    """Other columns that were asked for, as far as the row has them."""


@contextmanager
def as_input() -> Iterator[None]:
    """Errors of a run's data, in the words of a prediction's fields."""
    try:
        yield
    except InputError as error:
        field = re.match(r"data\.(\w+):", str(error))
        if not field:
            raise
        name = {"name": "input"}.get(field[1], field[1])
        raise type(error)(f"{name}:{str(error)[field.end() :]}") from error


def find_rows(config: PredictionConfig) -> Source | None:
    """The input and which content it has; None for standard input. InputError where there is no such thing."""
    if config.input == "-":
        return None
    with as_input():
        source = find("dataset", config.input, config.revision, config.offline)
    if Path(source.name).is_file() and (config.split or config.config):
        raise InputError(f"split, config: only data sets and folders have them, not the file {Path(source.name).name}")
    return source


def read_rows(
    config: PredictionConfig, source: Source | None, columns: Sequence[str], also: Sequence[str] = ()
) -> Iterator[Row]:
    """Each row of the input; `columns` are those that hold its texts, `also` others that a row may have. Raises
    InputError, where one of the first is missing in the first row too."""
    with as_input():
        raws, objects = (
            read_stdin(columns) if source is None else (read_source(config, source, (*columns, *also, "id")), False)
        )
        known = False
        for number, (raw, share) in enumerate(raws):
            if isinstance(raw, Broken):
                yield Row(number, (), None, share, *raw)
                continue
            if not known:
                check_columns(config, raw, columns)
                known = True
            texts: tuple[Any, ...] = tuple(raw.get(column) for column in columns)
            fault = next(filter(None, map(fault_of, columns, texts)), "")
            place = (number, () if fault else texts, as_id(raw.get("id")), share, fault, raw if fault else None)
            yield Row(*place, objects, {name: raw[name] for name in also if name in raw})


def as_id(value: Any) -> str | float | None:
    """Numbers and words as they are, everything else as text."""
    if value is None or value != value:  # pandas' own nothing
        return None
    if type(value) in (int, float):
        return value
    return clean(str(value))


def kind_of_ids(config: PredictionConfig, source: Source) -> str | None:
    """What the column `id` of the whole input holds: int64, float64 or string; None where there is none.

    Of json all rows are read for it: the last may be the first that has one.
    """
    with as_input():
        if not may_have_ids(config, source):
            return None
        kinds, there = set[str](), False
        for raw, _ in read_source(config, source, ("id",)):
            if isinstance(raw, Broken) or "id" not in raw:
                continue
            there, value = True, as_id(raw["id"])
            if isinstance(value, str) or (isinstance(value, int) and abs(value) >= 2**63):
                return "string"
            kinds.update([] if value is None else ["int64" if isinstance(value, int) else "float64"])
    return max(kinds, key=len, default="string") if there else None


def may_have_ids(config: PredictionConfig, source: Source) -> bool:
    """Whether the columns of the input are not known at its start, or one is `id`."""
    path = Path(source.name)
    if not source.is_local or saved_by_datasets(path):
        return True
    folder, files = files_of(path, config)
    columns = [formats.columns_of(file, folder.sep) for file in files]
    return folder.whole or any(names is None or "id" in names for names in columns)


def check_columns(config: PredictionConfig, raw: Mapping[str, Any], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in raw:
            there = ", ".join(map(str, raw)) or "none"
            raise InputError(
                f"text_columns: there is no column '{column}' in {config.input}; it has {there:.200}; "
                f"{name_columns({name: [value] for name, value in raw.items()}, columns)}"
            )


def fault_of(column: str, text: object) -> str:
    """What is wrong with a text, in words; nothing where it can be read."""
    if text is None or (isinstance(text, str) and not text.strip()):
        return f"has no text in column '{column}'"
    if not isinstance(text, str):
        return f"column '{column}' holds {type(text).__name__}, not text"
    return "" if text == clean(text) else f"column '{column}' is not valid UTF-8"


# --- where the rows lie ----------------------------------------------------------------------------------------------


def read_source(config: PredictionConfig, source: Source, columns: Sequence[str]) -> Read:
    path = Path(source.name)
    chosen = partial(useful, columns)
    if source.is_local and not saved_by_datasets(path):
        folder, files = files_of(path, config)
        if not folder.whole:
            return chain.from_iterable(
                (
                    (raw, ((share or 0) + done) / len(files))
                    for raw, share in formats.read_rows(file, chosen, folder.sep)
                )
                for done, file in enumerate(files)
            )
    loaded = load(source, DataConfig(name=config.input, config=config.config, revision=config.revision))
    return read_batches(loaded[choose_split(config, loaded)], columns)


def files_of(path: Path, config: PredictionConfig) -> tuple[Folder, list[Path]]:
    """Those of a split; of a folder in which files have the name of one split at most, all."""
    if path.is_file():
        return Folder({"train": [(path,)]}, []), [path]
    folder = look_into(path, config.config)
    if folder.whole:
        return folder, []
    if config.split is None and len(folder.splits) < 2:
        return folder, [file for file in data_files(path) if data_kind(file)] or data_files(path)
    return folder, [file for piece in folder.splits[choose_split(config, folder.splits)] for file in piece]


def notes_of(config: PredictionConfig, source: Source | None) -> list[str]:
    """How the input is read, where that had to be found out, and what of a folder is left out."""
    if source is None or not source.is_local or saved_by_datasets(path := Path(source.name)):
        return []
    with as_input():
        folder, files = files_of(path, config)
        left_out = sorted({*data_files(path)} - {*files}) if path.is_dir() and not folder.whole else []
        return [*how_read(files), *([f"not labelled: {names(left_out, path)}"] if left_out else [])]


def formulas_in(config: PredictionConfig, source: Source | None, columns: Sequence[str]) -> list[str]:
    """Why cells of Excel files are empty that do not look so."""
    if source is None or not source.is_local or saved_by_datasets(path := Path(source.name)):
        return []
    folder, files = files_of(path, config)
    return [] if folder.whole else unsaved_formulas(files, columns)


def choose_split(config: PredictionConfig, splits: Mapping[Any, Any]) -> Any:
    there = {str(split): split for split in splits}
    if config.split is None and len(there) == 1:
        return next(iter(there.values()))
    if config.split not in there:
        problem = f"there is no split '{config.split}'" if config.split else "name one split"
        raise InputError(f"split: {problem}; {config.input} has {', '.join(there) or 'none'}")
    return there[config.split]


def useful(columns: Sequence[str], there: Sequence[str]) -> list[str]:
    """Those of `columns` that there are; where one is missing, all, to say so. The last is `id`, which may be."""
    return [name for name in there if name in columns or not set(columns[:-1]) <= set(there)]


def read_batches(split: Any, columns: Sequence[str]) -> Read:
    names, done = useful(columns, split.column_names), 0
    if not names:
        return
    for batch in split.select_columns(names).iter(batch_size=BATCH_ROWS):
        for values in zip(*(batch[name] for name in names), strict=True):
            done += 1
            yield dict(zip(names, values, strict=True)), done / len(split)


def read_stdin(columns: Sequence[str]) -> tuple[Read, bool]:
    """JSON objects, where the first line that is not empty is one; else each line is a text. And whether it is so."""
    stream = io.TextIOWrapper(buffered(sys.stdin.buffer), "utf-8-sig", "surrogateescape", newline="")
    source, first = lines(stream, "standard input"), list[str]()
    for line in source:
        first.append(line)
        if line.strip():
            break
    rest = chain(first, source)
    if first and first[-1].lstrip().startswith("{"):
        return ((raw, None) for raw in objects(rest)), True
    if len(columns) > 1:
        raise InputError(f"input: the model reads {' and '.join(columns)}; give JSON objects with both, one a line")
    return (({columns[0]: line.rstrip("\r\n")}, None) for line in rest), False


def buffered(stream: BinaryIO) -> BinaryIO:
    """Standard input, which stays open when what reads it goes."""
    return open(stream.fileno(), "rb", closefd=False)
