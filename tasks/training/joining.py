"""Another machine's part in the trainings of a run, from there: `peft-flow join HOST:PORT`."""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

from tasks.base.device import claim_device, processes_here
from tasks.base.records import PreparedData
from tasks.base.words import counted
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.training import host_and_port
from tasks.training.group import Group, Request
from tasks.training.machines import LONGEST_LINE, Asked, Line, Message, Place, found_by, program

TRY_SECONDS = 1.0
"""Between two tries to reach the run."""

HEARD = ("error", "piece", "killed")
"""What of the processes' words the first machine needs; how it goes, its own processes say."""


class Joined:
    """A connection to the machine of the run, on which its trainings are asked for."""

    def __init__(self, address: str) -> None:
        """Waits until there is a run. Raises InputError where it does not let this machine in."""
        self.address = address
        self.line = Line(reached(address))
        self.line.connection.sendall(hello())
        kind, value = self.line.hear() or ("gone", None)
        if kind == "refused":
            raise InputError(f"{value}; install the same on both")
        if kind != "welcome":
            raise InputError(f"what listens at {address} is not a training of peft-flow")
        self.host = str(value)
        self.heard: SimpleQueue[Message | None] = SimpleQueue()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        while message := self.line.hear():
            self.heard.put(message)
        self.heard.put(None)


def hello() -> bytes:
    line = json.dumps({"machine": socket.gethostname(), "program": program()}) + "\n"
    assert len(line) < LONGEST_LINE
    return line.encode()


def reached(address: str) -> socket.socket:
    try:
        place = host_and_port(address)
    except ValueError as error:
        raise InputError(f"the address {error}") from None
    waiting = False
    while True:
        try:
            return socket.create_connection(place, timeout=10)
        except socket.gaierror as error:
            raise InputError(
                f"{place[0]} is no name of a machine ({error.strerror}); see training.rendezvous"
            ) from None
        except OSError:
            if not waiting:
                say(f"Waiting for a run to train at {address}")
            waiting = True
            time.sleep(TRY_SECONDS)


def say(line: str) -> None:
    """To whoever has given the command."""
    print(line, file=sys.stderr, flush=True)


def join(address: str, prepare: Callable[[RunConfig], PreparedData], trust_remote_code: bool) -> None:
    """Serve the trainings of one run, until it has ended. `prepare` gives the rows of a configuration on this machine.

    Raises InputError for what a person must change here, RuntimeError where the last training failed.
    """
    joined = Joined(address)
    say(f"Joined the run of {joined.host}")
    group: Group | None = None
    asked: tuple[Place, Request] | None = None
    fault = "nothing has been trained"
    try:
        with TemporaryDirectory(prefix="peft-flow-") as folder:
            while message := joined.heard.get():
                kind, value = message
                if kind == "train":
                    fault = "the run has ended without a word"
                    asked = got_ready(joined, Asked.model_validate(value), prepare, trust_remote_code, Path(folder))
                elif kind == "go" and asked:
                    place, request = asked
                    count = processes_here(request.config.training)
                    say(f"This machine trains with {counted(count, 'process')}, one machine of {place.machines}")
                    group = Group(count, request, place)
                    threading.Thread(target=forward, args=(group, joined.line), daemon=True).start()
                elif kind == "end":
                    if group:
                        group.end()
                    group, fault = None, str(value)
                    say(f"The training has ended: {fault}" if fault else "The training is done")
    finally:
        joined.line.close()
        if group:
            group.end()
    if fault:
        raise RuntimeError(f"the run of {joined.host} is over: {fault}")


def got_ready(
    joined: Joined, asked: Asked, prepare: Callable[[RunConfig], PreparedData], trust: bool, folder: Path
) -> tuple[Place, Request] | None:
    """What the processes are told, when all that they need is here; else the first machine hears why not."""
    config = asked.config
    try:
        if config.model.trust_remote_code and not trust:
            raise InputError(
                "model.trust_remote_code would run Python code that comes with the model; give --trust_remote_code to "
                "peft-flow join, too, if you trust its authors"
            )
        count = processes_here(config.training)
        claim_device(count)
        say(f"Finding {config.model.name} and the rows of {config.data.name}")
        data = prepare(config)
    except InputError as error:
        joined.line.say("refused", str(error))
        return None
    except Exception as error:
        joined.line.say("failed", f"{type(error).__name__}: {error}")
        return None
    joined.line.say("found", found_by(data).model_dump())
    place = Place(joined.line.other, asked.port, asked.machines, asked.number, joined.line.own)
    return place, Request(config=config, data=data, work=str(folder / "run"), tokens=asked.tokens)


def forward(group: Group, line: Line) -> None:
    """What the first machine needs to know of the processes here."""
    for kind, value in group.messages(lambda: False):
        if kind in HEARD:
            line.say(kind, value)
    if (code := group.process.wait()) < 0:
        line.say("killed", -code)
    line.say("ended")
