"""Train an adapter with transformers' Trainer; return where it lies and how its scores went."""

import math
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

from tasks.base.device import peak_memory_mb, processes
from tasks.base.fresh_process import free_device_memory
from tasks.base.progress import progress_artifact, tell, warn
from tasks.base.records import PreparedData, Record, TrainedAdapter, file_sha256, read_record
from tasks.base.words import counted
from tasks.base.work import RunFolder
from tasks.models import adapter as adapters
from tasks.models import foundation as models
from tasks.models import quantized, sharding
from tasks.models.adapter import PROBE_ROWS
from tasks.models.blocks import compute_blocks_twice
from tasks.scores.objective import Metric
from tasks.settings.config import RunConfig
from tasks.sources.columns import array
from tasks.tracking.run import describe, log, log_files
from tasks.training import adalora
from tasks.training.checkpoint import newest_step
from tasks.training.dropout import quick_dropout
from tasks.training.group import fit_together
from tasks.training.pieces import Pieces, pieces_here
from tasks.training.precision import quick_autocast, use_bfloat16
from tasks.training.ranks import ALONE, Ranks
from tasks.training.target import Target, target_of
from tasks.training.trimming import trim_last_block
from tasks.training.trunk import PLACE, Trunk
from tasks.training.watching import Progress, Watcher, curve_point, polite_stop, progress_callback

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback, TrainingArguments


CURVE_POINTS = 100
"""Training loss is reported about this many times a run: enough for a curve, few enough to cost nothing."""


@task(name="train adapter", task_run_name="train adapter")
def train_adapter(config: RunConfig, data: PreparedData, work: str) -> TrainedAdapter:
    """Training with live curves in the run's MLflow run, a progress artifact in Prefect and a bar in the terminal.

    What was trained before, in this folder and from the same configuration, goes on where it stopped.
    """
    done = RunFolder(work).trained
    if (kept := read_record(TrainedAdapter, done)) and is_whole(kept):
        tell("The adapter has been trained before")
        for point in kept.history:  # what an interrupted run has told is not told again
            log(work, "metrics", point.metrics, point.step)
        return kept
    with progress_artifact("training-progress") as show, polite_stop() as stop:

        def report(progress: Progress) -> None:
            if progress.point:
                log(work, "metrics", progress.point.metrics, progress.point.step)
            show(100 * progress.step / progress.total_steps, progress.sentence())

        def stopped(folder: Path, step: int) -> None:
            log_files(work, "checkpoint", folder)
            describe(work, f"**Stopped** after step {step}; what was trained is under `checkpoint`")
            warn("Stopped after step %d. What was trained is kept, in MLflow under checkpoint and in %s", step, folder)

        def too_big(most_tokens: int, step: int) -> None:
            log(work, "metrics", {"train/tokens_at_a_time": most_tokens}, step)

        watcher = Watcher(report, stopped, too_big, warn, stop)
        trained = fit_adapter(config, data, Path(work), watcher)
        trained.write(done)
        if stop():  # asked for in the last moments: everything is kept
            raise KeyboardInterrupt
        return trained


def is_whole(trained: TrainedAdapter) -> bool:
    file = Path(trained.folder) / "adapter_model.safetensors"
    return file.is_file() and file_sha256(file) == trained.sha256 and Path(trained.probe).is_file()


def fit_adapter(config: RunConfig, data: PreparedData, work: Path, watcher: Watcher) -> TrainedAdapter:
    """Train on the train split, keep the weights that score best on validation, save them under `work/adapter`.

    By as many processes as the configuration asks for; one is this process. Goes on from the newest intact checkpoint
    in `work/checkpoints`. Where the GPU's memory is too small for a piece of a batch, smaller ones make up the same
    optimizer step. The test split is not touched. Raises FloatingPointError when the loss stops being a number. When
    the process is told to stop, the weights as they are go to `work/checkpoint`, like a finished adapter but not
    calibrated, and the watcher is told before the signal goes on its way.
    """
    run, count = RunFolder(work), processes(config.training)
    while True:
        pieces = pieces_for(run)
        try:
            if count > 1:
                return fit_together(count, pieces, config, data, run, watcher)
            trained = fit_with(pieces, config, data, run, watcher)
            assert trained  # this process is the only one
            return trained
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            smaller = pieces.smaller()
            if not smaller:
                raise RuntimeError(
                    "the GPU's memory is too small even for one row at a time; try training.gradient_checkpointing, "
                    "a smaller data.max_length, model.quantization nf4 or a smaller model"
                ) from error
            Fitting(tokens=smaller).write(run.fitting)
            step = newest_step(run.checkpoints)
        free_device_memory()  # not inside `except`: there the traceback holds the model
        rows, length = pieces.latest
        watcher.say(
            f"The GPU's memory is too small for {counted(rows, 'row')} of {length} tokens at a time: training goes on "
            f"with at most {smaller} tokens, in more pieces; as many rows as before make one step"
        )
        watcher.too_big(smaller, step)


class Fitting(Record):
    """What was seen to fit into the GPU's memory."""

    tokens: int


def pieces_for(run: RunFolder) -> Pieces:
    fitting = read_record(Fitting, run.fitting)
    return pieces_here(fitting.tokens if fitting else None)


def is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def fit_with(
    pieces: Pieces, config: RunConfig, data: PreparedData, run: RunFolder, watcher: Watcher, ranks: Ranks = ALONE
) -> TrainedAdapter | None:
    """In this process, which may be one of several: the first writes all files, and the others return None."""
    import transformers
    from datasets import load_from_disk
    from safetensors.torch import save_file

    from tasks.models import serving
    from tasks.training.saving import WholeWeights

    transformers.set_seed(config.seed)
    splits = load_from_disk(data.folder)
    target = target_of(config, data, array(splits["train"], "labels"))
    tokenizer = models.load_tokenizer(data.model, config.model)
    model, fresh, ranks = load(config, data, tokenizer, ranks)
    if config.training.gradient_checkpointing:
        compute_blocks_twice(model.get_base_model())
    if quantized.packed(model):
        most = min(pieces.most_tokens, config.training.batch_size * config.data.max_length)
        tell("%s", quantized.weights_sentence(model, most))
    model = model if ranks.sharded else serving.on_best_device(model)
    trunk, begun = None, time.monotonic()
    if config.adapter.layers:
        trunk = Trunk(model, data, config, splits)
        trunk.compute(model, tokenizer, splits, config.evaluation.batch_size, tell)
    trunk_seconds = time.monotonic() - begun
    trainer = build_trainer(config, pieces, model, tokenizer, splits, trunk, run.checkpoints, watcher, target, ranks)
    whole = WholeWeights(model)
    trainer.add_callback(whole.callback())
    batch = unlike_rows(splits["train"], trainer)
    if trunk:
        trunk.check(model, batch)
    try:
        with trunk.in_place_of_blocks(model) if trunk else nullcontext():
            trim_last_block(model, batch)
            has_whole_weights = trainer.args.bf16 and trainer.args.use_cpu and not ranks.sharded
            quick = quick_autocast(model) if has_whole_weights else nullcontext()
            with quick_dropout(model), quick:
                trainer.go_on()
    except Exception:
        raise
    except BaseException:  # Ctrl-C, SIGTERM, a cancelled flow: raised anywhere, a step of a big model takes too long
        if ranks.is_first:
            whole.restore()
            model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
            adapters.save_adapter(model, tokenizer, config, data, run.stopped, target.provisional(trainer.best))
            watcher.stopped(run.stopped, trainer.state.global_step)
        raise
    if not (ranks.is_first or ranks.sharded):
        return None
    seconds, best = trainer.seconds, trainer.best
    # Trainer leaves bfloat16 autocast on the model; what is read back from disk has none
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trainer.use_best()
    model.eval()
    probe = serving.classify(model, tokenizer, splits["validation"][:PROBE_ROWS], config.evaluation.batch_size)
    if not ranks.is_first:
        return None
    fitted = target.fitted(best)
    adapters.save_adapter(model, tokenizer, config, data, run.adapter, fitted, best.rows())
    save_file({"logits": probe}, run.probe)
    trainable, total = model.get_nb_trainable_parameters()
    for leftover in (run.checkpoints, run.stopped):
        shutil.rmtree(leftover, ignore_errors=True)
    return TrainedAdapter(
        folder=str(run.adapter),
        sha256=file_sha256(run.adapter / "adapter_model.safetensors"),
        probe=str(run.probe),
        history=tuple(filter(None, map(curve_point, trainer.state.log_history))),
        trainable_parameters=trainable,
        total_parameters=total,
        target_modules=adapters.adapted_modules(model),
        fresh_modules=tuple(fresh),
        steps=trainer.state.global_step,
        best_step=best.step,
        fitted=fitted,
        seconds=round(seconds, 3),
        trunk_seconds=round(trunk_seconds, 3),
        examples_per_second=round(trainer.examples / seconds, 2),
        padding=round(1 - trainer.tokens / trainer.tokens_with_padding, 6),
        peak_memory_mb=peak_memory_mb(),
        compute=compute_settings(model, trainer.args, pieces, ranks),
    )


def load(config: RunConfig, data: PreparedData, tokenizer: Any, ranks: Ranks) -> tuple[Any, list[str], Ranks]:
    """The model with an untrained adapter, the names of its fresh modules, and whether its weights are shared out."""
    sharded = ranks.size > 1 and bool(ranks.told(sharding.is_to_be_sharded(data.model, config)))
    ranks = ranks._replace(sharded=sharded)
    mesh = sharding.mesh_of(ranks.size) if sharded else None
    with ranks.in_turn() if sharded else nullcontext():
        model, fresh = models.load_foundation(data.model, config, data.label_names, tokenizer)
        model = adapters.attach_adapter(model, config, fresh, planned_steps(config, data.rows("train")))
        if sharded:
            model = sharding.share_out(model, mesh)
            tell("%s", sharding.sharing_sentence(model, ranks.size))
    return model, fresh, ranks


def compute_settings(model: Any, arguments: "TrainingArguments", pieces: Pieces, ranks: Ranks) -> dict[str, str]:
    """What this machine trains with: chosen once from what it has, never by the user, and logged."""
    import torch

    products = {"quantised_products": quantized.rounding(model)} if quantized.packed(model) else {}
    shared = {"frozen_weights_here": "{} of {} bytes".format(*sharding.frozen_bytes(model))} if ranks.sharded else {}
    return {
        **products,
        **shared,
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else model.device.type,
        "threads": str(torch.get_num_threads()),
        "processes": str(ranks.size),
        "training_precision": "bfloat16 autocast"
        if arguments.bf16
        else str(quantized.number_format(model)).removeprefix("torch."),
        "tokens_at_a_time": str(pieces.most_tokens),
        "optimizer": str(arguments.optim.value),
        "attention": str(model.config._attn_implementation),
    }


def unlike_rows(split: Any, trainer: Any) -> dict[str, "Tensor"]:
    """A batch of the shortest and the longest row, on the model's device."""

    lengths = array(split, "length")
    batch = trainer.data_collator([trainer.train_dataset[int(row)] for row in (lengths.argmin(), lengths.argmax())])
    return {name: values.to(trainer.model.device) for name, values in batch.items()}


def build_trainer(
    config: RunConfig,
    pieces: Pieces,
    model: Any,
    tokenizer: Any,
    splits: Any,
    trunk: Trunk | None,
    folder: Path,
    watcher: Watcher,
    target: Target,
    ranks: Ranks = ALONE,
) -> Any:
    from transformers import DataCollatorWithPadding, EarlyStoppingCallback
    from transformers.trainer_callback import PrinterCallback

    from tasks.training.trainer import ResumableTrainer

    callbacks: list[TrainerCallback] = [progress_callback(watcher.report)]
    loss, first_best = target.loss, 0
    if config.adapter.method == "adalora":
        callbacks.append(adalora.pruning_callback())
        loss, first_best = adalora.with_penalty(loss, model), adalora.pruned_from(model)
    if config.training.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(config.training.early_stopping_patience))

    def compute_metrics(prediction: Any) -> dict[str, float]:
        trainer.latest = (prediction.predictions, prediction.label_ids)
        return target.scores(prediction.predictions, prediction.label_ids)

    columns = [*(c for c in tokenizer.model_input_names if c in splits["train"].column_names), "labels"]
    train, validation, collate = splits["train"], splits["validation"], DataCollatorWithPadding(tokenizer)
    if trunk:
        train, validation = trunk.rows(splits, "train"), trunk.rows(splits, "validation")
        columns, collate = [*columns, PLACE], trunk.collator(collate)
    validation = validation.sort("length")  # batches of like length; scores do not depend on the order
    trainer = ResumableTrainer(
        folder,
        watcher.say,
        watcher.stop,
        first_best,
        pieces,
        ranks,
        model=model,
        args=training_arguments(
            config, planned_steps(config, len(splits["train"])), folder, use_bfloat16(model), target.metric
        ),
        # without our `length` column, which Trainer would read from the file row by row in every epoch
        train_dataset=train.select_columns(columns),
        eval_dataset=validation.select_columns(columns),
        processing_class=tokenizer,
        data_collator=collate,
        compute_loss_func=loss,
        compute_metrics=compute_metrics,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_arguments(
    config: RunConfig, steps: int, folder: Path, bfloat16: bool, metric: Metric
) -> "TrainingArguments":
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
        save_strategy="no",  # tasks/training/trainer.py decides when
        metric_for_best_model=f"eval_{metric.name}",
        greater_is_better=metric.higher_is_better,
        logging_steps=max(1, steps // CURVE_POINTS),
        bf16=bfloat16,
        use_cpu=bfloat16 and not torch.cuda.is_available(),  # without, Trainer takes bf16 for a GPU's
        seed=config.seed,
        data_seed=config.seed,
        logging_nan_inf_filter=False,  # a loss that is not a number must be seen
        label_names=[
            "labels"
        ],  # else Trainer looks for them in the model's signature, and Qwen3.5's does not show them
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    # one process, one device: on several GPUs Trainer would multiply the batch and so change the run
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def planned_steps(config: RunConfig, rows: int) -> int:
    """Optimizer steps of the run, as Trainer counts them."""
    return config.training.max_steps or steps_per_epoch(config, rows) * config.training.epochs


def steps_per_epoch(config: RunConfig, rows: int) -> int:
    batches = math.ceil(rows / config.training.batch_size)
    return max(1, math.ceil(batches / config.training.gradient_accumulation_steps))
