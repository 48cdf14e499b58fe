"""What each shortcut of the training brings to a whole run: with all of them, and without one at a time, in turns.

    .venv/bin/python -m benchmarks.shortcuts [--parts gpt2 minilm] [--rounds 3]

Each run is a process of its own, from its start to the end of its command. A shortcut that brings less than a
twentieth of a whole run is not worth its code.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.peers import SHORTCUTS
from benchmarks.speed import PARTS, fill_caches, measure, write_rows

ALL = "all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=["gpt2", "minilm"], default=["gpt2", "minilm"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sides = (ALL, *SHORTCUTS)
    for name in options.parts:
        part = PARTS[name]
        with tempfile.TemporaryDirectory() as folder:
            rows = write_rows(Path(folder) / "rows", part.train_rows, part.eval_rows)
            fill_caches(part.model, Path(folder))
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            for turn in range(options.rounds):
                for side in sides[:: 1 - 2 * (turn % 2)]:
                    without = () if side == ALL else ("--without", side)
                    asked = ("--epochs", str(part.epochs), "--seed", str(turn), *without)
                    seconds[side].append(measure("peft-flow", part.model, rows, Path(folder), *asked)["seconds"])
        print(f"{name}: with all of them {median(seconds[ALL]):.1f} s", flush=True)
        for side in SHORTCUTS:
            ratios = sorted(one / other for one, other in zip(seconds[side], seconds[ALL], strict=True))
            print(f"{name}: without {side} {median(ratios):.3f} times as long ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
