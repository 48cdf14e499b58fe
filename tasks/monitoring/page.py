"""What a monitoring has found, for people: the verdict, a page, a few lines for MLflow."""

from collections.abc import Sequence
from pathlib import Path

from tasks.base.files import write_text
from tasks.base.outcomes import DriftTest, MonitorResult
from tasks.base.verdict import capital
from tasks.base.words import counted, markdown_table, plain, short_p, shown_share
from tasks.base.work import RunFolder
from tasks.monitoring.looks import LEAST_ROWS
from tasks.scores.objective import Metric, objective

TITLES = {
    "features": "features of the texts",
    "lengths": "length in tokens, median",
    "labels": "labels given",
    "predictions": "numbers given, median",
    "confidence": "confidence, median",
    "abstentions": "abstentions",
}

MOST_LETTERS = 200
"""Of a text on the page."""


def verdict_of(tests: Sequence[DriftTest], rows: int) -> str:
    if not tests:
        return f"nothing can be said: {counted(rows, 'row')}, and {LEAST_ROWS} are needed"
    found = [test.name for test in tests if test.found]
    return f"drift: {', '.join(found)}" if found else "no drift found"


def metric_of(result: MonitorResult) -> Metric:
    return objective(result.task).metrics[0]


def title_of(result: MonitorResult, test: DriftTest) -> str:
    return TITLES.get(test.name) or metric_of(result).title


def write_page(folder: RunFolder, result: MonitorResult) -> None:
    write_text(folder.staged / PAGE, monitor_page(result))
    write_text(folder.staged / RECORD, result.model_dump_json(indent=2) + "\n")


PAGE, RECORD = "monitoring.md", "monitoring.json"


def monitor_page(result: MonitorResult) -> str:
    """Verdict, tests, what would have been found, and what a reader must know besides."""
    asked = plain(Path(result.inputs).name)
    parts = [
        f"# {capital(result.verdict)}: {plain(result.name)} version {result.version} on {asked}",
        rows_sentence(result),
    ]
    if result.tests:
        parts += [tests_table(result), error_sentence(result)]
    if told := score_sentence(result):
        parts.append(told)
    if result.label_shares:
        parts += ["## Labels given", shares_table(result)]
    if result.strangest:
        parts += ["## Texts that the drift consists of", strangest_list(result)]
    if result.tests:
        parts += ["## What would be found", *power_lines(result)]
    if result.notes:
        parts += ["## To be known", "\n".join(f"- {plain(note)}" for note in result.notes)]
    return "\n\n".join(parts) + "\n"


def rows_sentence(result: MonitorResult) -> str:
    given = f", {result.predicted:,} of them with answers of their own" if result.predicted else ""
    return (
        f"{counted(result.examined, 'recent row')}{given}: their texts beside {result.compared_with} of the "
        "model, its answers beside those about its test rows."
    )


def tests_table(result: MonitorResult) -> str:
    return markdown_table(
        ("what", "recent", "known", "distance", "p", "p, all tests counted", "verdict"),
        [
            (
                title_of(result, test),
                value(result, test, test.recent),
                value(result, test, test.known),
                f"{test.distance:.3f}",
                short_p(test.p_value),
                short_p(test.adjusted_p_value),
                "drift" if test.found else "",
            )
            for test in result.tests
        ],
    )


def value(result: MonitorResult, test: DriftTest, number: float | None) -> str:
    """As people read it."""
    if number is None:
        return ""
    if test.name in ("confidence", "abstentions"):
        return shown_share(number)
    return f"{number:,.4g}" if test.name in TITLES else metric_of(result).shown(number)


def error_sentence(result: MonitorResult) -> str:
    count, percent = len(result.tests), f"{100 * (1 - result.confidence):.3g} %"
    return (
        f"Drift is where p, after Holm for {counted(count, 'test')} together, is at most {1 - result.confidence:.3g}: "
        f"of monitorings without drift at most {percent} find any. The distance is 0 for groups that are alike and 1 "
        "for groups that have nothing in common."
    )


def score_sentence(result: MonitorResult) -> str:
    """Empty where no label came back."""
    if result.score is None:
        return ""
    metric, percent = metric_of(result), f"{100 * result.confidence:g} %"
    score, before = (metric.bounds(one) for one in (result.score, result.test_score))
    return (
        f"{capital(metric.title)} on {counted(result.labelled, 'row')} whose true label came back: {score}, {percent} "
        f"interval; on the test rows: {before}."
    )


def shares_table(result: MonitorResult) -> str:
    rows = sorted(result.label_shares.items(), key=lambda item: -abs(item[1][0] - item[1][1]))
    return markdown_table(
        ("label", "recent", "test rows", "difference"),
        [
            (plain(name), shown_share(recent), shown_share(known), f"{recent - known:+.3f}")
            for name, (recent, known) in rows[:MOST_LABELS]
        ],
    )


MOST_LABELS = 30


def strangest_list(result: MonitorResult) -> str:
    return "\n".join(
        f"- {plain(text[:MOST_LETTERS])}{'…' if len(text) > MOST_LETTERS else ''}" for text in result.strangest
    )


def power_lines(result: MonitorResult) -> list[str]:
    lines = [f"- {title_of(result, test)}: {power_words(test)}" for test in result.tests]
    return ["The smallest drift of each kind that so many rows show in 80 % of cases:", "\n".join(lines)]


def power_words(test: DriftTest) -> str:
    rows = counted(test.recent_rows, "row")
    if test.detectable is None:
        return f"{rows} are too few to show any"
    return f"{100 * test.detectable:.1f} % of {rows} {test.drift}"


def monitor_text(result: MonitorResult) -> str:
    """The result on a terminal."""
    parts = [f"{result.verdict.upper()}  {result.name} version {result.version}", rows_sentence(result)]
    if result.tests:
        parts += [tests_table(result), "\n".join(power_lines(result))]
    parts += [told] if (told := score_sentence(result)) else []
    parts += ["\n".join(result.notes)] if result.notes else []
    return "\n\n".join(parts)


def description(result: MonitorResult) -> str:
    """In a few short lines of markdown for MLflow's page."""
    lines = [f"**{capital(result.verdict)}**", f"{counted(result.examined, 'recent row')} of {result.name} examined"]
    lines += [
        f"{capital(title_of(result, test))}: p {short_p(test.adjusted_p_value)}" for test in result.tests if test.found
    ]
    return "  \n".join([*lines, *filter(None, [score_sentence(result)])])  # two spaces: a line break in markdown
