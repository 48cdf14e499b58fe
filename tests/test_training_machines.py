"""Several machines train one run as one would. Here all of them are this one; see also test_several_machines.py."""

# ruff: noqa: F811  (fixtures of another file)

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.base.records import PreparedData
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.training import machines
from tasks.training.errors import told
from tasks.training.joining import hello, join
from tasks.training.machines import Line, Meeting, Message, other_machines, program
from tasks.training.watching import Progress
from tests.conftest import free_port
from tests.test_training_group import ONE, Job, job, still, what_counts  # noqa: F401  (fixtures)


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(machines, "_meetings", {})
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def pair(address: str, job: Callable[..., Job]) -> Callable[..., Job]:
    def make(training: dict[str, Any], **sections: Any) -> Job:
        two = {"batch_size": 14, "processes": 2, "machines": 2, "rendezvous": address}
        return job(two | training, **sections)

    return make


@contextmanager
def joined(address: str, data: PreparedData | Exception, trust: bool = False) -> Iterator[Future[None]]:
    """Another machine, until the run is over; what has become of it."""

    def prepare(config: RunConfig) -> PreparedData:
        if isinstance(data, Exception):
            raise data
        return data

    with ThreadPoolExecutor() as pool:
        yield pool.submit(join, address, prepare, trust)
        for meeting in machines._meetings.values():  # as when the process of the run ends
            for member in meeting.members:
                member.line.close()


# --- the same bits ----------------------------------------------------------------------------------------------------


def test_two_machines_give_the_bits_of_one_process_with_accumulation(
    address: str,
    pair: Any,
    job: Any,
    still: Any,
) -> None:
    """And those of one of them that goes on from a checkpoint, which the other gets from it."""
    model = {"name": still("gpt2")}
    two = pair({"epochs": 3}, model=model)
    with joined(address, two.data) as other:
        with pytest.raises(KeyboardInterrupt):
            two.fit("two", stop=lambda: len(two.steps) >= 3)
        before = len(two.steps)
        together = two.fit("two")
    alone = job({**ONE, "epochs": 3}, model=model).fit("one")
    assert what_counts(together) == what_counts(alone)
    assert two.said == [f"Training goes on from step {before}"] and 3 <= before < together.steps
    assert together.compute["processes"] == "2" and other.result(10) is None


def test_error_of_another_machine_is_that_of_the_run(address: str, pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said here in its own words, not as a process that is gone; and out of memory there makes smaller pieces here."""
    one, full = pair({}), torch.OutOfMemoryError("CUDA out of memory")
    tries: list[int] = []

    class Ended:
        """Processes that end at once, there with an error."""

        def __init__(self, count: int, request: Any, place: Any, others: Any = None) -> None:
            self.others, self.process = others, self
            tries.append(request.tokens)

        def messages(self, stop: Any) -> Iterator[Message]:
            if not self.others:
                yield "piece", [8, 20]
                yield "error", told(full if len(tries) < 4 else FloatingPointError("the loss is nan"))
                return
            for _, message in self.others.said(stop):
                kind, value = message or ("gone", "gone")
                if kind == "ended":
                    return
                yield kind, value

        def wait(self) -> int:
            return 1

        def end(self) -> None:
            self.has_ended = True

    monkeypatch.setattr("tasks.training.group.Group", Ended)
    monkeypatch.setattr("tasks.training.joining.Group", Ended)
    (one.root / "run").mkdir()
    with joined(address, one.data) as other, pytest.raises(FloatingPointError, match=r"^the loss is nan"):
        one.fit("run")
    assert tries == [4096, 4096, 80, 80]
    with pytest.raises(RuntimeError, match="is over: the loss is nan"):
        other.result(10)


# --- what is refused before training ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"fingerprint": "0" * 64}, "data.name: the rows are others on "),
        ({"model": "0" * 64}, "model.name: the model has other content on "),
        ({"source": "0" * 64}, "data.name: the data have other content on "),
        (InputError("data.name: there is no /data/reviews"), "data.name: there is no /data/reviews (on "),
    ],
)
def test_what_is_not_the_same_there_is_refused_in_one_line(changed: Any, says: str, address: str, pair: Any) -> None:
    one = pair({})
    data = changed
    if isinstance(changed, dict):
        ((name, value),) = changed.items()
        source = getattr(one.data, name)
        other = value if isinstance(source, str) else source.model_copy(update={"revision": value})
        data = one.data.model_copy(update={name: other})
    with joined(address, data) as other, pytest.raises(InputError, match=f"^{re.escape(says)}"):
        one.fit("run")
    with pytest.raises(RuntimeError, match=re.escape(says)):
        other.result(10)
    assert not (one.root / "run").exists()


def test_code_that_comes_with_a_model_is_not_run_there_unasked(address: str, pair: Any) -> None:
    one = pair({})
    trusting = one.config.model_copy(update={"model": one.config.model.model_copy(update={"trust_remote_code": True})})
    with joined(address, AssertionError("nothing is looked for")), pytest.raises(InputError, match="to peft-flow join"):
        Job.fit(type("Trusting", (), {**vars(one), "config": trusting})(), "run")  # type: ignore[arg-type]


def test_other_versions_are_not_let_in(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = Meeting(address)
    older = program() | {"torch": "1.0"}
    monkeypatch.setattr("tasks.training.joining.program", lambda: older)
    with pytest.raises(InputError, match=r"has torch 1\.0, and .* has 2\..*; install the same on both"):
        join(address, lambda config: pytest.fail("not asked"), False)
    assert meeting.arrived.empty()


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"machine": "x"}\n', b"\x80\x04."])
def test_strangers_are_not_taken_for_machines(words: bytes, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "HELLO_SECONDS", 0.2)
    meeting = Meeting(address)
    with socket.create_connection(meeting.server.getsockname()) as stranger:
        stranger.sendall(words)
        assert stranger.recv(100) == b""  # hung up
    with socket.create_connection(meeting.server.getsockname()) as friend:
        friend.sendall(hello())
        assert json.loads(friend.makefile("rb").readline()) == ["welcome", socket.gethostname()]
    assert meeting.arrived.get(timeout=10).name == socket.gethostname() and meeting.arrived.empty()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("10.255.255.1:29400", "cannot listen at 10.255.255.1:29400"),
        ("0.0.0.0:29400", "no address that other machines"),
    ],
)
def test_address_that_nobody_could_join_at_is_refused(given: str, says: str) -> None:
    with pytest.raises(InputError, match=f"^training.rendezvous: .*{re.escape(says)}"):
        Meeting(given)


def test_nothing_listens_but_at_the_address_given(address: str) -> None:
    meeting = Meeting(address)
    assert meeting.server.getsockname() == ("127.0.0.1", int(address.rpartition(":")[2]))
    with pytest.raises(InputError, match="a port that is free"):
        Meeting(address)


# --- the same ends ----------------------------------------------------------------------------------------------------


def test_run_that_waits_for_machines_can_be_stopped(address: str, pair: Any) -> None:
    one, begun = pair({}), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        one.fit("run", stop=lambda: time.monotonic() > begun + 0.5)


def test_machine_that_goes_ends_the_run_in_one_line(address: str, pair: Any) -> None:
    one = pair({"epochs": 1000})
    gone = threading.Event()

    def go(progress: Progress) -> None:
        if not gone.is_set():
            gone.set()
            machines._meetings[address].members[0].line.close()

    with (
        joined(address, one.data) as other,
        pytest.raises(RuntimeError, match=rf"^the machine {socket.gethostname()} of this training is gone; .*join"),
    ):
        one.fit("run", report=go)
    with pytest.raises(RuntimeError, match="without a word"):
        other.result(20)


def test_machine_that_has_gone_is_waited_for_again(address: str, pair: Any, tmp_path: Path) -> None:
    one, asked = pair({}), []
    meeting = machines.meeting_at(address)
    for _ in range(2):
        line = Line(socket.create_connection(meeting.server.getsockname()))
        line.connection.sendall(hello())
        assert line.hear() == ("welcome", socket.gethostname())
        if not asked:
            line.close()
        asked.append(line)

    def answer() -> None:
        kind, value = asked[1].hear() or ("gone", None)
        assert (kind, value["number"], value["machines"]) == ("train", 1, 2)
        asked[1].say("failed", "OSError: the disk is gone")

    threading.Thread(target=answer, daemon=True).start()
    with (
        pytest.raises(RuntimeError, match="OSError: the disk is gone"),
        other_machines(one.config, one.data, 4096, lambda: False),
    ):
        pytest.fail("nothing is trained")
    assert asked[1].hear() == ("end", f"{socket.gethostname()}: OSError: the disk is gone")
