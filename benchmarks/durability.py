"""What it costs to be able to go on after a kill: training with checkpoints, journal and MLflow, against without.

    .venv/bin/python benchmarks/durability.py [--config configs/minilm-rotten-tomatoes.yaml] [--runs 15]

Both sides train the same adapter, one after the other and in turns, in one process; without --config it is the demo's.
The medians of both and the median of the ratios of neighbours are shown, by the clock and by processor time, which
other programs on the machine disturb less.
"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tasks.base.records import PreparedData
from tasks.data.prepare import prepare
from tasks.settings.config import RunConfig
from tasks.settings.loading import load_config
from tasks.tracking.run import tracked_run, try_to_send
from tasks.training import resume
from tasks.training.fit import fit_adapter, train_adapter
from tasks.training.watching import Watcher

DEFAULT_SHARE = resume.MOST_SHARE


class Cost(NamedTuple):
    adapter: str
    """sha256"""
    clock: float
    processor: float
    """Seconds."""


def durable(config: RunConfig, data: PreparedData, folder: Path) -> Cost:
    """A training as the product does it."""
    resume.MOST_SHARE = DEFAULT_SHARE
    with tracked_run(config, str(folder), {}):
        try_to_send(str(folder), at_once=True)  # in a flow, the run is in MLflow before training begins
        began = time.process_time()
        trained = train_adapter.fn(config, data, str(folder))
        return Cost(trained.sha256, trained.seconds, time.process_time() - began)


def bare(config: RunConfig, data: PreparedData, folder: Path) -> Cost:
    """The same without checkpoint, journal and MLflow: a kill loses everything."""
    resume.MOST_SHARE = 0.0
    began = time.process_time()
    trained = fit_adapter(config, data, folder, Watcher(lambda progress: None))
    return Cost(trained.sha256, trained.seconds, time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    config = load_config(options.config.resolve() if options.config else None)
    costs: dict[str, list[Cost]] = {"durable": [], "bare": []}
    with tempfile.TemporaryDirectory() as root:
        os.chdir(root)
        data = prepare(config, Path(root))
        for turn in range(options.runs):
            for name, train in (("durable", durable), ("bare", bare))[:: 1 - 2 * (turn % 2)]:
                folder = Path(root) / f"{name}-{turn}"
                folder.mkdir()
                cost = train(config, data, folder)
                costs[name].append(cost)
                print(f"{name:8} {cost.clock:8.2f} s, processor {cost.processor:8.2f} s", flush=True)
    assert len({cost.adapter for cost in costs["durable"] + costs["bare"]}) == 1, "both must train the same adapter"
    for kind in ("clock", "processor"):
        with_it, without = ([getattr(cost, kind) for cost in costs[name]] for name in ("durable", "bare"))
        shares = sorted(one / other - 1 for one, other in zip(with_it, without, strict=True))
        print(f"{kind}: medians durable {median(with_it):.2f} s, bare {median(without):.2f} s")
        print(f"{kind}: cost {median(shares):+.1%} of the training time ({shares[0]:+.1%} to {shares[-1]:+.1%})")


if __name__ == "__main__":
    main()
