"""The rows of one file, whatever its format: the one reader of finetune, retrain and predict.

What is written as text (csv, tsv, xlsx) is text: no type is guessed. A row that cannot be read says so itself; what
makes all that follows unreadable is an InputError.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple, TextIO

from tasks.config import PACKED_FILES, InputError, data_kind
from tasks.disk import is_disk_full

MOST_CHARACTERS = 10_000_000
"""In one line, cell, or object of a json array: what is longer is not text but a broken file."""

BATCH_ROWS = 1_000
"""Of a table that are in memory at once."""

HEAD_BYTES = 1 << 16
"""Of a file, looked at to find out how it is written."""

MOST_WORDS = 1_000
"""Different values of a column that are remembered, to know a row of the file again where it should not be."""


class Broken(NamedTuple):
    """A row that cannot be read, while those after it can."""

    fault: str
    given: Any


Raw = Mapping[str, Any] | Broken
Read = Iterator[tuple[Raw, float | None]]
"""Rows as they are, with the share of the file that has been read, where that is known."""


def read_rows(path: Path, columns: Callable[[Sequence[str]], list[str]] = list, sep: str | None = None) -> Read:
    """Each row of a file. Of a table only those columns that `columns` chooses; `sep` stands between those of a csv."""
    with readable(path):
        kind = kind_of(path)
        if kind in TABLES:
            yield from table_rows(path, columns)
        elif kind == ".xlsx":
            yield from sheet_rows(path)
        elif kind == ".txt":
            yield text_row(path), 1.0
        else:
            check_letters(path)
            with opened(path) as (file, share):
                # bytes that are not UTF-8 spoil their own row, not the file
                text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
                rows = read_json(text, path) if "json" in kind else read_csv(text, path, sep or separator(path))
                for raw in rows:
                    yield raw, share()


def columns_of(path: Path, sep: str | None = None) -> list[str] | None:
    """What a file says at its start that all its rows have; None where only the rows tell (json)."""
    with readable(path):
        kind = kind_of(path)
        if kind in TABLES:
            with table(path) as (schema, _):
                return list(schema.names)
        if kind == ".xlsx":
            with sheet(path) as (header, _, _):
                return header
        if kind == ".txt":
            return [*text_row(path)]
        check_letters(path)
        if "json" in kind:
            return None
        with opened(path) as (file, _):
            text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
            return Lines(text, path, sep or separator(path)).header


def notes_of(path: Path) -> list[str]:
    """How a file was read, where that had to be found out."""
    with readable(path):
        kind = kind_of(path)
        if kind in (".csv", ".tsv") and ((sep := separator(path)) != "," or kind == ".tsv"):
            return [f"{path.name} has {SEPARATORS[sep[0]]}{' and a space' * len(sep[1:])} between its columns"]
        if kind == ".xlsx":
            with sheet(path) as (_, _, names):
                others = ", ".join(repr(name) for name in names[1:])
                return [f"of {path.name} only the first sheet is read, {names[0]!r}, not {others:.200}"] * bool(others)
    return []


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Within, what a library says about a file that it cannot read becomes an InputError that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        if is_disk_full(error) or (isinstance(error, OSError) and error.errno):
            raise
        raise unreadable(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def unreadable(path: Path, why: str) -> InputError:
    return InputError(f"data.name: {path} cannot be read: {why:.300}")


# --- the bytes of a file ---------------------------------------------------------------------------------------------


def kind_of(path: Path) -> str:
    """`.csv` and so on, also of what is packed; InputError where a zip file does not hold one file of data."""
    if path.suffix.lower() == ".txt":
        return ".txt"
    if path.suffix.lower() != ".zip":
        return data_kind(path) or ""
    with readable(path), zipfile.ZipFile(path) as packed:
        return data_kind(member(path, packed)) or data_kind(path) or ""


def member(path: Path, packed: zipfile.ZipFile) -> str:
    """The name of the only file of data in a zip file."""
    names = [info.filename for info in packed.infolist() if not info.is_dir() and "__MACOSX/" not in info.filename]
    found = [name for name in names if data_kind(name) and Path(name).suffix.lower() not in PACKED_FILES]
    if len(names) == 1 and data_kind(path) != ".zip":
        return names[0]
    if len(found) != 1:
        there = ", ".join(names) or "nothing"
        raise unreadable(
            path, f"it must hold one file of data, not {there:.100}; unpack it and give the file or folder"
        )
    return found[0]


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, Callable[[], float]]]:
    """A file's bytes, unpacked, and a function that says which share of the file has been read."""
    size = max(1, path.stat().st_size)
    with path.open("rb") as raw, unpacked(path, raw) as file:
        yield file, lambda: min(1.0, raw.tell() / size)


@contextmanager
def unpacked(path: Path, raw: BinaryIO) -> Iterator[BinaryIO]:
    import pyarrow

    match path.suffix.lower():
        case ".zip":
            with zipfile.ZipFile(raw) as packed:
                try:
                    yield packed.open(member(path, packed))  # type: ignore[misc]
                except (RuntimeError, NotImplementedError) as error:  # a password; a method that Python does not know
                    raise unreadable(path, f"{error}; unpack it first") from error
        case ".gz" | ".bz2" | ".xz" as kind:
            with {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[kind](raw) as file:  # type: ignore[operator]
                yield file
        case ".zst":
            yield io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
        case _:
            yield raw


@contextmanager
def seekable(path: Path) -> Iterator[str | BinaryIO]:
    """What a library may open that goes to and fro in a file: its path, or an unpacked copy."""
    if path.suffix.lower() not in PACKED_FILES:
        yield str(path)
        return
    with opened(path) as (file, _), TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.seek(0)
        yield copy


def head_of(path: Path) -> bytes:
    with opened(path) as (file, _):
        return file.read(HEAD_BYTES)


STARTS = {
    b"\x1f\x8b": "gzip; its name should end in .gz",
    b"BZh": "bzip2; its name should end in .bz2",
    b"\xfd7zXZ": "xz; its name should end in .xz",
    b"\x28\xb5\x2f\xfd": "zstd; its name should end in .zst",
    b"PK\x03\x04": "a zip or Excel file; its name should end in .zip or .xlsx",
    b"\xd0\xcf\x11\xe0": "an old Excel file; save it as .xlsx or as CSV UTF-8",
    b"PAR1": "parquet; its name should end in .parquet",
    b"ARROW1": "Arrow; its name should end in .arrow",
    b"%PDF": "a PDF",
}
"""First bytes of files that people rename."""


def check_letters(path: Path) -> None:
    """Refuses what is no UTF-8 text from its first bytes on."""
    head = head_of(path)
    if not head:
        raise InputError(f"data.name: {path} is empty; it needs a text and a label column")
    for start, what in STARTS.items():
        if head.startswith(start):
            raise unreadable(path, f"it is not text but {what}")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or len(head) / 4 < head.count(0) < len(head):
        raise unreadable(path, "it is UTF-16; save it as UTF-8 (in Excel: 'CSV UTF-8')")
    if b"\0" in head:
        raise unreadable(path, "it holds zero bytes, so it is not text")


def clean(text: str) -> str:
    """Without what is no character: bytes that are not UTF-8, halves of a pair in JSON."""
    return text if text.isascii() else text.encode(errors="replace").decode()


# --- csv -------------------------------------------------------------------------------------------------------------


SEPARATORS = {",": "a comma", ";": "';'", "\t": "a tab", "|": "'|'"}


def separator(path: Path) -> str:
    """What stands between the columns of a csv: what splits the header, and then most rows into as many fields.

    A comma, or the tab of a .tsv, where nothing else splits them better; with a space, where one follows each in the
    header. Excel may name it itself, in a line before.
    """
    head = head_text(path)
    if named := EXCEL.match(head):
        return named[1]
    usual = "\t" if kind_of(path) == ".tsv" else ","
    found = max((usual, *SEPARATORS), key=lambda sep: fit(head, sep))
    header = next(filter(str.strip, head.splitlines()), "")
    spaced = fit(head, found) and header.count(found) == header.count(f"{found} ")
    return f"{found} " if spaced else found


EXCEL = re.compile("sep=([,;\t|])\r?\n")


def head_text(path: Path) -> str:
    """The lines at the start of a file."""
    head = head_of(path)
    text = head.decode("utf-8-sig", "replace")
    return text[: text.rindex("\n") + 1] if len(head) == HEAD_BYTES and "\n" in text else text


def fit(head: str, sep: str) -> float:
    """Share of the rows at the start of a file that have as many fields as its header; 0 where that has only one."""
    csv.field_size_limit(MOST_CHARACTERS)
    rows = [fields for fields in csv.reader(io.StringIO(head, newline=""), delimiter=sep) if fields]
    if not rows or len(rows[0]) < 2:
        return 0
    return sum(len(fields) == len(rows[0]) for fields in rows) / len(rows)


class Lines:
    """The rows of a csv, and the lines that the last one took."""

    def __init__(self, file: TextIO, path: Path, sep: str) -> None:
        csv.field_size_limit(MOST_CHARACTERS)
        self.path = path
        self.taken: list[str] = []
        spaced = len(sep) > 1
        self.reader = csv.reader(self.remembered(file), delimiter=sep[0], skipinitialspace=spaced, strict=True)
        self.header = self.read_header()

    def remembered(self, file: TextIO) -> Iterator[str]:
        for line in lines(file, self.path):
            self.taken.append(line)
            yield line

    def __iter__(self) -> Iterator[list[str] | csv.Error]:
        """Fields; an error where they cannot be told, and the next row can."""
        while True:
            self.taken.clear()
            try:
                if fields := next(self.reader):  # else an empty line
                    yield fields
            except StopIteration:
                return
            except csv.Error as error:
                yield error

    def read_header(self) -> list[str]:
        for fields in self:
            if isinstance(fields, csv.Error):
                raise unreadable(self.path, f"{fields} in its first line")
            if len(self.taken) == 1 and EXCEL.match(self.taken[0]):
                continue
            refuse_twins(self.path, [name for name in fields if name])
            return [name or f"unnamed {place}" for place, name in enumerate(fields)]
        raise InputError(f"data.name: {self.path} has no rows; add some")

    def refuse_open_quote(self, row: int) -> None:
        """After a row of several lines that look like rows: a quote in the first took them in."""
        first = int(self.reader.line_num) - len(self.taken) + 1
        raise InputError(
            f"data.name: {self.path}: a quote is opened and never closed in row {row} (line {first}): "
            f"it takes in all up to line {self.reader.line_num}; close it, or write a quote within a text twice"
        )


def refuse_twins(path: Path, columns: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise InputError(f"data.name: {path} has the column {twice[0]!r:.80} twice; rename or remove one")


def read_csv(file: TextIO, path: Path, sep: str) -> Iterator[Raw]:
    """Rows by column, all of them text; an empty cell is None."""
    rows, words = Lines(file, path, sep), known_words(path, sep)
    header = rows.header
    for number, fields in enumerate(rows):
        taken, end = rows.taken, f"(line {rows.reader.line_num})"
        if isinstance(fields, csv.Error):
            if len(taken) > 1 or "unexpected end" in str(fields):
                rows.refuse_open_quote(number)
            advice = "; a quote within a text is written twice" if "expected after" in str(fields) else ""
            told = str(fields).replace("'\t'", "a tab")  # which would be shown as a space
            yield Broken(f"cannot be read: {told} {end}{advice}", "".join(taken))
            continue
        if len(taken) > 1 and takes_in_rows(taken, fields, words, sep):
            rows.refuse_open_quote(number)
        if len(fields) != len(header):
            many = f"{len(fields)} field{'s'[: len(fields) != 1]}"
            yield Broken(f"has {many}, and the header {len(header)} {end}", "".join(taken))
            continue
        if fields == header and len(header) > 1:
            yield Broken(f"has the names of the columns once more {end}", "".join(taken))
            continue
        if len(taken) == 1:
            remember(fields, words)
        yield dict(zip(header, (field or None for field in fields), strict=True))


def known_words(path: Path, sep: str) -> list[set[str] | None]:
    """What the columns hold in the rows at the start of a file that take one line each."""
    rows = Lines(io.StringIO(head_text(path), newline=""), path, sep)
    words: list[set[str] | None] = [set() for _ in rows.header]
    for fields in rows:
        if isinstance(fields, list) and len(rows.taken) == 1:
            remember(fields, words)
    return words


def remember(fields: Sequence[str], words: list[set[str] | None]) -> None:
    """Add the values of a row to those of each column; a column of very many different ones is given up."""
    for place, (field, known) in enumerate(zip(fields, words, strict=False)):
        if known is not None and field not in known:
            known.add(field)
            if len(known) > MOST_WORDS:
                words[place] = None


def takes_in_rows(taken: Sequence[str], fields: Sequence[str], words: Sequence[set[str] | None], sep: str) -> bool:
    """Whether the lines that one row takes are rows themselves: as many fields, and known values in a column.

    The lines of a long text hardly ever are. Where the row has too many or too few fields, one such line is enough.
    """
    split = [cells for line in taken if len(cells := line.rstrip("\r\n").split(sep[0])) == len(words) > 1]
    if len(split) < (len(taken) if len(fields) == len(words) else 1):
        return False
    return any(known and all(cells[place].strip(' "') in known for cells in split) for place, known in enumerate(words))


def lines(file: TextIO, path: Path | str) -> Iterator[str]:
    number = 0
    while line := file.readline(MOST_CHARACTERS):
        number += 1
        if len(line) == MOST_CHARACTERS:
            raise InputError(
                f"data.name: {path} has more than {MOST_CHARACTERS:,} characters in line {number}; break it up"
            )
        yield line


# --- json ------------------------------------------------------------------------------------------------------------


def read_json(file: TextIO, path: Path) -> Iterator[Raw]:
    """The objects of an array, or one in each line."""
    start = head_text(path).lstrip()
    if start.startswith("["):
        yield from read_array(file, path)
        return
    rows = objects(lines(file, path))
    row = next(rows, None)
    if isinstance(row, Broken) and start.startswith("{") and (whole := whole_object(path)):
        row, rows = whole, iter(())
    following = next(rows, None)
    if isinstance(row, dict) and following is None:
        refuse_columns(row, path)
    yield from (one for one in (row, following) if one is not None)
    yield from rows


def whole_object(path: Path) -> dict[str, Any] | None:
    """What a file is that holds one object over several lines."""
    with opened(path) as (file, _):
        try:
            value = DECODER.decode(file.read(MOST_CHARACTERS).decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def refuse_columns(row: Mapping[str, Any], path: Path) -> None:
    """Refuses the whole table as the only object of a file."""
    lists = [name for name, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) == 1:
        raise InputError(f"data.name: {path} holds its rows under {lists[0]!r:.80}; write that list alone")
    if row and all(isinstance(value, dict | list) for value in row.values()):
        raise InputError(
            f"data.name: {path} is written by columns, not by rows; in pandas write it with "
            'to_json(..., orient="records")'
        )


def objects(texts: Iterator[str]) -> Iterator[Raw]:
    """One for each line that is not empty."""
    for number, line in enumerate(texts, 1):
        if not line.strip():
            continue
        try:
            value = DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            yield Broken(f"is not valid JSON: {what_json_says(error)} (line {number})", line)
        else:
            yield as_object(value, f" (line {number})")


def without_twins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"the name {Counter(name for name, _ in pairs).most_common(1)[0][0]!r:.80} is there twice")
    return row


def what_json_says(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        comma = "; leave out the comma after it" if error.doc[error.pos :].strip() == "," else ""
        return f"{error.msg} at {error.doc[error.pos :][:20].rstrip()!r}{comma}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]


def as_object(value: Any, where: str = "") -> Raw:
    name = {type(None): "null", list: "a list", str: "a text"}.get(type(value), "a number")
    return value if isinstance(value, dict) else Broken(f"is {name}, not a JSON object{where}", value)


def constant(name: str) -> float | None:
    """What Python writes for what is no number; NaN is pandas' own nothing."""
    return None if name == "NaN" else float(name)


DECODER = json.JSONDecoder(object_pairs_hook=without_twins, parse_constant=constant)


def read_array(file: TextIO, path: Path) -> Iterator[Raw]:
    text, number, size, ended, mark = file.read(HEAD_BYTES), 0, HEAD_BYTES, False, ","
    place = text.index("[") + 1
    while True:
        try:
            place = after_spaces(text, place)
            if text[place : place + 1] == "]" and (mark == "]" or not number):
                refuse_rest(text[place + 1 :], file, path)
                return
            value, end = DECODER.raw_decode(text, place)
            end = after_spaces(text, end)
            if (mark := text[end : end + 1]) not in (",", "]") or not mark:
                raise ValueError(f"after it stands {mark!r}, not a comma" if mark else "the array is never closed")
        except InputError:
            raise
        except (ValueError, RecursionError) as error:
            # perhaps the object goes on behind what has been read
            more = "" if ended or len(text) - place > MOST_CHARACTERS else file.read(size)
            if not more:
                raise InputError(
                    f"data.name: {path}: row {number} is not valid JSON: {what_json_says(error)}; repair it, "
                    "or give one object a line"
                ) from None
            ended = len(more) < size
            text, place, size = text[place:] + more, 0, 2 * size
            continue
        yield as_object(value)
        number, place, size = number + 1, end + (mark == ","), HEAD_BYTES


def refuse_rest(rest: str, file: TextIO, path: Path) -> None:
    """Only spaces may follow the end of an array."""
    while rest := rest.strip() or file.read(HEAD_BYTES):
        if rest.strip():
            lists = "write each row as an object with names, not as a list" * rest.strip().startswith("[")
            raise InputError(
                f"data.name: {path}: after the end of the array stands {rest.strip()!r:.80}; "
                f"{lists or 'put all rows into it'}"
            )


SPACES = re.compile(r"[ \t\r\n]*")


def after_spaces(text: str, place: int) -> int:
    found = SPACES.match(text, place)
    assert found
    return found.end()


# --- text files, sheets and tables -----------------------------------------------------------------------------------


def text_row(path: Path) -> Raw:
    """A text file in a folder that is named by its class."""
    text = path.read_text("utf-8-sig", "surrogateescape").rstrip("\r\n")
    return {"text": text or None, "label": path.parent.name, "id": f"{path.parent.name}/{path.name}"}


@contextmanager
def sheet(path: Path) -> Iterator[tuple[list[str], Iterator[list[str | None]], list[str]]]:
    """Header and rows of the first sheet of an Excel file, all as text, and the names of all sheets."""
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    with seekable(path) as file:
        try:
            book = load_workbook(file, read_only=True, data_only=True)
            first = book.worksheets[0]
            first.reset_dimensions()  # what a file says of its size is often wrong
            rows = ([as_text(cell) for cell in row] for row in first.iter_rows(values_only=True))
            filled = (row for row in rows if any(row))
            header = next(filled, None)
        except (InvalidFileException, KeyError, ValueError, IndexError, SyntaxError) as error:  # XML's is a SyntaxError
            raise unreadable(path, f"it is no Excel file: {error}") from error
        if header is None:
            raise InputError(f"data.name: {path} is empty; it needs a text and a label column")
        while header[-1] is None:
            header.pop()
        refuse_twins(path, [name for name in header if name])
        yield [name or f"unnamed {place}" for place, name in enumerate(header)], filled, book.sheetnames


def as_text(cell: Any) -> str | None:
    """What a cell of a sheet shows, without its format: whole numbers without a point, days without a time."""
    from datetime import datetime

    if cell is None or cell == "":
        return None
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).removesuffix(" 00:00:00") if isinstance(cell, datetime) else str(cell)


def unsaved_formulas(files: Iterable[Path], columns: Collection[str]) -> list[str]:
    """Of each Excel file the first cell of these columns with a formula but no stored result: it reads as empty."""
    found = ((path, cell) for path in files if kind_of(path) == ".xlsx" and (cell := unsaved_formula(path, columns)))
    return [
        f"cell {cell} of {path.name} holds a formula without a stored value: open and save the file in Excel or "
        "LibreOffice, or save it as csv"
        for path, cell in found
    ]


def unsaved_formula(path: Path, columns: Collection[str]) -> str | None:
    from openpyxl import load_workbook

    with sheet(path) as (header, _, _):
        places = [place for place, name in enumerate(header) if name in columns]
    with seekable(path) as file:
        books = [load_workbook(file, read_only=True, data_only=stored).worksheets[0] for stored in (True, False)]
        for first in books:
            first.reset_dimensions()
        for values, cells in zip(*(first.iter_rows() for first in books), strict=False):
            for place in places:
                if place < len(cells) and cells[place].data_type == "f" and values[place].value is None:
                    return str(cells[place].coordinate)
    return None


def sheet_rows(path: Path) -> Read:
    with sheet(path) as (header, rows, _):
        for row in rows:
            cells = [*row, *[None] * len(header)]
            if extra := [cell for cell in cells[len(header) :] if cell is not None]:
                yield Broken(f"has {extra[0]!r:.40} behind the last column", row), None
            elif cells[: len(header)] == header and len(header) > 1:
                yield Broken("has the names of the columns once more", row), None
            else:
                yield dict(zip(header, cells, strict=False)), None


Batches = Callable[[list[str]], Iterator[tuple[Any, float | None]]]
"""Given the names of columns: record batches, each with the share of the file that has been read then."""


@contextmanager
def table(path: Path) -> Iterator[tuple[Any, Batches]]:
    """The schema of a parquet, feather or arrow file, and its rows."""
    if kind_of(path) != ".parquet" and head_of(path).startswith(b"FEA1"):
        raise unreadable(
            path, "it is Feather V1, which is given up; write it anew (in pandas: read_feather, to_feather)"
        )
    with seekable(path) as place:
        schema, batches = (parquet_table if kind_of(path) == ".parquet" else arrow_table)(place)
        refuse_twins(path, schema.names)
        yield schema, batches


def parquet_table(place: str | BinaryIO) -> tuple[Any, Batches]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(place, buffer_size=1 << 20)  # else a whole column is read at once

    def batches(columns: list[str]) -> Iterator[tuple[Any, float]]:
        done = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            done += batch.num_rows
            yield batch, done / file.metadata.num_rows

    return file.schema_arrow, batches


def arrow_table(place: str | BinaryIO) -> tuple[Any, Batches]:
    """Of an Arrow file, which feather is, or of a stream, which `datasets` writes."""
    import pyarrow

    source: Any = pyarrow.memory_map(place) if isinstance(place, str) else place
    reader: Any
    try:
        reader = pyarrow.ipc.open_file(source)
        count = reader.num_record_batches
        parts = ((reader.get_batch(place), (place + 1) / count) for place in range(count))
    except pyarrow.ArrowInvalid:
        source.seek(0)
        reader = pyarrow.ipc.open_stream(source)
        parts = ((batch, None) for batch in reader)

    def batches(columns: list[str]) -> Iterator[tuple[Any, float | None]]:
        for batch, share in parts:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.select(columns).slice(start, BATCH_ROWS), share

    return reader.schema, batches


TABLES = (".parquet", ".feather", ".arrow")


def table_rows(path: Path, columns: Callable[[Sequence[str]], list[str]]) -> Read:
    with table(path) as (schema, batches):
        names = columns(schema.names)
        for batch, share in batches(names):
            for values in zip(*(values_of(batch.column(name)) for name in names), strict=True):
                yield dict(zip(names, values, strict=True)), share


def values_of(column: Any) -> list[Any]:
    """The values of a column; of a text that is not UTF-8 only that one is spoilt."""
    import pyarrow

    column = plain(column)
    if pyarrow.types.is_string(column.type):
        raw = column.cast(pyarrow.binary()).to_pylist()
        return [value and value.decode(errors="surrogateescape") for value in raw]
    values: list[Any] = column.to_pylist()
    return values


def plain(column: Any) -> Any:
    """A column in one of few types: text of every kind as one, and as text what `datasets` has no type for."""
    import pyarrow
    from datasets.features.features import generate_from_arrow_type
    from pyarrow import types

    if types.is_dictionary(column.type):
        return plain(column.dictionary_decode())
    if types.is_string_view(column.type) or types.is_large_string(column.type):
        # by way of bytes: those that are not UTF-8 are found later, and named
        return column.cast(pyarrow.large_binary()).cast(pyarrow.binary()).view(pyarrow.string())
    try:
        generate_from_arrow_type(column.type)
    except (ValueError, NotImplementedError):
        return pyarrow.array([None if value is None else str(value) for value in column.to_pylist()], pyarrow.string())
    return column
