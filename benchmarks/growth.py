"""Time and peak memory against rows, in preparing, predicting and training, and against the length of the texts.

    .venv/bin/python -m benchmarks.growth [--most 1000000]

Each point is a process of its own. Results go where those of benchmarks/speed.py go.
"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import predict
from benchmarks.peers import job
from benchmarks.speed import PARTS, alone, keep, measure, write_rows

MODEL = PARTS["minilm"].model
TRAIN_ROWS = (1_000, 2_000, 4_000, 8_000)
LENGTHS, WORDS = (16, 32, 64, 128, 256, 500), 65_536
"""Of a text, and of all rows of one length."""


def prepare_alone(file: str) -> None:
    from tasks.data.prepare import prepare

    began = time.perf_counter()
    Path("work").mkdir()
    prepare(job(MODEL, file, epochs=1, seed=0), Path("work"))
    print(json.dumps({"seconds": time.perf_counter() - began}))


def preparing(rows: int, folder: Path) -> dict[str, Any]:
    """Texts of which none is another's copy, with labels; the splits are cut."""
    chance, words, file = random.Random(0), predict.NEGATIVE + predict.POSITIVE, folder / f"{rows}.csv"
    with file.open("w", encoding="utf-8") as opened:
        opened.write("text,label\n")
        for row in range(rows):
            texts = chance.choices(words, k=chance.randint(1, 4))
            opened.write(f'"{", ".join(texts)} {row}",{row % 2}\n')
    return alone(["benchmarks.growth", "--prepare", str(file)], folder)


def predicting(rows: int, adapter: Path, folder: Path) -> dict[str, Any]:
    file, began = predict.make_rows(folder / f"{rows}.csv", rows), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        os.chdir(work)
        peak = predict.finish(predict.start(adapter, file, Path(f"{rows}.out.csv")))
        os.chdir(folder)
    return {"seconds": time.perf_counter() - began, "peak_memory_mb": peak}


def training(rows: Path, folder: Path, max_length: int) -> dict[str, Any]:
    found = measure("peft-flow-bare", MODEL, rows, folder, "--epochs", "1", "--max-length", str(max_length))
    seconds = found["step_seconds"] * (found["rows"]["train"] / found["step_rows"])
    return {"seconds": seconds, "peak_memory_mb": found["peak_memory_mb"]}


def texts_of(words: int, folder: Path) -> Path:
    chance, folder = random.Random(0), folder / f"length-{words}"
    folder.mkdir()
    for split, rows in (("train", WORDS // words), ("validation", 16), ("test", 16)):
        with (folder / f"{split}.csv").open("w", encoding="utf-8") as opened:
            opened.write("text,label\n")
            for row in range(rows):
                text = " ".join(chance.choices(("good", "bad", "film", "story", "the", "was"), k=words))
                opened.write(f"{text},{row % 2}\n")
    return folder


def grow(folder: Path, most: int) -> Iterator[dict[str, Any]]:
    sizes = [10**power for power in range(3, 10) if 10**power <= most]
    adapter = predict.make_adapter(folder)
    for rows in sizes:
        yield {"name": "prepare", "size": rows, **preparing(rows, folder)}
        yield {"name": "predict", "size": rows, **predicting(rows, adapter, folder)}
    for rows in TRAIN_ROWS:
        yield {"name": "train", "size": rows, **training(write_rows(folder / f"train-{rows}", rows, 64), folder, 128)}
    for words in LENGTHS:
        yield {"name": "length", "size": words, **training(texts_of(words, folder), folder, 512)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1_000_000, help="rows to prepare and predict")
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        prepare_alone(options.prepare)
        return
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for point in grow(Path(folder), options.most):
            print(
                f"{point['name']:8} {point['size']:9,} {point['seconds']:8.1f} s {point['peak_memory_mb']:7.0f} MiB",
                flush=True,
            )
            measured.append(point)
    keep("growth", measured)


if __name__ == "__main__":
    main()
