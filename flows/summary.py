"""What the command prints about a run, first and last."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.settings.config import RunConfig
from tasks.settings.fixed import DEMO_DATA, DEMO_MODEL

if TYPE_CHECKING:
    from tasks.base.outcomes import LearningCurveResult, SeedsResult
    from tasks.base.records import RunResult
    from tasks.base.sweeps import SweepResult


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
    from tasks.base.work import RunFolder
    from tasks.evaluation.wording import caution, headline, ladder_table, leak_sentence, step_sentence
    from tasks.tracking.address import public_uri

    record = RunFolder.around(result.adapter_path).comparison_record
    comparison = Comparison.model_validate_json(record.read_bytes())
    parts = [
        f"\n{comparison.verdict.upper()}  {config.run_name()}",
        headline(config, comparison),
        caution(comparison.cautions),
        ladder_table(comparison),
        step_sentence(comparison),
        f"Leakage: {leak_sentence(comparison)}." if comparison.leaked else "",
    ]
    print(
        "\n\n".join(filter(None, parts)) + "\n\n"
        f"run       {result.run_id}\n"
        f"adapter   {result.adapter_path}\n"
        f"browse    {where_to_browse(result.run_id)}\n"
        f"load      mlflow.set_tracking_uri({public_uri()!r}); mlflow.pyfunc.load_model({result.model_uri!r})\n"
        f"took      {result.seconds.total:.0f} s",
        file=stream,
    )


def summarize_seeds(config: RunConfig, result: "SeedsResult", stream: Any) -> None:
    """The verdict, the ladder over the seeds, each seed's run, and what to do next."""
    from tasks.evaluation.wording import caution
    from tasks.studies.seeds import headline, noise_sentence, runs_table, seeds_table

    parts = [
        f"\n{result.verdict.upper()}  {config.name_of(f'{len(result.runs)} seeds')}",
        headline(result),
        caution(result.cautions),
        seeds_table(result),
        runs_table(result),
        noise_sentence(result),
    ]
    print(
        "\n\n".join(filter(None, parts)) + "\n\n"
        f"run       {result.run_id}\n"
        f"browse    {where_to_browse(result.run_id)}\n"
        f"took      {result.seconds:.0f} s",
        file=stream,
    )


def summarize_curve(config: RunConfig, result: "LearningCurveResult", stream: Any) -> None:
    """What twice the rows would bring, the curve, and every run."""
    from tasks.studies.learning_curve import check_sentence, next_sentence, points_table, runs_table

    parts = [
        f"\n{result.verdict.upper()}  {config.name_of(f'learning curve, {len(result.points[0].runs)} seeds')}",
        next_sentence(result),
        check_sentence(result),
        points_table(result),
        runs_table(result),
    ]
    print(
        "\n\n".join(parts) + "\n\n"
        f"run       {result.run_id}\n"
        f"browse    {where_to_browse(result.run_id)}\n"
        f"took      {result.seconds:.0f} s",
        file=stream,
    )


def summarize_sweep(config: RunConfig, result: "SweepResult", stream: Any) -> None:
    """Whether tuning helped, the best trials, and what to do next."""
    from tasks.studies.sweep_page import headline, trials_table

    parts = [
        f"\n{result.verdict.upper()}  {config.name_of(f'sweep, {len(result.trials)} trials')}",
        headline(result),
        trials_table(result, 10),
    ]
    print(
        "\n\n".join(parts) + "\n\n"
        f"run       {result.run_id}\n"
        f"best      {result.best_run}\n"
        f"browse    {where_to_browse(result.run_id)}",
        file=stream,
    )


def where_to_browse(run_id: str) -> str:
    """How to see the run in MLflow, and the list of all runs of its experiment."""
    from tasks.tracking.address import experiment_url, run_url, serve_command

    start = ""
    if command := serve_command():
        program = Path(sys.executable).with_name(command[0])
        start = f"{shlex.join([str(program), *command[1:]])}   then "
    return f"{start}open {run_url(run_id)}\nall runs  {experiment_url(run_id)}"
