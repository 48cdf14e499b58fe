"""A prediction before its model is loaded: adapter and input found, and everything checked that can be refused.

It is known by what it is about: content of the input, adapter, settings, program and machine.
"""

from pathlib import Path
from typing import Any, NamedTuple

from tasks.base.device import claim_device, limit_threads
from tasks.base.machine import environment_key, where_paths_lead
from tasks.base.records import Record, Source, digest
from tasks.base.trouble import first_line
from tasks.base.work import WORK
from tasks.inference.choice import Choice, choice_of
from tasks.inference.parts import Parts, check_output, rejected_path
from tasks.inference.rows import find_rows, formulas_in, read_rows
from tasks.models import serving
from tasks.settings.config import PredictionConfig
from tasks.settings.fields import InputError
from tasks.sources.local import content_sha256, looks_like_path
from tasks.tracking.adapters import fetched_adapter
from tasks.tracking.opening import NoRun

SETTINGS = ("base_model", "label_names", "text_columns", "max_length")
"""What an adapter must say of itself."""

ANSWERS = {"softmax": ("temperature",), "sigmoid": ("thresholds",), "scale": ("mean", "std", "half_width")}
"""And, by activation, of its answers."""


class Job(Record):
    """A prediction, found and checked."""

    adapter: str
    """Folder."""
    version: str
    """`NAME/3`, the id of a run, or the content of a local folder."""
    source: Source | None
    """None: standard input."""
    columns: tuple[str, ...]
    """Of the input, with the texts that the model reads."""
    label_names: tuple[str, ...]
    answers: dict[str, str]
    """Columns of the answers, see serving.answer_columns."""
    choice: Choice = Choice()
    base: str | None = None
    """Where the foundation model lies, if not where the adapter says."""
    work: str | None
    """Folder of the finished chunks; None for standard output."""


class Found(NamedTuple):
    """What a prediction is about, as far as it can be found out before anything heavy is imported."""

    source: Source | None
    adapter: Path
    version: str
    settings: dict[str, Any]
    columns: tuple[str, ...]


def find_job(config: PredictionConfig, folder: Path) -> Job:
    """Everything that can be refused before the model is loaded: InputError. The adapter is copied into `folder`.

    Takes this process's device, by which the work is known; with shards, each of them takes one of its own.
    """
    return job_of(config, look(config, folder))


def look(config: PredictionConfig, folder: Path) -> Found:
    """The part of `find_job` that takes moments: torch is not imported yet."""
    check_places(config)
    source = find_rows(config)
    adapter, version = locate_adapter(config, folder)
    settings = check_adapter(config, adapter)
    columns = text_columns(config, settings)
    if source and not next(read_rows(config, source, columns), None):
        raise InputError(". ".join((f"input: {config.input} has no rows", *formulas_in(config, source, columns))))
    return Found(source, adapter, version, settings, columns)


def job_of(config: PredictionConfig, found: Found) -> Job:
    (claim_device if config.shards == 1 else limit_threads)()
    source, adapter, version, settings, columns = found
    job = Job(
        adapter=str(adapter),
        version=version,
        source=source,
        columns=columns,
        label_names=tuple(settings["label_names"]),
        answers=serving.answer_columns(settings) | ({"set": "texts"} if config.coverage else {}),
        choice=choice_of(config, adapter, settings),
        work=None,
    )
    if config.output == "-":
        return job
    key = work_key(config, job, settings) if source else digest(["-", Path(config.output).resolve()])
    job = job.model_copy(update={"work": str((WORK / f"predict-{key}").resolve())})
    parts = parts_of(config, job)
    if not parts.given():
        parts.check_free(config.overwrite)
    return job


def text_columns(config: PredictionConfig, settings: dict[str, Any]) -> tuple[str, ...]:
    """Of the input. The output has them too, so they cannot be called as its own."""
    trained_on = settings["text_columns"]
    columns = config.text_columns or tuple(trained_on)
    if len(columns) != len(trained_on):
        asked = " and ".join(trained_on)
        raise InputError(f"text_columns: the model reads {asked}; name as many columns, not {', '.join(columns)}")
    for name in columns:
        if name in ("row", "id", "abstained", "model_version", "set", *serving.answer_columns(settings)):
            raise InputError(f"text_columns: the output needs the name '{name}' itself; rename that column")
    return columns


def check_places(config: PredictionConfig) -> None:
    if config.shards > 1 and "-" in (config.input, config.output):
        raise InputError("shards: one process reads standard input or writes standard output; leave shards out")
    if config.output == "-":
        if config.on_error == "skip":
            raise InputError("on_error: skip writes a second file beside the output; give a file as output, not -")
        return
    check_output(config.output)
    written = {Path(config.output).resolve(), rejected_path(Path(config.output)).resolve()}
    if config.input != "-" and Path(config.input).resolve() in written:
        raise InputError(f"output: {config.output} is the input itself, or the file for its rejected rows; rename one")


def locate_adapter(config: PredictionConfig, folder: Path) -> tuple[Path, str]:
    """Folder and version of the adapter that `model` names."""
    adapter, version, uri = adapter_named(config.model, "model", folder)
    return adapter, version if uri else content_sha256(adapter)[:23]


def adapter_named(name: str, field: str, folder: Path) -> tuple[Path, str, str]:
    """Folder of the adapter that a user calls so, and its version and address in MLflow; both empty for a folder.

    A folder of something else may be called like a registered model. What comes from MLflow is copied into `folder`.
    Raises InputError, which begins with `field` where it is about a path.
    """
    path = Path(name).expanduser()
    if (path / serving.SETTINGS).is_file():
        return path.resolve(), "", ""
    wrong_path = f"{field}: there is no adapter folder {path}; {where_paths_lead()}"
    if path.is_dir():
        wrong_path = f"{field}: {path} holds no {serving.SETTINGS}; give the folder `adapter` of a run"
    if looks_like_path(name) and not name.startswith("models:/"):
        raise InputError(wrong_path)
    try:
        return fetched_adapter(name, folder)
    except NoRun:
        if path.exists():
            raise InputError(wrong_path) from None
        raise


def check_adapter(config: PredictionConfig, adapter: Path) -> dict[str, Any]:
    """The adapter's settings, where it can be used."""
    try:
        settings = serving.read_settings(adapter)
        missing = [name for name in (*SETTINGS, *answers_need(settings)) if name not in settings]
        base = settings["base_model"]
        name, own_code = base["name"], base["trust_remote_code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"model: {config.model}: {serving.SETTINGS} cannot be read: {first_line(error)}") from None
    if missing:
        raise InputError(f"model: {config.model}: {serving.SETTINGS} has no {missing[0]}; copy the adapter again")
    if own_code and not config.trust_remote_code:
        raise InputError(f"model: {config.model} brings its own Python code and trust_remote_code is not set")
    try:
        serving.check_packages(base)
    except serving.NeedsPackage as error:
        raise InputError(f"model: {config.model}: {error}") from None
    if config.abstain_below and "probability" not in serving.answer_columns(settings):
        raise InputError(
            f"abstain_below: {config.model} does not choose one class, with one probability; leave abstain_below out"
        )
    if looks_like_path(name) and not Path(name).exists():
        advice = f"put it back, or {where_paths_lead()}"
        raise InputError(f"model: the foundation model of {config.model} is not at {name} any more; {advice}")
    return settings


def answers_need(settings: dict[str, Any]) -> tuple[str, ...]:
    return ANSWERS.get(settings.get("activation", "softmax"), ("activation",))


def work_key(config: PredictionConfig, job: Job, settings: dict[str, Any]) -> str:
    """Changes with everything that could change a byte of the output."""
    assert job.source
    base = Path(settings["base_model"]["name"])
    return digest(
        [
            *(job.source.revision, config.split, config.config, job.columns),
            *(job.version, content_sha256(Path(job.adapter)), content_sha256(base) if base.exists() else None),
            *(config.abstain_below, job.choice.model_dump(), config.batch_size),
            *(Path(config.output).suffix.lower(), environment_key()),
        ]
    )


def parts_of(config: PredictionConfig, job: Job) -> Parts:
    assert job.work
    return Parts(Path(job.work), Path(config.output), again=job.source is not None, answers=job.answers)
