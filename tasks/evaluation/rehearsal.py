"""What a run will take, before it begins: everything but its training is done, and a few steps of that are timed."""

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import psutil

from tasks.base.device import peak_memory_mb, peak_memory_of_children_mb
from tasks.base.records import DataCheck, Evaluation, PreparedData, Record, TrainedAdapter, digest
from tasks.base.work import WORK
from tasks.data.datacheck import power_sentence, read_check
from tasks.data.prepare import prepare
from tasks.evaluation.adapter import measure_adapter
from tasks.evaluation.references import evaluate_baseline, evaluate_references
from tasks.models.foundation import load_config
from tasks.scores.objective import objective, short_reference_title
from tasks.settings.config import RunConfig
from tasks.sources.columns import array
from tasks.training.fit import fit_adapter, planned_steps, steps_per_epoch
from tasks.training.trunk import SPLITS, trunk_bytes
from tasks.training.watching import Progress, Watcher

STEPS = 6
"""Steps that are timed, but for the first, which has the longest row: it warms up, and says what memory that takes."""

DRAWS = 20
"""Orders of the rehearsal's few rows over which their padding is averaged."""

ROWS = 128
"""Validation and test rows that the rehearsal reads."""

RECORD_SECONDS = 5.0
"""Comparison, pictures and MLflow, on two cores of 2023; longer where MLflow is far."""

RECORD_MB = 2.0
"""Tables, pages and pictures of a run."""

STATES = 4
"""Times a trained weight is in a checkpoint: itself, Adam's two averages, and the best so far."""

KEPT_CHECKPOINTS = 2


class Expected(Record):
    """What `peft-flow finetune --dry-run --json` prints."""

    row_counts: dict[str, int]
    """By split."""
    warnings: tuple[str, ...]
    """Of the data check."""
    shows: str
    """What difference the test rows can show; empty where that is not known before."""
    metric: str
    """Its title."""
    scores: dict[str, str]
    """In it, by the title of a classifier, as they are shown: the untouched foundation model and the references."""
    steps: int
    trainable_parameters: int
    seconds: dict[str, float]
    """Of the run that comes next, by what takes them: start, train, evaluate, record, and total. What has been measured
    here is not measured again, and not in it."""
    memory_mb: float
    """Most that the training process holds at a time; where a GPU is used, on that."""
    reload_memory_mb: float
    """Most that the process holds which reads the adapter back; 0 where it is on a GPU, after the other."""
    disk_mb: float
    """Most that the run adds to mlruns/ at a time."""
    kept_mb: float
    """What stays of it."""


class Timed(NamedTuple):
    """A short training on some of the rows."""

    trained: TrainedAdapter
    step: float
    """Seconds of a step with rows of usual length."""
    validation: float
    """Seconds of the validation rows in the sample."""
    around: float
    """Seconds besides: the model is read, the adapter saved."""
    reload_memory_mb: float
    tokens_per_step: float
    """Of the timed steps, with padding."""
    validation_tokens: int
    tokens: int
    """Of all training and validation rows in the sample."""


def expect(config: RunConfig) -> Expected:
    """Data, foundation model and references of this run, measured and kept, and what the run itself will take."""
    start = since_start()
    prepare(config, WORK)
    begun = time.monotonic()
    prepared = prepare(config, WORK)  # as the run will find it
    start += time.monotonic() - begun
    check = read_check(config, prepared)
    baseline = evaluate_baseline(config, prepared, str(WORK))
    references = evaluate_references(config, prepared, str(WORK))
    with TemporaryDirectory(prefix="dry-run-", dir=WORK) as folder:
        timed = rehearse(config, prepared, Path(folder))
        adapter = sum(file.stat().st_size for file in Path(timed.trained.folder).iterdir()) / 1e6
    measured = {"baseline": baseline, **references}
    return expected(config, prepared, check, measured, timed, start, adapter)


def since_start() -> float:
    """Seconds that this process has lived."""
    return time.time() - psutil.Process(os.getpid()).create_time()


def rehearse(config: RunConfig, data: PreparedData, folder: Path) -> Timed:
    """A short training on some of the rows, the longest among them, and the adapter read back."""
    sample = some_rows(config, data, folder / "data")
    steps = min(STEPS, steps_per_epoch(config, sample.rows("train")))
    training = config.training.model_copy(update={"max_steps": steps, "early_stopping_patience": None})
    ticks: list[tuple[int, float]] = []

    def tick(progress: Progress) -> None:
        ticks.append((progress.step, time.monotonic()))

    begun = time.monotonic()
    short = config.model_copy(update={"training": training})
    trained = fit_adapter(short, sample, folder / "run", Watcher(tick))
    took = time.monotonic() - begun
    first = {step: moment for step, moment in reversed(ticks)}
    validation = ticks[-1][1] - first[steps]
    per_step = (first[steps] - first[1]) / (steps - 1) if steps > 1 else trained.seconds - validation
    measure_adapter(short, sample, trained)
    lengths = {split: lengths_of(sample, split) for split in ("train", "validation")}
    padded = [padded_tokens(lengths["train"], config, draw) for draw in range(DRAWS)]
    return Timed(
        trained,
        per_step,
        validation,
        took - trained.seconds - trained.trunk_seconds,
        peak_memory_of_children_mb(),
        float(sum(one[min(1, steps - 1) : steps].mean() for one in padded)) / DRAWS,
        int(lengths["validation"].sum()),
        int(sum(all.sum() for all in lengths.values())),
    )


def some_rows(config: RunConfig, data: PreparedData, folder: Path) -> PreparedData:
    """The longest training rows, for one step, and others for the steps after; of the other splits any."""
    import numpy as np
    from datasets import DatasetDict, load_from_disk

    splits, drawn = load_from_disk(data.folder), np.random.default_rng(config.seed)
    order = np.argsort(lengths_of(data, "train"), kind="stable")[::-1]
    longest, others = order[: step_rows(config)], order[step_rows(config) :]
    chosen = {"train": np.concatenate([longest, drawn.permutation(others)[: (STEPS - 1) * step_rows(config)]])}
    for split in ("validation", "test"):
        chosen[split] = drawn.permutation(len(splits[split]))[:ROWS]
    sample = DatasetDict({split: splits[split].select(sorted(rows)) for split, rows in chosen.items()})
    sample.save_to_disk(str(folder))
    counts = {split: len(rows) for split, rows in sample.items()}
    other = digest([data.fingerprint, "some rows"])  # what is kept by fingerprint is not about these
    return data.model_copy(update={"folder": str(folder), "row_counts": counts, "fingerprint": other})


def step_rows(config: RunConfig) -> int:
    return config.training.batch_size * config.training.gradient_accumulation_steps


def padded_tokens(lengths: Any, config: RunConfig, draw: int) -> Any:
    """Tokens of each step of an epoch, with padding; shape (steps,).

    Training puts rows of like length together, within groups that are larger the more rows there are: a few rows have
    more padding than all of them.
    """
    import numpy as np
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    size, generator = config.training.batch_size, torch.Generator().manual_seed(draw)
    order = get_length_grouped_indices(lengths.tolist(), step_rows(config), generator=generator)
    starts = np.arange(0, len(order), size)
    rows = np.diff(starts, append=len(order))
    tokens = np.maximum.reduceat(lengths[order], starts) * rows
    return np.add.reduceat(tokens, np.arange(0, len(starts), config.training.gradient_accumulation_steps))


def lengths_of(data: PreparedData, split: str) -> Any:
    from datasets import load_from_disk

    return array(load_from_disk(data.folder)[split], "length")


def expected(
    config: RunConfig,
    data: PreparedData,
    check: DataCheck,
    measured: dict[str, Evaluation],
    timed: Timed,
    start: float,
    adapter_mb: float,
) -> Expected:
    """What was timed, counted up to the whole run."""
    task = objective(data.task)
    metric = task.metrics[0]
    steps = planned_steps(config, data.rows("train"))
    seconds = {
        "start": start,
        "train": training_seconds(config, data, timed, steps),
        "evaluate": measured["baseline"].seconds,
        "record": RECORD_SECONDS,
    }
    trained = timed.trained
    on_gpu = trained.compute["device"] != "cpu"
    kept = 2 * adapter_mb + RECORD_MB
    if config.adapter.layers:
        tokens = sum(int(lengths_of(data, split).sum()) for split in SPLITS)
        kept += trunk_bytes(load_config(data.model, config.model), tokens, config) / 1e6
    return Expected(
        row_counts=data.row_counts,
        warnings=check.warnings,
        shows=power_sentence(data, check, config),
        metric=metric.title,
        scores={
            short_reference_title(task, name): metric.shown(one.scores[metric.name]) for name, one in measured.items()
        },
        steps=steps,
        trainable_parameters=trained.trainable_parameters,
        seconds={name: round(one, 1) for name, one in {**seconds, "total": sum(seconds.values())}.items()},
        memory_mb=peak_memory_mb(),
        reload_memory_mb=0.0 if on_gpu else timed.reload_memory_mb,
        disk_mb=round(kept + KEPT_CHECKPOINTS * STATES * 4 * trained.trainable_parameters / 1e6, 1),
        kept_mb=round(kept, 1),
    )


def training_seconds(config: RunConfig, data: PreparedData, timed: Timed, steps: int) -> float:
    """Steps and validations in proportion to their tokens, and what comes before and after."""
    lengths = {split: lengths_of(data, split) for split in ("train", "validation")}
    longer = float(padded_tokens(lengths["train"], config, 0).mean()) / timed.tokens_per_step
    validations = -(-steps // steps_per_epoch(config, data.rows("train")))
    more = float(lengths["validation"].sum()) / timed.validation_tokens
    trunk = timed.trained.trunk_seconds * sum(all.sum() for all in lengths.values()) / timed.tokens
    return steps * timed.step * longer + validations * timed.validation * more + timed.around + float(trunk)
