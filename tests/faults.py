"""Faults on purpose, without any hook in the product: kills, failing calls and writes, cut connections, full disks.

    python -m tests.faults --kill tasks.training.fit:fit_adapter:1:after -- finetune CONFIG.yaml --seed 3

runs `peft-flow finetune CONFIG.yaml --seed 3` in this process with the faults installed and ends with its exit code.

What is counted and killed is this process. A kill is SIGKILL for its whole process group, which it leads: its children
(the process that reads an adapter back, Prefect's own server) die with it, as when the power goes. With --alone they
live on as orphans, as after `kill -9 PID`; a test that wants that has to end them. In children nothing is patched.

A failing write is one that Python makes. What writes by itself (torch, safetensors, sqlite, pyarrow) only fails on a
disk that is really full: see `full_disk`.
"""

import argparse
import builtins
import contextlib
import errno
import fnmatch
import functools
import importlib.abc
import importlib.machinery
import io
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit


class Fault:
    """Something that happens at the n-th call, or with `ever` at the n-th and each one after it."""

    def __init__(self, name: str, number: int, ever: bool = False) -> None:
        self.name, self.number, self.ever = name, number, ever
        self.calls = 0
        self.lock = threading.Lock()

    def strikes(self) -> bool:
        """Count a call; whether this is one that the fault is for."""
        with self.lock:
            self.calls += 1
            return self.calls == self.number or (self.ever and self.calls > self.number)

    @property
    def happened(self) -> bool:
        return self.calls >= self.number


# calls


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def patch(module: str, dotted: str, wrap: Wrap) -> Callable[[], None]:
    """Put `wrap(function)` in the place of a function or `Class.method`; returns what takes it back.

    A module that was not imported yet is patched when it is, before others can take copies with `from x import f`;
    in one that was, the copies that other modules hold are replaced too. Of a Prefect task or flow the function
    inside is wrapped.
    """
    undo: list[Callable[[], None]] = []

    def apply(loaded: ModuleType) -> None:
        *outer, last = dotted.split(".")
        owner = functools.reduce(getattr, outer, loaded)
        target = vars(owner).get(last) or getattr(owner, last)
        if isinstance(target, staticmethod | classmethod):
            replace(owner, last, target, type(target)(wrap(target.__func__)))
        elif hasattr(target, "fn"):
            replace(target, "fn", target.fn, wrap(target.fn))
        else:
            wrapped = wrap(target)
            for other in [owner, *list(sys.modules.values())]:
                for name, value in list(getattr(other, "__dict__", {}).items()):
                    if value is target:
                        replace(other, name, target, wrapped)
            if getattr(owner, last) is target:  # a method that its class inherits
                replace(owner, last, target, wrapped)

    def replace(owner: Any, name: str, old: Any, new: Any) -> None:
        setattr(owner, name, new)
        undo.append(lambda: setattr(owner, name, old))

    if module in sys.modules:
        apply(sys.modules[module])
    else:
        finder = AfterImport(module, apply)
        sys.meta_path.insert(0, finder)
        undo.append(lambda: sys.meta_path.remove(finder))

    def take_back() -> None:
        while undo:
            undo.pop()()

    return take_back


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls `action` with a module as soon as it has been imported."""

    def __init__(self, module: str, action: Callable[[ModuleType], None]) -> None:
        self.module, self.action = module, action

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module:
            return None
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]  # among them another fault's, for the same module
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.action(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def at(fault: Fault, action: Callable[[], None], after: bool = False) -> Wrap:
    """A wrapper that does `action` before or after those calls that the fault is for."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            strikes = fault.strikes()
            if strikes and not after:
                action()
            answer = function(*arguments, **named)
            if strikes and after:
                action()
            return answer

        return wrapped

    return wrap


def throw(error: BaseException) -> None:
    raise error


@contextlib.contextmanager
def fail_nth(module: str, function: str, number: int, error: BaseException, ever: bool = False) -> Iterator[Fault]:
    """Within: the n-th call of `module:function` raises `error` instead, in this process."""
    fault = Fault(f"{module}:{function}", number, ever)
    undo = patch(module, function, at(fault, lambda: throw(error)))
    try:
        yield fault
    finally:
        undo()


# writes


@contextlib.contextmanager
def fail_write(number: int, code: int = errno.ENOSPC, glob: str = "*", ever: bool = False) -> Iterator[Fault]:
    """Within: the n-th write to a file whose absolute path fits `glob` raises OSError(code), in this process.

    Writes are what reaches the disk of files opened with `open` from now on (so at a flush or close), `os.write` and
    the names given by `os.replace` and `os.rename`. In a glob `*` stands for slashes too.
    """
    fault = Fault(f"write {glob}", number, ever)
    really_open, really_write = io.open, os.write

    def is_meant(path: Any) -> bool:
        if isinstance(path, int):
            with contextlib.suppress(OSError):
                path = os.readlink(f"/proc/self/fd/{path}")
            if not str(path).startswith("/") or str(path).startswith(("/dev/", "/proc/")):
                return False
        return fnmatch.fnmatch(os.path.abspath(os.fsdecode(path)), glob)

    class File(io.FileIO):
        broken = False

        def write(self, data: Any) -> Any:
            self.broken = self.broken or fault.strikes()  # and stays so: closing the file would write the rest
            if self.broken:
                raise OSError(code, os.strerror(code))
            return super().write(data)

    def opened(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: Any = None,
        errors: Any = None,
        newline: Any = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if not set(mode) & set("wax+") or not is_meant(file):
            return really_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = File(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)

    def write(handle: int, data: Any, /) -> int:
        if is_meant(handle) and fault.strikes():
            raise OSError(code, os.strerror(code))
        return really_write(handle, data)

    def naming(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def named(old: Any, new: Any, **places: Any) -> None:
            if is_meant(new) and fault.strikes():
                raise OSError(code, os.strerror(code), os.fspath(old), None, os.fspath(new))
            function(old, new, **places)

        return named

    places = ((builtins, "open", opened), (io, "open", opened), (os, "write", write))
    names = ((os, name, naming(getattr(os, name))) for name in ("replace", "rename"))
    with contextlib.ExitStack() as stack:
        for module, name, new in (*places, *names):
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, new)
        yield fault


# the network


UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

When = str | int | bytes


class Cut:
    def __init__(self, fault: Fault, when: When, match: bytes) -> None:
        self.fault, self.when, self.match = fault, when, match


class Proxy:
    """A free port of this machine that leads to a real server, and that can misbehave.

    `url` is what the client is given. A connection carries many requests, so requests are counted: one begins where
    the client speaks first or after an answer.
    """

    def __init__(self, target: str) -> None:
        """`target` is the server's address, http://127.0.0.1:5000."""
        parts = urlsplit(target)
        self.target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.delay_seconds = 0.0
        """How long each answer is held back; a day is a server that takes connections and never answers."""
        self.connections = 0
        self.requests = 0
        self.cuts: list[Cut] = []
        self.lock = threading.Lock()
        self.open: set[socket.socket] = set()
        self.closed = threading.Event()
        self.listener = self.bind(0)
        self.port = int(self.listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.up()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self, number: int = 1, when: When = "before", match: bytes = b"", ever: bool = False) -> Fault:
        """Cut the connection of the n-th request from now on, of those that have `match` in their first bytes.

        `before` the server sees it, `after` the server has answered but before the client hears of it, or once this
        many bytes of the answer, its head included, have been passed on. `silent`: it is never answered. Bytes
        (UNAVAILABLE) are the answer, and the server sees nothing. With `ever` each later one is cut too.
        """
        fault = Fault(f"cut {when!r}", number, ever)
        with self.lock:
            self.cuts.append(Cut(fault, when, match))
        return fault

    def heal(self) -> None:
        """Cut and delay nothing any more."""
        with self.lock:
            self.cuts.clear()
        self.delay_seconds = 0.0

    def down(self) -> None:
        """Cut all connections and refuse new ones until `up`; the port stays taken."""
        shut(self.listener)
        self.listener = self.bind(self.port)  # without listen: connections are refused
        with self.lock:
            for connection in self.open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def up(self) -> None:
        self.listener.listen(64)
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def close(self) -> None:
        self.closed.set()
        self.down()
        shut(self.listener)

    def bind(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        return listener

    def accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                client, _ = listener.accept()
                self.connections += 1
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        """One connection, until either side or a cut ends it."""
        server = socket.socket()
        with self.lock:
            self.open |= {client, server}
        try:
            server.connect(self.target)
            self.relay(client, server)
        except OSError:
            pass
        finally:
            with self.lock:
                self.open -= {client, server}
            shut(client)
            shut(server)

    def relay(self, client: socket.socket, server: socket.socket) -> None:
        cut: When | None = None
        asking, passed = False, 0
        while True:
            for side in select.select([client, server], [], [])[0]:
                if not (data := side.recv(1 << 16)):
                    return
                if side is client:
                    if not asking:
                        asking, cut, passed = True, self.next_cut(data), 0
                    if isinstance(cut, bytes):
                        client.sendall(cut)
                    if cut == "before" or isinstance(cut, bytes):
                        return
                    if cut == "silent":
                        continue
                    server.sendall(data)
                    continue
                if asking and self.delay_seconds and self.closed.wait(self.delay_seconds):
                    return
                asking = False
                if cut == "after":
                    return
                if isinstance(cut, int):
                    data = data[: cut - passed]
                client.sendall(data)
                passed += len(data)
                if passed == cut:
                    return

    def next_cut(self, head: bytes) -> When | None:
        """What happens to the request that begins with `head`."""
        with self.lock:
            self.requests += 1
            striking = [cut for cut in self.cuts if cut.match in head and cut.fault.strikes()]
        return striking[0].when if striking else None


def shut(connection: socket.socket) -> None:
    """Close it, and wake a thread that waits for it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


# disks


class SmallDisk:
    """A folder on a disk of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.filler = folder / ".filler"

    def free(self) -> int:
        """Bytes that can still be written."""
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    def fill(self, left: int) -> None:
        """Leave this many bytes, rounded down to whole blocks of 4 KiB."""
        self.make_space()
        with self.filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(self.free() - left, 1))

    def make_space(self) -> None:
        self.filler.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk(tmp_path: Path, megabytes: float) -> Iterator[SmallDisk]:
    """A disk of this size (a tmpfs) at `tmp_path/disk`; skips the test where mounting is not permitted."""
    import pytest

    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size={int(megabytes * 1024)}k"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:  # lazily: a process may still have a file open there
        subprocess.run(["umount", "--lazy", folder], check=True)


# the command


def kill(alone: bool) -> None:
    if alone:
        os.kill(os.getpid(), signal.SIGKILL)
    os.killpg(0, signal.SIGKILL)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        epilog="N counts from 1 and is 1 where it is left out; 3+ is the third time and each one after it. ERRNO is "
        "a name, ENOSPC, or a number. A fault that never happened is named at the end.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kill", action="append", default=[], metavar="MODULE:FUNCTION[:N[:before|after]]")
    parser.add_argument("--kill-after", type=float, metavar="SECONDS")
    parser.add_argument("--fail", action="append", default=[], metavar="MODULE:FUNCTION:N:ERRNO")
    parser.add_argument("--fail-write", action="append", default=[], metavar="N:ERRNO[:GLOB]")
    parser.add_argument("--alone", action="store_true", help="kill this process only, not its children")
    parser.add_argument("arguments", nargs="+", metavar="ARGUMENT", help="of peft-flow, after --")
    return parser


def times(text: str) -> tuple[int, bool]:
    """`3` and `3+`: the number, and whether each later time counts too."""
    return int(text.removesuffix("+")), text.endswith("+")


def error_number(text: str) -> int:
    return int(text) if text.isdecimal() else int(getattr(errno, text))


def install(options: argparse.Namespace, stack: contextlib.ExitStack) -> list[Fault]:
    faults = []
    for text in options.kill:
        module, function, *rest = text.split(":")
        when = rest[1] if len(rest) > 1 else "before"
        if when not in ("before", "after"):
            raise SystemExit(f"--kill {text}: before or after, not {when}")
        fault = Fault(f"--kill {text}", *times(rest[0] if rest else "1"))
        stack.callback(patch(module, function, at(fault, lambda: kill(options.alone), when == "after")))
        faults.append(fault)
    for text in options.fail:
        module, function, number, code = text.split(":")
        error = OSError(error_number(code), os.strerror(error_number(code)))
        faults.append(stack.enter_context(fail_nth(module, function, times(number)[0], error, times(number)[1])))
    for text in options.fail_write:
        number, code, *globs = text.split(":", 2)
        glob = globs[0] if globs else "*"
        fault = stack.enter_context(fail_write(times(number)[0], error_number(code), glob, times(number)[1]))
        faults.append(fault)
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    if not options.alone and os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    with contextlib.ExitStack() as stack:
        faults = install(options, stack)
        if options.kill_after is not None:
            timer = threading.Timer(options.kill_after, kill, (options.alone,))
            timer.daemon = True
            timer.start()
            stack.callback(timer.cancel)
        from flows.cli import main as run

        code = run(options.arguments)
    for fault in faults:
        if not fault.happened:
            print(f"tests.faults: never happened: {fault.name}; {fault.calls} calls", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
