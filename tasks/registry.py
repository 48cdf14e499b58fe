"""Which version of a registered model is in use: promoted, kept out or rolled back, with a reason, whole or not at all.

MLflow has no transaction over aliases and tags. So there is one lock for each name, and a note on disk before the first
call; whoever comes next completes what a kill or an outage broke off.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import EllipsisType

from filelock import FileLock

from tasks.base.progress import warn
from tasks.base.records import digest, read_record
from tasks.base.trouble import first_line, is_network_trouble
from tasks.decision import MOVES, Action, Decision, Note, carry_out, holder, recorded, spoken
from tasks.journal import now
from tasks.settings.config import STORE, InputError
from tasks.settings.secrets import redact
from tasks.tracking import (
    CHAMPION,
    FLOW_RUN_TAG,
    FLOW_RUN_URL_TAG,
    PREVIOUS,
    NoModel,
    Refused,
    RegisteredVersion,
    Renamed,
    check_store,
    download_adapter,
    find_adapter,
    promote_command,
    registered_versions,
    run_facts,
    run_of,
    what_is_gone,
)
from tasks.tracking import reason as why

REGISTRY = STORE / "registry"


class Overtaken(InputError):
    """The champion is not the one any more that the caller compared with."""


def promote(
    name: str,
    version: str,
    reason: str,
    by: str,
    expected: str | EllipsisType | None = ...,
    tags: Mapping[str, str] | None = None,
) -> Decision:
    """`version` becomes champion, and the champion so far `previous`.

    `expected` is the champion that it was compared with (None: there was none): raises Overtaken where another one is
    champion by now. `tags` are those of the flow run that decides. InputError where there is no such version, or where
    it is champion already.
    """
    with held(name) as versions:
        champion = holder(versions, CHAMPION)
        check_version(name, version, versions)
        if expected is not ... and champion != expected:
            raise Overtaken(
                f"{name}: {spoken(champion)} has become champion since the comparison with {spoken(expected)}; nothing "
                f"was changed, compare with {spoken(champion)}"
            )
        if champion == version:
            raise InputError(f"version {version} of {name} is the champion already")
        return decide(name, versions, version, "promoted", reason, by, tags)


def keep(name: str, version: str, reason: str, by: str, tags: Mapping[str, str] | None = None) -> Decision:
    """The record that `version` was judged and not promoted; the champion is kept, where there is one."""
    with held(name) as versions:
        check_version(name, version, versions)
        action: Action = "kept" if holder(versions, CHAMPION) else "rejected"
        return decide(name, versions, version, action, reason, by, tags)


def rollback(name: str, reason: str, by: str, tags: Mapping[str, str] | None = None) -> Decision:
    """The champion before this one is champion again, and the champion so far `previous`.

    The one before by what is on record: what was rolled back from does not come back by another rollback. InputError
    where there is none.
    """
    with held(name) as versions:
        version = before(name, versions)
        lost = lost_champion(versions, decisions_about(versions))
        if lost is not None:
            warn("%s: the champion %s was deleted in MLflow", name, named(lost, versions))
            reason = f"{reason} (the champion {named(lost, versions)} was deleted in MLflow)"
        return decide(name, versions, version, "rolled back", reason, by, tags)


def settle(name: str) -> None:
    """Complete what a kill or an outage broke off; MLflow is asked only where there is something."""
    if notes(name):
        with suppress(NoModel), held(name):
            pass


def decisions(name: str) -> list[Decision]:
    """All decisions about the versions of `name`, in order."""
    settle(name)
    return decisions_about(registered_versions(name))


def decisions_about(versions: Sequence[RegisteredVersion]) -> list[Decision]:
    found = {decision for version in versions for decision in recorded(version).values() if decision}
    return sorted(found, key=lambda decision: decision.at)


# --- who was champion -------------------------------------------------------------------------------------------------


def before(name: str, versions: Sequence[RegisteredVersion]) -> str:
    """The version to go back to; InputError where there is none, or nothing to go back from."""
    decided, champion = decisions_about(versions), holder(versions, CHAMPION)
    there = {version.version for version in versions}
    if (taken_off := lost_champion(versions, decided)) and taken_off in there:
        raise InputError(no_champion(name, versions, decided))
    earlier = [version for version in succession(decided) if version != (champion or taken_off)]
    previous = holder(versions, PREVIOUS)
    if not decided and previous and previous != champion:  # made by hand
        earlier = [previous]
    found = next((version for version in reversed(earlier) if version in there), None)
    if found is None:
        gone = f": {spoken(earlier[-1])} was deleted in MLflow" if earlier else ""
        raise InputError(
            f"{name} has no previous champion to go back to{gone}; promote a version instead "
            f"({promote_command(name, 'VERSION')}{listed(versions)})"
        )
    return found


def succession(decided: Sequence[Decision]) -> list[str]:
    """Versions that were champion, the present one last; what was rolled back from is not among them."""
    line: list[str] = []

    def put_last(version: str | None) -> None:
        line[:] = [*(one for one in line if one != version), *filter(None, [version])]

    for decision in changes(decided):
        put_last(decision.previous)  # somebody may have moved the alias by hand
        if decision.action == "rolled back" and decision.previous:
            line.remove(decision.previous)
        put_last(decision.version)
    return line


def changes(decided: Sequence[Decision]) -> list[Decision]:
    """Those that moved the alias `champion`."""
    return [decision for decision in decided if decision.action in MOVES]


def lost_champion(versions: Sequence[RegisteredVersion], decided: Sequence[Decision]) -> str | None:
    """The version that was champion by what is on record, where none is any more; "" for one that nothing names."""
    if holder(versions, CHAMPION) or not decided:
        return None
    last = decided[-1]
    champion = last.version if last in changes(decided) else last.previous
    # a version's record goes with it: the alias of the one before says that there was one after it
    return "" if champion and champion == holder(versions, PREVIOUS) else champion


def no_champion(name: str, versions: Sequence[RegisteredVersion], decided: Sequence[Decision]) -> str:
    """What became of the champion and what to do, in a sentence; empty where there is one, or never was."""
    lost = lost_champion(versions, decided)
    if lost is None:
        return ""
    if lost in [version.version for version in versions]:
        return (
            f"{name} has no champion any more: the alias was taken off version {lost} in MLflow; give it back "
            f"({promote_command(name, lost)}) or promote another version{listed(versions)}"
        )
    return (
        f"{name} has no champion any more: {named(lost, versions)} was deleted in MLflow; go back to the one before "
        f"(peft-flow rollback {shlex.quote(name)} --reason TEXT) or promote a version{listed(versions)}"
    )


def named(lost: str, versions: Sequence[RegisteredVersion]) -> str:
    return spoken(lost) if lost else f"after version {holder(versions, PREVIOUS)}"


def listed(versions: Sequence[RegisteredVersion]) -> str:
    """`; it has versions 1, 3`"""
    names = [version.version for version in versions[-10:]]
    return f"; it has version{'s' if len(names) > 1 else ''} {', '.join(names)}" if names else ""


def check_champion(name: str, versions: Sequence[RegisteredVersion]) -> None:
    """InputError where there was a champion that is gone, or whose run is: nothing can be compared with it."""
    if gone := no_champion(name, versions, decisions_about(versions)):
        raise InputError(gone)
    for version in versions:
        if CHAMPION in version.aliases and version.run_id and (gone := what_is_gone(version.run_id)):
            raise InputError(
                f"version {version.version}, the champion of {name}, cannot be compared with: {gone}, or promote a "
                "version whose run is there, or give --force"
            )


def fetched_adapter(name: str, folder: Path) -> tuple[Path, str, str]:
    """The adapter that a user calls `name` in `folder`, its version, and its address in MLflow.

    InputError where there is none, which says what became of it, and where the run was deleted that made it: its files
    may be cleaned up any time.
    """
    try:
        uri, version = find_adapter(name)
    except InputError:
        if gone := what_became_of(name):
            raise InputError(f"model: {gone}") from None
        raise
    if (run_id := run_of(uri)) and (gone := what_is_gone(run_id)):
        if run_facts(run_id):
            raise InputError(f"model: {name} cannot be used: {gone}, or choose another version or run")
        warn("%s; the files of %s are all that is left of it", gone, version)
    try:
        return download_adapter(uri, folder), version, uri
    except OSError as error:
        if is_network_trouble(error) or error.errno:
            raise
        raise InputError(f"model: {name} cannot be read: {first_line(error)}; choose another version or run") from error


def what_became_of(name: str) -> str:
    """Of a model that was there and is not any more, by what a user calls it; empty where nothing tells of it."""
    registered, *rest = re.split("[/@]", name.removeprefix("models:/"), maxsplit=1)
    try:
        versions = registered_versions(registered)
    except Renamed as error:
        return str(error)
    except InputError:
        return ""
    return no_champion(registered, versions, decisions_about(versions)) if rest in ([], [CHAMPION]) else ""


# --- one at a time ----------------------------------------------------------------------------------------------------


@contextmanager
def held(name: str) -> Iterator[list[RegisteredVersion]]:
    """The versions of `name` as they are, while nobody else who works in this folder changes them."""
    check_store()
    REGISTRY.mkdir(parents=True, exist_ok=True)
    with FileLock((REGISTRY / f"{digest(name)}.lock").resolve()):
        versions = registered_versions(name)
        for path in notes(name):
            note = read_record(Note, path)
            if note and carry_out(note, versions):
                path.unlink()
                versions = registered_versions(name)
        yield versions


def notes(name: str) -> list[Path]:
    """Oldest first."""
    return sorted(REGISTRY.glob(f"{digest(name)}.*.json"))


def check_version(name: str, version: str, versions: Sequence[RegisteredVersion]) -> None:
    known = [one.version for one in versions]
    if version not in known:
        there = f"it has {', '.join(known[-10:])}" if known else "it has none"
        raise InputError(f"there is no version {version!r:.80} of {name}; {there}")


def decide(
    name: str,
    versions: Sequence[RegisteredVersion],
    version: str,
    action: Action,
    reason: str,
    by: str,
    tags: Mapping[str, str] | None,
) -> Decision:
    """Note the decision, carry it out, and forget the note. It stays where MLflow does not answer on the way."""
    tags = tags or {}
    last = max((decision.at for decision in decisions_about(versions)), default=0)
    decision = Decision(
        name=name,
        version=version,
        action=action,
        reason=redact(" ".join(reason.split())),
        by=by,
        at=max(now(), last + 1),
        previous=holder(versions, CHAMPION),
        flow_run_id=tags.get(FLOW_RUN_TAG),
        flow_run_url=tags.get(FLOW_RUN_URL_TAG),
    )
    note = Note(decision=decision, created=next(one.created for one in versions if one.version == version))
    path = REGISTRY / f"{digest(name)}.{decision.at}.json"
    note.write(path)
    try:
        carry_out(note, versions)
    except Refused:
        path.unlink()
        raise
    except Exception as error:
        raise RuntimeError(
            f"MLflow broke off ({why(error)}) while version {version} of {name} was being {action}; the next "
            "command that asks for this model completes it"
        ) from error
    path.unlink()
    return decision
