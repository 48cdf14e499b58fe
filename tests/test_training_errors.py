"""An error that comes from another process is the one that was raised there."""

import errno
from typing import Any

import pytest
import torch

from tasks.base.disk import DiskFull, is_disk_full
from tasks.base.trouble import is_network_trouble
from tasks.settings.fields import InputError
from tasks.training.errors import error_of, told
from tasks.training.resume import NotContinued


def travelled(raised: Exception) -> Exception:
    try:
        raise raised
    except Exception as error:
        return error_of(told(error))


@pytest.mark.parametrize(
    "raised",
    [
        InputError("data.name: there is no such file"),
        FloatingPointError("the loss is nan at step 4"),
        NotContinued("the adapter is not the one that was trained"),
        DiskFull("/a/file: the disk is full: 2 MB needed, 1 MB free"),
        OSError(errno.EIO, "Input/output error", "/a/file"),
        KeyError("labels"),
        torch.OutOfMemoryError("CUDA out of memory"),
        ValueError(),
    ],
)
def test_kind_and_words_stay_and_the_place_is_noted(raised: Exception) -> None:
    found = travelled(raised)
    assert type(found) is type(raised) and str(found) == str(raised)
    assert "in travelled" in found.__notes__[0]


def test_what_an_error_came_from_comes_with_it() -> None:
    full, gone = RuntimeError("could not be written"), RuntimeError("could not be read")
    full.__cause__, gone.__cause__ = OSError(errno.ENOSPC, "No space left"), ConnectionResetError("reset by peer")
    assert is_disk_full(travelled(full)) and not is_disk_full(travelled(gone))
    assert is_network_trouble(travelled(gone)) and not is_network_trouble(travelled(full))


class Unheard(Exception):
    """Of a module that the other process may not have."""


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (Unheard("of"), "Unheard: of"),
        (UnicodeDecodeError("utf-8", b"a", 0, 1, "bad"), "UnicodeDecodeError: 'utf-8' codec can't decode"),
    ],
)
def test_error_that_cannot_be_made_again_is_told(raised: Exception, says: str) -> None:
    found = travelled(raised)
    assert type(found) is RuntimeError and str(found).startswith(says)


def test_no_error_is_too_long_for_a_pipe() -> None:
    endless: Any = ValueError("a" * 100_000)
    endless.__cause__ = ValueError("b" * 100_000)
    assert len(str(told(endless))) < 20_000
