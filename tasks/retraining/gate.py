"""Whether a challenger takes the champion's place: the rules, on numbers alone, and the words for what they found."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tasks.base.outcomes import Finding, Footprint, Gate
from tasks.base.records import Comparison, Difference
from tasks.base.words import counted, format_p, markdown_table, plain, shown
from tasks.scores.objective import Objective, objective, reference_title
from tasks.scores.statistics import bootstrap, difference, primary_interval
from tasks.settings.config import GateConfig
from tasks.settings.rivals import to_beat

if TYPE_CHECKING:
    import numpy as np


class Trial(NamedTuple):
    """Champion and challenger on the same rows, none of which either has learned from."""

    task: str
    labels: "np.ndarray"
    """(rows,)"""
    champion: "np.ndarray"
    """Answers, a line for each row, in the form of the task."""
    challenger: "np.ndarray"
    slices: Sequence[tuple[str, "np.ndarray"]] = ()
    """Title, and mask of its rows, (rows,)."""
    left_out: int = 0
    """Rows that one of the two has learned from."""

    @property
    def objective(self) -> Objective:
        return objective(self.task)


class NewClasses(NamedTuple):
    """Classes that only one of the two knows."""

    came: tuple[str, ...]
    """To the challenger."""
    went: tuple[str, ...]
    shared: tuple[str, ...]
    rows: int
    """Test rows of `came` and `went`, on which they cannot be compared."""
    forward: str
    """What a person can do about it."""


def against_champion(
    config: GateConfig,
    trial: Trial,
    own: Trial | None,
    footprint: Footprint | None,
    samples: int,
    seed: int,
    classes: NewClasses | None = None,
) -> Gate:
    """The challenger against the champion on the test rows, and on the champion's `own` where those are others."""
    rows = len(trial.labels)
    if not rows:
        told = "no test row is left to compare them on"
        told += f": one of the two has learned from all {trial.left_out:,}" if trial.left_out else ""
        return Gate(
            findings=(
                Finding(rule="gain", passed=False, told=told),
                *([judge_classes(classes, False)] if classes else []),
            ),
            rows=0,
            champion=None,
            challenger=None,
            difference=None,
        )
    gain = paired(trial, samples, seed, config.confidence)
    findings = [judge_gain(config, trial.objective, gain, rows)]
    if classes:
        findings.append(judge_classes(classes, findings[0].passed))
    if config.no_worse_slice:
        findings.append(judge_slices(config, trial))
    if own and len(own.labels):
        findings.append(judge_own_rows(own, samples, seed, config.confidence))
    findings += judge_footprint(config, footprint)
    return Gate(
        findings=tuple(findings),
        rows=rows,
        task=trial.task,
        champion=primary_interval(trial.objective, trial.champion, trial.labels, config.confidence),
        challenger=primary_interval(trial.objective, trial.challenger, trial.labels, config.confidence),
        difference=gain,
    )


def without_champion(config: GateConfig, result: Comparison, footprint: Footprint | None) -> Gate:
    """The first model of a name against TF-IDF and the linear probe, on its own test rows."""
    measured = {rung.name: rung.adapter_gain for rung in result.ladder}
    task = objective(result.task)
    findings = [judge_reference(config, task, name, measured.get(name)) for name in to_beat()]
    return Gate(
        findings=(*findings, *judge_footprint(config, footprint)),
        rows=result.rows,
        task=result.task,
        champion=None,
        challenger=result.rung("tuned").primary,
        difference=None,
    )


def paired(trial: Trial, samples: int, seed: int, confidence: float) -> Difference:
    """Challenger minus champion."""
    task, labels, tables = trial.objective, trial.labels, [trial.challenger, trial.champion]
    return difference(task, labels, tables, bootstrap(task, labels, tables, samples, seed), (0, 1), confidence)


def is_enough(config: GateConfig, task: Objective, gain: Difference) -> bool:
    """Whether the whole interval lies above the smallest gain asked for; an error must fall by as much."""
    return min(task.metrics[0].sign * end for end in (gain.primary.low, gain.primary.high)) > config.smallest_gain


def judge_gain(config: GateConfig, task: Objective, gain: Difference, rows: int) -> Finding:
    passed = gain.verdict == "improved" and is_enough(config, task, gain)
    told = (
        f"{task.metrics[0].title} {shown(gain.primary)} on {counted(rows, 'row')}, {task.test} p "
        f"{format_p(gain.p_value)}"
    )
    if passed:
        return Finding(rule="gain", passed=True, told=f"better than the champion: {told}")
    if gain.verdict == "improved":
        return Finding(rule="gain", passed=False, told=f"not shown to gain {config.smallest_gain:g}: {told}")
    return Finding(rule="gain", passed=False, told=f"{not_better(gain)} the champion: {told}")


def not_better(gain: Difference) -> str:
    return "significantly worse than" if gain.verdict == "worse" else "not shown to be better than"


def judge_classes(classes: NewClasses, gained: bool) -> Finding:
    """Classes that came need a gain on the others; that classes are given up is for a person to decide."""
    told = []
    if classes.came:
        told.append(f"{class_list(classes.came)} came, which the champion does not know")
    if classes.went:
        told.append(f"{class_list(classes.went)} went, which the challenger does not know")
    if classes.came and classes.went:
        told.append("a new name for a class counts as both")
    told.append(
        f"compared on rows of {', '.join(classes.shared)} alone: on {counted(classes.rows, 'test row')} of the others "
        "no comparison is possible"
    )
    passed = gained and not classes.went
    return Finding(rule="classes", passed=passed, told="; ".join((*told, *([] if passed else [classes.forward]))))


def class_list(names: Sequence[str]) -> str:
    return f"the class{'es'[: 2 * (len(names) > 1)]} {', '.join(names)}"


def judge_slices(config: GateConfig, trial: Trial) -> Finding:
    """Whether any slice got significantly worse; the more slices, the less by chance in each.

    The significance level is divided by the number of slices (Bonferroni): else one of twenty would stand in the way
    of any challenger.
    """
    worst, smallest = "", 1.0
    for title, inside in trial.slices:
        sides = (trial.challenger[inside], trial.champion[inside], trial.labels[inside])
        fixed, broken, p_value = trial.objective.compared(*sides)
        if broken > fixed and p_value < smallest:
            rows = counted(int(inside.sum()), "row")
            worst, smallest = f"{title} ({rows}, {fixed} fixed, {broken} broken, p {format_p(p_value)})", p_value
    if worst and smallest * len(trial.slices) < 1 - config.confidence:
        return Finding(rule="slices", passed=False, told=f"significantly worse on the slice {worst}")
    return Finding(
        rule="slices",
        passed=True,
        told=f"significantly worse on none of {counted(len(trial.slices), 'slice')}",
    )


def judge_own_rows(own: Trial, samples: int, seed: int, confidence: float) -> Finding:
    """The rows that made the champion: on these the challenger must not be worse."""
    gain = paired(own, samples, seed, confidence)
    title = own.objective.metrics[0].title
    told = f"{title} {shown(gain.primary)} on {counted(len(own.labels), 'row')} of the champion's own test"
    passed = gain.verdict != "worse"
    words = f"{'not ' if passed else ''}significantly worse there"
    return Finding(rule="champion's rows", passed=passed, told=f"{words}: {told}")


def judge_footprint(config: GateConfig, footprint: Footprint | None) -> list[Finding]:
    """Latency and memory against their ceilings, where there are any."""
    asked = []
    if footprint and config.max_latency_ms is not None:
        asked.append(("latency", footprint.latency_ms, config.max_latency_ms, "ms for one text"))
    if footprint and config.max_memory_mb is not None:
        asked.append(("memory", footprint.memory_mb, config.max_memory_mb, "MiB"))
    return [
        Finding(
            rule=rule,
            passed=value <= ceiling,
            told=f"{rule} {value:,.1f} {unit}, ceiling {ceiling:,.1f}",
        )
        for rule, value, ceiling, unit in asked
    ]


def judge_reference(config: GateConfig, task: Objective, name: str, gain: Difference | None) -> Finding:
    title = reference_title(task, name)
    rule = f"better than {title}"
    if gain is None:
        return Finding(rule=rule, passed=False, told=f"{title} was not measured")
    told = f"{task.metrics[0].title} {shown(gain.primary)}, {task.test} p {format_p(gain.p_value)}"
    if gain.verdict != "improved":
        return Finding(rule=rule, passed=False, told=f"{not_better(gain)} {title}: {told}")
    if not is_enough(config, task, gain):
        return Finding(rule=rule, passed=False, told=f"not shown to gain {config.smallest_gain:g} over {title}: {told}")
    return Finding(rule=rule, passed=True, told=f"better than {title}: {told}")


def page(name: str, title: str, gate: Gate) -> str:
    """The decision as a page, for the run in MLflow and the one in Prefect."""
    parts = [f"# {title}", gate.reason[:1].upper() + gate.reason[1:] + "."]
    metric = objective(gate.task).metrics[0]
    scores = [
        (who, metric.bounds(score))
        for who, score in (("champion", gate.champion), ("challenger", gate.challenger))
        if score
    ]
    if scores:
        parts.append(markdown_table((f"{name}, {counted(gate.rows, 'test row')}", metric.title), scores))
    rules = [(finding.rule, "passed" if finding.passed else "failed", finding.told) for finding in gate.findings]
    parts.append(markdown_table(("rule", "", "what was found"), rules))
    if gate.corrections:
        parts += ["## Corrected labels", plain(gate.corrections)]
    return "\n\n".join(parts) + "\n"
