"""The journal: every line on disk before MLflow is told, each told once."""

import errno
import math
from pathlib import Path
from typing import Any

import pytest

from tasks.tracking.journal import LINES, Head, Journal, Sent, now, waits


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.create(tmp_path, Head(key="k", name="n", experiment="e", started=now(), parent=None))


def test_lines_are_there_for_whoever_comes_next(journal: Journal) -> None:
    journal.add("begin", {"flow_run_id": "f", "tags": {"ä": "ö"}})
    journal.add("metrics", {"loss": 0.1 + 0.2}, step=3)
    again = Journal(journal.folder)
    assert again.lines == journal.lines and again.head.name == "n"
    assert again.lines[1].values["loss"] == 0.1 + 0.2
    assert again.status == "RUNNING" and again.flow_run_id == "f"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_no_finite_number_is_there_for_whoever_comes_next(journal: Journal, value: float) -> None:
    journal.add("metrics", {"loss": value}, step=1)
    (line,) = Journal(journal.folder).lines
    assert isinstance(line.values["loss"], float)
    assert line.values["loss"] == value or (math.isnan(value) and math.isnan(line.values["loss"]))


def test_what_is_computed_again_after_an_interruption_is_not_a_second_point(journal: Journal) -> None:
    journal.add("metrics", {"loss": 0.5}, step=3, at=1000)
    for _ in range(2):
        one = Journal(journal.folder)
        one.add("metrics", {"loss": 0.5}, step=3, at=2000)
        one.add("metrics", {"loss": 0.5, "rate": 1.0}, step=3)
        one.add("metrics", {"loss": 0.4}, step=4)
    points = [(line.step, line.time == 1000, *line.values) for line in Journal(journal.folder).lines]
    assert points == [(3, True, "loss"), (3, False, "loss", "rate"), (4, False, "loss")]


def test_files_and_tags_may_change_and_are_told_again(journal: Journal) -> None:
    for _ in range(2):
        journal.add("files", {"to": "", "paths": ["a"]})
        journal.add("tags", {"verdict": "better than every reference"})
    assert len(journal.lines) == 4


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_half_a_line_is_taken_off_before_the_next_one(journal: Journal, cut: int) -> None:
    journal.add("tags", {"a": "1"})
    journal.add("tags", {"a": "2"})
    file = journal.folder / LINES
    file.write_bytes(file.read_bytes()[:-cut])
    again = Journal(journal.folder)
    again.add("tags", {"a": "3"})
    assert [line.values["a"] for line in Journal(journal.folder).lines] == ["1", "3"]


def test_half_a_line_is_left_to_the_process_that_writes_it(journal: Journal) -> None:
    """Another process may read meanwhile, to deliver a part of this run."""
    journal.add("tags", {"a": "1"})
    file = journal.folder / LINES
    file.write_bytes(file.read_bytes() + b'{"kind":')
    assert len(Journal(journal.folder).lines) == 1 and file.read_bytes().endswith(b'{"kind":')


def test_line_that_finds_no_room_leaves_the_journal_as_it_was(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.add("tags", {"a": "1"})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"disk|space"):
        patch.setattr("os.fsync", full)
        journal.add("metrics", {"a": 2.0})
    assert [line.values for line in Journal(journal.folder).lines] == [{"a": "1"}] == [x.values for x in journal.lines]
    journal.add("metrics", {"a": 2.0})
    assert len(Journal(journal.folder).lines) == 2


def test_what_waits_are_the_lines_after_those_that_were_sent(journal: Journal) -> None:
    for name in "abc":
        journal.add("tags", {name: name})
    journal.mark(Sent(lines=2, run_id="r"))
    assert [line.values for line in Journal(journal.folder).waiting] == [{"c": "c"}] and waits(journal.folder)
    journal.mark(Sent(lines=3, run_id="r"))
    assert not journal.waiting and not waits(journal.folder)


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_status_is_that_of_the_last_attempt(journal: Journal, status: str) -> None:
    assert journal.status is None
    journal.add("begin", {"flow_run_id": "first", "tags": {}})
    journal.add("end", {"status": status})
    assert journal.status == status
    journal.add("begin", {"flow_run_id": "second", "tags": {}})
    assert journal.status == "RUNNING" and journal.flow_run_id == "second"
