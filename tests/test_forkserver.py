"""The forks that stand for fresh processes in tests behave as such, and the real ones work too."""

import json
import os
import socket
from pathlib import Path

import pandas as pd
import pytest

from tasks.base.fresh_process import RELOAD, run_offline, start_offline
from tasks.base.outcomes import Footprint
from tasks.models import serving
from tests import forkserver
from tests.conftest import Trained


def test_fork_that_fails_is_told_like_a_process(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        RuntimeError, match=r"(?s)reload failed in a fresh process \(exit code 1\).*KeyError: 'adapter'"
    ):
        run_offline(RELOAD, {"data": "none"})


def test_fork_is_a_process_of_its_own_and_ends_with_whoever_started_it() -> None:
    with start_offline(RELOAD) as process:
        assert process.stdin and process.poll() is None
        process.kill()
        assert process.communicate() == ("", "")  # which waits until nobody has the other ends any more
    assert process.returncode == -9


def test_request_that_breaks_off_starts_nothing_and_keeps_nobody_busy() -> None:
    asking, asked = socket.socketpair()
    with asked, open(os.devnull) as nothing:
        socket.send_fds(asking, [b'{"module": '], [nothing.fileno()] * 3)
        asking.close()
        forkserver.keep(asked)


@pytest.mark.parametrize("real", [False, True])
def test_footprint_is_measured_in_a_fresh_process(
    real: bool, trained: Trained, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if real:
        request.getfixturevalue("no_forks")
    rows, adapter = pd.DataFrame({"text": ["a warm and funny film", "dull"]}), Path(trained.adapter.folder)
    rows.to_parquet(tmp_path / "rows.parquet")
    asked = {name: str(tmp_path / f"{name}.parquet") for name in ("rows", "answers")}
    run_offline("tasks.models.footprint", asked | {"adapter": str(adapter), "out": str(tmp_path / "out")})
    found = Footprint.model_validate(json.loads((tmp_path / "out").read_text()))
    assert found.latency_ms > 0 and found.memory_mb > 50
    here = serving.ask(*serving.load_adapter(adapter), serving.read_settings(adapter), rows)
    assert (pd.read_parquet(tmp_path / "answers.parquet").to_numpy() == here).all()
