"""Trials that differ only by seed, as one: which are better than which, and which are worth what they cost."""

import json
from collections.abc import Mapping, Sequence
from math import comb
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.base.records import Interval
from tasks.base.sweeps import SweepResult, Trial
from tasks.base.verdict import capital
from tasks.base.words import counted, decimals, listed, markdown_table, plain
from tasks.scores.groups import Contrast, Group, contrasts, means, measured, on_front
from tasks.scores.objective import Metric, objective
from tasks.scores.statistics import bootstrap
from tasks.settings.config import SweepConfig
from tasks.studies.trials import unpacked
from tasks.studies.values import marked, values_words

if TYPE_CHECKING:
    import numpy as np


class Cost(NamedTuple):
    metric: str
    """Of a trial, as in MLflow."""
    title: str
    short_title: str


COSTS = (
    Cost("adapter/trainable_parameters", "trained parameters", "parameters"),
    Cost("cost/train_seconds", "seconds of training", "seconds"),
    Cost("cost/adapter_mb", "MB of the adapter on disk", "MB"),
)

MOST_GROUPS = 100
"""That are tested against each other, the best ones: each has a line of the table."""


class Contender(NamedTuple):
    """A configuration, with all its seeds."""

    values: dict[str, Any]
    """Of the fields that vary, without the seed."""
    trials: tuple[Trial, ...]
    """That came to their end."""
    score: float
    """Mean over the seeds, on the validation rows."""
    interval: Interval | None
    """None where answers are missing."""
    costs: tuple[float | None, ...]
    """Means, in the order of COSTS."""
    fronts: tuple[bool, ...]
    """For each cost, whether no other is better for as little."""
    beats: tuple[int, ...]
    """Places of those that it is significantly better than."""


class Shootout(NamedTuple):
    metric: Metric
    confidence: float
    validation_rows: int
    seeds: int
    """That most configurations have."""
    contenders: tuple[Contender, ...]
    """Best first."""
    tested: int
    """How many of them were compared: those with answers, at most MOST_GROUPS."""
    notes: tuple[str, ...]

    @property
    def numbers(self) -> list[int]:
        return numbers_of([one.trials for one in self.contenders])


def compare_groups(config: SweepConfig, result: SweepResult, labels: "np.ndarray") -> Shootout:
    """What the finished trials say together; `labels`, (rows, ...), are those that their answers are about."""
    metric = metric_of(result)
    groups = sorted(grouped(result.trials), key=lambda one: -metric.sign * score_of(one))
    complete, tables = answered(groups, labels)
    tested = complete[:MOST_GROUPS]
    intervals, pairs = judge(config, result, [groups[place] for place in tested], tables, labels, len(complete))
    found = dict(zip(tested, intervals, strict=True))
    beats = better_than(metric, pairs, tested, 1 - result.confidence)
    costs = [tuple(mean([trial.outcome.metrics.get(cost.metric) for trial in one]) for cost in COSTS) for one in groups]
    goodness = [metric.sign * score_of(one) for one in groups]
    fronts = list(
        zip(*(front(goodness, [all_of[place] for all_of in costs]) for place in range(len(COSTS))), strict=True)
    )
    contenders = (
        Contender(
            without_seed(one[0]),
            tuple(one),
            score_of(one),
            found.get(place),
            costs[place],
            fronts[place],
            tuple(beats.get(place, [])),
        )
        for place, one in enumerate(groups)
    )
    return Shootout(
        metric=metric,
        confidence=result.confidence,
        validation_rows=result.validation_rows,
        seeds=max(map(len, groups), default=0),
        contenders=tuple(contenders),
        tested=len(tested),
        notes=tuple(notes(result, groups, complete)),
    )


def metric_of(result: SweepResult) -> Metric:
    """Of the validation rows."""
    return next(one for one in objective(result.task).metrics if one.name == result.metric)


def without_seed(trial: Trial) -> dict[str, Any]:
    return {field: value for field, value in trial.values.items() if field != "seed"}


def grouped(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Finished trials with the same values but for the seed; of one that was tried twice, the first."""
    found: dict[str, dict[Any, Trial]] = {}
    for trial in trials:
        if trial.outcome.state == "finished" and trial.outcome.score is not None:
            name = json.dumps(without_seed(trial), sort_keys=True, default=str)
            found.setdefault(name, {}).setdefault(trial.values.get("seed"), trial)
    return [list(same.values()) for same in found.values()]


def score_of(group: Sequence[Trial]) -> float:
    return sum(trial.outcome.score or 0.0 for trial in group) / len(group)


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def answers(trial: Trial, labels: "np.ndarray") -> "np.ndarray | None":
    """None where they are missing, or about other rows."""
    table = unpacked(trial.outcome.answers) if trial.outcome.answers else None
    return table if table is not None and len(table) == len(labels) else None


def answered(groups: Sequence[Sequence[Trial]], labels: "np.ndarray") -> "tuple[list[int], dict[int, np.ndarray]]":
    """Places of the groups whose answers were all kept; of the best of them the answers, by number of the trial."""
    complete: list[int] = []
    tables: dict[int, np.ndarray] = {}
    for place, one in enumerate(groups):
        found = {trial.number: table for trial in one if (table := answers(trial, labels)) is not None}
        if len(found) == len(one):
            complete.append(place)
            tables |= found if len(complete) <= MOST_GROUPS else {}
    return complete, tables


def judge(
    config: SweepConfig,
    result: SweepResult,
    groups: Sequence[Sequence[Trial]],
    tables: "Mapping[int, np.ndarray]",
    labels: "np.ndarray",
    complete: int,
) -> tuple[list[Interval], list[Contrast]]:
    """The mean of each group with its interval, and each pair, of which there were more if groups were left out."""
    if not groups:
        return [], []
    task, metric = objective(result.task), metric_of(result)
    trials = [trial for one in groups for trial in one]
    places = {trial.number: place for place, trial in enumerate(trials)}
    drawn = bootstrap(
        task, labels, [tables[trial.number] for trial in trials], config.evaluation.bootstrap_samples, config.seed
    ).drawn[:, :, task.metrics.index(metric)]
    found = measured([trial.outcome.score or 0.0 for trial in trials], drawn, len(labels))
    members = [
        Group(
            tuple(places[trial.number] for trial in one), tuple(trial.values.get("seed", config.seed) for trial in one)
        )
        for one in groups
    ]
    ends = [
        one.model_copy(update={"low": max(metric.least, one.low), "high": min(metric.most, one.high)})
        for one in means(found, members, result.confidence)
    ]
    return ends, contrasts(found, members, result.confidence, comb(complete, 2))


def better_than(metric: Metric, pairs: Sequence[Contrast], tested: Sequence[int], level: float) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for pair in pairs:
        if pair.p_value < level:
            better, worse = (
                (pair.first, pair.second) if metric.sign * pair.difference.value > 0 else (pair.second, pair.first)
            )
            found.setdefault(tested[better], []).append(tested[worse])
    return found


def front(goodness: Sequence[float], costs: Sequence[float | None]) -> list[bool]:
    """Pareto's front of those whose cost is known."""
    known = [place for place, cost in enumerate(costs) if cost is not None]
    members = on_front([goodness[place] for place in known], [costs[place] or 0.0 for place in known])
    best = {place for place, member in zip(known, members, strict=True) if member}
    return [place in best for place in range(len(costs))]


def notes(result: SweepResult, groups: Sequence[Sequence[Trial]], complete: Sequence[int]) -> list[str]:
    found, numbers = [], numbers_of(groups)
    if missing := [numbers[place] for place in range(len(groups)) if place not in set(complete)]:
        found.append(
            f"Without interval and test, because not all of their answers about the validation rows were kept: "
            f"#{listed(missing)}."
        )
    if len(complete) > MOST_GROUPS:
        found.append(f"Only the best {MOST_GROUPS} of {len(complete):,} were tested against each other.")
    most = max((len(one) for one in groups), default=0)
    if most == 1:
        found.append("Each has one seed: intervals and tests are about other rows, not about other seeds.")
    elif fewer := [number for number, one in zip(numbers, groups, strict=True) if len(one) < most]:
        found.append(f"Fewer seeds than the {most} of the others: #{listed(fewer)}.")
    if result.picked_on < result.validation_rows:
        found.append(
            f"Intervals and tests rest on the answers that were kept, about {result.picked_on:,} of the "
            f"{counted(result.validation_rows, 'validation row')}; they are wider than all rows would make them."
        )
    return found


def numbers_of(groups: Sequence[Sequence[Trial]]) -> list[int]:
    """What people find each by: where each is one trial, its number; else its place, from 1 on."""
    alone = all(len(one) == 1 for one in groups)
    return [one[0].number if alone else place for place, one in enumerate(groups, 1)]


# --- words -----------------------------------------------------------------------------------------------------------


def worth_a_table(config: SweepConfig, result: SweepResult) -> bool:
    """Whether configurations were laid out to be compared, by several seeds or as a grid, not to find a good one."""
    return "seed" in result.fields or config.sampler == "grid"


def shootout_markdown(found: Shootout) -> str:
    """What the table says, the table, and what it rests on."""
    percent = f"{100 * found.confidence:g} %"
    over, seeds, paired = (
        ("the mean over the seeds, ", " and other seeds", " and seeds") if found.seeds > 1 else [""] * 3
    )
    said = (
        f"{capital(found.metric.title)} is on {counted(found.validation_rows, 'validation row')}, {over}with its "
        f"{percent} interval: how far it would change with other rows{seeds}. On the front are those that nothing "
        "beats at the same cost or less."
    )
    if found.tested > 1:
        said += (
            f" Better means significantly better than those, all {counted(comb(found.tested, 2), 'pair')} together at "
            f"{percent}: tests on the same rows{paired}, corrected after Holm."
        )
    return "\n\n".join([front_sentence(found), shootout_table(found), said, *map(plain, found.notes)])


def front_sentence(found: Shootout) -> str:
    first, *others = found.contenders
    who = f"Best is {marked(values_words(first.values))}, with {found.metric.title} {score_words(found, first)}"
    if not others:
        return f"{who}; there is nothing to compare it with."
    if len(first.beats) == len(others):
        return f"{who}, significantly better than all others."
    if not first.beats:
        return f"{who}, but not shown better than any other."
    return f"{who}, significantly better than {len(first.beats):,} of the {len(others):,} others."


def score_words(found: Shootout, one: Contender) -> str:
    if not one.interval:
        return found.metric.shown(one.score)
    return f"{found.metric.shown(one.score)} ({' to '.join(found.metric.ends(one.interval))})"


def shootout_table(found: Shootout) -> str:
    shown, numbers = found.contenders[:MOST_GROUPS], found.numbers
    header = (
        "trial" if found.seeds == 1 else "#",
        "configuration",
        found.metric.title + found.metric.direction,
        "seeds",
        *(cost.title for cost in COSTS),
        "on the front of",
        "better than",
    )
    rows = [
        (
            f"{number}",
            marked(values_words(one.values)),
            score_words(found, one),
            f"{len(one.trials)}",
            *(cost_words(cost) for cost in one.costs),
            ", ".join(cost.short_title for cost, on in zip(COSTS, one.fronts, strict=True) if on) or "-",
            better_words([numbers[place] for place in one.beats]),
        )
        for number, one in zip(numbers, shown, strict=False)  # of the best
    ]
    more = len(found.contenders) - len(shown)
    return markdown_table(header, rows) + (f"\n\nAnd {more:,} more that are no better." if more else "")


def cost_words(cost: float | None) -> str:
    return "-" if cost is None else f"{cost:,.{decimals(cost)}f}"


MOST_NAMED = 4
"""So many places are named in a cell; of more, how many they are."""


def better_words(numbers: Sequence[int]) -> str:
    if len(numbers) > MOST_NAMED:
        return f"{len(numbers)} others"
    return ", ".join(f"#{number}" for number in numbers) or "-"
