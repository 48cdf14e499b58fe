"""What a run has to tell MLflow, on disk before it is sent: no outage loses a line, and none is told twice.

A journal is a file of lines, written once and in order, and a note of how many of them MLflow has. Whoever holds the
run's folder sends the rest, now or much later. Sending may break off anywhere and begin again: each line names its
time, so that MLflow, told the same once more, has it once.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import ConfigDict

from tasks.base.disk import writing
from tasks.base.records import Record, read_record

LINES, HEAD, SENT = "journal.jsonl", "run.json", "sent.json"

Kind = Literal["begin", "params", "metrics", "tags", "files", "inputs", "model", "end"]

ONCE = frozenset({"metrics", "inputs", "model"})
"""Kinds of which MLflow would keep both, told twice. Of what a run computes again after an interruption, the first
stays."""


class Head(Record):
    """Which run it is."""

    key: str
    """Tag by which MLflow knows the run, however often it is created."""
    name: str
    experiment: str
    started: int
    """Milliseconds since 1970."""
    parent: str | None
    """Folder of the run that this one belongs to."""


class Line(Record):
    model_config = ConfigDict(ser_json_inf_nan="constants")  # of what stands among `values`, "NaN" would stay a word

    kind: Kind
    time: int
    """Milliseconds since 1970."""
    step: int = 0
    values: dict[str, Any]
    of_model: bool = False
    """Metrics of the logged model, not only of the run."""

    @property
    def identity(self) -> tuple[Any, ...]:
        return (self.kind, self.step, *sorted(self.values)) if self.kind == "metrics" else (self.kind, str(self.values))


class Sent(Record):
    """What MLflow has of it."""

    lines: int = 0
    run_id: str | None = None
    experiment_id: str | None = None
    model_id: str | None = None
    version: str | None = None
    """In the model registry."""


class Journal:
    """The journal in `folder`. Only the process that holds the folder may write to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = list(read_lines(folder / LINES))
        self.known = {line.identity for line in self.lines if line.kind in ONCE}

    @classmethod
    def create(cls, folder: Path, head: Head) -> "Journal":
        head.write(folder / HEAD)
        return cls(folder)

    @property
    def head(self) -> Head:
        return Head.model_validate_json((self.folder / HEAD).read_bytes())

    @property
    def sent(self) -> Sent:
        return read_record(Sent, self.folder / SENT) or Sent()

    def mark(self, sent: Sent) -> None:
        sent.write(self.folder / SENT)

    def add(
        self, kind: Kind, values: dict[str, Any], step: int = 0, at: int | None = None, of_model: bool = False
    ) -> None:
        line = Line(kind=kind, time=at or now(), step=step, values=values, of_model=of_model)
        if line.identity in self.known:
            return
        text = line.model_dump_json() + "\n"
        path = self.folder / LINES
        with writing(path, len(text)):
            append(path, text.encode())
        self.lines.append(line)
        if kind in ONCE:
            self.known.add(line.identity)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.folder / name for name in (LINES, HEAD, SENT))

    @property
    def waiting(self) -> list[Line]:
        return self.lines[self.sent.lines :]

    @property
    def status(self) -> str | None:
        """How the run ended; RUNNING where its last attempt did not say; None before the first."""
        last = next((line for line in reversed(self.lines) if line.kind in ("begin", "end")), None)
        return (str(last.values["status"]) if last.kind == "end" else "RUNNING") if last else None

    @property
    def flow_run_id(self) -> str | None:
        """Of the last attempt."""
        begins = (line for line in reversed(self.lines) if line.kind == "begin")
        return next((line.values.get("flow_run_id") for line in begins), None)


def waits(folder: Path) -> bool:
    """Whether the journal in `folder` has lines that MLflow does not have; quick: there may be many."""
    sent = read_record(Sent, folder / SENT) or Sent()
    return (folder / LINES).read_bytes().count(b"\n") > sent.lines


def read_lines(path: Path) -> Iterator[Line]:
    """All whole lines: of the last one a power cut may have left half, or another process may be writing it."""
    if path.exists():
        for text in path.read_bytes().splitlines(keepends=True):
            if text.endswith(b"\n"):
                yield Line.model_validate_json(text)


def append(path: Path, content: bytes) -> None:
    """After the last whole line, all of it or nothing; half a line may not stay: nothing may follow it."""
    with path.open("a+b") as file:
        before = end_of_lines(file)
        file.truncate(before)
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except OSError:  # a full disk
            file.truncate(before)
            raise


def end_of_lines(file: BinaryIO) -> int:
    """Where the last whole line ends; quick where that is the end, for journals grow long."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    if file.read() in (b"", b"\n"):
        return end
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def now() -> int:
    return int(1000 * time.time())


_open: dict[str, Journal] = {}
"""Journals that this process writes to, by folder."""


def run_id_of(work: str) -> str | None:
    """Id of the MLflow run; None while MLflow has not answered yet."""
    return journal_of(work).sent.run_id


def journal_of(work: str) -> Journal:
    return _open.get(work) or Journal(Path(work))
