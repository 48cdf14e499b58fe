"""A training on a machine that does something else too: waiting threads that sleep, against threads that spin.

    .venv/bin/python benchmarks/busy.py [--others 2] [--rounds 3]

Each side trains the demo's adapter for one epoch in a process of its own, in turns, alone and beside so many processes
that do nothing but count. Spinning is what GNU's OpenMP, which torch uses, does of itself for 300,000 rounds
(GOMP_SPINCOUNT); sleeping soon is what peft-flow sets (the same, in tasks/base/environment.py). The medians of clock
and processor seconds of the training are shown, and the median of the ratios of neighbours.
"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

SIDES = {"sleeping": {}, "spinning": {"GOMP_SPINCOUNT": "300000"}}


def train(folder: Path) -> tuple[float, float]:
    """Seconds by the clock and of the processors."""
    from tasks.data.prepare import prepare
    from tasks.settings.config import RunConfig
    from tasks.settings.loading import checked
    from tasks.training.fit import fit_adapter
    from tasks.training.watching import Watcher

    config = checked(RunConfig, {"training": {"epochs": 1}})
    data = prepare(config, folder)
    began, processor = time.perf_counter(), time.process_time()
    fit_adapter(config, data, folder / "run", Watcher(lambda progress: None))
    return time.perf_counter() - began, time.process_time() - processor


@contextmanager
def others(count: int) -> Iterator[None]:
    """Within, so many processes are busy, each in a session of its own, as programs of other people are."""
    busy = [subprocess.Popen([sys.executable, "-c", "while 1: pass"], start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            with process:
                process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        print(json.dumps(train(options.train)))
        return
    for count in (0, options.others):
        rounds = [measure(count, turn) for turn in range(options.rounds)]
        print(f"beside {count} others")
        for place, name in enumerate(("clock", "processor")):
            figures = {side: [one[side][place] for one in rounds] for side in SIDES}
            ratio = median(a / b for a, b in zip(figures["sleeping"], figures["spinning"], strict=True))
            shown = ", ".join(f"{side} {median(seconds):.1f} s" for side, seconds in figures.items())
            print(f"  {name}: {shown}; ratio {ratio:.2f}")


def measure(count: int, turn: int) -> dict[str, tuple[float, float]]:
    """One round: each side once, in an order that changes."""
    found = {}
    for side in sorted(SIDES, reverse=bool(turn % 2)):
        with tempfile.TemporaryDirectory() as folder, others(count):
            command = [sys.executable, __file__, "--train", folder]
            answer = subprocess.run(
                command, env=os.environ | SIDES[side], stdout=subprocess.PIPE, text=True, check=True
            )
            found[side] = tuple(json.loads(answer.stdout.splitlines()[-1]))
    return found


if __name__ == "__main__":
    main()
