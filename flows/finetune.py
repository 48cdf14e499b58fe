"""The main path: prepare, check, measure what there is, train, measure the adapter read back, compare, record."""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

import time
from functools import partial
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger

from flows.parameters import parameters_of, told
from tasks.base.device import claim_device, processes_here
from tasks.base.fresh_process import reload_at_hand
from tasks.base.records import Comparison, Logged, PreparedData, RunResult, Seconds, TrainedAdapter
from tasks.base.verdict import capital
from tasks.base.work import WORK, work_folder
from tasks.data.datacheck import check_data
from tasks.data.prepare import found_input, prepare_data
from tasks.evaluation.adapter import evaluate_adapter
from tasks.evaluation.comparison import compare
from tasks.evaluation.recording import record
from tasks.evaluation.references import evaluate_baseline, evaluate_references
from tasks.evaluation.wording import caution, headline
from tasks.scores.objective import objective, short_reference_title
from tasks.settings.config import RunConfig
from tasks.tracking.address import where_to_find
from tasks.tracking.attempts import done_elsewhere, job_tag, keep_result
from tasks.tracking.flow import first_sign_of_life, flow_tags, link_to_mlflow, live
from tasks.tracking.journal import run_id_of
from tasks.tracking.run import tracked_run
from tasks.training.fit import train_adapter


@first_sign_of_life
def flow_run_name() -> str:
    return told(RunConfig).run_name()


@flow(name="finetune", flow_run_name=flow_run_name, validate_parameters=True)
@parameters_of(RunConfig)
def finetune(**given: Any) -> RunResult:
    """Train an adapter on a foundation model, and find out on held-out rows whether it is better."""
    config = RunConfig(**given)
    logger, clock = get_run_logger(), Clock()
    claim_device(processes_here(config.training))
    live()
    source, base = found_input(config, config)
    tags = flow_tags() | job_tag(config, source, base)
    if elsewhere := done_elsewhere(tags):
        return elsewhere
    work = work_folder(config, source, base)
    with reload_at_hand(), tracked_run(config, work, tags):
        logger.info("MLflow run %s in experiment '%s'", run_id_of(work) or "(to come)", config.tracking.experiment)
        link_to_mlflow(work)
        prepared = prepare_data(config, source, base, str(WORK))
        logger.info("%s", describe_data(config, prepared))
        clock.lap("prepare")

        check = check_data(config, prepared, work)
        clock.lap("check")

        baseline = evaluate_baseline(config, prepared, str(WORK))
        task = objective(prepared.task)
        metric = task.metrics[0]
        logger.info("Foundation model: %s %s", metric.title, metric.shown(baseline.scores[metric.name]))
        clock.lap("baseline")

        references = evaluate_references(config, prepared, str(WORK))
        if references:
            values = {name: metric.shown(one.scores[metric.name]) for name, one in references.items()}
            named = ", ".join(f"{short_reference_title(task, name)} {value}" for name, value in values.items())
            logger.info("References: %s %s", metric.title, named)
        clock.lap("references")

        trained = train_adapter(config, prepared, work)
        logger.info("%s", describe_training(trained))
        clock.lap("train")

        tuned = evaluate_adapter(config, prepared, trained)
        shown = metric.shown(tuned.scores[metric.name])
        logger.info("Adapter, read back from disk: %s %s", metric.title, shown)
        clock.lap("tuned")

        evaluations = {"tuned": tuned, "baseline": baseline, **references}
        result = compare(config, prepared, check, evaluations, trained, work)
        logger.info("%s. %s", capital(result.verdict), headline(config, result))
        if result.cautions:
            logger.warning("%s", caution(result.cautions))
        clock.lap("compare")

        logged = record(work, config, prepared, check, evaluations, trained, result)
        logger.info("Recorded: %s", where_to_find(logged.run_id))
        clock.lap("record")
        done = partial(run_result, config, prepared, trained, result, logged)
        keep_result(work, done(clock.seconds()))
    return done(clock.seconds())


def describe_data(config: RunConfig, data: PreparedData) -> str:
    counts = ", ".join(f"{data.rows(split):,} {split}" for split in data.row_counts)
    stale = [source.name for source in (data.source, data.model) if source.local_files_only and not source.is_local]
    if stale and not config.offline:
        counts += f" (the Hub did not answer: {' and '.join(stale)} from the cache)"
    notes = "".join(f"; {note}" for note in data.notes)
    kind = "classes" if objective(data.task).one_class else "labels"
    asked = (
        f"in {len(data.label_names)} {kind}" if data.class_counts["train"] else f"with a number, {data.label_names[0]}"
    )
    return f"{config.data.name}: {counts} rows {asked}{notes}"


def describe_training(trained: TrainedAdapter) -> str:
    share = f"{trained.trainable_parameters:,} of {trained.total_parameters:,} parameters"
    steps = f"{trained.steps} step{'s'[: trained.steps != 1]}"
    return f"Trained {share} in {steps}; step {trained.best_step} scored best on validation"


def run_result(
    config: RunConfig,
    data: PreparedData,
    trained: TrainedAdapter,
    result: Comparison,
    logged: Logged,
    seconds: Seconds,
) -> RunResult:
    gain = result.gain
    return RunResult(
        run_id=logged.run_id,
        experiment=config.tracking.experiment,
        status="finished",
        verdict=result.verdict,
        baseline=result.rung("baseline").values,
        tuned=result.rung("tuned").values,
        delta={
            objective(result.task).metrics[0].name: gain.primary.value,
            "low": gain.primary.low,
            "high": gain.primary.high,
            "p_value": gain.p_value,
            "fixed": gain.fixed,
            "broken": gain.broken,
        },
        references={rung.name: rung.values for rung in result.ladder if rung.name not in ("tuned", "baseline")},
        adapter_path=trained.folder,
        adapter_sha256=trained.sha256,
        model_uri=logged.model_uri,
        version=logged.version,
        data_fingerprint=data.fingerprint,
        seconds=seconds,
    )


class Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self.last = round(now - self.last, 3), now

    def seconds(self) -> Seconds:
        return Seconds(total=round(time.monotonic() - self.started, 3), **self.laps)
