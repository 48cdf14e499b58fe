"""The rows of one file, whatever its format: the one reader of finetune, retrain and predict.

What is written as text (csv, tsv, xlsx) is text: no type is guessed. A row that cannot be read says so itself; what
makes all that follows unreadable is an InputError.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.sources.delimited import SEPARATORS, Lines, read_csv, separator
from tasks.sources.jsonrows import read_json
from tasks.sources.opened import Raw, Read, check_letters, kind_of, opened, readable
from tasks.sources.tables import TABLES, sheet, sheet_rows, table, table_rows


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


def text_row(path: Path) -> Raw:
    """A text file in a folder that is named by its class."""
    text = path.read_text("utf-8-sig", "surrogateescape").rstrip("\r\n")
    return {"text": text or None, "label": path.parent.name, "id": f"{path.parent.name}/{path.name}"}
