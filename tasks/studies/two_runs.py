"""Two runs of the store against each other: the paired test between their adapters, and what was set differently."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.base.outcomes import RunComparison, RunScores, StoredRun
from tasks.base.records import Scores
from tasks.base.verdict import Verdict
from tasks.base.words import bounds, counted, format_p, markdown_table, shown, shown_share
from tasks.evaluation.predictions import read_predictions
from tasks.scores.statistics import bootstrap, difference, wilson_interval
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
    rows, labels, tables = zip(*(read_predictions(run.predictions) for run in runs), strict=True)
    if differences := how_rows_differ(runs, rows, labels):
        raise InputError(f"the runs were measured on different test rows: {differences}; compare runs on the same data")
    resampled = bootstrap(labels[0], tables, int(samples), seed=0)
    scores = [
        Scores(accuracy=accuracy, macro_f1=macro_f1, log_loss=log_loss)
        for accuracy, macro_f1, log_loss in resampled.observed.tolist()
    ]
    right = [int((table.argmax(1) == labels[0]).sum()) for table in tables]
    shares = [wilson_interval(count, len(labels[0]), confidence) for count in right]
    return RunComparison(
        rows=len(labels[0]),
        confidence=confidence,
        first=RunScores(run_id=first.run_id, name=first.name, scores=scores[0], accuracy=shares[0]),
        second=RunScores(run_id=second.run_id, name=second.name, scores=scores[1], accuracy=shares[1]),
        difference=difference(labels[0], tables, resampled, (1, 0), confidence),
        parameters=different_parameters(first.parameters, second.parameters),
    )


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
    relabelled = int((labels[0][here] != labels[1][there]).sum())
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
    rows: list[tuple[str, ...]] = [
        (title, bounds(run.accuracy), shown_share(run.scores.macro_f1), f"{run.scores.log_loss:.3f}")
        for title, run in (("first", result.first), ("second", result.second))
    ]
    rows.append(("second minus first", *(shown(value) for value in (delta.accuracy, delta.macro_f1, delta.log_loss))))
    parts = [
        WORDS[delta.verdict].upper(),
        f"first   {result.first.run_id}  {result.first.name}\nsecond  {result.second.run_id}  {result.second.name}",
        markdown_table((counted(result.rows, "test row"), "accuracy", "macro-F1", "log loss (nats)"), rows),
        f"Intervals at {percent}, of the differences by paired bootstrap. Only the second is right on "
        f"{counted(delta.fixed, 'row')}, only the first on {delta.broken:,} (exact McNemar p "
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
