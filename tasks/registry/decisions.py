"""Which version of a registered model is in use: promoted, rejected or rolled back, with a reason, whole or not at all.

MLflow has no transaction over aliases and tags. So there is one lock for each name, and a note on disk before the first
call; whoever comes next completes what a kill or an outage broke off.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import EllipsisType

from filelock import FileLock

from tasks.base.progress import warn
from tasks.base.records import digest, read_record
from tasks.settings.fields import InputError
from tasks.settings.fixed import STORE
from tasks.settings.secrets import redact
from tasks.tracking.address import FLOW_RUN_TAG, FLOW_RUN_URL_TAG
from tasks.tracking.champions import decisions_about, listed, lost_champion, named, no_champion, succession
from tasks.tracking.decision import Action, Decision, Note, carry_out, holder, spoken
from tasks.tracking.deleted import what_is_gone
from tasks.tracking.journal import now
from tasks.tracking.opening import check_store
from tasks.tracking.patience import Refused
from tasks.tracking.patience import reason as why
from tasks.tracking.versions import CHAMPION, PREVIOUS, NoModel, RegisteredVersion, promote_command, registered_versions

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
