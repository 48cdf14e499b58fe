"""What the command prints about a run, first and last."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from tasks.settings.config import RunConfig
from tasks.settings.fixed import DEMO_DATA, DEMO_MODEL

if TYPE_CHECKING:
    from tasks.base.outcomes import LearningCurveResult, SeedsResult
    from tasks.base.records import RunResult
    from tasks.base.sweeps import SweepResult
    from tasks.evaluation.rehearsal import Expected


def introduce(config: RunConfig) -> None:
    if config.model.name == DEMO_MODEL or config.data.name == DEMO_DATA:
        print(
            "This is the embedded demo: a small model and made-up film reviews, both generated on this machine. "
            "It shows how peft-flow works, not what a real model can do; see configs/ for real jobs.",
            file=sys.stderr,
        )


def summarize(config: RunConfig, result: "RunResult", stream: Any) -> None:
    """The verdict, the ladder as a table, and what to do next."""
    from tasks.base.records import Comparison
    from tasks.evaluation.wording import caution, headline, ladder_table, leak_sentence, step_sentence
    from tasks.tracking.address import public_uri
    from tasks.tracking.fetching import run_folder

    record = run_folder(result, "comparison_record").comparison_record
    comparison = Comparison.model_validate_json(record.read_bytes())
    parts = [
        headline(config, comparison),
        caution(comparison.cautions),
        ladder_table(comparison),
        step_sentence(comparison),
        f"Leakage: {leak_sentence(comparison)}." if comparison.leaked else "",
    ]
    facts = {
        "run": result.run_id,
        "adapter": result.adapter_path,
        **where_to_browse(result.run_id),
        "load": f"mlflow.set_tracking_uri({public_uri()!r})\nmlflow.pyfunc.load_model({result.model_uri!r})",
        "next": "\n".join(next_commands(config, result)),
        "took": f"{result.seconds.total:.0f} s",
    }
    tell(comparison.verdict, config.run_name(), parts, facts, stream)


def next_commands(config: RunConfig, result: "RunResult") -> list[str]:
    """Three that people give after a run, with its names."""
    from tasks.tracking.versions import promote_command

    run, model = result.run_id[:8], config.tracking.registered_model
    use = (
        promote_command(model, result.version)
        if model and result.version
        else f"peft-flow export {run} FOLDER --merged"
    )
    return [f"peft-flow predict {run} FILE.csv labelled.csv", use, f"peft-flow compare {run} OTHER_RUN"]


def summarize_expected(config: RunConfig, expected: "Expected", stream: Any) -> None:
    """What there is, and what the run will take."""
    from tasks.base.disk import size
    from tasks.base.progress import amount
    from tasks.base.words import counted

    rows = ", ".join(f"{count:,} {split}" for split, count in expected.row_counts.items())
    scores = ", ".join(f"{classifier} {score}" for classifier, score in expected.scores.items())
    warnings = [f"Warning: {warning}" for warning in expected.warnings]
    each = ", ".join(f"{amount(seconds)} {name}" for name, seconds in expected.seconds.items() if name != "total")
    read_back = f"; {size(mb(expected.reload_memory_mb))} in the process that reads the adapter back"
    facts = {
        "rows": rows,
        "to beat": f"{expected.metric}: {scores}",
        "steps": f"{expected.steps:,}, in which {counted(expected.trainable_parameters, 'parameter')} are trained",
        "time": f"about {amount(expected.seconds['total'])}: {each}",
        "memory": f"about {size(mb(expected.memory_mb))}{read_back if expected.reload_memory_mb else ''}",
        "disk": f"{size(int(expected.disk_mb * 1e6))}, of which {size(int(expected.kept_mb * 1e6))} stay",
        "next": "the same command without --dry-run",
    }
    tell("dry run", config.run_name(), [expected.shows and f"{expected.shows}.", *warnings], facts, stream)


def mb(mib: float) -> int:
    """Bytes."""
    return int(mib * 2**20)


def summarize_seeds(config: RunConfig, result: "SeedsResult", stream: Any) -> None:
    """The verdict, the ladder over the seeds, each seed's run, and what to do next."""
    from tasks.evaluation.wording import caution
    from tasks.studies.seeds import headline, noise_sentence, runs_table, seeds_table

    parts = [
        headline(result),
        caution(result.cautions),
        seeds_table(result),
        runs_table(result),
        noise_sentence(result),
    ]
    facts = {"run": result.run_id, **where_to_browse(result.run_id), "took": f"{result.seconds:.0f} s"}
    tell(result.verdict, config.name_of(f"{len(result.runs)} seeds"), parts, facts, stream)


def summarize_curve(config: RunConfig, result: "LearningCurveResult", stream: Any) -> None:
    """What twice the rows would bring, the curve, and every run."""
    from tasks.studies.learning_curve import check_sentence, next_sentence, points_table, runs_table

    parts = [next_sentence(result), check_sentence(result), points_table(result), runs_table(result)]
    facts = {"run": result.run_id, **where_to_browse(result.run_id), "took": f"{result.seconds:.0f} s"}
    name = config.name_of(f"learning curve, {len(result.points[0].runs)} seeds")
    tell(result.verdict, name, parts, facts, stream)


def summarize_sweep(config: RunConfig, result: "SweepResult", stream: Any) -> None:
    """Whether tuning helped, the best trials, and what to do next."""
    from tasks.studies.sweep_page import headline, trials_table

    facts = {"run": result.run_id, "best": result.best_run, **where_to_browse(result.run_id)}
    name = config.name_of(f"sweep, {len(result.trials)} trials")
    tell(result.verdict, name, [headline(result), trials_table(result, 10)], facts, stream)


def tell(verdict: str, name: str, parts: Sequence[str], facts: Mapping[str, str], stream: Any) -> None:
    """The verdict, tables and sentences, then `facts`; sentences in lines of at most WIDTH characters."""
    print(f"\n{in_colour(verdict, stream)}  {name}\n", file=stream)
    for part in filter(None, parts):
        wrapped = fill(part, WIDTH, break_long_words=False, break_on_hyphens=False)
        print(part if part.startswith("|") else wrapped, end="\n\n", file=stream)
    print(listing(facts), file=stream)


def listing(facts: Mapping[str, str]) -> str:
    """A line for each, or several where a text has several; none is cut, for people copy them."""
    return "\n".join(f"{name:<9} {text}".replace("\n", f"\n{'':<10}") for name, text in facts.items())


WIDTH = 120

COLOURS = {"better": 32, "tuning helped": 32, "worse": 31, "tuning hurt": 31}
"""By what a verdict begins with: green and red, as terminals number them; all others say that nothing was shown."""

YELLOW = 33


def in_colour(verdict: str, stream: Any) -> str:
    """In capitals; coloured where a person looks at a terminal and has not said no (https://no-color.org)."""
    words = verdict.upper()
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return words
    colour = next((code for start, code in COLOURS.items() if verdict.startswith(start)), YELLOW)
    return f"\x1b[1;{colour}m{words}\x1b[0m"


def where_to_browse(run_id: str) -> dict[str, str]:
    """The pages of the run and of all runs of its experiment in MLflow; where nothing answers, what would show them."""
    from tasks.tracking.address import experiment_url, is_served, run_url, serve_command

    if is_served():
        return {"browse": run_url(run_id), "all runs": experiment_url(run_id)}
    if not (command := serve_command()):
        return {}
    program = Path(sys.executable).with_name(command[0])
    return {"browse": f"{shlex.join([str(program), *command[1:]])}   shows it"}
