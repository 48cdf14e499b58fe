"""peft-flow beside the scripts that people use today: same rows, model, adapter and epochs, in turns.

    .venv/bin/python -m benchmarks.speed [--parts gpt2 minilm bert job] [--rounds 3]

Each measurement is a process of its own, and each round runs all of them, in another order and with another seed.
Results go to benchmarks/results.json, where those of a part replace the ones before, and from there to
docs/benchmarks.md with its pictures.
"""

from tasks.base import environment  # isort: skip  (first: libraries read it when they are imported)

import argparse
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.page import step_rate, write_page
from benchmarks.peers import SCRIPTS
from tasks.base.device import mib
from tasks.base.machine import cpu_name

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results.json"
DATA = "cornell-movie-review-data/rotten_tomatoes"
TOKENS = 32
"""A script that pads to more than this gets so many times fewer rows, or it would take days."""


class Part(NamedTuple):
    """A table: who runs on what."""

    model: str
    top: tuple[str, ...]
    """What the side with the top half of the layers is asked for."""
    train_rows: int | None
    eval_rows: int | None
    epochs: int
    names: tuple[str, ...]


BERT = "bert-base"
"""Its shape and MiniLM's tokenizer, which has the same words; the weights are random."""
QUICK = ("peft-flow", "peft-flow-top", "best-settings", "peft-example")
PADDED = ("notebook", "transformers-example")
PARTS = {
    "gpt2": Part("openai-community/gpt2", ("--layers", "6"), 480, 192, 1, (*QUICK, *PADDED)),
    "minilm": Part(
        "sentence-transformers/all-MiniLM-L6-v2", ("--layers", "3"), 2132, 512, 3, (*QUICK, "batch-8", *PADDED)
    ),
    "bert": Part(BERT, ("--layers", "6"), 480, 192, 1, (*QUICK, *PADDED)),
    "job": Part(
        "sentence-transformers/all-MiniLM-L6-v2",
        # as many trained weights as in all layers, and the rate for it, because alpha / r is half
        ("--layers", "3", "--r", "16", "--learning-rate", "2e-3"),
        None,
        None,
        3,
        ("peft-flow", "peft-flow-bare", "peft-flow-top", "best-settings"),
    ),
}


def check_out(commit: str, folder: Path) -> Path:
    """The program as it was, in `folder`."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as packed:
        packed.extractall(folder, filter="data")
    # of two distributions of this name the first on the path counts: else MLflow would be given a module of today
    about = folder / "peft_flow-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: peft-flow\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text(
        "[mlflow.artifact_repository]\nmlflow-artifacts = tasks.artifacts:repository\n"
    )
    return folder


class Ended(NamedTuple):
    """A process that has ended well."""

    began: float
    ended: float
    """By the clock."""
    usage: Any
    """Of it and its children, as `resource` counts."""
    said: str
    """On standard output."""

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def processor_seconds(self) -> float:
        return float(self.usage.ru_utime + self.usage.ru_stime)


def to_its_end(command: list[str], place: Path, settings: dict[str, str]) -> Ended:
    """A program that runs in the folder `place`, with these settings in its environment."""
    with (place / "stdout").open("w") as out, (place / "stderr").open("w") as err:
        began = time.time()
        process = subprocess.Popen(command, cwd=place, env=os.environ | settings, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        ended, process.returncode = time.time(), os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{(place / 'stderr').read_text()[-3000:]}")
    return Ended(began, ended, usage, (place / "stdout").read_text())


def alone(command: list[str], folder: Path, code: Path = ROOT) -> dict[str, Any]:
    """What the last line of a fresh process says, as JSON, and its peak memory, in MiB; the modules are of `code`."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        done = to_its_end([sys.executable, "-m", *command], Path(work), {"PYTHONPATH": str(code)})
    return {
        "began": done.began,
        "ended": done.ended,
        "peak_memory_mb": mib(done.usage.ru_maxrss),
        **json.loads(done.said.splitlines()[-1]),
    }


def measure(name: str, model: str, rows: Path, folder: Path, *options: str) -> dict[str, Any]:
    """A job of benchmarks/peers.py, with the seconds until a model first computes and of the whole."""
    found = alone(["benchmarks.peers", name, model, str(rows), *options], folder)
    began, ended = found.pop("began"), found.pop("ended")
    found["start_seconds"] = found.pop("first_step") - began
    found["seconds"] = found.pop("done") - began + ended - found.pop("printed")
    found["rows"] = {split: count_rows(rows / f"{split}.csv") for split in ("train", "validation", "test")}
    return found


def make_model(name: str, folder: Path) -> str:
    """Hub id, or the folder of the shape that is on no Hub."""
    if name != BERT:
        return name
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig()).save_pretrained(folder / name)
    AutoTokenizer.from_pretrained(PARTS["minilm"].model).save_pretrained(folder / name)
    return str(folder / name)


def write_rows(folder: Path, train_rows: int | None, eval_rows: int | None) -> Path:
    """The first so many rows of the real splits, shuffled, as csv."""
    from datasets import load_dataset

    environment.hide_short_bars()
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows, most = load_dataset(DATA, split=split), train_rows if split == "train" else eval_rows
        rows.shuffle(seed=0).select(range(min(most or len(rows), len(rows)))).to_csv(folder / f"{split}.csv")
    return folder


def rounds(part: Part, count: int, folder: Path) -> Iterator[dict[str, Any]]:
    model = make_model(part.model, folder)
    rows = {1: write_rows(folder / "rows", part.train_rows, part.eval_rows)}
    for name in part.names:
        share = fewer(name)
        if share not in rows and part.train_rows and part.eval_rows:
            rows[share] = write_rows(folder / f"rows-{share}", part.train_rows // share, part.eval_rows // share)
    yield {"name": "floor", **alone(["benchmarks.peers", "floor", model, str(rows[1])], folder)}
    fill_caches(model, folder)
    for turn in range(count):
        for name in part.names if turn % 2 == 0 else part.names[::-1]:  # the nearest rivals stay neighbours
            share = fewer(name)
            epochs = 1 if share > 1 else part.epochs
            asked = ["--epochs", str(epochs), "--seed", str(turn)]
            asked += part.top if name == "peft-flow-top" else ()
            found = measure(name, model, rows[share], folder, *asked)
            found |= {"name": name, "round": turn, "epochs": epochs}
            print(f"{name:22} {step_rate(found):8.2f} rows/s  {found['seconds']:7.1f} s in all", flush=True)
            yield found


def fill_caches(model: str, folder: Path) -> None:
    measure("peft-flow", model, write_rows(folder / "first", 32, 16), folder, "--epochs", "1")


def fewer(name: str) -> int:
    pad_to = SCRIPTS[name].pad_to if name in SCRIPTS else None
    return (pad_to or TOKENS) // TOKENS


def count_rows(file: Path) -> int:
    import pandas as pd

    return len(pd.read_csv(file))


def machine() -> dict[str, Any]:
    """Where and with what a part was measured."""
    import torch

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    names = ("torch", "transformers", "peft", "prefect", "mlflow")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit.strip(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
    }


def keep(part: str, measured: list[dict[str, Any]]) -> None:
    """Put a part in the place of the one before, and write the page anew."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[part] = {"machine": machine(), "measured": measured}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_page(results, ROOT / "docs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name in options.parts:
        print(f"--- {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            measured = []
            for found in rounds(PARTS[name], options.rounds, Path(folder)):
                measured.append(found)
                if len(measured) % len(PARTS[name].names) == 1 and len(measured) > 1:  # the floor, and whole rounds
                    keep(name, measured)


if __name__ == "__main__":
    main()
