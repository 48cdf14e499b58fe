"""Train an adapter with transformers' Trainer; return where it lies and how its scores went."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect import task
from prefect.logging import get_run_logger

from tasks import adapter as adapters
from tasks import model as models
from tasks.config import RunConfig
from tasks.evaluation import PROBE_ROWS
from tasks.progress import live_curve, progress_artifact
from tasks.records import Point, PreparedData, TrainedAdapter, file_sha256
from tasks.tracking import log_checkpoint, log_curve

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import Trainer, TrainerCallback, TrainingArguments

CURVE_POINTS = 100
"""Training loss is reported about this many times a run: enough for a curve, few enough to cost nothing."""

CURVE_NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    "eval_loss": "validation/loss",
    "eval_accuracy": "validation/accuracy",
    "eval_macro_f1": "validation/macro_f1",
    "eval_log_loss": "validation/log_loss",
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
        left = self.seconds_left
        amount = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min" if left < 5400 else f"{left / 3600:.1f} h"
        return f"step {self.step} of {self.total_steps}, about {amount} left"


Report = Callable[[Progress], None]


@task(name="train adapter", task_run_name="train adapter")
def train_adapter(config: RunConfig, data: PreparedData, run_id: str, work: str) -> TrainedAdapter:
    """Training with live curves in MLflow run `run_id`, a progress artifact in Prefect and a bar in the terminal."""
    with progress_artifact("training-progress") as show, live_curve(partial(log_curve, run_id)) as draw:

        def report(progress: Progress) -> None:
            if progress.point:
                draw(progress.point)
            show(100 * progress.step / progress.total_steps, progress.sentence())

        def stopped(folder: Path, step: int) -> None:
            log_checkpoint(run_id, folder, step)
            get_run_logger().warning(
                "Stopped after step %d. What was trained is kept, in MLflow under checkpoint and in %s", step, folder
            )

        return fit_adapter(config, data, Path(work), report, stopped)


def fit_adapter(
    config: RunConfig,
    data: PreparedData,
    work: Path,
    report: Report,
    stopped: Callable[[Path, int], None] = lambda folder, step: None,
) -> TrainedAdapter:
    """Train on the train split, keep the checkpoint that scores best on validation, save it under `work/adapter`.

    The test split is not touched. Raises FloatingPointError when the loss stops being a number. When the process is
    told to stop, the weights as they are go to `work/checkpoint`, like a finished adapter but not calibrated, and
    `stopped(folder, step)` is called before the signal goes on its way.
    """
    import transformers
    from datasets import load_from_disk
    from safetensors.torch import save_file

    from tasks import serving
    from tasks.statistics import fit_temperature

    transformers.set_seed(config.seed)
    splits = load_from_disk(data.folder)
    tokenizer = models.load_tokenizer(data.model, config.model)
    model, fresh = models.load_foundation(data.model, config, data.label_names, tokenizer)
    model = adapters.attach_adapter(model, config, fresh, planned_steps(config, data.rows("train")))
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    validated = ValidationLogits()
    trainer = build_trainer(config, model, tokenizer, splits, work / "checkpoints", report, validated)
    whole = WholeWeights(model)
    trainer.add_callback(whole.callback())
    started = time.monotonic()
    try:
        outcome = trainer.train()
    except Exception:
        raise
    except BaseException:  # Ctrl-C, SIGTERM, a cancelled flow: raised anywhere, a step of a big model takes too long
        whole.restore()
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        adapters.save_adapter(model, tokenizer, config, data, work / "checkpoint", temperature=1.0)
        stopped(work / "checkpoint", trainer.state.global_step)
        raise
    seconds = time.monotonic() - started
    # on a GPU, Trainer leaves bfloat16 autocast on the model; what is read back from disk has none
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    best = trainer.state.best_model_checkpoint
    if best and not best.endswith(f"-{trainer.state.global_step}"):
        adapters.load_checkpoint(model, Path(best))
    model.eval()
    best_step = step_of(best) if best else trainer.state.global_step
    temperature = fit_temperature(*validated.by_step[best_step])
    probe = serving.classify(model, tokenizer, splits["validation"][:PROBE_ROWS], config.evaluation.batch_size)
    folder = work / "adapter"
    adapters.save_adapter(model, tokenizer, config, data, folder, temperature)
    save_file({"logits": probe}, work / "probe.safetensors")
    trainable, total = model.get_nb_trainable_parameters()
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    return TrainedAdapter(
        folder=str(folder),
        sha256=file_sha256(folder / "adapter_model.safetensors"),
        probe=str(work / "probe.safetensors"),
        history=tuple(filter(None, map(curve_point, trainer.state.log_history))),
        trainable_parameters=trainable,
        total_parameters=total,
        target_modules=adapters.adapted_modules(model),
        fresh_modules=tuple(fresh),
        steps=trainer.state.global_step,
        best_step=best_step,
        temperature=temperature,
        seconds=round(seconds, 3),
        examples_per_second=round(outcome.metrics["train_samples_per_second"], 2),
        peak_memory_mb=peak_memory_mb(),
    )


class WholeWeights:
    """The trained weights as they were before the update at hand: one that is broken off leaves some old, some new."""

    def __init__(self, model: Any) -> None:
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.before: list[Tensor] = []

    def callback(self) -> "TrainerCallback":
        from transformers import TrainerCallback

        whole = self

        class WholeWeightsCallback(TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                whole.before = [weight.detach().clone() for weight in whole.weights]

            def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                whole.before = []

        return WholeWeightsCallback()

    def restore(self) -> None:
        """Undo what was done of an update that did not come to its end."""
        for weight, before in zip(self.weights, self.before, strict=False):
            weight.data.copy_(before)


class ValidationLogits:
    """What the model said about the validation rows at the best step so far and at the latest.

    Calibration then needs no further pass over them.
    """

    def __init__(self) -> None:
        self.by_step: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        """Logits (rows, classes) and labels (rows,), in any order of rows."""

    def keep(self, state: Any, logits: "np.ndarray", labels: "np.ndarray") -> None:
        best = step_of(state.best_model_checkpoint) if state.best_model_checkpoint else None
        self.by_step = {step: kept for step, kept in self.by_step.items() if step == best}
        self.by_step[state.global_step] = (logits, labels)


def step_of(checkpoint: str) -> int:
    """Trainer's folders are called `checkpoint-STEP`."""
    return int(checkpoint.rsplit("-", 1)[1])


def build_trainer(
    config: RunConfig,
    model: Any,
    tokenizer: Any,
    splits: Any,
    folder: Path,
    report: Report,
    validated: ValidationLogits,
) -> "Trainer":
    import numpy as np
    from scipy.special import softmax
    from transformers import DataCollatorWithPadding, EarlyStoppingCallback, Trainer
    from transformers.trainer_callback import PrinterCallback

    from tasks.metrics import score

    callbacks: list[TrainerCallback] = [progress_callback(report)]
    if config.adapter.method == "adalora":
        callbacks.append(adalora_callback())
    if config.training.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(config.training.early_stopping_patience))

    def compute_metrics(prediction: Any) -> dict[str, float]:
        validated.keep(trainer.state, prediction.predictions, prediction.label_ids)
        return score(softmax(prediction.predictions.astype(np.float64), axis=1), prediction.label_ids).model_dump()

    columns = [*(c for c in tokenizer.model_input_names if c in splits["train"].column_names), "labels"]
    validation = splits["validation"].sort("length")  # batches of like length; scores do not depend on the order
    trainer = Trainer(
        model=model,
        args=training_arguments(config, planned_steps(config, len(splits["train"])), folder),
        # without our `length` column, which Trainer would read from the file row by row in every epoch
        train_dataset=splits["train"].select_columns(columns),
        eval_dataset=validation.select_columns(columns),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_loss_func=mean_loss,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=lambda logits, labels: logits[0] if isinstance(logits, tuple) else logits,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_arguments(config: RunConfig, steps: int, folder: Path) -> "TrainingArguments":
    import torch
    from transformers import TrainingArguments

    training = config.training
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=config.evaluation.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        # the last step must have a learning rate, also where there is only one
        warmup_steps=min(math.ceil(training.warmup_fraction * steps), steps - 1),
        weight_decay=training.weight_decay,
        lr_scheduler_type=training.scheduler,
        # rows of like length share a batch: half the padding of random batches, still shuffled by seed
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        metric_for_best_model=f"eval_{training.selection_metric}",
        greater_is_better=training.selection_metric != "log_loss",
        logging_steps=max(1, steps // CURVE_POINTS),
        bf16=use_bfloat16(),
        seed=config.seed,
        data_seed=config.seed,
        logging_nan_inf_filter=False,  # a loss that is not a number must be seen
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    # one process, one device: on several GPUs Trainer would multiply the batch and so change the run
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def use_bfloat16() -> bool:
    """Whether to compute in bfloat16 in training: three times as fast where a GPU has it; weights stay as they are."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def mean_loss(outputs: Any, labels: "Tensor", num_items_in_batch: Any = None) -> "Tensor":
    """Cross-entropy, mean over the rows of the optimizer step, however many forward passes make it.

    BERT and its kin ignore Trainer's count of these rows: their own loss grows with gradient accumulation.
    """
    from torch.nn.functional import cross_entropy

    logits = outputs["logits"].float()
    if num_items_in_batch is None:
        return cross_entropy(logits, labels)
    return cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


def planned_steps(config: RunConfig, rows: int) -> int:
    """Optimizer steps of the run, as Trainer counts them."""
    training = config.training
    batches = math.ceil(rows / training.batch_size)
    per_epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    return training.max_steps or per_epoch * training.epochs


def progress_callback(report: Report) -> "TrainerCallback":
    from tqdm import tqdm
    from transformers import TrainerCallback

    class ProgressCallback(TrainerCallback):
        """A bar with the time left on standard error, and `report` for everyone else."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar = tqdm(total=state.max_steps, desc="training", unit="step", file=sys.stderr, mininterval=0.5)
            self.started = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.update(state.global_step - self.bar.n)
            report(self.progress(state, None))

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            loss = logs.get("loss", logs.get("eval_loss", 0.0))
            if not math.isfinite(loss):
                self.bar.close()
                raise FloatingPointError(
                    f"the loss is {loss} at step {state.global_step}; try a lower training.learning_rate"
                )
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
            done = max(state.global_step, 1)
            left = (time.monotonic() - self.started) / done * (state.max_steps - state.global_step)
            return Progress(state.global_step, state.max_steps, left, point)

    return ProgressCallback()


def adalora_callback() -> "TrainerCallback":
    from transformers import TrainerCallback

    class AdaLoraCallback(TrainerCallback):
        """AdaLoRA prunes between optimizer steps; nobody does it unless told."""

        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.base_model.update_and_allocate(state.global_step)

    return AdaLoraCallback()


def curve_point(logs: dict[str, Any]) -> Point | None:
    """The part of Trainer's log line that belongs in a curve."""
    metrics = {ours: float(logs[theirs]) for theirs, ours in CURVE_NAMES.items() if theirs in logs}
    return Point(step=int(logs["step"]), metrics=metrics) if metrics else None


def peak_memory_mb() -> float:
    """Most memory this process ever held, in MiB: on the GPU where one is used, else resident."""
    import resource

    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def final_points(history: Sequence[Point], name: str) -> list[tuple[int, float]]:
    """Step and value of each point of one curve."""
    return [(point.step, point.metrics[name]) for point in history if name in point.metrics]
