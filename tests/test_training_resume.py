"""Training that is interrupted anywhere ends as if it had not been: the same bits, the same history."""

import errno
import json
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from tasks.base import files
from tasks.base.records import PreparedData, TrainedAdapter
from tasks.data.prepare import prepare
from tasks.settings.config import RunConfig
from tasks.settings.loading import validated
from tasks.settings.sections import AdapterMethod
from tasks.training import checkpoint, pieces, resume, watching
from tasks.training import fit as training
from tasks.training.checkpoint import newest_checkpoint, newest_first
from tasks.training.fit import fit_adapter
from tasks.training.resume import NotContinued
from tasks.training.watching import Progress, Watcher
from tests.conftest import rarely

STEPS_PER_EPOCH = 6
"""48 training rows in batches of 8."""


class PowerCut(Exception):
    """Nothing is done on the way out, as little as when a process is killed."""


class Job:
    """One configuration, trained in folders of one test."""

    def __init__(self, config: RunConfig, data: PreparedData, root: Path) -> None:
        self.config, self.data, self.root = config, data, root
        self.said: list[str] = []

    def fit(self, work: str, cut_after: int | None = None, **watching: Any) -> TrainedAdapter:
        steps: list[int] = []

        def report(progress: Progress) -> None:
            if progress.point is None:
                steps.append(progress.step)
            if cut_after is not None and len(steps) == cut_after + 1:  # within the next step: what follows it is done
                raise PowerCut

        return fit_adapter(self.config, self.data, self.root / work, Watcher(report, say=self.said.append, **watching))

    def interrupted(self, *cuts: int, work: str = "cut") -> TrainedAdapter:
        """Trained, with a power cut after so many steps of each attempt."""
        for cut in cuts:
            with pytest.raises(PowerCut):
                self.fit(work, cut)
        return self.fit(work)


@pytest.fixture
def job(small_config: Any, tmp_path: Path) -> Callable[..., Job]:
    def make(changes: dict[str, Any] | None = None, family: str = "gpt2") -> Job:
        config = small_config(changes, family)
        return Job(config, prepare(config, tmp_path), tmp_path)

    return make


@pytest.fixture
def always_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step that may have one."""
    monkeypatch.setattr(resume, "MOST_SHARE", float("inf"))


def what_counts(trained: TrainedAdapter) -> dict[str, Any]:
    """All that is no time, no memory and no place."""
    from safetensors.torch import load_file

    times = {"seconds", "trunk_seconds", "examples_per_second", "peak_memory_mb"}
    values = trained.model_dump(exclude={"folder", "probe", *times})
    return values | {"probe": load_file(trained.probe)["logits"].tolist()}


JOBS: dict[str, tuple[dict[str, Any], str]] = {
    "dropout": ({"adapter": {"dropout": 0.2}, "training": {"epochs": 2}}, "gpt2"),
    "accumulation": ({"training": {"epochs": 2, "batch_size": 4, "gradient_accumulation_steps": 2}}, "bert"),
    "unequal batches": ({"training": {"epochs": 2, "batch_size": 7, "gradient_accumulation_steps": 2}}, "gpt2"),
    "max steps": ({"training": {"max_steps": 10}}, "distilbert"),
    "early stopping": ({"training": {"epochs": 9, "early_stopping_patience": 1, "learning_rate": 0.05}}, "gpt2"),
    "cosine": ({"training": {"epochs": 2, "scheduler": "cosine", "warmup_fraction": 0.5}}, "roberta"),
    "few log lines": ({"training": {"epochs": 2, "learning_rate": 0.001}}, "gpt2"),
    "adalora": ({"training": {"epochs": 4, "learning_rate": 0.05}, "adapter": {"method": "adalora", "r": 2}}, "gpt2"),
    "whole modules": ({"training": {"epochs": 2}}, "bert"),
    "pieces": ({"training": {"epochs": 2}}, "bert"),
    "gradient checkpointing": ({"training": {"epochs": 2, "gradient_checkpointing": True}}, "gpt2"),
}


USUAL = ("dropout", "unequal batches", "early stopping", "adalora", "pieces")
"""Jobs whose state differs most."""

CUTS = ((0,), (2,), (6,), (5, 2, 1))
"""Steps of each attempt: cut before the first checkpoint, within an epoch, at its end, and again and again."""


@pytest.mark.parametrize(
    ("name", "attempts"),
    [
        *((name, CUTS[3:]) for name in USUAL),
        *(rarely(name, CUTS) for name in JOBS),
    ],
)
def test_interrupted_training_ends_with_the_same_bits(
    name: str, attempts: tuple[tuple[int, ...], ...], job: Any, always_save: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "few log lines":  # the loss of several steps in one
        monkeypatch.setattr(training, "CURVE_POINTS", 4)
    if name == "pieces":
        monkeypatch.setattr(pieces, "CPU_TOKENS", 30)
    changes, family = JOBS[name]
    one = job(changes, family)
    whole = one.fit("whole")
    for cuts in attempts:
        shutil.rmtree(one.root / "cut", ignore_errors=True)
        assert what_counts(one.interrupted(*cuts)) == what_counts(whole), cuts
    assert any("goes on from step" in line for line in one.said)


QUICK = ("dora", "vblora")
"""Methods whose state differs most: with magnitudes, with banks; lora and adalora are in JOBS."""

METHODS = [
    method if method in QUICK else pytest.param(method, marks=pytest.mark.slow)
    for method in AdapterMethod.__args__  # type: ignore[attr-defined]
]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_exactly(method: str, job: Any, always_save: None) -> None:
    options = {"adapter": {"method": method}, "training": {"epochs": 2}}
    one = job(options, "bert")
    whole = one.fit("whole")
    assert what_counts(one.interrupted(4, 5)) == what_counts(whole)
    assert len(one.said) == 2


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_epochs(foundation: Any, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, dict[str, Any]]:
    """A training that was cut off after step 4, as it lies in `cut`, and what counts of the same one, uncut."""
    root = tmp_path_factory.mktemp("resume")
    config = validated(
        {
            "model": {"name": str(foundation("gpt2"))},
            "data": {"name": str(reviews), "max_length": 32},
            "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
            "evaluation": {"batch_size": 8},
        }
    )
    one = Job(config, prepare(config, root), root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "MOST_SHARE", float("inf"))
        with pytest.raises(PowerCut):
            one.fit("cut", 4)
        return one, what_counts(one.fit("whole"))


@pytest.fixture
def cut(two_epochs: tuple[Job, dict[str, Any]], always_save: None, tmp_path: Path) -> tuple[Job, Path]:
    """A copy of the training that was cut off, and its checkpoints, which are those of steps 3 and 4."""
    done, _ = two_epochs
    shutil.copytree(done.root / "cut", tmp_path / "cut")
    folder = tmp_path / "cut/checkpoints"
    assert [path.name for path in newest_first(folder)] == ["checkpoint-4", "checkpoint-3"]  # at most two are kept
    return Job(done.config, done.data, tmp_path), folder


@pytest.fixture
def uncut(two_epochs: tuple[Job, dict[str, Any]]) -> dict[str, Any]:
    return two_epochs[1]


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


FILES = ["weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "manifest.json"]
DAMAGE: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "first bit": lambda file: flip(file, 0),
    "middle bit": lambda file: flip(file, file.stat().st_size // 2),
    "last bit": lambda file: flip(file, -1),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_broken_checkpoint_is_set_aside_and_the_one_before_is_used(
    file: str, damage: str, cut: tuple[Job, Path]
) -> None:
    one, folder = cut
    DAMAGE[damage](folder / "checkpoint-4" / file)
    found = newest_checkpoint(folder, one.said.append)
    assert found and found.step == 3
    assert (folder / "broken-checkpoint-4").is_dir() and not (folder / "checkpoint-4").exists()
    assert len(one.said) == 1 and "checkpoint-4 is damaged" in one.said[0]
    assert file in one.said[0] or file == "manifest.json"  # a flipped bit in a sum points to the file of that sum


def test_training_goes_on_from_the_one_before_with_the_same_bits(cut: tuple[Job, Path], uncut: dict[str, Any]) -> None:
    one, folder = cut
    flip(folder / "checkpoint-4/weights.safetensors", 200)
    (folder / "checkpoint-7").mkdir()  # begun by hand, or by another program
    assert what_counts(one.fit("cut")) == uncut
    assert [line.split(" is damaged")[0] for line in one.said[:2]] == ["checkpoint-7", "checkpoint-4"]
    assert one.said[2] == "Training goes on from step 3"


def test_without_an_intact_checkpoint_training_starts_anew(cut: tuple[Job, Path], uncut: dict[str, Any]) -> None:
    one, folder = cut
    for path in newest_first(folder):
        (path / "state.json").unlink()
    assert what_counts(one.fit("cut")) == uncut


def test_file_that_does_not_belong_to_a_checkpoint_breaks_it(cut: tuple[Job, Path]) -> None:
    _, folder = cut
    (folder / "checkpoint-4/optimizer.pt").write_bytes(b"a pickle")
    assert "optimizer.pt does not belong to it" in checkpoint.fault_of(folder / "checkpoint-4")


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """As if such a checkpoint had been written: its manifest fits."""
    state = json.loads((path / "state.json").read_text())
    change(state)
    (path / "state.json").write_text(json.dumps(state))
    sums = {file.name: checkpoint.file_sha256(file) for file in path.iterdir() if file.name != "manifest.json"}
    step = checkpoint.step_of(path)
    (path / "manifest.json").write_text(json.dumps({"step": step, "sha256": sums}))


def test_adapter_that_was_drawn_anew_is_refused(cut: tuple[Job, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = cut
    monkeypatch.setattr(
        "tasks.training.trainer.put_back", lambda model, tensors: None
    )  # the weights stay as they were drawn
    with pytest.raises(NotContinued, match="is not the one that was trained"):
        one.fit("cut")


def test_other_foundation_under_the_adapter_is_refused(cut: tuple[Job, Path]) -> None:
    one, folder = cut
    rewrite(folder / "checkpoint-4", lambda state: state.update(probe_loss=state["probe_loss"] + 0.1))
    with pytest.raises(NotContinued, match=r"a loss of 0\.\d+ on the first validation rows; it was"):
        one.fit("cut")


def test_adapter_of_another_shape_is_refused(cut: tuple[Job, Path], small_config: Any) -> None:
    one, _ = cut
    one.config = small_config({"training": {"epochs": 2}, "adapter": {"target_modules": "c_proj"}})
    with pytest.raises(RuntimeError, match="other weights are trained now"):
        one.fit("cut")


def test_checkpoint_holds_no_pickle(cut: tuple[Job, Path]) -> None:
    _, folder = cut
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files and {file.suffix for file in files} == {".safetensors", ".json"}


@pytest.mark.parametrize("number", [1, 5, 8, *map(rarely, (2, 3, 4, 6, 7))])
def test_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    number: int,
    two_epochs: tuple[Job, dict[str, Any]],
    always_save: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Broken off at each of its files in turn."""
    done, uncut = two_epochs
    one, calls = Job(done.config, done.data, tmp_path), [0]
    flush = files.flush

    def break_off(path: Path) -> None:
        calls[0] += "checkpoint-3" in str(path) or (path.name == "checkpoints" and calls[0] > 0)
        if calls[0] == number:
            raise PowerCut
        flush(path)

    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(files, "flush", break_off)
        one.fit("cut")
    found = newest_checkpoint(one.root / "cut/checkpoints", one.said.append)
    assert found and found.step == (3 if number == 8 else 2) and one.said == []
    assert what_counts(one.fit("cut")) == uncut


def test_checkpoints_cost_at_most_their_share_of_the_time(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test's own: a step takes a second, a checkpoint two."""
    clock = [0.0]
    monkeypatch.setattr("tasks.training.trainer.time.monotonic", lambda: clock[0])
    written: list[int] = []
    write = checkpoint.write_checkpoint

    def write_slowly(folder: Path, step: int, *rest: Any) -> Any:
        written.append(step)
        clock[0] += 2
        return write(folder, step, *rest)

    def report(progress: Progress) -> None:
        clock[0] += progress.point is None

    monkeypatch.setattr("tasks.training.trainer.write_checkpoint", write_slowly)
    monkeypatch.setattr(resume, "MOST_SHARE", 0.1)
    one = job({"training": {"epochs": 8}})
    fit_adapter(one.config, one.data, one.root / "run", Watcher(report))
    assert written[0] <= 6 and len(written) >= 2
    assert all(later - earlier >= 2 / resume.MOST_SHARE for earlier, later in pairwise(written))


# --- stopped politely -------------------------------------------------------------------------------------------------


def test_training_stops_when_the_step_is_saved_and_goes_on_after_it(
    two_epochs: tuple[Job, dict[str, Any]], tmp_path: Path
) -> None:
    (done, uncut), steps = two_epochs, list[int]()
    one = Job(done.config, done.data, tmp_path)

    def report(progress: Progress) -> None:
        if progress.point is None:
            steps.append(progress.step)

    with pytest.raises(KeyboardInterrupt):
        fit_adapter(one.config, one.data, one.root / "cut", Watcher(report, stop=lambda: len(steps) >= 8))
    assert steps[-1] == 8 and [path.name for path in newest_first(one.root / "cut/checkpoints")] == ["checkpoint-8"]
    assert what_counts(one.fit("cut")) == uncut
    assert one.said == ["Training goes on from step 8"]


def test_first_ctrl_c_asks_and_the_second_stops(capsys: pytest.CaptureFixture[str]) -> None:
    import signal

    with watching.polite_stop() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop() and "again to stop at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- too big ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[tuple[int, int]]]:
    """`small_gpu(30)`: no piece of more than 30 tokens fits from then on; rows and length of those that were tried."""
    import torch

    sizes: list[tuple[int, int]] = []
    step = Trainer.training_step

    def limit(most: int) -> list[tuple[int, int]]:
        def limited(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
            sizes.append(tuple(inputs["attention_mask"].shape))
            if math.prod(sizes[-1]) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return step(self, model, inputs, *rest)

        monkeypatch.setattr(Trainer, "training_step", limited)
        return sizes

    return limit


def test_batch_that_does_not_fit_is_cut_and_the_step_stays(
    job: Any, small_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, told = job({"training": {"epochs": 2}}), []
    sizes = small_gpu(30)
    trained = one.fit("small", too_big=lambda *numbers: told.append(numbers))
    rows, length = sizes[0]
    assert rows == 8 and rows * length > 30 and told[0] == (4 * length, 0)
    assert max(map(math.prod, sizes[-20:])) <= 30 and trained.compute["tokens_at_a_time"] == str(told[-1][0])
    assert f"for 8 rows of {length} tokens at a time" in one.said[0] and "as many rows as before" in one.said[0]
    monkeypatch.setattr(pieces, "CPU_TOKENS", told[-1][0])
    assert what_counts(one.fit("asked")) == what_counts(trained), "as if it had been cut so from the start"


def test_smaller_pieces_are_kept_when_training_goes_on(job: Any, small_gpu: Any, always_save: None) -> None:
    one = job({"training": {"epochs": 2}})
    sizes = small_gpu(30)
    with pytest.raises(PowerCut):
        one.fit("cut", 3)
    del sizes[:]
    one.fit("cut")
    assert sizes and max(map(math.prod, sizes)) <= 30


def test_one_row_that_does_not_fit_says_what_to_do(job: Any, small_gpu: Any) -> None:
    small_gpu(0)
    with pytest.raises(RuntimeError, match=r"even for one row at a time; try training\.gradient_checkpointing, a smal"):
        job({"training": {"epochs": 1}}).fit("run")


def test_no_adapter_with_a_weight_that_is_no_number_is_kept(
    job: Any, always_save: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    one, step = job({"training": {"epochs": 2}}), torch.optim.AdamW.step
    calls = [0]

    def spoil(self: Any, *arguments: Any, **named: Any) -> Any:
        answer = step(self, *arguments, **named)
        calls[0] += 1
        if calls[0] == 4:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("nan"))
        return answer

    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    with pytest.raises(
        FloatingPointError, match=r"a weight is not a number after step 4, and was|loss is nan at step 5"
    ):
        one.fit("run")
    assert not (one.root / "run/adapter").exists()
    assert [path.name for path in newest_first(one.root / "run/checkpoints")] == ["checkpoint-3", "checkpoint-2"]


def test_each_gpu_goes_on_with_its_own_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are more than ten, or fewer than when the checkpoint was written."""
    import torch

    tensors, plain = checkpoint.random_state()
    given: dict[int, Any] = {}
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: given.update({device: state}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 11)
    checkpoint.set_random_state({"cpu": tensors["cpu"], **{f"cuda.{n}": n for n in range(12)}}, plain)  # type: ignore[dict-item]
    assert given == {number: number for number in range(11)}


def test_file_that_the_system_left_in_a_checkpoint_does_not_break_it(tmp_path: Path) -> None:
    import torch

    written = checkpoint.write_checkpoint(tmp_path, 3, {"weights": {"a": torch.ones(2)}}, {"step": 3})
    (written.folder / ".DS_Store").write_text("Finder's")
    assert checkpoint.newest_checkpoint(tmp_path, pytest.fail) == written


def test_step_10_is_newer_than_step_9(tmp_path: Path) -> None:
    for step in (8, 9, 10):
        written = checkpoint.write_checkpoint(tmp_path, step, {}, {"step": step})
    assert [path.name for path in newest_first(tmp_path)] == ["checkpoint-10", "checkpoint-9"]
    assert checkpoint.newest_checkpoint(tmp_path, pytest.fail) == written


def test_checkpoint_that_cannot_be_read_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for step in (1, 2):
        checkpoint.write_checkpoint(tmp_path, step, {"weights": {"a": torch.ones(2)}}, {"step": step})
    read, said = checkpoint.file_sha256, []

    def broken(path: Path) -> str:
        if "checkpoint-2" in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(checkpoint, "file_sha256", broken)
    found = checkpoint.newest_checkpoint(tmp_path, said.append)
    assert found and found.step == 1 and "cannot be read: Input/output error" in said[0]


@pytest.mark.parametrize(
    ("loss", "before", "same"),
    [
        (0.5, 0.5005, True),
        (0.5, 0.6, False),
        (math.nan, math.nan, True),
        (math.inf, math.inf, True),
        (0.5, math.inf, False),
        (math.nan, 0.5, False),
        (math.inf, 0.5, False),
    ],
)
def test_loss_that_was_no_number_may_be_none_again(loss: float, before: float, same: bool) -> None:
    """Else a run whose validation loss is infinite could never go on."""
    assert resume.is_same(loss, before) is same
