"""The registered models as a list: which version of each is in use, how good it is, and since when."""

from collections.abc import Sequence
from typing import Any, Literal

from tasks.base.records import Interval, Record
from tasks.base.words import markdown_table
from tasks.registry.history import letters_of, version_history
from tasks.scores.objective import first_metrics
from tasks.tracking.asking import run_facts
from tasks.tracking.champions import changes, decisions_about
from tasks.tracking.decision import holder, moment
from tasks.tracking.versions import CHAMPION, registered_names, registered_versions

Sort = Literal["name", "registered", "score"]


class ListedModel(Record):
    name: str
    versions: int
    registered: int
    """When the newest version was, in milliseconds since 1970."""
    champion: str | None
    """Version that is in use."""
    since: int | None
    """When it became champion, in milliseconds since 1970; None where that is not on record."""
    by: str
    metric: str | None
    """The one that decides, of its run's task."""
    score: Interval | None
    """On the test rows."""
    run_id: str | None
    """That trained the champion."""


def chosen_models(filters: Sequence[str], sort: Sort) -> list[ListedModel]:
    """Those whose name has all of these words; InputError where there is no store, or it does not answer."""
    names = [name for name in registered_names() if all(word.lower() in name.lower() for word in filters)]
    models = [listed(name) for name in names]

    def place(model: ListedModel) -> tuple[Any, ...]:
        if sort == "registered":
            return (-model.registered,)
        if sort == "score" and model.metric and model.score:  # those of other tasks cannot be compared
            return model.metric, -first_metrics()[model.metric].sign * model.score.value
        return "~" if sort == "score" else "", model.name.lower()

    return sorted(models, key=place)


def listed(name: str) -> ListedModel:
    versions = registered_versions(name)
    champion = next((one for one in versions if one.version == holder(versions, CHAMPION)), None)
    facts = run_facts(champion.run_id) if champion and champion.run_id else None
    life = version_history(champion, facts, letters_of([])) if champion else None
    moves = [change for change in changes(decisions_about(versions)) if champion and change.version == champion.version]
    return ListedModel(
        name=name,
        versions=len(versions),
        registered=versions[-1].created if versions else 0,
        champion=champion.version if champion else None,
        since=moves[-1].at if moves else None,
        by=moves[-1].by if moves else "",
        metric=life.metric if life else None,
        score=life.score if life else None,
        run_id=champion.run_id if champion else None,
    )


def models_text(models: Sequence[ListedModel]) -> str:
    if not models:
        return "no registered models"
    rows = [
        (
            model.name,
            str(model.versions),
            model.champion or "none",
            f"{first_metrics()[model.metric].title} {first_metrics()[model.metric].bounds(model.score)}"
            if model.metric and model.score
            else "",
            moment(model.since) if model.since else "",
            model.by,
        )
        for model in models
    ]
    return markdown_table(("name", "versions", "champion", "its score", "since", "by"), rows)
