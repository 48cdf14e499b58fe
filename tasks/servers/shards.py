"""Processes that label the shards of a prediction: here, or wherever the work pool has workers."""

import os
from pathlib import Path
from typing import Any

from tasks.base.device import gpus
from tasks.base.progress import tell
from tasks.servers.runners import FlowRuns, Processes, is_deployed, launched

DEPLOYMENT = "predict-shard/predict-shard"

MODULE = "tasks.inference.shard"


class ShardProcesses(Processes):
    """Each has the cores of the machine, as one process would: the last digits depend on the number of threads."""

    elsewhere = False

    def __init__(self, folder: Path, places: int) -> None:
        super().__init__(folder)
        self.places = places

    def start(self, key: str, shard: dict[str, Any]) -> str:
        return self.begin(launched(MODULE), {"shard": shard})


class ShardRuns(FlowRuns):
    """All begin as soon as there is a worker with a place for them."""

    elsewhere = True

    def __init__(self, places: int) -> None:
        super().__init__(DEPLOYMENT)
        self.places = places
        self.attempts: dict[str, int] = {}

    def start(self, key: str, shard: dict[str, Any]) -> str:
        """The run of this key that goes on, which a killed driver may have started; else a new one."""
        while True:
            self.attempts[key] = self.attempts.get(key, 0) + 1
            run = self.begin({"shard": shard}, f"{key}-{self.attempts[key]}")
            if not (run.state and run.state.is_final()):
                return str(run.id)


def shard_runners(folder: Path, places: int) -> ShardRuns | ShardProcesses | None:
    """For so many shards at a time, or as many as this machine has devices or cores; None where it has one."""
    from joblib import cpu_count

    if os.environ.get("PREFECT_API_URL") and is_deployed(DEPLOYMENT):
        return ShardRuns(places)
    here = len(gpus()) or cpu_count()
    if here == 1:
        tell("One process labels all rows: this machine has one place for a shard, and there are no workers")
        return None
    return ShardProcesses(folder, min(places, here))
