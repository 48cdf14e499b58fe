"""Several processes train one run as one would: the same bits, words and ends, and none of them outlives it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tasks.base import fresh_process
from tasks.base.records import TrainedAdapter
from tasks.base.work import RunFolder
from tasks.data.prepare import prepare
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.training import fit as training
from tasks.training import group as groups
from tasks.training.errors import told
from tasks.training.fit import fit_adapter
from tasks.training.group import follow
from tasks.training.pieces import Pieces
from tasks.training.ranks import Lost
from tasks.training.watching import Progress, Watcher
from tests.conftest import rarely
from tests.test_training_resume import rewrite

TWO = {"batch_size": 14, "processes": 2}
"""Of 48 rows the last step has six, all of the first process."""

ONE = {"batch_size": 7, "gradient_accumulation_steps": 2}


@pytest.fixture
def still(foundation: Any, tmp_path: Path) -> Callable[[str], str]:
    """A foundation model without dropout: two processes draw other numbers for it than one."""

    def make(family: str) -> str:
        folder = shutil.copytree(foundation(family), tmp_path / f"still-{family}")
        settings = json.loads((folder / "config.json").read_text())
        settings |= {name: 0.0 for name in settings if "drop" in name and isinstance(settings[name], float)}
        (folder / "config.json").write_text(json.dumps(settings))
        return str(folder)

    return make


class Job:
    def __init__(self, config: RunConfig, root: Path) -> None:
        self.config, self.data, self.root = config, prepare(config, root), root
        self.steps: list[int] = []
        self.said: list[str] = []
        self.stopped: list[tuple[Path, int]] = []

    def fit(self, work: str, **watching: Any) -> TrainedAdapter:
        def report(progress: Progress) -> None:
            if progress.point is None:
                self.steps.append(progress.step)

        told = {"report": report, "stopped": lambda *where: self.stopped.append(where), "say": self.said.append}
        return fit_adapter(self.config, self.data, self.root / work, Watcher(**told | watching))


@pytest.fixture
def job(small_config: Any, tmp_path: Path) -> Callable[..., Job]:
    def make(training: dict[str, Any], family: str = "gpt2", **sections: Any) -> Job:
        return Job(small_config({**sections, "training": training}, family), tmp_path)

    return make


def what_counts(trained: TrainedAdapter) -> dict[str, Any]:
    """All that is no time, no memory and no place, nor the number of processes."""
    from safetensors.torch import load_file

    times = {"seconds", "trunk_seconds", "examples_per_second", "peak_memory_mb", "compute"}
    values = trained.model_dump(exclude={"folder", "probe", *times})
    return values | {"probe": load_file(trained.probe)["logits"].tolist()}


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("gpt2", {"training": {"epochs": 9, "early_stopping_patience": 1, "learning_rate": 0.05}}),
        rarely("bert", {"training": {"gradient_checkpointing": True, "class_weights": "balanced"}}),
        rarely("gpt2", {"adapter": {"layers": 1}}),
        rarely("gpt2", {"adapter": {"method": "adalora", "r": 2}, "training": {"epochs": 4, "learning_rate": 0.05}}),
        rarely("llama", {"model": {"quantization": "nf4"}}),
        rarely("gpt2", {"model": {"dtype": "bfloat16"}}),
    ],
)
def test_two_processes_give_the_bits_of_one_with_accumulation(
    family: str, more: dict[str, Any], job: Any, still: Any
) -> None:
    sections = {"adapter": {}, **more, "model": {"name": still(family), **more.get("model", {})}}
    training = sections.pop("training", {})
    two = job({**TWO, **training}, family, **sections)
    together = two.fit("two")
    alone = job({**ONE, **training}, family, **sections).fit("one")
    assert what_counts(together) == what_counts(alone)
    assert (together.compute["processes"], alone.compute["processes"]) == ("2", "1")
    assert together.examples_per_second > 0
    # each step once, and once more that all is done
    assert two.steps == [*range(1, together.steps + 1), together.steps]
    assert {path.name for path in (two.root / "two").iterdir()} == {"adapter", "probe.safetensors", "trained.json"}


@pytest.mark.endurance
def test_three_processes_train_what_one_trains_but_for_rounding(
    job: Any, still: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    model = {"name": still("gpt2")}
    three = job({"batch_size": 15, "processes": 3, "epochs": 2}, model=model)
    first, again = three.fit("first"), three.fit("again")
    alone = job({"batch_size": 15, "epochs": 2}, model=model).fit("alone")
    assert what_counts(first) == what_counts(again)
    assert len(first.history) == len(alone.history)
    for point, expected in zip(first.history, alone.history, strict=True):
        assert point.metrics == pytest.approx(expected.metrics, rel=1e-3)


@pytest.mark.endurance
def test_batches_that_each_process_cuts_make_the_same_steps(job: Any, still: Any) -> None:
    one = job({**TWO, "epochs": 2}, model={"name": still("gpt2")})
    kept = RunFolder(one.root / "cut").fitting
    kept.parent.mkdir()
    training.Fitting(tokens=30).write(kept)
    cut, whole = one.fit("cut"), one.fit("whole")
    assert (cut.compute["tokens_at_a_time"], whole.compute["tokens_at_a_time"]) == ("30", "4096")
    assert cut.sha256 != whole.sha256 and cut.padding < whole.padding
    for point, expected in zip(cut.history, whole.history, strict=True):
        assert point.metrics == pytest.approx(expected.metrics, rel=1e-3)


def test_training_that_was_stopped_goes_on_with_the_same_bits(job: Any) -> None:
    """Told to end at once, as a cancelled flow is, and then asked by Ctrl-C. With dropout, so that each process goes on
    with random numbers of its own."""
    one = job({**TWO, "epochs": 4}, adapter={"dropout": 0.2})
    whole = one.fit("whole")

    def end(progress: Progress) -> None:
        if progress.step >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.fit("cut", report=end)
    one.steps.clear()
    with pytest.raises(KeyboardInterrupt):
        one.fit("cut", stop=lambda: len(one.steps) >= 2)
    (folder, first), (_, second) = one.stopped
    assert 2 <= first < second < whole.steps
    kept, adapter = one.root / "cut/checkpoints", folder / "adapter_model.safetensors"
    assert folder == one.root / "cut/checkpoint" and adapter.exists()
    assert {path.name for path in kept.iterdir()} == {f"checkpoint-{step}" for step in (first, second)}
    state = json.loads((kept / f"checkpoint-{second}/state.json").read_text())
    assert state["processes"] == 2 and len(state["others"]) == 1
    assert state["others"][0]["random"][1]["python"] != state["random"]["python"]
    assert what_counts(one.fit("cut")) == what_counts(whole)
    assert one.said == [f"Training goes on from step {step}" for step in (first, second)]


def test_checkpoint_of_another_number_of_processes_is_not_gone_on_with(job: Any) -> None:
    one = job({"batch_size": 14, "epochs": 2})
    whole = one.fit("whole")
    one.steps.clear()
    with pytest.raises(KeyboardInterrupt):
        one.fit("cut", stop=lambda: len(one.steps) >= 3)
    state = next((one.root / "cut/checkpoints").glob("*/state.json"))
    rewrite(state.parent, lambda values: values.update(processes=2))
    assert what_counts(one.fit("cut")) == what_counts(whole)
    assert one.said == [
        "This training was begun with training.processes 2; with 1 it would end otherwise, so it begins anew"
    ]


# --- the same ends ----------------------------------------------------------------------------------------------------


def test_what_a_process_refuses_is_said_as_by_one(job: Any) -> None:
    too_small = {"epochs": 1, "max_trunk_gb": 1e-9}
    told = []
    for asked in (TWO, ONE):
        with pytest.raises(InputError) as refused:
            job({**asked, **too_small}, adapter={"layers": 1}).fit("run")
        told.append(str(refused.value))
    assert told[0] == told[1] and "max_trunk_gb" in told[0]


def ranks() -> list[psutil.Process]:
    """Those of the one training of this process, in order; started by torchrun, or forks that stand for them."""
    mine = psutil.Process().children(recursive=True)
    below = [one for one in mine if (parent := one.parent()) and parent.pid != os.getpid() and not one.children()]
    together = [one for one in below if (parent := one.parent()) and len(parent.children()) == 2]
    return sorted(together, key=lambda one: one.pid)


@pytest.mark.parametrize("real", [False, rarely(True)])
def test_process_that_is_killed_ends_the_training_in_one_line(
    real: bool, job: Any, request: pytest.FixtureRequest
) -> None:
    if real:
        request.getfixturevalue("no_forks")
    seen: list[psutil.Process] = []

    def kill(progress: Progress) -> None:
        if not seen:
            seen.extend(ranks())
            seen[1].kill()

    one = job({**TWO, "epochs": 1000})
    with pytest.raises(
        RuntimeError, match=r"^a process of this training has ended \(SIGKILL\), as when memory runs out"
    ):
        one.fit("run", report=kill)
    assert len(seen) == 2 and not any(map(is_alive, seen))


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def gone(processes: Iterable[psutil.Process], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while any(map(is_alive, processes)) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(map(is_alive, processes))


@pytest.mark.endurance
@pytest.mark.parametrize("victim", ["the run", "torchrun"])
def test_nothing_of_a_training_outlives_what_has_started_it(victim: str, job: Any) -> None:
    one = job({**TWO, "epochs": 10_000})
    request = groups.Request(config=one.config, data=one.data, work=str(one.root / "run"))
    begun = one.root / "run/begun"
    begun.parent.mkdir()
    (one.root / "request.json").write_text(request.model_dump_json())
    with subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(one.root / "request.json"), str(begun)],
        env=fresh_process.with_our_modules(),
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stderr
        until = time.monotonic() + 300
        while not begun.exists():
            assert run.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        (torchrun,) = psutil.Process(run.pid).children()
        all_of_them = [torchrun, *torchrun.children(recursive=True)]
        assert len(all_of_them) == 3
        (torchrun if victim == "torchrun" else run).kill()
        assert gone(all_of_them, 20)
        words = run.stderr.read()
    assert run.returncode == (1 if victim == "torchrun" else -signal.SIGKILL)
    assert ("a process of this training has ended (SIGKILL)" in words) is (victim == "torchrun")


TRAIN = """
import sys
from pathlib import Path
from tasks.base import environment
from tasks.training.fit import fit_adapter
from tasks.training.group import Request
from tasks.training.watching import Watcher
request = Request.model_validate_json(Path(sys.argv[1]).read_bytes())
begun = Path(sys.argv[2])
fit_adapter(request.config, request.data, Path(request.work), Watcher(lambda progress: begun.touch()))
"""


def test_process_ends_with_the_one_that_started_it() -> None:
    child = (
        "import os, time; from tasks.base.fresh_process import end_with; end_with({}); print(os.getpid(), flush=True)"
    )
    parent = "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1].format(os.getpid())])"
    with subprocess.Popen(
        [sys.executable, "-c", parent, f"{child}; time.sleep(600)"],
        env=fresh_process.with_our_modules(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        orphan = psutil.Process(int(process.stdout.readline()))
        process.kill()
        assert gone([orphan], 20)


# --- what is heard ----------------------------------------------------------------------------------------------------


class Said:
    """A group whose processes have said this and ended with this code."""

    def __init__(self, *messages: tuple[str, Any], code: int = 1) -> None:
        self.said, self.code = messages, code
        self.process = self

    def messages(self, stop: Callable[[], bool]) -> Iterator[tuple[str, Any]]:
        yield from self.said

    def wait(self) -> int:
        return self.code


def heard(tmp_path: Path, *messages: tuple[str, Any], pieces: Pieces | None = None, **more: Any) -> TrainedAdapter:
    said: Any = Said(*messages, **more)
    return follow(said, pieces or Pieces(100), RunFolder(tmp_path), Watcher(lambda progress: None))


LOST = ("error", told(Lost("another process of this training is gone")))


def test_error_is_that_of_the_process_that_met_it_first(tmp_path: Path) -> None:
    nan = ("error", told(FloatingPointError("the loss is nan at step 4")))
    for messages in ((LOST, nan), (nan, LOST), (nan, ("error", told(ValueError("later"))), ("killed", 6))):
        with pytest.raises(FloatingPointError, match=r"^the loss is nan at step 4"):
            heard(tmp_path, *messages)


@pytest.mark.parametrize(
    ("messages", "code", "says"),
    [
        ((LOST, ("killed", 9)), 1, "has ended (SIGKILL)"),
        ((LOST,), 1, "has ended (nobody saw how)"),
        ((), -9, "has ended (SIGKILL)"),
        ((), 1, "without a word (exit code 1)"),
        ((), 0, "without a word (exit code 0)"),
    ],
)
def test_end_that_nobody_explains_is_said(messages: tuple[Any, ...], code: int, says: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=re.escape(says)):
        heard(tmp_path, *messages, code=code)


class Ended(BaseException):
    """As a termination signal, which Prefect raises in the middle of anything."""


@pytest.mark.parametrize(
    ("raised", "has_begun", "was_asked", "last", "says"),
    [
        (ValueError, True, False, (), ""),  # a trial that is hopeless
        (Ended, True, False, (("stopped", ["folder", 7]),), "stopped after 7"),
        (Ended, True, False, (), "takes too long and is given up"),
        (Ended, False, False, (), ""),  # nothing has been trained that could be saved
        (Ended, True, True, (), ""),  # Ctrl-C for the second time
    ],
)
def test_processes_save_before_they_end_if_there_is_time(
    raised: Any, has_begun: bool, was_asked: bool, last: Any, says: str, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Doomed(Said):
        def __init__(self, *_: Any) -> None:
            super().__init__(("progress", [1, 9, 0.0, None]))
            self.has_begun, self.was_asked, self.has_ended = has_begun, was_asked, False
            made.append(self)

        def ask_to_stop(self) -> None:
            self.was_asked, self.said = True, last

        def messages(self, stop: Any, seconds: float = 0) -> Any:
            assert not seconds or self.was_asked
            return super().messages(stop)

        def end(self) -> None:
            self.has_ended = True

    def report(progress: Progress) -> None:
        raise raised

    made: list[Doomed] = []
    monkeypatch.setattr(groups, "Group", Doomed)
    with pytest.raises(raised):
        job(TWO).fit(
            "run", report=report, stopped=lambda _, step: said.append(f"stopped after {step}"), say=said.append
        )
    assert made[0].has_ended and len(said) == bool(says) and says in "".join(said)
    assert made[0].was_asked is (bool(says) or was_asked)


def test_batch_that_does_not_fit_is_cut_as_by_one_process(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, tried = job(TWO), list[int]()
    (one.root / "run").mkdir()

    def fit(size: int, pieces: Pieces, *rest: Any) -> Any:
        tried.append(pieces.most_tokens)
        if len(tried) < 3:
            full = told(torch.OutOfMemoryError("CUDA out of memory"))
            return heard(tmp_path, ("piece", [8 // len(tried), 20]), ("error", full), LOST, pieces=pieces)
        return "trained"

    monkeypatch.setattr(training, "fit_together", fit)
    assert one.fit("run") == "trained"
    assert tried == [4096, 80, 40]
    assert "too small for 8 rows of 20 tokens at a time: training goes on with at most 80" in one.said[0]
