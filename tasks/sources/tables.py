"""Rows of sheets (xlsx) and of tables whose columns have types (Parquet, Feather, Arrow)."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tasks.settings.fields import InputError
from tasks.sources.delimited import refuse_twins
from tasks.sources.opened import Broken, Read, head_of, kind_of, seekable, unreadable

BATCH_ROWS = 1_000
"""Of a table that are in memory at once."""


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
            rows = enumerate([as_text(cell) for cell in row] for row in first.iter_rows(values_only=True))
            header = next((row for _, row in rows if any(row)), None)
        except (InvalidFileException, KeyError, ValueError, IndexError, SyntaxError) as error:  # XML's is a SyntaxError
            raise unreadable(path, f"it is not an Excel file: {error}") from error
        if header is None:
            raise InputError(f"data.name: {path} is empty; it needs a text and a label column")
        while header[-1] is None:
            header.pop()
        refuse_twins(path, [name for name in header if name])
        yield [name or f"unnamed {place}" for place, name in enumerate(header)], filled(rows, path), book.sheetnames


def filled(rows: Iterator[tuple[int, list[str | None]]], path: Path) -> Iterator[list[str | None]]:
    """The rows that hold something, be it formulas alone whose results are not stored: those read as empty."""
    formulas: set[int] | None = None
    for place, row in rows:
        if not any(row):
            formulas = rows_with_formulas(path) if formulas is None else formulas  # few files have such rows
            if place not in formulas:
                continue
        yield row


def rows_with_formulas(path: Path) -> set[int]:
    from openpyxl import load_workbook

    with seekable(path) as file:
        first = load_workbook(file, read_only=True).worksheets[0]
        first.reset_dimensions()
        return {place for place, row in enumerate(first.iter_rows()) if any(cell.data_type == "f" for cell in row)}


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
