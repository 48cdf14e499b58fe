"""Runs that differ only by seed: their mean, their spread, and what between two single runs is seed noise."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from prefect import task

from tasks.base.files import write_text
from tasks.base.outcomes import RungSpread, SeedRun, SeedsResult, Spread
from tasks.base.records import Comparison, Interval, RunResult
from tasks.base.verdict import Verdict, capital, standing
from tasks.base.words import counted, listed, markdown_table, plain, shown, signed
from tasks.base.work import RunFolder
from tasks.evaluation.predictions import paired_predictions
from tasks.evaluation.recording import STRONGEST
from tasks.evaluation.verdict import goodness
from tasks.evaluation.wording import caution, name_of, short_title, title_of
from tasks.scores.objective import Metric, Objective, objective
from tasks.scores.statistics import bootstrap, difference, mean_interval, seed_noise
from tasks.settings.config import RunConfig
from tasks.sources.hub import NETWORK
from tasks.tracking.address import experiment_url, run_url
from tasks.tracking.fetching import run_folder
from tasks.tracking.run import describe, log, log_files, send_all
from tasks.tracking.runlist import TABLES_TAG, tables_tag


@task(
    name="summarize seeds",
    task_run_name="summarize seeds",
    **NETWORK,
)
def summarize_seeds(work: str, config: RunConfig, results: tuple[RunResult, ...]) -> SeedsResult:
    """What the runs say together, in the MLflow run that is their parent, and on the Prefect run page."""
    from prefect.artifacts import create_markdown_artifact

    run_id = send_all(work).run_id
    assert run_id
    result, link = judge_seeds(run_id, config, results), run_url(run_id)
    page = seeds_markdown(config, result)
    log_seeds(work, result, page)
    send_all(work)
    links = f"[MLflow run {run_id}]({link}), [all runs of its experiment]({experiment_url(run_id)})"
    create_markdown_artifact(f"{page}\n{links}\n", key="comparison", description=result.verdict)
    return result


def log_seeds(work: str, result: SeedsResult, page: str) -> None:
    """Complete the parent of several seeds' runs: means under the names that single runs use, and their spread."""
    folder = RunFolder(work).staged
    folder.mkdir(exist_ok=True)
    write_text(folder / "comparison.md", page)
    write_text(folder / "ladder.json", json.dumps(ladder_means(result)))
    log_files(work, "comparison", folder)
    log(work, "params", {"seeds": str(len(result.runs))})
    log(work, "metrics", seed_metrics(result))
    tags = {
        "data_fingerprint": result.data_fingerprint,
        "verdict": result.verdict,
        TABLES_TAG: tables_tag(["ladder"]),
    }
    log(work, "tags", tags)
    describe(work, description(result))


def seed_metrics(result: SeedsResult) -> dict[str, float]:
    first = objective(result.task).metrics[0].name
    metrics = {f"delta/{first}": result.gain.mean.value, f"{STRONGEST}/gain": result.lead.mean.value}
    for rung in result.ladder:
        group = rung.name if rung.name in ("tuned", "baseline") else f"reference/{rung.name}"
        metrics |= {f"{group}/{name}": spread.mean.value for name, spread in rung.scores.items()}
    tuned = result.rung("tuned").primary
    return metrics | {
        "seeds/count": len(result.runs),
        f"seeds/{first}_std": tuned.deviation,
        f"seeds/{first}_low": tuned.mean.low,
        f"seeds/{first}_high": tuned.mean.high,
        "seeds/noise": result.noise,
    }


def judge_seeds(run_id: str, config: RunConfig, results: Sequence[RunResult]) -> SeedsResult:
    """`results` are the runs of `config` with seeds config.seed, config.seed + 1 and so on; two at least."""
    folders = [run_folder(result, "comparison_record", "predictions") for result in results]
    comparisons = [Comparison.model_validate_json(folder.comparison_record.read_bytes()) for folder in folders]
    confidence = config.evaluation.confidence
    pairs = list(combinations(range(len(results)), 2))
    task = objective(comparisons[0].task)
    metric = task.metrics[0]
    widest = metric.most - metric.least
    ladder = ladder_spread(task, comparisons, confidence)
    verdict, against = verdict_of_all(ladder, comparisons)
    leads = [one.lead(against).primary.value for one in comparisons]
    tuned = [result.tuned[metric.name] for result in results]
    gains = [result.delta[metric.name] for result in results]
    seeds = range(config.seed, config.seed + len(results))
    return SeedsResult(
        run_id=run_id,
        experiment=config.tracking.experiment,
        status="finished",
        verdict=verdict,
        against=against,
        task=task.name,
        confidence=confidence,
        rows=comparisons[0].rows,
        runs=tuple(map(seed_run, seeds, results, tuned, gains, leads)),
        gain=spread(gains, confidence, -widest, widest),
        lead=spread(leads, confidence, -widest, widest),
        cautions=cautions_of_all(seeds, comparisons),
        ladder=ladder,
        noise=min(widest, seed_noise(tuned, confidence)),
        pairs=len(pairs),
        told_apart=count_told_apart(task, [folder.predictions for folder in folders], pairs, config),
        data_fingerprint=results[0].data_fingerprint,
        seconds=round(sum(result.seconds.total for result in results), 3),
    )


def verdict_of_all(ladder: Sequence[RungSpread], comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """As of one run: against each reference counts what every seed's run says, or no evidence where they differ."""

    def agreed(name: str) -> Verdict:
        first, *others = {comparison.lead(name).verdict for comparison in comparisons}
        return "no evidence" if others else first

    return standing([(rung.name, agreed(rung.name)) for rung in ladder if rung.name != "tuned"], comparisons[0].names)


def cautions_of_all(seeds: Sequence[int], comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """Each once, with the seeds whose runs have it unless all do."""
    found: dict[str, list[int]] = {}
    for seed, comparison in zip(seeds, comparisons, strict=True):
        for told in comparison.cautions:
            found.setdefault(told, []).append(seed)
    return tuple(
        told if len(having) == len(seeds) else f"{told} (seed {listed(having)})" for told, having in found.items()
    )


def seed_run(seed: int, result: RunResult, score: float, gain: float, lead: float) -> SeedRun:
    return SeedRun(
        seed=seed,
        run_id=result.run_id,
        verdict=result.verdict,
        score=score,
        gain=gain,
        lead=lead,
        adapter_path=result.adapter_path,
    )


def spread(values: Sequence[float], confidence: float, least: float = 0, most: float = 1) -> Spread:
    """Of numbers that can be no less than `least` and no more than `most`."""
    from statistics import stdev

    return Spread(
        mean=mean_interval(values, confidence, least, most),
        deviation=stdev(values),
        smallest=min(values),
        largest=max(values),
    )


def ladder_spread(task: Objective, comparisons: Sequence[Comparison], confidence: float) -> tuple[RungSpread, ...]:
    """The rungs that every run has, best mean first."""
    ladders = [{rung.name: rung.values for rung in comparison.ladder} for comparison in comparisons]
    names = [name for name in ladders[0] if all(name in ladder for ladder in ladders)]

    def over_seeds(name: str, metric: Metric) -> Spread:
        return spread([ladder[name][metric.name] for ladder in ladders], confidence, metric.least, metric.most)

    rungs = [
        RungSpread(name=name, scores={metric.name: over_seeds(name, metric) for metric in task.metrics})
        for name in names
    ]

    def mean_goodness(rung: RungSpread) -> tuple[float, float]:
        return goodness(task, {name: spread.mean.value for name, spread in rung.scores.items()})

    return tuple(sorted(rungs, key=mean_goodness, reverse=True))


def count_told_apart(
    task: Objective, files: Sequence[Path], pairs: Sequence[tuple[int, int]], config: RunConfig
) -> int:
    """Pairs of prediction files between which the paired test finds a difference; ValueError where rows differ."""
    _, labels, named = paired_predictions({str(file): str(file) for file in files})
    tables = list(named.values())
    resampled = bootstrap(task, labels, tables, config.evaluation.bootstrap_samples, config.seed)
    found = (difference(task, labels, tables, resampled, pair, config.evaluation.confidence) for pair in pairs)
    return sum(pair.verdict != "no evidence" for pair in found)


def seeds_markdown(config: RunConfig, result: SeedsResult) -> str:
    """The whole comparison as a page, for Prefect and MLflow."""
    parts = [
        f"# {capital(result.verdict)}: {config.name_of(f'{len(result.runs)} seeds')}",
        headline(result),
        *([plain(caution(result.cautions))] if result.cautions else []),
        seeds_table(result),
        noise_sentence(result),
        "## Runs",
        runs_table(result),
    ]
    return "\n\n".join(parts) + "\n"


def headline(result: SeedsResult) -> str:
    """The result in a few sentences, with what it rests on; the step from the foundation model last."""
    tuned, percent = result.rung("tuned").primary, f"{100 * result.confidence:g} %"
    metric = objective(result.task).metrics[0]
    return (
        f"Over {len(result.runs)} seeds the adapter's {metric.title} on {counted(result.rows, 'test row')} is "
        f"{metric.shown(tuned.mean.value)} on average ({percent} interval {' to '.join(metric.ends(tuned.mean))}), "
        f"{metric.shown(tuned.smallest)} to {metric.shown(tuned.largest)} in single runs. Against "
        f"{name_of(result, result.against)} it is {shown(result.lead.mean)}. {verdict_sentence(result)} "
        f"Its step from the foundation model is {shown(result.gain.mean)}."
    )


def verdict_sentence(result: SeedsResult) -> str:
    verdicts = [run.verdict for run in result.runs]
    counts = ", ".join(f"{verdict} {verdicts.count(verdict)}" for verdict in dict.fromkeys(verdicts))
    return f"Verdicts of the {len(verdicts)} runs: {counts}."


def noise_sentence(result: SeedsResult) -> str:
    """How large a difference between two single runs must be to mean more than another seed."""
    told = f"Of {counted(result.pairs, 'pair')} of seeds, {result.told_apart} differ significantly."
    title = objective(result.task).metrics[0].title
    if result.noise == 0:
        return f"All seeds have the same {title}: these test rows show no seed noise. {told}"
    return (
        f"Two runs that differ only by seed stay within {noise(result)} of each other in {title} at "
        f"{100 * result.confidence:g} %; a smaller difference between two single runs is seed noise. {told}"
    )


def seeds_table(result: SeedsResult) -> str:
    """The ladder: each classifier's mean over the seeds ± standard deviation of single runs."""
    percent = f"{100 * result.confidence:g} %"
    first, *others = objective(result.task).metrics
    return markdown_table(
        ("classifier", first.title, f"{percent} interval of the mean", *(metric.title for metric in others)),
        [
            (
                title_of(result, rung.name),
                plus_minus(first, rung.primary),
                " to ".join(first.ends(rung.primary.mean)),
                *(plus_minus(metric, rung.scores[metric.name]) for metric in others),
            )
            for rung in result.ladder
        ],
    )


def ladder_means(result: SeedsResult) -> dict[str, list[Any]]:
    """The ladder's means with the intervals of the means, in the shape of single runs' tables."""
    first, *others = (metric.name for metric in objective(result.task).metrics)
    rows = [
        [
            title_of(result, rung.name),
            *(round(getattr(rung.primary.mean, end), 4) for end in ("value", "low", "high")),
            *(round(rung.scores[name].mean.value, 4) for name in others),
        ]
        for rung in result.ladder
    ]
    return {"columns": ["classifier", first, f"{first}_low", f"{first}_high", *others], "data": rows}


def plus_minus(metric: Metric, value: Spread) -> str:
    digits = metric.digits(value.mean.value)
    return f"{value.mean.value:,.{digits}f} ± {value.deviation:,.{digits}f}"


def noise(result: SeedsResult) -> str:
    return f"±{result.noise:,.{objective(result.task).metrics[0].digits(result.noise)}f}"


def lead(run: SeedRun) -> str:
    return signed(Interval(value=run.lead, low=run.lead, high=run.lead))[0]


def runs_table(result: SeedsResult) -> str:
    metric = objective(result.task).metrics[0]
    return markdown_table(
        (
            "seed",
            "verdict",
            metric.title,
            f"minus {short_title(result, result.against)}",
            "run",
        ),
        [
            (
                f"{run.seed}",
                run.verdict,
                metric.shown(run.score),
                lead(run),
                run.run_id,
            )
            for run in result.runs
        ],
    )


def description(result: SeedsResult) -> str:
    """The result in five short lines of markdown, the verdict first, for MLflow's page of the parent."""
    metric, percent = objective(result.task).metrics[0], f"{100 * result.confidence:g} %"
    lines = (
        f"**{capital(result.verdict)}** over {len(result.runs)} seeds: {metric.title} "
        f"{plus_minus(metric, result.rung('tuned').primary)}, "
        f"{shown(result.lead.mean)} against {short_title(result, result.against)}",
        plain(caution(result.cautions)) or verdict_sentence(result),
        "Ladder: "
        + ", ".join(
            f"{short_title(result, rung.name)} {metric.shown(rung.primary.mean.value)}" for rung in result.ladder
        ),
        f"Step from the foundation model: {shown(result.gain.mean)}",
        f"Seed noise: two runs stay within {noise(result)} at {percent}; {result.told_apart} of "
        f"{counted(result.pairs, 'pair')} differ significantly",
    )
    return "  \n".join(lines)  # two spaces: a line break in markdown
