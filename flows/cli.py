"""The command `peft-flow`: arguments in, exit code out. Nothing heavy is imported before it is needed."""

import argparse
import contextlib
import getpass
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

# before anything of it is imported, which would run it; people call such files tasks.py for Celery or Invoke
if (found := find_spec("tasks")) and Path(found.origin or "").parent.parent != Path(__file__).parent.parent:
    print(
        f"peft-flow: {found.origin} stands in the place of peft-flow's own package `tasks`; start the command "
        "peft-flow instead of `python -m flows.cli`, and leave that folder out of PYTHONPATH",
        file=sys.stderr,
    )
    sys.exit(2)

from tasks.config import (
    DEMO_DATA,
    DEMO_MODEL,
    MOST_SEEDS,
    Config,
    InputError,
    PredictionConfig,
    RetrainConfig,
    RunConfig,
    check_text,
    choices,
    load_config,
    sections,
    unknown_field,
)
from tasks.secrets import redact

if TYPE_CHECKING:
    from tasks.records import PredictionResult, RerunResult, RetrainResult, RunResult, SeedsResult
    from tasks.registry import Decision

DONE, FAILED, USER_MUST_CHANGE = 0, 1, 2

EPILOG = """\
exit codes: 0 done; 2 you must change something (one line says what); 1 anything else
"""

COMMON: Any = {
    "epilog": EPILOG,
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "allow_abbrev": False,
}
"""What every command's parser is told."""


class Parser(argparse.ArgumentParser):
    """argparse, with errors in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    if threading.current_thread() is threading.main_thread():  # in another, Python allows no handler
        # like Ctrl-C: everything is closed on the way out, the Prefect server of this process too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options, rest = build_parser().parse_known_args(arguments)
        if rest:
            is_field = rest[0].startswith("-") and "kind" in options
            name = rest[0].lstrip("-").split("=")[0]
            raise InputError(unknown_field(name, options.kind) if is_field else f"unexpected argument {rest[0]!r}")
        return int(options.command(options))
    except KeyboardInterrupt:
        say("stopped")
        return FAILED
    except Exception as error:
        from tasks.disk import describe, is_disk_full

        if is_disk_full(error):  # first: what a library could not read, or MLflow not close, may be for this reason
            say(describe(error))
            return FAILED
        if isinstance(error, InputError):
            say(str(error))
            return USER_MUST_CHANGE
        from tasks.tracking import told_to_stop

        say("stopped" if told_to_stop(error) else f"failed: {type(error).__name__}: {error}")
        return FAILED


def say(message: str) -> None:
    """One line on standard error, without secrets, and without characters that move the cursor or clear the screen."""
    words = " ".join(redact(message).split())
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)
    if len(shown) > LONGEST_LINE:  # somebody gave a whole file as a name: field and advice are at the ends
        shown = f"{shown[:500]} ... {shown[-300:]}"
    print("peft-flow:", shown, file=sys.stderr)


LONGEST_LINE = 1_500
"""Characters. The longest line that names every fault of a data set had about a thousand."""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="peft-flow",
        description="Fine-tune a classifier with PEFT, judge it against its foundation model, keep it in MLflow.",
        **COMMON,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "finetune",
        usage="peft-flow finetune [CONFIG.yaml] [--SECTION.FIELD VALUE ...] [--seeds SEEDS] [--json]",
        help="train an adapter and compare it with its foundation model",
        description="Train an adapter and compare it with its foundation model. Without CONFIG.yaml: the embedded "
        "demo, which needs no network. Options replace what the file says.",
        **COMMON,
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
    add_fields(command, RunConfig)
    command.set_defaults(command=run_finetune)

    command = commands.add_parser(
        "retrain",
        usage="peft-flow retrain [CONFIG.yaml] [--SECTION.FIELD VALUE ...] [--json]",
        help="train a challenger where there is something new, and promote it where it beats the champion",
        description="Where data, model or configuration are others than the champion's, train a challenger, and give "
        "it the alias champion of tracking.registered_model where it is shown to be better on the same test rows.",
        **COMMON,
    )
    command.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="configuration; see configs/")
    command.add_argument("--json", action="store_true", help="print one JSON object as the last line of output")
    add_fields(command, RetrainConfig)
    command.set_defaults(command=run_retrain)

    command = commands.add_parser(
        "predict",
        usage="peft-flow predict MODEL INPUT OUTPUT [--FIELD VALUE ...] [--json]",
        help="label the rows of a file with a trained adapter",
        description="Label the rows of INPUT with a trained adapter: label, calibrated probability of each class, and "
        "the model's version, in the order of the input. Killed, the same command goes on where it stopped.",
        **COMMON,
    )
    add_fields(command, PredictionConfig, ("model", "input", "output"))
    command.add_argument("--json", action="store_true", help="print one JSON object as the last line of output")
    command.set_defaults(command=run_predict)

    command = commands.add_parser(
        "compare",
        help="test whether the adapters of two runs differ",
        description="Test on the test rows that two runs share whether their adapters differ, second minus first, and "
        "show what was set differently.",
        **COMMON,
    )
    command.add_argument("first", metavar="RUN", help="id of a run in MLflow, as finetune shows it at its end")
    command.add_argument("second", metavar="RUN", help="id of the other run")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")
    command.set_defaults(command=run_compare)

    add_registry_commands(commands)

    command = commands.add_parser(
        "rerun",
        help="do a recorded run again and say whether the same comes out",
        description="Do a finished run again from its record in MLflow, as a new run that is linked to it, and say "
        "whether it is bit-identical, equal within noise, or different, and then what differs.",
        **COMMON,
    )
    command.add_argument("run", metavar="RUN", help="id of a run in MLflow, as finetune shows it at its end")
    command.add_argument(
        "--anyway", action="store_true", help="go on where its data set or model has changed, with what is there now"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object as the last line of output")
    command.set_defaults(command=run_rerun)

    command = commands.add_parser(
        "export",
        help="write a model that runs without peft-flow",
        description="Write a model that runs without peft and peft-flow into a new folder, once a fresh process has "
        "found that its logits are those of the adapter.",
        **COMMON,
    )
    command.add_argument(
        "model",
        metavar="RUN",
        help="id of a run in MLflow, registered model (NAME, which is NAME@champion, NAME@ALIAS, NAME/3, each also "
        "after models:/), or adapter folder",
    )
    command.add_argument("folder", type=Path, metavar="OUTPUT_FOLDER", help="new folder to write")
    command.add_argument("--merged", action="store_true", help="a plain transformers model, with the adapter merged in")
    command.add_argument("--onnx", action="store_true", help="model.onnx, for ONNX Runtime; needs peft-flow[onnx]")
    command.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run Python code that comes with the foundation model; leave off unless you trust its authors",
    )
    command.set_defaults(command=run_export)

    command = commands.add_parser(
        "up",
        help="start Prefect, MLflow, the deployments and a worker",
        description="Start the Prefect server, the MLflow server over mlruns/, the deployments of prefect.yaml and a "
        "worker; say where to click, then one line for each thing that happens. Ctrl-C stops everything.",
        **COMMON,
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


def add_registry_commands(commands: Any) -> None:
    for name, run, text, more in (
        ("promote", run_promote, "make a version of a registered model its champion", "The champion so far becomes "
         "`previous`. "),
        ("rollback", run_rollback, "make the previous champion of a registered model champion again", "The champion so "
         "far becomes `previous`. "),
        ("history", run_history, "show every version of a registered model, and who promoted it and why", ""),
    ):  # fmt: skip
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. {more}",
            **COMMON,
        )
        command.add_argument("name", metavar="NAME", help="registered model, as tracking.registered_model named it")
        if name == "promote":
            command.add_argument("version", metavar="VERSION", help="number of the version, as history shows it")
        if name == "history":
            command.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")
            command.add_argument("--picture", type=Path, metavar="FILE.png", help="draw it, too, into this file")
        else:
            command.add_argument("--reason", required=True, metavar="TEXT", help="why, in a line; it goes on record")
        command.set_defaults(command=run)


def port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 65535, not {text!r:.80}")
    return int(text)


def add_fields(command: argparse.ArgumentParser, kind: type[Config], arguments: Sequence[str] = ()) -> None:
    """An option for each field of `kind`, which `overrides` gives back; for `arguments`, a place without a name."""
    inner = dict(sections(kind))
    for name, section in inner.items():
        group = command.add_argument_group(name, (section.__doc__ or "").strip())
        for field in section.model_fields:
            add_option(group, f"{name}.{field}", section, field)
    for field in arguments:
        text = (kind.model_fields[field].description or "").replace("%", "%%")
        command.add_argument(f"field {field}", metavar=field.upper(), help=text)
    group = command.add_argument_group("run")
    for field in (name for name in kind.model_fields if name not in {*inner, *arguments}):
        add_option(group, field, kind, field)
    command.set_defaults(kind=kind)


def overrides(options: argparse.Namespace) -> dict[str, str]:
    """What was given for the fields, by dotted name."""
    return {name.split(" ", 1)[1]: value for name, value in vars(options).items() if name.startswith("field ")}


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
    config = load_config(options.config, overrides(options), RunConfig)

    from tasks import environment  # before the libraries that read it
    from tasks.reading import check_early

    check_early(config.data)

    from tasks.data import check_input
    from tasks.evaluation import reload_at_hand

    with reload_at_hand():
        with environment.without_collection():
            check_input(config)  # what the user must change is said in seconds, before Prefect and MLflow start
            introduce(config)
            with prefect_starting():
                from flows.finetune import finetune
                from flows.seeds import finetune_seeds

                get_ready_to_train()
        stream = sys.stderr if options.json else sys.stdout
        settings = {name: getattr(config, name) for name in RunConfig.model_fields}
        if seeds == 1:
            result: RunResult = finetune(**settings)
            summarize(config, result, stream)
            answer = result.model_dump_json()
        else:
            results: SeedsResult = finetune_seeds(**settings, seeds=seeds)
            summarize_seeds(config, results, stream)
            answer = results.model_dump_json()
    if options.json:
        print(answer)
    return DONE


def run_retrain(options: argparse.Namespace) -> int:
    config = load_config(options.config, overrides(options), RetrainConfig)

    from tasks import environment  # noqa: F401  (before the libraries that read it)
    from tasks.reading import check_early

    check_early(config.data)

    from tasks.approval import check_approval
    from tasks.data import check_input

    check_approval(config)
    check_input(config.run_config())
    introduce(config)
    with prefect_starting():
        from flows.retrain import retrain

        get_ready_to_train()
    result: RetrainResult = retrain(**{name: getattr(config, name) for name in RetrainConfig.model_fields})
    if options.json:
        print(result.model_dump_json())
        return DONE
    champion = f"version {result.champion}" if result.champion else "none"
    print(f"\n{result.action.upper()}  {result.subject}\n\n{result.reason}\n\nchampion  {champion}")
    if result.run_id:
        print(f"run       {result.run_id}\nbrowse    {where_to_browse(result.run_id)}")
    return DONE


@contextlib.contextmanager
def prefect_starting() -> Iterator[None]:
    """Where no server is set, Prefect starts its own, which takes seconds: the body is for what else takes long.

    Ctrl-C does not reach it: a terminal sends that to every process of the command, and the server must live on to
    hear how the run ended.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if not settings.api.url:
        import prefect.server.api.server  # noqa: F401  (not in the thread: two threads must not import the same)

        from tasks.deployments import refuse_newer_database

        refuse_newer_database(settings.home / "prefect.db")

    def start() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with get_client(sync_client=True):
            pass

    with ThreadPoolExecutor(1) as threads:
        started = threads.submit(start)
        yield
        started.result()


def get_ready_to_train() -> None:
    """Do what every training needs sooner or later: imports, and MLflow's database."""
    from tasks.tracking import make_store

    for name in TRAINING_IMPORTS:
        import_module(name)
    make_store()


TRAINING_IMPORTS = (
    "mlflow",
    "evaluate",
    "transformers.trainer",
    "scipy.stats",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "matplotlib.figure",
)


def seed_count(text: str) -> int:
    if text not in map(str, range(1, MOST_SEEDS + 1)):
        raise InputError(f"--seeds must be a whole number from 1 to {MOST_SEEDS}, not {text!r:.80}")
    return int(text)


def run_predict(options: argparse.Namespace) -> int:
    config = load_config(overrides=overrides(options), kind=PredictionConfig)

    from tasks import environment  # noqa: F401  (before the libraries that read it)
    from tasks.job import find_job

    with TemporaryDirectory() as folder:
        find_job(config, Path(folder))  # what the user must change is said before Prefect starts
    with prefect_starting():
        from flows.predict import predict
        from tasks.prediction import describe_result

    result: PredictionResult = predict(**{name: getattr(config, name) for name in PredictionConfig.model_fields})
    print(describe_result(result), file=sys.stderr if options.json or config.output == "-" else sys.stdout)
    if options.json:
        print(result.model_dump_json())
    return DONE


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


def run_promote(options: argparse.Namespace) -> int:
    reason = given_reason(options.reason)

    from tasks import environment  # before the libraries that read it
    from tasks.registry import promote

    with environment.without_collection():
        return tell_champion(promote(options.name, options.version, reason, by=user()))


def run_rollback(options: argparse.Namespace) -> int:
    reason = given_reason(options.reason)

    from tasks import environment  # before the libraries that read it
    from tasks.registry import rollback

    with environment.without_collection():
        return tell_champion(rollback(options.name, reason, by=user()))


def tell_champion(decision: "Decision") -> int:
    what = "version {} was rolled back" if decision.action == "rolled back" else "the previous one is version {}"
    before = f"; {what.format(decision.previous)}" if decision.previous else ""
    print(f"The champion of {decision.name} is version {decision.version}{before}")
    return DONE


def given_reason(text: str) -> str:
    try:
        check_text(text)
    except ValueError as error:
        raise InputError(f"--reason: {error}") from None
    if not text.strip():
        raise InputError("--reason must say why, in a few words")
    return text


def user() -> str:
    """Who gives the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "somebody"


def run_history(options: argparse.Namespace) -> int:
    from tasks import environment  # noqa: F401  (before the libraries that read it)
    from tasks.history import history_of, history_text

    picture: Path | None = options.picture
    if picture and (picture.suffix != ".png" or not picture.absolute().parent.is_dir()):
        raise InputError(f"--picture must be a file NAME.png in a folder that is there, not {str(picture)!r:.80}")
    history = history_of(options.name)
    if picture:
        from tasks.timeline import draw

        picture.write_bytes(draw(history))
    print(history.model_dump_json() if options.json else history_text(history))
    return DONE


def run_rerun(options: argparse.Namespace) -> int:
    from tasks import environment  # noqa: F401  (before the libraries that read it)
    from tasks.rerun import recall, rerun_text

    recall(options.run, options.anyway)  # what the user must change is said before Prefect starts
    with prefect_starting():
        from flows.rerun import rerun

        get_ready_to_train()
    result: RerunResult = rerun(options.run, options.anyway)
    stream = sys.stderr if options.json else sys.stdout
    print(f"\n{rerun_text(result)}\n\nbrowse    {where_to_browse(result.run_id)}", file=stream)
    if options.json:
        print(result.model_dump_json())
    return DONE


def run_export(options: argparse.Namespace) -> int:
    if not (options.merged or options.onnx):
        raise InputError("say what to write: --merged, --onnx or both")

    from tasks import environment  # noqa: F401  (before the libraries that read it)
    from tasks.export import describe_export, export

    print(
        describe_export(export(options.model, options.folder, options.merged, options.onnx, options.trust_remote_code))
    )
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
    """The verdict, the ladder as a table, and what to do next."""
    from tasks.comparison import caution, headline, ladder_table, leak_sentence, step_sentence
    from tasks.records import Comparison
    from tasks.tracking import public_uri

    folder = Path(result.adapter_path).parent
    comparison = Comparison.model_validate_json((folder / "comparison/comparison.json").read_bytes())
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
    from tasks.comparison import caution
    from tasks.seeds import headline, noise_sentence, runs_table, seeds_table

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
