"""Trying again, and for how long."""

from itertools import islice

import pytest

from tasks.base import trouble
from tasks.base.trouble import ask_again, growing_pauses


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses made, on a clock that stands still otherwise."""
    made: list[float] = []
    monkeypatch.setattr(trouble.time, "sleep", made.append)
    monkeypatch.setattr(trouble.time, "monotonic", lambda: sum(made))
    return made


class Server:
    """Answers after so many errors."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.asked = list(errors), 0

    def ask(self) -> str:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def test_an_answer_is_asked_for_once(slept: list[float]) -> None:
    assert ask_again((server := Server()).ask, (1, 2), lambda error: True) == "answer"
    assert (server.asked, slept) == (1, [])


def test_what_waiting_may_help_is_tried_again_and_told(slept: list[float]) -> None:
    told: list[str] = []
    errors = ConnectionError("one"), ConnectionError("two")
    assert ask_again(Server(*errors).ask, (1, 2), lambda error: True, lambda error: told.append(str(error))) == "answer"
    assert (slept, told) == ([1, 2], ["one", "two"])


def test_the_last_error_is_raised_when_no_try_is_left(slept: list[float]) -> None:
    server = Server(*(ConnectionError(name) for name in ("one", "two", "three", "four")))
    with pytest.raises(ConnectionError, match="three"):
        ask_again(server.ask, (1, 2), lambda error: True)
    assert (server.asked, slept) == (3, [1, 2])


def test_what_waiting_does_not_help_is_raised_at_once(slept: list[float]) -> None:
    server = Server(ConnectionError("gone"), ValueError("wrong"))
    with pytest.raises(ValueError, match="wrong"):
        ask_again(server.ask, (1, 2, 3), lambda error: isinstance(error, ConnectionError))
    assert (server.asked, slept) == (2, [1])


@pytest.mark.parametrize(
    ("seconds", "pauses"), [(0, []), (0.9, []), (1, [1]), (3, [1, 2]), (60, [1, 2, 4, 8, 15, 15, 15])]
)
def test_pauses_grow_and_end_in_time(seconds: float, pauses: list[float], slept: list[float]) -> None:
    with pytest.raises(ConnectionError):
        ask_again(Server(*[ConnectionError()] * 9).ask, growing_pauses(seconds), lambda error: True)
    assert slept == pauses


def test_time_spent_on_an_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((0.0, 8.5, 9.5))
    monkeypatch.setattr(trouble.time, "monotonic", lambda: next(now))
    assert list(islice(growing_pauses(10), 5)) == [1.0]
