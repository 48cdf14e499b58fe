"""Several programs as one: started in order, watched, started again when they die, and all gone in the end."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from tasks.base.closing import flow_run_of
from tasks.base.records import Record
from tasks.settings.fields import InputError

STOP_SECONDS = 2.0

MOST_RESTARTS, WITHIN_SECONDS = 3, 60.0
"""A program that dies more often than that is broken: starting it once more would only hide it."""


class Program(NamedTuple):
    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    niceness: int = 0
    """By so much it, and what it starts, leaves the processors to others."""


class Started(Record):
    """A process; when it was created distinguishes it from a later one with the same number."""

    name: str
    pid: int
    created: float


class Running(NamedTuple):
    program: Program
    process: "subprocess.Popen[bytes]"
    started: Started


class Register(Record):
    """What runs, on disk, for whoever has to clean up when this process was killed."""

    folder: str
    """Where it was started."""
    processes: tuple[Started, ...] = ()


class Processes:
    """Programs started here. Each is the head of a session of its own, so that Ctrl-C reaches only this process."""

    def __init__(self, register: Path) -> None:
        self.register = register
        self.running: dict[str, Running] = {}
        self.deaths: dict[str, list[float]] = {}

    def start(self, program: Program) -> None:
        program.log.parent.mkdir(parents=True, exist_ok=True)
        with program.log.open("ab") as log:
            process = subprocess.Popen(
                program.command,
                env=dict(program.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        seen = psutil.Process(process.pid)
        if program.niceness:
            seen.nice(min(seen.nice() + program.niceness, 19))  # before it has threads, which have their own
        started = Started(name=program.name, pid=process.pid, created=seen.create_time())
        self.running[program.name] = Running(program, process, started)
        processes = tuple(running.started for running in self.running.values())
        Register(folder=str(Path.cwd()), processes=processes).write(self.register)

    def wait(self, name: str, answers: Callable[[], bool], seconds: float) -> None:
        """Until `answers()`; RuntimeError when the program ends before, or does not answer in time."""
        deadline = time.monotonic() + seconds
        while not answers():
            if self.running[name].process.poll() is not None:
                raise RuntimeError(self.epitaph(name))
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{name} does not answer after {seconds:.0f} s; see {self.running[name].program.log}"
                )
            time.sleep(0.1)

    def revive(self) -> list[str]:
        """Start again what has died, and say so; RuntimeError for what dies again and again."""
        sentences = []
        for name, (program, process, started) in list(self.running.items()):
            if process.poll() is None:
                continue
            last_words, now = self.epitaph(name), time.monotonic()
            self.deaths[name] = [death for death in self.deaths.get(name, []) if now - death < WITHIN_SECONDS] + [now]
            if len(self.deaths[name]) > MOST_RESTARTS:
                raise RuntimeError(f"{last_words}; it was started {MOST_RESTARTS} times in a minute")
            end_at_once(session(started))  # what it left behind keeps its port
            self.start(program)
            sentences.append(f"{last_words}; started again")
        return sentences

    def epitaph(self, name: str) -> str:
        program, process, _ = self.running[name]
        code = process.poll()
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return f"{name} has ended ({how}; its output is in {program.log})"

    def flow_runs(self, name: str) -> list[psutil.Process]:
        """The flow runs that a worker here has started and that are still at it."""
        try:
            below = psutil.Process(self.running[name].process.pid).children(recursive=True)
        except (KeyError, psutil.NoSuchProcess):
            return []
        return [process for process in below if flow_run_of(process)]

    def stop(self, *together: Collection[str]) -> None:
        """End the programs, one group after the other, gently and then for certain, with all that they have started."""
        for names in together:
            begun = [self.running.pop(name).started for name in names if name in self.running]
            everything = [process for started in begun for process in session(started)]
            end([process for process in everything if process.pid in {one.pid for one in begun}], everything)
        self.register.unlink(missing_ok=True)


def end(
    heads: Collection[psutil.Process], others: Collection[psutil.Process] = (), seconds: float = STOP_SECONDS
) -> None:
    """SIGTERM for the heads, time for all to go, SIGKILL for what is left."""
    for process in heads:
        send(process, signal.SIGTERM)
    _, left = psutil.wait_procs({*heads, *others}, timeout=seconds)
    end_at_once(left)


def send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def session(started: Started) -> list[psutil.Process]:
    """What is left of a program: its process and those that it started, but for flow runs, which outlive their worker.

    The system gives a process number to nobody else as long as a session goes by it.
    """
    with suppress(psutil.NoSuchProcess):
        if psutil.Process(started.pid).create_time() != started.created:
            return []
    return [
        process for process in psutil.process_iter() if session_of(process) == started.pid and not flow_run_of(process)
    ]


def session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def end_at_once(processes: Collection[psutil.Process]) -> None:
    for process in processes:
        send(process, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=STOP_SECONDS)


def clear_leftovers(register: Path) -> list[str]:
    """End the programs of a process that was killed before it could; the flow runs that they started go on.

    Returns the names of what was ended.
    """
    try:
        left = Register.model_validate_json(register.read_bytes()).processes
    except (FileNotFoundError, ValueError):
        return []
    found = {started.name: processes for started in left if (processes := session(started))}
    for processes in found.values():
        end_at_once(processes)  # a worker that is asked to stop waits for its flow runs
    register.unlink(missing_ok=True)
    return list(found)


def refuse_taken_port(host: str, port: int, program: str, option: str) -> None:
    """InputError where something listens at the address already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"{option}: port {port} of {host} cannot be used for {program} ({reason}); choose another port"
            ) from None
