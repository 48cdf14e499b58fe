"""Files and folders that appear whole or not at all, whatever happens to the process that writes them."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from tasks.base.disk import writing


@contextmanager
def whole(
    path: Path, bytes_needed: int, writer: str = "", replace: bool = True, flushed: bool = True
) -> Iterator[Path]:
    """A hidden name beside `path`, for a file or folder that is written within and becomes `path` at the end.

    Where that fails or is killed, `path` stays as it was. A `writer` is the only one at a time: it removes what it left
    when it was killed; without one, many may write at once. Not `replace`: a folder that is there already stays.
    `flushed`: whole after a power cut too. Raises DiskFull.
    """
    staged = path.with_name(f".{path.name[-40:]}.{writer or uuid4().hex[:8]}.partial")  # a longer name may not fit
    remove(staged)
    with writing(path, bytes_needed):
        try:
            yield staged
            if flushed:
                for each in (*staged.rglob("*"), staged):
                    flush(each)
            put(staged, path, replace)
            if flushed:
                flush(path.absolute().parent)
        finally:
            remove(staged)


def put(staged: Path, path: Path, replace: bool) -> None:
    if not staged.is_dir():
        staged.replace(path)
        return
    if replace:
        shutil.rmtree(path, ignore_errors=True)
    try:
        staged.rename(path)
    except OSError:
        if replace or not path.is_dir():
            raise


def remove(path: Path) -> None:
    """A file or folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Onto the disk: a name must not survive a power cut that its content does not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks take no folder
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, encoded: bytes) -> None:
    """`path` holds `encoded`, whole or not at all. Raises DiskFull."""
    # not flushed: there are many of these, and whoever reads one that a power cut has emptied takes it for missing
    with whole(path, len(encoded), flushed=False) as staged:
        staged.write_bytes(encoded)
