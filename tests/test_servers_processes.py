import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.base.closing import FLOW_RUN, flow_run_of, has_worker
from tasks.servers import processes as programs
from tasks.servers.processes import Processes, Program, clear_leftovers, refuse_taken_port
from tasks.servers.workers import FLOWS_STOP_SECONDS
from tasks.settings.fields import InputError
from tests.stacks import until

SLEEP = "import time; time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); {SLEEP}"
PARENT = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); {SLEEP}"


def program(folder: Path, code: str = SLEEP, name: str = "sleeper", **environment: str) -> Program:
    return Program(name, [sys.executable, "-c", code], os.environ | environment, folder / f"{name}.log")


def pid_of(processes: Processes, name: str = "sleeper") -> int:
    return processes.running[name].process.pid


def printed(folder: Path) -> str:
    return str(until(lambda: (folder / "sleeper.log").read_text(), 20, "first line of the log"))


def test_what_dies_is_started_again_and_reported(tmp_path: Path) -> None:
    processes = Processes(tmp_path / "register.json")
    processes.start(program(tmp_path))
    assert processes.revive() == []
    first = pid_of(processes)
    os.kill(first, signal.SIGKILL)
    (sentence,) = until(processes.revive, 10, "restart")
    assert sentence.startswith("sleeper has ended (SIGKILL;") and sentence.endswith("started again")
    assert pid_of(processes) != first
    processes.stop(["sleeper"])


def test_what_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    processes = Processes(tmp_path / "register.json")
    processes.start(program(tmp_path, "raise SystemExit(3)"))
    with pytest.raises(RuntimeError, match=r"sleeper has ended \(exit code 3; .* it was started 3 times in a minute"):
        for _ in range(1000):
            processes.revive()
            time.sleep(0.02)


def test_child_that_survives_its_parent_does_not_keep_the_port(tmp_path: Path) -> None:
    processes = Processes(tmp_path / "register.json")
    processes.start(program(tmp_path, PARENT))
    child = int(printed(tmp_path))
    os.kill(pid_of(processes), signal.SIGKILL)
    until(processes.revive, 10, "restart")
    until(lambda: not psutil.pid_exists(child), 5, "end of the child")
    processes.stop(["sleeper"])


def test_stop_leaves_no_process_however_deaf(tmp_path: Path) -> None:
    processes = Processes(tmp_path / "register.json")
    processes.start(program(tmp_path, STUBBORN))
    assert printed(tmp_path) == "deaf\n"
    pid = pid_of(processes)
    began = time.monotonic()
    processes.stop(["sleeper"])
    assert not psutil.pid_exists(pid) and time.monotonic() - began < 6
    assert not (tmp_path / "register.json").exists()


def test_what_stops_together_waits_together_and_all_of_it_less_than_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[list[int]] = []

    def end(heads: list[psutil.Process], everything: list[psutil.Process]) -> None:
        ended.append(sorted(process.pid for process in heads))
        programs.end_at_once(everything)

    monkeypatch.setattr(programs, "end", end)
    processes = Processes(tmp_path / "register.json")
    pids = {name: 0 for name in ("one", "other", "server")}
    for name in pids:
        processes.start(program(tmp_path, name=name))
        pids[name] = pid_of(processes, name)
    processes.stop(("one", "other"), ("server",))
    assert ended == [sorted([pids["one"], pids["other"]]), [pids["server"]]]
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
    assert FLOWS_STOP_SECONDS + 2 * programs.STOP_SECONDS < 10  # which leaves some for what is closed


def test_what_a_killed_process_left_is_ended_but_for_flow_runs(tmp_path: Path) -> None:
    register = tmp_path / "register.json"
    processes = Processes(register)
    processes.start(program(tmp_path))
    flow_run = subprocess.Popen([sys.executable, "-c", SLEEP], env=os.environ | {FLOW_RUN: "a-run"})
    processes.start(program(tmp_path, name="flow run", **{FLOW_RUN: "another-run"}))
    assert clear_leftovers(register) == ["sleeper"]
    processes.running["sleeper"].process.wait(5)
    assert processes.running["flow run"].process.poll() is None
    assert clear_leftovers(register) == []
    for process in (flow_run, processes.running["flow run"].process):
        process.kill()
        process.wait()


def test_flow_run_that_is_just_being_started_is_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = iter([{}, {}, {FLOW_RUN: "a-run"}])  # Linux shows no environment while it loads a program
    monkeypatch.setattr(psutil.Process, "environ", lambda self: next(shown))
    with subprocess.Popen([sys.executable, "-c", SLEEP]) as process:
        assert flow_run_of(psutil.Process(process.pid)) == "a-run"
        process.kill()


def test_process_that_has_the_number_by_now_is_left_alone(tmp_path: Path) -> None:
    register = tmp_path / "register.json"
    processes = Processes(register)
    processes.start(program(tmp_path))
    text = register.read_text()
    created = processes.running["sleeper"].started.created
    register.write_text(text.replace(str(created), str(created - 100)))
    assert clear_leftovers(register) == []
    assert processes.running["sleeper"].process.poll() is None
    processes.stop(["sleeper"])


def test_program_that_ends_while_it_starts_is_named_with_its_log(tmp_path: Path) -> None:
    processes = Processes(tmp_path / "register.json")
    processes.start(program(tmp_path, "raise SystemExit(3)"))
    with pytest.raises(RuntimeError, match=r"sleeper has ended \(exit code 3; its output is in .*sleeper.log\)"):
        processes.wait("sleeper", lambda: False, 20)


def test_program_that_does_not_answer_is_named_with_its_log(tmp_path: Path) -> None:
    processes = Processes(tmp_path / "register.json")
    processes.start(program(tmp_path))
    with pytest.raises(RuntimeError, match=r"sleeper does not answer after 0 s; see .*sleeper.log"):
        processes.wait("sleeper", lambda: False, 0.2)
    processes.stop(["sleeper"])


def test_taken_port_is_refused_with_the_option_that_changes_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--prefect-port: port {port} of 127.0.0.1 cannot be used for Prefect"):
            refuse_taken_port("127.0.0.1", port, "Prefect", "--prefect-port")
    refuse_taken_port("127.0.0.1", port, "Prefect", "--prefect-port")


def test_worker_is_found_among_the_parents(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, "worker", "start"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        child = int(worker.stdout.readline())
        assert has_worker(child) and not has_worker(os.getpid())
        worker.kill()
        worker.wait()
        assert not has_worker(child)
        os.kill(child, signal.SIGKILL)
