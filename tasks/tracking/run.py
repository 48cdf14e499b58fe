"""A run in MLflow: opened, continued after an interruption, told by its journal, ended; and dead ones closed."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import yaml

from tasks.base import closing, liveness
from tasks.base.files import write_text
from tasks.base.machine import describe_environment
from tasks.base.progress import tell, warn
from tasks.base.trouble import first_line, is_silence
from tasks.base.work import ELSEWHERE, WORK, RunFolder, as_one, enclosing, forget, if_unused, is_delivered
from tasks.settings.fields import InputError
from tasks.settings.sections import TrackingConfig
from tasks.tracking.address import FLOW_RUN_TAG, NOTE, client, link_to_prefect, public_uri
from tasks.tracking.journal import LINES, Head, Journal, Kind, Sent, _open, journal_of, now, waits
from tasks.tracking.opening import make_store
from tasks.tracking.patience import answered, reason, told_to_stop, why_refused
from tasks.tracking.sending import end_run, send

if TYPE_CHECKING:
    pass


NOT_COMPARED: Any = {
    "tracking": True,
    "offline": True,
    "model": {"trust_remote_code", "revision"},
    "data": {"revision", "test_file", "corrections", "task"},
    "adapter": {"target_modules"},
    "training": ELSEWHERE["training"],
}
"""Configuration that is recorded in config.yaml but is not a parameter: nobody compares it, or what the run made of it
(`found_parameters`) says more, and MLflow never lets go of a value once logged."""


class Tracked(Protocol):
    """A configuration whose run MLflow is told of: RunConfig, and those of other flows."""

    @property
    def tracking(self) -> TrackingConfig: ...

    def run_name(self) -> str: ...

    def model_dump(self, *, mode: str = "python", exclude: Any = None) -> dict[str, Any]: ...


@contextmanager
def tracked_run(config: Tracked, work: str, tags: Mapping[str, str]) -> Iterator[None]:
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


def open_journal(config: Tracked, work: str, parent: str | None, waited: bool) -> Journal:
    """The journal of the run that was interrupted in this folder, or finished while this one waited; else a new one."""
    journal = Journal(Path(work))
    is_over = journal.status == "FINISHED" and not journal.waiting and is_delivered(work) and not waited
    if journal.status and not is_over:
        what = "was interrupted before; it goes on from there"
        if journal.status == "FINISHED":  # its process is still about to end, or did not come to that
            what = "has just been finished; its result is used"
        tell("The same run %s (MLflow run %s, files in %s)", what, journal.sent.run_id or "to come", work)
    else:
        # without a journal, what is trained comes from a trial of a sweep
        forget(work, (*journal.files, *(RunFolder(work).progress if journal.status else ())))
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


def begin(journal: Journal, config: Tracked, tags: Mapping[str, str]) -> None:
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

    What MLflow refuses of one run, because of a deleted experiment or a value, is logged and left where it is.
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
    """Whether it is not about one run: MLflow does not answer, or does not let us in."""
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
