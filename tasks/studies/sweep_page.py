"""A sweep as people read it: what tuning has brought, and what each trial has tried."""

from collections import Counter
from collections.abc import Sequence

from tasks.base.records import Difference, Interval
from tasks.base.sweeps import State, SweepResult, Trial
from tasks.base.verdict import capital
from tasks.base.words import counted, format_p, markdown_table, plain, shown
from tasks.scores.objective import Metric, objective
from tasks.settings.config import SweepConfig
from tasks.studies.shootout import Shootout, metric_of, shootout_markdown, worth_a_table
from tasks.studies.values import marked, short_field, value_words, values_words

MOST_ROWS = 30
"""Of the table of trials: all of them are in MLflow."""

MOST_REASONS = 5
"""Named above the tables."""

ENDINGS: dict[State, str] = {
    "finished": "finished",
    "pruned": "ended early",
    "running": "not ended",
    "failed": "failed",
}
"""In the order of the table."""


def verdict_of(best: int, gain: Difference | None) -> str:
    """In the words of SweepResult.verdict. `best` is the number of the best trial; `gain`, on the test rows, is what it
    has over the configuration as given, and None where that is the best one or failed."""
    if best == 0:
        return "the configuration as given was best"
    said = {"improved": "tuning helped", "worse": "tuning hurt"}
    return said.get(gain.verdict if gain else "", "no evidence that tuning helped")


def sweep_markdown(config: SweepConfig, result: SweepResult, compared: Shootout | None = None) -> str:
    """The whole sweep as a page, for Prefect and MLflow."""
    name = config.name_of(f"sweep, {counted(len(result.trials), 'trial')}")
    parts = [
        f"# {capital(result.verdict)}: {name}",
        headline(result),
        how_they_ended(result),
        choice_table(result),
    ]
    if compared and compared.contenders and worth_a_table(config, result):
        parts += ["## Compared with each other", shootout_markdown(compared)]
    parts += ["## Trials", trials_table(result), runs_sentence(result)]
    return "\n\n".join(parts) + "\n"


# --- sentences -------------------------------------------------------------------------------------------------------


def headline(result: SweepResult) -> str:
    """What tuning has brought, and what each number is worth."""
    return " ".join([validation_sentence(result), test_sentence(result), gain_sentence(result)])


def validation_sentence(result: SweepResult) -> str:
    """The best score, and the same without the luck of having been picked."""
    metric, finished = metric_of(result), result.count("finished")
    scored = (
        f"{metric.title} {metric.shown(result.naive)} on {counted(result.validation_rows, 'validation row')}"
        f"{metric.direction}"
    )
    if finished == 1:
        return f"Only {named(result, result.best)} came to its end, so nothing was picked: it has {scored}."
    rows = "" if result.picked_on == result.validation_rows else f", as {result.picked_on:,} of these rows say"
    return (
        f"The best of {finished:,} finished trials is {named(result, result.best)}: {scored}. It was picked for that "
        f"score, which is too good therefore; a trial picked like this has "
        f"{with_interval(metric, result, result.corrected)} on rows that it was not picked on{rows}."
    )


def named(result: SweepResult, number: int) -> str:
    """Trial 0 is the configuration as given, and of others it matters what they tried."""
    if number == 0:
        return "the configuration as given (trial 0)"
    return f"trial {number} ({marked(values_words(result.trial(number).values))})"


def with_interval(metric: Metric, result: SweepResult, score: Interval) -> str:
    ends = " to ".join(metric.ends(score))
    return f"{metric.shown(score.value)} ({100 * result.confidence:g} % interval {ends})"


def test_sentence(result: SweepResult) -> str:
    metric = objective(result.task).metrics[0]
    rows = counted(result.test_rows, "test row")
    return (
        f"On {rows}, which no trial has seen, it has {metric.title} {with_interval(metric, result, result.best_test)}."
    )


def gain_sentence(result: SweepResult) -> str:
    """Did tuning help? Best against trial 0, on the same test rows."""
    if result.best == 0:
        others = result.count("finished") - 1
        better = f"none of {counted(others, 'other')} was better" if others else "there is no other to compare it with"
        return f"Tuning has found nothing better: {better} on the validation rows."
    if not result.gain or not result.given_test:
        return f"Whether tuning helped cannot be told: {why_not_given(result)}."
    metric = objective(result.task).metrics[0]
    return (
        f"The configuration as given has {metric.shown(result.given_test.value)} on them; the best one minus that is "
        f"{gain_words(result, result.gain)}: {result.verdict}."
    )


def gain_words(result: SweepResult, gain: Difference) -> str:
    interval = shown(gain.primary, f"{100 * result.confidence:g} % interval ")
    direction = objective(result.task).metrics[0].direction
    return f"{interval}{direction}, p {format_p(gain.p_value)}"


def why_not_given(result: SweepResult) -> str:
    given = result.trial(0).outcome
    if given.state == "failed":
        return f"the configuration as given failed ({plain(given.reason) or 'it said no reason'})"
    return "the configuration as given was not measured on the test rows"


def how_they_ended(result: SweepResult) -> str:
    """How many, and why some failed."""
    said = (
        f"Of {counted(len(result.trials), 'trial')}: {counts_words(result.trials)}; {minutes(result.seconds)} in all."
    )
    reasons = Counter(one.outcome.reason for one in result.trials if one.outcome.state == "failed")
    lines = [f"- {count:,} failed: {plain(reason) or 'no reason was told'}" for reason, count in reasons.most_common()]
    more = len(lines) - MOST_REASONS
    return "\n".join(
        [said, "", *lines[:MOST_REASONS], *([f"- and {more:,} more reasons"] if more > 0 else [])]
    ).rstrip()


def counts_words(trials: Sequence[Trial]) -> str:
    counts = Counter(trial.outcome.state for trial in trials)
    return ", ".join(f"{counts[state]:,} {words}" for state, words in ENDINGS.items() if counts[state])


def minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def runs_sentence(result: SweepResult) -> str:
    given = f"; the configuration as given: {result.given_run}" if result.given_run else ""
    return f"Run of the best configuration, with adapter and test rows: {result.best_run}{given}."


def description(result: SweepResult) -> str:
    """The result in a few short lines of markdown, the verdict first, for MLflow's page of the parent."""
    picked, tested = metric_of(result), objective(result.task).metrics[0]
    corrected = f"; not picked for it {picked.bounds(result.corrected)}" if result.count("finished") > 1 else ""
    if result.gain:
        gain = f"Best minus given on {counted(result.test_rows, 'test row')}: {gain_words(result, result.gain)}"
    else:
        gain = gain_sentence(result)
    lines = (
        f"**{capital(result.verdict)}**",
        f"Best: {named(result, result.best)}",
        f"Validation {picked.title}{picked.direction}: {picked.shown(result.naive)}{corrected}",
        f"Test {tested.title}{tested.direction}: {tested.bounds(result.best_test)}",
        gain,
        how_they_ended(result).splitlines()[0],
    )
    return "  \n".join(lines)  # two spaces: a line break in markdown


# --- tables ----------------------------------------------------------------------------------------------------------


def choice_table(result: SweepResult) -> str:
    """What varied: as given, and in the best trial."""
    given, best = result.trial(0).values, result.trial(result.best).values

    def cell(values: dict[str, object], field: str) -> str:
        return marked(value_words(values[field])) if field in values else "-"

    rows = [(short_field(field), cell(given, field), cell(best, field)) for field in result.fields]
    return markdown_table(("field", "as given", f"best (trial {result.best})"), rows)


def trials_table(result: SweepResult, most: int = MOST_ROWS) -> str:
    """The best first, then those that ended early, then those that failed, with the reason."""
    metric, ordered = metric_of(result), best_first(result)
    rows = [
        (
            f"{trial.number}",
            marked(values_words(trial.values)),
            "-" if trial.outcome.score is None else metric.shown(trial.outcome.score),
            f"{max(trial.losses)}" if trial.losses else "-",
            "-" if trial.seconds is None else f"{trial.seconds:,.0f}",
            ending(trial),
        )
        for trial in ordered[:most]
    ]
    header = ("trial", "values", metric.title + metric.direction, "epochs", "seconds", "how it ended")
    return markdown_table(header, rows) + more_sentence(ordered[most:])


def best_first(result: SweepResult) -> list[Trial]:
    order, sign = list(ENDINGS), metric_of(result).sign

    def key(trial: Trial) -> tuple[int, float, int]:
        return order.index(trial.outcome.state), -sign * (trial.outcome.score or 0.0), trial.number

    return sorted(result.trials, key=key)


REASON_CHARACTERS = 120


def ending(trial: Trial) -> str:
    outcome = trial.outcome
    words = ENDINGS[outcome.state]
    reason = " ".join(outcome.reason.split())
    reason = reason if len(reason) <= REASON_CHARACTERS else reason[: REASON_CHARACTERS - 1] + "…"
    return f"{words}: {plain(reason)}" if reason else words


def more_sentence(left: Sequence[Trial]) -> str:
    if not left:
        return ""
    return f"\n\nAnd {counted(len(left), 'more trial')} ({counts_words(left)}): see MLflow."
