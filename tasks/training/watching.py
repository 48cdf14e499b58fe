"""Who is told how a training goes, and how it is told to stop."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from tasks.base.progress import amount
from tasks.base.records import Point
from tasks.settings.training import MetricName

if TYPE_CHECKING:
    from transformers import TrainerCallback


CURVE_NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    **{f"eval_{name}": f"validation/{name}" for name in ("loss", *get_args(MetricName))},
}
"""Trainer's names for what is worth a curve, and ours."""


class Progress(NamedTuple):
    step: int
    total_steps: int
    seconds_left: float
    point: Point | None
    """New metrics, when this step brought any."""

    def sentence(self) -> str:
        if self.step == self.total_steps:
            return f"all {self.step} steps done"
        return f"step {self.step} of {self.total_steps}, about {amount(self.seconds_left)} left"


class Watcher(NamedTuple):
    """Who is told how training goes."""

    report: Callable[[Progress], None]
    stopped: Callable[[Path, int], None] = lambda folder, step: None
    """The weights of a training that was told to stop are in `folder`, after `step`."""
    too_big: Callable[[int, int], None] = lambda most_tokens, step: None
    """Pieces of a batch had to become smaller: the most tokens in one, and the step that training goes on from."""
    say: Callable[[str], None] = lambda line: None
    stop: Callable[[], bool] = lambda: False
    """Whether to stop when the step at hand is done and saved."""


@contextmanager
def polite_stop() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, once: training then stops when the step at hand is saved. Twice: at once."""
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        print("\nStopping when this step is saved. Press Ctrl-C again to stop at once", file=sys.stderr)

    # where Ctrl-C does something else than usual, or in a thread, it is somebody else's
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def progress_callback(report: Callable[[Progress], None]) -> "TrainerCallback":
    from tqdm import tqdm
    from transformers import TrainerCallback

    class ProgressCallback(TrainerCallback):
        """A bar with the time left on standard error, and `report` for everyone else."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="training",
                unit="step",
                file=sys.stderr,
                mininterval=0.5,
            )
            self.begun, self.started = state.global_step, time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.update(state.global_step - self.bar.n)
            report(self.progress(state, None))

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
            point = curve_point({**logs, "step": state.global_step})
            if point:
                report(self.progress(state, point))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.close()
            # early stopping: done is done
            report(Progress(state.global_step, state.global_step, 0.0, None))

        def progress(self, state: Any, point: Point | None) -> Progress:
            done = max(state.global_step - self.begun, 1)
            left = (time.monotonic() - self.started) / done * (state.max_steps - state.global_step)
            return Progress(state.global_step, state.max_steps, left, point)

    return ProgressCallback()


def curve_point(logs: dict[str, Any]) -> Point | None:
    """The part of Trainer's log line that belongs in a curve."""
    metrics = {ours: float(logs[theirs]) for theirs, ours in CURVE_NAMES.items() if theirs in logs}
    return Point(step=int(logs["step"]), metrics=metrics) if metrics else None
