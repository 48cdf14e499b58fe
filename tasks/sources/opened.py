"""The bytes of a file of data: unpacked, where it is packed, and looked at to find out what they are."""

import bz2
import gzip
import io
import lzma
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple

from tasks.base.disk import is_disk_full
from tasks.settings.fields import InputError
from tasks.settings.fixed import PACKED_FILES, data_kind

MOST_CHARACTERS = 10_000_000
"""In one line, cell, or object of a json array: what is longer is not text but a broken file."""

HEAD_BYTES = 1 << 16
"""Of a file, looked at to find out how it is written."""


class Broken(NamedTuple):
    """A row that cannot be read, while those after it can."""

    fault: str
    given: Any


Raw = Mapping[str, Any] | Broken

Read = Iterator[tuple[Raw, float | None]]
"""Rows as they are, with the share of the file that has been read, where that is known."""


def unreadable(path: Path, why: str) -> InputError:
    return InputError(f"data.name: {path} cannot be read: {why:.300}")


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
    """Refuses what is not UTF-8 text from its first bytes on."""
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
    """Without what is not a character: bytes that are not UTF-8, halves of a pair in JSON."""
    return text if text.isascii() else text.encode(errors="replace").decode()


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
