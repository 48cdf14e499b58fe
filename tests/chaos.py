"""Runs that are killed at points and times of a seeded schedule, and then started again with the same command.

    python -m tests.chaos --kills 200 --seed 0 --jobs 2 [--outages] [CONFIG.yaml]

Every case has a folder of its own and is killed three to six times on the way. At its end it must be what an
uninterrupted run is: the same adapter and scores, and one finished MLflow run with the same points, parameters, files
and one logged model. With --outages it talks to an MLflow server that is killed and started again meanwhile.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import ROOT, free_port

POINTS = {
    # where, and up to how many calls a run makes
    "tasks.tracking.flow:live": 1,
    "tasks.data.prepare:find_input": 1,
    "tasks.data.prepare:check_input": 2,
    "tasks.data.prepare:tokenize": 1,
    "tasks.data.prepare:fingerprint": 2,
    "tasks.data.datacheck:make_check": 1,
    "tasks.evaluation.references:measure": 4,
    "tasks.base.files:write_text": 40,
    "tasks.tracking.journal:append": 110,
    "tasks.tracking.journal:Journal.mark": 90,
    "tasks.training.checkpoint:write_checkpoint": 12,
    "tasks.base.files:flush": 60,
    "tasks.training.fit:fit_adapter": 1,
    "tasks.training.watching:curve_point": 60,
    "tasks.models.adapter:save_adapter": 1,
    "tasks.evaluation.predictions:write_evaluation": 4,
    "tasks.base.fresh_process:run_offline": 1,
    "tasks.evaluation.verdict:judge": 1,
    "tasks.tracking.run:tidy_up": 1,
    "tasks.tracking.sending:created": 1,
    "tasks.tracking.sending:send_metrics": 6,
    "tasks.tracking.sending:send_files": 8,
    "tasks.tracking.sending:send_inputs": 3,
    "tasks.tracking.sending:send_model": 1,
    "tasks.tracking.sending:send_values": 6,
    "tasks.tracking.sending:send_end": 1,
    "tasks.tracking.sending:end_run": 1,
    "tasks.evaluation.recording:show_in_prefect": 1,
    "tasks.base.work:finished": 1,
    "flows.actions:summarize": 1,
}

START = """
import sys
import tasks.training.resume
tasks.training.resume.MOST_SHARE = 0.2  # more checkpoints than usual: what they hold must not show in the result
from tests.faults import main
sys.exit(main())
"""
MOST_ATTEMPTS = 8
PATIENCE_SECONDS = 600


class Outcome(NamedTuple):
    kills: int
    seconds: float
    fault: str
    """What is not as in an uninterrupted run; nothing where all is."""


class Chaos:
    """`config` is what the command is given; `uri` the MLflow server, else each case has a store in its folder."""

    def __init__(self, root: Path, config: Sequence[str], prefect: str, uri: str | None = None) -> None:
        self.root, self.config, self.uri = root, list(config), uri
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_"))}
        self.environment = {
            **inherited,
            "PREFECT_API_URL": prefect,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **({"MLFLOW_TRACKING_URI": uri} if uri else {}),
        }
        self.lasts = 0.0
        self.expected: dict[str, Any] = {}

    def measure(self) -> None:
        """The uninterrupted run that all others must be like, and how long it lasts once the demo's model is made."""
        for name in ("first", "whole"):
            begun = time.monotonic()
            done = self.run(name, [])
            assert done.returncode == 0, done.stderr
            self.lasts = time.monotonic() - begun
        self.expected = self.what_counts("whole", done.stdout)

    def run(self, name: str, faults: Sequence[str]) -> subprocess.CompletedProcess[str]:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        experiment = ["--tracking.experiment", name, "--tracking.registered_model", f"model-{name}"]
        command = [*faults, "--", "finetune", *self.config, *experiment, "--json"]
        return subprocess.run(
            [sys.executable, "-c", START, *command],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE_SECONDS,
            start_new_session=True,
        )

    def case(self, number: int, seed: int) -> Outcome:
        chance, name, begun = random.Random(f"{seed} {number}"), f"case-{number}", time.monotonic()
        kills, story = 0, []
        for _ in range(chance.choice([3, 4, 5, 6])):
            fault = self.some_fault(chance)
            done = self.run(name, fault)
            story.append(" ".join(fault))
            if done.returncode == 0:  # it came to its end before: start anew
                shutil.rmtree(self.root / name)
                name += "x"
                continue
            kills += 1
            if done.returncode != -9:
                return Outcome(kills, 0, f"{story}: exit code {done.returncode}: {done.stderr[-1500:]}")
        for _ in range(MOST_ATTEMPTS):
            done = self.run(name, [])
            if done.returncode == 0 or not self.uri:  # with outages the end may take another start
                break
        if done.returncode != 0:
            return Outcome(kills, 0, f"{story}: exit code {done.returncode}: {done.stderr[-1500:]}")
        found = self.look(name, done.stdout)
        wrong = [key for key in self.expected if found.get(key) != self.expected[key]]
        fault_text = "; ".join(f"{key}: {found.get(key)!r:.300} not {self.expected[key]!r:.300}" for key in wrong)
        if not wrong:
            shutil.rmtree(self.root / name)
        seconds = time.monotonic() - begun
        return Outcome(kills, seconds, f"{story}: {fault_text}" if wrong else "")

    def look(self, name: str, output: str) -> dict[str, Any]:
        """`what_counts`, also when the server is just being started again."""
        for _ in range(MOST_ATTEMPTS):
            try:
                return self.what_counts(name, output)
            except Exception:
                if not self.uri:
                    raise
                time.sleep(5)
        return self.what_counts(name, output)

    def some_fault(self, chance: random.Random) -> list[str]:
        """Half of them at a point, half at a time, which is where most of a run's time goes."""
        if chance.random() < 0.5:
            return ["--kill-after", f"{chance.uniform(0.5, self.lasts * 1.02):.2f}"]
        point, calls = chance.choice(list(POINTS.items()))
        return ["--kill", f"{point}:{chance.randint(1, calls)}:{chance.choice(['before', 'after'])}"]

    def what_counts(self, name: str, output: str) -> dict[str, Any]:
        """Everything about a run that is no time, no place and no name."""
        import mlflow

        result = json.loads(output.strip().splitlines()[-1])
        api = mlflow.MlflowClient(self.uri or f"sqlite:///{self.root / name}/mlruns/mlflow.db")
        experiment = api.get_experiment_by_name(name)
        assert experiment
        runs = api.search_runs([experiment.experiment_id])
        found: dict[str, Any] = {key: result[key] for key in ("adapter_sha256", "baseline", "tuned", "verdict")}
        found |= {"delta": result["delta"], "references": result["references"], "data": result["data_fingerprint"]}
        found["runs"] = [run.info.status for run in runs]
        run = runs[0]
        found["the run that was promised"] = run.info.run_id == result["run_id"]
        found["parameters"] = run.data.params
        found["verdict tag"] = run.data.tags.get("verdict")
        found["points"] = {
            metric: [(point.step, point.value) for point in history_of(api, run.info.run_id, metric)]
            for metric in sorted(run.data.metrics)
            if not metric.startswith("cost/")
        }
        found["values of costs"] = {
            metric: len(history_of(api, run.info.run_id, metric))
            for metric in sorted(run.data.metrics)
            if metric.startswith("cost/")
        }
        found["files"] = sorted(files_of(api, run.info.run_id))
        models = api.search_logged_models([experiment.experiment_id])
        found["models"] = [str(model.status) for model in models]
        found["versions"] = len(api.search_model_versions(f"name='model-{name}'"))
        found["inputs"] = sorted(given.dataset.name for given in run.inputs.dataset_inputs)
        found["outputs"] = len(run.outputs.model_outputs) if run.outputs else 0
        return found


def history_of(api: Any, run_id: str, metric: str) -> list[Any]:
    return sorted(api.get_metric_history(run_id, metric), key=lambda point: (point.step, point.timestamp))


def files_of(api: Any, run_id: str, folder: str = "") -> list[str]:
    found = []
    for file in api.list_artifacts(run_id, folder or None):
        found += files_of(api, run_id, file.path) if file.is_dir else [file.path]
    return found


def run_cases(chaos: Chaos, kills: int, seed: int, jobs: int, say: Callable[[str], None]) -> list[Outcome]:
    """Cases until so many kills have happened."""
    outcomes: list[Outcome] = []
    lock = threading.Lock()
    numbers = iter(range(10_000))

    def work() -> None:
        while True:
            with lock:
                if sum(outcome.kills for outcome in outcomes) >= kills:
                    return
                number = next(numbers)
            try:
                outcome = chaos.case(number, seed)
            except Exception as error:
                outcome = Outcome(0, 0, f"{type(error).__name__}: {error}")
            with lock:
                outcomes.append(outcome)
                total = sum(one.kills for one in outcomes)
                say(f"case {number}: {outcome.kills} kills, {outcome.fault or 'the same'} ({total} of {kills} kills)")

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(work) for _ in range(jobs)]:
            future.result()
    return outcomes


class Server:
    """A server that can be killed and started again at its port."""

    def __init__(self, name: str, command: Sequence[str], health: str, folder: Path) -> None:
        self.command, self.health = list(command), health
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = (folder / f"{name}.log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Server":
        import urllib.request

        environment = os.environ | {"PREFECT_HOME": str(self.folder / "prefect"), "PYTHONPATH": str(ROOT)}
        environment |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment.pop("PREFECT_API_URL", None)
        self.process = subprocess.Popen(
            self.command, cwd=self.folder, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )
        for _ in range(600):
            try:
                with urllib.request.urlopen(self.health, timeout=5):
                    return self
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(f"{self.command} does not answer")

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, 9)
            self.process.wait()


def prefect_server(folder: Path) -> tuple[Server, str]:
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    return Server("prefect", command, f"{address}/health", folder), address


def mlflow_server(folder: Path) -> tuple[Server, str]:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    store, artifacts = f"sqlite:///{folder}/mlflow.db", f"{folder}/artifacts"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", artifacts]
    return Server("mlflow", command, f"{address}/health", folder), address


class Outages:
    """Kills `server` at random times and starts it again some seconds later, until it is told to stop."""

    def __init__(self, server: Server, seed: int, up_seconds: float, down_seconds: float) -> None:
        self.server, self.chance = server, random.Random(seed)
        self.up, self.down = up_seconds, down_seconds
        self.over = threading.Event()
        self.count = 0
        self.thread = threading.Thread(target=self.go, daemon=True)

    def __enter__(self) -> "Outages":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def go(self) -> None:
        while not self.over.wait(self.chance.uniform(0.3, 2) * self.up):
            self.server.kill()
            self.count += 1
            self.over.wait(self.chance.uniform(0.3, 2) * self.down)
            self.server.start()


def open_flow_runs(prefect: str) -> Counter[str]:
    """States of the flow runs that have not ended, by name."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect}), get_client(sync_client=True) as client:
        runs, offset = [], 0
        while page := client.read_flow_runs(limit=200, offset=offset):
            runs += page
            offset += len(page)
    return Counter(str(run.state.name) for run in runs if run.state and not run.state.is_final())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="*", help="arguments of peft-flow finetune; without: the demo")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--outages", action="store_true", help="MLflow's server is killed and started meanwhile")
    parser.add_argument("--root", type=Path, default=Path("/tmp/peft-flow-chaos"))
    options = parser.parse_args()
    root: Path = options.root.resolve()
    shutil.rmtree(root, ignore_errors=True)
    prefect, address = prefect_server(root / "servers")
    mlflow, uri = mlflow_server(root / "servers/mlruns") if options.outages else (None, None)
    begun = time.monotonic()
    try:
        prefect.start()
        if mlflow:
            mlflow.start()
        chaos = Chaos(root, options.config, address, uri)
        chaos.measure()
        print(f"uninterrupted: {chaos.lasts:.0f} s, adapter {chaos.expected['adapter_sha256'][:12]}", flush=True)
        say = lambda line: print(line, flush=True)  # noqa: E731
        if mlflow:
            with Outages(mlflow, options.seed, up_seconds=12, down_seconds=4) as outages:
                outcomes = run_cases(chaos, options.kills, options.seed, options.jobs, say)
            print(f"{outages.count} outages of MLflow")
        else:
            outcomes = run_cases(chaos, options.kills, options.seed, options.jobs, say)
    finally:
        prefect.kill()
        if mlflow:
            mlflow.kill()
    wrong = [outcome.fault for outcome in outcomes if outcome.fault]
    kills = sum(outcome.kills for outcome in outcomes)
    print(
        f"{kills} kills in {len(outcomes)} runs, {len(outcomes) - len(wrong)} of {len(outcomes)} the same as an "
        f"uninterrupted run, in {(time.monotonic() - begun) / 60:.0f} min"
    )
    for fault in wrong:
        print("DIFFERENT", fault)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
