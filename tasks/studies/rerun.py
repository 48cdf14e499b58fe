"""A recorded run done again: its configuration with everything pinned, and what the second time says of the first."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect import task

from tasks.base.files import write_text
from tasks.base.outcomes import Change, Outcome, RecordedRun, RerunResult, RunComparison
from tasks.base.words import counted, format_p, markdown_table, plain, shown
from tasks.base.work import WORK
from tasks.data.corrections import CORRECTIONS_FILE
from tasks.data.prepare import find_data
from tasks.evaluation.predictions import read_predictions
from tasks.models.foundation import find_model
from tasks.scores.objective import objective
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.sources.hub import NETWORK, HubUnreachable
from tasks.studies.two_runs import compare_runs, shown_scores
from tasks.tracking.address import run_url
from tasks.tracking.asking import TEST_ROWS, fetched, note_outcome, recorded_run

OURS = "peft_flow."

RERUN_OF = f"{OURS}rerun_of"
"""Tag of the second run. It is part of its configuration, so that its folder is not that of the first."""

SECTIONS = {"data": find_data, "model": find_model}


@task(name="recall run", task_run_name="recall run", **NETWORK)
def recall_run(run_id: str, anyway: bool) -> RunConfig:
    return recall(run_id, anyway)


def recall(run_id: str, anyway: bool) -> RunConfig:
    """What the run was told, with data set and model pinned to what it had.

    Raises InputError for what is not a finished run of ours, and, unless `anyway`, where data or model are no longer
    there as they were.
    """
    with TemporaryDirectory() as folder:
        recorded = recorded_run(run_id, Path(folder))
    config = pinned(recorded)
    # the run's own copies of these files: they may be gone
    artifacts = {"test_file": TEST_ROWS, "corrections": f"comparison/{CORRECTIONS_FILE}"}
    copies = {
        name: str(fetched(run_id, artifact, WORK / f"test-{run_id}").resolve())
        for name, artifact in artifacts.items()
        if getattr(config.data, name)
    }
    config = config.model_copy(update={"data": config.data.model_copy(update=copies)})
    for section, find in SECTIONS.items():
        was = recorded.run.parameters[f"{section}.revision"]
        try:
            now = find(config).revision
        except HubUnreachable:
            raise
        except InputError as error:
            if not anyway:
                raise InputError(f"run {run_id}: {error}; --anyway takes what is there now") from error
            now_there = {"revision": getattr(recorded.config, section).revision}
            config = config.model_copy(update={section: getattr(config, section).model_copy(update=now_there)})
            find(config)
        else:
            if now != was and not anyway:
                raise InputError(
                    f"run {run_id}: {section}.name: {getattr(config, section).name} has changed since ({was[:16]}, "
                    f"now {now[:16]}); put it back, or take it as it is now with --anyway"
                )
    return config


def pinned(recorded: RecordedRun) -> RunConfig:
    """The configuration at the commits that the run found; it registers no model, and is linked to the first run."""
    config, parameters = recorded.config, recorded.run.parameters
    sections: dict[str, Any] = {
        section: getattr(config, section).model_copy(update={"revision": parameters[f"{section}.revision"]})
        for section in SECTIONS
        if not parameters[f"{section}.revision"].startswith("sha256:")  # a local file has no older revisions
    }
    tags = [tag for tag in config.tracking.tags if not tag.startswith(OURS)]  # those say what else a run was for
    sections["tracking"] = config.tracking.model_copy(
        update={
            "run_name": f"{recorded.run.name.removesuffix(SUFFIX)[:230]}{SUFFIX}",  # MLflow allows 250 characters
            "tags": (*tags, f"{RERUN_OF}={recorded.run.run_id}"),
            "registered_model": None,
        }
    )
    return config.model_copy(update=sections)


SUFFIX = " · rerun"


def rerun_folder(run_id: str) -> str:
    """What is held while the run is done again."""
    folder = WORK / f"rerun-{run_id}"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder.resolve())


@task(name="judge rerun", task_run_name="judge rerun", **NETWORK)
def judge_rerun(first: str, second: str) -> RerunResult:
    """What came out, in the second run in MLflow and on the Prefect run page."""
    from prefect.artifacts import create_markdown_artifact

    with TemporaryDirectory() as folder:
        runs = [recorded_run(run_id, Path(folder) / run_id) for run_id in (first, second)]
        result = judge(*runs)
        page = Path(folder) / "rerun.md"
        write_text(page, rerun_markdown(result))
        line = f"**Rerun of [{plain(runs[0].run.name)}]({run_url(first)}): {result.outcome}.**"
        note_outcome(second, {"rerun": result.outcome, RERUN_OF: first}, line, page)
    links = f"MLflow runs [{first}]({run_url(first)}) and [{second}]({run_url(second)})"
    create_markdown_artifact(f"{rerun_markdown(result)}\n{links}\n", key="rerun", description=result.outcome)
    return result


def judge(first: RecordedRun, second: RecordedRun) -> RerunResult:
    comparison = None
    if first.run.test_fingerprint == second.run.test_fingerprint:
        comparison = compare_runs(first.run, second.run)
    outcome: Outcome = "different"
    if comparison and first.adapter_sha256 == second.adapter_sha256 and same_predictions(first, second):
        outcome = "bit-identical"
    elif comparison and within_noise(comparison):
        outcome = "equal within noise"
    return RerunResult(
        run_id=second.run.run_id,
        rerun_of=first.run.run_id,
        outcome=outcome,
        changes=tuple(changes(first, second)),
        adapters=(first.adapter_sha256, second.adapter_sha256),
        comparison=comparison,
    )


def same_predictions(first: RecordedRun, second: RecordedRun) -> bool:
    """To the bit: rows, labels and probabilities."""
    import numpy as np

    pairs = zip(*(read_predictions(recorded.run.predictions) for recorded in (first, second)), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


def within_noise(comparison: RunComparison) -> bool:
    """No evidence of a difference, and the second score in the interval of the first: two runs that differ by seed
    alone lie as far apart."""
    first, second = comparison.first.primary, comparison.second.primary
    return comparison.difference.verdict == "no evidence" and first.low <= second.value <= first.high


KINDS: dict[str, Any] = {"python": "packages", "code": "code"}
"""Kinds of the facts in an environment; the others are the hardware's."""


def changes(first: RecordedRun, second: RecordedRun) -> Iterator[Change]:
    """All that is recorded and that a result can hang on, where it is not the same in both."""
    before, after = facts(first), facts(second)
    for kind, name in sorted(before.keys() | after.keys(), key=lambda key: (ORDER.index(key[0]), key[1].lower())):
        one, other = before.get((kind, name)), after.get((kind, name))
        if one != other:
            yield Change(kind=kind, name=name, first=one, second=other)


ORDER: tuple[Any, ...] = ("data", "model", "code", "packages", "hardware")


def facts(recorded: RecordedRun) -> dict[tuple[Any, str], str]:
    """Values by kind and name."""
    parameters = recorded.run.parameters
    found: dict[tuple[Any, str], str] = {
        ("data", "revision"): parameters["data.revision"],
        ("data", "content"): recorded.data_fingerprint,
        ("model", "revision"): parameters["model.revision"],
    }
    for line in recorded.environment.splitlines():
        if line.startswith("# "):
            name, _, value = line[2:].partition(" ")
            found[KINDS.get(name, "hardware"), name] = value
        else:
            name, _, value = line.partition("==")
            found["packages", name] = value
    return found


def sentence(result: RerunResult) -> str:
    """What came out, in one or two sentences."""
    if result.outcome == "bit-identical":
        assert result.comparison
        return f"The same adapter, and the same probabilities on all {counted(result.comparison.rows, 'test row')}."
    if not result.comparison:
        return f"Other test rows, so that nothing can be compared. {reasons(result)}"
    delta, task = result.comparison.difference, objective(result.comparison.task)
    same = "The same adapter with other predictions" if len(set(result.adapters)) == 1 else "Another adapter"
    return (
        f"{same}: {task.metrics[0].title} {shown(delta.primary)}, {task.test} p {format_p(delta.p_value)} on "
        f"{counted(result.comparison.rows, 'test row')}. {reasons(result)}"
    )


def reasons(result: RerunResult) -> str:
    kinds = dict.fromkeys(change.kind for change in result.changes)
    if not kinds:
        return "Nothing that is recorded differs: the computation itself does not repeat on this machine."
    return f"What differs: {', '.join(kinds)}."


def rerun_text(result: RerunResult) -> str:
    """For a terminal: the outcome, both runs with their scores, and what differs."""
    return "\n\n".join((result.outcome.upper(), *paragraphs(result)))


def rerun_markdown(result: RerunResult) -> str:
    return "\n\n".join((f"# Rerun: {result.outcome}", *paragraphs(result))) + "\n"


def paragraphs(result: RerunResult) -> Iterator[str]:
    yield sentence(result)
    yield runs_table(result)
    if result.changes:
        rows = [(change.kind, change.name, brief(change.first), brief(change.second)) for change in result.changes]
        yield markdown_table(("differs", "what", "first", "rerun"), rows)


def runs_table(result: RerunResult) -> str:
    rows = [
        ("first", result.rerun_of, brief(result.adapters[0])),
        ("rerun", result.run_id, brief(result.adapters[1])),
    ]
    if not result.comparison:
        return markdown_table(("run", "id", "adapter sha256"), rows)
    task = objective(result.comparison.task)
    scored = [
        (*row, *shown_scores(task, run))
        for row, run in zip(rows, (result.comparison.first, result.comparison.second), strict=True)
    ]
    return markdown_table(("run", "id", "adapter sha256", *(metric.short_title for metric in task.metrics)), scored)


def brief(value: str | None) -> str:
    return "" if value is None else value if len(value) <= 40 else f"{value[:12]}..."
