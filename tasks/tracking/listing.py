"""The runs that MLflow has: listed for people, and found by what people call them."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from tasks.base.records import Interval, Record
from tasks.base.words import markdown_table
from tasks.scores.objective import first_metrics
from tasks.settings.fields import InputError
from tasks.settings.loading import did_you_mean, nearest_name
from tasks.tracking.address import EXCHANGE_TAG, client, every_page, public_uri, ui
from tasks.tracking.opening import NoRun, check_store
from tasks.tracking.patience import in_one_line
from tasks.tracking.runlist import run_address
from tasks.tracking.trials import STATE_TAG

LATEST = "latest"
"""What people call the newest finished run."""

SHORT = 8
"""Digits of an id, where there is room for the first ones only."""

Kind = Literal["run", "seeds", "learning curve", "sweep", "trial", "prediction", "monitoring"]

PARTIAL = ("trial", "prediction")
"""Kinds that are listed only where they are asked for: a part of a sweep, the files of a prediction on its way."""


class ListedRun(Record):
    run_id: str
    name: str
    experiment: str
    kind: Kind
    """What it is, or stands for."""
    started: int
    """Milliseconds since 1970."""
    seconds: float | None
    """None while it goes on."""
    status: str
    verdict: str
    """Empty where there is none."""
    metric: str | None
    """The one that decides, of the run's task."""
    score: Interval | None
    """On the test rows; of a trial, which has not seen them, on the validation rows."""
    parameters: dict[str, str]
    url: str


def all_runs() -> list[ListedRun]:
    """Newest first; InputError where there is no store, or it does not answer."""
    check_store()
    with in_one_line():
        api = client()
        experiments = {one.experiment_id: one.name for one in api.search_experiments()}
        search = partial(api.search_runs, [*experiments], order_by=["attributes.start_time DESC"])
        return [listed(run, experiments[run.info.experiment_id]) for run in (every_page(search) if experiments else ())]


def listed(run: Any, experiment: str) -> ListedRun:
    info, data = run.info, run.data
    metric, score = score_of(data.metrics, "tuned", "validation")
    return ListedRun(
        run_id=info.run_id,
        name=info.run_name or "",
        experiment=experiment,
        kind=kind_of(data.params, data.tags),
        started=info.start_time,
        seconds=(info.end_time - info.start_time) / 1000 if info.end_time else None,
        status=info.status.lower(),
        verdict=data.tags.get("verdict", ""),
        metric=metric,
        score=score,
        parameters=data.params,
        url=f"{ui()}/{run_address(info.experiment_id, info.run_id)}",
    )


def score_of(metrics: Mapping[str, float], *groups: str) -> tuple[str | None, Interval | None]:
    """The metric that decides, of the run's task, and its value in the first of these groups that has one."""
    for group in groups:
        for name in first_metrics():
            if (value := metrics.get(f"{group}/{name}")) is not None:
                low, high = (metrics.get(f"{group}/{name}_{end}", value) for end in ("low", "high"))
                return name, Interval(value=value, low=low, high=high)
    return None, None


def kind_of(parameters: Mapping[str, str], tags: Mapping[str, str]) -> Kind:
    if tags.get(STATE_TAG):
        return "trial"
    if tags.get(EXCHANGE_TAG):
        return "prediction"
    if "parallel" in parameters:
        return "sweep"
    if "inputs" in parameters:
        return "monitoring"
    if "curve_rows" in parameters:
        return "learning curve"
    return "seeds" if "seeds" in parameters else "run"


def find_run(asked: str) -> str:
    """Id of the run that a user calls so: an id, its first digits, a name, or `latest`.

    A whole id is given back as it is. NoRun where no run is called so, InputError where several are.
    """
    if re.fullmatch("[0-9a-f]{32}", asked):
        return asked
    runs = all_runs()
    if asked == LATEST:
        finished = [run for run in runs if run.kind == "run" and run.status == "finished" and run.verdict]
        if not finished:
            raise NoRun(f"{LATEST}: no run has finished in {public_uri()}")
        return finished[0].run_id
    found = [run for run in runs if run.name == asked]
    if not found and re.fullmatch("[0-9a-f]{4,31}", asked):
        found = [run for run in runs if run.run_id.startswith(asked)]
    if not found:
        hint = did_you_mean(asked, [run.name for run in runs], "peft-flow runs shows them")
        raise NoRun(f"there is no run {asked!r:.100} in {public_uri()}; {hint}")
    if len(found) > 1:
        told = ", ".join(f"{run.run_id[:SHORT]} ({moment(run)})" for run in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise InputError(f"{len(found)} runs are called {asked!r:.100}; give the id of one: {told}{more}")
    return found[0].run_id


def earlier_run_with(adapter_sha256: str, run_id: str) -> ListedRun | None:
    """The first run, another than `run_id`, that trained this very adapter."""
    api = client()
    experiments = {one.experiment_id: one.name for one in api.search_experiments()}
    asked = f"tags.adapter_sha256 = '{adapter_sha256}'"
    found = api.search_runs([*experiments], asked, order_by=["attributes.start_time ASC"], max_results=2)
    others = [run for run in found if run.info.run_id != run_id]
    return listed(others[0], experiments[others[0].info.experiment_id]) if others else None


def moment(run: ListedRun) -> str:
    return f"{datetime.fromtimestamp(run.started / 1000, UTC):%Y-%m-%d %H:%M}"


# --- as a table -------------------------------------------------------------------------------------------------------

FIELDS = ("name", "experiment", "kind", "status", "verdict")
"""Of a run, besides its parameters, that it can be asked for by."""

SORTED_BY = ("started", "seconds", "score", *FIELDS)


def chosen_runs(filters: Sequence[str], sort: str) -> list[ListedRun]:
    """The runs to which all of `filters` apply: FIELD=VALUE, or words of name, id or verdict. Those of kinds in
    PARTIAL only where they are asked for. Newest, longest, best first; by other fields in the order of their values."""
    runs = all_runs()
    names = {*FIELDS, *(name for run in runs for name in run.parameters)}
    for asked in filters:
        field, equals, _ = asked.partition("=")
        if equals and field not in names:
            raise InputError(f"--filter: no run has a field {field!r:.80}; {did_you_mean(field, sorted(names))}")
    if sort not in SORTED_BY and sort not in names:
        nearest = nearest_name(sort, sorted({*SORTED_BY, *names}))
        hint = f"did you mean {nearest}?" if nearest else f"there are {', '.join(SORTED_BY)} and each parameter"
        raise InputError(f"--sort: no run has a field {sort!r:.80}; {hint}")
    with_all = any(asked.partition("=")[0] in ("kind", "trial") for asked in filters)
    found = [run for run in runs if with_all or run.kind not in PARTIAL]
    found = [run for run in found if all(applies(run, asked) for asked in filters)]
    return found if sort == "started" else sorted(found, key=lambda run: place(run, sort))


def value_of(run: ListedRun, field: str) -> str:
    return str(getattr(run, field)) if field in FIELDS else run.parameters.get(field, "")


def applies(run: ListedRun, asked: str) -> bool:
    field, equals, value = asked.partition("=")
    if equals:
        return value_of(run, field).lower() == value.lower()
    return any(asked.lower() in text.lower() for text in (run.name, run.run_id, run.verdict))


def place(run: ListedRun, sort: str) -> tuple[Any, ...]:
    if sort == "seconds":
        return (-(run.seconds or 0.0),)
    if sort == "score":  # those of other tasks cannot be compared
        sign = first_metrics()[run.metric].sign if run.metric else 1
        return run.metric or "~", -sign * run.score.value if run.score else 0.0
    value = value_of(run, sort)
    try:
        return not value, 0, float(value)
    except ValueError:
        return not value, 1, value


def runs_text(runs: Sequence[ListedRun], most: int) -> str:
    """A table of the first `most` runs that fits into 120 characters, and how many there are."""
    if not runs:
        return "no runs"
    rows = [
        (
            run.run_id[:SHORT],
            moment(run),
            f"{first_metrics()[run.metric].short_title} {first_metrics()[run.metric].shown(run.score.value)}"
            if run.metric and run.score
            else "",
            run.verdict or run.status,
            run.name,
        )
        for run in runs[:most]
    ]
    rest = f"\n\n{most} of {len(runs):,} runs; --limit shows more" if len(runs) > most else ""
    return fitted(("run", "started (UTC)", "score", "verdict", "name"), rows) + rest


WIDTH = 120
"""Characters of a line."""


def fitted(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table, with its last column cut where a line would be longer than WIDTH."""
    wide = max(map(len, markdown_table(header, rows).splitlines()))
    longest = max(len(row[-1]) for row in (header, *rows))
    room = max(10, longest - max(0, wide - WIDTH))
    cut = [(*row[:-1], row[-1] if len(row[-1]) <= room else f"{row[-1][: room - 1]}…") for row in rows]
    return markdown_table(header, cut)
