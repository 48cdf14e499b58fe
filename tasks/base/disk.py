"""A full disk, said in one line: where, how much was needed and how much is free."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.settings.fixed import STORE

FULL = re.compile(
    # safetensors, tokenizers: no OSError of Python's; macOS has another word and number for a quota
    f"No space left on device|Dis[ck] quota exceeded|os error ({errno.ENOSPC}|{errno.EDQUOT})\\b"
    "|database or disk is full"  # sqlite
    "|Not enough disk space"  # datasets, before it writes
    "|inline_container.*unexpected pos"  # torch.save, which forgets why its file is too short
    r"|^\d+ requested and \d+ written$",  # numpy
    re.DOTALL,
)


class DiskFull(OSError):
    """Something did not fit on the disk. Its text says all that the user needs."""


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk, or a used-up quota, is what the error or one that it came from is about."""
    return any(
        isinstance(cause, DiskFull)
        or (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT))
        or FULL.search(str(cause)) is not None
        for cause in causes(error)
    )


def causes(error: BaseException) -> list[BaseException]:
    """The error and those that it came from, also where `from None` hides them."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


@contextmanager
def writing(path: Path, bytes_needed: int) -> Iterator[None]:
    """Within, `path` is written: an error that means a full disk becomes DiskFull, which names both.

    Half-written files should be removed within, so that what is then said to be free is free.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error) or isinstance(error, DiskFull):
            raise
        raise does_not_fit(path, bytes_needed) from error


def check_space(path: Path, bytes_needed: int) -> None:
    """Raises DiskFull when `path` would not fit, before hours are spent on what it is to hold."""
    if free_bytes(path) < bytes_needed:
        raise does_not_fit(path, bytes_needed)


def does_not_fit(path: Path, bytes_needed: int) -> DiskFull:
    return DiskFull(f"{path}: the disk is full: {size(bytes_needed)} needed, {size(free_bytes(path))} free; {ADVICE}")


ADVICE = "make space and run the same command again; it goes on where it stopped"


def describe(error: BaseException) -> str:
    """One line about any error of a full disk: the path where it is known, else where a run writes."""
    for cause in causes(error):
        if isinstance(cause, DiskFull):
            return str(cause)
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.filename and not isinstance(cause.filename, int):
            path = Path(os.fsdecode(cause.filename))
            return f"{path}: the disk is full: {size(free_bytes(path))} free; {ADVICE}"
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    places = {free_bytes(folder): folder for folder in (cache, STORE.absolute())}
    least = min(places)
    return f"{places[least]}: the disk is full: {size(least)} free; {ADVICE}"


def free_bytes(path: Path) -> int:
    """What can be written on the disk of `path`, which need not exist."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def size(count: int) -> str:
    """`12.3 MB`"""
    for unit, one in (("GB", 10**9), ("MB", 10**6)):
        if count >= one:
            return f"{count / one:.1f} {unit}"
    return f"{count / 1000:.1f} kB"
