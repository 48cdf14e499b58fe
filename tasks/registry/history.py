"""The life of a registered model: every version with its score, who promoted it and why, and which one was in use."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from tasks.base.records import Interval, Record
from tasks.base.words import counted, markdown_table
from tasks.registry.decisions import settle
from tasks.scores.objective import Metric, first_metrics
from tasks.tracking.asking import RunFacts, run_facts
from tasks.tracking.champions import decisions_about, no_champion
from tasks.tracking.decision import MOVES, Decision, holder, moment, outcome, recorded
from tasks.tracking.deleted import what_is_gone
from tasks.tracking.listing import score_of
from tasks.tracking.versions import CHAMPION, RegisteredVersion, registered_versions


class VersionHistory(Record):
    """One version of a registered model."""

    version: str
    registered: int
    """Milliseconds since 1970."""
    run_id: str | None
    run_deleted: bool = False
    run_name: str
    url: str
    """Of the run in MLflow; empty where the run is gone."""
    metric: str | None
    """The one that decides, of the run's task; None where the run did not measure it."""
    score: Interval | None
    """That of the run's test rows."""
    confidence: float | None
    """Of the interval."""
    test_fingerprint: str | None
    test_rows: str
    """A letter for the test rows: versions that share it were measured on the same ones. Empty where unknown."""
    aliases: tuple[str, ...]
    decisions: tuple[Decision, ...]
    """In order; of a rollback, both versions have it."""


class History(Record):
    """What `peft-flow history --json` prints."""

    name: str
    champion: str | None
    """The version that has the alias now."""
    versions: tuple[VersionHistory, ...]
    """Oldest first."""
    decisions: tuple[Decision, ...]
    """All of them, in order."""
    gone: tuple[str, ...] = ()
    """What was deleted in MLflow, and what to do, in sentences."""

    @property
    def metric(self) -> Metric | None:
        """That of the newest version with a score; None where there is none. Versions of another task have others."""
        measured = [version.metric for version in self.versions if version.metric]
        return first_metrics()[measured[-1]] if measured else None

    @property
    def scores(self) -> dict[str, Interval]:
        """By version, as far as they are scores of `metric`."""
        name = self.metric.name if self.metric else None
        return {version.version: version.score for version in self.versions if version.score and version.metric == name}

    @property
    def confidence(self) -> float | None:
        """That of the intervals of `scores`, where it is the same for all."""
        found = {version.confidence for version in self.versions if version.version in self.scores}
        return found.pop() if len(found) == 1 else None

    @property
    def changes(self) -> list[Decision]:
        """Those that moved the alias `champion`."""
        return [decision for decision in self.decisions if decision.action in MOVES]


def history_of(name: str) -> History:
    """InputError where there is no such model, store or server."""
    settle(name)
    versions = registered_versions(name)
    facts = [run_facts(version.run_id) if version.run_id else None for version in versions]
    letters = letters_of([run.tags.get("test_fingerprint") for run in facts if run])
    return History(
        name=name,
        champion=holder(versions, CHAMPION),
        gone=tuple(what_was_deleted(name, versions, facts)),
        versions=tuple(version_history(*pair, letters) for pair in zip(versions, facts, strict=True)),
        decisions=tuple(decisions_about(versions)),
    )


def what_was_deleted(
    name: str, versions: Sequence[RegisteredVersion], facts: Sequence[RunFacts | None]
) -> Iterator[str]:
    """The champion, its run, and other versions' runs."""
    if lost := no_champion(name, versions, decisions_about(versions)):
        yield lost
    without = [version for version, run in zip(versions, facts, strict=True) if version.run_id and is_deleted(run)]
    for version in without:
        if CHAMPION in version.aliases:
            gone = what_is_gone(str(version.run_id))
            yield f"version {version.version} is champion, and nothing can be compared with it: {gone}"
    if others := ", ".join(version.version for version in without if CHAMPION not in version.aliases):
        yield f"deleted in MLflow: the runs of {others}"


def is_deleted(run: RunFacts | None) -> bool:
    return run is None or run.deleted


def letters_of(fingerprints: Sequence[str | None]) -> dict[str | None, str]:
    """A, B, ... for different test rows in the order in which they came; A2 follows Z."""
    order = dict.fromkeys(fingerprint for fingerprint in fingerprints if fingerprint)
    names = (chr(ord("A") + i % 26) + (str(i // 26 + 1) if i >= 26 else "") for i in range(len(order)))
    return dict(zip(order, names, strict=True))


def version_history(version: RegisteredVersion, run: RunFacts | None, letters: dict[str | None, str]) -> VersionHistory:
    metrics, tags = (run.metrics, run.tags) if run else ({}, {})
    metric, score = score_of(metrics, "tuned")
    confidence = run.parameters.get("evaluation.confidence") if run else None
    return VersionHistory(
        version=version.version,
        registered=version.created,
        run_id=version.run_id,
        run_deleted=bool(version.run_id) and is_deleted(run),
        run_name=run.name if run else "",
        url=run.url if run else "",
        metric=metric,
        score=score,
        confidence=float(confidence) if confidence else None,
        test_fingerprint=tags.get("test_fingerprint"),
        test_rows=letters.get(tags.get("test_fingerprint"), ""),
        aliases=version.aliases,
        decisions=tuple(decision for decision in recorded(version).values() if decision),
    )


# --- for people -------------------------------------------------------------------------------------------------------


def history_text(history: History, links: bool = False) -> str:
    """Tables of the versions and of the champions over time, as markdown; with `links` to MLflow and Prefect."""
    champion = f"version {history.champion} is champion" if history.champion else "none is champion"
    parts = [f"{history.name}: {counted(len(history.versions), 'version')}, {champion}"]
    if history.versions:
        header = ("version", "registered", "run", score_title(history), "test rows", "alias", *DECIDED)
        newest = history.metric
        parts.append(markdown_table(header, [version_row(version, newest, links) for version in history.versions]))
    if len({version.test_rows for version in history.versions if version.test_rows}) > 1:
        parts.append("Versions with different letters were measured on different test rows: do not compare them.")
    if changes := history.changes:
        rows = [(*change_row(change), *decided(change, change.version, links)) for change in changes]
        parts.append(markdown_table(("when", "champion", "before", *DECIDED), rows))
    parts += [f"{sentence[0].upper()}{sentence[1:]}." for sentence in history.gone]
    if history.champion and changes and changes[-1].version != history.champion:
        parts.append(f"Nothing is on record of how {champion}: the alias was changed by hand.")
    return "\n\n".join(parts)


DECIDED = ("decision", "by", "why")

MOST_CHARACTERS = 200
"""Of a reason in a table; MLflow and --json have all of it."""


def score_title(history: History) -> str:
    """With the intervals' confidence, where it is the same for all."""
    if not history.metric:
        return "score"
    title = f"{history.metric.title}{history.metric.direction}"
    return f"{title} ({100 * history.confidence:g} %)" if history.confidence else title


def score_cell(version: VersionHistory, newest: Metric | None) -> str:
    """Of another metric than the newest, its name too."""
    if not version.score or not version.metric:
        return ""
    metric = first_metrics()[version.metric]
    return metric.bounds(version.score) if metric == newest else f"{metric.title} {metric.bounds(version.score)}"


def version_row(version: VersionHistory, newest: Metric | None, links: bool) -> tuple[str, ...]:
    mark = " (deleted)" if version.run_deleted else ""
    run, last = version.run_id or "", version.decisions[-1] if version.decisions else None
    return (
        version.version,
        f"{datetime.fromtimestamp(version.registered / 1000, UTC):%Y-%m-%d %H:%M}",
        (f"[{run[:8]}]({version.url})" if links and version.url else run) + mark,
        score_cell(version, newest),
        version.test_rows,
        ", ".join(version.aliases),
        *(decided(last, version.version, links) if last else ("", "", "")),
    )


def change_row(change: Decision) -> tuple[str, ...]:
    return moment(change.at), change.version, change.previous or ""


def decided(decision: Decision, version: str, links: bool) -> tuple[str, str, str]:
    by, why = decision.by, decision.reason
    if len(why) > MOST_CHARACTERS:
        why = f"{why[: MOST_CHARACTERS - 1]}…"
    if links and decision.flow_run_url:
        by = f"[{by}]({decision.flow_run_url})"
    return outcome(decision, version), by, why
