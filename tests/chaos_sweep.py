"""A sweep over two machines on which anything may be killed at any time: each trial ends once, and none is left open.

    sudo .venv/bin/python -m tests.chaos_sweep [--trials 1000] [--kills 20] [--seed 0]

The machines are network namespaces with a host name and a folder of their own, each with a worker for two runners.
The root namespace has `peft-flow up` with its passwords, PostgreSQL with the study, and the command `sweep`. Killed
(-9) at random: a runner, the command (given again), a worker (started again), the Prefect server (which
`peft-flow up` starts again), and a whole machine: its cable first, then all its processes, then its network.
It needs root, for namespaces, and the server of PostgreSQL (Debian: postgresql).
"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

import argparse
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median

import psutil
import yaml

from tasks.base.device import THREADS
from tasks.servers.deployments import TRIALS_POOL
from tasks.servers.processes import Register, session
from tests.conftest import ROOT, sentences, write_model
from tests.machines import Database, Machine, kill
from tests.stacks import Stack, until

KINDS = ("machine", "driver", "server", "worker", "runner")
RUNNERS = 4

GAP_SECONDS = 20.0
"""Least time between two kills: `peft-flow up` gives up on a server that dies more than three times a minute."""

STUCK_SECONDS = 900.0
"""Longer than anything waits of itself: if no trial ends for so long, none will."""

OPEN_SECONDS = 200.0
"""In which runs without a sign of life are found: heartbeats, and what looks at them."""

NO_SERVER = "Failed to reach API"
"""Last words of a command that was given while there was no server: it had not begun."""

PASSWORDS = {
    "PREFECT_SERVER_API_AUTH_STRING": "team:only-for-kills",
    "PREFECT_API_AUTH_STRING": "team:only-for-kills",
    "MLFLOW_TRACKING_USERNAME": "admin",
    "MLFLOW_TRACKING_PASSWORD": "only-for-these-kills",
    "PGUSER": "postgres",
}
EXPERIMENT = "chaos-sweep"


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {message}", flush=True)


class Meter(threading.Thread):
    """Processor seconds of all runners and of the command until the last trial has ended, and what they finished."""

    def __init__(self, site: "Site", trials: int) -> None:
        super().__init__(daemon=True)
        self.site, self.trials = site, trials
        self.used: dict[tuple[str, int, float], float] = {}
        self.finished = set[tuple[str, int]]()
        """Machine and trial: it was trained to its end there."""
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(1):
            if self.site.database.ended() < self.trials:
                for kind, process in self.watched():
                    with suppress(psutil.Error):
                        times = process.cpu_times()
                        self.used[kind, process.pid, process.create_time()] = times.user + times.system
            for machine in self.site.machines:
                for file in machine.folder.glob("mlruns/work/sweep-*/*/outcome.json"):
                    self.finished.add((machine.name, int(file.parent.name)))

    def watched(self) -> Iterator[tuple[str, psutil.Process]]:
        if self.site.driver and self.site.driver.poll() is None:
            yield "driver", psutil.Process(self.site.driver.pid)
        for machine in self.site.machines:
            for processes in machine.runners().values():
                yield from (("runner", process) for process in processes)

    def seconds(self, kind: str) -> float:
        return sum(seconds for (name, *_), seconds in self.used.items() if name == kind)


class Site:
    """All of it: servers, database, machines and the command."""

    def __init__(self, root: Path, trials: int) -> None:
        self.root, self.trials = root, trials
        self.stack = Stack(root / "app", PASSWORDS)
        self.config, self.space = write_job(root)
        self.client = {
            **self.stack.environment,
            "PREFECT_API_URL": f"http://{Machine.gateway(1)}:{self.stack.ports[0]}/api",
            "MLFLOW_TRACKING_URI": f"http://{Machine.gateway(1)}:{self.stack.ports[1]}",
        }
        self.database = Database(root / "postgresql", Machine.gateway(1))
        self.machines = [Machine(n, root / f"host{n}", self.stack.ports, self.stack.environment) for n in (1, 2)]
        self.driver: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        for machine in self.machines:
            machine.unplug()
            machine.plug_in()
        self.database.start()
        self.stack.begin("--host", "0.0.0.0")
        until(lambda: "is up" in self.stack.said(), 400, "peft-flow up")
        worker = self.stack.process_of(f"worker start.*{TRIALS_POOL}")
        assert worker
        worker.suspend()  # the servers' machine runs no trials
        for machine in self.machines:
            machine.start_worker()
        until(lambda: self.online() == {machine.name for machine in self.machines}, 300, "the workers")

    def online(self) -> set[str]:
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            workers = client.read_workers_for_work_pool(TRIALS_POOL)
        return {one.name.rpartition("-")[0] for one in workers if one.status and one.status.value == "ONLINE"}

    def give_command(self) -> None:
        command = [sys.executable, "-m", "flows.cli", "sweep", str(self.config), "--sweep", str(self.space)]
        command += ["--trials", str(self.trials), "--parallel", str(RUNNERS), "--pruner", "none"]
        command += ["--storage", self.database.address]
        with (self.root / "driver.log").open("ab") as log:
            self.driver = subprocess.Popen(
                command, cwd=self.stack.folder, env=self.client, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, kind: str, chance: random.Random) -> str:
        """What was killed; afterwards that is started again which does not start again of itself."""
        machine = chance.choice(self.machines)
        if kind == "runner":
            runners = [one for machine in self.machines for one in machine.runners().values()]
            if not runners:
                return "no runner was there"
            kill(chance.choice(runners))
            return kind
        if kind == "driver" and self.driver:
            self.driver.kill()
            self.driver.wait()
            time.sleep(chance.uniform(0, 10))
            self.give_command()
            return kind
        if kind == "server":
            started = Register.model_validate_json((self.stack.folder / "prefect/peft-flow-up.json").read_bytes())
            kill([one for each in started.processes if "Prefect" in each.name for one in session(each)])
            return kind
        if kind == "worker":
            machine.kill_worker()
        else:
            machine.die()
            time.sleep(chance.uniform(0, 10))
            machine.plug_in()
        machine.start_worker()
        return f"{kind} {machine.name}"

    def stop(self) -> None:
        for machine in self.machines:
            kill(machine.processes())
            machine.unplug()
        self.stack.stop(seconds=60)
        self.stack.kill()
        self.database.stop()


def write_job(root: Path) -> tuple[Path, Path]:
    """Configuration and space. What varies costs no time: what a trial's training takes can be measured alone."""
    import pandas as pd

    write_model(root / "model", "bert")
    texts, labels = sentences(6)
    frame, data = pd.DataFrame({"text": texts, "label": labels}), root / "reviews"
    data.mkdir()
    for name, part in (("train", frame[:48]), ("validation", frame[48:60]), ("test", frame[60:])):
        part.to_csv(data / f"{name}.csv", index=False)
    job = {
        "model": {"name": str(root / "model")},
        "data": {"name": str(data), "max_length": 32},
        "training": {"epochs": 4, "batch_size": 8},
        "evaluation": {"bootstrap_samples": 200, "references": ["majority"]},
        "tracking": {"experiment": EXPERIMENT},
    }
    space = {"training": {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}}
    for name, content in (("job", job), ("space", space)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return root / "job.yaml", root / "space.yaml"


def train_alone(file: str) -> None:
    """Print the processor seconds of one training, as a trial's, with nothing around it: the median of ten."""
    from tasks.data.prepare import prepare
    from tasks.settings.loading import load_config
    from tasks.training import resume
    from tasks.training.fit import fit_adapter
    from tasks.training.watching import Watcher

    resume.MOST_SHARE = 0.0
    config, seconds = load_config(Path(file)), []
    data = prepare(config, Path.cwd())
    for turn in range(12):
        folder, began = Path(f"training-{turn}"), time.process_time()
        folder.mkdir()
        fit_adapter(config, data, folder, Watcher(lambda progress: None))
        seconds.append(time.process_time() - began)
    print(median(seconds[2:]))


def measure_training(config: Path, root: Path) -> float:
    folder = root / "alone"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.chaos_sweep", "--train-alone", str(config)]
    alone = {**os.environ, THREADS: "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def disturb(site: Site, kills: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Kill this and that until the command has come to its end; what was killed, and what is wrong."""
    chance = random.Random(seed)
    due = sorted(chance.uniform(0, 0.95) * site.trials for _ in range(kills))
    kinds = [KINDS[number % len(KINDS)] for number in range(kills)]
    chance.shuffle(kinds)
    killed, faults, last, moved, ended = Counter[str](), list[str](), time.monotonic(), time.monotonic(), 0
    while True:
        assert site.driver
        if (code := site.driver.poll()) is not None:
            if code == 0:
                return killed, faults
            words = (site.root / "driver.log").read_text().strip().splitlines()[-1]
            say(f"the command ended with {code}, and is given again: {words}")
            if NO_SERVER not in words:
                faults.append(f"the command ended with {code}: {words}")
            if len(faults) > 2:
                return killed, faults
            time.sleep(5)
            site.give_command()
        now, before = time.monotonic(), ended
        ended = site.database.ended()
        moved = now if ended != before else moved
        if now - moved > STUCK_SECONDS:
            return killed, [*faults, f"no trial has ended for {STUCK_SECONDS:.0f} s, {ended} had"]
        if due and ended >= due[0] and now - last > GAP_SECONDS:
            due.pop(0)
            what = site.kill(kinds.pop(), chance)
            killed[what.split()[0]] += 1
            last = time.monotonic()
            say(f"{ended} trials have ended; killed: {what}")
        time.sleep(0.5)


def what_is_wrong(site: Site) -> list[str]:
    """Trials that are missing, there twice or open: in Optuna, in MLflow, in Prefect."""
    import mlflow

    expected = Counter(range(site.trials))
    rows = site.database.ask("select number, state from trials")
    faults = differences("Optuna", Counter(number for number, _ in rows), expected)
    faults += [f"Optuna: trial {number} is {state}" for number, state in rows if state != "COMPLETE"]
    api = mlflow.MlflowClient(site.stack.mlflow)
    experiment = api.get_experiment_by_name(EXPERIMENT)
    if not experiment:
        return [*faults, "MLflow: there is no experiment"]
    runs, page = [], None
    while page != "":
        found = api.search_runs([experiment.experiment_id], page_token=page)
        runs, page = [*runs, *found], found.token or ""
    faults += [f"MLflow: {one.info.run_name} is {one.info.status}" for one in runs if one.info.status != "FINISHED"]
    parents = [one for one in runs if "mlflow.parentRunId" not in one.data.tags]
    trials = [one for one in runs if "trial" in one.data.params]
    faults += differences("MLflow", Counter(int(one.data.params["trial"]) for one in trials), expected)
    strays = [one for one in trials if one.data.tags["mlflow.parentRunId"] != parents[0].info.run_id]
    if len(parents) != 1 or strays:
        faults.append(f"MLflow: {len(parents)} parents, {len(strays)} trials under another")
    deadline = time.monotonic() + OPEN_SECONDS
    while (left := open_flow_runs()) and time.monotonic() < deadline:
        time.sleep(2)
    return faults + [f"Prefect: {count} flow runs are {state}" for state, count in left.items()]


def differences(where: str, found: Counter[int], expected: Counter[int]) -> list[str]:
    twice, missing = sorted((found - expected).elements()), sorted((expected - found).elements())
    faults = [f"{where}: trials there more than once: {twice}"] if twice else []
    return faults + ([f"{where}: trials that are missing: {missing}"] if missing else [])


def open_flow_runs() -> Counter[str]:
    from prefect.settings import PREFECT_API_URL

    from tests import chaos

    return chaos.open_flow_runs(str(PREFECT_API_URL.value()))


def report(site: Site, meter: Meter, alone: float) -> None:
    starts = site.database.ask("select value_json from trial_user_attributes where key = 'starts'")
    begun = Counter(int(value) for (value,) in starts)
    ends = Counter(Counter(number for _, number in meter.finished).values())
    say(f"trials by how often they were begun: {dict(sorted(begun.items()))}")
    say(f"trials by how often they were trained to their end: {dict(sorted(ends.items()))}")
    runners, driver = (meter.seconds(kind) / site.trials for kind in ("runner", "driver"))
    say(
        f"processor seconds for each trial: runners {runners:.2f}, the command {driver:.2f}; the training alone, "
        f"in one process, {alone:.2f}; so {runners + driver - alone:.2f} more"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=Path("/tmp/peft-flow-chaos-sweep"))
    parser.add_argument("--train-alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train_alone:
        train_alone(options.train_alone)
        return 0
    root: Path = options.root.resolve()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    site = Site(root, options.trials)
    alone, meter = measure_training(site.config, root), Meter(site, options.trials)
    os.environ |= {name: site.client[name] for name in (*PASSWORDS, "PREFECT_API_URL", "PREFECT_HOME")}
    say(f"a training takes {alone:.2f} s of a processor")
    try:
        site.start()
        say("all is up")
        begun = time.monotonic()
        site.give_command()
        meter.start()
        killed, faults = disturb(site, options.kills, options.seed)
        say(f"{site.database.ended()} trials in {(time.monotonic() - begun) / 60:.1f} min; killed: {dict(killed)}")
        faults += what_is_wrong(site)
        report(site, meter, alone)
    finally:
        meter.over.set()
        site.stop()
    for fault in faults:
        print("WRONG", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
