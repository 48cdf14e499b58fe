"""Find a model or data set, on the Hub or on disk, and pin the exact content that the run will use."""

import glob
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from tasks.config import WHAT_IS_READ, InputError, data_kind
from tasks.disk import causes
from tasks.records import Source, write_text
from tasks.secrets import redact

Kind = Literal["model", "dataset"]
SECTION = {"model": "model", "dataset": "data"}
"""Where a run's configuration names each kind."""

# One second, then two: a Hub that restarts is back by then, and a wrong address is still refused in seconds.
ATTEMPTS = 3
TIMEOUT_SECONDS = 10

SILENT_SECONDS = 30
"""A Hub that has answered nothing for this long is given up: libraries would go on asking for minutes, file by file."""

MOST_FILES = 10_000
"""In a local folder, besides texts, each of which may be a row. Every one is read to know its content."""

REMEMBERED_SECONDS = 300
"""A run asks for the same model and data set several times, and must be told the same; the next run asks anew."""


P = ParamSpec("P")
Loaded = TypeVar("Loaded")


class HubUnreachable(InputError):
    """The Hub did not answer, or broke off, and what was asked for is not in the cache."""


def find(kind: Kind, name: str, revision: str, offline: bool) -> Source:
    """Where `name` is and which content it has now.

    A path that exists is local. Short Hub names (`gpt2`, `rotten_tomatoes`) become full ids. When the Hub does
    not answer, the cached revision is used if there is one.
    Raises InputError when there is no such thing or no access to it, HubUnreachable when asking again may help.
    """
    field = f"{SECTION[kind]}.name"
    if path := local_path(kind, name):
        try:
            return Source(name=str(path.resolve()), revision=content_sha256(path), is_local=True, local_files_only=True)
        except OSError as error:  # no permission
            raise InputError(f"{field}: {error.filename or name} cannot be read: {error.strerror}") from None
    problem = InputError(f"{field}: {name} is not in the local cache and offline is set; run once without offline")
    if not offline:
        limit_waiting()
        try:
            full_name, commit = ask_hub(kind, name, revision, int(time.time() // REMEMBERED_SECONDS))
            return Source(name=full_name, revision=commit, is_local=False, local_files_only=False)
        except ConnectionError as error:
            problem = HubUnreachable(
                f"{field}: {name} is not in the local cache and the Hub cannot be reached ({error}); "
                "check the network or HF_ENDPOINT"
            )
    cached = find_cached(kind, name, revision)
    if not cached:
        raise problem
    return Source(name=cached[0], revision=cached[1], is_local=False, local_files_only=True)


def local_path(kind: Kind, name: str) -> Path | None:
    """The file or folder `name`; None where it is a name on the Hub. InputError for a path that leads nowhere."""
    field = f"{SECTION[kind]}.name"
    try:
        path = Path(name).expanduser()
        if path.exists():
            (check_model_folder if kind == "model" else check_data_path)(path)
            return path
    except OSError as error:  # no permission; a name longer than names can be
        raise InputError(f"{field}: {error.filename or name} cannot be read: {error.strerror}") from None
    except RuntimeError:
        raise InputError(f"{field}: {name} cannot be read: there is no such user; check the path") from None
    if looks_like_path(name):
        raise InputError(f"{field}: there is no file or folder {name}; check the path")
    return None


def check_model_folder(path: Path) -> None:
    """Refuses what is no model before all of it is read: somebody's home folder takes hours."""
    if path.is_file():
        raise InputError(f"model.name: {path} is a file; give the folder that holds config.json and the weights")
    if not (path / "config.json").is_file():
        raise InputError(f"model.name: {path} holds no config.json; give the folder with config.json and the weights")


def check_data_path(path: Path) -> None:
    """Refuses what holds no data before all of it is read, and before a pipe is waited for."""
    if not path.is_file() and not path.is_dir():
        raise InputError(f"data.name: {path} is neither a file nor a folder")
    if path.is_file() and not data_kind(path):
        raise InputError(f"data.name: {no_data_file(path)}")
    if path.is_dir() and not any(data_kind(file) or file.suffix.lower() == ".txt" for file in visible_files(path)):
        raise InputError(f"data.name: {path} holds no file of data; what is read: {WHAT_IS_READ}")


def test_path(name: str) -> Path:
    """Of the test file `name`; InputError where it is no file that can be read."""
    try:
        path = Path(name).expanduser()
        if not path.is_file():
            raise InputError(f"data.test_file: there is no file {name}; check the path")
    except OSError as error:  # no permission; a name longer than names can be
        raise InputError(f"data.test_file: {name} cannot be read: {error.strerror}") from None
    except RuntimeError:
        raise InputError(f"data.test_file: {name} cannot be read: there is no such user; check the path") from None
    if not data_kind(path):
        raise InputError(f"data.test_file: {no_data_file(path)}")
    return path


SHEET, ARCHIVE, COLUMNS = (
    "save it as .xlsx or CSV UTF-8",
    "unpack it, and give the file or folder",
    "if it has columns, rename it to .csv or .tsv",
)
WAYS = {
    **dict.fromkeys((".xls", ".xlsm", ".xlsb", ".ods", ".numbers"), SHEET),
    **dict.fromkeys((".tar", ".tgz", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst"), ARCHIVE),
    **dict.fromkeys((".txt", ".tab", ".dat", ".data"), COLUMNS),
    **dict.fromkeys((".pkl", ".pickle"), "in pandas write it as parquet; a pickle can hide code"),
    **dict.fromkeys((".sqlite", ".sqlite3", ".db"), "write the table as csv or parquet"),
    ".jsonlines": "rename it to .jsonl",
}
"""What to do with other files that people have."""


def no_data_file(path: Path) -> str:
    way = WAYS.get(path.suffix.lower())
    return f"{path} is not a data file; {f'{way}. What' if way else 'what'} is read: {WHAT_IS_READ}"


def looks_like_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~", "\\")) or name.count("/") > 1 or data_kind(name) is not None


@lru_cache
def ask_hub(kind: Kind, name: str, revision: str, time_slice: int) -> tuple[str, str]:
    """Full id and commit of `name`; ConnectionError when the Hub does not answer after a few tries.

    The answer is remembered while `time_slice` stays the same.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    section = SECTION[kind]
    for attempt in range(ATTEMPTS):
        try:
            info = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=timeout_seconds())
            if kind == "model":
                check_format(info.id, file_names(info))
            # leaves the name of the commit in the cache, which is how the next run finds it without the Hub
            hf_hub_download(
                info.id,
                "README.md" if kind == "dataset" else "config.json",
                repo_type=kind,
                revision=revision,
            )
            return info.id, str(info.sha)
        except RemoteEntryNotFoundError:
            return info.id, str(info.sha)
        except GatedRepoError:
            raise InputError(
                f"{section}.name: {name} is gated; accept its terms on the Hub, then run 'hf auth login'"
            ) from None
        except RevisionNotFoundError:
            raise InputError(
                f"{section}.revision: {name} has no revision {revision!r}; branches, tags and commits work"
            ) from None
        except RepositoryNotFoundError:
            raise InputError(
                f"{section}.name: {name} is neither a local path nor on the Hub, or private there; check the spelling"
            ) from None
        except HFValidationError:
            raise InputError(f"{section}.name: {name!r} is neither a Hub id (owner/name) nor a local path") from None
        except OfflineModeIsEnabled:
            raise ConnectionError("HF_HUB_OFFLINE is set") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status < 500 and status != 429:
                raise InputError(f"{section}.name: the Hub refused {name}: {first_line(error)}") from None
            trouble: Exception = error
        except json.JSONDecodeError:
            trouble = ConnectionError(f"what answers at {constants.ENDPOINT} is no Hub")
        except Exception as error:
            if not is_network_trouble(error):
                raise
            trouble = error
        if timed_out(trouble):  # it takes long enough once
            break
        if attempt + 1 < ATTEMPTS:
            time.sleep(2**attempt)
    raise ConnectionError(first_line(trouble)) from None


PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Ends of names of weights that can hide code."""


def check_format(name: str, files: Sequence[str], folder: bool = False) -> None:
    """Refuses a model whose weights are not there as safetensors; InputError says how to come by them."""
    weights = [file for file in files if "/" not in file and file.endswith(PICKLES)]
    if not weights or has_safetensors(files):
        return
    main = max(weights, key=lambda file: file.startswith("pytorch_model"))
    if not folder and (revision := converted_revision(name)):
        raise InputError(
            f"model.name: {name} has its weights as {main} only, which can hide code; as safetensors they are in the "
            f"pull request of the Hub's converter: --model.revision {revision}"
        )
    raise InputError(
        f"model.name: the weights are there as {main} only, which can hide code; if you trust its authors, convert "
        'them once and use --model.name ./converted: python -c "from transformers import AutoModel as M, '
        f"AutoTokenizer as T; n, to = '{name}', 'converted'; "
        'M.from_pretrained(n, use_safetensors=False).save_pretrained(to); T.from_pretrained(n).save_pretrained(to)"'
    )


def converted_revision(name: str) -> str | None:
    """The open pull request in which the Hub's converter put the weights as safetensors; None where none is known."""
    from huggingface_hub import HfApi

    def is_converted(reference: str) -> bool:
        return has_safetensors(file_names(api.repo_info(name, revision=reference, timeout=timeout_seconds())))

    api = HfApi()
    try:
        requests = api.get_repo_discussions(name, author="SFconvertbot", discussion_type="pull_request")
        references = [request.git_reference for request in requests if request.status == "open"]
        return next((found for found in references if found and is_converted(found)), None)
    except Exception:  # whatever keeps the answer away, there is another way to name
        return None


def file_names(info: Any) -> list[str]:
    return [file.rfilename for file in info.siblings or ()]


def has_safetensors(files: Sequence[str]) -> bool:
    return any("/" not in file and file.endswith(".safetensors") for file in files)


def timeout_seconds() -> float:
    """How long the Hub may say nothing: what the user gave its client, if that is more than ours."""
    from huggingface_hub import constants

    return max(TIMEOUT_SECONDS, constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT)


class Silence:
    """How long the Hub has left requests of this process unanswered, and the end of waiting for it."""

    def __init__(self) -> None:
        self.began: float | None = None
        """When the first request was sent that has no answer yet."""
        self.asked = 0.0
        """When the last one was."""

    def end(self, *_: Any) -> None:
        self.began = None

    def request(self, request: Any) -> None:
        """Before each request of the Hub's client, some of which would wait for ever."""
        now, most = time.monotonic(), timeout_seconds()
        if self.began is None or now - self.asked > SILENT_SECONDS:  # long after the last one: try anew
            self.began = now
        if now - self.began >= SILENT_SECONDS:
            raise TimeoutError(f"it has not answered for {now - self.began:.0f} s")
        self.asked = now
        given = request.extensions.get("timeout", {})
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: min(given.get(kind) or most, most) for kind in kinds}


silence = Silence()


@lru_cache
def limit_waiting() -> None:
    """From now on the Hub's client waits `timeout_seconds` for a sign of life, and SILENT_SECONDS in all."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def client() -> Any:
        made = default_client_factory()
        hooks = made.event_hooks
        made.event_hooks = {
            "request": [*hooks["request"], silence.request],
            "response": [*hooks["response"], silence.end],
        }
        return made

    set_client_factory(client)


def patient(load: Callable[Concatenate[Source, P], Loaded]) -> Callable[Concatenate[Source, P], Loaded]:
    """`load(source, ...)`, called again when the Hub broke off: its client itself gives up at the first cut connection
    for most kinds of questions.

    Of what this process has loaded before, all of it is in the cache: from there it comes when the Hub stays away.
    Else nothing is taken from the cache alone, where optional files may be missing that the Hub has.
    """
    whole: set[tuple[str, str]] = set()

    @wraps(load)
    def loaded(source: Source, /, *arguments: P.args, **named: P.kwargs) -> Loaded:
        for attempt in range(ATTEMPTS):
            try:
                answer = load(source, *arguments, **named)
                whole.add((source.name, source.revision))
                return answer
            except HubUnreachable as error:
                trouble = error
            if timed_out(trouble) or not is_network_trouble(trouble):
                break
            if attempt + 1 < ATTEMPTS:
                time.sleep(2**attempt)
        if (source.name, source.revision) in whole:
            return load(source.model_copy(update={"local_files_only": True}), *arguments, **named)
        raise trouble

    return loaded


def is_network_trouble(error: BaseException) -> bool:
    """Whether waiting may help: a refused, cut or timed-out connection, or a server error."""
    return any(isinstance(cause, ConnectionError | TimeoutError) or of_http_client(cause) for cause in causes(error))


def is_silence(error: BaseException) -> bool:
    """Whether nobody answered: who is asked next will not either. An error that a server answers with is none."""
    return timed_out(error) or any(
        isinstance(cause, ConnectionError) or (of_http_client(cause) and SILENT.search(type(cause).__name__))
        for cause in causes(error)
    )


SILENT = re.compile("Connect|Protocol|Read|Write|Network")
"""Names of the errors of HTTP clients where no answer came, or half of one."""


def timed_out(error: BaseException) -> bool:
    return any("Timeout" in type(cause).__name__ for cause in causes(error))


def network_may_recover(task: object, run: object, state: Any) -> bool:
    """Prefect's question whether to retry: yes where the network failed, no where the user or the code is at fault."""
    silence.end()  # the next try has all patience again
    error = state.result(raise_on_failure=False)
    return isinstance(error, HubUnreachable) or (not isinstance(error, InputError) and is_network_trouble(error))


NETWORK: Any = {"retries": 3, "retry_delay_seconds": [2, 4, 8], "retry_condition_fn": network_may_recover}
"""For `@task(...)` of whatever speaks to Hub, MLflow or Prefect: its own tries come first, then these."""


def of_http_client(error: BaseException) -> bool:
    # the Hub client's httpx has been renamed between versions, so its errors are known by their module
    return any(base.__module__.split(".")[0] in ("httpx", "httpx2", "requests") for base in type(error).__mro__)


def find_cached(kind: Kind, name: str, revision: str) -> tuple[str, str] | None:
    """Full id and commit of `name` in the local Hub cache; InputError when a short name fits more than one."""
    from huggingface_hub.constants import HF_HUB_CACHE

    pattern = f"{kind}s--{'' if '/' in name else '*--'}{glob.escape(name.replace('/', '--'))}"
    found = {}
    for folder in sorted(Path(HF_HUB_CACHE).glob(pattern)):
        reference, snapshot = folder / "refs" / revision, folder / "snapshots" / revision
        commit = reference.read_text().strip() if reference.is_file() else revision if snapshot.is_dir() else None
        if commit:
            found["/".join(folder.name.split("--")[1:])] = commit
    if len(found) > 1:
        raise InputError(f"{SECTION[kind]}.name: '{name}' could be {' or '.join(found)}; write the full name")
    return next(iter(found.items()), None)


def note_cached(source: Source, revision: str) -> None:
    """Say in the cache which commit `revision` is, as the Hub client does for files that it asks for by that name.

    `datasets` asks by the commit alone: a data set without a README.md would not be found again without the Hub.
    """
    folder = cached_data(source)
    if revision != source.revision and (folder / "snapshots" / source.revision).is_dir():
        with suppress(OSError):  # a cache that others keep
            reference = folder / "refs" / revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_text(reference, source.revision)


def cached_data(source: Source) -> Path:
    """Where the Hub client keeps this data set: `refs` by name, `snapshots` by commit."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"datasets--{source.name.replace('/', '--')}"


def content_sha256(path: Path) -> str:
    """`sha256:` over names and bytes of the file, or of each file in the folder."""
    total = hashlib.sha256()
    for file in [path] if path.is_file() else visible_files(path):
        total.update(f"{file.relative_to(path) if file != path else file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return f"sha256:{total.hexdigest()}"


def visible_files(folder: Path) -> list[Path]:
    """Every file in `folder` and below, in order, without those whose path has a part that starts with a dot,
    and those that Excel writes beside a file that is open.

    Raises InputError where they are so many that this is another folder than was meant, and for what is no file: a
    library that opens a pipe waits for ever.
    """
    files, count = [], 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]  # .git alone may hold more files, and sockets
        for path in (Path(place, name) for name in names if not name.startswith((".", "~$"))):  # ~$: open in Excel
            if path.is_file():
                files.append(path)
                count += path.suffix.lower() != ".txt"
            elif path.exists():
                raise InputError(f"{path} is a pipe or device, not a file; remove it")
        if count > MOST_FILES:
            raise InputError(
                f"{folder} holds more than {MOST_FILES:,} files; give the model's or data set's own folder"
            )
    return sorted(files)


def first_line(error: BaseException | str) -> str:
    """What an error says first; with the next line where that only announces it."""
    first, *others = (redact(str(error)).strip() or type(error).__name__).splitlines()  # before half of one is cut off
    return (f"{first} {others[0].strip()}" if first.endswith(":") and others else first)[:200]
