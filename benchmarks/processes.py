"""Two processes that train one run, beside one: bits and time.

    .venv/bin/python -m benchmarks.processes [--rounds 3] [--rows 2000]

A random model of MiniLM's shape, without dropout, and made-up texts of up to 64 tokens. Sides, each a process of its
own, in turns: `one` process with all cores, `two` with half of them each, and `halves`: one process with half of the
cores, which accumulates batches of half as many rows. `two` and `halves` must give the same adapter, bit for bit. The
seconds are those of training, and those of the whole training step, which starts the processes.
"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed import ROOT

BATCH = 32
SIDES: dict[str, dict[str, int]] = {
    "one": {"batch_size": BATCH},
    "two": {"batch_size": BATCH, "processes": 2},
    "halves": {"batch_size": BATCH // 2, "gradient_accumulation_steps": 2},
}
OUR_MODULES = os.environ | {"PYTHONPATH": str(ROOT)}
MINILM = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}


def write(folder: Path, rows: int, shape: dict[str, int]) -> None:
    """Model, texts and labels."""
    import numpy as np
    import pandas as pd
    import torch
    import transformers

    from tests.conftest import sentences, write_tokenizer

    torch.manual_seed(0)
    write_tokenizer(folder / "model", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(vocab_size=200, max_position_embeddings=64, pad_token_id=1, **shape, **no_dropout)
    transformers.BertModel(config).save_pretrained(folder / "model")
    texts, labels = sentences()
    generator = np.random.default_rng(0)
    picked = generator.integers(0, len(texts), (rows + 200, 8))
    frame = pd.DataFrame(
        {
            "text": [" ".join(texts[place] for place in places) + f" {row}" for row, places in enumerate(picked)],
            "label": [labels[places[0]] for places in picked],
        }
    )
    (folder / "rows").mkdir()
    for name, part in (("train", frame[:rows]), ("validation", frame[rows:-100]), ("test", frame[-100:])):
        part.to_csv(folder / f"rows/{name}.csv", index=False)


def train(folder: Path, side: str, work: Path) -> dict[str, Any]:
    import torch

    from tasks.data.prepare import prepare
    from tasks.settings.loading import validated
    from tasks.training.fit import fit_adapter
    from tasks.training.watching import Watcher

    values = {
        "model": {"name": str(folder / "model")},
        "data": {"name": str(folder / "rows"), "max_length": 64},
        "training": {"epochs": 1, **SIDES[side]},
    }
    config = validated(values)
    if side == "halves":
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    data, began = prepare(config, work), time.perf_counter()
    trained = fit_adapter(config, data, work / "run", Watcher(lambda progress: None))
    whole = time.perf_counter() - began
    return {"sha256": trained.sha256, "seconds": trained.seconds, "whole": whole, "threads": trained.compute["threads"]}


def alone(folder: Path, side: str) -> dict[str, Any]:
    """The side, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.processes", "--folder", str(folder), "--side", side]
    with tempfile.TemporaryDirectory(dir=folder) as work:
        done = subprocess.run(command, cwd=work, env=OUR_MODULES, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(rounds: int, rows: int) -> bool:
    """Whether `two` and `halves` have the same bits in all rounds."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, rows, MINILM)
        for turn in range(rounds):
            for side in list(SIDES)[:: 1 - 2 * (turn % 2)]:
                found[side].append(alone(folder, side))
                print(f"{side:8} {found[side][-1]}", flush=True)
    middle = {(side, name): median(one[name] for one in found[side]) for side in SIDES for name in ("seconds", "whole")}
    print("\n| side | training s | with start s |\n| --- | --- | --- |")
    for side in SIDES:
        print(f"| {side} | {middle[side, 'seconds']:.1f} | {middle[side, 'whole']:.1f} |")
    for name, words in (("seconds", "training"), ("whole", "with start")):
        print(f"two against one, {words}: {middle['two', name] / middle['one', name]:.3f} of the time")
    return len({one["sha256"] for side in ("two", "halves") for one in found[side]}) == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(train(options.folder, options.side, Path.cwd())))
    elif not compare(options.rounds, options.rows):
        raise SystemExit("FAILED: two processes do not give the bits of one that accumulates")


if __name__ == "__main__":
    main()
