"""The one file that knows MLflow: open a run, draw its curves, fill it, log and register the model."""

import json
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import yaml

from tasks import runlist
from tasks.artifacts import folder_of, repository
from tasks.base import closing, liveness
from tasks.base.disk import causes
from tasks.base.events import announce
from tasks.base.files import whole, write_text
from tasks.base.machine import describe_environment, public_version
from tasks.base.outcomes import RecordedRun, StoredRun
from tasks.base.progress import tell, warn
from tasks.base.records import Record
from tasks.base.trouble import ask_again, first_line, growing_pauses, is_network_trouble, is_silence
from tasks.base.work import WORK, RunFolder, as_one, enclosing, forget, if_unused, is_delivered
from tasks.journal import HEAD, LINES, Head, Journal, Kind, Line, Sent, now, waits
from tasks.settings.config import DEPLOYMENTS, STORE, InputError, RunConfig
from tasks.settings.loading import checked, parse_yaml
from tasks.settings.secrets import without_login

if TYPE_CHECKING:
    from mlflow import MlflowClient


UI = "http://127.0.0.1:5000"
"""Where `peft-flow up` shows a local store."""


FLOW_RUN_TAG, FLOW_RUN_URL_TAG = "prefect.flow_run_id", "prefect.flow_run_url"


NOTE = "mlflow.note.content"
"""Where MLflow keeps a run's description."""


NOT_COMPARED: Any = {
    "tracking": True,
    "offline": True,
    "model": {"trust_remote_code", "revision"},
    "data": {"revision", "test_file"},
    "adapter": {"target_modules"},
}
"""Configuration that is recorded in config.yaml but is no parameter: nobody compares it, or what the run made of it
(`found_parameters`) says more, and MLflow never lets go of a value once logged."""


def tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or default_store()


def client() -> "MlflowClient":
    """MLflow's client for the store of `tracking_uri`, which may be another one than a moment ago."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri())


def default_store() -> str:
    return f"sqlite:///{STORE.resolve()}/mlflow.db"


def store_is_ours() -> bool:
    """Whether runs go into a file here; a server decides itself where artifacts lie."""
    return tracking_uri().startswith("sqlite:")


def public_uri() -> str:
    """The tracking address without user and password, to be shown and stored."""
    return without_login(tracking_uri())


def run_url(run_id: str) -> str:
    """Address of the run in the MLflow UI."""
    return f"{ui()}/{runlist.run_address(experiment_of(run_id), run_id)}"


def experiment_url(run_id: str) -> str:
    """Address of the list of all runs of the run's experiment, with the columns that runs are compared by."""
    return f"{ui()}/{runlist.address(experiment_of(run_id))}"


def ui() -> str:
    """Where people open MLflow, without a slash at the end: MLFLOW_UI_URL (behind a proxy), else the server."""
    server = public_uri() if tracking_uri().startswith("http") else UI
    return without_login(os.environ.get("MLFLOW_UI_URL") or server).rstrip("/")


def serve_command() -> list[str]:
    """What to run to see a store in a file; nothing where there is a server."""
    if not store_is_ours():
        return []
    if tracking_uri() == default_store() and DEPLOYMENTS.exists():  # elsewhere it would not start
        return ["peft-flow", "up"]
    store = tracking_uri()
    return ["mlflow", "server", "--backend-store-uri", store, "--artifacts-destination", str(folder_of(store))]


def experiment_of(run_id: str) -> str:
    if run_id in _experiments:
        return _experiments[run_id]
    return str(client().get_run(run_id).info.experiment_id)


@contextmanager
def tracked_run(config: RunConfig, work: str, tags: Mapping[str, str]) -> Iterator[None]:
    """The MLflow run of the folder `work`, which ends as the block does; one that was interrupted goes on.

    FINISHED; FAILED on an exception; KILLED when the process is told to stop (SIGTERM, Ctrl-C, a cancelled flow).
    Everything goes to the folder's journal first and from there to MLflow, which may be gone meanwhile. Whatever cannot
    be said because this process is gone, the next run says: before it starts, it closes the runs that died.
    Another process that runs the same is waited for, and its result taken.
    """
    flow_run, parent = tags.get(FLOW_RUN_TAG), enclosing()
    make_store()
    with as_one(work) as waited:
        if flow_run:
            liveness.hold(flow_run, work)
        tidy_up()
        waited = waited or liveness.followed(flow_run)
        journal = open_journal(config, work, parent if parent in _open else None, waited)
        status = "FAILED"
        try:
            begin(journal, config, tags)
            yield
            status = "FINISHED"
        except BaseException as error:
            status = "KILLED" if told_to_stop(error) else "FAILED"
            raise
        finally:
            if work in _open:  # else it was refused
                end_here(journal, status)
                del _open[work]


_experiments: dict[str, str] = {}
"""Of the runs of this process, by id: MLflow may be gone again when their addresses are shown."""


def end_here(journal: Journal, status: str) -> None:
    """What the run could not say of its end, the next command says.

    A finished run waits for an MLflow that does not answer, as it did with its results; one that was stopped does not.
    """
    patience = PATIENCE_SECONDS if status == "FINISHED" else 0.0
    try:
        journal.add("end", {"status": status})
        if try_to_send(str(journal.folder), at_once=True, patience=patience):
            return
    except OSError as error:  # a full disk
        warn("%s", error)
    warn("The next command will tell MLflow that this run has ended")


_open: dict[str, Journal] = {}
"""Journals that this process writes to, by folder."""


def open_journal(config: RunConfig, work: str, parent: str | None, waited: bool) -> Journal:
    """The journal of the run that was interrupted in this folder, or finished while this one waited; else a new one."""
    journal = Journal(Path(work))
    is_over = journal.status == "FINISHED" and not journal.waiting and is_delivered(work) and not waited
    if journal.status and not is_over:
        what = "was interrupted before; it goes on from there"
        if journal.status == "FINISHED":  # its process is still about to end, or did not come to that
            what = "has just been finished; its result is used"
        tell("The same run %s (MLflow run %s, files in %s)", what, journal.sent.run_id or "to come", work)
    else:
        forget(work, (*journal.files, *RunFolder(work).progress))
        head = Head(
            key=uuid4().hex,
            name=config.run_name(),
            experiment=config.tracking.experiment,
            started=now(),
            parent=parent,
        )
        journal = Journal.create(Path(work), head)
    _open[work] = journal
    return journal


def begin(journal: Journal, config: RunConfig, tags: Mapping[str, str]) -> None:
    """What the run was told, at its start, so that a run that fails shows it too.

    Raises InputError for what MLflow refuses, and nothing is left of a run that has just begun; without an answer from
    it, the run goes on.
    """
    told = dict(tag.split("=", 1) for tag in config.tracking.tags)
    tags = {"mlflow.source.name": "peft-flow", NOTE: link_to_prefect(tags), **told, **tags}
    journal.add("begin", {"flow_run_id": tags.get(FLOW_RUN_TAG), "tags": tags})
    values = flatten(config.model_dump(mode="json", exclude=NOT_COMPARED))
    journal.add("params", {name: str(value) for name, value in values.items()})
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    for name, text in (("config.yaml", settings), ("environment.txt", describe_environment())):
        write_text(journal.folder / name, text)
        journal.add("files", {"to": "", "paths": [name]})
    try:
        send(journal)
    except Exception as error:
        refusal = str(error) if isinstance(error, InputError) else why_refused(error)
        if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":  # it would be after the training, too
            refusal = f"MLflow ({public_uri()}) refuses this run: {first_line(error)}"
        if not refusal:
            put_off(str(journal.folder), error)
            return
        if sum(line.kind == "begin" for line in journal.lines) == 1:
            take_back(journal)
        raise InputError(refusal) from error


def take_back(journal: Journal) -> None:
    """Leave nothing of a run that was refused: it would be tried again with every command."""
    if run_id := journal.sent.run_id:
        with suppress(Exception):
            client().set_terminated(run_id, "FAILED")
    forget(str(journal.folder), journal.files)
    del _open[str(journal.folder)]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = ",".join(map(str, value)) if isinstance(value, list) else value
    return flat


def run_id_of(work: str) -> str | None:
    """Id of the MLflow run; None while MLflow has not answered yet."""
    return journal_of(work).sent.run_id


def journal_of(work: str) -> Journal:
    return _open.get(work) or Journal(Path(work))


def link_to_prefect(tags: Mapping[str, str]) -> str:
    """The last line of a run's description: MLflow shows tags as plain text."""
    return f"[Run page in Prefect]({tags[FLOW_RUN_URL_TAG]})" if FLOW_RUN_URL_TAG in tags else ""


def tidy_up() -> None:
    """What others could not do any more: give dead runs their end, and MLflow what waits for it."""
    try:
        close_dead_runs()
    except Exception as error:
        warn("runs that died cannot be closed yet: %s", error)
    send_what_waits()


def close_dead_runs() -> list[str]:
    """Give every run of this folder whose process is gone its end, in MLflow and Prefect; ids of their flow runs."""
    return closing.close_dead_runs(end_dead_run)


def send_what_waits() -> None:
    """Everything that is still to reach MLflow, from runs that no process works on.

    What MLflow refuses of one run, for its experiment was deleted or for a value, is said and left where it is.
    """
    for file in sorted(WORK.glob(f"*/{LINES}")):
        work = str(file.parent.resolve())
        try:
            if work in _open or not waits(file.parent):
                continue
            with if_unused(work) as unused:
                if unused and not try_to_send(work) and (error := _put_off.get(work)) and others_meet(error):
                    return
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError as unreadable:
            put_off(work, unreadable)


def others_meet(error: Exception) -> bool:
    """Whether it is no matter of one run: MLflow does not answer, or does not let us in."""
    return is_silence(error) or bool(why_refused(error))


ENDS = {"COMPLETED": "FINISHED", "FAILED": "FAILED", "CRASHED": "KILLED", "CANCELLED": "KILLED"}
"""How a run that could not say so itself ended, by the final state of its flow run."""


def end_dead_run(note: liveness.Note, how: closing.End) -> bool:
    """Whether the run had not ended, which it has now."""
    if note.work is None or note.work in _open:  # it died before it had a run in MLflow; it is being continued here
        return False
    with if_unused(note.work) as unused:
        journal = Journal(Path(note.work))
        if not unused or journal.status != "RUNNING" or journal.flow_run_id != note.flow_run_id:
            return False
        journal.add("end", {"status": ENDS[how.state]}, at=int(1000 * how.time.timestamp()))
        try_to_send(note.work)
        return True


def close_silent_runs() -> None:
    """End in MLflow what has ended in Prefect, for runs that left no note in this folder: they ran elsewhere."""
    api, here = client(), {note.flow_run_id for note in liveness.notes()}
    experiments = [experiment.experiment_id for experiment in api.search_experiments()]
    for run in api.search_runs(experiments, "attributes.status = 'RUNNING'"):
        flow_run = run.data.tags.get(FLOW_RUN_TAG)
        if flow_run and flow_run not in here and (how := closing.settled_end(flow_run)):
            end_run(api, run.info.run_id, ENDS[how.state], int(1000 * how.time.timestamp()))


def end_run(api: "MlflowClient", run_id: str, status: str, at: int) -> None:
    """Its status in MLflow, and the event for automations."""
    api.set_terminated(run_id, status, end_time=at)
    run = api.get_run(run_id)
    flow_run = run.data.tags.get(FLOW_RUN_TAG)
    if not flow_run:  # not run by Prefect
        return
    facts = {"experiment": api.get_experiment(run.info.experiment_id).name, "url": run_url(run_id)}
    for name in ("tuned/accuracy", "reference/strongest/gain", "delta/accuracy"):
        if name in run.data.metrics:
            facts[name.replace("/", "_")] = f"{run.data.metrics[name]:z.4f}"
    if "verdict" in run.data.tags:
        facts["verdict"] = run.data.tags["verdict"]
    announce(status, run_id, run.info.run_name, flow_run, facts)


def told_to_stop(error: BaseException) -> bool:
    """Whether a signal or a cancelled flow is at the bottom of it: then Prefect's server may be gone first, and
    what is raised on the way out says only that it does not answer."""
    return any(not isinstance(cause, Exception) for cause in causes(error))


# --- from the journal to MLflow ---------------------------------------------------------------------------------------

UPDATE_SECONDS = 5.0
"""Between two attempts; more often tells nobody more and slows training."""


MOST_SHARE = 0.01
"""Of the time that passes, for sending: a slow server slows the live curves, not the training."""


PATIENCE_SECONDS = 300
"""So long a run waits at its end for an MLflow that does not answer."""


_next_attempt: dict[str, float] = {}


_put_off: dict[str, Exception] = {}
"""By folder: why MLflow does not have all of it."""


def try_to_send(work: str, at_once: bool = False, patience: float = 0.0) -> bool:
    """Whether MLflow has all of the journal. It is asked only now and then, unless `at_once`; raises nothing.

    One that does not answer is waited for, `patience` seconds.
    """
    begun = time.monotonic()
    if not at_once and begun < _next_attempt.get(work, 0):
        return False
    try:
        answered(lambda: send(journal_of(work)), patience, lambda error: put_off(work, error))
    except Exception as error:
        put_off(work, error)
        return False
    finally:
        done = time.monotonic()
        _next_attempt[work] = done + max(UPDATE_SECONDS, (done - begun) / MOST_SHARE)
    if work in _put_off:
        del _put_off[work]
        tell("MLflow answers again and has everything")
    return True


def put_off(work: str, error: Exception) -> None:
    """Say it once, whatever number of attempts fail."""
    known, _put_off[work] = _put_off.get(work), error
    if known and others_meet(known) == others_meet(error):
        return
    if work in _open or others_meet(error):
        words = "does not accept what this run records (%s). The run goes on, and all of it is kept in %s"
    else:
        words = "does not accept what an earlier run recorded (%s). Every command tries again, until %s is removed"
    warn(f"MLflow (%s) {words}", public_uri(), reason(error), work)


def reason(error: BaseException) -> str:
    """In a few words: `Connection refused` is at the bottom of three exceptions, each of which quotes the next."""
    told = [cause.strerror for cause in causes(error) if isinstance(cause, OSError) and cause.strerror]
    return told[-1] if told else first_line(error)


def send_all(work: str) -> Sent:
    """MLflow has all of the journal; one that does not answer is waited for. Raises what goes wrong in the end."""
    journal = journal_of(work)
    try:
        answered(lambda: send(journal), PATIENCE_SECONDS, lambda error: put_off(work, error))
    except InputError as error:
        raise InputError(f"{error}. The results are kept in {work}: nothing is computed twice") from error
    except Exception as error:
        raise RuntimeError(
            f"MLflow ({public_uri()}) did not accept the results ({reason(error)}). They are kept in {work}; "
            "run the same command again when it answers, nothing is computed twice"
        ) from error
    return journal.sent


T = TypeVar("T")


def answered(ask: Callable[[], T], seconds: float, waiting: Callable[[Exception], None]) -> T:
    """What `ask` gives; where MLflow does not answer, `waiting` is told and it is asked again, for so many seconds."""
    return ask_again(ask, growing_pauses(seconds), lambda error: not why_refused(error) and may_recover(error), waiting)


def may_recover(error: Exception) -> bool:
    """Whether waiting may help: a server that is gone, overloaded or starting, a database that is locked.

    Or a row that another run has just added: two runs on the same data log the same data set, and MLflow looks for it
    before it adds it. The next time it is found.
    """
    from mlflow.exceptions import MlflowException

    status = error.get_http_status_code() if isinstance(error, MlflowException) else 0
    return is_network_trouble(error) or status >= 500 or status == 429 or "IntegrityError" in str(error)


def why_refused(error: Exception) -> str:
    """What to say where MLflow turns us away for good."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403):
        return (
            f"MLFLOW_TRACKING_URI: {public_uri()} refuses access; check MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
    return ""


def send(journal: Journal) -> None:
    """Tell MLflow what it does not have yet, in order; raises what goes wrong. What was sent stays sent."""
    from mlflow.exceptions import MlflowException

    try:
        send_lines(journal)
    except (Deleted, MlflowException) as error:
        if not journal.sent.run_id or not is_gone(error, journal.sent.run_id):
            raise
        journal.mark(Sent())  # another store, or the run was deleted: everything once more, as a new run
        send_lines(journal)


def is_gone(error: Exception, run_id: str) -> bool:
    """Whether a server that answers has the run no longer."""
    if isinstance(error, Deleted):
        return True
    return not may_recover(error) and not why_refused(error) and bool(what_is_gone(run_id))


class Deleted(Exception):
    """Somebody has deleted the run in MLflow."""


def send_lines(journal: Journal) -> None:
    import mlflow

    waiting = journal.waiting
    if not waiting:
        return
    mlflow.set_tracking_uri(tracking_uri())
    api = client()
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
        api.create_run(experiment_id, head.started, resolve_tags(tags), head.name)
        found = runs_of(api, experiment_id, head.key)
    return Sent(run_id=found[0].info.run_id, experiment_id=experiment_id)


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
        # null is how older versions wrote down what is no number
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
        answers = ["probability", *(f"probability_{name}" for name in known["label_names"])]
        identity = {"model_uuid": model.model_id, "model_id": model.model_id, "run_id": sent.run_id}
        with TemporaryDirectory() as folder:
            mlflow.pyfunc.save_model(
                f"{folder}/model",
                mlflow_model=Model(artifact_path=model.artifact_location, **identity),
                python_model=serving.__file__,
                artifacts={"adapter": str(journal.folder / known["adapter"])},
                model_config={"base_model": known["base_model"]},
                signature=ModelSignature(
                    inputs=Schema([ColSpec(DataType.string, name) for name in known["text_columns"]]),
                    outputs=Schema(
                        [ColSpec(DataType.string, "label"), *(ColSpec(DataType.double, name) for name in answers)]
                    ),
                ),
                input_example=pd.DataFrame(known["example"], columns=known["text_columns"]),
                pip_requirements=[f"{name}=={public_version(name)}" for name in SERVING_PACKAGES],
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


SERVING_PACKAGES = ("mlflow", "torch", "transformers", "peft", "safetensors", "pandas", "numpy")


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


DATABASE_BYTES = 1_000_000
"""An empty one has about 600 kB."""


def make_database() -> None:
    """`mlruns/mlflow.db`, whole or not at all: MLflow makes one table after the other, and can never use a database
    whose making was killed or did not fit on the disk."""
    database = STORE / "mlflow.db"
    if tracking_uri() != default_store() or database.exists():
        return
    from filelock import FileLock
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    with FileLock(STORE / ".mlflow.lock"):  # two first runs at once would both create it
        if database.exists():
            return
        for leftover in STORE.glob(".mlflow.db.*"):  # SQLite's own files beside it too
            leftover.unlink()
        with whole(database, DATABASE_BYTES) as staged:
            engine = create_engine(f"sqlite:///{staged}")
            try:
                _initialize_tables(engine)
            finally:
                engine.dispose()


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
            # for a store in a file, see tasks/artifacts.py
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


def make_store() -> None:
    try:
        (STORE / "artifacts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{STORE.resolve()} cannot be made: {error.strerror}; run in a folder you can write to"
        ) from None
    make_database()


# --- what a run has to tell -------------------------------------------------------------------------------------------


def log(work: str, kind: Kind, values: Mapping[str, Any], step: int = 0, of_model: bool = False) -> None:
    """Into the run's journal, and to MLflow when it is time; `of_model` ties metrics to the logged model."""
    journal_of(work).add(kind, dict(values), step, of_model=of_model)
    try_to_send(work)


def log_files(work: str, to: str, *paths: Path) -> None:
    """Files, or folders with all that is in them, for `to` among the run's artifacts. They must stay as they are."""
    log(work, "files", {"to": to, "paths": [os.path.relpath(path, work) for path in paths]})


def describe(work: str, text: str) -> None:
    """The run's description, with the link to its Prefect page."""
    tags = next(line.values["tags"] for line in reversed(journal_of(work).lines) if line.kind == "begin")
    link = link_to_prefect(tags)
    log(work, "tags", {NOTE: "  \n".join(filter(None, (text, link)))})  # two spaces: a line break in markdown


# --- what others have told --------------------------------------------------------------------------------------------


class Refused(InputError):
    """MLflow knows us and does not let us."""


@contextmanager
def in_one_line() -> Iterator[None]:
    """A server that does not answer is the user's to start, one that turns us away the user's to ask: InputError."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if refusal := why_refused(error):
            raise Refused(refusal) from error
        if not store_is_ours() and is_network_trouble(error):
            raise InputError(f"MLFLOW_TRACKING_URI: {public_uri()} does not answer; start it or unset it") from error
        raise


def is_there() -> bool:
    """Whether there is a store; MLflow would make an empty one of whatever it is asked for."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or (STORE / "mlflow.db").exists()


def check_store() -> None:
    if not is_there():
        raise InputError(f"there are no runs in {STORE.resolve()}; go to the folder of your runs")


def stored_run(run_id: str, folder: Path) -> StoredRun:
    """A finished run, with its adapter's predictions downloaded into `folder`; InputError where it has none."""
    from mlflow.exceptions import MlflowException

    check_store()
    with in_one_line():
        try:
            run = client().get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise InputError(f"there is no run {run_id} in {public_uri()}; MLflow shows each run's id") from None
    parameters, tags = run.data.params, run.data.tags
    if gone := what_is_gone(run_id):
        raise InputError(f"{gone}, or choose another run")
    if "seeds" in parameters:
        raise InputError(f"run {run_id} stands for {parameters['seeds']} runs, one for each seed; name one of those")
    if run.info.status != "FINISHED":
        raise InputError(f"run {run_id} has not finished ({run.info.status}); run it again, or choose another run")
    if "verdict" not in tags:
        raise InputError(f"run {run_id} was not made by peft-flow finetune")
    if "test_fingerprint" not in tags:
        raise InputError(f"run {run_id} is of an older version, which did not say what its test rows are; run it again")
    return StoredRun(
        run_id=run_id,
        name=run.info.run_name,
        verdict=tags["verdict"],
        parameters=parameters,
        test_fingerprint=tags["test_fingerprint"],
        predictions=str(fetched(run_id, PREDICTIONS, folder)),
    )


def fetched(run_id: str, artifact: str, folder: Path) -> Path:
    """A file of the run, downloaded into `folder`; InputError where it is gone."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(
            download_artifacts(run_id=run_id, artifact_path=artifact, dst_path=str(folder), tracking_uri=tracking_uri())
        )
    except (MlflowException, OSError) as error:
        raise InputError(f"run {run_id}: its file {artifact} cannot be read: {first_line(error)}") from error


def recorded_run(run_id: str, folder: Path) -> RecordedRun:
    """All that a finished run needs to be done again; InputError where something of it is missing."""
    stored = stored_run(run_id, folder)
    tags = client().get_run(run_id).data.tags
    needed = ("data_fingerprint", "adapter_sha256")
    if not {*needed} <= tags.keys() or not {"model.revision", "data.revision"} <= stored.parameters.keys():
        raise InputError(f"run {run_id} is of an older version, which did not record all that a rerun needs")
    config, environment = (
        fetched(run_id, name, folder).read_text(encoding="utf-8") for name in ("config.yaml", "environment.txt")
    )
    return RecordedRun(
        run=stored,
        config=checked(RunConfig, parse_yaml(config), f"run {run_id}, config.yaml: "),
        environment=environment,
        **{name: tags[name] for name in needed},
    )


def note_outcome(run_id: str, tags: Mapping[str, str], line: str, page: Path) -> None:
    """What became known of a run after it had ended: tags, a file, and the first line of its description."""
    api = client()
    text = api.get_run(run_id).data.tags.get(NOTE, "")
    if not text.startswith(line):  # else it has been said before
        tags = {**tags, NOTE: f"{line}  \n{text}"}  # two spaces: a line break in markdown
    api.log_artifact(run_id, str(page))
    for name, value in tags.items():
        api.set_tag(run_id, name, value)


PREDICTIONS = "comparison/tuned.parquet"
"""Artifact with what the adapter said about the test rows."""


CHAMPION, PREVIOUS = "champion", "previous"
"""Aliases, in MLflow's model registry: of the version in use, which the next one has to beat, and of the one before."""


class Champion(Record):
    uri: str
    """`models:/NAME/VERSION`"""
    version: str
    source: str
    """The logged model behind it: a version number is given anew after its model was deleted, this name never."""
    run_id: str | None
    """Of the run that trained it."""


def find_champion(name: str) -> Champion | None:
    """What carries the alias among the versions of registered model `name`, where there is one."""
    from mlflow.exceptions import MlflowException

    if not is_there():
        return None
    try:
        found = client().get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ABSENT:  # no such model; no such alias
            return None
        raise
    version = str(found.version)
    return Champion(
        uri=f"models:/{name}/{version}", version=version, source=str(found.source), run_id=found.run_id or None
    )


ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow answers where it does not have what it is asked for."""


class RegisteredVersion(Record):
    """One version of a registered model."""

    version: str
    created: int
    """Milliseconds since 1970."""
    run_id: str | None
    source: str
    aliases: tuple[str, ...]
    tags: dict[str, str]
    description: str


class NoModel(InputError):
    """There is no registered model of this name."""


class Renamed(InputError):
    """The registered model of this name has another now."""


def registered_versions(name: str) -> list[RegisteredVersion]:
    """All versions of registered model `name`, oldest first; InputError where it, or store or server, is missing:
    NoModel, or Renamed."""
    from mlflow.exceptions import MlflowException

    if not name.strip() or {"/", ":"}.intersection(name):
        raise InputError(f"registered models have a name without '/' and ':', not {name!r:.80}")
    check_store()
    api = client()
    with in_one_line():
        try:
            aliases = api.get_registered_model(name).aliases  # a search leaves them out
        except MlflowException as error:
            if error.error_code not in ABSENT:
                raise
            if renamed := new_name(api, name):
                raise Renamed(
                    f"registered model {name} was renamed to {renamed} in MLflow; give that name, or rename it back"
                ) from None
            known = ", ".join(model.name for model in api.search_registered_models(max_results=10))
            there = f"it has {known}" if known else "none was registered yet; see tracking.registered_model"
            raise NoModel(f"there is no registered model {name!r:.80} in {public_uri()}; {there}") from None
        quote = '"' if "'" in name else "'"
        found = api.search_model_versions(f"name={quote}{name}{quote}", max_results=MOST_VERSIONS)
    versions = [
        RegisteredVersion(
            version=str(one.version),
            created=one.creation_timestamp,
            run_id=one.run_id or None,
            source=str(one.source),
            aliases=tuple(sorted(alias for alias, version in aliases.items() if str(version) == str(one.version))),
            tags=one.tags,
            description=one.description or "",
        )
        for one in found
    ]
    return sorted(versions, key=lambda version: int(version.version))


MOST_VERSIONS = 10_000


def new_name(api: "MlflowClient", name: str) -> str | None:
    """What the registered model is called now that was `name`: what was decided about its versions says so."""
    said = f'"name":{json.dumps(name, ensure_ascii=False)},'
    for version in api.search_model_versions(max_results=MOST_VERSIONS):
        if version.name != name and any(
            tag.startswith("decision.") and said in value for tag, value in version.tags.items()
        ):
            return str(version.name)
    return None


def register_again(name: str, model_uri: str) -> str:
    """The new version of a logged model whose registered model, or version of it, was deleted."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    with in_one_line():
        return str(mlflow.register_model(model_uri, name).version)


def set_alias(name: str, alias: str, version: str) -> None:
    with in_one_line():
        client().set_registered_model_alias(name, alias, version)


def tag_version(name: str, version: str, tags: Mapping[str, str]) -> None:
    api = client()
    with in_one_line():
        for tag, value in tags.items():
            api.set_model_version_tag(name, version, tag, value)


def describe_version(name: str, version: str, text: str) -> None:
    with in_one_line():
        client().update_model_version(name, version, text)


class RunFacts(Record):
    """What a run says of itself, whatever made it."""

    run_id: str
    name: str
    url: str
    """Of its page in MLflow."""
    started: int
    """Milliseconds since 1970."""
    parameters: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    deleted: bool = False
    """As long as it can be restored."""


def run_facts(run_id: str) -> RunFacts | None:
    """None for a run that is not there any more."""
    from mlflow.exceptions import MlflowException

    with in_one_line():
        try:
            run = client().get_run(run_id)
        except MlflowException as error:
            if error.error_code in ABSENT:
                return None
            raise
    return RunFacts(
        run_id=run_id,
        name=run.info.run_name or "",
        url=f"{ui()}/{runlist.run_address(run.info.experiment_id, run_id)}",
        started=run.info.start_time,
        parameters=run.data.params,
        metrics=run.data.metrics,
        tags=run.data.tags,
        deleted=run.info.lifecycle_stage == "deleted",
    )


def what_is_gone(run_id: str) -> str:
    """In a sentence, with what brings it back, where the run or its experiment was deleted; empty where both are there.

    MLflow keeps what was deleted until `mlflow gc` removes it.
    """
    from mlflow.exceptions import MlflowException

    api = client()
    with in_one_line():
        try:
            run = api.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ABSENT:
                return f"run {run_id} is not in MLflow any more"
            raise
        if run.info.lifecycle_stage != "deleted":
            return ""
        experiment = api.get_experiment(run.info.experiment_id)
    if experiment.lifecycle_stage == "deleted":
        command = restore("experiments restore --experiment-id", experiment.experiment_id)
        return f"experiment '{experiment.name}', with run {run_id}, was deleted in MLflow; restore it ({command})"
    command = restore("runs restore --run-id", run_id)
    return f"run {run_id} was deleted in MLflow; restore it ({command})"


def restore(command: str, what: str) -> str:
    return f"MLFLOW_TRACKING_URI={shlex.quote(public_uri())} mlflow {command} {what}"


def runs_tagged(tag: str, value: str) -> set[str]:
    """Ids of the runs, of all experiments, that carry the tag with this value."""
    api = client()
    experiments = [experiment.experiment_id for experiment in api.search_experiments()]
    return {run.info.run_id for run in api.search_runs(experiments, f"tags.`{tag}` = '{value}'")}


def attach(run_id: str, to: str, *files: Path) -> None:
    """Files for the artifacts of a run that has ended, in its folder `to`."""
    for file in files:
        client().log_artifact(run_id, str(file), to)


def download(run_id: str, path: str, folder: Path) -> Path | None:
    """A copy of one artifact of a run under `folder`; None where the run has none of this name."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    parent = path.rpartition("/")[0] or None
    api = client()
    try:
        if path not in [file.path for file in api.list_artifacts(run_id, parent)]:
            return None
    except MlflowException as error:
        if error.error_code in ABSENT:  # the run is gone
            return None
        raise
    folder.mkdir(parents=True, exist_ok=True)
    return Path(
        download_artifacts(run_id=run_id, artifact_path=path, dst_path=str(folder), tracking_uri=tracking_uri())
    )


def find_adapter(name: str) -> tuple[str, str]:
    """Address, for `download_adapter`, and version of what a user calls `name`: NAME/3, or the id of a run.

    NAME alone is its champion; NAME@ALIAS and NAME/3 may stand after `models:/`. Raises InputError where there is none.
    """
    from mlflow.exceptions import MlflowException

    check_store()
    api, asked = client(), name.removeprefix("models:/")
    with in_one_line():
        try:
            if re.fullmatch("[0-9a-f]{32}", asked):
                if not api.list_artifacts(asked, "adapter"):
                    raise InputError(f"model: run {asked} holds no adapter; give one that peft-flow finetune finished")
                return f"runs:/{asked}/adapter", asked
            if re.fullmatch("m-[0-9a-f]{32}", asked):  # a logged model, as finetune shows it
                return f"models:/{asked}", str(api.get_logged_model(asked).source_run_id or asked)
            registered, slash, number = asked.partition("/")
            registered, _, alias = (registered, "", "") if slash else asked.partition("@")
            found = (
                api.get_model_version(registered, number)
                if slash
                else api.get_model_version_by_alias(registered, alias or CHAMPION)
            )
        except MlflowException as error:
            if error.error_code not in ABSENT:
                raise
            registered = asked.removesuffix(f"@{CHAMPION}")
            if latest := newest_version(registered):
                raise InputError(
                    f"model: {registered} has no champion; make a version its champion "
                    f"({promote_command(registered, latest)}), or name the version: {registered}/{latest}"
                ) from None
            raise InputError(
                f"model: there is no run, registered model, version or alias {name!r:.100} in {public_uri()}, "
                "and no such folder; MLflow shows what there is"
            ) from None
    return f"models:/{registered}/{found.version}", f"{registered}/{found.version}"


def promote_command(name: str, version: str) -> str:
    """To be copied into a shell: a name can hold spaces and apostrophes."""
    return f"peft-flow promote {shlex.quote(name)} {version} --reason TEXT"


def newest_version(name: str) -> str | None:
    """Of a registered model; None where it has no version, or is not there."""
    try:
        versions = registered_versions(name)
    except InputError:
        return None
    return versions[-1].version if versions else None


def download_adapter(uri: str, folder: Path) -> Path:
    """The adapter folder of a model that `log_model` logged, or of a run's artifacts, copied into `folder`; OSError
    where it has none."""
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri())
    try:
        files = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        raise FileNotFoundError(first_line(error)) from error  # run or model was deleted for good
    adapter = files if uri.startswith("runs:/") else files / "artifacts/adapter"
    if not adapter.is_dir():
        raise FileNotFoundError(f"{uri} holds no adapter")
    return adapter


def run_of(uri: str) -> str | None:
    """Id of the run that trained the model at an address of `find_adapter`; None where MLflow does not say."""
    kind, name, *number = uri.split("/")
    if kind == "runs:":
        return name
    with in_one_line():
        api = client()
        found = api.get_model_version(name, *number).run_id if number else api.get_logged_model(name).source_run_id
    return found or None


def find_test_table(uri: str, folder: Path) -> Path | None:
    """The table of test rows, with their texts, of the run that made this model; None where it is gone."""
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri())
    try:
        run_id = uri.split("/")[1] if uri.startswith("runs:/") else mlflow.models.get_model_info(uri).run_id
        return fetched(run_id, TEST_TABLE, folder)
    except (InputError, MlflowException):
        return None


TEST_TABLE = "comparison/predictions.json"
"""Artifact with a line for each test row."""
