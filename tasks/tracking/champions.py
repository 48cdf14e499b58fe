"""Which versions of a registered model were its champion, by the decisions on record."""

import shlex
from collections.abc import Sequence

from tasks.tracking.decision import MOVES, Decision, holder, recorded, spoken
from tasks.tracking.versions import CHAMPION, PREVIOUS, RegisteredVersion, promote_command


def decisions_about(versions: Sequence[RegisteredVersion]) -> list[Decision]:
    found = {decision for version in versions for decision in recorded(version).values() if decision}
    return sorted(found, key=lambda decision: decision.at)


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
