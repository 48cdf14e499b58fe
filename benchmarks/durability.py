"""What it costs to be able to go on after a kill: training with checkpoints, journal and MLflow, against without.

    .venv/bin/python benchmarks/durability.py [--config configs/minilm-rotten-tomatoes.yaml] [--runs 5]

Both sides train the same adapter, one after the other and in turns, in one process; without --config it is the demo's.
The medians of both and the median of the ratios of neighbours are shown.
"""

from tasks import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median

from tasks import resume
from tasks.config import RunConfig, load_config
from tasks.data import prepare
from tasks.records import PreparedData
from tasks.tracking import tracked_run
from tasks.training import Watcher, fit_adapter, train_adapter

DEFAULT_SHARE = resume.MOST_SHARE


def durable(config: RunConfig, data: PreparedData, folder: Path) -> tuple[str, float]:
    """Adapter and seconds of a training as the product does it."""
    resume.MOST_SHARE = DEFAULT_SHARE
    with tracked_run(config, str(folder), {}):
        trained = train_adapter.fn(config, data, str(folder))
    return trained.sha256, trained.seconds


def bare(config: RunConfig, data: PreparedData, folder: Path) -> tuple[str, float]:
    """The same without checkpoint, journal and MLflow: a kill loses everything."""
    resume.MOST_SHARE = 0.0
    trained = fit_adapter(config, data, folder, Watcher(lambda progress: None))
    return trained.sha256, trained.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    config = load_config(options.config.resolve() if options.config else None)
    seconds: dict[str, list[float]] = {"durable": [], "bare": []}
    adapters = set()
    with tempfile.TemporaryDirectory() as root:
        os.chdir(root)
        data = prepare(config, Path(root))
        for turn in range(options.runs):
            for name, train in (("durable", durable), ("bare", bare))[:: 1 - 2 * (turn % 2)]:
                folder = Path(root) / f"{name}-{turn}"
                folder.mkdir()
                sha256, took = train(config, data, folder)
                adapters.add(sha256)
                seconds[name].append(took)
                print(f"{name:8} {took:8.2f} s", flush=True)
    assert len(adapters) == 1, "both must train the same adapter"
    shares = [with_it / without - 1 for with_it, without in zip(seconds["durable"], seconds["bare"], strict=True)]
    print(f"medians: durable {median(seconds['durable']):.2f} s, bare {median(seconds['bare']):.2f} s")
    print(f"cost: {median(shares):+.1%} of the training time ({min(shares):+.1%} to {max(shares):+.1%})")


if __name__ == "__main__":
    main()
