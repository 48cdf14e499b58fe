"""One run on two machines, by the commands of docs/operations.md. The second is a network namespace."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.base import fresh_process
from tests.conftest import free_port
from tests.machines import Machine, kill
from tests.stacks import until
from tests.test_training_group import gone, still  # noqa: F401  (a fixture)

pytestmark = pytest.mark.endurance


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Machine]:
    if os.getuid():
        pytest.skip("needs root, for a network namespace")
    machine = Machine(77, tmp_path / "second", (0, 0), fresh_process.with_our_modules())
    machine.plug_in()
    try:
        yield machine
    finally:
        kill(machine.processes())
        machine.unplug()


class Run:
    """`peft-flow finetune` on the first machine."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        folder.mkdir(exist_ok=True)
        self.log, self.answer = folder / "log", folder / "answer"
        with self.log.open("wb") as log, self.answer.open("wb") as answer:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "finetune", "../run.yaml", *arguments, "--json"],
                cwd=folder,
                env=fresh_process.with_our_modules(),
                stdout=answer,
                stderr=log,
            )

    def trains(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return "training:" in self.log.read_text()

    def result(self) -> dict[str, Any]:
        assert self.process.wait(600) == 0, self.log.read_text()
        found: dict[str, Any] = json.loads(self.answer.read_text())
        return found


def test_run_on_two_machines_is_stopped_loses_one_and_ends_with_the_bits_of_one_process(
    second: Machine,
    still: Any,  # noqa: F811
    reviews: Path,
    tmp_path: Path,
) -> None:
    settings = {
        "model": {"name": still("gpt2")},
        "data": {"name": str(reviews), "max_length": 16},
        "training": {"epochs": 60},
        "evaluation": {"references": [], "bootstrap_samples": 200},
        "offline": True,
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    address = f"{Machine.gateway(second.number)}:{free_port()}"
    two = ("--training.batch_size", "14", "--training.processes", "2")
    machines = ("--training.machines", "2", "--training.rendezvous", address)

    # Ctrl-C on the first
    other, run = second.start("join", address), Run(tmp_path / "first", *two, *machines)
    until(run.trains, 300, "the training")
    processes = second.processes()
    run.process.send_signal(signal.SIGINT)
    assert (run.process.wait(120), other.wait(60)) == (1, 1)
    assert "Stopped after step" in run.log.read_text() and gone(processes, 20)

    # the second loses its power
    other, run = second.start("join", address), Run(tmp_path / "first", *two, *machines)
    until(run.trains, 300, "the training")
    second.die()
    assert run.process.wait(120) == 1
    lines = run.log.read_text().splitlines()
    assert f"the machine {second.name} of this training is gone" in lines[-1] and lines[-1].startswith("peft-flow: ")

    # to the end
    second.plug_in()
    other, run = second.start("join", address), Run(tmp_path / "first", *two, *machines)
    together = run.result()
    assert other.wait(60) == 0, (second.folder / "join.log").read_text()
    assert "Training goes on from step" in run.log.read_text()

    one = ("--training.batch_size", "7", "--training.gradient_accumulation_steps", "2")
    alone = Run(tmp_path / "alone", *one).result()
    assert together["adapter_sha256"] == alone["adapter_sha256"]
    assert together["tuned"] == alone["tuned"]
