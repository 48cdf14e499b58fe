"""The fault injection itself: each fault strikes where it was told to, and nowhere else."""

import errno
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.faults import UNAVAILABLE, Proxy, SmallDisk, fail_nth, fail_write, full_disk

# the command


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.faults", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{folder}"},
        capture_output=True,
        text=True,
        timeout=60,
    )


BAD = ("--", "finetune", "--model.name", "./no-model")


@pytest.mark.endurance
def test_without_a_fault_it_is_the_command(tmp_path: Path) -> None:
    done = run(*BAD, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("peft-flow: model.name: there is no file or folder ./no-model")


# `find_model` is called as `models.find_model`; of `find` its callers hold copies
@pytest.mark.endurance
@pytest.mark.parametrize(
    "point",
    [
        "tasks.models.foundation:find_model",
        "tasks.sources.hub:find:1:before",
        "tasks.sources.local:looks_like_path:1:after",
    ],
)
def test_process_is_killed_at_the_call(point: str, tmp_path: Path) -> None:
    done = run("--kill", point, *BAD, folder=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert not done.stderr


@pytest.mark.endurance
def test_call_that_is_not_reached_kills_nothing_and_is_named(tmp_path: Path) -> None:
    done = run("--kill", "tasks.sources.hub:find:3", *BAD, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("tests.faults: never happened: --kill tasks.sources.hub:find:3; 2 calls\n")


@pytest.mark.endurance
def test_process_is_killed_after_seconds(tmp_path: Path) -> None:
    code = "import time; from tasks.settings import loading; loading.load_config = lambda *_: time.sleep(60)"
    (tmp_path / "sitecustomize.py").write_text(code)
    started = time.monotonic()
    done = run("--kill-after", "1", "--", "finetune", folder=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert time.monotonic() - started < 30


@pytest.mark.endurance
@pytest.mark.parametrize(("options", "survives"), [([], False), (["--alone"], True)])
def test_children_die_with_it_unless_told_otherwise(options: list[str], survives: bool, tmp_path: Path) -> None:
    code = (
        "import subprocess\nfrom pathlib import Path\nfrom tasks.settings import loading\n"
        "def load(*_):\n"
        "    Path('child').write_text(str(subprocess.Popen(['sleep', '60']).pid))\n"
        "    loading.unknown_field('x')\n"
        "loading.load_config = load\n"
    )
    (tmp_path / "sitecustomize.py").write_text(code)
    point = "tasks.settings.loading:unknown_field:1:after"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults", "--kill", point, *options, "--", "finetune"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
    ) as process:
        assert process.wait(60) == -signal.SIGKILL
    try:
        child = psutil.Process(int((tmp_path / "child").read_text()))
        if not survives:
            child.wait(10)
        alive = child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        alive = False
    assert alive == survives
    if alive:
        child.kill()


@pytest.mark.endurance
def test_call_fails_with_the_error_that_was_asked_for(tmp_path: Path) -> None:
    done = run("--fail", "tasks.sources.hub:find:1:ECONNRESET", *BAD, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "peft-flow: failed: ConnectionResetError: [Errno 104] Connection reset by peer\n"


@pytest.mark.endurance
def test_write_of_the_command_fails(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("text,label\n")
    code = (
        "from pathlib import Path\nfrom tasks.settings import loading\n"
        "loading.load_config = lambda *_: [Path(name).write_text('x') for name in ('a.txt', 'b.txt', 'c.txt')]\n"
    )
    (tmp_path / "sitecustomize.py").write_text(code)
    done = run("--fail-write", f"2:EIO:{tmp_path}/*.txt", "--", "finetune", folder=tmp_path)
    assert done.returncode == 1
    assert "Input/output error" in done.stderr
    assert [(tmp_path / name).exists() for name in ("a.txt", "b.txt", "c.txt")] == [True, True, False]


# in this process


def test_nth_call_fails_in_every_module_that_has_a_copy(tmp_path: Path) -> None:
    from tasks.data import prepare as data
    from tasks.sources import hub

    file = str(tmp_path / "rows.csv")
    Path(file).write_text("text,label\n")

    before = hub.find
    with fail_nth("tasks.sources.hub", "find", 2, OSError(errno.EIO, "broken")) as fault:
        assert data.find("dataset", file, "main", True).is_local
        with pytest.raises(OSError, match="broken"):
            data.find("dataset", file, "main", True)
        assert hub.find("dataset", file, "main", True).is_local
    assert fault.calls == 3
    assert hub.find is before and data.find is before


def test_methods_and_prefect_tasks_fail_too(tmp_path: Path) -> None:
    from tasks.base.records import Place
    from tasks.data.prepare import prepare_data

    with fail_nth("tasks.base.records", "Place.write", 1, OSError("broken")), pytest.raises(OSError, match="broken"):
        Place(split="test", row=1).write(tmp_path / "a")
    Place(split="test", row=1).write(tmp_path / "a")
    function = prepare_data.fn
    with fail_nth("tasks.data.prepare", "prepare_data", 1, OSError("broken")), pytest.raises(OSError, match="broken"):
        prepare_data.fn(None, "")
    assert prepare_data.fn is function


def test_nth_write_fails_and_others_do_not(tmp_path: Path) -> None:
    def write_all() -> list[str]:
        told = []
        for name, write in {
            "text": lambda: (tmp_path / "a.txt").write_text("a"),
            "bytes": lambda: (tmp_path / "b.txt").write_bytes(b"b"),
            "other": lambda: (tmp_path / "c.log").write_text("c"),
            "append": lambda: append(tmp_path / "a.txt"),
            "rename": lambda: (tmp_path / "a.txt").rename(tmp_path / "d.txt"),
            "descriptor": lambda: by_descriptor(tmp_path / "e.txt"),
        }.items():
            try:
                write()
            except OSError as error:
                assert error.errno == errno.ENOSPC
                told.append(name)
        return told

    def append(path: Path) -> None:
        with path.open("a") as file:
            file.write("more")

    def by_descriptor(path: Path) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT)
        try:
            os.write(handle, b"e")
        finally:
            os.close(handle)

    assert write_all() == []
    for number, expected in enumerate(["text", "bytes", "append", "rename", "descriptor"], 1):
        with fail_write(number, glob=f"{tmp_path}/*.txt"):
            assert write_all() == [expected]
    with fail_write(4, glob=f"{tmp_path}/*.txt", ever=True):
        assert write_all() == ["rename", "descriptor"]
    assert write_all() == []


def test_file_whose_write_failed_does_not_get_the_rest_when_it_is_closed(tmp_path: Path) -> None:
    with fail_write(2, glob="*/big"), pytest.raises(OSError), (tmp_path / "big").open("w") as file:
        for _ in range(10):
            file.write("x" * 100_000)
    assert (tmp_path / "big").stat().st_size < 500_000


# the proxy


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(f"{self.path} {len(body)}")
        answer = b"x" * 100_000
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """In front of a server that answers each POST with 100,000 bytes, and whose `seen` says what reached it."""
    Server.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with Proxy(f"http://127.0.0.1:{server.server_port}") as proxy:
        yield proxy
    server.shutdown()
    server.server_close()


class Client:
    """One connection that is kept, and opened again after it was cut."""

    def __init__(self, proxy: Proxy) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)

    def post(self, path: str = "/", size: int = 10) -> int | str:
        """Bytes of the answer, or the name of the error."""
        try:
            self.connection.request("POST", path, b"y" * size)
            return len(self.connection.getresponse().read())
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            return type(error).__name__


GONE = ("RemoteDisconnected", "ConnectionResetError")


def test_proxy_passes_on_what_it_is_not_told_to_break(proxy: Proxy) -> None:
    client = Client(proxy)
    assert [client.post(size=size) for size in (1, 500_000, 3)] == [100_000] * 3
    assert Server.seen == ["/ 1", "/ 500000", "/ 3"]
    assert (proxy.connections, proxy.requests) == (1, 3)
    assert Client(proxy).post() == 100_000
    assert (proxy.connections, proxy.requests) == (2, 4)


def test_request_cut_before_never_reaches_the_server(proxy: Proxy) -> None:
    client, fault = Client(proxy), proxy.cut(2, "before")
    assert client.post("/1") == 100_000
    assert client.post("/2") in GONE
    assert fault.happened
    assert client.post("/3") == 100_000
    assert Server.seen == ["/1 10", "/3 10"]


def test_request_cut_after_was_done_and_nobody_is_told(proxy: Proxy) -> None:
    client = Client(proxy)
    proxy.cut(1, "after", match=b"POST /log")
    assert client.post("/other") == 100_000
    assert client.post("/log", size=300_000) in GONE
    assert client.post("/log") == 100_000
    assert Server.seen == ["/other 10", "/log 300000", "/log 10"]


def test_answer_can_break_off_in_the_middle(proxy: Proxy) -> None:
    proxy.cut(1, 50_000)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
        got = b""
        while part := client.recv(1 << 16):
            got += part
    assert len(got) == 50_000
    assert Client(proxy).post() == 100_000


def test_request_can_be_refused_or_left_without_an_answer(proxy: Proxy) -> None:
    client = Client(proxy)
    proxy.cut(1, UNAVAILABLE)
    client.connection.request("POST", "/1", b"y")
    assert client.connection.getresponse().status == 503
    client.connection.close()
    proxy.cut(1, "silent")
    client.connection.timeout = 0.5
    assert client.post("/2") == "TimeoutError"
    client.connection.timeout = 20
    assert client.post("/3") == 100_000
    assert Server.seen == ["/3 10"]


def test_cut_for_ever_lasts_until_it_is_healed(proxy: Proxy) -> None:
    client = Client(proxy)
    proxy.cut(2, "before", ever=True)
    assert client.post() == 100_000
    assert client.post() in GONE and client.post() in GONE
    proxy.heal()
    assert client.post() == 100_000


def test_server_that_is_down_refuses_and_comes_back_at_the_same_port(proxy: Proxy) -> None:
    client = Client(proxy)
    assert client.post() == 100_000
    for _ in range(3):
        proxy.down()
        assert client.post() in (*GONE, "ConnectionRefusedError", "BrokenPipeError")
        assert client.post() == "ConnectionRefusedError"
        proxy.up()
        assert client.post() == 100_000


def test_answers_can_be_late_and_a_late_one_does_not_hold_up_the_end(proxy: Proxy) -> None:
    client = Client(proxy)
    proxy.delay_seconds = 0.5
    started = time.monotonic()
    assert client.post() == 100_000
    assert 0.5 <= time.monotonic() - started < 10
    proxy.delay_seconds = 86_400
    client.connection.timeout = 1
    client.connection.close()
    assert client.post() == "TimeoutError"
    assert proxy.requests == 2


# disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with full_disk(tmp_path, 2) as disk:
        yield disk


def test_full_disk_is_full_until_there_is_space(disk: SmallDisk) -> None:
    assert 1_900_000 < disk.free() <= 2 << 20
    disk.fill(left=100_000)
    assert 90_000 < disk.free() <= 100_000
    (disk.folder / "fits").write_bytes(bytes(50_000))
    with pytest.raises(OSError) as full:
        (disk.folder / "too-much").write_bytes(bytes(60_000))
    assert full.value.errno == errno.ENOSPC
    disk.fill(left=0)
    assert disk.free() == 0
    disk.make_space()
    (disk.folder / "more").write_bytes(bytes(1_000_000))


def test_full_disk_goes_away(tmp_path: Path) -> None:
    with full_disk(tmp_path, 1) as disk:
        (disk.folder / "file").write_text("x")
        assert os.path.ismount(disk.folder)
    assert not os.path.ismount(disk.folder)
    assert not (disk.folder / "file").exists()
