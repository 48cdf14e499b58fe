"""A Hub that stumbles, breaks off, falls silent or goes away, at each kind of question that the real client asks it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from tasks.base import trouble
from tasks.base.records import Source
from tasks.settings.fields import InputError
from tasks.sources import hub
from tasks.sources.hub import HubUnreachable, Silence, find, patient
from tests.conftest import ROOT, Hub, rarely, server_variables
from tests.faults import UNAVAILABLE, Fault, Proxy

SOURCE = Source(name="a/b", revision="c" * 40, is_local=False, local_files_only=False)


# what is tried again, and for how long


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr(trouble.time, "sleep", made.append)
    return made


def breaking(*errors: BaseException | None) -> Callable[[Source], str]:
    """Something to load that breaks off with each of these; with None it comes, and what is asked for later too."""
    left = list(errors)

    def load(source: Source) -> str:
        if source.local_files_only:
            return "from the cache"
        if left and (error := left.pop(0)):
            raise HubUnreachable("the Hub broke off") from error
        return "from the Hub"

    return load


def test_what_broke_off_is_loaded_again_after_a_pause(pauses: list[float]) -> None:
    cut = ConnectionResetError("cut")
    assert patient(breaking(cut, cut))(SOURCE) == "from the Hub"
    assert pauses == [1, 2]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError("cut"), [1, 2]),
        (TimeoutError("silent"), []),  # it was waited for long enough
        (ValueError("no network trouble"), []),
    ],
)
def test_what_keeps_breaking_off_is_given_up(error: Exception, expected: list[float], pauses: list[float]) -> None:
    with pytest.raises(HubUnreachable, match="broke off") as given_up:
        patient(breaking(error, error, error))(SOURCE)
    assert given_up.value.__cause__ is error
    assert pauses == expected


def test_only_what_was_loaded_whole_before_comes_from_the_cache(pauses: list[float]) -> None:
    silent = TimeoutError("silent")
    load = patient(breaking(None, silent, silent))
    assert load(SOURCE) == "from the Hub"
    assert load(SOURCE) == "from the cache"
    with pytest.raises(HubUnreachable):
        load(SOURCE.model_copy(update={"revision": "d" * 40}))


def test_silence_ends_after_a_while_and_at_the_next_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((1000.0, 1010.0, 1029.0, 1031.0, 1031.0, 1062.0))
    monkeypatch.setattr(hub.time, "monotonic", lambda: next(clock))
    silence = Silence()
    request = SimpleNamespace(extensions={})
    for _ in range(3):
        silence.request(request)
    with pytest.raises(TimeoutError, match="it has not answered for 31 s"):
        silence.request(request)
    silence.end()
    silence.request(request)
    silence.request(request)  # a last request without an answer long ago says nothing about now


def test_no_request_waits_longer_than_the_user_allows() -> None:
    for given, expected in (({}, 10), ({"read": None, "connect": 5}, 10), ({"read": 60}, 10), ({"read": 3}, 3)):
        request = SimpleNamespace(extensions={"timeout": given})
        Silence().request(request)
        assert request.extensions["timeout"]["read"] == expected
        assert all(request.extensions["timeout"].values())


def test_something_else_that_answers_is_no_hub(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def repo_info(*_: object, **__: object) -> None:
        json.loads("<html>please log in to this network</html>")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    with pytest.raises(HubUnreachable, match=r"what answers at https?://\S+ is not a Hub"):
        find("model", "a/b", "main", offline=False)


# the real client against the stand-in, behind a proxy that misbehaves

CHILD = """
import hashlib, json, os, shutil, sys, time
from tasks.base import environment
from tasks.data import prepare, splits
from tasks.models import foundation as model
from tasks.settings.loading import validated
from tasks.sources import hub
import torch, transformers, datasets, peft, pyarrow.parquet

pause = time.sleep
time.sleep = lambda seconds: pause(seconds / 10)
hub.TIMEOUT_SECONDS, hub.SILENT_SECONDS = 1, 4
limits = {"max_length": 64, "max_train_rows": 32, "max_test_rows": 16}
config = validated({"model": {"name": "openai-community/gpt2-tiny"}, "data": {"name": "rotten_tomatoes", **limits}})

def content():
    rows, found = prepare.check_input(config)
    tokenizer = model.load_tokenizer(found, config.model)
    foundation, _ = model.load_foundation(found, config, ("a", "b"), tokenizer)
    total = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for weights in foundation.state_dict().values():
        total.update(weights.numpy().tobytes())
    total.update(str([split[:] for split in splits.read_splits(rows, config.data).datasets.values()]).encode())
    return {"content": total.hexdigest(), "cached": [rows.local_files_only, found.local_files_only]}

def answer():
    try:
        return content()
    except Exception as error:
        return {"error": type(error).__name__, "says": str(error)}

def command(arguments, folder):
    from flows.cli import main
    answers = os.dup(1)
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), number)
    code = main(arguments)
    sys.stdout.flush()
    said = json.dumps({"code": code, "out": open("out").read(), "err": open("err").read()})
    os.write(answers, (said + "\\n").encode())

print("ready", flush=True)
for line in sys.stdin:
    if json.loads(line)["empty"]:
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
    if os.fork() == 0:
        if arguments := json.loads(line).get("command"):
            command(arguments, json.loads(line)["folder"])
            os._exit(0)
        print(json.dumps(answer()), flush=True)
        if json.loads(line)["twice"]:
            sys.stdin.readline()
            print(json.dumps(answer()), flush=True)
        os._exit(0)
    os.wait()
"""


class Child:
    """A process with the libraries loaded and a Hub cache of its own; it loads model and data as a run does."""

    def __init__(self, url: str, home: Path) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env=os.environ
            | {"HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
            | {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
            | server_variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"

    def load(self, empty: bool = True, twice: bool = False) -> dict[str, Any]:
        """What was loaded, with an empty cache first; `twice`: once more in the same process with `again`."""
        return self.say(json.dumps({"empty": empty, "twice": twice}))

    def again(self) -> dict[str, Any]:
        return self.say("")

    def run(self, *arguments: str, folder: Path) -> dict[str, Any]:
        """Exit code and words of a command of peft-flow in this folder."""
        return self.say(json.dumps({"empty": False, "command": arguments, "folder": str(folder)}))

    def say(self, line: str) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        started = time.monotonic()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer | {"seconds": time.monotonic() - started}

    def files(self) -> dict[str, int]:
        """Size of each downloaded file by its name."""
        return {path.name: path.stat().st_size for path in self.home.rglob("snapshots/*/**/*") if path.is_file()}


@pytest.fixture(scope="module")
def shaky(hub: Hub) -> Iterator[Proxy]:
    with Proxy(hub.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def running_child(shaky: Proxy, tmp_path_factory: pytest.TempPathFactory, prefect_harness: None) -> Iterator[Child]:
    child = Child(shaky.url, tmp_path_factory.mktemp("faults") / "hf")
    yield child
    child.process.kill()
    child.process.wait()


@pytest.fixture
def child(running_child: Child, shaky: Proxy) -> Child:
    shaky.heal()
    return running_child


@pytest.fixture(scope="module")
def content(running_child: Child, shaky: Proxy) -> str:
    """What is loaded when nothing fails."""
    shaky.heal()
    return str(running_child.load()["content"])


def counted(proxy: Proxy, match: bytes) -> Fault:
    """Counts the requests that begin so, and cuts none."""
    return proxy.cut(1_000_000, match=match)


QUESTIONS = (
    b"GET /api/models/openai-community/gpt2-tiny/revision",
    b"HEAD /openai-community/gpt2-tiny/resolve/main/config.json",
    b"tokenizer_config.json",
    b"GET /api/models/openai-community/gpt2-tiny/tree",
    b"special_tokens_map.json",
    b"GET /openai-community/gpt2-tiny/resolve/d330921f932e960a0394863a39bf0ced5af9c8cc/tokenizer.json",
    b"GET /api/datasets/rotten_tomatoes/revision",
    b"resolve/6e4a00b957670b571aaec888f0e90ba794fa51c8/rotten_tomatoes.py",
    b"GET /api/datasets/cornell-movie-review-data/rotten_tomatoes/revision",
    b"dataset_infos.json",
    b"train-00000-of-00001.parquet",
    b"adapter_config.json",
    b"model.safetensors",
)


@pytest.mark.hub
@pytest.mark.parametrize(
    ("fault", "question"),
    [
        ("before", QUESTIONS[-1]),
        *(rarely("before", question) for question in QUESTIONS[:-1]),
        *(rarely(UNAVAILABLE, question) for question in QUESTIONS[5::3]),
    ],
    ids=lambda value: "503" if value == UNAVAILABLE else str(value).rstrip("'").split("/")[-1],
)
def test_one_failure_at_any_question_changes_nothing(
    fault: str | bytes, question: bytes, child: Child, content: str, shaky: Proxy
) -> None:
    failed = shaky.cut(1, fault, match=question)
    answer = child.load()
    assert failed.happened
    assert answer.get("content") == content, answer


@pytest.mark.hub
@pytest.mark.parametrize(
    "name", ["model.safetensors", *map(rarely, ("tokenizer.json", "train-00000-of-00001.parquet"))]
)
def test_half_a_file_is_never_used_and_whole_ones_are_kept(
    name: str, child: Child, content: str, shaky: Proxy, hub_root: Path
) -> None:
    shaky.cut(2, 2000, match=name.encode(), ever=True)  # the first one asks how large it is
    answer = child.load()
    assert answer["error"] == "HubUnreachable"
    assert "the Hub broke off while sending" in answer["says"]
    sizes = {path.name: path.stat().st_size for path in hub_root.rglob("gpt2-tiny/*")}
    sizes |= {path.name: path.stat().st_size for path in hub_root.rglob("rotten_tomatoes/**/*") if path.is_file()}
    kept = child.files()
    is_data = name.endswith(".parquet")  # the data come first: then nothing of the model is there yet
    assert name not in kept and ("README.md" if is_data else "tokenizer_config.json") in kept
    assert all(size == sizes[file] for file, size in kept.items())
    shaky.heal()
    anew, missing = counted(shaky, b"GET /openai-community/gpt2-tiny/resolve/"), counted(shaky, name.encode())
    answer = child.load(empty=False)
    assert answer.get("content") == content, answer
    assert missing.calls >= 2
    assert is_data or anew.calls <= 2, "what was there was downloaded again"


@pytest.mark.hub
@pytest.mark.parametrize(
    "question", [b"train-0", *map(rarely, (b"", b"tokenizer_config.json", b"/tree/", b"model.safetensors"))]
)
def test_hub_that_falls_silent_is_given_up(question: bytes, child: Child, content: str, shaky: Proxy) -> None:
    shaky.cut(1, "silent", match=question, ever=True)
    answer = child.load()
    assert answer.get("error") == "HubUnreachable", answer
    assert answer["seconds"] < 20  # 4 s, and the pauses of the client


@pytest.mark.hub
@pytest.mark.parametrize("fault", ["before", rarely("silent"), rarely(UNAVAILABLE)], ids=["cut", "silent", "503"])
def test_cache_serves_when_the_hub_is_gone(fault: str | bytes, child: Child, content: str, shaky: Proxy) -> None:
    child.load(empty=False)
    shaky.cut(1, fault, ever=True)
    answer = child.load(empty=False)
    assert answer.get("content") == content, answer
    assert answer["cached"] == [True, True]


@pytest.mark.endurance
@pytest.mark.hub
@pytest.mark.parametrize("fault", ["before", "silent"])
def test_hub_that_goes_while_a_run_is_on_is_not_needed(fault: str, child: Child, content: str, shaky: Proxy) -> None:
    assert child.load(twice=True)["content"] == content
    shaky.cut(1, fault, ever=True)
    answer = child.again()
    assert answer.get("content") == content, answer


# the command


def finetune(child: Child, folder: Path, *more: str) -> dict[str, Any]:
    options = {
        "model.name": "openai-community/gpt2-tiny",
        "data.name": "cornell-movie-review-data/rotten_tomatoes",
        "data.max_length": "64",
        "data.max_train_rows": "32",
        "data.max_test_rows": "16",
        "training.max_steps": "2",
        "evaluation.references": "[]",
        "evaluation.bootstrap_samples": "200",
    }
    return child.run("finetune", *(f"--{name}={value}" for name, value in options.items()), *more, folder=folder)


@pytest.mark.hub
def test_hub_that_breaks_off_is_reported_by_the_command_in_one_line(child: Child, shaky: Proxy, tmp_path: Path) -> None:
    shutil.rmtree(child.home, ignore_errors=True)
    shaky.cut(1, "before", match=b"dataset_infos.json", ever=True)
    done = finetune(child, tmp_path)
    assert done["code"] == 2 and done["out"] == ""
    *bars, line = done["err"].splitlines()
    assert line.startswith("peft-flow: data.name: the Hub broke off while sending cornell-movie-review-data")
    assert not any("Error" in bar or "Traceback" in bar for bar in bars)


@pytest.mark.hub
def test_whole_run_works_from_the_cache_with_the_hub_gone(
    child: Child, content: str, shaky: Proxy, tmp_path: Path
) -> None:
    child.load(empty=False)
    shaky.down()
    try:
        done = finetune(child, tmp_path)
    finally:
        shaky.up()
    assert done["code"] == 0, done["err"]
    assert "(the Hub did not answer: " in done["err"]


@pytest.mark.hub
def test_offline_run_asks_no_hub(child: Child, content: str, shaky: Proxy, tmp_path: Path) -> None:
    """Where the libraries were loaded for work online, so that nothing but what they are told keeps them from it."""
    child.load(empty=False)
    asked = shaky.connections
    done = finetune(child, tmp_path, "--offline=true", "--json")
    assert done["code"] == 0, done["err"]
    assert shaky.connections == asked and json.loads(done["out"])["status"] == "finished"


def test_refusal_is_not_tried_again(pauses: list[float]) -> None:
    def refused(source: Source) -> str:
        raise InputError("the Hub refused a/b")

    with pytest.raises(InputError, match="refused"):
        patient(refused)(SOURCE)
    assert not pauses
