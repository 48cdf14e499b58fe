"""Files on their way between machines, in a run that nobody meets who did not ask for it."""

from pathlib import Path

import pytest

from tasks.tracking import exchange
from tasks.tracking.address import client
from tasks.tracking.listing import chosen_runs
from tasks.tracking.opening import make_store


@pytest.fixture
def run_id(workplace: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    make_store()
    monkeypatch.setattr(exchange, "is_shared", lambda: True)
    opened = exchange.open_exchange("reviews@champion · july.csv")
    assert opened
    return opened


def test_store_in_a_file_carries_nothing(workplace: Path) -> None:
    assert exchange.open_exchange("a") is None


def test_file_that_is_wanted_is_given_once(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(exchange.FILE).write_text("rows")
    assert not exchange.is_wanted(run_id)

    def meanwhile(seconds: float) -> None:
        assert exchange.is_wanted(run_id)
        exchange.give(run_id, Path(exchange.FILE))

    monkeypatch.setattr(exchange.time, "sleep", meanwhile)
    Path("here").mkdir()
    assert exchange.given(run_id, Path("here")).read_text() == "rows"
    assert not exchange.is_wanted(run_id)


def test_who_is_given_nothing_gives_up(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "WAIT_SECONDS", -1)
    with pytest.raises(RuntimeError, match="nobody has given this machine what it asked for"):
        exchange.given(run_id, Path())


def test_exchange_is_listed_only_where_it_is_asked_for_and_leaves_no_file(run_id: str) -> None:
    Path("part").write_text("rows")
    exchange.attach(run_id, "parts", Path("part"))
    assert exchange.names(run_id, "parts") == ["part"]
    assert chosen_runs([], "started") == []
    (listed,) = chosen_runs(["kind=prediction"], "started")
    assert listed.run_id == run_id and exchange.is_open(run_id)
    exchange.close_exchange(run_id)
    assert not exchange.is_open(run_id) and exchange.names(run_id, "parts") == []
    info = client().get_run(run_id).info
    assert (info.lifecycle_stage, info.status) == ("deleted", "FINISHED")
