import os
import subprocess
import sys
from pathlib import Path

from tasks import liveness
from tests.conftest import ROOT

HOLD = """
import time
from tasks.liveness import hold
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
