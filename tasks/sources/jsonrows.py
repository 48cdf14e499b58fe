"""Rows of JSON, one object a line or all in one array."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tasks.settings.fields import InputError
from tasks.sources.delimited import head_text, lines
from tasks.sources.opened import HEAD_BYTES, MOST_CHARACTERS, Broken, Raw, opened


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
    """What Python writes for what is not a number; NaN is pandas' own nothing."""
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
