"""Training by processes of several machines: the machine of the run has an address where the others join.

Each of the others (tasks/training/joining.py) holds one connection, on which every line is a message, as in the pipes
of group.py. It is told what to train, answers with what it has found for that on its own disk or the Hub, and sends on
what its processes say. No line is anything but JSON. Who can reach the address can join: there are no passwords.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from tasks.base.device import gpus, processes
from tasks.base.machine import code_key, public_version
from tasks.base.progress import tell, warn
from tasks.base.records import PreparedData, Record
from tasks.base.words import counted
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.training import host_and_port

LOOK_SECONDS = 0.2
"""Between two looks whether to stop."""

HELLO_SECONDS = 10.0
"""Who has connected and says nothing for so long is somebody else."""

SILENT_SECONDS = 25
"""A machine that does not answer for so long, not even its network, is gone."""

LONGEST_LINE = 2**24

Message = tuple[str, Any]
"""Its kind, and a value of JSON."""


class Place(NamedTuple):
    """Of a machine among those that train together, for torchrun."""

    host: str
    """Address of the first machine, as this one reaches it."""
    port: int
    """Where its processes meet."""
    machines: int
    number: int
    own: str
    """This machine's own address, which the others reach."""


class Asked(Record):
    """What another machine is to train."""

    config: RunConfig
    """With the number of processes that `auto` is on the first machine."""
    tokens: int
    """In one piece of a batch; see pieces.py."""
    port: int
    machines: int
    number: int


class Found(Record):
    """What a machine has found for a configuration: equal on all of them, or they would train different things."""

    model: str
    data: str
    fingerprint: str


def found_by(data: PreparedData) -> Found:
    return Found(model=data.model.content, data=data.source.content, fingerprint=data.fingerprint)


def program() -> dict[str, str]:
    """What computes, by name: this program, the packages that decide about bits, and what they compute on."""
    packages = ("torch", "transformers", "peft", "tokenizers", "numpy")
    versions = {name: public_version(name) for name in packages}
    return {"peft-flow": code_key()[:12], **versions, "as its device": "a GPU" if gpus() else "the CPU"}


class Line:
    """A connection, on which every line is a message."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.words = connection.makefile("rb")
        connection.settimeout(None)
        keep_alive(connection)

    def say(self, kind: str, value: Any = None) -> None:
        with suppress(OSError):  # gone: who listens notices
            self.connection.sendall((json.dumps([kind, value]) + "\n").encode())

    def hear(self) -> Message | None:
        """The next message; None where the other side is gone, or says what is none."""
        try:
            kind, value = json.loads(self.words.readline(LONGEST_LINE))
        except (OSError, ValueError, TypeError):
            return None
        return str(kind), value

    def close(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    @property
    def own(self) -> str:
        return str(self.connection.getsockname()[0])

    @property
    def other(self) -> str:
        return str(self.connection.getpeername()[0])


def keep_alive(connection: socket.socket) -> None:
    """Have the system notice when the other machine is cut off or has no power."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # the first has another name on macOS
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
    interval, tries = getattr(socket, "TCP_KEEPINTVL", None), getattr(socket, "TCP_KEEPCNT", None)
    unheard = getattr(socket, "TCP_USER_TIMEOUT", None)
    wanted = ((idle, SILENT_SECONDS - 15), (interval, 5), (tries, 3), (unheard, 1000 * SILENT_SECONDS))
    for option, value in wanted:
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


class Member:
    """Another machine that has joined."""

    def __init__(self, line: Line, name: str) -> None:
        self.line, self.name = line, name
        self.is_gone = False
        self.heard: SimpleQueue[tuple[Member, Message | None]] = SimpleQueue()
        """Where its messages go; None once it is gone."""
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        while message := self.line.hear():
            self.heard.put((self, message))
        self.is_gone = True
        self.heard.put((self, None))


class Meeting:
    """The address where other machines join, and those that have; from the first training to the end of the process."""

    def __init__(self, address: str) -> None:
        """Raises InputError where this machine cannot listen there."""
        self.address, (host, port) = address, host_and_port(address)
        if not host.strip("0.:"):
            raise InputError(f"training.rendezvous: {address} is no address that other machines could reach")
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self.server = socket.create_server((host, port), family=family)
        except OSError as error:
            raise InputError(
                f"training.rendezvous: this machine cannot listen at {address} ({error.strerror}); give an address of "
                "its own, and a port that is free"
            ) from None
        self.members: list[Member] = []
        self.arrived: SimpleQueue[Member] = SimpleQueue()
        threading.Thread(target=self.listen, daemon=True).start()

    @property
    def host(self) -> str:
        return str(self.server.getsockname()[0])

    def listen(self) -> None:
        while True:
            connection, _ = self.server.accept()
            threading.Thread(target=self.greet, args=(connection,), daemon=True).start()

    def greet(self, connection: socket.socket) -> None:
        """Who says nothing, or something else, is not one of us."""
        connection.settimeout(HELLO_SECONDS)
        with suppress(OSError, ValueError, TypeError, KeyError):
            hello = json.loads(connection.makefile("rb").readline(LONGEST_LINE))
            name, theirs = str(hello["machine"]), dict(hello["program"])
            line, ours = Line(connection), program()
            if differing := sorted(what for what in ours if theirs.get(what) != ours[what]):
                what = differing[0]
                words = f"{name} has {what} {theirs.get(what)}, and {socket.gethostname()} has {ours[what]}"
                warn("A machine may not join: %s. Install the same on both", words)
                line.say("refused", words)
                line.close()
                return
            line.say("welcome", socket.gethostname())
            self.arrived.put(Member(line, name))
            return
        connection.close()

    def gather(self, machines: int, stop: Callable[[], bool]) -> list[Member]:
        """Those that the training needs. Raises KeyboardInterrupt when told to stop while it waits."""
        self.members = [member for member in self.members if not member.is_gone]
        said = -1
        while len(self.members) < machines - 1:
            if said != len(self.members):
                missing = counted(machines - 1 - len(self.members), "more machine")
                tell("Waiting for %s; there, give: peft-flow join %s", missing, self.address)
                said = len(self.members)
            if stop():
                raise KeyboardInterrupt
            with suppress(Empty):
                self.members.append(member := self.arrived.get(timeout=LOOK_SECONDS))
                tell("%s has joined", member.name)
            self.members = [member for member in self.members if not member.is_gone]
        return self.members[: machines - 1]

    def free_port(self) -> int:
        with socket.create_server((self.host, 0), family=self.server.family) as free:
            return int(free.getsockname()[1])


def meeting_at(address: str) -> Meeting:
    """The one of this process."""
    if address not in _meetings:
        _meetings[address] = Meeting(address)
    return _meetings[address]


_meetings: dict[str, Meeting] = {}


class Others:
    """The other machines of one training, from the first."""

    def __init__(self, config: RunConfig, data: PreparedData, tokens: int, stop: Callable[[], bool]) -> None:
        """Once each has found what this one has. Raises InputError where one has not."""
        training = config.training
        assert training.rendezvous
        self.meeting = meeting_at(training.rendezvous)
        self.members = self.meeting.gather(training.machines, stop)
        self.heard: SimpleQueue[tuple[Member, Message | None]] = SimpleQueue()
        port = self.meeting.free_port()
        self.place = Place(self.meeting.host, port, training.machines, 0, self.meeting.host)
        counted_out = training.model_copy(update={"processes": str(processes(training))})
        told = config.run_config().model_copy(update={"training": counted_out})
        for number, member in enumerate(self.members, 1):
            member.heard = self.heard
            asked = Asked(config=told, tokens=tokens, port=port, machines=training.machines, number=number)
            member.line.say("train", asked.model_dump(mode="json"))
            if member.is_gone:  # before it was heard here
                self.heard.put((member, None))
        try:
            self.compare(found_by(data), stop)
        except BaseException as error:
            self.end(str(error) or "it was stopped")
            raise
        for member in self.members:
            member.line.say("go")

    def compare(self, mine: Found, stop: Callable[[], bool]) -> None:
        waiting = {member.name for member in self.members}
        for member, message in self.said(stop):
            kind, value = message or ("gone", None)
            if kind == "refused":
                raise InputError(f"{value} (on {member.name})")
            if kind == "failed":
                raise RuntimeError(f"{member.name}: {value}")
            if kind == "gone":
                raise RuntimeError(gone(member.name, self.meeting.address))
            if kind == "found":
                theirs = Found.model_validate(value)
                for what, words in FIELDS.items():
                    ours, other = getattr(mine, what), getattr(theirs, what)
                    if ours != other:
                        raise InputError(
                            f"{words} on {member.name} ({other[:16]}) than on {socket.gethostname()} ({ours[:16]}); "
                            "give both machines the same files"
                        )
                waiting.discard(member.name)
            if not waiting:
                return

    def said(self, stop: Callable[[], bool]) -> Iterator[tuple[Member, Message | None]]:
        while True:
            if stop():
                raise KeyboardInterrupt
            with suppress(Empty):
                yield self.heard.get(timeout=LOOK_SECONDS)

    def end(self, why: str = "") -> None:
        """Nothing of this training goes on there. `why` it has failed, if it has."""
        for member in self.members:
            member.line.say("end", why)
            member.heard = SimpleQueue()


@contextmanager
def other_machines(
    config: RunConfig, data: PreparedData, tokens: int, stop: Callable[[], bool]
) -> Iterator[Others | None]:
    """Those that train with this one; none where it trains alone. With the block, the training ends there too."""
    if config.training.machines == 1:
        yield None
        return
    others = Others(config, data, tokens, stop)
    try:
        yield others
    except BaseException as error:
        others.end(str(error) or "it was stopped")
        raise
    others.end()


FIELDS = {
    "model": "model.name: the model has other content",
    "data": "data.name: the data have other content",
    "fingerprint": "data.name: the rows are others",
}


def gone(name: str, address: str) -> str:
    return (
        f"the machine {name} of this training is gone; run it again, and give `peft-flow join {address}` again there, "
        "and it goes on from its last checkpoint"
    )
