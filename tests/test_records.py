"""Records, and the small functions that name and keep them."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.records import Scores, digest, file_sha256, write_text


def test_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    scores = Scores(accuracy=0.1 + 0.2, macro_f1=1 / 3, log_loss=1e-12)
    scores.write(tmp_path / "scores.json")
    assert Scores.model_validate_json((tmp_path / "scores.json").read_bytes()) == scores


def test_record_cannot_be_changed_or_extended() -> None:
    scores = Scores(accuracy=1, macro_f1=1, log_loss=0)
    with pytest.raises(ValidationError):
        scores.accuracy = 0.5  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Scores(accuracy=1, macro_f1=1, log_loss=0, f2=1)  # type: ignore[call-arg]


def test_broken_off_write_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "note", "old")

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(Path, "replace", fail)
        write_text(tmp_path / "note", "new")
    assert (tmp_path / "note").read_text() == "old"


def test_digest_depends_on_content_and_not_on_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest([])) == 16


def test_file_sha256_is_that_of_its_bytes(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "file").write_bytes(b"content")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()
