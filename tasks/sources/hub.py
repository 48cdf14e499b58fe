"""Find a model or data set, on the Hub or on disk, and pin the exact content that the run will use."""

import glob
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from tasks.base.files import write_text
from tasks.base.records import Source
from tasks.base.trouble import ask_again, first_line, is_network_trouble, timed_out
from tasks.settings.fields import InputError
from tasks.sources.local import SECTION, Kind, content_sha256, local_path

# One second, then two: a Hub that restarts is back by then, and a wrong address is still refused in seconds.
PAUSES = (1.0, 2.0)

TIMEOUT_SECONDS = 10

SILENT_SECONDS = 30
"""A Hub that has answered nothing for this long is given up: libraries would go on asking for minutes, file by file."""

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


@lru_cache
def ask_hub(kind: Kind, name: str, revision: str, time_slice: int) -> tuple[str, str]:
    """Full id and commit of `name`; ConnectionError when the Hub does not answer after a few tries.

    The answer is remembered while `time_slice` stays the same.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    def may_help(error: Exception) -> bool:
        if isinstance(error, InputError | OfflineModeIsEnabled) or timed_out(error):  # a timeout takes long enough once
            return False
        return isinstance(error, json.JSONDecodeError) or is_network_trouble(error)

    try:
        return ask_again(lambda: answer_of_hub(kind, name, revision), PAUSES, may_help)
    except OfflineModeIsEnabled:
        raise ConnectionError("HF_HUB_OFFLINE is set") from None
    except json.JSONDecodeError:
        raise ConnectionError(f"what answers at {constants.ENDPOINT} is not a Hub") from None
    except Exception as error:
        if isinstance(error, InputError) or not is_network_trouble(error):
            raise
        raise ConnectionError(first_line(error)) from None


def answer_of_hub(kind: Kind, name: str, revision: str) -> tuple[str, str]:
    """As `ask_hub`, asked once; InputError for what no other try would change."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    section = SECTION[kind]
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
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status < 500 and status != 429:
            raise InputError(f"{section}.name: the Hub refused {name}: {first_line(error)}") from None
        raise


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


def broke_off(error: Exception) -> bool:
    return isinstance(error, HubUnreachable) and is_network_trouble(error) and not timed_out(error)


def patient(load: Callable[Concatenate[Source, P], Loaded]) -> Callable[Concatenate[Source, P], Loaded]:
    """`load(source, ...)`, called again when the Hub broke off: its client itself gives up at the first cut connection
    for most kinds of questions.

    Of what this process has loaded before, all of it is in the cache: from there it comes when the Hub stays away.
    Else nothing is taken from the cache alone, where optional files may be missing that the Hub has.
    """
    whole: set[tuple[str, str]] = set()

    @wraps(load)
    def loaded(source: Source, /, *arguments: P.args, **named: P.kwargs) -> Loaded:
        def ask() -> Loaded:
            answer = load(source, *arguments, **named)
            whole.add((source.name, source.revision))
            return answer

        try:
            return ask_again(ask, PAUSES, broke_off)
        except HubUnreachable as error:
            trouble = error
        if (source.name, source.revision) in whole:
            return load(source.model_copy(update={"local_files_only": True}), *arguments, **named)
        raise trouble

    return loaded


def network_may_recover(task: object, run: object, state: Any) -> bool:
    """Prefect's question whether to retry: yes where the network failed, no where the user or the code is at fault."""
    silence.end()  # the next try has all patience again
    error = state.result(raise_on_failure=False)
    return isinstance(error, HubUnreachable) or (not isinstance(error, InputError) and is_network_trouble(error))


NETWORK: Any = {"retries": 3, "retry_delay_seconds": [2, 4, 8], "retry_condition_fn": network_may_recover}
"""For `@task(...)` of whatever speaks to Hub, MLflow or Prefect: its own tries come first, then these."""


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
