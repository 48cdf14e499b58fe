"""The verdict in words."""

from collections.abc import Sequence
from typing import Protocol

from tasks.base.records import Comparison, Rung
from tasks.base.verdict import capital
from tasks.base.words import counted, format_p, markdown_table, plain, short_p, shown
from tasks.scores.objective import Metric, Objective, objective, reference_title, short_reference_title
from tasks.settings.config import RunConfig
from tasks.settings.rivals import TITLES, in_a_sentence


class Judged(Protocol):
    """A comparison, of one run or of several."""

    @property
    def task(self) -> str: ...


def title_of(result: Judged, name: str) -> str:
    """What people call a rung of the ladder in tables."""
    return reference_title(objective(result.task), name)


def name_of(result: Judged, name: str) -> str:
    """The same in a sentence."""
    return in_a_sentence(reference_title(objective(result.task), name))


def short_title(result: Judged, name: str) -> str:
    """The same where there is little room."""
    return short_reference_title(objective(result.task), name)


def headline(config: RunConfig, result: Comparison) -> str:
    """What the verdict rests on: the adapter and the reference that it is about."""
    lead, percent = result.lead(result.against), f"{100 * config.evaluation.confidence:g} %"
    task, metric = objective(result.task), objective(result.task).metrics[0]
    ours, theirs = (metric.shown(result.rung(name).primary.value) for name in ("tuned", result.against))
    strongest = ", the strongest reference" if result.against == result.rivals[0] else ""
    return (
        f"{capital(metric.title)}{metric.direction} on {counted(result.rows, 'test row')} is {ours}: "
        f"{shown(lead.primary, f'{percent} interval ')} against "
        f"{name_of(result, result.against)} with {theirs}{strongest} "
        f"({task.test} p {format_p(lead.p_value)})."
    )


def start_of(result: Comparison) -> str:
    """The rung from which tuning moved the model."""
    return "zero_shot" if result.untrained_head and result.knew_before else "baseline"


def step_sentence(result: Comparison) -> str:
    """How far it is from what the foundation model knew: with an untrained head, which knows nothing, what it said when
    it was asked in words. Where that was chance too, or could not be measured, it is only how far chance is."""
    start = start_of(result)
    gain, head = result.lead(start), " with an untrained head" if result.untrained_head else ""
    if start == "zero_shot":
        head = " asked in words (zero-shot)"
    task, metric = objective(result.task), objective(result.task).metrics[0]
    before, after = (metric.shown(result.rung(name).primary.value) for name in (start, "tuned"))
    return (
        f"From the foundation model{head} {metric.title} went from {before} to {after}: {shown(gain.primary)}. "
        f"The adapter {task.flip_words(gain.fixed, gain.broken)} "
        f"({task.test} p {format_p(gain.p_value)})."
    )


def caution(cautions: Sequence[str]) -> str:
    """What a reader of the verdict must know besides, in one sentence; empty where there is nothing."""
    return f"Caution: {'; '.join(cautions)}." if cautions else ""


def description(result: Comparison) -> str:
    """The result in five lines of markdown, the verdict first, for the page of the run.

    They are short: MLflow shows about 90 characters of five lines, and hides the rest.
    """
    start = start_of(result)
    lead, gain = result.lead(result.against).primary, result.lead(start)
    origin = "the foundation model" if start == "baseline" else short_title(result, start)
    task, metric = objective(result.task), objective(result.task).metrics[0]
    before, after = (metric.shown(result.rung(name).primary.value) for name in (start, "tuned"))
    about = f" against {short_title(result, result.against)}" if result.verdict.startswith("better") else ""
    lines = [
        f"**{capital(result.verdict)}**: {metric.title} {after}, {shown(lead)}{about}",
        "Ladder: "
        + ", ".join(f"{short_title(result, rung.name)} {metric.shown(rung.primary.value)}" for rung in result.ladder),
        f"From {origin}: {before} to {after}, {shown(gain.primary)}, p {format_p(gain.p_value)}",
        f"Data: {'; '.join([leak_sentence(result, ['tuned']), *detectable_sentence(result)])}",
        f"{task.calibration_words(result.calibration)}; weakest slice: {plain(weakest_slice(result))}",
    ]
    if result.cautions:
        lines[1:] = [plain(caution(result.cautions)), *lines[1:3], "; ".join(lines[3:])]
    return "  \n".join(lines)  # two spaces: a line break in markdown


def leak_sentence(result: Comparison, names: Sequence[str] = tuple(TITLES)) -> str:
    """How many test rows are in train, and the score without them of those of `names` that were measured."""
    if not result.leaked:
        return f"none of {counted(result.rows, 'test row')} is in train"
    without, metric = result.score_without_leaked, objective(result.task).metrics[0]
    named = ", ".join(
        f"{title_of(result, rung.name)} {metric.shown(without[rung.name])}"
        for rung in result.ladder
        if rung.name in names and rung.name in without
    )
    verb, these = ("is", "it") if result.leaked == 1 else ("are", "them")
    without_these = f"; {metric.title} without {these}: {named}" if named else ""
    return f"{result.leaked:,} of {counted(result.rows, 'test row')} {verb} in train{without_these}"


def detectable_sentence(result: Comparison) -> list[str]:
    """Nothing where the task cannot know it."""
    if not objective(result.task).power_known:
        return []
    if result.detectable is None:
        return ["too few to detect any difference"]
    return [f"detectable difference {result.detectable:.3f}"]


def weakest_slice(result: Comparison) -> str:
    """The slice on which the adapter is worst, in words; small ones do not count."""
    task, large = objective(result.task), [part for part in result.slices if not part.small]
    metric = task.metrics[0]
    if not large:
        return "none has enough rows"
    part = min(large, key=lambda part: metric.sign * part.score.value)
    shown_score, rows = metric.shown(part.score.value), counted(part.rows, "row")
    return f"{slice_title(part.kind, part.name)}, {shown_score} {task.slice_word} {rows}"


def slice_title(kind: str, name: str) -> str:
    """`7 to 10 tokens`, `with negation`, `class good`, `outlet web`."""
    if kind in ("negation", "truncated"):
        return name
    return f"{name} tokens" if kind == "tokens" else f"{kind} {name}"


def ladder_table(result: Comparison) -> str:
    """Every classifier, best first, in tables under 120 characters wide, and what the columns are.

    The first has the metric that decides and two others; a second one the rest, where there are more.
    """
    percent, task = f"{100 * result.confidence:g} %", objective(result.task)
    first, *others = task.metrics
    beside, rest = others[:2], others[2:]
    rows = []
    for rung in result.ladder:
        gain, lead = rung.adapter_gain, ("", "", "")
        if gain:
            lead = (shown(gain.primary, middle=", "), short_p(gain.p_value), gain.verdict)
        rows.append((title_of(result, rung.name), first.bounds(rung.primary), *plain_scores(rung, beside), *lead))
    header = ("classifier", f"{first.short_title} ({percent})", *(metric.short_title for metric in beside))
    tables = [markdown_table((*header, "adapter minus it", "p", "verdict"), rows)]
    if rest:
        rows = [(title_of(result, rung.name), *plain_scores(rung, rest)) for rung in result.ladder]
        tables.append(markdown_table(("classifier", *(metric.short_title for metric in rest)), rows))
    return "\n\n".join([*tables, column_note(task, percent)])


def plain_scores(rung: Rung, metrics: Sequence[Metric]) -> list[str]:
    return [metric.shown(rung.scores[metric.name].value) for metric in metrics]


def column_note(task: Objective, percent: str) -> str:
    """What the columns of the ladder are, where their titles do not say it in full."""
    first = task.metrics[0]
    other_words = [metric for metric in task.metrics if metric.short_title != metric.title]
    named = "".join(f"{metric.short_title}: {metric.title}; " for metric in other_words)
    return f"{named}adapter minus it: {first.title}{first.direction}, with its {percent} interval; p: {task.test}."
