"""What a sweep has found: the best trial, what its score is worth, and whether tuning helped on the test rows."""

import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prefect import task

from tasks.base.files import write_text
from tasks.base.records import Comparison, Difference, Interval, PreparedData, RunResult
from tasks.base.sweeps import ENDED, SweepResult, Trial
from tasks.base.work import RunFolder
from tasks.evaluation.predictions import paired_predictions
from tasks.scores.objective import objective
from tasks.scores.selection import Picked, pick
from tasks.scores.statistics import bootstrap, difference
from tasks.sources.columns import array
from tasks.sources.hub import NETWORK
from tasks.studies.pareto_plot import draw_pareto
from tasks.studies.runner import Job, rows_kept
from tasks.studies.shootout import Shootout, compare_groups
from tasks.studies.sweep_page import description, sweep_markdown, verdict_of
from tasks.studies.sweep_plots import draw_sweep
from tasks.studies.trials import unpacked
from tasks.tracking.address import experiment_url, run_url
from tasks.tracking.fetching import run_folder
from tasks.tracking.run import describe, log, log_files, send_all

if TYPE_CHECKING:
    import numpy as np
    import optuna


PAGE = "comparison/sweep.md"
"""Among the artifacts of the sweep's run."""

PICTURES = {
    "pareto": "Score against what it costs",
    "history": "Score of each trial, and the best so far",
    "importances": "How much of the score hangs on each field",
    "slices": "Score by each field",
    "contour": "Score by the two fields that matter most",
}
"""Names and titles, in the order of the page."""


@task(name="summarize sweep", task_run_name="summarize sweep", **NETWORK)
def summarize_sweep(work: str, job: Job, data: PreparedData, best: int, runs: Mapping[int, RunResult]) -> SweepResult:
    """`runs` are those of the best trial and of the configuration as given, by number of the trial."""
    from prefect.artifacts import create_markdown_artifact

    run_id = send_all(work).run_id
    assert run_id
    trials = job.open()
    labels, link = validation_labels(job, data), run_url(run_id)
    result = judge_sweep(run_id, job, data, labels, trials.all(), best, runs)
    compared = compare_groups(job.config, result, labels)
    page = sweep_markdown(job.config, result, compared)
    log_sweep(work, result, compared, page, trials.study)
    send_all(work)
    links = f"[MLflow run {run_id}]({link}), [all runs of its experiment]({experiment_url(run_id)})"
    create_markdown_artifact(f"{page}\n{links}\n", key="comparison", description=result.verdict)
    shutil.rmtree(job.folder, ignore_errors=True)
    return result


def judge_sweep(
    run_id: str,
    job: Job,
    data: PreparedData,
    labels: "np.ndarray",
    trials: Sequence[Trial],
    best: int,
    runs: Mapping[int, RunResult],
) -> SweepResult:
    """`labels`, (rows, ...), are those of the validation rows whose answers each trial has kept."""
    config, task = job.config, objective(job.task)
    picked = pick_of(job, labels, trials)
    comparisons = {number: comparison_of(run) for number, run in runs.items()}
    gain = gain_of(job, best, runs)
    given = comparisons.get(0) if best else None
    return SweepResult(
        run_id=run_id,
        experiment=config.tracking.experiment,
        status="finished",
        verdict=verdict_of(best, gain),
        task=task.name,
        metric=job.metric.name,
        confidence=config.evaluation.confidence,
        fields=tuple(config_fields(trials)),
        trials=tuple(trials),
        best=best,
        validation_rows=data.rows("validation"),
        picked_on=len(labels),
        naive=next(trial.outcome.score or 0.0 for trial in trials if trial.number == best),
        corrected=picked.corrected,
        best_run=runs[best].run_id,
        given_run=runs[0].run_id if given else None,
        test_rows=comparisons[best].rows,
        best_test=comparisons[best].rung("tuned").primary,
        given_test=given.rung("tuned").primary if given else None,
        gain=gain,
        data_fingerprint=data.fingerprint,
        seconds=sum(trial.seconds or 0.0 for trial in trials) + sum(run.seconds.total for run in runs.values()),
    )


def validation_labels(job: Job, data: PreparedData) -> "np.ndarray":
    """Of the rows whose answers each trial has kept."""
    from datasets import load_from_disk

    labels = array(load_from_disk(data.folder)["validation"], "labels")
    width = len(data.label_names)
    return labels[rows_kept(len(labels), width, job.trials)]


def pick_of(job: Job, labels: "np.ndarray", trials: Sequence[Trial]) -> Picked:
    tables = [unpacked(trial.outcome.answers) for trial in trials if trial.outcome.state == "finished"]
    settings = job.config.evaluation
    return pick(
        objective(job.task),
        job.metric,
        labels,
        tables,
        settings.bootstrap_samples,
        job.config.seed,
        settings.confidence,
    )


def comparison_of(run: RunResult) -> Comparison:
    record = run_folder(run, "comparison_record").comparison_record
    return Comparison.model_validate_json(record.read_bytes())


def gain_of(job: Job, best: int, runs: Mapping[int, RunResult]) -> Difference | None:
    """The best configuration minus the one as given, paired on the test rows; None where one of them is not there."""
    if best == 0 or 0 not in runs:
        return None
    files = {str(number): str(run_folder(runs[number], "predictions").predictions) for number in (best, 0)}
    _, labels, named = paired_predictions(files)
    tables, settings, task = list(named.values()), job.config.evaluation, objective(job.task)
    resampled = bootstrap(task, labels, tables, settings.bootstrap_samples, job.config.seed)
    return difference(task, labels, tables, resampled, (0, 1), settings.confidence)


def config_fields(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(field for trial in trials for field in trial.values))


def log_sweep(work: str, result: SweepResult, compared: Shootout, page: str, study: "optuna.Study") -> None:
    """Complete the parent: page, pictures, and what tuning brought, under the names that single runs use."""
    folder = RunFolder(work)
    folder.staged.mkdir(exist_ok=True)
    folder.plots.mkdir(exist_ok=True)
    write_text(folder.staged / "sweep.md", page)
    draw_sweep(folder.plots, study, result)
    draw_pareto(folder.plots, compared)
    log_files(work, "comparison", folder.staged)
    log_files(work, "plots", folder.plots)
    log(work, "params", {"sweep.trials": str(len(result.trials)), "sweep.best": str(result.best)})
    log(work, "metrics", sweep_metrics(result))
    tags = {"data_fingerprint": result.data_fingerprint, "verdict": result.verdict}
    log(work, "tags", tags)
    describe(work, description(result))


def sweep_metrics(result: SweepResult) -> dict[str, float]:
    first = objective(result.task).metrics[0].name
    metrics = ends(f"tuned/{first}", result.best_test)
    if result.gain:
        metrics |= ends(f"sweep/gain_{first}", result.gain.primary) | {"sweep/gain_p_value": result.gain.p_value}
    metrics |= {f"validation/{result.metric}": result.naive}
    metrics |= ends(f"sweep/corrected_{result.metric}", result.corrected)
    return metrics | {f"sweep/{state}": result.count(state) for state in ENDED}


def ends(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
