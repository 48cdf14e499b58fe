import asyncio
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT


def test_pull_step_of_the_deployments_leads_to_the_folder_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.deployments.steps.core import run_steps

    steps = yaml.safe_load((ROOT / "prefect.yaml").read_text())["pull"]
    workers, empty = tmp_path / "worker", tmp_path / "empty"
    workers.mkdir()
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("PWD", str(workers))
    assert asyncio.run(run_steps(steps))["directory"] == str(workers)


def test_deployment_does_not_name_a_folder_of_the_machine_that_made_it() -> None:
    said = (ROOT / "prefect.yaml").read_text()
    entries = yaml.safe_load(said)["deployments"]
    assert "$" not in said and {"/" in entry["entrypoint"] for entry in entries} == {False}
