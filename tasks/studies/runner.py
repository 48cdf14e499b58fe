"""A process that runs trials of a sweep, one after the other: imported once, prepared once."""

import json
import os
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.base.device import THREADS, claim_device, gpus, processes_here
from tasks.base.disk import is_disk_full
from tasks.base.fresh_process import end_with, free_device_memory
from tasks.base.progress import tell
from tasks.base.records import PreparedData, Record, Source, TrainedAdapter, read_record
from tasks.base.sweeps import Outcome
from tasks.base.trouble import first_line, is_network_trouble
from tasks.base.work import WORK, RunFolder
from tasks.scores.objective import Metric, objective, selection_metric
from tasks.servers.runners import shared_studies
from tasks.settings.config import RunConfig, SweepConfig
from tasks.settings.fields import InputError
from tasks.settings.fixed import STORE
from tasks.settings.space import Assignment, with_values
from tasks.sources.columns import array
from tasks.studies.trials import OVER, RUNNER, Trials, check_sweep, is_database_trouble, kept_rows, packed

if TYPE_CHECKING:
    import numpy as np

    from tasks.training.watching import Progress


LOOK_SECONDS = 0.2
"""Between two looks for a trial to run."""

IDLE_SECONDS = 600.0
"""So long a runner waits for a trial from a driver that may be gone."""


OUTCOME = "outcome.json"
"""In the folder of a trial that has ended."""


class Job(Record):
    """All that a runner must know, wherever it is."""

    config: SweepConfig
    name: str
    """Of the study, and of the folder under which the trials lie on each machine."""
    storage: str
    """Of the study: an address, or a file for this process alone."""
    task: str
    source: Source
    base: Source
    trials: int
    host: str
    """Machine that started the sweep, and runs the best trial once more in the end."""

    @property
    def metric(self) -> Metric:
        """Of the validation rows: it chooses the best checkpoint and the best trial."""
        return selection_metric(objective(self.task), self.config.training.selection_metric)

    @property
    def folder(self) -> Path:
        return WORK / self.name

    def open(self) -> Trials:
        return Trials(self.config, self.name, self.storage, self.metric)

    def trial_config(self, values: Assignment) -> RunConfig:
        return with_values(self.config.run_config(), values)

    def trial_folder(self, number: int) -> Path:
        return self.folder.resolve() / f"{number:05d}"


def job_of(config: SweepConfig, work: str, source: Source, base: Source, task: str) -> Job:
    """Of the sweep whose run lies in `work`; found again by a command that goes on with it."""
    from tasks.tracking.journal import journal_of

    _, count = check_sweep(config)
    file = f"sqlite:///{STORE.resolve()}/sweeps.db" if config.parallel > 1 else str(Path(work) / "study.jsonl")
    return Job(
        config=config,
        name=f"sweep-{journal_of(work).head.key[:12]}",
        storage=config.storage or shared_studies() or file,
        task=task,
        source=source,
        base=base,
        trials=count,
        host=socket.gethostname(),
    )


class Hopeless(Exception):
    """A trial that the pruner has ended, with its scores so far."""

    def __init__(self, message: str, metrics: dict[str, float]) -> None:
        super().__init__(message)
        self.metrics = metrics


class Runner:
    """Runs one trial after the other, in one process that has imported and prepared everything once."""

    def __init__(self, job: Job, trials: Trials) -> None:
        self.job, self.trials = job, trials
        self.found: dict[tuple[str, str], Source] = {asked_model(job.config): job.base}
        self.kept = {int(folder.parent.name) for folder in job.folder.glob("*/adapter")}
        """Trials whose adapter lies here."""

    def run(self, number: int) -> Outcome:
        """The trial to its end, from its checkpoint where it was interrupted; told to the study."""
        from filelock import FileLock

        folder = self.job.trial_folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # the process that ran it before may be about to end
            done = folder / OUTCOME
            outcome = read_record(Outcome, done)
            if outcome is None:
                try:
                    outcome = self.outcome(number, folder)
                except Exception:
                    raise
                except BaseException:  # told to stop
                    with suppress(Exception):
                        self.trials.excuse(number)
                    raise
                outcome.write(done)
        self.trials.finish(number, outcome)
        self.clear(number)
        return outcome

    def outcome(self, number: int, folder: Path) -> Outcome:
        try:
            config = self.job.trial_config(self.trials.values(number))
            data = self.prepared(config)
            trained = self.fit(config, data, folder, number)
            return outcome_of(self.job, data, trained)
        except Hopeless as hopeless:
            return Outcome(state="pruned", reason=str(hopeless), metrics=hopeless.metrics)
        except Exception as error:
            if is_disk_full(error) or is_network_trouble(error) or is_database_trouble(error):
                raise  # not the trial's fault, and the next would fare no better
            reason = (
                first_line(error) if isinstance(error, InputError) else f"{type(error).__name__}: {first_line(error)}"
            )
        free_device_memory()  # not inside `except`: there the traceback holds the model
        return Outcome(state="failed", reason=reason)

    def prepared(self, config: RunConfig) -> PreparedData:
        from tasks.data.prepare import prepare
        from tasks.models.foundation import find_model

        if asked_model(config) not in self.found:
            self.found[asked_model(config)] = find_model(config)
        return prepare(config, WORK, (self.job.source, self.found[asked_model(config)]))

    def fit(self, config: RunConfig, data: PreparedData, folder: Path, number: int) -> TrainedAdapter:
        from tasks.training.fit import fit_adapter, steps_per_epoch
        from tasks.training.watching import Watcher, polite_stop

        a_loss = not {"training.class_weights", "training.focal_gamma"}.intersection(
            one.field for one in self.trials.space
        )
        seen = "validation/loss" if a_loss else f"validation/{self.job.metric.name}"
        per_epoch = steps_per_epoch(config, data.rows("train"))

        def report(progress: "Progress") -> None:
            metrics = progress.point.metrics if progress.point else {}
            if seen not in metrics:
                return
            epoch, value = -(-progress.step // per_epoch), metrics[seen]
            hopeless = self.trials.report(number, value if a_loss else -self.job.metric.sign * value, epoch)
            at_its_end = progress.step >= progress.total_steps
            if hopeless and number and not at_its_end:  # with the given configuration, 0, the best one is compared
                raise Hopeless(f"{seen} {value:.4g} after epoch {epoch}", metrics)

        with polite_stop() as stop:
            trained = fit_adapter(config, data, folder, Watcher(report, say=tell, stop=stop))
            trained.write(RunFolder(folder).trained)
            return trained

    def clear(self, number: int) -> None:
        """Keep the adapters of trial 0 and of the best one; all others are numbers only."""
        self.kept.add(number)
        needed = {0, self.trials.best()}
        for gone in self.kept - needed:
            folder = RunFolder(self.job.trial_folder(gone))
            for path in (folder.adapter, folder.checkpoints, folder.stopped):
                shutil.rmtree(path, ignore_errors=True)
        self.kept &= needed


def asked_model(config: RunConfig) -> tuple[str, str]:
    return config.model.name, config.model.revision


def outcome_of(job: Job, data: PreparedData, trained: TrainedAdapter) -> Outcome:
    from tasks.base.machine import environment_key
    from tasks.models import serving

    folder = Path(trained.folder)
    measured = [point for point in trained.history if "validation/loss" in point.metrics]
    best = next(point for point in measured if point.step == trained.best_step)
    table = validation_answers(job, data, folder)
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors") if file.name != serving.VALIDATION)
    metrics = {name: value for name, value in best.metrics.items() if name.startswith("validation/")}
    return Outcome(
        state="finished",
        score=metrics[f"validation/{job.metric.name}"],
        metrics=metrics
        | {
            "adapter/trainable_parameters": trained.trainable_parameters,
            "cost/adapter_mb": size / 2**20,
            "cost/train_seconds": trained.seconds,
            "train/steps": trained.steps,
            "train/best_step": trained.best_step,
        },
        answers=packed(table[rows_kept(len(table), table.shape[1], job.trials)]),
        environment=environment_key(),
    )


def validation_answers(job: Job, data: PreparedData, adapter: Path) -> "np.ndarray":
    """Of the adapter, (rows, ...), in the order of the split, whatever the lengths that trials cut texts to."""
    import numpy as np
    from datasets import load_from_disk
    from safetensors.torch import load_file

    from tasks.models import serving

    splits, kept, task = load_from_disk(data.folder), load_file(adapter / serving.VALIDATION), objective(job.task)
    logits, labels = kept["logits"].double().numpy(), kept["labels"].numpy()
    fitted = task.fit(logits, labels, task.scaling(array(splits["train"], "labels")), calibrated=False)
    table = serving.answers(kept["logits"].double(), {"activation": task.activation, **fitted})
    order = np.argsort(array(splits["validation"].sort("length"), "row"))
    places = np.argsort(np.argsort(array(splits["validation"], "row")))
    same = np.allclose(labels[order][places], array(splits["validation"], "labels"))  # numbers lost some digits
    assert same, "answers and rows are not in one order"
    return np.asarray(table)[order][places]


def rows_kept(rows: int, width: int, trials: int) -> "np.ndarray":
    """The validation rows whose answers each trial keeps, (kept,), in order; the same for all trials."""
    import numpy as np

    return np.sort(np.random.default_rng(0).permutation(rows)[: kept_rows(rows, width, trials)])


# --- a process of its own ---------------------------------------------------------------------------------------------


def serve(job: Job, name: str, share: int) -> None:
    """Run the trials that the driver assigns to the runner `name`, until it is over or the driver is gone for long.

    `share` runners share this machine.
    """
    take_share(share, 1 if job.config.parallel > 1 else processes_here(job.config.training))
    trials = job.open()
    runner = Runner(job, trials)
    runner.prepared(job.config.run_config())  # where data or model cannot be had, no trial is to blame
    get_ready()
    trials.tell_study(RUNNER + name, socket.gethostname())
    idle_since = time.monotonic()
    while time.monotonic() - idle_since < IDLE_SECONDS:
        trials.look()
        mine = [number for number, who in trials.running().items() if who == name]
        for number in mine:
            runner.run(number)
            idle_since = time.monotonic()
        if not mine:
            if trials.told().get(OVER):
                break
            time.sleep(LOOK_SECONDS)
    if socket.gethostname() != job.host:
        shutil.rmtree(job.folder, ignore_errors=True)


def take_share(share: int, count: int = 1) -> None:
    """A GPU for each of `count` processes, or its part of the processor's cores."""
    from joblib import cpu_count

    if not gpus():
        os.environ.setdefault(THREADS, str(max(1, cpu_count() // share)))
    claim_device(count)


def get_ready() -> None:
    """What every trial needs, before one waits for it."""
    import tasks.data.prepare
    import tasks.training.fit
    import tasks.training.trainer  # noqa: F401


def main() -> None:
    """`python -m tasks.studies.runner SHARE PARENT <<< '{"job": FILE, "name": ..., "log": FILE}'`: a runner that ends
    with the process of that number, which has started it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    share, parent = map(int, sys.argv[1:])
    end_with(parent)  # nobody assigns trials to an orphan, and another runner goes on with the one that it is at
    try:
        take_share(share)
        get_ready()
        if not (asked := sys.stdin.read()):  # there are no trials
            return
        request = json.loads(asked)
        with Path(request["log"]).open("ab") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        serve(Job.model_validate_json(Path(request["job"]).read_bytes()), request["name"], share)
    except KeyboardInterrupt:
        sys.exit(1)


if __name__ == "__main__":
    from tasks.base import environment  # noqa: F401  (before the libraries that read it)

    main()
