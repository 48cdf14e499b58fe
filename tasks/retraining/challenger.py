"""Retraining: whether there is anything new, what the challenger is trained on, and what its trial says."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

from tasks.base.files import whole, write_text
from tasks.base.fresh_process import run_offline
from tasks.base.outcomes import Finding, Footprint, Gate, RetrainResult
from tasks.base.progress import tell
from tasks.base.records import Comparison, PreparedData, RunResult, Source, digest
from tasks.base.work import ELSEWHERE, WORK, RunFolder
from tasks.data.frozen import in_our_columns, paired_columns
from tasks.data.prepare import prepare
from tasks.data.splits import training_classes
from tasks.evaluation.champion import ChampionLeftOut, check_champion
from tasks.registry import decisions as registry
from tasks.retraining.approval import Approval
from tasks.retraining.brought import what_corrections_brought
from tasks.retraining.gate import against_champion, page, without_champion
from tasks.retraining.trials import (
    is_measured_on,
    learned_by,
    new_classes,
    own_test,
    own_trial,
    read_keys,
    settings_of,
    trial_of,
)
from tasks.settings.config import RetrainConfig, RunConfig
from tasks.settings.fields import InputError
from tasks.settings.rivals import NAMES, to_beat
from tasks.settings.sections import DataConfig
from tasks.sources.hub import NETWORK, patient
from tasks.tracking import champions
from tasks.tracking.address import run_url
from tasks.tracking.asking import TEST_ROWS, attach, download, runs_tagged
from tasks.tracking.decision import MOVES, Decision, concerned, outcome
from tasks.tracking.fetching import run_folder
from tasks.tracking.flow import flow_tags
from tasks.tracking.versions import (
    CHAMPION,
    Champion,
    NoModel,
    find_champion,
    promote_command,
    register_again,
    registered_versions,
)

if TYPE_CHECKING:
    import pandas as pd


INPUTS_TAG = "peft_flow.inputs"
"""Of a challenger's run: what it was made from. Weeks later it says whether there is anything new."""


def inputs_key(config: RetrainConfig, source: Source, base: Source) -> str:
    """Data, foundation model and configuration; not where the run appears, nor what the gate asks for."""
    left_out: Any = {
        "offline": True,
        "tracking": True,
        "data": {"corrections"},  # which `content` knows
        "training": ELSEWHERE["training"],
    }
    run = config.run_config().model_dump(mode="json", exclude=left_out)
    return digest([run, source.content, base.revision, config.refresh_test])


def skipped(name: str, inputs: str) -> RetrainResult | None:
    """The result where there is nothing to do; None where there is.

    InputError where the champion, or its run, is gone: a challenger would have nothing to beat.
    """
    try:
        versions = registered_versions(name)
    except NoModel:  # the first, also where one before it was interrupted, or the model was deleted since
        return None
    registry.check_champion(name, versions)
    made = runs_tagged(INPUTS_TAG, inputs)
    decided, champion = champions.decisions_about(versions), registry.holder(versions, CHAMPION)
    for version in reversed(versions):
        if version.run_id in made and is_settled(version.version, champion, decided):
            since = datetime.fromtimestamp(version.created / 1000, UTC).date()
            became = what_became_of(name, version.version, champion, decided)
            return RetrainResult(
                name=name,
                action="skipped",
                reason=f"nothing new since {since}{became}",
                champion=champion,
                version=None,
                run_id=None,
                gate=None,
            )
    return None


def is_settled(version: str, champion: str | None, decided: Sequence[Decision]) -> bool:
    """Whether another version, made from the same, would come to nothing else.

    This one is the champion, was judged against the present champion and not promoted, or somebody took it back.
    """
    about = [decision for decision in decided if version in concerned(decision)]
    if not about:
        return False
    last = about[-1]
    if version == champion or outcome(last, version) == "rolled back":
        return True
    return last.action not in MOVES and last.previous == champion


def what_became_of(name: str, version: str, champion: str | None, decided: Sequence[Decision]) -> str:
    """`: version 1, made of the same, was rejected`; nothing where it is the champion."""
    if version == champion:
        return ""
    last = [decision for decision in decided if version in concerned(decision)][-1]
    was = outcome(last, version).replace("kept", "not promoted")
    advice = f"; change data or settings, or promote it ({promote_command(name, version)})" if champion is None else ""
    return f": version {version}, made of the same, was {was}{advice}"


@task(
    name="choose challenger",
    task_run_name="choose challenger",
    **NETWORK,
)
def choose_challenger(
    config: RetrainConfig, champion: Champion | None, source: Source, inputs: str, work: str
) -> RunConfig:
    """The challenger's run: on the champion's test rows, where they are kept, and against what it must beat."""
    run = config.run_config()
    if champion is None:
        rivals = " and ".join(NAMES[name] for name in to_beat())
        tell("%s has no champion: the first must beat %s", config.tracking.registered_model, rivals)
    needed = ("champion",) if champion else to_beat()
    references = tuple(dict.fromkeys((*run.evaluation.references, *needed)))
    data = run.data
    if champion and champion.run_id and not config.refresh_test and not data.test_file:
        frozen = frozen_test(champion.run_id, source, data, Path(work) / f"champion-{champion.run_id}")
        data = data.model_copy(update={"test_file": str(frozen) if frozen else None})
    return run.model_copy(
        update={
            "data": data,
            "evaluation": run.evaluation.model_copy(update={"references": references}),
            "tracking": run.tracking.model_copy(update={"tags": (*run.tracking.tags, f"{INPUTS_TAG}={inputs}")}),
        }
    )


def frozen_test(run_id: str, source: Source, data: DataConfig, folder: Path) -> Path | None:
    """A run's test rows as test rows of these data: columns have their present names, classes that went are left out.

    None where less than two classes would be left.
    """
    import pandas as pd

    file, settings = download(run_id, TEST_ROWS, folder), settings_of(run_id, folder)
    if file is None or settings is None:
        return file
    theirs = settings["text_columns"]
    if len(theirs) != len(data.text_columns):
        return None
    rows = in_our_columns(given := pd.read_parquet(file), theirs, data)
    try:
        known = patient(training_classes)(source, data)
    except InputError:  # the run will say so
        return file
    if known is not None:
        rows = rows[rows[data.label_column].isin(known)]
    if len(rows) == len(given) and list(rows) == list(given):
        return file
    if known is not None and rows[data.label_column].nunique() < 2:
        return None
    return write_rows(rows, folder / "present.parquet")


def write_rows(rows: "pd.DataFrame", file: Path) -> Path:
    """`file`, which holds these rows whole or is left as it was."""
    with whole(file, int(rows.memory_usage(deep=True).sum())) as staged:
        rows.to_parquet(staged, index=False)
    return file


@task(
    name="gate",
    task_run_name="gate",
    **NETWORK,
)
def judge_challenger(
    config: RetrainConfig,
    challenger: RunConfig,
    result: RunResult,
    champion: Champion | None,
    work: str,
) -> Gate:
    """What the gate says of the challenger, whose run is `result`."""
    trained = run_folder(result, "adapter", "comparison_record", "predictions", "staged")
    here = RunFolder(work)
    gate = judged(config, challenger, result, champion, trained, here)
    if not challenger.data.corrections:
        return gate
    data = prepare(challenger, WORK)
    told = what_corrections_brought(challenger, data, trained, result, champion, gate, here)
    return gate.model_copy(update={"corrections": told})


def judged(
    config: RetrainConfig,
    challenger: RunConfig,
    result: RunResult,
    champion: Champion | None,
    trained: RunFolder,
    here: RunFolder,
) -> Gate:
    """The rules, on what was measured."""
    gate = config.gate
    comparison = Comparison.model_validate_json(trained.comparison_record.read_bytes())
    costs = gate.max_latency_ms is not None or gate.max_memory_mb is not None
    if not champion:
        footprint = measure_footprint(trained.adapter, trained.test_rows, here) if costs else None
        return without_champion(gate, comparison, footprint)
    data = prepare(challenger, WORK)
    settings = settings_of(champion.run_id, here.own) if champion.run_id else None
    forward = f"where that is meant: {promote_command(str(config.tracking.registered_model), str(result.version))}"
    if "champion" not in [rung.name for rung in comparison.ladder]:
        return incomparable(why_not_asked(challenger, data, champion, settings, forward))
    own_rows = own_test(champion.run_id, settings, challenger, here) if champion.run_id and settings else None
    is_frozen = challenger.data.test_file != config.data.test_file
    known = settings["label_names"] if settings else data.label_names
    classes = new_classes(known, data, own_rows if is_frozen else None, forward)
    if is_frozen or is_measured_on(champion, data):
        trial, own = trial_of(data, trained, known), None
        footprint = measure_footprint(trained.adapter, trained.test_rows, here) if costs else None
    else:
        seen = learned_by(champion, here) if champion.run_id else None
        if own_rows is None or seen is None or settings is None:
            return incomparable(
                f"the run of {champion.uri} does not say what it was tested on and has learned from, "
                "so that new rows prove nothing"
            )
        ours = read_keys(trained.seen)
        their_columns = tuple(paired_columns(settings["text_columns"], data.text_columns).values())
        trial = trial_of(data, trained, known, ((their_columns, seen), (data.text_columns, ours)))
        footprint = measure_footprint(trained.adapter, write_rows(own_rows, here.own_rows), here)
        own = own_trial(champion, known, data, own_rows, ours, here)
    samples, seed = challenger.evaluation.bootstrap_samples, challenger.seed
    return against_champion(gate, trial, own, footprint, samples, seed, classes)


def why_not_asked(
    config: RunConfig, data: PreparedData, champion: Champion, settings: dict[str, Any] | None, forward: str
) -> str:
    try:
        if settings:
            check_champion(config, data, champion.uri, settings)
    except ChampionLeftOut as reason:
        return f"not compared with the champion: {reason}; {forward}"
    return f"{champion.uri} could not be asked, and the log of the run says why; {forward}"


def incomparable(told: str) -> Gate:
    findings = (Finding(rule="gain", passed=False, told=told),)
    return Gate(findings=findings, rows=0, champion=None, challenger=None, difference=None)


def measure_footprint(adapter: Path, rows: Path, here: RunFolder) -> Footprint:
    """What the challenger costs to have answer, measured on `rows`, whose answers are kept."""
    files = {"rows": str(rows), "out": str(here.footprint), "answers": str(here.answers)}
    request = {"adapter": str(adapter), **files}
    run_offline("tasks.models.footprint", request)
    return Footprint.model_validate_json(here.footprint.read_bytes())


@task(
    name="show gate",
    task_run_name="show gate",
    **NETWORK,
)
def show_gate(config: RetrainConfig, result: RunResult, judged: Gate, work: str) -> None:
    """The gate's page with the challenger's run in MLflow, and on the Prefect run page."""
    from prefect.artifacts import create_markdown_artifact

    name = str(config.tracking.registered_model)
    text = page(
        name, f"Gate of {name}, version {result.version}: {'passed' if judged.passed else 'not passed'}", judged
    )
    files = RunFolder(work).gate_page, RunFolder(work).gate_record
    for file, content in zip(files, (text, judged.model_dump_json(indent=2) + "\n"), strict=True):
        write_text(file, content)
    attach(result.run_id, "gate", *files)
    create_markdown_artifact(f"{text}\n[MLflow run {result.run_id}]({run_url(result.run_id)})\n", key="gate")


@task(
    name="decide",
    task_run_name="decide",
    **NETWORK,
)
def decide(
    config: RetrainConfig, result: RunResult, champion: Champion | None, judged: Gate, approval: Approval | None
) -> RetrainResult:
    """Champion, or not, in the registry, with the reason; a champion that changed meanwhile stays."""
    name = str(config.tracking.registered_model)
    version = version_of(name, result)
    told = judged.reason + (f"; {approval.told}" if approval else "")
    by, tags = "gate" if judged.passed else "force", flow_tags()
    promote = config.force or (judged.passed and (approval is None or approval.approved))
    if promote:
        reason = told if judged.passed else f"forced, although {told}"
        try:
            decision = registry.promote(name, version, reason, by, champion.version if champion else None, tags)
        except registry.Overtaken as error:
            decision = registry.keep(name, version, f"{error}; what was shown: {told}", "gate", tags)
    else:
        decision = registry.keep(name, version, told, "gate", tags)
    return RetrainResult(
        name=name,
        action=decision.action,
        reason=decision.reason,
        champion=now.version if (now := find_champion(name)) else None,
        version=version,
        run_id=result.run_id,
        gate=judged,
    )


def version_of(name: str, result: RunResult) -> str:
    """Of the challenger; a new one, where model or version was deleted since a run that goes on here registered it."""
    with suppress(NoModel):
        there = {version.version: version.run_id for version in registered_versions(name)}
        if there.get(str(result.version)) == result.run_id:
            return str(result.version)
    return register_again(name, result.model_uri)
