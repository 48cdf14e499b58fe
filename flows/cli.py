"""The command `peft-flow`: arguments in, exit code out. Nothing heavy is imported before it is needed."""

import argparse
import contextlib
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from tasks.config import (
    DEMO_DATA,
    DEMO_MODEL,
    MOST_SEEDS,
    Config,
    InputError,
    RunConfig,
    choices,
    load_config,
    sections,
    unknown_field,
)

if TYPE_CHECKING:
    from tasks.records import RunResult, SeedsResult

DONE, FAILED, USER_MUST_CHANGE = 0, 1, 2

EPILOG = """\
exit codes: 0 done; 2 you must change something (one line says what); 1 anything else
"""


class Parser(argparse.ArgumentParser):
    """argparse, with errors in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    # like Ctrl-C: everything is closed on the way out, the Prefect server of this process too
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options, rest = build_parser().parse_known_args(arguments)
        if rest:
            is_field = rest[0].startswith("-") and options.command is run_finetune
            name = rest[0].lstrip("-").split("=")[0]
            raise InputError(unknown_field(name) if is_field else f"unexpected argument {rest[0]!r}")
        return int(options.command(options))
    except InputError as error:
        say(str(error))
        return USER_MUST_CHANGE
    except KeyboardInterrupt:
        say("stopped")
        return FAILED
    except Exception as error:
        from tasks.tracking import told_to_stop

        say("stopped" if told_to_stop(error) else f"failed: {type(error).__name__}: {error}")
        return FAILED


def say(message: str) -> None:
    """One line on standard error."""
    print("peft-flow:", " ".join(message.split()), file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="peft-flow",
        description="Fine-tune a classifier with PEFT, judge it against its foundation model, keep it in MLflow.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "finetune",
        usage="peft-flow finetune [CONFIG.yaml] [--SECTION.FIELD VALUE ...] [--seeds SEEDS] [--json]",
        help="train an adapter and compare it with its foundation model",
        description="Train an adapter and compare it with its foundation model. Without CONFIG.yaml: the embedded "
        "demo, which needs no network. Options replace what the file says.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="configuration; see configs/")
    command.add_argument(
        "--seeds",
        metavar="SEEDS",
        default="1",
        help="train once for each of this many seeds, from --seed on, and say what is seed noise "
        f"(≥ 1, ≤ {MOST_SEEDS}; default 1)",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object as the last line of output")
    for name, section in sections():
        group = command.add_argument_group(name, (section.__doc__ or "").strip())
        for field in section.model_fields:
            add_option(group, f"{name}.{field}", section, field)
    group = command.add_argument_group("run")
    for field in ("seed", "offline"):
        add_option(group, field, RunConfig, field)
    command.set_defaults(command=run_finetune)

    command = commands.add_parser(
        "compare",
        help="test whether the adapters of two runs differ",
        description="Test on the test rows that two runs share whether their adapters differ, second minus first, and "
        "show what was set differently.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("first", metavar="RUN", help="id of a run in MLflow, as finetune shows it at its end")
    command.add_argument("second", metavar="RUN", help="id of the other run")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")
    command.set_defaults(command=run_compare)

    command = commands.add_parser(
        "up",
        help="start Prefect, MLflow, the deployments and a worker",
        description="Start the Prefect server, the MLflow server over mlruns/, the deployments of prefect.yaml and a "
        "worker; say where to click, then one line for each thing that happens. Ctrl-C stops everything.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="IP address to listen at (default 127.0.0.1: this machine only). Others can come in at 0.0.0.0, which "
        "needs passwords: docs/servers.md",
    )
    command.add_argument("--prefect-port", type=port, default=4200, metavar="PORT", help="(default 4200)")
    command.add_argument("--mlflow-port", type=port, default=5000, metavar="PORT", help="(default 5000)")
    command.set_defaults(command=run_up)
    return parser


def port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 65535, not {text!r}")
    return int(text)


def add_option(group: Any, dotted: str, section: type[Config], field: str) -> None:
    info = section.model_fields[field]
    allowed = choices(section, field)
    text = (info.description or "") + (f" One of: {', '.join(allowed)}." if allowed else "")
    bounds = ", ".join(filter(None, map(bound, info.metadata)))
    default = "" if info.default in (None, (), {}) else f"default {shown(info.default)}"
    notes = "; ".join(filter(None, (bounds, default)))
    flag: dict[str, Any] = {"nargs": "?", "const": "true"} if info.annotation is bool else {}
    group.add_argument(
        f"--{dotted}",
        dest=f"field {dotted}",
        metavar=field.upper(),
        default=argparse.SUPPRESS,
        help=(f"{text} ({notes})" if notes else text).replace("%", "%%"),
        **flag,
    )


def bound(constraint: Any) -> str:
    """`≥ 1` for an annotated constraint, nothing for other metadata."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return next((f"{sign} {getattr(constraint, key)}" for key, sign in signs.items() if hasattr(constraint, key)), "")


def shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def run_finetune(options: argparse.Namespace) -> int:
    seeds = seed_count(options.seeds)
    overrides = {name.split(" ", 1)[1]: value for name, value in vars(options).items() if name.startswith("field ")}
    config = load_config(options.config, overrides)

    from tasks import environment  # noqa: F401  (before the libraries that read it)
    from tasks.data import check_input

    check_input(config)  # what the user must change is said in seconds, before Prefect and MLflow start
    introduce(config)
    stream = sys.stderr if options.json else sys.stdout
    settings = {name: getattr(config, name) for name in RunConfig.model_fields}
    if seeds == 1:
        from flows.finetune import finetune

        result: RunResult = finetune(**settings)
        summarize(config, result, stream)
        answer = result.model_dump_json()
    else:
        from flows.seeds import finetune_seeds

        results: SeedsResult = finetune_seeds(**settings, seeds=seeds)
        summarize_seeds(config, results, stream)
        answer = results.model_dump_json()
    if options.json:
        print(answer)
    return DONE


def seed_count(text: str) -> int:
    if text not in map(str, range(1, MOST_SEEDS + 1)):
        raise InputError(f"--seeds must be a whole number from 1 to {MOST_SEEDS}, not {text!r}")
    return int(text)


def run_compare(options: argparse.Namespace) -> int:
    from tasks import environment  # noqa: F401  (before the libraries that read it)
    from tasks.runs import compare_runs, comparison_text
    from tasks.tracking import stored_run

    with TemporaryDirectory() as folder:
        first, second = (
            stored_run(run_id, Path(folder) / place)
            for place, run_id in (("first", options.first), ("second", options.second))
        )
        result = compare_runs(first, second)
    print(result.model_dump_json() if options.json else comparison_text(result))
    return DONE


def run_up(options: argparse.Namespace) -> int:
    from tasks import environment  # noqa: F401  (before the libraries that read it)
    from tasks.stack import Options, up

    with contextlib.suppress(KeyboardInterrupt):  # how it ends
        up(Options(options.host, options.prefect_port, options.mlflow_port))
    return DONE


def introduce(config: RunConfig) -> None:
    if config.model.name == DEMO_MODEL or config.data.name == DEMO_DATA:
        print(
            "This is the embedded demo: a small model and made-up film reviews, both generated on this machine. "
            "It shows how peft-flow works, not what a real model can do; see configs/ for real jobs.",
            file=sys.stderr,
        )


def summarize(config: RunConfig, result: "RunResult", stream: Any) -> None:
    """The ladder as a table, and what to do next."""
    from tasks.comparison import headline, ladder_table, leak_sentence
    from tasks.records import Comparison
    from tasks.tracking import public_uri

    folder = Path(result.adapter_path).parent
    comparison = Comparison.model_validate_json((folder / "comparison/comparison.json").read_bytes())
    leak = f"Leakage: {leak_sentence(comparison)}.\n\n" if comparison.leaked else ""
    print(
        f"\n{comparison.verdict.upper()}  {config.run_name()}\n\n{ladder_table(comparison)}\n\n"
        f"{headline(config, comparison)}\n\n{leak}"
        f"run       {result.run_id}\n"
        f"adapter   {result.adapter_path}\n"
        f"browse    {where_to_browse(result.run_id)}\n"
        f"load      mlflow.set_tracking_uri({public_uri()!r}); mlflow.pyfunc.load_model({result.model_uri!r})\n"
        f"took      {result.seconds.total:.0f} s",
        file=stream,
    )


def summarize_seeds(config: RunConfig, result: "SeedsResult", stream: Any) -> None:
    """The ladder over the seeds, each seed's run, and what to do next."""
    from tasks.seeds import headline, noise_sentence, runs_table, seeds_table

    print(
        f"\n{result.verdict.upper()}  {config.name_of(f'{len(result.runs)} seeds')}\n\n{seeds_table(result)}\n\n"
        f"{runs_table(result)}\n\n{headline(result)}\n\n{noise_sentence(result)}\n\n"
        f"run       {result.run_id}\n"
        f"browse    {where_to_browse(result.run_id)}\n"
        f"took      {result.seconds:.0f} s",
        file=stream,
    )


def where_to_browse(run_id: str) -> str:
    """How to see the run in MLflow, and the list of all runs of its experiment."""
    from tasks.tracking import experiment_url, run_url, serve_command

    start = ""
    if command := serve_command():
        program = Path(sys.executable).with_name(command[0])
        start = f"{shlex.join([str(program), *command[1:]])}   then "
    return f"{start}open {run_url(run_id)}\nall runs  {experiment_url(run_id)}"


if __name__ == "__main__":
    sys.exit(main())
