"""Finding a model or data set: on disk, on the Hub (a stand-in speaks its protocol), in the cache."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
import requests
from huggingface_hub import errors

from tasks.base import trouble
from tasks.base.trouble import is_network_trouble, is_silence
from tasks.settings.fields import InputError
from tasks.sources import hub, local
from tasks.sources.hub import HubUnreachable, find
from tasks.sources.local import content_sha256
from tests.conftest import ROOT, SHARED, Hub, sentences

COMMIT = "0123456789abcdef0123456789abcdef01234567"


# on disk


def test_existing_path_is_local_and_pinned_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reviews.csv").write_text("text,label\n")
    monkeypatch.chdir(tmp_path)
    source = find("dataset", "reviews.csv", "main", offline=False)
    assert (source.name, source.is_local) == (str(tmp_path / "reviews.csv"), True)
    assert source.revision == content_sha256(tmp_path / "reviews.csv")
    assert find("dataset", str(tmp_path / "reviews.csv"), "main", offline=True) == source


def test_content_is_names_and_bytes_of_visible_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.csv").write_text("1")
    (folder / "sub/b.csv").write_text("2")
    first = content_sha256(folder)
    (folder / ".cache").mkdir()
    (folder / ".cache/x").write_text("3")
    assert content_sha256(folder) == first
    assert content_sha256(folder.rename(tmp_path / "moved")) == first
    (tmp_path / "moved/sub/b.csv").write_text("3")
    changed = content_sha256(tmp_path / "moved")
    (tmp_path / "moved/sub/b.csv").rename(tmp_path / "moved/sub/c.csv")
    assert len({first, changed, content_sha256(tmp_path / "moved")}) == 3


@pytest.mark.parametrize("name", ["/no/such", "./gone", "../gone", "~/gone", "a/b/c", "reviews.csv", "a/b.parquet"])
def test_path_that_does_not_exist_is_never_asked_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ask_hub", lambda *_: pytest.fail("the Hub was asked"))
    with pytest.raises(InputError, match="no file or folder"):
        find("dataset", name, "main", offline=False)


# in the cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`cache("models--a--b")`: put an empty repository at COMMIT into an otherwise empty Hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def add(folder: str) -> None:
        (tmp_path / folder / "refs").mkdir(parents=True)
        (tmp_path / folder / "refs/main").write_text(COMMIT)
        (tmp_path / folder / "snapshots" / COMMIT).mkdir(parents=True)

    return add


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_cached_model_is_found_offline_by_either_name(name: str, revision: str, cache: Callable[[str], None]) -> None:
    cache("models--openai-community--gpt2")
    cache("models--openai-community--gpt2-medium")
    cache("datasets--someone--gpt2")
    source = find("model", name, revision, offline=True)
    assert (source.name, source.revision) == ("openai-community/gpt2", COMMIT)
    assert source.local_files_only and not source.is_local


def test_short_name_of_two_cached_models_is_refused_offline(cache: Callable[[str], None]) -> None:
    cache("models--a--gpt2")
    cache("models--b--gpt2")
    with pytest.raises(InputError, match="a/gpt2 or b/gpt2"):
        find("model", "gpt2", "main", offline=True)
    assert find("model", "b/gpt2", "main", offline=True).name == "b/gpt2"


@pytest.mark.parametrize(("name", "revision"), [("gpt", "main"), ("gpt2", "v2"), ("*", "main"), ("a/gpt2", "main")])
def test_what_is_not_cached_is_refused_offline(name: str, revision: str, cache: Callable[[str], None]) -> None:
    cache("models--openai-community--gpt2")
    with pytest.raises(InputError, match=r"^model.name: .* not in the local cache and offline is set") as refused:
        find("model", name, revision, offline=True)
    assert not isinstance(refused.value, HubUnreachable)  # which Prefect would try again


# what the Hub may answer


def refusal(kind: type[errors.HfHubHTTPError], status: int = 404) -> errors.HfHubHTTPError:
    response: Any = SimpleNamespace(headers={}, status_code=status, request=None)
    return kind(f"{status} of the Hub\nwith more lines", response=response)


@pytest.fixture
def hub_raises(monkeypatch: pytest.MonkeyPatch, cache: Callable[[str], None]) -> Callable[[Exception], list[float]]:
    """`hub_raises(error)`: every question to the Hub ends in it; returns the pauses that were made."""
    pauses: list[float] = []

    def answer(error: Exception) -> list[float]:
        def repo_info(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
        monkeypatch.setattr(trouble.time, "sleep", pauses.append)
        return pauses

    return answer


PICKLE_ONLY = [".gitattributes", "config.json", "pytorch_model.bin", "tf_model.h5", "onnx/model.safetensors"]
CONVERTED = [*PICKLE_ONLY, "model.safetensors"]


def request_to_pull(number: int, status: str = "open") -> Any:
    return SimpleNamespace(git_reference=f"refs/pr/{number}", status=status)


@pytest.mark.parametrize(
    ("requests", "says"),
    [
        ([request_to_pull(3, "closed"), request_to_pull(5), request_to_pull(7)], "--model.revision refs/pr/7"),
        ([request_to_pull(3, "closed"), request_to_pull(5)], "convert them once"),
        ([], "n, to = 'a/b', 'converted'; M.from_pretrained(n, use_safetensors=False)"),
        (OSError("no answer"), "convert them once"),
    ],
    ids=["converted", "not converted yet", "nobody asked", "Hub does not say"],
)
def test_model_on_the_hub_without_safetensors_is_refused_with_the_way_to_them(
    requests: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repo_info(self: Any, name: str, revision: str, **_: Any) -> Any:
        files = CONVERTED if revision == "refs/pr/7" else PICKLE_ONLY
        return SimpleNamespace(id=name, sha=COMMIT, siblings=[SimpleNamespace(rfilename=file) for file in files])

    def discussions(self: Any, name: str, author: str, **_: Any) -> Any:
        assert author == "SFconvertbot", "anybody else may have put other weights there"
        if isinstance(requests, Exception):
            raise requests
        return iter(requests)

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(huggingface_hub.HfApi, "get_repo_discussions", discussions)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: "")
    hub.ask_hub.cache_clear()
    with pytest.raises(InputError, match=re.escape(says)) as error:
        find("model", "a/b", "main", offline=False)
    assert "pytorch_model.bin only, which can hide code" in str(error.value)
    assert find("model", "a/b", "refs/pr/7", offline=False).revision == COMMIT


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (refusal(errors.GatedRepoError, 403), "data.name: a/b is gated; accept its terms"),
        (refusal(errors.RepositoryNotFoundError), "data.name: a/b is neither a local path nor on the Hub"),
        (refusal(errors.RevisionNotFoundError), "data.revision: a/b has no revision 'v9'"),
        (refusal(errors.HfHubHTTPError, 403), "data.name: the Hub refused a/b: 403 of the Hub"),
        (errors.HFValidationError("bad name"), "data.name: 'a/b' is neither a Hub id"),
    ],
)
def test_refusal_by_the_hub_is_reported_at_once(error: Exception, says: str, hub_raises: Any) -> None:
    pauses = hub_raises(error)
    with pytest.raises(InputError, match=f"^{re.escape(says)}") as refused:
        find("dataset", "a/b", "v9", offline=False)
    assert not isinstance(refused.value, HubUnreachable) and not pauses


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (refusal(errors.HfHubHTTPError, 503), [1, 2]),
        (refusal(errors.HfHubHTTPError, 429), [1, 2]),
        (ConnectionRefusedError("refused"), [1, 2]),
        (TimeoutError("too slow"), []),  # one wait of that kind is long enough
    ],
)
def test_hub_that_does_not_answer_is_asked_again_and_then_the_cache_serves(
    error: Exception, expected: list[int], hub_raises: Any, cache: Callable[[str], None]
) -> None:
    pauses = hub_raises(error)
    with pytest.raises(HubUnreachable, match=r"^model.name: a/b .*cannot be reached.*HF_ENDPOINT"):
        find("model", "a/b", "main", offline=False)
    assert pauses == expected
    cache("models--a--b")
    assert find("model", "a/b", "main", offline=False).revision == COMMIT


def test_offline_mode_of_the_hub_client_is_respected_without_waiting(hub_raises: Any) -> None:
    pauses = hub_raises(errors.OfflineModeIsEnabled("offline"))
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE"):
        find("model", "a/b", "main", offline=False)
    assert not pauses


@pytest.mark.parametrize("error", [PermissionError("cache is not writable"), ZeroDivisionError("a bug")])
def test_trouble_that_is_not_the_networks_is_not_blamed_on_it(error: Exception, hub_raises: Any) -> None:
    hub_raises(error)
    with pytest.raises(type(error)):
        find("model", "a/b", "main", offline=False)


def test_network_trouble_is_recognized_behind_other_errors() -> None:
    try:
        try:
            raise ConnectionResetError("reset")
        except ConnectionResetError as error:
            raise ValueError("could not read") from error
    except ValueError as outer:
        assert is_network_trouble(outer)
    assert is_network_trouble(refusal(errors.HfHubHTTPError, 503))
    assert not is_network_trouble(ValueError("malformed"))


# the real client against the stand-in; it reads its address when it is imported, hence the child processes

CHILD = """
import json, sys, time
from pathlib import Path
from tasks.base import environment
from tasks.data import prepare as data
from tasks.models import foundation as model
from tasks.settings.fields import InputError
from tasks.settings.loading import validated
from tasks.sources import hub

hub.PAUSES = 0.1, 0.2
for line in sys.argv[2:]:
    config, started, answer = validated(json.loads(line)), time.monotonic(), {}
    try:
        prepared = data.prepare(config, Path(sys.argv[1]))
        tokenizer = model.load_tokenizer(prepared.model, config.model)
        model.load_foundation(prepared.model, config, prepared.label_names, tokenizer)
        answer = {"prepared": prepared.model_dump()}
    except InputError as error:
        answer = {"error": type(error).__name__, "says": str(error)}
    print(json.dumps({**answer, "seconds": time.monotonic() - started}))
"""

LIMITS = {"max_length": 64, "max_train_rows": 32, "max_test_rows": 16}
SHORT = {"model": {"name": "gpt2-tiny"}, "data": {"name": "rotten_tomatoes", **LIMITS}}
FULL = {
    "model": {"name": "openai-community/gpt2-tiny"},
    "data": {"name": "cornell-movie-review-data/rotten_tomatoes", **LIMITS},
}
CODES = {**FULL, "data": {"name": "people/codes", "max_length": 64}}
"""A data set on the Hub that lies there as csv."""


def prepare_in_child(url: str, home: Path, work: Path, *configs: dict[str, Any]) -> list[dict[str, Any]]:
    """What `prepare` and loading the weights gave for each configuration, in one process with this Hub and cache."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(work), *map(json.dumps, configs)],
        env=os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf-home")


@pytest.fixture(scope="module")
def first_answers(hub_root: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """With an empty cache: full names, a short data set name, and two names that do not exist.

    The Hub stumbles: its first two answers are 503, and each larger file breaks off once in the middle.
    """
    codes = hub_root / "datasets/people/codes/train.csv"
    codes.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(*sentences(6), strict=True)
    codes.write_text("text,label\n" + "".join(f"{text},0{label + 1}00\n" for text, label in rows))
    stumbling = Hub(hub_root, "--fail-first", "2", "--cut", "100000")
    try:
        return prepare_in_child(
            stumbling.url,
            home,
            tmp_path_factory.mktemp("work"),
            FULL,
            {**FULL, "data": SHORT["data"]},
            {**FULL, "model": {"name": "nobody/nothing"}},
            {**FULL, "data": {"name": "nobody/nothing"}},
            CODES,
        )
    finally:
        stumbling.stop()


@pytest.fixture(scope="module")
def silent_url() -> Iterator[str]:
    """An address of this machine where nothing listens."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.hub
def test_hub_that_stumbles_is_asked_again(first_answers: list[dict[str, Any]], hub_root: Path) -> None:
    assert (hub_root / "models/openai-community/gpt2-tiny/model.safetensors").stat().st_size > 100_000
    assert "prepared" in first_answers[0], first_answers[0]


@pytest.mark.hub
def test_hub_names_are_pinned_to_a_commit_that_lies_in_the_cache(
    first_answers: list[dict[str, Any]], home: Path
) -> None:
    model = first_answers[0]["prepared"]["model"]
    assert model["name"] == "openai-community/gpt2-tiny" and not model["local_files_only"]
    assert re.fullmatch("[0-9a-f]{40}", model["revision"])
    assert (home / "hub/models--openai-community--gpt2-tiny/snapshots" / model["revision"]).is_dir()


@pytest.mark.hub
def test_short_hub_name_is_the_same_data_set(first_answers: list[dict[str, Any]]) -> None:
    assert first_answers[1]["prepared"] == first_answers[0]["prepared"]
    assert first_answers[0]["prepared"]["label_names"] == ["neg", "pos"]


@pytest.mark.hub
def test_csv_on_the_hub_is_text_as_on_this_machine(first_answers: list[dict[str, Any]]) -> None:
    assert first_answers[4]["prepared"]["label_names"] == ["0100", "0200"]


@pytest.mark.hub
def test_name_that_the_hub_does_not_know_is_refused(first_answers: list[dict[str, Any]]) -> None:
    for answer, field in zip(first_answers[2:4], ("model.name", "data.name"), strict=True):
        assert answer["error"] == "InputError"
        assert answer["says"].startswith(f"{field}: nobody/nothing is neither a local path nor on the Hub")


@pytest.mark.hub
def test_same_rows_from_csv_files_have_the_fingerprint_of_the_hub_data_set(
    first_answers: list[dict[str, Any]], foundation: Any, tmp_path: Path
) -> None:
    import pandas as pd

    from tasks.data.prepare import prepare
    from tasks.settings.loading import validated

    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        frame = pd.read_parquet(SHARED / f"data/rotten_tomatoes/{split}.parquet")
        frame["label"] = frame["label"].map({0: "neg", 1: "pos"})
        frame.to_csv(tmp_path / f"data/{split}.csv", index=False)
    config = validated({"model": {"name": str(foundation("gpt2"))}, "data": {"name": str(tmp_path / "data"), **LIMITS}})
    assert prepare(config, tmp_path / "work").fingerprint == first_answers[0]["prepared"]["fingerprint"]


@pytest.mark.hub
def test_without_the_hub_the_cache_serves_what_was_used_before(
    first_answers: list[dict[str, Any]], silent_url: str, home: Path, tmp_path: Path
) -> None:
    uncached = {**FULL, "model": {"name": "openai-community/gpt2"}}
    offline = {"offline": True}
    configs = FULL, {**SHORT, **offline}, CODES, uncached, {**uncached, **offline}
    answers = prepare_in_child(silent_url, home, tmp_path, *configs)
    for answer, first in zip(answers, (0, 0, 4), strict=False):
        assert "prepared" in answer, answer
        before, prepared = first_answers[first]["prepared"], answer["prepared"]
        assert prepared["model"] == {**before["model"], "local_files_only": True}
        assert prepared["fingerprint"] == before["fingerprint"]
        assert prepared["class_counts"] == before["class_counts"]
    unreachable, absent = answers[3:]
    assert unreachable["error"] == "HubUnreachable" and "the Hub cannot be reached" in unreachable["says"]
    assert absent["error"] == "InputError" and "offline is set" in absent["says"]
    assert max(seconds := [answer["seconds"] for answer in answers]) < 30, seconds


@pytest.mark.hub
def test_hub_that_never_recovers_is_refused_by_the_command_in_one_line(hub_root: Path, tmp_path: Path) -> None:
    failing = Hub(hub_root, "--fail-first", "1000")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "finetune", "--model.name", "gpt2", "--data.name", "rotten_tomatoes"],
            cwd=tmp_path,
            env=os.environ | {"HF_ENDPOINT": failing.url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        failing.stop()
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and "data.name: rotten_tomatoes" in done.stderr and "503" in done.stderr


def test_hidden_files_are_nobodys_business(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .git of its own holds thousands of files, and a socket where an editor watches it."""
    monkeypatch.setattr(local, "MOST_FILES", 3)
    (workplace / ".git/objects").mkdir(parents=True)
    for number in range(9):
        (workplace / f".git/objects/{number}").touch()
    os.mkfifo(workplace / ".git/fsmonitor")
    os.mkfifo(workplace / ".pipe")
    (workplace / "sub").mkdir()
    for name in ("b.csv", "a.csv", "sub/c.csv", "~$a.xlsx"):  # the last is Excel's, while a.xlsx is open
        (workplace / name).touch()
    assert [str(file.relative_to(workplace)) for file in local.visible_files(workplace)] == [
        "a.csv",
        "b.csv",
        "sub/c.csv",
    ]
    (workplace / "d.csv").touch()
    with pytest.raises(InputError, match="more than 3 files"):
        local.visible_files(workplace)


@pytest.mark.parametrize(
    ("error", "silent"),
    [
        (ConnectionRefusedError(), True),
        (requests.exceptions.ConnectionError(), True),
        (requests.exceptions.ReadTimeout(), True),
        (httpx.ConnectError(""), True),
        (httpx.RemoteProtocolError(""), True),
        (requests.exceptions.RetryError("too many 500 error responses"), False),
        (httpx.HTTPStatusError("409", request=httpx.Request("GET", "http://h"), response=httpx.Response(409)), False),
        (ValueError("no"), False),
    ],
)
def test_answer_that_is_an_error_is_no_silence(error: Exception, silent: bool) -> None:
    assert is_silence(error) is silent


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("a.xls", "is not a data file; save it as .xlsx or CSV UTF-8. What is read: .csv"),
        ("a.tar.gz", "unpack it"),
        ("a.txt", "if it has columns, rename it to .csv or .tsv"),
        ("a.pkl", "can hide code"),
        ("a.nothing", "is not a data file; what is read: .csv"),
    ],
)
def test_file_of_another_kind_is_refused_with_a_way_to_go_on(name: str, way: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=re.escape(way)):
        find("dataset", str(tmp_path / name), "main", offline=True)
