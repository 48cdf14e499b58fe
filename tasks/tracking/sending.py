"""From the journal to MLflow: each kind of line, sent once."""

import math
import os
from collections.abc import Callable, Sequence
from itertools import count, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tasks.base.events import announce
from tasks.base.machine import public_version
from tasks.base.progress import warn
from tasks.scores.objective import first_metrics
from tasks.settings.fields import InputError
from tasks.settings.fixed import STORE
from tasks.tracking import runlist
from tasks.tracking.address import (
    FLOW_RUN_TAG,
    STARTED_FOR_TAG,
    TAKEN_OVER_TAG,
    _experiments,
    client,
    run_url,
    store_is_ours,
    tracking_uri,
)
from tasks.tracking.artifacts import repository
from tasks.tracking.deleted import Deleted, is_gone, restore
from tasks.tracking.journal import HEAD, Journal, Line, Sent, _open, journal_of

if TYPE_CHECKING:
    from mlflow import MlflowClient


def end_run(api: "MlflowClient", run_id: str, status: str, at: int) -> None:
    """Its status in MLflow, and the event for automations."""
    api.set_terminated(run_id, status, end_time=at)
    run = api.get_run(run_id)
    flow_run = run.data.tags.get(FLOW_RUN_TAG)
    if not flow_run:  # not run by Prefect
        return
    facts = {"experiment": api.get_experiment(run.info.experiment_id).name, "url": run_url(run_id)}
    decided = [f"{group}/{metric}" for metric in first_metrics() for group in ("tuned", "delta")]
    for name in ("reference/strongest/gain", *decided):
        if name in run.data.metrics:
            facts[name.replace("/", "_")] = f"{run.data.metrics[name]:z.4f}"
    if "verdict" in run.data.tags:
        facts["verdict"] = run.data.tags["verdict"]
    announce(status, run_id, run.info.run_name, flow_run, facts)


def send(journal: Journal) -> None:
    """Tell MLflow what it does not have yet, in order; raises what goes wrong. What was sent stays sent."""
    from mlflow.exceptions import MlflowException

    try:
        send_lines(journal)
    except TakenOver as error:
        journal.mark(journal.sent.model_copy(update={"lines": len(journal.lines)}))
        if str(journal.folder) in _open:
            leave(str(error))
    except (Deleted, MlflowException) as error:
        if not journal.sent.run_id or not is_gone(error, journal.sent.run_id):
            raise
        journal.mark(Sent())  # another store, or the run was deleted: everything once more, as a new run
        send_lines(journal)


class TakenOver(Exception):
    """Another machine does this run now."""


def refuse_taken_over(api: "MlflowClient", journal: Journal) -> None:
    """TakenOver where a worker has started this run, and another machine has begun it anew since."""
    tags: dict[str, str] = next((line.values["tags"] for line in journal.lines if line.kind == "begin"), {})
    if STARTED_FOR_TAG not in tags:
        return
    if journal.sent.run_id:
        if machine := api.get_run(journal.sent.run_id).data.tags.get(TAKEN_OVER_TAG):
            raise TakenOver(machine)
    elif found := api.get_experiment_by_name(journal.head.experiment):  # nobody could mark what was not there
        later = f"tags.`{FLOW_RUN_TAG}` = '{tags[FLOW_RUN_TAG]}' AND attributes.start_time > {journal.head.started}"
        if any(run.data.tags.get(KEY_TAG) != journal.head.key for run in api.search_runs([found.experiment_id], later)):
            raise TakenOver("another machine")


def leave(machine: str) -> None:
    """End this process, and say nothing to Prefect: it would be taken for the word of the one that does the run now."""
    warn("Nothing was heard of this machine for long, and %s does this run now; it ends here", machine)
    os._exit(0)


def send_lines(journal: Journal) -> None:
    import mlflow

    waiting = journal.waiting
    if not waiting:
        return
    mlflow.set_tracking_uri(tracking_uri())
    api = client()
    refuse_taken_over(api, journal)
    if journal.sent.run_id is None:
        journal.mark(created(api, journal))
    begun = journal.sent
    _experiments[str(begun.run_id)] = str(begun.experiment_id)
    while waiting:
        first = waiting[0]
        batch = list(takewhile(is_point, waiting))[:MOST_POINTS] or [first]
        sent = SENDERS[first.kind](api, journal, batch)
        journal.mark(sent.model_copy(update={"lines": sent.lines + len(batch)}))
        waiting = waiting[len(batch) :]


def is_point(line: Line) -> bool:
    return line.kind == "metrics" and not line.of_model


MOST_POINTS = 100
"""Points in one call: MLflow takes 1000 values at once, and a point has up to seven."""

KEY_TAG = "peft_flow.key"


def created(api: "MlflowClient", journal: Journal) -> Sent:
    """The MLflow run of the journal: created, or found where an answer was lost on its way."""
    from mlflow.tracking.context.registry import resolve_tags

    head = journal.head
    experiment_id = open_experiment(api, head.experiment)
    parent = None
    if head.parent and (Path(head.parent) / HEAD).exists():  # else somebody has removed its folder
        above = journal_of(head.parent)
        if above.sent.run_id is None:
            above.mark(created(api, above))
        parent = above.sent.run_id
    found = runs_of(api, experiment_id, head.key)
    if not found:
        tags = {KEY_TAG: head.key} | ({"mlflow.parentRunId": parent} if parent else {})
        api.create_run(experiment_id, head.started, resolve_tags(tags), free_name(api, experiment_id, head.name))
        found = runs_of(api, experiment_id, head.key)
    return Sent(run_id=found[0].info.run_id, experiment_id=experiment_id)


def free_name(api: "MlflowClient", experiment_id: str, name: str) -> str:
    """`name`, or `name (2)` and so on where runs of the experiment are called so: people tell runs apart by it."""
    quote = '"' if "'" in name else "'"
    if quote in name or not name:  # it cannot be asked for
        return name
    alike = api.search_runs([experiment_id], f"attributes.run_name LIKE {quote}{name[: LONGEST_NAME - 10]}%{quote}")
    taken = {run.info.run_name for run in alike}
    numbered = (f"{name[: LONGEST_NAME - len(end)]}{end}" for end in map(" ({})".format, count(2)))
    return name if name not in taken else next(one for one in numbered if one not in taken)


LONGEST_NAME = 250


def runs_of(api: "MlflowClient", experiment_id: str, key: str) -> list[Any]:
    """The first is the run; others were created by calls that were answered too late, and are nobody's."""
    runs = api.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'")
    return sorted(runs, key=lambda run: run.info.run_id)


def send_begin(api: "MlflowClient", journal: Journal, lines: Sequence[Line]) -> Sent:
    from mlflow.entities import RunTag

    sent, (line,) = journal.sent, lines
    assert sent.run_id
    run = api.get_run(sent.run_id)
    if run.info.lifecycle_stage == "deleted":
        raise Deleted(f"run {sent.run_id} was deleted")
    if run.info.status != "RUNNING":
        api.update_run(sent.run_id, "RUNNING")
    api.log_batch(sent.run_id, tags=[RunTag(name, value) for name, value in line.values["tags"].items()])
    return sent


def send_values(api: "MlflowClient", journal: Journal, lines: Sequence[Line]) -> Sent:
    """Parameters or tags."""
    from mlflow.entities import Param, RunTag

    sent, (line,) = journal.sent, lines
    entity = {"params": Param, "tags": RunTag}[line.kind]
    api.log_batch(sent.run_id, **{line.kind: [entity(name, value) for name, value in line.values.items()]})
    return sent


def send_metrics(api: "MlflowClient", journal: Journal, lines: Sequence[Line]) -> Sent:
    """With the time at which they were written down: a value that MLflow has is not added again."""
    from mlflow.entities import Metric

    sent = journal.sent
    metrics = [
        # null is how older versions wrote down what is not a number
        Metric(
            name,
            math.nan if value is None else value,
            line.time,
            line.step,
            model_id=sent.model_id if line.of_model else None,
        )
        for line in lines
        for name, value in line.values.items()
    ]
    api.log_batch(sent.run_id, metrics=metrics)
    return sent


def send_files(api: "MlflowClient", journal: Journal, lines: Sequence[Line]) -> Sent:
    sent, (line,) = journal.sent, lines
    for name in line.values["paths"]:
        path, to = journal.folder / name, line.values["to"] or None
        if path.is_dir():
            api.log_artifacts(sent.run_id, str(path), to)
        elif path.exists():
            api.log_artifact(sent.run_id, str(path), to)
    return sent


def send_inputs(api: "MlflowClient", journal: Journal, lines: Sequence[Line]) -> Sent:
    """One split as an MLflow data set, with our fingerprint as its digest; MLflow tells splits apart by name."""
    import mlflow
    from datasets import load_from_disk
    from mlflow.entities import DatasetInput, InputTag

    sent, (line,) = journal.sent, lines
    known = line.values
    rows = load_from_disk(str(journal.folder / known["folder"]))[known["split"]].select_columns(known["columns"])
    found = mlflow.data.from_huggingface(
        rows, name=known["name"], targets="labels", digest=known["digest"], **known["where"]
    )
    given = DatasetInput(found._to_mlflow_entity(), [InputTag("mlflow.data.context", known["split"])])
    api.log_inputs(sent.run_id, [given])
    return sent


def send_model(api: "MlflowClient", journal: Journal, lines: Sequence[Line]) -> Sent:
    """The adapter as a pyfunc model that returns label and probabilities; the foundation model is not copied.

    Not `mlflow.transformers.log_model`: with an adapter it reloads layers and head randomly initialised. A model that
    was begun and not finished is finished, one that is there is not logged again: this is `mlflow.pyfunc.log_model`
    step by step, each of which may have been the last.
    """
    import mlflow
    import pandas as pd
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    from tasks.models import serving

    sent, (line,) = journal.sent, lines
    assert sent.run_id and sent.experiment_id
    known = line.values
    begun = api.search_logged_models([sent.experiment_id], f"source_run_id = '{sent.run_id}'")
    run = api.get_run(sent.run_id)
    model = (
        begun[0]
        if begun
        else api.create_logged_model(
            sent.experiment_id, name="model", source_run_id=sent.run_id, params=run.data.params
        )
    )
    if model.status != LoggedModelStatus.READY:
        outputs = run.outputs.model_outputs if run.outputs else []
        if model.model_id not in [output.model_id for output in outputs]:
            api.log_outputs(sent.run_id, [LoggedModelOutput(model.model_id, step=0)])
        kinds = {"number": DataType.double, "text": DataType.string, "texts": Array(DataType.string)}
        adapter = journal.folder / known["adapter"]
        identity = {"model_uuid": model.model_id, "model_id": model.model_id, "run_id": sent.run_id}
        with TemporaryDirectory() as folder:
            mlflow.pyfunc.save_model(
                f"{folder}/model",
                mlflow_model=Model(artifact_path=model.artifact_location, **identity),
                python_model=serving.__file__,
                artifacts={"adapter": str(adapter)},
                model_config={"base_model": known["base_model"]},
                signature=ModelSignature(
                    inputs=Schema([ColSpec(DataType.string, name) for name in known["text_columns"]]),
                    outputs=Schema([ColSpec(kinds[kind], name) for name, kind in known["answers"].items()]),
                ),
                input_example=pd.DataFrame(known["example"], columns=known["text_columns"]),
                pip_requirements=[f"{name}=={public_version(name)}" for name in serving_packages(adapter)],
            )
            api.log_model_artifacts(model.model_id, f"{folder}/model")
        api.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    model_id = model.model_id
    version = None
    if name := known["registered_model"]:
        ours = api.search_model_versions(f"run_id = '{sent.run_id}'")  # a name can hold what ends a filter's string
        there = [found for found in ours if found.name == name]
        version = str(there[0].version if there else mlflow.register_model(f"models:/{model_id}", name).version)
    return sent.model_copy(update={"model_id": model_id, "version": version})


def serving_packages(adapter: Path) -> list[str]:
    from tasks.models import serving

    is_quantized = "quantization" in serving.read_settings(adapter)["base_model"]
    names = ["mlflow", "torch", "transformers", "peft", "safetensors", "pandas", "numpy"]
    return [*names, "bitsandbytes"] if is_quantized else names


def send_end(api: "MlflowClient", journal: Journal, lines: Sequence[Line]) -> Sent:
    sent, (line,) = journal.sent, lines
    assert sent.run_id and sent.experiment_id
    for stray in runs_of(api, sent.experiment_id, journal.head.key):
        if stray.info.run_id != sent.run_id:
            api.delete_run(stray.info.run_id)
    if line.values["status"] == "FINISHED" and any(other.values.get("to") == "checkpoint" for other in journal.lines):
        # left by an interruption that nothing else tells of any more
        artifacts = api.get_run(sent.run_id).info.artifact_uri
        repository(f"{artifacts}/checkpoint", tracking_uri()).delete_artifacts()
    end_run(api, sent.run_id, line.values["status"], line.time)
    return sent


SENDERS: dict[str, Callable[["MlflowClient", Journal, Sequence[Line]], Sent]] = {
    "begin": send_begin,
    "params": send_values,
    "metrics": send_metrics,
    "tags": send_values,
    "files": send_files,
    "inputs": send_inputs,
    "model": send_model,
    "end": send_end,
}


def open_experiment(api: "MlflowClient", name: str) -> str:
    """Id of the experiment, which is created with its description and saved view when it is new."""
    from filelock import FileLock

    with FileLock(STORE / ".mlflow.lock"):  # two first runs at once would both create it
        found = api.get_experiment_by_name(name)
        if found and found.lifecycle_stage == "deleted":
            raise InputError(
                f"tracking.experiment: '{name}' was deleted in MLflow; restore it "
                f"({restore('experiments restore --experiment-id', found.experiment_id)}) and give the same command "
                "again, or choose another name"
            )
        if not found:
            # for a store in a file, see tasks/tracking/artifacts.py
            found = api.get_experiment(
                api.create_experiment(name, artifact_location="mlflow-artifacts:/" if store_is_ours() else None)
            )
        furnish(api, found)
    return str(found.experiment_id)


def furnish(api: "MlflowClient", experiment: Any) -> None:
    """Description and saved view of the experiment's run list, where it has none; what people changed there stays."""
    for name, value in runlist.experiment_tags(experiment.experiment_id).items():
        if name not in experiment.tags:
            api.set_experiment_tag(experiment.experiment_id, name, value)
