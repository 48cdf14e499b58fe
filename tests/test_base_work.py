"""The folder of a run, and what names it."""

import ast
from pathlib import Path

import pytest

from tasks.base.machine import ONLY_SHOWING, code_key
from tasks.base.work import RunFolder, work_folder
from tasks.settings.loading import validated
from tests.conftest import ROOT


@pytest.fixture
def program(tmp_path: Path) -> Path:
    for name in ("__init__", "data", "plots", "training/fit", "evaluation/plots", "servers/up"):
        file = tmp_path / f"program/{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "program"


def key(program: Path) -> str:
    return code_key.__wrapped__(program)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("data", True),
        ("training/fit", True),
        ("training/new", True),
        ("plots", False),
        ("evaluation/plots", False),
        ("servers/up", False),
        ("servers/new", False),
    ],
)
def test_key_of_the_program_is_about_what_computes(name: str, counts: bool, program: Path) -> None:
    before = key(program)
    assert key(program) == before
    (program / f"{name}.py").write_text("changed")
    assert (key(program) != before) is counts


def test_moved_code_is_another_program(program: Path) -> None:
    before = key(program)
    (program / "training/fit.py").rename(program / "fit.py")
    assert key(program) != before


def test_nothing_that_computes_uses_what_only_shows() -> None:
    found = 0
    for file in ROOT.glob("tasks/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith("tasks"):
                continue
            names = {*str(node.module).split("."), *(alias.name for alias in node.names)}
            if names & ONLY_SHOWING:
                found += 1
                # they call the drawing and the wording when all has been computed
                callers = {"comparison", "recording", "learning_curve", "runner", "sweep", "sweep_result", "examine"}
                assert file.stem in ONLY_SHOWING | callers or "servers" in file.parts, file.name
    assert found > 3


def test_a_run_folder_is_found_from_what_lies_in_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert RunFolder.around(str(run.adapter)).comparison_record == tmp_path / "run/comparison/comparison.json"
    assert run.lock == tmp_path / "run.lock"
    assert all(path.parent == tmp_path / "run" for path in run.progress)


def test_run_of_another_number_of_processes_is_another(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)

    def folder(processes: object, gpus: str) -> str:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        return work_folder(validated({"training": {"processes": processes}}))

    assert folder("auto", "") == folder(1, "") != folder(2, "")
    assert folder("auto", "0,1") == folder(2, "0,1")


def test_run_on_several_machines_is_the_same_run(workplace: Path) -> None:
    two = {"processes": "2", "batch_size": 14}
    where = {"machines": 2, "rendezvous": "10.0.0.1:29400"}
    assert work_folder(validated({"training": two})) == work_folder(validated({"training": two | where}))
