"""One of the processes that train a run together: `torchrun -m tasks.training.rank PARENT FOLDER`, see launcher.py.

The first of each machine reads what is to be done there and shows the bar. The first of all says how it goes; the
others are heard when they fail.
"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

import json
import logging
import os
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from io import FileIO
from pathlib import Path
from typing import Any

from tasks.base.device import CHOICE, gpus
from tasks.base.fresh_process import end_with
from tasks.base.work import RunFolder
from tasks.training.errors import told
from tasks.training.group import Request
from tasks.training.ranks import Ranks
from tasks.training.watching import Progress, Watcher


class Voice(logging.Handler):
    """What this process says to the one that has asked for it: on standard output, where nothing else is written."""

    def __init__(self, is_first: bool) -> None:
        super().__init__()
        self.pipe = os.dup(1)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(2 if is_first else silence, 1)
        if not is_first:
            os.dup2(silence, 2)

    def say(self, kind: str, value: Any) -> None:
        os.write(self.pipe, (json.dumps([kind, value]) + "\n").encode())

    def emit(self, record: logging.LogRecord) -> None:
        self.say("log", [record.levelno, record.getMessage()])

    def report(self, progress: Progress) -> None:
        step, total, left, point = progress
        self.say("progress", [step, total, left, point and point.model_dump()])

    def stopped(self, folder: Path, step: int) -> None:
        self.say("stopped", [str(folder), step])


def join(folder: str) -> Ranks:
    """This process among the others, which can talk from now on."""
    import torch
    import torch.distributed as dist

    # else Trainer would share the rows out, too
    number, size, place, here = (
        int(os.environ.pop(name)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        # on several machines where torchrun has met
        init_method=f"file://{folder}/ranks" if size == here else "env://",
        rank=number,
        world_size=size,
        timeout=timedelta(days=365),  # while the first validates, the others wait; torchrun knows when one has ended
    )
    return Ranks(number, size, first_here=number - place, machines=size // here)


def leave() -> None:
    """The others talk no more, either."""
    from torch.distributed import destroy_process_group

    destroy_process_group()


def train(voice: Voice, folder: str) -> None:
    import torch

    from tasks.training.fit import fit_with
    from tasks.training.pieces import pieces_here

    ranks, asked, watcher = join(folder), None, Watcher(lambda progress: None)
    stop = threading.Event()
    if ranks.is_first_here:
        asked = json.loads(listen(stop))
    if ranks.is_first:
        watcher = Watcher(voice.report, voice.stopped, say=lambda line: voice.say("say", line), stop=stop.is_set)
        logger = logging.getLogger("tasks")
        logger.setLevel(logging.INFO)
        logger.addHandler(voice)
        logger.propagate = False
    request = Request.model_validate(ranks.gathered(asked)[ranks.first_here])
    run, pieces = RunFolder(request.work), pieces_here(request.tokens)
    try:
        if trained := fit_with(pieces, request.config, request.data, run, watcher, ranks):
            trained.write(run.trained)
    except torch.OutOfMemoryError:
        voice.say("piece", pieces.latest)
        raise


def listen(stop: threading.Event) -> str:
    """The request: the first line on standard input. Another one asks to stop."""
    words = FileIO(0, closefd=False)  # without a buffer, whose lock would be held when this process ends
    request = words.readline()

    def hear() -> None:
        if words.readline():
            stop.set()

    threading.Thread(target=hear, daemon=True).start()
    return request.decode()


def main() -> None:
    parent, folder = sys.argv[1:]
    end_with(int(parent))
    place = int(os.environ["LOCAL_RANK"])
    voice = Voice(is_first=place == 0)
    if names := gpus():
        os.environ[CHOICE] = names[place]
    try:
        with suppress(KeyboardInterrupt):  # asked for, and said
            train(voice, folder)
        leave()
    except BaseException as error:
        voice.say("error", told(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
