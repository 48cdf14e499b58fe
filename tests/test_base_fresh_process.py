"""A fork of a process that has computed nothing reads an adapter back as a process does that was started anew."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from tasks.base.fresh_process import RELOAD, fork, with_our_modules
from tests.conftest import ROOT, Trained
from tests.stacks import until

STAND_IN = """
import os, signal, sys

def prepare(): ...

def main(request):
    print("heard", file=sys.stderr)
    if request["what"] == "hub":
        from huggingface_hub import HfApi
        HfApi().model_info("gpt2")
    if request["what"] == "fail":
        print("x" * 9000, file=sys.stderr)
        raise MemoryError("no room for the model")
    if request["what"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if request["what"] == "multiply":
        import torch
        torch.set_num_threads(2)
        assert (torch.ones(700, 700) @ torch.ones(700, 700) == 700).all()
"""


def in_new_process(code: str, folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """In one that has not yet imported torch."""
    environment = with_our_modules() | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment["PYTHONPATH"], str(ROOT)])
    command = [sys.executable, "-c", f"from tasks.base import environment\n{code}", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=folder, stdout=pipe, stderr=pipe, text=True)


def test_fork_computes_what_this_process_does_asks_no_hub_and_says_why_it_failed(
    trained: Trained, tmp_path: Path
) -> None:
    """One test, for its process imports everything anew."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    request = {
        "adapter": trained.adapter.folder,
        "probe_rows": 12,
        "data": trained.data.folder,
        "batch_size": 8,
        "out": str(tmp_path / "out"),
    }
    code = (
        "import json, sys\n"
        "from tasks.base import fresh_process\n"
        "def told(what):\n"
        "    fresh_process._waiting['stand_in'] = fresh_process.Fork('stand_in')\n"
        "    try:\n"
        "        fresh_process.run_offline('stand_in', {'what': what})\n"
        "    except RuntimeError as error:\n"
        "        return str(error)\n"
        "with fresh_process.reload_at_hand():\n"
        "    assert isinstance(fresh_process._waiting[fresh_process.RELOAD], fresh_process.Fork)\n"
        "    print(json.dumps({what: told(what) for what in ('hub', 'fail', 'die', 'multiply')}))\n"
        "    first = fresh_process._waiting[fresh_process.RELOAD].process.pid\n"
        "    for _ in range(2):\n"  # as for two seeds
        "        fresh_process.run_offline(fresh_process.RELOAD, json.loads(sys.argv[1]))\n"
        "        assert fresh_process._waiting[fresh_process.RELOAD].process.pid == first\n"
        "assert fresh_process.RELOAD not in fresh_process._waiting\n"
    )
    with in_new_process(code, tmp_path, json.dumps(request)) as process:
        output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert (load_file(tmp_path / "out")["probe"] == load_file(trained.adapter.probe)["logits"]).all()
    said = json.loads(output)
    assert said["multiply"] is None, "by several threads"
    assert "OfflineModeIsEnabled" in said["hub"]
    assert "(exit code 1)" in said["fail"] and said["fail"].endswith("MemoryError: no room for the model")
    assert len(said["fail"]) < 2200 and "(exit code -9): heard" in said["die"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_fork_ends_with_the_process_that_it_was_made_for(how: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    code = (
        "import time\n"
        "from tasks.base import fresh_process\n"
        "print(fresh_process.Fork('stand_in').process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with in_new_process(code, tmp_path) as process:
        assert process.stdout
        waiting = psutil.Process(int(process.stdout.readline()))
        process.send_signal(how)
    until(lambda: not waiting.is_running() or waiting.status() == psutil.STATUS_ZOMBIE, 20, "end of the fork")


def test_request_that_failed_says_nothing_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    code = (
        "from tasks.base import fresh_process\n"
        "with fresh_process.Fork('stand_in') as waiting:\n"
        "    for what in ('well', 'fail', 'well', 'die'):\n"
        '        _, words = waiting.communicate(\'{"what": "%s"}\' % what)\n'
        "        print(what, waiting.returncode, words.count('heard'), 'MemoryError' in words)\n"
    )
    with in_new_process(code, tmp_path) as process:
        output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert output.splitlines() == ["well 0 1 False", "fail 1 1 True", "well 0 1 False", "die -9 1 False"]


def test_process_that_may_have_computed_something_is_not_forked(trained: Any) -> None:
    assert fork(RELOAD) is None
