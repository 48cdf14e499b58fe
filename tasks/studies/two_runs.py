"""Two runs of the store against each other: the paired test between their adapters, and what was set differently."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.base.outcomes import RunComparison, RunScores, StoredRun
from tasks.base.verdict import Verdict
from tasks.base.words import counted, format_p, markdown_table, shown
from tasks.evaluation.predictions import read_predictions
from tasks.scores.objective import Objective, objective
from tasks.scores.statistics import bootstrap, difference, score_intervals
from tasks.settings.fields import InputError
from tasks.settings.sections import EvaluationConfig

if TYPE_CHECKING:
    import numpy as np


WORDS: dict[Verdict, str] = {
    "improved": "the second is better",
    "worse": "the second is worse",
    "no evidence": "no evidence that they differ",
}


def compare_runs(first: StoredRun, second: StoredRun) -> RunComparison:
    """The second adapter minus the first on the same test rows; InputError where the rows are not the same."""
    runs = (first, second)
    confidence, samples = (asked_for(runs, name) for name in ("confidence", "bootstrap_samples"))
    if first.run_id == second.run_id:
        raise InputError(f"both runs are {first.run_id}; name two")
    name, other = (run.parameters.get("data.task", "single_label") for run in runs)
    if name != other:
        raise InputError(f"the runs are of different tasks, {name} and {other}; compare runs of one")
    rows, labels, tables = zip(*(read_predictions(run.predictions) for run in runs), strict=True)
    if differences := how_rows_differ(runs, rows, labels):
        raise InputError(f"the runs were measured on different test rows: {differences}; compare runs on the same data")
    task = objective(name)
    resampled = bootstrap(task, labels[0], tables, int(samples), seed=0)
    scores = []
    for i, table in enumerate(tables):
        intervals = score_intervals(task, resampled.observed[i], resampled.drawn[:, i], confidence)
        if better := task.interval(table, labels[0], confidence):
            intervals[task.metrics[0].name] = better
        scores.append(intervals)
    return RunComparison(
        task=name,
        rows=len(labels[0]),
        confidence=confidence,
        first=RunScores(run_id=first.run_id, name=first.name, scores=scores[0]),
        second=RunScores(run_id=second.run_id, name=second.name, scores=scores[1]),
        difference=difference(task, labels[0], tables, resampled, (1, 0), confidence),
        parameters=different_parameters(first.parameters, second.parameters),
    )


def shown_scores(task: Objective, run: RunScores) -> list[str]:
    """The metric that decides with its interval, and the others."""
    first, *others = task.metrics
    return [first.bounds(run.primary), *(metric.shown(run.scores[metric.name].value) for metric in others)]


def asked_for(runs: Sequence[StoredRun], name: str) -> float:
    """A setting of the runs' own comparisons; where they differ, the stricter one."""
    default = EvaluationConfig.model_fields[name].default
    return max(float(run.parameters.get(f"evaluation.{name}", default)) for run in runs)


def how_rows_differ(
    runs: tuple[StoredRun, StoredRun], rows: tuple["np.ndarray", ...], labels: tuple["np.ndarray", ...]
) -> str:
    """In words, nothing where they do not: `1,066 and 256, 256 row numbers in common, other content`."""
    import numpy as np

    one, other = rows
    common, here, there = np.intersect1d(one, other, return_indices=True)
    differ = labels[0][here].reshape(len(here), -1) != labels[1][there].reshape(len(there), -1)
    relabelled = int(np.any(differ, axis=1).sum())
    found = []
    if not len(one) == len(other) == len(common):
        found.append(f"{len(one):,} and {len(other):,}, {len(common):,} row numbers in common")
    elif not np.array_equal(one, other):
        found.append("the same row numbers in another order")
    if relabelled:
        found.append(f"{relabelled:,} of the common ones with another label")
    if runs[0].test_fingerprint != runs[1].test_fingerprint:
        found.append("other content" if found else "the same row numbers and labels, but other texts or class names")
    return ", ".join(found)


def different_parameters(first: dict[str, str], second: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    pairs = {name: (first.get(name), second.get(name)) for name in sorted(first.keys() | second.keys())}
    return {name: (one, other) for name, (one, other) in pairs.items() if one != other}


def comparison_text(result: RunComparison) -> str:
    """The comparison for a terminal: the verdict, both runs, the difference, and what was set differently."""
    delta, percent = result.difference, f"{100 * result.confidence:g} %"
    task = objective(result.task)
    rows: list[tuple[str, ...]] = [
        (title, *shown_scores(task, run)) for title, run in (("first", result.first), ("second", result.second))
    ]
    rows.append(("second minus first", *map(shown, delta.scores.values())))
    parts = [
        WORDS[delta.verdict].upper(),
        f"first   {result.first.run_id}  {result.first.name}\nsecond  {result.second.run_id}  {result.second.name}",
        markdown_table((counted(result.rows, "test row"), *(metric.title for metric in task.metrics)), rows),
        f"Intervals at {percent}, of the differences by paired bootstrap. Only the second is right on "
        f"{counted(delta.fixed, 'row')}, only the first on {delta.broken:,} ({task.test} p "
        f"{format_p(delta.p_value)}).",
    ]
    if result.parameters:
        differing = [
            (name, *("" if value is None else value for value in pair)) for name, pair in result.parameters.items()
        ]
        parts.append(markdown_table(("parameter", "first", "second"), differing))
    else:
        parts.append("All parameters are the same.")
    return "\n\n".join(parts)
