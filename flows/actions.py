"""What each command does, once its arguments are read: check what the user gave, start Prefect, run, print."""

import contextlib
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TextIO

from flows.summary import (
    introduce,
    listing,
    summarize,
    summarize_curve,
    summarize_expected,
    summarize_seeds,
    summarize_sweep,
    where_to_browse,
)
from tasks.settings.config import LearningCurveConfig, RetrainConfig, RunConfig, SweepConfig
from tasks.settings.fields import InputError
from tasks.settings.fixed import MOST_SEEDS
from tasks.settings.loading import checked, load_config, read_yaml

if TYPE_CHECKING:
    from tasks.base.outcomes import LearningCurveResult, RerunResult, RetrainResult, SeedsResult
    from tasks.base.records import PreparedData, RunResult, Source
    from tasks.base.sweeps import SweepResult

DONE, FAILED, USER_MUST_CHANGE = 0, 1, 2
"""Exit codes."""


def overrides(options: Namespace) -> dict[str, str]:
    """What was given for the fields, by dotted name."""
    return {name.split(" ", 1)[1]: value for name, value in vars(options).items() if name.startswith("field ")}


def say_wait() -> None:
    """Before the first imports, which take seconds, to whoever sits at the terminal."""
    if sys.stderr.isatty():
        print("checking configuration, data and model", file=sys.stderr)


def run_finetune(options: Namespace) -> int:
    seeds = seed_count(options.seeds)
    config = load_config(options.config, overrides(options), RunConfig)
    if options.dry_run and seeds > 1:
        raise InputError("--dry-run is about one run; leave --seeds out")
    say_wait()

    stream = sys.stderr if options.json else sys.stdout
    with ready_to_train(config, "flows.seeds"):
        from flows.finetune import finetune
        from flows.seeds import finetune_seeds

        if options.dry_run:
            answer = dry_run(config, stream)
        elif seeds == 1:
            result: RunResult = finetune(**dict(config))
            summarize(config, result, stream)
            answer = result.model_dump_json()
        else:
            results: SeedsResult = finetune_seeds(**dict(config), seeds=seeds)
            summarize_seeds(config, results, stream)
            answer = results.model_dump_json()
    if options.json:
        print(answer)
    return DONE


def dry_run(config: RunConfig, stream: TextIO) -> str:
    """What the run will take, told, and as JSON."""
    from tasks.base.device import claim_device
    from tasks.evaluation.rehearsal import expect

    claim_device()
    expected = expect(config)
    summarize_expected(config, expected, stream)
    return expected.model_dump_json()


def run_init(options: Namespace) -> int:
    letters = re.sub(r"[^A-Za-z0-9_-]", "-", Path(options.data).name.partition(".")[0])
    config: Path = options.config or Path(f"{letters}.yaml")
    if config.suffix not in (".yaml", ".yml") or not config.absolute().parent.is_dir():
        raise InputError(f"CONFIG.yaml must be a file NAME.yaml in a folder that is there, not {str(config)!r:.80}")
    if config.exists():
        raise InputError(f"{config} is there already; give another name, or remove it")
    say_wait()

    from tasks.base import environment
    from tasks.data.guess import guess, told
    from tasks.data.prepare import find_data
    from tasks.data.splits import read_splits

    environment.hide_short_bars()
    source = find_data(checked(RunConfig, {"data": {"name": options.data}}))
    guessed = guess(source, options.data)
    print(told(guessed))
    try:
        splits = read_splits(source, checked(RunConfig, {"data": guessed.fields}).data)
        guessed = guessed.with_task(splits.task)
        counts = ", ".join(f"{len(split):,} {role}" for role, split in splits.datasets.items())
        print("\n" + "\n".join((f"{counts} rows", *splits.notes)))
    finally:  # what must be repaired in the data does not change what it is taken for
        config.write_text(guessed.yaml(f"Made by peft-flow init {options.data}", FIRST_MODEL), encoding="utf-8")
        print(f"\nwritten   {config}")
    print(f"next      peft-flow finetune {shlex.quote(str(config))}")
    return DONE


FIRST_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def run_learning_curve(options: Namespace) -> int:
    config = load_config(options.config, overrides(options), LearningCurveConfig)
    say_wait()

    def check(data: "Source") -> None:
        from tasks.studies.learning_curve import rows_of_curve

        rows_of_curve(run, data)

    run = config.run_config()
    with ready_to_train(run, "flows.learning_curve", check):
        from flows.learning_curve import learning_curve

        result: LearningCurveResult = learning_curve(**dict(config))
    summarize_curve(run, result, sys.stderr if options.json else sys.stdout)
    if options.json:
        print(result.model_dump_json())
    return DONE


def run_sweep(options: Namespace) -> int:
    page: Path | None = options.page
    if page and (page.suffix != ".md" or not page.absolute().parent.is_dir()):
        raise InputError(f"--page must be a file NAME.md in a folder that is there, not {str(page)!r:.80}")
    space = {"space": read_yaml(options.sweep)} if options.sweep else {}
    config = load_config(options.config, overrides(options), SweepConfig, space)
    say_wait()

    from tasks.base import environment  # noqa: F401  (before the libraries that read it)
    from tasks.servers.runners import runners_at_hand
    from tasks.studies.trials import check_sweep

    check_sweep(config)
    run = config.run_config()
    with runners_at_hand(config.parallel), ready_to_train(run, "flows.sweep"):
        from flows.sweep import sweep

        result: SweepResult = sweep(**dict(config))
    summarize_sweep(run, result, sys.stderr if options.json else sys.stdout)
    if page:
        write_page(result.run_id, page)
    if options.json:
        print(result.model_dump_json())
    return DONE


def write_page(run_id: str, page: Path) -> None:
    """The page of a sweep, with the pictures of its run beside it."""
    from tasks.studies.sweep_result import PAGE, PICTURES
    from tasks.tracking.asking import download

    with TemporaryDirectory() as folder:
        text = download(run_id, PAGE, Path(folder))
        assert text
        parts = [text.read_text(encoding="utf-8").rstrip()]
        for name, title in PICTURES.items():
            if picture := download(run_id, f"plots/{name}.png", Path(folder)):
                target = page.with_name(f"{page.stem}-{name.replace('_', '-')}.png")
                target.write_bytes(picture.read_bytes())
                parts.append(f"![{title}]({target.name})")
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def run_retrain(options: Namespace) -> int:
    config = load_config(options.config, overrides(options), RetrainConfig)
    say_wait()

    from tasks.base import environment  # noqa: F401  (before the libraries that read it)
    from tasks.retraining.approval import check_approval

    check_approval(config)
    with ready_to_train(config.run_config(), "flows.retrain"):
        from flows.retrain import retrain

        result: RetrainResult = retrain(**dict(config))
    if options.json:
        print(result.model_dump_json())
        return DONE
    facts = {"champion": f"version {result.champion}" if result.champion else "none"}
    if result.run_id:
        facts |= {"run": result.run_id, **where_to_browse(result.run_id)}
    told = [f"{result.action.upper()}  {result.subject}", result.reason]
    told += [result.gate.corrections] if result.gate and result.gate.corrections else []
    print("\n" + "\n\n".join([*told, listing(facts)]))
    return DONE


@contextlib.contextmanager
def ready_to_train(
    config: RunConfig, flow: str, check: "Callable[[Source], object]" = lambda data: None
) -> Iterator[None]:
    """What the user must change is said in seconds, also by `check` of the data; then the module `flow` is imported,
    and Prefect and MLflow are ready. The body is for the run."""
    from tasks.base import environment
    from tasks.base.device import limit_threads, processes_here
    from tasks.sources.reading import check_early

    processes_here(config.training)  # more than this machine can have are refused
    check_early(config.data)
    limit_threads()  # before torch is imported

    from tasks.base.fresh_process import reload_at_hand

    with contextlib.ExitStack() as at_hand:
        with environment.without_collection(), prefect_starting():
            at_hand.enter_context(reload_at_hand())

            from tasks.data.prepare import check_input

            data, _ = check_input(config)
            check(data)
            introduce(config)
            import_module(flow)
            get_ready_to_train()
        yield


@contextlib.contextmanager
def prefect_starting() -> Iterator[None]:
    """Where no server is set, one of this command's own starts, which takes seconds: the body is for what else does."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:  # where there is neither, Prefect says so
        yield
        return

    from tasks.servers.deployments import refuse_newer_database
    from tasks.servers.temporary import TemporaryServer

    refuse_newer_database(settings.home / "prefect.db")
    server = TemporaryServer()
    yield
    server.wait()


def get_ready_to_train() -> None:
    """Do what every training needs sooner or later: imports, and MLflow's database."""
    from tasks.tracking.opening import make_store

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


def run_rerun(options: Namespace) -> int:
    from tasks.base import environment  # noqa: F401  (before the libraries that read it)
    from tasks.studies.rerun import recall, rerun_text
    from tasks.tracking.listing import find_run

    run_id = find_run(options.run)
    recall(run_id, options.anyway)  # what the user must change is said before Prefect starts
    with prefect_starting():
        from flows.rerun import rerun

        get_ready_to_train()
    result: RerunResult = rerun(run_id=run_id, anyway=options.anyway)
    stream = sys.stderr if options.json else sys.stdout
    print(f"\n{rerun_text(result)}\n\n{listing(where_to_browse(result.run_id))}", file=stream)
    if options.json:
        print(result.model_dump_json())
    return DONE


def run_completion(options: Namespace) -> int:
    import shtab

    print(shtab.complete(options.parser, options.shell))
    return DONE


def run_up(options: Namespace) -> int:
    from tasks.base import environment  # noqa: F401  (before the libraries that read it)
    from tasks.servers.database import hide_password, read_database
    from tasks.servers.up import Options, up

    database = None
    if options.database:
        database = read_database(options.database)
        hide_password(options.database, database)
    with contextlib.suppress(KeyboardInterrupt):  # how it ends
        up(Options(options.host, options.prefect_port, options.mlflow_port, database))
    return DONE


def run_worker(options: Namespace) -> int:
    from tasks.base import environment  # noqa: F401  (before the libraries that read it)
    from tasks.servers.worker import Options, worker

    with contextlib.suppress(KeyboardInterrupt):  # how it ends
        worker(Options(options.prefect, options.mlflow, options.limit))
    return DONE


def run_join(options: Namespace) -> int:
    from tasks.base import environment
    from tasks.base.device import limit_threads
    from tasks.base.work import WORK
    from tasks.training.joining import join

    def prepared(config: RunConfig) -> "PreparedData":
        from tasks.data.prepare import prepare

        with environment.without_collection():
            return prepare(config, WORK)

    limit_threads()  # before torch is imported
    join(options.address, prepared, options.trust_remote_code)
    return DONE
