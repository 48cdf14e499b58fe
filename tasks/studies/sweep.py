"""The driver of a sweep: who runs which trial, what MLflow and the run page hear of it, and when it is over."""

import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import task

from tasks.base.progress import amount, table_artifact, tell, warn
from tasks.base.records import TrainedAdapter, read_record
from tasks.base.sweeps import ENDED, Outcome, Trial
from tasks.base.trouble import first_line, is_network_trouble
from tasks.base.work import RunFolder
from tasks.servers.runners import PoolRunners, ProcessRunners, Runners, can_open, is_deployed
from tasks.settings.config import RunConfig
from tasks.studies.runner import OUTCOME, Job, Runner
from tasks.studies.trials import OVER, SECONDS, Trials
from tasks.studies.values import values_words
from tasks.tracking.patience import answered
from tasks.tracking.run import PATIENCE_SECONDS
from tasks.tracking.trials import tell_trial, told_trials

HERE = "here"
"""Runner in the driver's own process."""

LOOK_SECONDS, LOOK_SHARE, MOST_LOOK_SECONDS = 0.25, 0.02, 2.0

MOST_STARTS = 4
"""A trial whose process was killed so often brings it down itself, by its need of memory for example."""

MOST_FAILURES = 5
"""Runners, or trials from the first on, that fail one after the other: then it is not their values."""

PAUSE_SECONDS = 10.0
"""Before a process is started in place of one that ended before it was ready."""


@task(name="run trials", task_run_name="run trials")
def run_trials(job: Job, work: str) -> int:
    """All trials to their end, here, in processes of this machine, or where the work pool has workers; number of the
    best. Goes on with those of an interrupted command."""
    trials = job.open()
    driver = Driver(job, trials, work)
    if runners := runners_of(job, work):
        driver.run_elsewhere(runners)
    else:
        driver.run_here()
    driver.tell_the_rest()
    best = trials.best()
    if best is None:
        failed = [trial.outcome.reason for trial in trials.all() if trial.outcome.reason]
        raise RuntimeError(f"no trial came to its end; the last: {failed[-1]}")
    return best


def runners_of(job: Job, work: str) -> Runners | None:
    """None: the trials run in this process."""
    parallel = job.config.parallel
    if os.environ.get("PREFECT_API_URL") and is_deployed() and can_open(job.storage):
        return PoolRunners(job.model_dump(mode="json"), parallel)
    if parallel == 1:
        return None
    file = Path(work) / "job.json"
    job.write(file)
    return ProcessRunners(file, parallel)


def finals(job: Job, best: int) -> dict[int, RunConfig]:
    """By number of the trial, what is run in full: the best one, and the configuration as given where it came to its
    end. Only the best one may be registered."""
    trials = {trial.number: trial for trial in job.open().all()}
    numbers = [best, *([0] if best and trials[0].outcome.state == "finished" else [])]
    found = {}
    for number in numbers:
        config = job.trial_config(trials[number].values)
        told = {"run_name": config.name_of(f"trial {number}")} | ({} if number == best else {"registered_model": None})
        found[number] = config.model_copy(update={"tracking": config.tracking.model_copy(update=told)})
    return found


def take_over(job: Job, number: int, work: str) -> None:
    """The adapter of a trial as that of the run in `work`, if it lies here and this process would train the same."""
    from tasks.base.machine import environment_key

    there, here = RunFolder(job.trial_folder(number)), RunFolder(work)
    trained = read_record(TrainedAdapter, there.trained)
    outcome = read_record(Outcome, job.trial_folder(number) / OUTCOME)
    if here.trained.exists() or not there.adapter.is_dir() or not trained or not outcome:
        return
    if outcome.environment != environment_key():
        return
    shutil.copytree(there.adapter, here.adapter, dirs_exist_ok=True)
    shutil.copy(there.probe, here.probe)
    trained.model_copy(update={"folder": str(here.adapter), "probe": str(here.probe)}).write(here.trained)


class Driver:
    """Asks for trials, assigns them, and tells what came of them. There is one for each sweep."""

    def __init__(self, job: Job, trials: Trials, work: str) -> None:
        self.job, self.trials, self.work = job, trials, work
        self.begun = time.monotonic()
        self.before = float(trials.told().get(SECONDS, 0.0))
        self.told: set[int] | None = None
        """Trials that MLflow has; None as long as it has not answered."""
        self.said = {trial.number for trial in trials.all() if trial.has_ended}
        self.finished_before = len(self.said)
        self.show = table_artifact("sweep")
        self.mlflow_failed = False

    @property
    def seconds(self) -> float:
        """This sweep was worked on for so long, with those commands that were interrupted."""
        return self.before + time.monotonic() - self.begun

    # --- which trial is next

    def next(self, busy: Collection[int]) -> int | None:
        """Number of a trial to be run that is not among `busy`: an interrupted one, or a new one. None: there is none
        now; `is_over` knows whether one may come."""
        for number in sorted(self.trials.running()):
            if number not in busy:
                self.trials.complete_asking(number)
                if self.trials.starts(number) < MOST_STARTS:
                    return number
                words = f"its process was killed {MOST_STARTS} times (was there too little memory?)"
                self.trials.finish(number, Outcome(state="failed", reason=words))
        while self.may_begin():
            number = self.trials.ask()
            if not (twin := self.trials.twin(number)):
                return number
            same = twin.outcome.model_copy(update={"reason": twin.outcome.reason or f"the same as trial {twin.number}"})
            self.trials.finish(number, same)
        return None

    def may_begin(self) -> bool:
        asked = len(self.trials.all())
        return asked < self.job.trials and (asked == 0 or self.seconds < self.job.config.budget_seconds)

    def is_over(self) -> bool:
        return not self.trials.running() and not self.may_begin()

    # --- in this process, or in others

    def run_here(self) -> None:
        runner = Runner(self.job, self.trials)
        while (number := self.next(busy=())) is not None:
            self.trials.assign(number, HERE)
            self.tell([HERE])
            runner.run(number)
            self.tell([HERE])
        self.tell([], at_once=True)

    def run_elsewhere(self, runners: Runners) -> None:
        """With `runners`, as many as there are to be at a time; those that die are replaced."""
        known = set(self.trials.ready())
        ended = known - set(runners.alive(sorted(known)))
        done, failures, pause_until = self.count_ended(), 0, 0.0
        try:
            while not self.is_over():
                self.trials.look()
                known |= set(self.trials.ready())  # also one that a killed driver had started, and that came late
                alive = runners.alive(sorted(known - ended))
                if lost := known - ended - set(alive):
                    ended |= lost
                    failures = failures + len(lost) if done == self.count_ended() else 0
                    done = self.count_ended()
                    if failures >= MOST_FAILURES:
                        words = runners.last_words(next(iter(lost)))
                        raise RuntimeError(f"the last {failures} processes that were to run trials have ended: {words}")
                    if lost - set(self.trials.ready()):  # the machine may lack something that another has
                        pause_until = time.monotonic() + PAUSE_SECONDS
                self.assign(alive)
                if time.monotonic() > pause_until:
                    known |= started(runners, self.wanted() - len(alive))
                self.tell(alive)
                time.sleep(self.pause())
            self.trials.tell_study(OVER, True)
            self.tell([], at_once=True)
            runners.finish(sorted((known - ended) & set(self.trials.ready())))
        finally:
            runners.stop()

    def pause(self) -> float:
        """Seconds until the next look: a small part of what a trial takes, for each look costs the trials some time."""
        done = self.count_ended() - self.finished_before
        each = (time.monotonic() - self.begun) / done if done > 0 else 0.0
        return min(max(LOOK_SECONDS, LOOK_SHARE * each * self.job.config.parallel), MOST_LOOK_SECONDS)

    def wanted(self) -> int:
        """Runners that there should be: no more than there are trials left."""
        left = self.job.trials - self.count_ended() if self.may_begin() else len(self.trials.running())
        return min(self.job.config.parallel, left)

    def count_ended(self) -> int:
        return sum(trial.has_ended for trial in self.trials.all())

    def assign(self, alive: Sequence[str]) -> None:
        """A trial for each runner that is ready and has none; an interrupted one where its checkpoint lies, if it can
        be."""
        ready, running = self.trials.ready(), self.trials.running()
        busy = {number for number, who in running.items() if who in alive}
        idle = [name for name in alive if name in ready and name not in running.values()]
        while idle and len(busy) < self.job.config.parallel and (number := self.next(busy)) is not None:
            host = ready.get(running.get(number, ""))
            name = next((one for one in idle if ready[one] == host), idle[0])
            self.trials.assign(number, name)
            idle.remove(name)
            busy.add(number)

    # --- what others hear of it

    def tell(self, alive: Collection[str], at_once: bool = False) -> None:
        trials = self.trials.all()
        self.say_finished(trials)
        self.tell_mlflow(trials)
        self.show(self.table(trials, alive), at_once=at_once)

    def say_finished(self, trials: Sequence[Trial]) -> None:
        new = [trial for trial in trials if trial.has_ended and trial.number not in self.said]
        for trial in new:
            self.said.add(trial.number)
            tell("%s", self.sentence(trial, trials))
        if new:
            self.trials.tell_study(SECONDS, self.seconds)
            self.stop_if_hopeless(trials)

    def sentence(self, trial: Trial, trials: Sequence[Trial]) -> str:
        outcome, metric = trial.outcome, self.job.metric
        what = f"{metric.title} {metric.shown(outcome.score)}" if outcome.score is not None else outcome.state
        if outcome.reason:
            what += f" ({outcome.reason})"
        best = self.trials.best()
        record = f"; best so far: {metric.shown(score_of(trials, best))}, trial {best}" if best is not None else ""
        return f"Trial {trial.number} of {self.job.trials}: {what}{record}; {values_words(trial.values)}"

    def stop_if_hopeless(self, trials: Sequence[Trial]) -> None:
        """Where every trial fails, it is not their values."""
        failed = [trial for trial in trials if trial.outcome.state == "failed"]
        ended = [trial for trial in trials if trial.has_ended]
        if len(failed) == len(ended) >= min(MOST_FAILURES, self.job.trials):
            raise RuntimeError(f"all of the first {len(failed)} trials failed; the last: {failed[-1].outcome.reason}")

    def tell_mlflow(self, trials: Sequence[Trial]) -> None:
        """Those that it does not have. What goes wrong now is tried again with the next, and has to go right in the
        end."""
        try:
            self.tell_all(trials)
        except Exception as error:
            if not self.mlflow_failed:
                warn("MLflow does not take the trials (%s); they are kept and told later", first_line(error))
            self.mlflow_failed = True

    def tell_all(self, trials: Sequence[Trial]) -> None:
        if self.told is None:
            self.told = told_trials(self.work)
        for trial in trials:
            if trial.has_ended and trial.number not in self.told:
                if not tell_trial(self.work, trial, self.names()):
                    return
                self.told.add(trial.number)

    def tell_the_rest(self) -> None:
        """MLflow has all trials; one that does not answer is waited for."""
        trials = self.trials.all()
        answered(lambda: self.tell_all(trials), PATIENCE_SECONDS, lambda error: warn("%s", first_line(error)))

    def names(self) -> Mapping[str, Any]:
        """What tells a trial's run from those of other jobs in a list."""
        config = self.job.config
        names = {
            "model.name": config.model.name,
            "data.name": config.data.name,
            "adapter.method": config.adapter.method,
        }
        return names | {"seed": config.seed}

    def table(self, trials: Sequence[Trial], alive: Collection[str]) -> list[dict[str, str]]:
        states = [trial.outcome.state for trial in trials]
        count: dict[str, int] = {state: states.count(state) for state in ENDED}
        best, ended = self.trials.best(), sum(count.values())
        running = ", ".join(str(trial.number) for trial in trials if not trial.has_ended)
        rows = {
            "trials ended": f"{ended} of {self.job.trials}",
            "best so far": "none yet",
            "running": running or "none",
            "runners": str(len(alive)),
            **{state: str(number) for state, number in count.items()},
            "time left": self.time_left(ended),
        }
        if best is not None:
            values = next(trial.values for trial in trials if trial.number == best)
            metric = self.job.metric
            score = metric.shown(score_of(trials, best))
            rows["best so far"] = f"{metric.title} {score} on validation, trial {best}: {values_words(values)}"
        return [{"of the sweep": name, "now": value} for name, value in rows.items()]

    def time_left(self, ended: int) -> str:
        left, done = self.job.trials - ended, ended - self.finished_before
        budget = self.job.config.budget_seconds - self.seconds
        if left <= 0:
            return "none"
        guess = (time.monotonic() - self.begun) / done * left if done > 0 else float("inf")
        soonest = min(guess, max(0.0, budget))
        return f"about {amount(soonest)}" if soonest < float("inf") else "not known yet"


def started(runners: Runners, count: int) -> set[str]:
    """Names of so many new ones; of fewer, where nobody answers who could start them: asked again at the next look."""
    names = set[str]()
    try:
        for _ in range(count):
            names.add(runners.start())
    except Exception as error:
        if not is_network_trouble(error):
            raise
    return names


def score_of(trials: Sequence[Trial], number: int) -> float:
    return next(trial.outcome.score or 0.0 for trial in trials if trial.number == number)
