"""The same configuration with ever more of the training rows: the curve, and what twice all of them would bring."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

from tasks.base.drawing import AFTER, BEFORE, NEUTRAL, STYLE, THIRD, legend_below, new_figure, reach
from tasks.base.files import write_text
from tasks.base.outcomes import CurvePoint, CurveRun, Doubling, LearningCurveResult
from tasks.base.records import Comparison, Interval, RunResult, Source
from tasks.base.verdict import capital
from tasks.base.words import counted, markdown_table, shown
from tasks.base.work import RunFolder
from tasks.data.splits import read_splits
from tasks.data.targets import labels_of
from tasks.scores.extrapolation import fall_of_doubling
from tasks.scores.objective import Metric, objective
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.sources.hub import NETWORK, patient
from tasks.studies.seeds import spread
from tasks.tracking.address import experiment_url, run_url
from tasks.tracking.fetching import run_folder
from tasks.tracking.run import describe, log, log_files, send_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = (8, 4, 2, 1)
"""All training rows divided by these; each number of rows is about twice the one before."""

LEAST_ROWS = 8
"""Of an eighth of the training rows: fewer teach nothing."""


def rows_of_curve(config: RunConfig, source: Source) -> tuple[int, ...]:
    """The numbers of training rows, fewest first; InputError where an eighth of them is too little to learn from."""
    import numpy as np

    splits = patient(read_splits)(source, config.data)
    labels, task = labels_of(splits.datasets["train"]), objective(splits.task)
    present = len(np.unique(task.strata(labels)))
    counts, least = tuple(len(labels) // part for part in PARTS), max(LEAST_ROWS, present)
    if counts[0] < least:
        kinds = "classes" if task.one_class else "kinds of labels"
        why = f", one of each of the {present} {kinds}" if present > LEAST_ROWS else ""
        raise InputError(
            f"data: a learning curve needs at least {least} rows in an eighth of the training rows{why}: "
            f"{PARTS[0] * least} training rows; there are {counted(len(labels), 'row')}. Add rows"
        )
    return counts


@task(
    name="summarize learning curve",
    task_run_name="summarize learning curve",
    **NETWORK,
)
def summarize_curve(
    work: str, config: RunConfig, counts: tuple[int, ...], results: tuple[tuple[RunResult, ...], ...]
) -> LearningCurveResult:
    """What the runs say together, in the MLflow run that is their parent, and on the Prefect run page."""
    from prefect.artifacts import create_markdown_artifact

    run_id = send_all(work).run_id
    assert run_id
    result, link = judge_curve(run_id, config, counts, results), run_url(run_id)
    page = curve_markdown(config, result)
    log_curve(work, result, page)
    send_all(work)
    links = f"[MLflow run {run_id}]({link}), [all runs of its experiment]({experiment_url(run_id)})"
    create_markdown_artifact(f"{page}\n{links}\n", key="learning-curve", description=result.verdict)
    return result


def log_curve(work: str, result: LearningCurveResult, page: str) -> None:
    """Complete the parent: page, picture, and each mean under the name that single runs use, with the rows as step."""
    folder = RunFolder(work)
    folder.staged.mkdir(exist_ok=True)
    folder.plots.mkdir(exist_ok=True)
    write_text(folder.staged / "learning_curve.md", page)
    draw_curve(folder.plots / "training_rows.png", result)
    log_files(work, "comparison", folder.staged)
    log_files(work, "plots", folder.plots)
    runs = len(result.points[0].runs)
    log(work, "params", {"seeds": str(runs), "curve_rows": ",".join(str(point.rows) for point in result.points)})
    for point in result.points:
        log(work, "metrics", point_metrics(result, point), step=point.rows)
    if result.next.change:
        ends = {f"curve/next_{end}": getattr(result.next.change, end) for end in ("value", "low", "high")}
        log(work, "metrics", ends, step=result.next.rows)
    log(work, "tags", {"data_fingerprint": result.data_fingerprint, "verdict": result.verdict})
    describe(work, description(result))


def point_metrics(result: LearningCurveResult, point: CurvePoint) -> dict[str, float]:
    first, score = metric_of(result).name, point.score
    return {
        f"tuned/{first}": score.mean.value,
        f"tuned/{first}_low": score.mean.low,
        f"tuned/{first}_high": score.mean.high,
        f"seeds/{first}_std": score.deviation,
        "seeds/count": len(point.runs),
    }


def metric_of(result: LearningCurveResult) -> Metric:
    return objective(result.task).metrics[0]


def judge_curve(
    run_id: str, config: RunConfig, counts: Sequence[int], results: Sequence[Sequence[RunResult]]
) -> LearningCurveResult:
    """`results` are, for each number of rows, the runs with seeds config.seed, config.seed + 1 and so on."""
    record = run_folder(results[-1][0], "comparison_record").comparison_record
    comparison = Comparison.model_validate_json(record.read_bytes())
    metric, confidence = objective(comparison.task).metrics[0], config.evaluation.confidence
    points = tuple(curve_point(metric, config, count, same) for count, same in zip(counts, results, strict=True))
    following = doubling(metric, points, confidence)
    return LearningCurveResult(
        run_id=run_id,
        experiment=config.tracking.experiment,
        status="finished",
        verdict=f"twice the rows: {few_words(metric, following)}",
        task=comparison.task,
        confidence=confidence,
        rows=comparison.rows,
        points=points,
        next=following,
        check=doubling(metric, points[:-1], confidence).model_copy(update={"rows": counts[-1]}),
        data_fingerprint=results[-1][0].data_fingerprint,
        seconds=round(sum(result.seconds.total for same in results for result in same), 3),
    )


def curve_point(metric: Metric, config: RunConfig, count: int, results: Sequence[RunResult]) -> CurvePoint:
    scores = [result.tuned[metric.name] for result in results]
    runs = tuple(
        CurveRun(
            seed=seed,
            run_id=result.run_id,
            verdict=result.verdict,
            score=score,
            adapter_path=result.adapter_path,
        )
        for seed, (result, score) in enumerate(zip(results, scores, strict=True), config.seed)
    )
    return CurvePoint(
        rows=count, score=spread(scores, config.evaluation.confidence, metric.least, metric.most), runs=runs
    )


def doubling(metric: Metric, points: Sequence[CurvePoint], confidence: float) -> Doubling:
    """What twice the rows of the last of `points` change, after a power law through all of them."""
    best = metric.most if metric.higher_is_better else metric.least
    errors = [[abs(best - run.score) for run in point.runs] for point in points]
    found = fall_of_doubling([point.rows for point in points], errors, confidence)
    change = found.fall
    if change and not metric.higher_is_better:
        change = Interval(value=-change.value, low=-change.high, high=-change.low)
    return Doubling(rows=2 * points[-1].rows, change=change, unknown=found.unknown)


def few_words(metric: Metric, step: Doubling) -> str:
    return f"{shown(step.change)} {metric.title}" if step.change and not step.unknown else "cannot be told"


def curve_markdown(config: RunConfig, result: LearningCurveResult) -> str:
    """The whole curve as a page, for Prefect and MLflow."""
    seeds = counted(len(result.points[0].runs), "seed")
    parts = [
        f"# {capital(result.verdict)}: {config.name_of(f'learning curve, {seeds}')}",
        next_sentence(result),
        check_sentence(result),
        points_table(result),
        f"{capital(metric_of(result).title)} of all runs is measured on the same {counted(result.rows, 'test row')}; "
        "intervals are about other seeds and other training rows, not about other test rows. Each seed draws rows of "
        "its own, its fewer among its more.",
        "## Runs",
        runs_table(result),
    ]
    return "\n\n".join(parts) + "\n"


def next_sentence(result: LearningCurveResult) -> str:
    """What twice the rows would bring, or why nobody can tell."""
    step, metric, last = result.next, metric_of(result), result.points[-1]
    if not step.change or step.unknown:
        return f"What twice the rows ({step.rows:,}) would bring cannot be told: {step.unknown}{bound(metric, step)}."
    now, then = (metric.shown(last.score.mean.value + more) for more in (0, step.change.value))
    return (
        f"Twice the rows ({step.rows:,}) would bring {metric.title} from {now} to about {then}: "
        f"{shown(step.change, f'{100 * result.confidence:g} % interval ')}."
    )


def bound(metric: Metric, step: Doubling) -> str:
    """What can be said where the scores are only too noisy for more."""
    if not step.change or 0 not in (step.change.low, step.change.high):
        return ""
    most = step.change.high if metric.higher_is_better else step.change.low
    return f" (a change beyond {most:+.3f} does not fit them)"


def check_sentence(result: LearningCurveResult) -> str:
    """What the same fit said of the last point before it was measured."""
    step, metric, (*_, half, last) = result.check, metric_of(result), result.points
    came = last.score.mean.value - half.score.mean.value
    fact = f"all {last.rows:,} brought {came:+.3f}"
    known = f"Checked on itself: from {result.points[0].rows:,} to {half.rows:,} rows alone the same fit"
    if not step.change or step.unknown:
        return f"{known} cannot tell what twice as many bring: {step.unknown}{bound(metric, step)}; {fact}."
    where = "inside" if step.change.low <= came <= step.change.high else "outside"
    return (
        f"{known} expects {shown(step.change, f'{100 * result.confidence:g} % interval ')} from twice as many; "
        f"{fact}, {where} that interval."
    )


def points_table(result: LearningCurveResult) -> str:
    metric, percent = metric_of(result), f"{100 * result.confidence:g} %"
    return markdown_table(
        ("training rows", metric.title + metric.direction, f"{percent} interval of the mean", "± single runs", "runs"),
        [
            (
                f"{point.rows:,}",
                metric.shown(point.score.mean.value),
                " to ".join(metric.ends(point.score.mean)),
                f"{point.score.deviation:.3f}",
                ", ".join(metric.shown(run.score) for run in point.runs),
            )
            for point in result.points
        ],
    )


def runs_table(result: LearningCurveResult) -> str:
    metric = metric_of(result)
    return markdown_table(
        ("training rows", "seed", metric.title, "verdict", "run"),
        [
            (f"{point.rows:,}", f"{run.seed}", metric.shown(run.score), run.verdict, run.run_id)
            for point in result.points
            for run in point.runs
        ],
    )


def description(result: LearningCurveResult) -> str:
    """The result in a few short lines of markdown for MLflow's page of the parent."""
    metric = metric_of(result)
    curve = ", ".join(f"{point.rows:,} rows {metric.shown(point.score.mean.value)}" for point in result.points)
    lines = (f"**{capital(result.verdict)}**", f"{capital(metric.title)}: {curve}", next_sentence(result))
    return "  \n".join((*lines, check_sentence(result)))  # two spaces: a line break in markdown


def draw_curve(file: Path, result: LearningCurveResult) -> None:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        curve_figure(result).savefig(file, metadata={"Software": None})


def curve_figure(result: LearningCurveResult) -> "Figure":
    """Single runs, their mean with its band, and what a power law expects of twice the rows, now and one step ago."""
    metric = metric_of(result)
    rows, means = [point.rows for point in result.points], [point.score.mean for point in result.points]
    figure, (axis,) = new_figure(capital(result.verdict), 4.6)
    band: Any = {"color": AFTER, "alpha": 0.15, "linewidth": 0}
    percent = f"{100 * result.confidence:g} %"
    axis.fill_between(
        rows, [m.low for m in means], [m.high for m in means], label=f"{percent} interval of the mean", **band
    )
    for point in result.points:
        scores = [run.score for run in point.runs]
        axis.plot([point.rows] * len(scores), scores, "o", color=NEUTRAL, markersize=4, label="single runs")
    axis.plot(rows, [m.value for m in means], "o-", color=AFTER, label="mean")
    ends = [score for point in result.points for score in (point.score.smallest, point.score.largest)]
    steps: Any = (
        (result.check, result.points[-2], "without the last point", {"marker": "D", "linestyle": ":", "color": THIRD}),
        (result.next, result.points[-1], "from all points", {"marker": "s", "linestyle": "--", "color": BEFORE}),
    )
    for step, before, words, look in steps:
        if step.change and not step.unknown:
            start, change = before.score.mean.value, step.change
            expected = Interval(value=start + change.value, low=start + change.low, high=start + change.high)
            axis.plot((before.rows, step.rows), (start, expected.value), **(look | {"marker": ""}))
            axis.errorbar(step.rows, expected.value, yerr=reach([expected]), **look, label=f"expected {words}")
            ends += [expected.low, expected.high]
    axis.set_xscale("log")
    ticks = [*rows, *([result.next.rows] if not result.next.unknown else [])]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    span = max(max(ends) - min(ends), 0.01)
    low, high = min(m.low for m in means), max(m.high for m in means)
    # the band of two runs can be ten times as wide as the curve is high: it may leave the picture
    low, high = (max(low, min(ends) - span / 2), min(high, max(ends) + span / 2))
    margin = 0.1 * span
    axis.set_ylim(max(metric.least, min(low, *ends) - margin), min(metric.most, max(high, *ends) + margin))
    axis.set_xlabel("training rows")
    axis.set_ylabel(f"{metric.title}{metric.direction} on {result.rows:,} test rows")
    legend_below(figure, 2)
    return figure
