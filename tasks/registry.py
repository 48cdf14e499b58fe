"""Which version of a registered model is in use: promoted, kept out or rolled back, with a reason, whole or not at all.

MLflow has no transaction over aliases and tags. So there is one lock for each name, and a note on disk before the first
call; whoever comes next completes what a kill or an outage broke off.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import EllipsisType
from typing import Literal

from filelock import FileLock
from pydantic import ValidationError

from tasks.config import STORE, InputError
from tasks.events import announce_decision
from tasks.hub import first_line, is_network_trouble
from tasks.journal import now
from tasks.progress import warn
from tasks.records import Record, digest, read_record
from tasks.secrets import redact
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
    describe_version,
    download_adapter,
    find_adapter,
    link_to_prefect,
    promote_command,
    registered_versions,
    run_facts,
    run_of,
    set_alias,
    tag_version,
    what_is_gone,
)
from tasks.tracking import (
    reason as why,
)

REGISTRY = STORE / "registry"

Action = Literal["promoted", "kept", "rejected", "rolled back"]

MOVES = ("promoted", "rolled back")
"""Actions that move the alias; the others only say that a version was judged."""


class Decision(Record):
    """What was decided about a version, by whom and why."""

    name: str
    version: str
    """The one that was judged; after a rollback, the one that is champion again."""
    action: Action
    """`kept`: the champion was, and this version not promoted; `rejected`: nor was there a champion."""
    reason: str
    by: str
    """`gate`, `force`, `first`, or who it was."""
    at: int
    """Milliseconds since 1970; later than every decision before."""
    previous: str | None
    """The version that was champion before."""
    flow_run_id: str | None = None
    flow_run_url: str | None = None


class Note(Record):
    """A decision that is being carried out."""

    decision: Decision
    created: int
    """When its version was: in another store, which other commands of this folder may use, the number means another."""


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


def holder(versions: Sequence[RegisteredVersion], alias: str) -> str | None:
    """The version that carries the alias."""
    return next((version.version for version in versions if alias in version.aliases), None)


def check_version(name: str, version: str, versions: Sequence[RegisteredVersion]) -> None:
    known = [one.version for one in versions]
    if version not in known:
        there = f"it has {', '.join(known[-10:])}" if known else "it has none"
        raise InputError(f"there is no version {version!r:.80} of {name}; {there}")


def spoken(version: str | None) -> str:
    return f"version {version}" if version else "no version"


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


# --- into MLflow ------------------------------------------------------------------------------------------------------


def carry_out(note: Note, versions: Sequence[RegisteredVersion]) -> bool:
    """Whether the decision is about this store, where it now has taken effect and is on record.

    Every call says how something is to be, so that the same once more changes nothing.
    """
    decision, there = note.decision, {version.version: version for version in versions}
    judged = there.get(decision.version)
    if judged is None or judged.created != note.created:
        return False
    if decision.action in MOVES:
        champion = holder(versions, CHAMPION)
        if champion in (decision.previous, decision.version):
            if decision.previous in there:
                set_alias(decision.name, PREVIOUS, str(decision.previous))
            set_alias(decision.name, CHAMPION, decision.version)
        else:  # somebody has moved the alias by hand since
            overtaken = f"{decision.reason} (overtaken: {spoken(champion)} was made champion before this was complete)"
            decision = decision.model_copy(update={"reason": overtaken})
    for version in concerned(decision):
        if version in there:
            put_on_record(there[version], decision)
    facts = decision.model_dump(exclude={"name", "action"}, exclude_none=True) | {"at": moment(decision.at)}
    announce_decision(decision.action, decision.name, facts)
    return True


def concerned(decision: Decision) -> tuple[str, ...]:
    """Versions that have it on record: of a rollback also the one that was taken out of use."""
    taken_out = decision.previous if decision.action == "rolled back" else None
    return (decision.version, taken_out) if taken_out else (decision.version,)


def put_on_record(version: RegisteredVersion, decision: Decision) -> None:
    """The decision as the newest of the version's tags and description; what people wrote there stays below it."""
    past = recorded(version)
    number = next((n for n, one in past.items() if one == decision), max(past, default=0) + 1)
    tags = {
        f"decision.{number}": decision.model_dump_json(),
        "decision": outcome(decision, version.version),
        "decision.reason": decision.reason,
        "decision.by": decision.by,
        "decision.at": moment(decision.at),
    }
    tag_version(decision.name, version.version, tags)
    text = version.description
    for one in (*past.values(), decision):
        text = text.removeprefix(words(one, version.version)).lstrip() if one else text
    describe_version(
        decision.name, version.version, "\n\n".join(filter(None, (words(decision, version.version), text)))
    )


def recorded(version: RegisteredVersion) -> dict[int, Decision | None]:
    """Decisions on the version's record by their number; None for one that somebody has made unreadable."""
    found: dict[int, Decision | None] = {}
    for tag, value in version.tags.items():
        prefix, _, number = tag.partition(".")
        if prefix == "decision" and number.isdecimal():
            try:
                found[int(number)] = Decision.model_validate_json(value)
            except ValidationError:
                found[int(number)] = None
    return dict(sorted(found.items()))


def outcome(decision: Decision, version: str) -> str:
    """What the decision means for this version, in a word or two."""
    if decision.action == "rolled back" and version == decision.version:
        return "champion again"
    if decision.action == "kept" and not decision.previous:
        return "rejected"  # as older records say it
    return decision.action


def moment(at: int) -> str:
    return f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def words(decision: Decision, version: str) -> str:
    """The decision for the version's page, with the link to the flow run that took it."""
    before, when = spoken(decision.previous), f"on {moment(decision.at)} by {decision.by}: {decision.reason}"
    match outcome(decision, version):
        case "promoted":
            text = f"Promoted {when}  \nChampion before: {before}"
        case "kept" | "rejected":
            text = f"Not promoted {when}  \nChampion: {before}"
        case "champion again":
            text = f"Champion again: {before} was rolled back {when}" if decision.previous else f"Champion again {when}"
        case _:
            text = f"Rolled back {when}  \nChampion again: version {decision.version}"
    link = link_to_prefect({FLOW_RUN_URL_TAG: decision.flow_run_url} if decision.flow_run_url else {})
    return "  \n".join(filter(None, (text, link)))
