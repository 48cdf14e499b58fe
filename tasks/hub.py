"""Find a model or data set, on the Hub or on disk, and pin the exact content that the run will use."""

import glob
import hashlib
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tasks.config import DATA_FILES, InputError
from tasks.records import Source

Kind = Literal["model", "dataset"]
SECTION = {"model": "model", "dataset": "data"}
"""Where a run's configuration names each kind."""

# One second, then two: a Hub that restarts is back by then, and a wrong address is still refused in seconds.
ATTEMPTS = 3
TIMEOUT_SECONDS = 10

REMEMBERED_SECONDS = 300
"""A run asks for the same model and data set several times, and must be told the same; the next run asks anew."""


class HubUnreachable(InputError):
    """The Hub did not answer and what was asked for is not in the cache."""


def find(kind: Kind, name: str, revision: str, offline: bool) -> Source:
    """Where `name` is and which content it has now.

    A path that exists is local. Short Hub names (`gpt2`, `rotten_tomatoes`) become full ids. When the Hub does
    not answer, the cached revision is used if there is one.
    Raises InputError when there is no such thing or no access to it, HubUnreachable when asking again may help.
    """
    field, path = f"{SECTION[kind]}.name", Path(name).expanduser()
    if path.exists():
        if kind == "model" and path.is_file():
            raise InputError(f"{field}: {name} is a file; give the folder that holds config.json and the weights")
        return Source(name=str(path.resolve()), revision=content_sha256(path), is_local=True, local_files_only=True)
    if looks_like_path(name):
        raise InputError(f"{field}: there is no file or folder {name}; check the path")
    problem = InputError(f"{field}: {name} is not in the local cache and offline is set; run once without offline")
    if not offline:
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


def looks_like_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~", "\\")) or name.count("/") > 1 or name.endswith(DATA_FILES)


@lru_cache
def ask_hub(kind: Kind, name: str, revision: str, time_slice: int) -> tuple[str, str]:
    """Full id and commit of `name`; ConnectionError when the Hub does not answer after a few tries.

    The answer is remembered while `time_slice` stays the same.
    """
    from huggingface_hub import HfApi, hf_hub_download
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
            info = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT_SECONDS)
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
                f"{section}.name: {name} is no local path and not on the Hub, or private there; check the spelling"
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
        except Exception as error:
            if not is_network_trouble(error):
                raise
            trouble = error
        if "Timeout" in type(trouble).__name__:  # it takes long enough once
            break
        if attempt + 1 < ATTEMPTS:
            time.sleep(2**attempt)
    raise ConnectionError(first_line(trouble)) from None


def is_network_trouble(error: BaseException) -> bool:
    """Whether waiting may help: a refused, cut or timed-out connection, or a server error."""
    causes: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in causes:
        causes.append(current)
        current = current.__cause__ or current.__context__
    return any(isinstance(cause, ConnectionError | TimeoutError) or of_http_client(cause) for cause in causes)


def network_may_recover(task: object, run: object, state: Any) -> bool:
    """Prefect's question whether to retry: yes where the network failed, no where the user or the code is at fault."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, HubUnreachable) or (not isinstance(error, InputError) and is_network_trouble(error))


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


def content_sha256(path: Path) -> str:
    """`sha256:` over names and bytes of the file, or of each file in the folder."""
    total = hashlib.sha256()
    for file in [path] if path.is_file() else visible_files(path):
        total.update(f"{file.relative_to(path) if file != path else file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return f"sha256:{total.hexdigest()}"


def visible_files(folder: Path) -> list[Path]:
    """Every file in `folder` and below, in order, without those whose path has a part that starts with a dot."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(file for file in files if not any(part[0] == "." for part in file.relative_to(folder).parts))


def first_line(error: BaseException | str) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
