"""Rows of csv, by whatever separator."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from tasks.settings.fields import InputError
from tasks.sources.opened import HEAD_BYTES, MOST_CHARACTERS, Broken, Raw, head_of, kind_of, unreadable

MOST_WORDS = 1_000
"""Different values of a column that are remembered, to know a row of the file again where it should not be."""

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
