"""Runs that differ only by seed: their mean, their spread, and what between two single runs is seed noise."""

import json
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from prefect import task

from tasks.base.files import write_text
from tasks.base.outcomes import RungSpread, SeedRun, SeedsResult, Spread
from tasks.base.records import Comparison, RunResult
from tasks.base.verdict import Verdict, capital, standing
from tasks.base.words import counted, ends, listed, markdown_table, plain, shown, shown_share
from tasks.base.work import RunFolder
from tasks.evaluation.predictions import paired_predictions
from tasks.evaluation.recording import STRONGEST
from tasks.evaluation.wording import caution
from tasks.scores.statistics import SCORES, bootstrap, difference, mean_interval, seed_noise
from tasks.settings.config import RunConfig
from tasks.settings.rivals import NAMES, SHORT_TITLES, TITLES
from tasks.sources.hub import NETWORK
from tasks.tracking.address import experiment_url, run_url
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
    metrics = {"delta/accuracy": result.gain.mean.value, f"{STRONGEST}/gain": result.lead.mean.value}
    for rung in result.ladder:
        group = rung.name if rung.name in ("tuned", "baseline") else f"reference/{rung.name}"
        for name in ("accuracy", "macro_f1", "log_loss"):
            metrics[f"{group}/{name}"] = getattr(rung, name).mean.value
    accuracy = result.rung("tuned").accuracy
    return metrics | {
        "seeds/count": len(result.runs),
        "seeds/accuracy_std": accuracy.deviation,
        "seeds/accuracy_low": accuracy.mean.low,
        "seeds/accuracy_high": accuracy.mean.high,
        "seeds/noise": result.noise,
    }


def judge_seeds(run_id: str, config: RunConfig, results: Sequence[RunResult]) -> SeedsResult:
    """`results` are the runs of `config` with seeds config.seed, config.seed + 1 and so on; two at least."""
    folders = [RunFolder.around(result.adapter_path) for result in results]
    comparisons = [Comparison.model_validate_json(folder.comparison_record.read_bytes()) for folder in folders]
    confidence = config.evaluation.confidence
    pairs = list(combinations(range(len(results)), 2))
    ladder = ladder_spread(comparisons, confidence)
    verdict, against = verdict_of_all(ladder, comparisons)
    leads = [one.lead(against).accuracy.value for one in comparisons]
    seeds = range(config.seed, config.seed + len(results))
    return SeedsResult(
        run_id=run_id,
        experiment=config.tracking.experiment,
        status="finished",
        verdict=verdict,
        against=against,
        confidence=confidence,
        rows=comparisons[0].rows,
        runs=tuple(map(seed_run, seeds, results, leads)),
        gain=spread([result.delta.accuracy for result in results], confidence, -1, 1),
        lead=spread(leads, confidence, -1, 1),
        cautions=cautions_of_all(seeds, comparisons),
        ladder=ladder,
        noise=min(1.0, seed_noise([result.tuned.accuracy for result in results], confidence)),
        pairs=len(pairs),
        told_apart=count_told_apart([folder.predictions for folder in folders], pairs, config),
        data_fingerprint=results[0].data_fingerprint,
        seconds=round(sum(result.seconds.total for result in results), 3),
    )


def verdict_of_all(ladder: Sequence[RungSpread], comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """As of one run: against each reference counts what every seed's run says, or no evidence where they differ."""

    def agreed(name: str) -> Verdict:
        first, *others = {comparison.lead(name).verdict for comparison in comparisons}
        return "no evidence" if others else first

    return standing([(rung.name, agreed(rung.name)) for rung in ladder if rung.name != "tuned"])


def cautions_of_all(seeds: Sequence[int], comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """Each once, with the seeds whose runs have it unless all do."""
    found: dict[str, list[int]] = {}
    for seed, comparison in zip(seeds, comparisons, strict=True):
        for told in comparison.cautions:
            found.setdefault(told, []).append(seed)
    return tuple(
        told if len(having) == len(seeds) else f"{told} (seed {listed(having)})" for told, having in found.items()
    )


def seed_run(seed: int, result: RunResult, lead: float) -> SeedRun:
    return SeedRun(
        seed=seed,
        run_id=result.run_id,
        verdict=result.verdict,
        accuracy=result.tuned.accuracy,
        gain=result.delta.accuracy,
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


def ladder_spread(comparisons: Sequence[Comparison], confidence: float) -> tuple[RungSpread, ...]:
    """The rungs that every run has, best mean accuracy first."""
    ladders = [{rung.name: rung.scores for rung in comparison.ladder} for comparison in comparisons]
    names = [name for name in ladders[0] if all(name in ladder for ladder in ladders)]
    most = {"accuracy": 1, "macro_f1": 1, "log_loss": math.inf}
    rungs = [
        RungSpread(
            name=name,
            **{
                score: spread([getattr(ladder[name], score) for ladder in ladders], confidence, 0, most[score])
                for score in SCORES
            },
        )
        for name in names
    ]
    return tuple(sorted(rungs, key=lambda rung: (-rung.accuracy.mean.value, rung.log_loss.mean.value)))


def count_told_apart(files: Sequence[Path], pairs: Sequence[tuple[int, int]], config: RunConfig) -> int:
    """Pairs of prediction files between which the paired test finds a difference; ValueError where rows differ."""
    _, labels, named = paired_predictions({str(file): str(file) for file in files})
    tables = list(named.values())
    resampled = bootstrap(labels, tables, config.evaluation.bootstrap_samples, config.seed)
    found = (difference(labels, tables, resampled, pair, config.evaluation.confidence) for pair in pairs)
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
    accuracy, percent = result.rung("tuned").accuracy, f"{100 * result.confidence:g} %"
    return (
        f"Over {len(result.runs)} seeds the adapter's accuracy on {counted(result.rows, 'test row')} is "
        f"{shown_share(accuracy.mean.value)} on average ({percent} interval {' to '.join(ends(accuracy.mean))}), "
        f"{shown_share(accuracy.smallest)} to {shown_share(accuracy.largest)} in single runs. Against "
        f"{NAMES[result.against]} it is {shown(result.lead.mean)}. {verdict_sentence(result)} "
        f"Its step from the foundation model is {shown(result.gain.mean)}."
    )


def verdict_sentence(result: SeedsResult) -> str:
    verdicts = [run.verdict for run in result.runs]
    counts = ", ".join(f"{verdict} {verdicts.count(verdict)}" for verdict in dict.fromkeys(verdicts))
    return f"Verdicts of the {len(verdicts)} runs: {counts}."


def noise_sentence(result: SeedsResult) -> str:
    """How large a difference between two single runs must be to mean more than another seed."""
    told = f"Of {counted(result.pairs, 'pair')} of seeds, {result.told_apart} differ significantly."
    if result.noise == 0:
        return f"All seeds have the same accuracy: these test rows show no seed noise. {told}"
    return (
        f"Two runs that differ only by seed stay within ±{result.noise:.3f} of each other in accuracy at "
        f"{100 * result.confidence:g} %; a smaller difference between two single runs is seed noise. {told}"
    )


def seeds_table(result: SeedsResult) -> str:
    """The ladder: each classifier's mean over the seeds ± standard deviation of single runs."""
    percent = f"{100 * result.confidence:g} %"
    header = ("classifier", "accuracy", f"{percent} interval of the mean", "macro-F1", "log loss (nats)")
    return markdown_table(
        header,
        [
            (
                TITLES[rung.name],
                plus_minus(rung.accuracy),
                " to ".join(ends(rung.accuracy.mean)),
                plus_minus(rung.macro_f1),
                plus_minus(rung.log_loss),
            )
            for rung in result.ladder
        ],
    )


def ladder_means(result: SeedsResult) -> dict[str, list[Any]]:
    """The ladder's means with the intervals of the means, in the shape of single runs' tables."""
    columns = ["classifier", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "log_loss"]
    rows = [
        [
            TITLES[rung.name],
            *(round(getattr(rung.accuracy.mean, end), 4) for end in ("value", "low", "high")),
            *(round(spread.mean.value, 4) for spread in (rung.macro_f1, rung.log_loss)),
        ]
        for rung in result.ladder
    ]
    return {"columns": columns, "data": rows}


def plus_minus(value: Spread) -> str:
    return f"{value.mean.value:.3f} ± {value.deviation:.3f}"


def runs_table(result: SeedsResult) -> str:
    return markdown_table(
        ("seed", "verdict", "accuracy", f"minus {SHORT_TITLES[result.against]}", "run"),
        [
            (f"{run.seed}", run.verdict, shown_share(run.accuracy), f"{run.lead:+z.3f}", run.run_id)
            for run in result.runs
        ],
    )


def description(result: SeedsResult) -> str:
    """The result in five short lines of markdown, the verdict first, for MLflow's page of the parent."""
    accuracy, percent = result.rung("tuned").accuracy, f"{100 * result.confidence:g} %"
    lines = (
        f"**{capital(result.verdict)}** over {len(result.runs)} seeds: accuracy {plus_minus(accuracy)}, "
        f"{shown(result.lead.mean)} against {SHORT_TITLES[result.against]}",
        plain(caution(result.cautions)) or verdict_sentence(result),
        "Ladder: "
        + ", ".join(f"{SHORT_TITLES[rung.name]} {shown_share(rung.accuracy.mean.value)}" for rung in result.ladder),
        f"Step from the foundation model: {shown(result.gain.mean)}",
        f"Seed noise: two runs stay within ±{result.noise:.3f} at {percent}; {result.told_apart} of "
        f"{counted(result.pairs, 'pair')} differ significantly",
    )
    return "  \n".join(lines)  # two spaces: a line break in markdown
