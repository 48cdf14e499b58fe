"""A decision about a version of a registered model, and how it is put on record in MLflow."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import ValidationError

from tasks.base.events import announce_decision
from tasks.base.records import Record
from tasks.tracking.address import FLOW_RUN_URL_TAG, link_to_prefect
from tasks.tracking.versions import CHAMPION, PREVIOUS, RegisteredVersion, describe_version, set_alias, tag_version

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


def holder(versions: Sequence[RegisteredVersion], alias: str) -> str | None:
    """The version that carries the alias."""
    return next((version.version for version in versions if alias in version.aliases), None)


def spoken(version: str | None) -> str:
    return f"version {version}" if version else "no version"
