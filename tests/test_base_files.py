"""Files and folders that appear whole or not at all."""

import errno
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from tasks.base import files
from tasks.base.disk import DiskFull
from tasks.base.files import flush, whole, write_text


def make(path: Path, kind: str, text: str) -> None:
    if kind == "folder":
        path.mkdir()
        path /= "inside"
    path.write_text(text)


def content(path: Path) -> str:
    return (path / "inside" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("name", ["note", "x" * 250, "ü" * 120])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_new_one_takes_the_place_of_the_old_one_at_the_end(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    make(path, kind, "old")
    with whole(path, 0) as staged:
        make(staged, kind, "new")
        assert content(path) == "old"
    assert content(path) == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failure_half_way_leaves_the_old_one_alone(kind: str, error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "note"
    make(path, kind, "old")
    with pytest.raises(error), whole(path, 0) as staged:
        make(staged, kind, "half")
        raise error
    assert content(path) == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_writer_removes_what_it_left_when_it_was_killed(kind: str, tmp_path: Path) -> None:
    make(tmp_path / ".note.me.partial", kind, "half")
    make(tmp_path / ".note.somebody.partial", kind, "half")
    with whole(tmp_path / "note", 0, writer="me") as staged:
        assert not staged.exists()
        make(staged, kind, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".note.somebody.partial", "note"]


def test_two_may_write_the_same_file_at_once_and_the_last_one_stays(tmp_path: Path) -> None:
    with whole(tmp_path / "note", 0) as late:
        late.write_text("late")
        write_text(tmp_path / "note", "early")
    assert content(tmp_path / "note") == "late"


def test_a_folder_that_is_not_to_be_replaced_stays(tmp_path: Path) -> None:
    with whole(tmp_path / "model", 0, replace=False) as late:
        make(late, "folder", "late")
        with whole(tmp_path / "model", 0, replace=False) as early:
            make(early, "folder", "early")
    assert content(tmp_path / "model") == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: dict[str, bool] = {}
    path = tmp_path / "model"
    monkeypatch.setattr(files, "flush", lambda flushed: there.update({flushed.name: path.exists()}))
    with whole(path, 0) as staged:
        make(staged, "folder", "new")
    assert there == {"inside": False, staged.name: False, tmp_path.name: True}


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskFull, match=r"model: the disk is full: 2\.0 GB needed"),
        whole(tmp_path / "model", 2 * 10**9),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "note", "old")

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(Path, "replace", fail)
        write_text(tmp_path / "note", "new")
    assert (tmp_path / "note").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


@pytest.mark.parametrize(("code", "fails"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_disk_that_flushes_no_folders_is_good_enough(
    code: int, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(handle: int) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="no") if fails else nullcontext():
        flush(tmp_path)
