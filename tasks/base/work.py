"""The folder of a run: named by what the run is, held by one process, forgotten only when its result was handed over.

The same command finds it again, so that a run which was interrupted goes on in it.
"""

import atexit
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tasks.base.device import processes
from tasks.base.files import write_text
from tasks.base.liveness import if_free
from tasks.base.machine import environment_key
from tasks.base.progress import tell
from tasks.base.records import Source, digest
from tasks.settings.config import RunConfig
from tasks.settings.fixed import STORE

WORK = STORE / "work"


class RunFolder:
    """The paths inside the folder of a run."""

    def __init__(self, path: str | Path) -> None:
        folder = Path(path)
        self.adapter = folder / "adapter"
        """The trained one, with its head, tokenizer and settings."""
        self.probe = folder / "probe.safetensors"
        """Its logits for the probe rows, as they were in memory."""
        self.reloaded = folder / "reloaded.safetensors"
        """The same, and those of the test rows, from a fresh process."""
        self.predictions = folder / "tuned.parquet"
        """Of the adapter, about the test rows."""
        self.data_check = folder / "data_check"
        self.comparison = folder / "comparison"
        self.comparison_record, self.comparison_page = (
            self.comparison / name for name in ("comparison.json", "comparison.md")
        )
        self.plots = folder / "plots"
        self.staged = folder / "staged"
        """What MLflow gets under `comparison`."""
        self.test_rows, self.test_table, self.seen = (
            self.staged / name for name in ("test.parquet", "predictions.json", "seen.parquet")
        )
        self.delivered = folder / "delivered"
        """Says that the process which finished the run has ended in good order."""
        self.lock = Path(f"{folder}.lock")

        # how far the run has come
        self.trained, self.evaluated = folder / "trained.json", folder / "tuned.json"
        """Results of its two long steps; where one is, the step is done."""
        self.fitting = folder / "fitting.json"
        """How many tokens fit into the GPU's memory."""
        self.checkpoints = folder / "checkpoints"
        self.stopped = folder / "checkpoint"
        """The weights of a training that was told to stop."""
        self.progress = (self.trained, self.evaluated, self.fitting, self.checkpoints, self.stopped)

        # of a retraining
        self.own = folder / "own"
        """What the champion's run has left."""
        self.own_rows = self.own / "rows.parquet"
        self.footprint, self.answers = folder / "footprint.json", folder / "answers.parquet"
        """Of the challenger, and what it says of the rows that its footprint is measured on."""
        self.gate_page, self.gate_record = folder / "gate.md", folder / "gate.json"

    @classmethod
    def around(cls, part: str) -> "RunFolder":
        """The one that a trained adapter, or a comparison, lies in."""
        return cls(Path(part).parent)


_enclosing: ContextVar[str | None] = ContextVar("work", default=None)
"""The folder of the run that this thread is in."""


def settings_of(config: RunConfig) -> dict[str, Any]:
    """What of a configuration makes its run another one."""
    return config.model_dump(mode="json", exclude=ELSEWHERE)


ELSEWHERE: Any = {"offline": True, "data": {"test_file", "corrections"}, "training": {"machines", "rendezvous"}}
"""Fields that say where a run finds something or computes, not what comes of it."""


def work_folder(config: RunConfig, *found: Source) -> str:
    """Where this run's files are: the same configuration on the same data, model and machine finds them again."""
    settings = settings_of(config)
    settings["training"]["processes"] = processes(config.training)  # auto is another number on another machine
    folder = WORK / digest([settings, *(source.content for source in found), environment_key(), enclosing()])
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder.resolve())


def enclosing() -> str | None:
    """The folder of the run that the one at hand is a part of."""
    return _enclosing.get()


@contextmanager
def sole_user(work: str) -> Iterator[bool]:
    """Hold `work` while its files are written; a second run of the same configuration waits, says so, and knows it."""
    from filelock import FileLock, Timeout

    lock, waited = FileLock(RunFolder(work).lock), False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waited = True
        tell("The same configuration is being run by another process; waiting for it to finish")
        lock.acquire()
    token = _enclosing.set(work)
    try:
        yield waited
    finally:
        _enclosing.reset(token)
        lock.release()


@contextmanager
def as_one(work: str) -> Iterator[bool]:
    """Hold `work` as its sole user. Runs that are finished within count as handed over when all of it is done."""
    try:
        with sole_user(work) as waited:
            yield waited
    except BaseException:
        failed()
        raise
    finished(work)


def if_unused(work: str) -> AbstractContextManager[bool]:
    """Whether no process holds `work`; none does while the block lasts, but this one."""
    return if_free(RunFolder(work).lock)


def finished(work: str) -> None:
    """The run is done. Its result counts as handed over when this process ends in good order.

    Killed before that, nobody has seen the result, and the same command must give it, not start anew. What belongs to
    another run is handed over with that one.
    """
    _finished.append(work)
    if enclosing() is None:
        _handed_over.update(_finished)
        _finished.clear()


def failed() -> None:
    """A run is not done, nor are those that it belongs to; what they have finished is kept for the next attempt."""
    _finished.clear()


_finished: list[str] = []
"""Parts of a run that goes on."""

_handed_over = set[str]()


def is_delivered(work: str) -> bool:
    return work in _handed_over or RunFolder(work).delivered.exists()


@atexit.register
def _note_deliveries() -> None:
    for work in _handed_over:
        if Path(work).is_dir():
            write_text(RunFolder(work).delivered, "")


def forget(work: str, paths: Iterable[Path]) -> None:
    """Remove what an earlier run of the same configuration has left, in this order."""
    _handed_over.discard(work)
    for path in (*paths, RunFolder(work).delivered):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
