"""One measurement, in a process of its own: a script as people use it today, or peft-flow. benchmarks/speed.py asks.

The scripts are ours, on their own libraries, with the batches, padding and loops of their documented examples:
the notebook of transformers' course (pad to the maximum), transformers' text-classification example (pad to 128),
PEFT's sequence-classification example (its own loop), and Trainer + PEFT with every setting that helps. All train the
same adapter with the same learning rate on the same rows.
"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

import argparse
import io
import json
import math
import resource
import time
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from tasks.base.device import mib
from tasks.base.machine import cpu_multiplies_bfloat16
from tasks.settings.config import RunConfig
from tasks.settings.loading import validated

WARM_STEPS = 2
"""Not counted: the first steps find memory and compile kernels."""


class Script(NamedTuple):
    title: str
    batch_size: int
    eval_batch_size: int
    pad_to: int | None = None
    """None: the longest row of the batch."""
    grouped: bool = False
    """Whether rows of like length share a batch."""
    plain_loop: bool = False


SCRIPTS = {
    "notebook": Script("notebook: pad to 512, batch 8", 8, 8, pad_to=512),
    "transformers-example": Script("transformers example: pad to 128, batch 8", 8, 8, pad_to=128),
    "batch-8": Script("the same batches of 8, padded to their longest row", 8, 8),
    "peft-example": Script("PEFT example: dynamic padding, batch 32, plain loop", 32, 32, plain_loop=True),
    "best-settings": Script("transformers + PEFT at their best settings", 16, 64, grouped=True),
}
OURS = {
    "peft-flow": "peft-flow",
    "peft-flow-bare": "peft-flow's training and evaluations without Prefect, MLflow and analysis",
    "peft-flow-top": "peft-flow, top half of the layers, the others computed once",
}
SHORTCUTS: dict[str, Any] = {
    "trim_last_block": lambda model, batch: (),
    "quick_autocast": nullcontext,
    "quick_dropout": nullcontext,
}
"""Names in tasks/training/fit.py of what makes training quicker, and what stands there without it."""
SAME_LOSSES = ("notebook", "transformers-example")
"""Padding changes nothing that is learned: their losses are those of `batch-8`, which can be waited for."""


def job(
    model: str,
    data: str,
    epochs: int,
    seed: int,
    layers: int | None = None,
    r: int = 8,
    learning_rate: float = 1e-3,
    max_length: int = 128,
) -> RunConfig:
    """peft-flow's configuration; the scripts take their numbers from it."""
    return validated(
        {
            "model": {"name": model},
            "data": {"name": data, "max_length": max_length},
            "adapter": {"layers": layers, "r": r},
            "training": {"epochs": epochs, "batch_size": 16, "learning_rate": learning_rate},
            "seed": seed,
        }
    )


class Measured:
    """What one process found, written as JSON on the last line of its output."""

    def __init__(self) -> None:
        self.first_step = self.done = self.printed = math.nan
        """Moments, by the clock: a model computes for the first time; the job is done; this is written."""
        self.step_seconds = 0.0
        self.step_rows = 0
        self.validation_losses: list[float] = []
        self.losses: list[tuple[int, float]] = []
        """Rows seen, and the mean training loss since the point before."""
        self.eval_seconds = math.nan
        self.eval_rows = 0
        self.accuracy = math.nan
        self.laps: dict[str, float] = {}
        self.padding = self.trunk_seconds = math.nan
        self.peak_memory_mb = math.nan
        """Most resident memory, in MiB, until the job is done."""

    def end(self) -> None:
        """The job is done; what comes next is ours to measure."""
        self.done, self.peak_memory_mb = time.time(), mib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    def watch(self) -> None:
        self.watch_first_step()
        self.watch_trainers()

    def watch_first_step(self) -> None:
        """Start-up ends where a model computes for the first time."""
        from torch.nn.modules.module import register_module_forward_pre_hook

        def note(*_: Any) -> None:
            self.first_step = time.time()
            hook.remove()

        hook = register_module_forward_pre_hook(note)

    def watch_trainers(self) -> None:
        """Time the steps of every Trainer in this process, ours included."""
        from transformers import TrainerCallback, trainer

        measured = self

        class Stopwatch(TrainerCallback):  # type: ignore[misc]
            def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.last = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, train_dataloader: Any, **kwargs: Any) -> None:
                now = time.perf_counter()
                per_epoch, size = len(train_dataloader), args.train_batch_size
                place = (state.global_step - 1) % per_epoch
                rows = min(size, len(train_dataloader.dataset) - place * size)
                if state.global_step > WARM_STEPS:
                    measured.step_seconds += now - self.last
                    measured.step_rows += rows
                self.last = now

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
                if "loss" in logs:
                    measured.losses.append((state.global_step * args.train_batch_size, logs["loss"]))
                if "eval_loss" in logs:
                    measured.validation_losses.append(logs["eval_loss"])

        trainer.DEFAULT_CALLBACKS.append(Stopwatch)


def read_splits(config: RunConfig) -> dict[str, Any]:
    from datasets import load_dataset

    files = {split: f"{config.data.name}/{split}.csv" for split in ("train", "validation", "test")}
    return dict(load_dataset("csv", data_files=files))


def run_script(script: Script, config: RunConfig, measured: Measured) -> None:
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    measured.watch()
    set_seed(config.seed)
    tokenizer = AutoTokenizer.from_pretrained(config.model.name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    length = script.pad_to or config.data.max_length
    padding: Any = "max_length" if script.pad_to else False

    def tokenize(rows: Any) -> Any:
        return tokenizer(rows["text"], truncation=True, max_length=length, padding=padding)

    splits = {
        name: split.map(tokenize, batched=True).rename_column("label", "labels").remove_columns("text")
        for name, split in read_splits(config).items()
    }
    model = AutoModelForSequenceClassification.from_pretrained(config.model.name, num_labels=2)
    model.config.pad_token_id = tokenizer.pad_token_id
    settings = LoraConfig(task_type="SEQ_CLS", r=config.adapter.r, lora_alpha=int(config.adapter.alpha))
    model = get_peft_model(model, settings)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    run = run_plain_loop if script.plain_loop else run_trainer
    logits, labels = run(script, config, measured, model, tokenizer, splits)
    measured.end()
    measured.eval_rows = len(splits["test"])
    measured.accuracy = float((np.argmax(logits, -1) == labels).mean())


def run_trainer(
    script: Script, config: RunConfig, measured: Measured, model: Any, tokenizer: Any, splits: dict[str, Any]
) -> Any:
    import numpy as np
    import torch
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    steps = math.ceil(len(splits["train"]) / script.batch_size) * config.training.epochs
    best = {"train_sampling_strategy": "group_by_length"} if script.grouped else {}
    arguments = TrainingArguments(
        output_dir="out",
        num_train_epochs=config.training.epochs,
        per_device_train_batch_size=script.batch_size,
        per_device_eval_batch_size=script.eval_batch_size,
        learning_rate=config.training.learning_rate,
        warmup_steps=math.ceil(config.training.warmup_fraction * steps),
        weight_decay=config.training.weight_decay,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=max(1, steps // 50),
        bf16=script.grouped and has_bfloat16(),
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        report_to=[],
        **best,
    )

    def accuracy(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((np.argmax(prediction.predictions, -1) == prediction.label_ids).mean())}

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    trainer.predict(splits["test"])
    trainer.train()
    began = time.perf_counter()
    predicted = trainer.predict(splits["test"])
    measured.eval_seconds = time.perf_counter() - began
    return predicted.predictions, predicted.label_ids  # grouped by length, the rows are not in their own order


def run_plain_loop(
    script: Script, config: RunConfig, measured: Measured, model: Any, tokenizer: Any, splits: dict[str, Any]
) -> Any:
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader
    from transformers import get_linear_schedule_with_warmup

    def collate(rows: Any) -> Any:
        return tokenizer.pad(rows, padding="longest", return_tensors="pt")

    def loader(split: str, shuffle: bool = False) -> Any:
        return DataLoader(splits[split], shuffle=shuffle, collate_fn=collate, batch_size=script.batch_size)

    def evaluate(split: str) -> Any:
        model.eval()
        logits = []
        for batch in loader(split):
            with torch.no_grad():
                logits.append(model(**batch.to(model.device)).logits.float().cpu())
        return torch.cat(logits)

    train = loader("train", shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.training.learning_rate)
    steps = len(train) * config.training.epochs
    scheduler = get_linear_schedule_with_warmup(optimizer, math.ceil(config.training.warmup_fraction * steps), steps)
    evaluate("test")
    step, summed = 0, 0.0
    for _ in range(config.training.epochs):
        model.train()
        last = time.perf_counter()
        for batch in train:
            loss = model(**batch.to(model.device)).loss
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step, summed, now = step + 1, summed + loss.item(), time.perf_counter()
            if step > WARM_STEPS:
                measured.step_seconds += now - last
                measured.step_rows += len(batch["labels"])
            last, every = now, max(1, steps // 50)
            if step % every == 0:
                measured.losses.append((step * script.batch_size, summed / every))
                summed = 0.0
        logits, labels = evaluate("validation"), torch.tensor(splits["validation"]["labels"][:])
        measured.validation_losses.append(float(cross_entropy(logits, labels)))
    began = time.perf_counter()
    logits = evaluate("test")
    measured.eval_seconds = time.perf_counter() - began
    return np.asarray(logits), np.asarray(splits["test"]["labels"])


def run_flow(config: RunConfig, measured: Measured) -> None:
    """The product as its command runs it."""
    from flows import actions, cli
    from tasks.base.records import RunResult, TrainedAdapter, read_record
    from tasks.base.work import RunFolder

    get_ready = actions.get_ready_to_train

    def get_ready_and_watch() -> None:  # not before: the command imports what is watched while other processes start
        get_ready()
        measured.watch()

    actions.get_ready_to_train = get_ready_and_watch
    Path("job.yaml").write_text(config.model_dump_json())
    with redirect_stdout(io.StringIO()) as said:
        if cli.main(["finetune", "job.yaml", "--json"]):
            raise SystemExit("peft-flow finetune failed")
    measured.end()
    result = RunResult.model_validate_json(said.getvalue())
    measured.accuracy, measured.laps = result.tuned["accuracy"], result.seconds.model_dump()
    trained = read_record(TrainedAdapter, RunFolder.around(result.adapter_path).trained)
    assert trained
    measured.padding, measured.trunk_seconds = trained.padding, trained.trunk_seconds
    time_evaluation(Path(result.adapter_path), config, measured)


def run_bare(config: RunConfig, measured: Measured) -> None:
    """The same data, training, two evaluations and checkpoints, and nothing else."""
    from tasks.data.prepare import prepare
    from tasks.evaluation.adapter import measure_adapter
    from tasks.evaluation.references import ask_foundation
    from tasks.training.fit import fit_adapter
    from tasks.training.watching import Watcher

    measured.watch()
    work = Path("work")
    work.mkdir()
    data = prepare(config, work)
    ask_foundation(config, data)
    trained = fit_adapter(config, data, work, Watcher(lambda progress: None))
    measured.accuracy = measure_adapter(config, data, trained).scores["accuracy"]
    measured.end()
    time_evaluation(Path(trained.folder), config, measured)


def time_evaluation(adapter: Path, config: RunConfig, measured: Measured) -> None:
    """Rows that are tokenized, like the scripts'; once more, for inside a run other things happen meanwhile."""
    import pandas as pd

    from tasks.models import serving

    model, tokenizer = serving.load_adapter(adapter, local_files_only=True)
    settings = serving.read_settings(adapter)
    texts = pd.read_csv(Path(config.data.name) / "test.csv")["text"].tolist()
    rows = serving.tokenize([texts], tokenizer, settings["max_length"])
    began = time.perf_counter()
    serving.classify(model, tokenizer, rows, settings["batch_size"])
    measured.eval_seconds, measured.eval_rows = time.perf_counter() - began, len(texts)


def has_bfloat16() -> bool:
    import torch

    return torch.cuda.is_available() or cpu_multiplies_bfloat16()


def floor(config: RunConfig) -> dict[str, float]:
    """What no program can beat here: matrix products at full speed, over the tokens of the training rows.

    `flops`: operations a second of one product of a batch with a layer of this width, median of many.
    `layer_weights`: weights of the blocks' matrices; each costs two operations a token forward, and two backward, for
    frozen weights need no gradient of their own. `tokens`: mean of a row.
    """
    import numpy as np
    import pandas as pd
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from tasks.models.adapter import body_layers

    settings = AutoConfig.from_pretrained(config.model.name)
    with torch.device("meta"):
        empty = AutoModelForSequenceClassification.from_config(settings)
    weights = sum(layer.weight.numel() for layer in body_layers(empty, ("pooler",)).values())
    device, width = "cuda" if torch.cuda.is_available() else "cpu", int(settings.hidden_size)
    dtype = torch.bfloat16 if has_bfloat16() else torch.float32
    rows, layer = (
        torch.randn(448, width, device=device, dtype=dtype),
        torch.randn(width, 4 * width, device=device, dtype=dtype),
    )
    speeds = []
    for _ in range(30):
        began = time.perf_counter()
        for _ in range(20):
            result = rows @ layer
        float(result[0, 0])  # waits for the GPU
        speeds.append(20 * 2 * rows.numel() * 4 * width / (time.perf_counter() - began))
    texts = pd.read_csv(Path(config.data.name) / "train.csv")["text"].tolist()
    ids = AutoTokenizer.from_pretrained(config.model.name)(texts, truncation=True, max_length=config.data.max_length)
    tokens = float(np.mean([len(row) for row in ids["input_ids"]]))
    return {"flops": float(np.median(speeds)), "layer_weights": weights, "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*SCRIPTS, *OURS, "floor"])
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("data", help="folder with train.csv, validation.csv and test.csv")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--without", choices=list(SHORTCUTS), help="a shortcut of peft-flow's training to leave out")
    options = vars(parser.parse_args())
    if without := options.pop("without"):
        from tasks.training import fit

        setattr(fit, without, SHORTCUTS[without])
    name, config = options.pop("name"), job(**options)
    if name == "floor":
        print(json.dumps(floor(config)))
        return
    measured = Measured()
    if name in SCRIPTS:
        run_script(SCRIPTS[name], config, measured)
    elif name == "peft-flow-bare":
        run_bare(config, measured)
    else:
        run_flow(config, measured)
    measured.printed = time.time()
    print(json.dumps(vars(measured)))


if __name__ == "__main__":
    main()
