"""What people click and write while two trainings keep all cores busy: refused, or how long it took.

    .venv/bin/python -m benchmarks.clicks [--against COMMIT ...] [--clicks 200] [--people 4] [--rounds 1]

`peft-flow up` runs in a folder of its own, over SQLite, with two trainings of the demo that never end. So many people
do what the pages of Prefect and MLflow do for a click (a schedule is switched, parameters are set, a run is made and
cancelled, runs are looked for, a tag, a note, metrics and an alias are written), each as soon as the last was answered.
Refused is an answer of 400 or more, and none within 30 s. With `--against` the programs of these commits are measured
too, in turns. Processor seconds per second are those of the trainings while people clicked.
"""

import argparse
import http.client
import itertools
import json
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil

from benchmarks.speed import check_out
from tasks.base.closing import flow_run_of
from tasks.servers.deployments import POOL
from tasks.sources.demo import demo_folder, demo_model
from tests.conftest import ROOT
from tests.stacks import Stack, until

ANSWER_SECONDS = 30

RUN: dict[str, Any] = {
    "model": {"name": "demo-gpt2"},
    "data": {"name": "demo-reviews"},
    "training": {"epochs": 1000},
    "offline": True,
}

SCHEDULED = ("finetune/finetune-gpt2-rotten-tomatoes", "retrain/retrain", "retrain/retrain-gpt2-rotten-tomatoes")


class Click(NamedTuple):
    what: str
    seconds: float
    refusal: str
    """Nothing where it was done."""


class Person:
    """Who clicks, in a schedule, deployment, MLflow run and registered model that others may click in too."""

    def __init__(self, stack: Stack, number: int) -> None:
        self.stack, self.number, self.done = stack, number, list[Click]()
        self.mlflow = f"{stack.mlflow}/ajax-api/2.0/mlflow"
        self.prefect = f"{stack.prefect}/api"
        deployment = stack.call("GET", f"/deployments/name/{SCHEDULED[number % len(SCHEDULED)]}")
        self.deployment, self.schedule = deployment["id"], deployment["schedules"][0]["id"]
        self.parameters = deployment["parameters"]
        self.finetune = stack.deployment("finetune")["id"]
        api, name = stack.api, f"clicks {number}"
        run = api.create_run("0", run_name=name).info
        self.run, self.model = run.run_id, f"clicks-{run.run_id[:8]}"
        api.create_registered_model(self.model)
        api.create_model_version(self.model, run.artifact_uri, self.run)

    def click(self, what: str, method: str, address: str, body: Any = None) -> Any:
        """The answer, which is noted; None where there is none."""
        began, answer, refusal = time.perf_counter(), None, ""
        parts = urlsplit(address)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_SECONDS)
        try:
            connection.request(method, parts.path, json.dumps(body), {"content-type": "application/json"})
            found = connection.getresponse()
            text = found.read().decode()
            answer = json.loads(text) if text else {}
            refusal = f"{found.status} {text[:300]}" if found.status >= 400 else ""
        except (OSError, http.client.HTTPException) as error:
            refusal = repr(error)
        finally:
            connection.close()
        self.done.append(Click(what, time.perf_counter() - began, refusal))
        return answer

    def clicks(self) -> Iterator[None]:
        """One at a time, for ever."""
        run, runs, write = {"run_id": self.run}, f"{self.prefect}/flow_runs", f"{self.mlflow}/runs"
        for turn in itertools.count():
            schedule = f"{self.prefect}/deployments/{self.deployment}/schedules/{self.schedule}"
            self.click("switch a schedule", "PATCH", schedule, {"active": turn % 2 == 0})
            yield
            parameters = {"parameters": {**self.parameters, "offline": turn % 2 == 0}}
            self.click("set parameters", "PATCH", f"{self.prefect}/deployments/{self.deployment}", parameters)
            yield
            later = {"type": "SCHEDULED", "state_details": {"scheduled_time": tomorrow()}}
            made = self.click(
                "make a run",
                "POST",
                f"{self.prefect}/deployments/{self.finetune}/create_flow_run",
                {"parameters": RUN, "state": later},
            )
            yield
            cancelled = {"state": {"type": "CANCELLED", "name": "Cancelled"}, "force": True}
            self.click("cancel a run", "POST", f"{runs}/{(made or {}).get('id')}/set_state", cancelled)
            yield
            self.click("list flow runs", "POST", f"{runs}/filter", {"sort": "START_TIME_DESC", "limit": 50})
            yield
            search = {"experiment_ids": ["0"], "max_results": 100, "order_by": ["attributes.start_time DESC"]}
            self.click("look for runs", "POST", f"{write}/search", search)
            yield
            self.click("set a tag", "POST", f"{write}/set-tag", run | {"key": "owner", "value": f"{turn}"})
            yield
            note = run | {"key": "mlflow.note.content", "value": f"The {turn}th note. " * 50}
            self.click("write a note", "POST", f"{write}/set-tag", note)
            yield
            now = int(time.time() * 1000)
            points = [{"key": f"m{name}", "value": turn, "timestamp": now, "step": turn} for name in range(20)]
            self.click("log 20 metrics", "POST", f"{write}/log-batch", run | {"metrics": points})
            yield
            alias = {"name": self.model, "alias": f"candidate-{turn % 2}", "version": "1"}
            self.click("set an alias", "POST", f"{self.mlflow}/registered-models/alias", alias)
            yield


def tomorrow() -> str:
    return (datetime.now(UTC) + timedelta(days=1)).isoformat()


class Side:
    """A version of the program with its stack, which two trainings may use at a time."""

    def __init__(self, folder: Path, source: Path) -> None:
        # what the server hides, because its clients ask again, is counted too
        settings = {"PREFECT_SERVER_LOG_RETRYABLE_ERRORS": "true", "XDG_CACHE_HOME": str(demo_folder().parents[1])}
        self.stack = Stack(folder, settings, source)
        del self.stack.environment["PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS"]  # tests are in a hurry
        self.stack.start()
        self.stack.call("PATCH", f"/work_pools/{POOL}", {"concurrency_limit": 2})
        self.stack.stop()  # the worker takes so many from its next start on
        self.clicks, self.locked, self.shares = list[Click](), 0, list[float]()

    def measure(self, clicks: int, people: int) -> None:
        self.stack.start()
        try:
            with self.two_trainings():
                crowd = [Person(self.stack, number) for number in range(people)]
                began, used = time.perf_counter(), self.processor_seconds()
                in_parallel([lambda person=person: self.let_click(person, clicks // people) for person in crowd])
                self.shares.append((self.processor_seconds() - used) / (time.perf_counter() - began))
                self.clicks += [click for person in crowd for click in person.done]
        finally:
            self.stack.stop()
            self.locked += self.count_locked()

    @contextmanager
    def two_trainings(self) -> Iterator[None]:
        """Within, both are at it."""
        runs = [self.stack.submit({**RUN, "seed": time.time_ns() % 10**6 + number}) for number in range(2)]
        until(lambda: all(map(self.stack.mlflow_run, runs)), 600, "two trainings")
        yield
        for run in runs:
            self.stack.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
        for run in runs:
            self.stack.until_state(run, "CANCELLED")

    def let_click(self, person: Person, times: int) -> None:
        for _ in itertools.islice(person.clicks(), times):
            continue

    def processor_seconds(self) -> float:
        """Of all flow runs so far, with the processes that they have started."""
        found = 0.0
        for process in filter(flow_run_of, self.stack.processes()):
            with suppress(psutil.Error):
                found += sum(process.cpu_times()[:2])
        return found

    def count_locked(self) -> int:
        """Lines of the servers', workers' and runs' logs since the last start that say so."""
        found = sum(
            "database is locked" in line
            for log in (self.stack.folder / "mlruns" / "logs").glob("*.log")
            for line in log.read_text(errors="replace").splitlines()
        )
        with closing(sqlite3.connect(self.stack.folder / "prefect" / "prefect.db")) as database:
            asked = "SELECT count(*) FROM log WHERE message LIKE '%database is locked%'"
            return found + int(database.execute(asked).fetchone()[0])


def in_parallel(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def table(sides: dict[str, Side]) -> Iterator[str]:
    yield "| | clicks | refused | median | 95 % | worst | lines `database is locked` | trainings: processor s/s |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, side in sides.items():
        figures = [*row(side.clicks), side.locked, f"{median(side.shares):.2f}"]
        yield f"| {name} | {' | '.join(map(str, figures))} |"
    yield ""
    yield f"| seconds: median, worst | {' | '.join(sides)} |"
    yield f"| --- |{' --- |' * len(sides)}"
    kinds = dict.fromkeys(click.what for side in sides.values() for click in side.clicks)
    for what in kinds:
        cells = []
        for side in sides.values():
            seconds = [click.seconds for click in side.clicks if click.what == what]
            cells.append(f"{median(seconds):.2f}, {max(seconds):.2f}")
        yield f"| {what} | {' | '.join(cells)} |"
    for name, side in sides.items():
        for click in filter(lambda click: click.refusal, side.clicks):
            yield f"{name}: refused: {click.what} after {click.seconds:.1f} s: {click.refusal}"


def row(clicks: list[Click]) -> list[Any]:
    """Number, refused, median, 95th percentile and maximum of the seconds."""
    seconds = sorted(click.seconds for click in clicks)
    shown = (median(seconds), seconds[int(0.95 * (len(seconds) - 1))], seconds[-1])
    return [len(clicks), sum(bool(click.refusal) for click in clicks), *(f"{value:.2f} s" for value in shown)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--against", metavar="COMMIT", nargs="+", default=[], help="measure the program of these commits too"
    )
    parser.add_argument("--clicks", type=int, default=200, help="for each side and round")
    parser.add_argument("--people", type=int, default=4, help="who click at the same time")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    demo_model()
    with tempfile.TemporaryDirectory() as folder:
        sources = {commit: check_out(commit, Path(folder) / f"source-{commit}") for commit in options.against}
        sources["now"] = ROOT
        sides = {name: Side(Path(folder) / f"side-{name}", source) for name, source in sources.items()}
        for turn in range(options.rounds):
            for name in sorted(sides, reverse=bool(turn % 2)):
                sides[name].measure(options.clicks, options.people)
        print("\n".join(table(sides)))


if __name__ == "__main__":
    main()
