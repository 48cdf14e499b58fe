"""What the analysis costs: the time that a whole run spends on it, against the time of everything else.

    .venv/bin/python benchmarks/analysis.py [--config configs/minilm-rotten-tomatoes.yaml] [--runs 1]

Each run starts in an empty folder, so that nothing is cached, and is timed from inside: both sides of the ratio come
from one run on one machine. Of several runs the medians are shown.
"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

import argparse
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from flows.finetune import finetune
from tasks.data import prepare as data
from tasks.data import splits
from tasks.scores import statistics
from tasks.settings.config import RunConfig
from tasks.settings.loading import load_config

INSIDE = ((splits, "same_texts"), (data, "make_check"), (statistics, "fit_temperature"))
"""Functions of the analysis inside longer steps; the steps check, references and compare are analysis as a whole."""

seconds: Counter[str] = Counter()


def watch(module: Any, name: str) -> None:
    """Count the seconds spent in a function of ours."""
    function = getattr(module, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            seconds[name] += time.perf_counter() - started

    setattr(module, name, timed)


def one_run(config: RunConfig) -> dict[str, float]:
    """Seconds of each part of the analysis, and of the run without it."""
    seconds.clear()
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            result = finetune(**{name: getattr(config, name) for name in RunConfig.model_fields})
        finally:
            os.chdir(home)
    steps = result.seconds
    parts = {"data check": steps.check, "references": steps.references, "comparison": steps.compare, **seconds}
    return {**parts, "analysis": sum(parts.values()), "all else": steps.total - sum(parts.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/minilm-rotten-tomatoes.yaml"))
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    config = load_config(options.config)
    for module, name in INSIDE:
        watch(module, name)
    runs = [one_run(config) for _ in range(options.runs)]
    for name in runs[0]:
        print(f"{name:20} {median(run[name] for run in runs):8.1f} s")
    print(f"{'share':20} {median(run['analysis'] / run['all else'] for run in runs):8.1%} of all else")


if __name__ == "__main__":
    main()
