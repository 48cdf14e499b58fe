import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tasks.base import liveness
from tests.conftest import ROOT

HOLD = """
import time
from tasks.base.liveness import hold
hold("a-run")
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    """Another process that holds the run `a-run` in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_run_is_alive_as_long_as_its_process_is(workplace: Path) -> None:
    process = holder(workplace)
    assert [note.pid for note in liveness.living()] == [process.pid]
    process.kill()
    process.wait()
    assert liveness.living() == []
    assert [note.flow_run_id for note in liveness.notes()] == ["a-run"]


def test_run_of_this_process_is_alive_and_can_be_retried(workplace: Path) -> None:
    liveness.hold("mine")
    liveness.hold("mine")
    assert [note.flow_run_id for note in liveness.living()] == ["mine"]


def test_dead_run_gets_no_process_while_it_is_closed(workplace: Path) -> None:
    process = holder(workplace)
    process.kill()
    process.wait()
    (note,) = liveness.notes()
    with liveness.if_dead(note) as dead, liveness.if_dead(note) as dead_as_well:
        assert dead and not dead_as_well


def test_note_that_was_half_written_when_the_power_went_is_passed_over(workplace: Path) -> None:
    liveness.LIVE.mkdir(parents=True)
    (liveness.LIVE / "a-run.json").write_text('{"flow_run_id": "a-')
    assert list(liveness.notes()) == [] and liveness.living() == []


def test_second_process_of_a_run_waits_for_the_first_and_holds_up_no_other(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Retry was pressed while the first still lives."""
    liveness.LIVE.mkdir(parents=True)
    first = FileLock(liveness.LIVE / "a-run.lock")
    first.acquire()
    waited = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        liveness.hold(f"other-{len(waited)}")
        if len(waited) == 3:
            first.release()

    monkeypatch.setattr(liveness.time, "sleep", sleep)
    caplog.set_level("INFO")
    liveness.hold("a-run")
    assert len(waited) == 3 and caplog.text.count("Another process is at this run already") == 1
    assert liveness.followed("a-run") and not liveness.followed("other-1") and not liveness.followed(None)
    assert {note.flow_run_id for note in liveness.living()} == {"a-run", "other-1", "other-2", "other-3"}
