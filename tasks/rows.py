"""The rows of any input, one at a time: a million of them take no more memory than a thousand.

A row that cannot be read says so itself, with its number; what makes all that follows unreadable is an InputError.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from tasks.config import DATA_FILES, DataConfig, InputError, PredictionConfig
from tasks.hub import find, first_line
from tasks.reading import load, refuse_twins
from tasks.records import Source

MOST_CHARACTERS = 10_000_000
"""In one line, or one object of a json array: what is longer is no text but a broken file."""

MOST_CELL_CHARACTERS = 1_000_000
"""In one cell of a csv file. A quote that is never closed would take in the rest of the file."""

BATCH_ROWS = 1_000
"""Of a parquet file or data set that are in memory at once."""


class Row(NamedTuple):
    number: int
    """Place in the input, from 0."""
    texts: tuple[str, ...]
    id: str | None
    """What the input's column `id` holds; None where it has none."""
    share: float | None
    """How much of the input has been read with this row, 0 to 1; None for standard input."""
    fault: str = ""
    """Why the row cannot be used, in words; its texts are then empty."""
    given: Any = None
    """The row as it was, where it cannot be used."""


class Broken(NamedTuple):
    """A row that cannot be read, while those after it can."""

    fault: str
    given: Any


Raw = Mapping[str, Any] | Broken
Read = Iterator[tuple[Raw, float | None]]
"""Rows as they are, with the share of the file that has been read."""


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


def read_rows(config: PredictionConfig, source: Source | None, columns: Sequence[str]) -> Iterator[Row]:
    """Each row of the input; `columns` are those that hold its texts. Raises InputError, where one of them is missing
    in the first row too."""
    with as_input():
        raws = read_stdin(columns) if source is None else read_source(config, source, (*columns, "id"))
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
            name = raw.get("id")
            shown = None if name is None else clean(str(name))
            yield Row(number, () if fault else texts, shown, share, fault, raw if fault else None)


def check_columns(config: PredictionConfig, raw: Mapping[str, Any], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in raw:
            there = ", ".join(map(str, raw)) or "none"
            raise InputError(
                f"text_columns: there is no column '{column}' in {config.input}; it has {there:.200}. "
                "Name those with the texts"
            )


def fault_of(column: str, text: object) -> str:
    """What is wrong with a text, in words; nothing where it can be read."""
    if text is None or (isinstance(text, str) and not text.strip()):
        return f"has no text in column '{column}'"
    if not isinstance(text, str):
        return f"column '{column}' holds {type(text).__name__}, not text"
    return "" if text == clean(text) else f"column '{column}' is not valid UTF-8"


def clean(text: str) -> str:
    """Without what is no character: bytes that are not UTF-8, halves of a pair in JSON."""
    return text if text.isascii() else text.encode(errors="replace").decode()


# --- where the rows lie ----------------------------------------------------------------------------------------------


def read_source(config: PredictionConfig, source: Source, columns: Sequence[str]) -> Read:
    path = Path(source.name)
    if source.is_local:
        files = [path] if path.is_file() else folder_files(path, config)
        return chain.from_iterable(
            ((raw, ((share or 0) + done) / len(files)) for raw, share in read_file(file, columns))
            for done, file in enumerate(files)
        )
    loaded = load(source, DataConfig(name=config.input, config=config.config, revision=config.revision))
    return read_batches(loaded[choose_split(config, loaded)], columns)


def folder_files(folder: Path, config: PredictionConfig) -> list[Path]:
    """The files of a split, as `datasets` tells splits apart by the names of files, or by the folder's README.md."""
    from datasets import load_dataset_builder

    try:
        found = load_dataset_builder(str(folder), config.config).config.data_files or {}
    except Exception as error:
        raise InputError(f"input: {folder} cannot be read: {first_line(error)}") from error
    files = [Path(file) for file in found[choose_split(config, found)]]
    if strange := [file.name for file in files if file.suffix.lower() not in DATA_FILES]:
        raise InputError(f"input: {folder} holds {strange[0]}, which is no {', '.join(DATA_FILES)} file; remove it")
    return files


def choose_split(config: PredictionConfig, splits: Mapping[Any, Any]) -> Any:
    there = {str(split): split for split in splits}
    if config.split is None and len(there) == 1:
        return next(iter(there.values()))
    if config.split not in there:
        problem = f"there is no split '{config.split}'" if config.split else "name one split"
        raise InputError(f"split: {problem}; {config.input} has {', '.join(there) or 'none'}")
    return there[config.split]


def useful(there: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Those of `columns` that there are; where one is missing, all, to say so. The last is `id`, which may be."""
    return [name for name in there if name in columns or not set(columns[:-1]) <= set(there)]


def read_batches(split: Any, columns: Sequence[str]) -> Read:
    names, done = useful(split.column_names, columns), 0
    for batch in split.select_columns(names).iter(batch_size=BATCH_ROWS):
        for values in zip(*(batch[name] for name in names), strict=True):
            done += 1
            yield dict(zip(names, values, strict=True)), done / len(split)


def read_file(path: Path, columns: Sequence[str]) -> Read:
    if path.suffix.lower() == ".parquet":
        yield from read_parquet(path, columns)
        return
    size = max(1, path.stat().st_size)
    with path.open("rb") as file:
        # bytes that are not UTF-8 spoil their own row, not the file
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        reader = READERS[path.suffix.lower()]
        for raw in reader(text, path.name):
            yield raw, min(1.0, file.tell() / size)


def read_stdin(columns: Sequence[str]) -> Read:
    """JSON objects, where the first line is one; else each line is a text."""
    stream = io.TextIOWrapper(buffered(sys.stdin.buffer), "utf-8-sig", "surrogateescape", newline="")
    first = stream.readline(MOST_CHARACTERS)
    rest = chain([first] if first else [], lines(stream, "standard input"))
    if first.lstrip().startswith("{"):
        return ((raw, None) for raw in objects(rest))
    if len(columns) > 1:
        raise InputError(f"input: the model reads {' and '.join(columns)}; give JSON objects with both, one a line")
    return (({columns[0]: line.rstrip("\r\n")}, None) for line in rest)


def buffered(stream: BinaryIO) -> BinaryIO:
    """Standard input, which stays open when what reads it goes."""
    return open(stream.fileno(), "rb", closefd=False)


# --- formats ---------------------------------------------------------------------------------------------------------


def lines(file: TextIO, name: str) -> Iterator[str]:
    number = 0
    while line := file.readline(MOST_CHARACTERS):
        number += 1
        if len(line) == MOST_CHARACTERS:
            raise InputError(
                f"input: {name} has more than {MOST_CHARACTERS:,} characters in line {number}; break it up"
            )
        yield line


def read_csv(file: TextIO, name: str) -> Iterator[Raw]:
    """Rows by column. A quote that is never closed ends it: where the next row begins, nobody knows."""
    csv.field_size_limit(MOST_CELL_CHARACTERS)
    taken: list[str] = []

    def remembered() -> Iterator[str]:
        for line in lines(file, name):
            taken.append(line)
            yield line

    reader = csv.reader(remembered(), strict=True)
    header: list[str] = []
    number = 0
    while True:
        taken.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if not header or "unexpected end" in str(error) or "field limit" in str(error):
                line = reader.line_num - len(taken) + 1
                what = "a quote is opened and never closed" if header else first_line(error)
                raise InputError(f"input: {name}: {what} in row {number} (line {line}); repair it") from None
            number += 1
            yield Broken(f"cannot be read: {error}", "".join(taken))
            continue
        if not fields:  # an empty line
            continue
        if not header:
            header = fields
            refuse_twins(Path(name), header)
            continue
        number += 1
        if len(fields) != len(header):
            yield Broken(f"has {len(fields)} fields, and the header {len(header)}", "".join(taken))
        else:
            yield dict(zip(header, fields, strict=True))


def read_jsonl(file: TextIO, name: str) -> Iterator[Raw]:
    return objects(lines(file, name))


def objects(texts: Iterator[str]) -> Iterator[Raw]:
    """One for each line that is not empty."""
    for line in texts:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Broken(f"is not valid JSON: {first_line(error)}", line)
        else:
            yield as_object(value)


def as_object(value: Any) -> Raw:
    return value if isinstance(value, dict) else Broken(f"is a {type(value).__name__}, not a JSON object", value)


def read_json(file: TextIO, name: str) -> Iterator[Raw]:
    """The objects of an array, or one in each line."""
    start = file.read(1 << 16)
    if not start.lstrip().startswith("["):
        file.seek(0)
        yield from read_jsonl(file, name)
        return
    decoder, text, place, number, size = json.JSONDecoder(), start, start.index("[") + 1, 0, 1 << 16
    ended = False
    while True:
        place = after_spaces(text, place)
        if text[place : place + 1] == "]":
            return
        try:
            value, end = decoder.raw_decode(text, place)
            end = after_spaces(text, end)
            if (mark := text[end : end + 1]) not in (",", "]") or not mark:
                raise ValueError(f"after it stands {mark!r}, not a comma" if mark else "the array is never closed")
        except (ValueError, RecursionError) as error:
            # perhaps the object goes on behind what has been read
            more = "" if ended or len(text) - place > MOST_CHARACTERS else file.read(size)
            if not more:
                raise InputError(f"input: {name}: row {number} is not valid JSON: {first_line(error)}") from None
            ended = len(more) < size
            text, place, size = text[place:] + more, 0, 2 * size
            continue
        yield as_object(value)
        number, place, size = number + 1, end + (mark == ","), 1 << 16


SPACES = re.compile(r"[ \t\r\n]*")


def after_spaces(text: str, place: int) -> int:
    found = SPACES.match(text, place)
    assert found
    return found.end()


READERS: dict[str, Callable[[TextIO, str], Iterator[Raw]]] = {
    ".csv": read_csv,
    ".json": read_json,
    ".jsonl": read_jsonl,
}


def read_parquet(path: Path, columns: Sequence[str]) -> Read:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20)  # else a whole column is read at once
        refuse_twins(path, file.schema_arrow.names)
        names = useful(file.schema_arrow.names, columns)
        done = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=names):
            for values in zip(*(plain(batch.column(name)) for name in names), strict=True):
                done += 1
                yield dict(zip(names, values, strict=True)), done / file.metadata.num_rows
    except (pyarrow.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError(f"input: {path.name} cannot be read: {first_line(error)}") from error


def plain(column: Any) -> list[Any]:
    """The values of a column; of a text that is not UTF-8 only that one is spoilt."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        raw = column.cast(pyarrow.large_binary()).to_pylist()
        return [value and value.decode(errors="surrogateescape") for value in raw]
    values: list[Any] = column.to_pylist()
    return values
