"""Fresh processes without the six seconds of their imports: a process that never trained has them, and forks.

`python tests/forkserver.py SOCKET` is that process; it ends when its standard input does. `python tests/forkserver.py
SOCKET MODULE ...` is what a test starts in place of `python -P -m MODULE ...`: it hands its own standard streams,
environment and folder to a fork, and ends as the fork ends.
"""

import json
import os
import runpy
import select
import signal
import socket
import sys
import time
from pathlib import Path

SERVED = ("tasks.models.reload", "tasks.models.footprint", "tasks.inference.portable", "tasks.training.launcher")

STANDS_IN = {"tasks.training.launcher": "tests.forked_ranks"}
"""torchrun would start its processes with `python -m`."""

LONGEST = 1 << 20
"""Bytes of one request: the environment and a few names."""


def serve(address: str) -> None:
    import datasets  # noqa: F401
    import pandas  # noqa: F401
    import peft
    import torch
    import transformers  # noqa: F401

    from tasks.models import serving  # noqa: F401

    threads = [(path / "comm").read_text().strip() for path in Path("/proc/self/task").iterdir()]
    assert peft and torch.get_num_threads() == 1 and set(threads[1:]) <= {"jemalloc_bg_thd"}, "threads do not fork"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen()
    os.rename(address + ".new", address)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            keep(connection)
            os._exit(0)
        connection.close()


def keep(connection: socket.socket) -> None:
    """Fork, wait, and tell how it ended; who asked may be killed meanwhile, and then so is the fork."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    said, streams, _, _ = socket.recv_fds(connection, LONGEST, 3)
    while not said.endswith(b"\n"):
        if not (more := connection.recv(LONGEST)):  # who asked was killed while asking
            return
        said += more
    child = os.fork()
    if child == 0:
        connection.close()
        become(json.loads(said), streams)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if ended in ready:
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def become(asked: dict[str, object], streams: list[int]) -> None:
    """What `python -P -m MODULE` would be, which does not return."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    code = 1
    try:
        sys.stdin, sys.stdout, sys.stderr = (open(number, mode) for number, mode in enumerate("rww"))  # noqa: SIM115
        os.environ.clear()
        os.environ.update(asked["environment"])  # type: ignore[call-overload]
        os.chdir(str(asked["folder"]))
        module, *sys.argv[1:] = asked["program"]  # type: ignore[misc]
        sys.argv[0] = module
        runpy.run_module(STANDS_IN.get(module, module), run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ask(address: str, *program: str) -> int:
    """The exit code of the fork; who is killed by a signal is reported as Popen reports it, by dying of it too."""
    with socket.socket(socket.AF_UNIX) as connection:
        begun = time.monotonic()
        while connection.connect_ex(address):  # its imports take a while
            assert time.monotonic() < begun + 120, "the fork server did not start; it has said why"
            time.sleep(0.02)
        asked = {"program": program, "environment": dict(os.environ), "folder": str(Path.cwd())}
        said = json.dumps(asked).encode() + b"\n"
        sent = socket.send_fds(connection, [said], [0, 1, 2])
        connection.sendall(said[sent:])
        for number in range(3):
            os.close(number)  # else nobody reading from the fork would see its end
        code = int(connection.recv(16) or b"1")
    if code < 0:
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    if len(sys.argv) == 2:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        serve(sys.argv[1])
    else:
        sys.exit(ask(*sys.argv[1:]))
