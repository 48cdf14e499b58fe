"""Which runs are alive: each holds a file lock, which the kernel drops with its process, however that ends.

No clock, and no process number that another process may have by now. A note beside the lock says which run it is;
whoever finds a note without a lock closes the run, see tasks/base/closing.py.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.base.progress import tell
from tasks.base.records import Record
from tasks.settings.fixed import STORE

LIVE = STORE / "live"

GATE = LIVE / ".gate"
"""Lock without which no run's lock file comes into being or goes."""

_held: dict[str, FileLock] = {}
"""Locks of this process, by flow run, kept until it ends: Prefect hears of a run's end later than the run itself."""


class Note(Record):
    """What is known of a run before anything of it can be left behind."""

    flow_run_id: str
    pid: int
    since: datetime
    work: str | None = None
    """Folder of the run, once it has one; see tasks/base/work.py."""
    starting: bool = False
    """Prefect does not say yet that it runs."""


def hold(flow_run_id: str, work: str | None = None) -> None:
    """Make this process the living one of the flow run; a retried run takes over from the attempt before.

    Where that attempt still lives, in another process, this one waits for its end and says so; what it has finished
    is not done again, see `followed`.
    """
    for attempt in count():
        if is_taken(flow_run_id, work):
            return
        if attempt == 1:  # the first may have met somebody who only looked whether the run is alive
            _followed.add(flow_run_id)
            tell("Another process is at this run already; waiting for it to end. Cancel one of them to stop it")
        time.sleep(WAIT_SECONDS)


WAIT_SECONDS = 1.0

_followed = set[str]()


def followed(flow_run_id: str | None) -> bool:
    """Whether this process has waited for another one of the flow run: whoever pressed Retry wants one result."""
    return flow_run_id in _followed


def is_taken(flow_run_id: str, work: str | None = None, starting: bool = False) -> bool:
    """Whether the flow run is this process's from now on. Waits for nobody: all runs here go through the gate."""
    LIVE.mkdir(parents=True, exist_ok=True)
    with FileLock(GATE.resolve()):
        if flow_run_id not in _held:
            lock = FileLock((LIVE / f"{flow_run_id}.lock").resolve())
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return False
            _held[flow_run_id] = lock
        now = datetime.now(UTC)
        note = Note(flow_run_id=flow_run_id, pid=os.getpid(), since=now, work=work, starting=starting)
        note.write(LIVE / f"{flow_run_id}.json")
        return True


def living() -> list[Note]:
    """Runs whose process is alive, of this process too."""
    found = []
    for note in notes():
        with if_dead(note) as dead:
            if not dead:
                found.append(note)
    return found


def notes() -> Iterator[Note]:
    for file in sorted(LIVE.glob("*.json")):
        try:
            yield Note.model_validate_json(file.read_bytes())
        except (FileNotFoundError, ValueError):  # closed by someone else meanwhile; half written when the power went
            continue


@contextmanager
def if_dead(note: Note) -> Iterator[bool]:
    """Whether the run has no living process; it gets none while the block lasts."""
    if note.flow_run_id in _held:
        yield False
        return
    with if_free((LIVE / f"{note.flow_run_id}.lock").resolve()) as free:
        yield free


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Whether nobody holds the lock file; nobody else does while the block lasts."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
