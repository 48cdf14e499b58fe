"""The trials of a sweep, which Optuna keeps: what each one tries, who runs it, and how it ended."""

import base64
import json
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tasks.base.progress import warn
from tasks.base.sweeps import Outcome, State, Trial
from tasks.base.trouble import ask_again, first_line, growing_pauses
from tasks.models.quantized import check_package
from tasks.scores.objective import Metric
from tasks.settings.config import SweepConfig
from tasks.settings.fields import InputError
from tasks.settings.space import Assignment, Varied, depends_on, grid, read_space, shown, values_of

if TYPE_CHECKING:
    import numpy as np
    import optuna


T = TypeVar("T")

USUAL_TRIALS = 20

RUNNER = "runner "
"""Before the name of a runner, among what the study is told: it is ready for trials."""

OVER, SECONDS = "over", "seconds"
"""Told to the study: there are no more trials; and how long it was worked on."""

PATIENCE_SECONDS = 300.0
"""So long a database that does not answer is waited for."""


def check_sweep(config: SweepConfig) -> tuple[tuple[Varied, ...], int]:
    """The fields that vary, and the number of trials; InputError for what cannot be swept."""
    space = read_space(config.space, config.run_config())
    if config.training.machines > 1:
        raise InputError("training.machines: each trial of a sweep trains on one machine; leave it out")
    if config.parallel > 1 and config.training.processes not in ("1", "auto"):
        raise InputError(
            f"parallel: {config.parallel} trials at the same time have one process each; leave training.processes "
            f"{config.training.processes} out, or parallel"
        )
    if (config.storage or "").startswith("postgresql:") and not find_spec("psycopg2"):
        raise InputError("storage: postgresql needs one more package: pip install 'peft-flow[postgresql]'")
    if any(one.field == "model.quantization" for one in space):
        check_package("sweep: model.quantization")
    if config.sampler != "grid":
        return space, config.trials or USUAL_TRIALS
    base = values_of(config.run_config())
    given = given_values(space, base)
    count = 1
    for values in grid(space, base):
        count += values != given
        if count > MOST_TRIALS:
            raise InputError(f"sweep: the grid has more than {MOST_TRIALS:,} combinations; use fewer choices or tpe")
    return space, min(count, config.trials or count)


MOST_TRIALS = 10_000


def given_values(space: Sequence[Varied], base: Assignment) -> dict[str, Any]:
    """What the configuration as given has in the fields that vary."""
    return {one.field: base[one.field] for one in space if one.applies(base)}


class Trials:
    """A sweep's study, opened: here, or where other machines look at it too."""

    def __init__(self, config: SweepConfig, name: str, storage: str, metric: Metric) -> None:
        """`storage` is the address of a database, or the path of a file that only this process writes to."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.config, self.space = config, read_space(config.space, config.run_config())
        self.base, self.metric = values_of(config.run_config()), metric
        self.ended: dict[int, Trial] = {}
        self.looked: list[optuna.trial.FrozenTrial] | None = None
        self.heard: dict[str, Any] | None = None
        """What the study had at the last look; None: to be looked up."""
        with quiet():
            self.study = optuna.create_study(
                storage=patiently(lambda: opened(storage)),
                study_name=name,
                direction="maximize" if metric.higher_is_better else "minimize",
                pruner=pruner(config),
                load_if_exists=True,
            )

    # --- asking

    def look(self) -> None:
        """Others may have told the study something since: what this process tells it is known without."""
        self.looked = self.heard = None

    def found(self) -> "list[optuna.trial.FrozenTrial]":
        if self.looked is None:
            self.looked = patiently(lambda: self.study.get_trials(deepcopy=False))
        return self.looked

    def all(self) -> list[Trial]:
        """In the order of their numbers."""
        return [self.ended.get(one.number) or self.read(one) for one in self.found()]

    def read(self, found: "optuna.trial.FrozenTrial") -> Trial:
        trial = trial_of(found)
        if trial.has_ended:  # it does not change any more
            self.ended[trial.number] = trial
        return trial

    def running(self) -> dict[int, str]:
        """Numbers of the trials that have not ended, and who runs them; nobody where that is not known yet."""
        open_ones = (one for one in self.found() if not one.state.is_finished())
        return {one.number: one.user_attrs.get("runner", "") for one in open_ones}

    def told(self) -> dict[str, Any]:
        """What the study was told: who is ready, whether it is over."""
        if self.heard is None:
            self.heard = patiently(lambda: self.study.user_attrs)
        return self.heard

    def ready(self) -> dict[str, str]:
        """Runners that have said that they are ready, and their machines."""
        return {name.removeprefix(RUNNER): host for name, host in self.told().items() if name.startswith(RUNNER)}

    # --- telling

    def tell_study(self, name: str, value: Any) -> None:
        patiently(lambda: self.study.set_user_attr(name, value))
        self.look()

    def ask(self) -> int:
        """Number of a new trial. What it tries depends on its number and on how others ended, not on restarts."""
        with quiet():
            self.study.sampler = self.sampler(len(self.found()))
            asked = self.study.ask()
            self.fill(asked)
            self.look()
        return int(asked.number)

    def complete_asking(self, number: int) -> None:
        """A process that was killed while it asked has left a trial that does not know what to try."""
        if "values" not in self.frozen(number).user_attrs:
            with quiet():
                self.study.sampler = self.sampler(number)
                self.fill(self.open(number))
                self.look()

    def fill(self, trial: "optuna.trial.Trial") -> None:
        values: dict[str, Any] = dict(self.base)
        tried: dict[str, Any] = {}
        for one in self.space:
            if one.applies(values):
                outside = trial.number == 0 and not contains(one, self.base[one.field])
                values[one.field] = tried[one.field] = self.base[one.field] if outside else suggested(trial, one)
        trial.set_user_attr("values", tried)

    def sampler(self, number: int) -> "optuna.samplers.BaseSampler":
        import optuna

        seed = (self.config.seed + number) % 2**32
        fixed: dict[str, Any] | None = given_values(self.space, self.base) if number == 0 else None
        if self.config.sampler == "grid" and number:
            given = given_values(self.space, self.base)
            others = [values for values in grid(self.space, self.base) if values != given]
            fixed = others[number - 1]
        if fixed is not None:
            plain = {field: shown(value) for field, value in fixed.items()}
            return optuna.samplers.PartialFixedSampler(plain, optuna.samplers.RandomSampler(seed))
        if self.config.sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        conditional = any(map(depends_on, self.space))
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=conditional)

    def assign(self, number: int, runner: str) -> None:
        """Have `runner` run the trial, which it may have been running before it was started again."""
        trial = self.open(number)
        before = self.frozen(number).user_attrs
        starts = before.get("starts", 0) + 1
        patiently(lambda: trial.set_user_attr("starts", starts))
        patiently(lambda: trial.set_user_attr("runner", runner))
        self.look()

    def excuse(self, number: int) -> None:
        """It was stopped on purpose, which says nothing against it."""
        trial, starts = self.open(number), self.starts(number)
        patiently(lambda: trial.set_user_attr("starts", starts - 1))
        self.look()

    def starts(self, number: int) -> int:
        return int(self.frozen(number).user_attrs.get("starts", 0))

    def values(self, number: int) -> dict[str, Any]:
        return dict(self.frozen(number).user_attrs["values"])

    def twin(self, number: int) -> Trial | None:
        """A trial of the same values that has ended: with the same seed it would only come out the same."""
        values = self.values(number)
        return next((one for one in self.all() if one.values == values and one.has_ended), None)

    def best(self) -> int | None:
        """Number of the best trial that has come to its end; of equals the first. None while there is none."""
        done = [one for one in self.all() if one.outcome.state == "finished"]
        best = max(done, key=lambda one: self.metric.sign * (one.outcome.score or 0), default=None)
        return best.number if best else None

    def report(self, number: int, loss: float, epoch: int) -> bool:
        """Whether the trial should end early, after what it has reached."""
        from optuna.exceptions import UpdateFinishedTrialError

        trial = self.open(number)
        value = loss if self.study.direction.name == "MINIMIZE" else -loss

        def tell() -> bool:
            with quiet():
                try:
                    trial.report(value, epoch)
                except UpdateFinishedTrialError:  # by another runner, which took over from this one
                    return True
                return bool(trial.should_prune())

        return patiently(tell)

    def finish(self, number: int, outcome: Outcome) -> None:
        """Told once, whoever tells it first."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        state = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[outcome.state]
        trial = self.open(number)
        with suppress(UpdateFinishedTrialError):
            patiently(lambda: trial.set_user_attr("outcome", outcome.model_dump()))
            patiently(lambda: self.study.tell(number, outcome.score, state=state, skip_if_finished=True))
        self.look()

    # --- Optuna's own

    def frozen(self, number: int) -> "optuna.trial.FrozenTrial":
        return self.found()[number]

    def open(self, number: int) -> "optuna.trial.Trial":
        """A trial of which another process, or this one before it was killed, has the object."""
        import optuna

        return patiently(lambda: optuna.trial.Trial(self.study, self.frozen(number)._trial_id))


def contains(one: Varied, value: Any) -> bool:
    """Whether the range or the choices have this value."""
    if one.choices or one.step:
        return value in one.steps()
    return isinstance(value, int | float) and one.low <= value <= one.high


def suggested(trial: "optuna.trial.Trial", one: Varied) -> Any:
    if one.choices:
        by_name = {shown(choice): choice for choice in one.choices}
        return by_name[trial.suggest_categorical(one.field, list(by_name))]
    if one.whole:
        return trial.suggest_int(one.field, int(one.low), int(one.high), step=int(one.step or 1), log=one.log)
    return trial.suggest_float(one.field, one.low, one.high, step=one.step, log=one.log)


def pruner(config: SweepConfig) -> "optuna.pruners.BasePruner":
    import optuna

    if config.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5)
    if config.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return optuna.pruners.NopPruner()


def opened(storage: str) -> "optuna.storages.BaseStorage":
    import optuna
    from optuna.storages.journal import JournalFileBackend

    if "://" in storage:
        return optuna.storages.RDBStorage(storage, engine_kwargs={"pool_pre_ping": True})
    path = Path(storage)
    cut_half_line(path)
    return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=cast(Any, SoleWriter())))


def cut_half_line(path: Path) -> None:
    """What a full disk or a lost power supply has left of a line: Optuna could not read what follows it."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])


class SoleWriter:
    """No lock: this process holds the folder of the sweep. Optuna's own outlives a killed process, for 30 s."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def patiently(ask: Callable[[], T]) -> T:
    """What `ask` gives; a database that does not answer, or is locked, is waited for."""
    return ask_again(ask, growing_pauses(PATIENCE_SECONDS), is_database_trouble, say_waiting)


def is_database_trouble(error: Exception) -> bool:
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import InterfaceError, OperationalError

    return isinstance(error, StorageInternalError | OperationalError | InterfaceError)


def say_waiting(error: Exception) -> None:
    warn("the database of the sweep does not answer (%s); asking again", first_line(error))


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's warnings about what it calls experimental, or a value outside the space, both meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


STATES: Mapping[str, State] = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}


def trial_of(found: "optuna.trial.FrozenTrial") -> Trial:
    state = STATES.get(found.state.name, "running")
    told = found.user_attrs.get("outcome") if state != "running" else None
    return Trial(
        number=found.number,
        values=found.user_attrs.get("values", {}),
        outcome=Outcome(**told) if told else Outcome(state=state),
        started=int(1000 * found.datetime_start.timestamp()) if found.datetime_start else 0,
        ended=int(1000 * found.datetime_complete.timestamp()) if found.datetime_complete else None,
        losses={epoch: abs(value) for epoch, value in found.intermediate_values.items()},
    )


# --- answers about the validation rows -------------------------------------------------------------------------------


def packed(table: "np.ndarray") -> str:
    """(rows, ...) as text that a study can keep."""
    import numpy as np

    kept = np.ascontiguousarray(table, dtype="<f4")
    content = base64.b85encode(zlib.compress(kept.tobytes(), 1)).decode()
    return json.dumps([list(kept.shape), content])


def unpacked(text: str) -> "np.ndarray":
    import numpy as np

    shape, content = json.loads(text)
    return np.frombuffer(zlib.decompress(base64.b85decode(content)), "<f4").reshape(shape).astype(float)


MOST_ANSWERS = 64 * 2**20
"""Bytes of answers that all trials of a sweep may keep together."""


def kept_rows(rows: int, width: int, trials: int) -> int:
    """How many validation rows' answers each trial keeps: all, unless there are very many."""
    return max(min(rows, 1000), min(rows, MOST_ANSWERS // (4 * width * trials)))
