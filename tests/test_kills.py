"""Flow runs, worker and servers are killed at random points; every run ends in a true state and the next one runs."""

import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.stacks import FINAL, Stack, until

pytestmark = pytest.mark.endurance

VICTIMS = ("flow run", "worker", "prefect server", "mlflow server", "everything")
TRUE = {"COMPLETED": "FINISHED", "FAILED": "FAILED", "CRASHED": "KILLED", "CANCELLED": "KILLED"}
"""MLflow's status for each final state of Prefect."""

MOMENTS_SECONDS = 14.0
"""From the click to the end of a run; a kill may hit its start, its training, its record and what comes after."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("kills"), {"OMP_NUM_THREADS": "1"}).start()
    yield stack
    stack.stop()
    stack.kill()


def strike(stack: Stack, victim: str) -> None:
    if victim == "everything":
        stack.kill()
        stack.start()
        return
    words = {"flow run": "prefect.engine", "worker": "worker start"}.get(victim, victim)
    if process := stack.process_of(words):
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kills", [len(VICTIMS), pytest.param(20, marks=pytest.mark.slow)])
def test_every_run_ends_in_a_true_state_and_the_next_one_runs(
    kills: int, stack: Stack, foundation: Any, reviews: Path
) -> None:
    chance = random.Random(kills)
    parameters = {
        "model": {"name": str(foundation("gpt2"))},
        "data": {"name": str(reviews), "max_length": 32},
        "training": {"epochs": 40, "batch_size": 8},
        "evaluation": {"bootstrap_samples": 200, "batch_size": 8, "references": []},
    }
    runs = []
    for kill in range(kills):
        runs.append(submit(stack, parameters | {"seed": kill}))
        until(lambda: begun(stack, runs[-1]), 300, f"begin of run {kill}")
        victim = VICTIMS[kill % len(VICTIMS)]
        moment = chance.uniform(0, MOMENTS_SECONDS)
        time.sleep(moment)
        print(f"kill {kill}: {victim} after {moment:.1f} s, {stack.state(runs[-1])}", flush=True)
        strike(stack, victim)
        until(lambda: settled(stack, runs), 300, f"true states after kill {kill} ({victim})")
        print([stack.state(run) for run in runs[-3:]], flush=True)
    last = submit(stack, parameters)
    assert stack.until_state(last, *FINAL) == "COMPLETED"
    until(lambda: all(ended(stack, run) for run in [*runs, last]), 300, "all runs closed")
    assert len({stack.mlflow_run(run).info.run_id for run in runs if stack.mlflow_run(run)}) > kills / 2


def submit(stack: Stack, parameters: dict[str, Any]) -> str:
    """A click in the UI, again and again while the server is being started again."""

    def click() -> str:
        try:
            return stack.submit(parameters)
        except OSError:
            return ""

    return str(until(click, 60, "submission"))


def begun(stack: Stack, run: str) -> bool:
    try:
        return stack.state(run) != "SCHEDULED"
    except OSError:
        return False


def settled(stack: Stack, runs: list[str]) -> bool:
    """Whether every run is queued, is worked on by a process, or has ended and says so everywhere."""
    try:
        return all(stack.state(run) == "SCHEDULED" or ended(stack, run) or is_worked_on(stack, run) for run in runs)
    except OSError:  # a server is being started again
        return False


def ended(stack: Stack, run: str) -> bool:
    """Whether Prefect has a final state for the run and its tasks, and MLflow the status that goes with it."""
    try:
        state, found = stack.state(run), stack.mlflow_run(run)
    except OSError:  # a server is being started again
        return False
    if not {state, *stack.tasks(run).values()} <= set(FINAL):
        return False
    return found is None or found.info.status == TRUE[state]


def is_worked_on(stack: Stack, run: str) -> bool:
    return any(process.environ().get("PREFECT__FLOW_RUN_ID") == run for process in stack.processes())
