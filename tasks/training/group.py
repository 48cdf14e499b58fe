"""Training by several processes of this machine. torchrun starts them, and what they say is heard here.

They talk by pipes: each line on their standard output is a message of one of them, and a line on their standard input
asks the first to stop. torchrun ends with this process, and they end with torchrun, whatever has ended it.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory

from tasks.base import fresh_process
from tasks.base.fresh_process import free_device_memory, with_our_modules
from tasks.base.progress import log, tell
from tasks.base.records import Point, PreparedData, Record, TrainedAdapter, read_record
from tasks.base.work import RunFolder
from tasks.settings.config import RunConfig
from tasks.training.errors import error_of
from tasks.training.machines import LOOK_SECONDS, Message, Others, Place, gone, other_machines
from tasks.training.pieces import Pieces
from tasks.training.ranks import Lost
from tasks.training.watching import Progress, Watcher

LAUNCHER = "tasks.training.launcher"

STOP_SECONDS = 20.0
"""So long the step at hand may take when this process is told to end; who cancels a run waits for 30 s."""

END_SECONDS = 15.0
"""They notice within one that torchrun is gone."""


class Request(Record):
    """What the processes are told."""

    config: RunConfig
    data: PreparedData
    work: str
    tokens: int | None = None
    """In one piece of a batch; None: what suits the device."""


def fit_together(
    count: int, pieces: Pieces, config: RunConfig, data: PreparedData, run: RunFolder, watcher: Watcher
) -> TrainedAdapter:
    """By `count` processes; for whoever watches, as if it were by this one.

    When this process is told to stop, they save a checkpoint at the end of the step at hand.
    """
    free_device_memory()
    run.trained.unlink(missing_ok=True)
    request = Request(config=config.run_config(), data=data, work=str(run.trained.parent), tokens=pieces.most_tokens)
    with other_machines(config, data, pieces.most_tokens, watcher.stop) as others:
        where = f" on {config.training.machines} machines" if others else ""
        tell("%d processes train together%s; they start and import their libraries first", count, where)
        group = Group(count // config.training.machines, request, others.place if others else None, others)
        try:
            return follow(group, pieces, run, watcher)
        except Exception:
            raise
        except BaseException:
            if group.has_begun and not group.was_asked:
                save_and_stop(group, watcher)
            raise
        finally:
            group.end()


def save_and_stop(group: "Group", watcher: Watcher) -> None:
    """A checkpoint after the step at hand, if that does not take too long."""
    group.ask_to_stop()
    for kind, value in group.messages(lambda: False, STOP_SECONDS):
        if kind == "stopped":
            watcher.stopped(Path(value[0]), value[1])
            return
    watcher.say("The step at hand takes too long and is given up: the run goes on from its last checkpoint")


class Group:
    """The processes of this machine, from here; and what those of other machines say."""

    def __init__(self, count: int, request: Request, place: Place | None = None, others: Others | None = None) -> None:
        import torch

        threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count))}
        self.meeting_place = TemporaryDirectory(prefix="peft-flow-", ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [
                *fresh_process.command(LAUNCHER),
                *(str(os.getpid()), str(count), self.meeting_place.name),
                *map(str, place or ()),
            ],
            env=with_our_modules() | threads,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process
        )
        self.heard: SimpleQueue[Message | None] = SimpleQueue()
        self.is_over = self.has_begun = self.was_asked = False
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()
        self.talking = 1
        """Machines whose processes have not all ended."""
        if others:
            self.talking += len(others.members)
            threading.Thread(target=self.relay, args=(others,), daemon=True).start()
        self.say(request.model_dump_json())

    def listen(self) -> None:
        """Until the last of them has ended: each holds the pipe."""
        assert self.process.stdout
        for line in self.process.stdout:
            with suppress(ValueError, TypeError):  # half a line, which a killed process has left
                kind, value = json.loads(line)
                self.heard.put((kind, value))
        self.heard.put(None)

    def relay(self, others: Others) -> None:
        """What the other machines say."""
        with suppress(KeyboardInterrupt):
            for member, message in others.said(lambda: self.is_over):
                kind, value = message or ("gone", gone(member.name, others.meeting.address))
                self.heard.put(None if kind == "ended" else (kind, value))

    def say(self, line: str) -> None:
        assert self.process.stdin
        with suppress(OSError):  # they have ended: what they have said is still to be heard
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def ask_to_stop(self) -> None:
        if not self.was_asked:
            self.was_asked = True
            self.say("stop")

    def messages(self, stop: Callable[[], bool], seconds: float = float("inf")) -> Iterator[Message]:
        """What they say until all have ended, or for so long. They are asked to stop when `stop()` is true."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if stop():
                self.ask_to_stop()
            here_is_over = not self.listener.is_alive()
            try:
                message = self.heard.get(timeout=LOOK_SECONDS)
            except Empty:
                if here_is_over:  # the others end with these, at the latest when they miss them
                    until = min(until, time.monotonic() + END_SECONDS)
                continue
            if message is None:
                self.talking -= 1
                if not self.talking:
                    return
                continue
            self.has_begun = self.has_begun or message[0] == "progress"
            yield message

    def end(self) -> None:
        """None of them lives on."""
        self.is_over = True
        self.process.kill()
        self.listener.join(END_SECONDS)
        with suppress(OSError):
            self.process.communicate()
        self.meeting_place.cleanup()


def follow(group: Group, pieces: Pieces, run: RunFolder, watcher: Watcher) -> TrainedAdapter:
    """What comes of the training. Raises what has ended it, as the process had it that met it first."""
    errors: list[Exception] = []
    stopped, killed_by = False, ""
    for kind, value in group.messages(watcher.stop):
        if kind == "progress":
            step, total, left, point = value
            watcher.report(Progress(step, total, left, Point.model_validate(point) if point else None))
        elif kind == "say":
            watcher.say(value)
        elif kind == "log":
            log(value[0], "%s", value[1])
        elif kind == "stopped":
            stopped = True
            watcher.stopped(Path(value[0]), value[1])
        elif kind == "error":
            errors.append(error_of(value))
        elif kind == "piece":
            rows, length = value
            pieces.latest = (rows, length)
        elif kind == "killed":
            killed_by = signal.Signals(value).name
        elif kind == "gone" and not any(not isinstance(error, Lost) for error in errors):
            raise RuntimeError(value)
    if stopped:
        raise KeyboardInterrupt
    if cause := next((error for error in errors if not isinstance(error, Lost)), None):
        raise cause
    code = group.process.wait()
    killed_by = killed_by or (signal.Signals(-code).name if code < 0 else "")
    if killed_by or errors:
        raise RuntimeError(
            f"a process of this training has ended ({killed_by or 'nobody saw how'}), as when memory runs out; run it "
            "again and it goes on from its last checkpoint"
        )
    if trained := read_record(TrainedAdapter, run.trained):
        return trained
    raise RuntimeError(f"the processes of this training have ended without a word (exit code {code})")
