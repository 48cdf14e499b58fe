"""Memory and rows/s of a training on long texts, and on short ones, beside commit ac77f57 with the packages of today.

    .venv/bin/python -m benchmarks.memory [--cases minilm-512 gpt2-1024 minilm-short gpt2-short] [--rounds 3]

Each measurement is a process of its own: rows, baseline on the test rows, a few steps, validation, probe. The sides
take turns; medians count. `peak`: most resident memory of the whole process; `training`: what of it came on top of the
loaded model. Rows/s are those of the steps after the first, by the clock and by the CPU time of the process, which
others on the machine disturb less.
"""

import argparse
import importlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple


class Case(NamedTuple):
    model: str
    max_length: int
    batch_size: int
    steps: int
    is_long: bool
    """Texts of `max_length` tokens, made of real words; else the real rows of Rotten Tomatoes."""


MINILM, GPT2 = "sentence-transformers/all-MiniLM-L6-v2", "openai-community/gpt2"
CASES = {
    "minilm-512": Case(MINILM, 512, 32, 2, True),
    # 32 rows, the default, would take 70 GB in the old commit: 2.2 each
    "gpt2-1024": Case(GPT2, 1024, 4, 2, True),
    "minilm-short": Case(MINILM, 128, 32, 20, False),
    "gpt2-short": Case(GPT2, 128, 32, 5, False),
}
EVAL_ROWS = 8
"""Enough for the baseline and validation to be there; a forward pass over long texts takes seconds a row."""


# --- one side, in its own process: runs in both commits ---------------------------------------------------------------

PLACES = {
    "validated": ("tasks.settings.loading", "tasks.config"),
    "prepare": ("tasks.data.prepare", "tasks.data"),
    "ask_foundation": ("tasks.evaluation.references", "tasks.references"),
    "fit_adapter": ("tasks.training.fit", "tasks.training"),
    "Watcher": ("tasks.training.watching", "tasks.training"),
}
"""Where a name lies today, and where it lay."""


def named(name: str) -> Any:
    import tasks

    # not by trying: what the old commit lacks would be found in the installed package
    is_old = not (Path(tasks.__path__[0]) / "settings").is_dir()
    return getattr(importlib.import_module(PLACES[name][is_old]), name)


def measure(job: dict[str, Any]) -> dict[str, float]:
    importlib.import_module("benchmarks.peers")  # and with it the defaults that libraries read when they are imported
    from torch.nn.modules.module import register_module_forward_pre_hook
    from transformers import TrainerCallback, trainer

    moments: list[tuple[float, float]] = []

    class Stopwatch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            moments.append((time.perf_counter(), time.process_time()))

    loaded: list[float] = []

    def note(*_: Any) -> None:
        loaded.append(resident_mb())
        hook.remove()

    trainer.DEFAULT_CALLBACKS.append(Stopwatch)
    config, work = named("validated")(job), Path("work")
    work.mkdir()
    data = named("prepare")(config, work)
    hook = register_module_forward_pre_hook(note)
    named("ask_foundation")(config, data)
    named("fit_adapter")(config, data, work, named("Watcher")(lambda progress: None))
    rows = (len(moments) - 1) * config.training.batch_size
    clock, cpu = (rows / (moments[-1][place] - moments[0][place]) for place in range(2))
    return {"loaded_mb": loaded[0], "rows_per_second": clock, "rows_per_cpu_second": cpu}


def resident_mb() -> float:
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) / 2**10


# --- in turns ---------------------------------------------------------------------------------------------------------


def write_long_rows(folder: Path, rows: int, words: int) -> Path:
    """Texts of so many real words, all others: each is at least one token."""
    import random

    import pandas as pd
    from datasets import load_dataset

    from benchmarks.speed import DATA

    vocabulary = sorted({word for text in load_dataset(DATA, split="train")["text"] for word in text.split()})
    draw = random.Random(0)
    folder.mkdir()
    for split, count in (("train", rows), ("validation", EVAL_ROWS), ("test", EVAL_ROWS)):
        texts = [" ".join(draw.choices(vocabulary, k=words)) for _ in range(count)]
        labels = [place % 2 for place in range(count)]
        pd.DataFrame({"text": texts, "label": labels}).to_csv(folder / f"{split}.csv", index=False)
    return folder


def job_of(case: Case, rows: Path) -> dict[str, Any]:
    return {
        "model": {"name": case.model},
        "data": {"name": str(rows), "max_length": case.max_length},
        "training": {"batch_size": case.batch_size, "max_steps": case.steps, "learning_rate": 1e-3},
    }


RATES = ("rows_per_second", "rows_per_cpu_second")
SHOWN = ("peak", "training", "rows/s", "rows/CPU s")


def rounds(name: str, count: int, folder: Path, codes: dict[str, Path]) -> Iterator[dict[str, Any]]:
    from benchmarks.speed import alone, write_rows

    case = CASES[name]
    rows = folder / f"{name}-rows"
    if case.is_long:
        write_long_rows(rows, case.batch_size * case.steps, case.max_length)
    else:
        write_rows(rows, case.batch_size * case.steps, 64)
    job = json.dumps(job_of(case, rows))
    for turn in range(count):
        for side in sorted(codes, reverse=turn % 2 == 1):
            found = alone(["benchmarks.memory", "--measure", job], folder, codes[side])
            peak = found["peak_memory_mb"]
            shown = dict(zip(SHOWN, (peak, peak - found["loaded_mb"], *(found[name] for name in RATES)), strict=True))
            print(
                f"{name:13} {side:4} " + "  ".join(f"{what} {value:8.2f}" for what, value in shown.items()), flush=True
            )
            yield {"side": side, **shown}


def summary(name: str, found: list[dict[str, Any]]) -> str:
    """Medians, and what of the old ones these are."""
    words = []
    for what in SHOWN:
        new, old = (median(one[what] for one in found if one["side"] == side) for side in ("new", "old"))
        words.append(f"{what} {old:.2f} to {new:.2f} ({new / old:.2f})")
    return f"{name}: {', '.join(words)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(json.loads(options.measure))))
        return
    from benchmarks.speed import ROOT
    from benchmarks.sweep import OLD, check_out

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        codes = {"new": ROOT, "old": check_out(OLD, folder / "old")}
        shutil.copy(__file__, codes["old"] / "benchmarks")
        for name in options.cases:
            print(summary(name, list(rounds(name, options.rounds, folder, codes))), flush=True)


if __name__ == "__main__":
    main()
