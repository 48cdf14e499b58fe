"""Programs for the same job as they ship: each in an environment of its own, on the same rows, in turns.

    .venv/bin/python -m benchmarks.tools [--rounds 3] [--rows 640] [--environments FOLDER]

All train LoRA (r 8) on MiniLM for one epoch of batches of 16, validate after it, and are started as their documentation
shows. *whole process* is from the command to its end, by the clock; *training* is what the program itself calls so, its
validation included. The environments are made in FOLDER, where they are kept, else in a temporary folder. HF_ENDPOINT
and HF_HOME say where the model comes from; it is fetched before anything is measured. The result goes to
benchmarks/results.json and docs/benchmarks.md, as that of benchmarks/speed.py.
"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.page import tools_table
from benchmarks.speed import ROOT, keep, to_its_end, write_rows

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
R, ALPHA, LEARNING_RATE, BATCH_SIZE, MAX_LENGTH = 8, 16, 1e-3, 16, 128


class Program(NamedTuple):
    title: str
    packages: tuple[str, ...]
    """Of its environment, besides torch; none: peft-flow's own."""
    command: Callable[[Path, Path, str, int], list[str]]
    """By its environment's programs, the rows, the folder of the model and the seed."""
    training: Callable[[Path, str], float]
    """Seconds that it says, in the folder where it ran and on standard output."""


def messages(rows: Path) -> Path:
    """Folder of the same rows as ms-swift reads them."""
    return rows.with_name("messages")


def swift(programs: Path, rows: Path, model: str, seed: int) -> list[str]:
    return [
        *(str(programs / "swift"), "sft", "--model", model, "--model_type", "bert", "--template", "dummy"),
        *("--task_type", "seq_cls", "--num_labels", "2", "--tuner_type", "lora", "--torch_dtype", "float32"),
        *("--dataset", str(messages(rows) / "train.jsonl"), "--val_dataset", str(messages(rows) / "validation.jsonl")),
        *("--lora_rank", str(R), "--lora_alpha", str(ALPHA), "--learning_rate", str(LEARNING_RATE)),
        *("--per_device_train_batch_size", str(BATCH_SIZE), "--per_device_eval_batch_size", str(BATCH_SIZE)),
        *("--gradient_accumulation_steps", "1"),
        *("--num_train_epochs", "1", "--eval_strategy", "epoch", "--save_strategy", "epoch"),
        *("--max_length", str(MAX_LENGTH), "--seed", str(seed), "--output_dir", "out", "--add_version", "false"),
    ]


def swift_training(place: Path, said: str) -> float:
    lines = (place / "out/logging.jsonl").read_text().splitlines()
    (found,) = [line["train_runtime"] for line in map(json.loads, lines) if "train_runtime" in line]
    return float(found)


ADAPTERS = """
import json
import sys

import pandas as pd
from adapters import AdapterTrainer, AutoAdapterModel, LoRAConfig
from transformers import AutoTokenizer, DataCollatorWithPadding, TrainingArguments

rows, model_name, r, alpha, rate, size, length, seed = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_name)


def read(split):
    table = pd.read_csv(f"{rows}/{split}.csv")
    encoded = tokenizer(table["text"].tolist(), truncation=True, max_length=int(length))
    return [{"input_ids": ids, "labels": label} for ids, label in zip(encoded["input_ids"], table["label"].tolist())]


model = AutoAdapterModel.from_pretrained(model_name)
model.add_classification_head("reviews", num_labels=2)
model.add_adapter("reviews", config=LoRAConfig(r=int(r), alpha=int(alpha)))
model.train_adapter("reviews")
arguments = TrainingArguments(
    output_dir="out",
    num_train_epochs=1,
    per_device_train_batch_size=int(size),
    per_device_eval_batch_size=int(size),
    learning_rate=float(rate),
    eval_strategy="epoch",
    save_strategy="epoch",
    remove_unused_columns=False,
    report_to=[],
    seed=int(seed),
)
trainer = AdapterTrainer(
    model=model,
    args=arguments,
    train_dataset=read("train"),
    eval_dataset=read("validation"),
    data_collator=DataCollatorWithPadding(tokenizer),
)
print(json.dumps(trainer.train().metrics))
"""


def adapters(programs: Path, rows: Path, model: str, seed: int) -> list[str]:
    numbers = map(str, (R, ALPHA, LEARNING_RATE, BATCH_SIZE, MAX_LENGTH, seed))
    return [str(programs / "python"), "-c", ADAPTERS, str(rows), model, *numbers]


def adapters_training(place: Path, said: str) -> float:
    return float(json.loads(said.splitlines()[-1])["train_runtime"])


def peft_flow(programs: Path, rows: Path, model: str, seed: int) -> list[str]:
    fields = {
        "model.name": model,
        "data.name": rows,
        "data.max_length": MAX_LENGTH,
        "adapter.r": R,
        "adapter.alpha": ALPHA,
        "training.epochs": 1,
        "training.batch_size": BATCH_SIZE,
        "training.learning_rate": LEARNING_RATE,
        "seed": seed,
    }
    told = [part for field, value in fields.items() for part in (f"--{field}", str(value))]
    return [str(programs / "python"), "-m", "flows.cli", "finetune", *told, "--json"]


def peft_flow_training(place: Path, said: str) -> float:
    return float(json.loads(said.splitlines()[-1])["seconds"]["train"])


PROGRAMS = {
    "ms-swift": Program("ms-swift 4.6.0, `swift sft`", ("ms-swift==4.6.0",), swift, swift_training),
    "adapters": Program(
        "adapters 1.3.0 (AdapterHub), `AdapterTrainer`, padded to the longest row of a batch",
        ("adapters==1.3.0", "accelerate", "pandas"),
        adapters,
        adapters_training,
    ),
    "peft-flow": Program("peft-flow, with all that a run does besides", (), peft_flow, peft_flow_training),
}


def make_environment(name: str, place: Path) -> Path:
    """The folder of its programs."""
    if not PROGRAMS[name].packages:
        return Path(sys.executable).parent
    folder = place / name
    if not (folder / "made").exists():
        print(f"installing {name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, f"torch=={version('torch').partition('+')[0]}"], check=True)
        subprocess.run([*install, *PROGRAMS[name].packages], check=True)
        (folder / "made").touch()
    return folder / "bin"


def write_messages(rows: Path) -> None:
    import pandas as pd

    messages(rows).mkdir()
    for split in ("train", "validation"):
        table = pd.read_csv(rows / f"{split}.csv")
        lines = (
            json.dumps({"messages": [{"role": "user", "content": text}], "label": label})
            for text, label in zip(table["text"], table["label"].tolist(), strict=True)
        )
        (messages(rows) / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(name: str, programs: Path, rows: Path, model: str, seed: int, folder: Path) -> dict[str, float]:
    program = PROGRAMS[name]
    settings = {"PYTHONPATH": "" if program.packages else str(ROOT), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        done = to_its_end(program.command(programs, rows, model, seed), Path(place), settings)
        training = program.training(Path(place), done.said)
    return {"whole": done.seconds, "training": training, "processor": done.processor_seconds}


def main() -> None:
    from huggingface_hub import snapshot_download

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--environments", type=Path, help="folder where the environments are kept")
    options = parser.parse_args()
    kept = nullcontext(options.environments) if options.environments else tempfile.TemporaryDirectory()
    with tempfile.TemporaryDirectory() as folder, kept as environments:
        programs = {name: make_environment(name, Path(environments).resolve()) for name in PROGRAMS}
        rows = write_rows(Path(folder) / "rows", options.rows, options.rows // 4)
        write_messages(rows)
        model = snapshot_download(MODEL)
        measured: list[dict[str, Any]] = []
        for turn in range(-1, options.rounds):  # the round before the first fills caches
            for name in PROGRAMS if turn % 2 else reversed(PROGRAMS):
                one: dict[str, Any] = measure(name, programs[name], rows, model, max(turn, 0), Path(folder))
                print(f"{turn + 1}  {name:10} {one}", flush=True)
                if turn >= 0:
                    measured.append(
                        {"name": name, "title": PROGRAMS[name].title, "rows": options.rows, "round": turn, **one}
                    )
        keep("tools", measured)
        print(tools_table({"measured": measured}))


if __name__ == "__main__":
    main()
