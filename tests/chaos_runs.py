"""Runs on two machines of which one dies on the way: each run ends once, and as if nothing had happened.

    sudo .venv/bin/python -m tests.chaos_runs [--runs 20] [--cut-off]
    sudo .venv/bin/python -m tests.chaos_runs --predict 100000

The machines are network namespaces with a host name and a folder of their own, each with `peft-flow worker`. The root
namespace has PostgreSQL and `peft-flow up --database` with its passwords, whose own worker is stopped. When a quarter
of the runs has ended and the second machine is training, it dies: its cable first, then all its processes, then its
network. What it was doing must be free for the other within two minutes. With --cut-off it is only its cable, and it is
back when the other has begun with its runs: its own processes, which are still at them, must end and change nothing. In
the end, the runs that it had begun are run once more, undisturbed: adapters must be the same to the bit.

With --predict it is a prediction of so many rows in four shards, whose command has a disk that neither machine sees.
The second machine dies when it has labelled a first part of them. The bytes must be those of one undisturbed process.

It needs root, for namespaces, and the server of PostgreSQL (Debian: postgresql).
"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from tasks.base.closing import BY_WORKER, NO_HEARTBEAT
from tasks.servers.deployments import POOL, TRIALS_POOL
from tasks.tracking.address import FLOW_RUN_TAG, TAKEN_OVER_TAG
from tests.machines import Database, Machine, kill
from tests.stacks import FINAL, Stack, until

FREE_SECONDS = 120.0
"""In which a machine that dies gives back what it was doing."""

STUCK_SECONDS = 900.0
"""Longer than anything waits of itself: if no run ends for so long, none will."""

PASSWORDS = {
    "PREFECT_SERVER_API_AUTH_STRING": "team:only-for-kills",
    "MLFLOW_TRACKING_USERNAME": "admin",
    "MLFLOW_TRACKING_PASSWORD": "only-for-these-kills",
    "PGUSER": "postgres",  # with which a machine takes shards too
}

WORDS = ("delights from its first scene", "bores", "nobody needed", "stays in the memory", "is neither good nor bad")

ENDED = {"Completed", "Crashed"}
"""States of shards after all: of each that a dead machine had, another takes the place."""


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {message}", flush=True)


class Site:
    """All of it: servers, database, machines."""

    def __init__(self, root: Path) -> None:
        self.root = root
        caches = {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())}
        self.stack = Stack(root / "app", PASSWORDS | caches)  # the demo's model is in the cache, or is made there
        self.database = Database(root / "postgresql")
        self.machines = [Machine(n, root / f"host{n}", self.stack.ports, self.stack.environment) for n in (1, 2)]

    def start(self) -> None:
        for machine in self.machines:
            machine.unplug()
            machine.plug_in()
        self.database.start()
        self.stack.begin("--host", "0.0.0.0", "--database", f"postgresql://postgres@{self.database.place}/peft_flow")
        until(lambda: "is up" in self.stack.said(), 600, "peft-flow up")
        for pool in (POOL, TRIALS_POOL):
            worker = self.stack.process_of(f"worker start --pool {pool} ")
            assert worker
            worker.suspend()  # the servers' machine does no runs
        for machine in self.machines:
            machine.start_worker()
        for machine in self.machines:
            log = machine.folder / "worker.log"
            until(lambda log=log: "This machine takes" in log.read_text(), 300, machine.name)

    def submit(self, seed: int) -> str:
        return self.stack.submit({"offline": True, "seed": seed}, "finetune-demo")

    def predict(self, folder: Path, adapter: str, rows: int, *options: str, alone: bool = False) -> Path:
        """The output of the command, given in `folder`, with the servers or (`alone`) with MLflow's only.

        Raises CalledProcessError where it fails.
        """
        folder.mkdir(parents=True)
        (folder / "mlruns").mkdir()
        with (folder / "rows.csv").open("w") as file:
            file.write("text\n")
            file.writelines(f"a film of {row} minutes that {WORDS[row % len(WORDS)]}\n" for row in range(rows))
        told = self.stack.environment | ({} if alone else self.stack.client_environment())
        own_disk = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none mlruns && exec "$@"', "sh")
        words = ("predict", adapter, "rows.csv", "out.csv", "--offline", *options)
        with (folder / "log").open("wb") as log:
            subprocess.run(
                [*own_disk, sys.executable, "-m", "flows.cli", *words],
                cwd=folder,
                env=told | {"MLFLOW_TRACKING_URI": self.stack.mlflow},
                stdout=log,
                stderr=log,
                check=True,
            )
        return folder / "out.csv"

    def flow_runs(self, ids: Sequence[str]) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = self.stack.call(
            "POST", "/flow_runs/filter", {"flow_runs": {"id": {"any_": [*ids]}}}
        )
        return found

    def at_work(self, machine: Machine, ids: Sequence[str]) -> list[str]:
        """Ids of the runs that the machine has begun and not ended, as Prefect has it."""
        return [
            str(run["id"])
            for run in self.flow_runs(ids)
            if run["state_type"] == "RUNNING" and str(run["labels"].get(BY_WORKER, "")).startswith(f"{machine.name}-")
        ]

    def stop(self) -> None:
        for machine in self.machines:
            kill(machine.processes())
            machine.unplug()
        self.stack.stop(seconds=60)
        self.stack.kill()
        self.database.stop()


def has_ended(run: Mapping[str, Any]) -> bool:
    """For good: what has only fallen silent is done again."""
    return run["state_type"] in FINAL and not (run["state"]["message"] or "").startswith(NO_HEARTBEAT)


def until_ended(site: Site, ids: Sequence[str], count: int, ready: Callable[[], bool] = lambda: True) -> None:
    """So many of the runs have ended, and it is `ready`; RuntimeError where nothing moves."""
    moved, before = time.monotonic(), -1
    while True:
        ended = sum(map(has_ended, site.flow_runs(ids)))
        if ended != before:
            moved, before = time.monotonic(), ended
            say(f"{ended} of {len(ids)} runs have ended")
        if ended >= count and ready():
            return
        if time.monotonic() - moved > STUCK_SECONDS:
            raise RuntimeError(f"no run has ended for {STUCK_SECONDS:.0f} s")
        time.sleep(1)


def until_free(site: Site, ids: Sequence[str]) -> float:
    """Seconds until nothing shows as running on a machine that has died."""
    begun = time.monotonic()
    while site.at_work(site.machines[1], ids):
        if time.monotonic() - begun > 3 * FREE_SECONDS:
            raise RuntimeError("a dead machine's runs show as running for ever")
        time.sleep(1)
    return time.monotonic() - begun


def until_begun_elsewhere(site: Site, ids: Sequence[str]) -> None:
    other = site.machines[0]
    until(
        lambda: {*ids} <= {*site.at_work(other, ids)} | {r["id"] for r in site.flow_runs(ids) if has_ended(r)},
        600,
        "the other",
    )


def recorded(site: Site) -> dict[str, list[Any]]:
    """Runs in MLflow by their flow run."""
    found = defaultdict(list)
    for run in site.stack.api.search_runs([one.experiment_id for one in site.stack.api.search_experiments()]):
        found[run.data.tags.get(FLOW_RUN_TAG, "")].append(run)
    return found


def what_is_wrong(site: Site, ids: Sequence[str]) -> list[str]:
    """Runs that are missing, there twice or open: in Prefect, in MLflow."""
    faults = [
        f"Prefect: {run['name']} is {run['state_name']}"
        for run in site.flow_runs(ids)
        if run["state_type"] != "COMPLETED"
    ]
    known = recorded(site)
    for flow_run in ids:
        states = Counter((run.info.status, TAKEN_OVER_TAG in run.data.tags) for run in known[flow_run])
        if states.pop(("FINISHED", False), 0) != 1 or set(states) - {("KILLED", True)}:
            faults.append(f"MLflow: flow run {flow_run} has {dict(states)} beside what it should have")
    return faults + [f"MLflow: there are runs of {name or 'no flow run'}" for name in set(known) - set(ids)]


def other_than_undisturbed(site: Site, seeds: Mapping[str, int], ids: Sequence[str]) -> list[str]:
    """Of these runs, which a machine had begun that died, those that come out otherwise when nothing dies."""
    again = {site.submit(seeds[flow_run]): flow_run for flow_run in ids}
    until_ended(site, list(again), len(again))
    known = recorded(site)

    def adapter(flow_run: str) -> str:
        return next(
            (run.data.tags["adapter_sha256"] for run in known[flow_run] if run.info.status == "FINISHED"), "none"
        )

    return [
        f"flow run {one} has another adapter than {other}"
        for one, other in again.items()
        if adapter(one) != adapter(other)
    ]


def disturbed(site: Site, count: int, is_cut_off: bool) -> list[str]:
    """What is wrong after all."""
    seeds = {site.submit(seed): seed for seed in range(count)}
    ids, doomed = list(seeds), site.machines[1]
    until_ended(site, ids, count // 4, lambda: bool(site.at_work(doomed, ids)))
    lost = site.at_work(doomed, ids)
    (doomed.cut_off if is_cut_off else doomed.die)()
    say(f"{doomed.name} is {'cut off' if is_cut_off else 'dead'}, which had begun {len(lost)} runs")
    seconds = until_free(site, ids)
    say(f"after {seconds:.0f} s nothing shows as running there")
    faults = [] if seconds <= FREE_SECONDS else [f"it took {seconds:.0f} s until its runs were free"]
    if is_cut_off:
        until_begun_elsewhere(site, lost)
        still = [one for flow_run in lost for one in doomed.runners().get(flow_run, [])]
        doomed.connect_again()
        say(f"{doomed.name} is back, with {len(still)} processes of runs that {site.machines[0].name} has begun")
        _, left = psutil.wait_procs(still, timeout=FREE_SECONDS)
        faults += [f"process {one.pid} goes on with a run that another does" for one in left]
    until_ended(site, ids, count)
    faults += what_is_wrong(site, ids)
    return faults + other_than_undisturbed(site, seeds, lost)


def predicted(site: Site, rows: int) -> list[str]:
    """What is wrong after a prediction on the way of which a machine died."""
    trained, doomed, began = site.submit(0), site.machines[1], time.monotonic()
    until_ended(site, [trained], 1)
    (run,) = recorded(site)[trained]
    whole = site.predict(site.root / "alone", run.info.run_id, rows, alone=True).read_bytes()
    say(f"one process labels {rows:,} rows: {time.monotonic() - began:.0f} s with the training of its adapter")

    folder, began = site.root / "sharded", time.monotonic()
    with ThreadPoolExecutor(1) as command:
        driver = command.submit(site.predict, folder, run.info.run_id, rows, "--shards", "4")
        log = folder / "log"
        until(
            lambda: (
                driver.done() or (log.exists() and "rows (" in log.read_text() and site.at_work(doomed, shards(site)))
            ),
            STUCK_SECONDS,
            "rows that are labelled, and a shard of the machine",
        )
        begun = site.at_work(doomed, shards(site))
        doomed.die()
        say(f"{doomed.name} is dead, which had {len(begun)} of the shards")
        out = driver.result(STUCK_SECONDS).read_bytes()
    say(f"all is labelled after {time.monotonic() - began:.0f} s")
    states = Counter(shard["state_name"] for shard in site.flow_runs(shards(site)))
    say(f"shards: {dict(states)}")
    faults = [] if out == whole else ["the output of the shards is not that of one process"]
    faults += [] if begun else [f"{doomed.name} had no shard when it died"]
    return faults + [f"{count} shards are {state}" for state, count in states.items() if state not in ENDED]


def shards(site: Site) -> list[str]:
    found = site.stack.call("POST", "/flow_runs/filter", {"flows": {"name": {"any_": ["predict-shard"]}}})
    return [str(run["id"]) for run in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--root", type=Path, default=Path("/tmp/peft-flow-chaos-runs"))
    parser.add_argument("--cut-off", action="store_true", help="its cable only, and for a while")
    parser.add_argument("--predict", type=int, metavar="ROWS", help="so many rows in four shards, and no other runs")
    options = parser.parse_args()
    root: Path = options.root.resolve()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    site, begun = Site(root), time.monotonic()
    try:
        site.start()
        say("all is up")
        rows, count = options.predict, options.runs
        faults = predicted(site, rows) if rows else disturbed(site, count, options.cut_off)
    finally:
        site.stop()
    for fault in faults:
        print("WRONG", fault)
    say(f"all of it in {(time.monotonic() - begun) / 60:.1f} min")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
