"""What the repository promises about itself."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.conftest import ROOT

HEAVY = ("torch", "transformers", "peft", "datasets", "evaluate", "mlflow", "pandas", "sklearn", "matplotlib")
SOURCES = sorted([*ROOT.glob("flows/*.py"), *ROOT.glob("tasks/*.py")])


def imported(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_there_are_sources_to_check() -> None:
    assert len(SOURCES) > 10


@pytest.mark.parametrize("module", ["flows.finetune", "flows.cli"])
def test_start_up_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_tasks_never_import_flows() -> None:
    for file in SOURCES:
        if file.parent.name == "tasks":
            assert not any(name.split(".")[0] == "flows" for name in imported(file)), file.name


def test_mlflow_is_spoken_to_in_one_place() -> None:
    speakers = {file.name for file in SOURCES if any(n.split(".")[0] == "mlflow" for n in imported(file))}
    # serving.py is the file that MLflow itself executes inside a logged model, artifacts.py its plugin
    assert speakers == {"tracking.py", "serving.py", "artifacts.py"}


def test_one_function_makes_the_mlflow_client() -> None:
    assert sum(file.read_text(encoding="utf-8").count(" MlflowClient(") for file in SOURCES) == 1


def test_package_files_are_empty() -> None:
    assert (ROOT / "flows/__init__.py").read_text() == ""
    assert (ROOT / "tasks/__init__.py").read_text() == ""


def test_every_package_installed_for_us_is_pinned() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    names = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned.items()}
    installed = {re.sub(r"[-_.]+", "-", d.name).lower(): d.version for d in distributions() if d.name}
    pending, seen = ["peft-flow"], set()
    while pending:
        name = pending.pop()
        if name in seen or name not in installed:
            continue
        seen.add(name)
        for text in requires(name) or []:
            requirement = Requirement(text)
            extra = "dev" if name == "peft-flow" else ""
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                pending.append(re.sub(r"[-_.]+", "-", requirement.name).lower())
    missing = sorted(seen - names.keys() - {"peft-flow"})
    assert len(seen) > 100
    assert not missing
    assert names["prefect"] == "3.9.1"
    assert names["mlflow"] == "3.17.2"
    assert names["torch"] == "2.13.0"


def test_no_index_address_is_named_anywhere() -> None:
    files = [ROOT / name for name in ("constraints.txt", "pyproject.toml", "Makefile", ".ci/run")]
    assert all(file.exists() for file in files)
    for file in files:
        assert not re.search(r"--(extra-)?index-url|--find-links|https?://\S*(pypi|simple|wheel)", file.read_text())


def test_deployments_name_real_flows() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert deployments
    for deployment in deployments:
        file, function = deployment["entrypoint"].split(":")
        names = [node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
        assert function in names
        assert deployment["work_pool"]["name"] == "peft-flow"


def test_readme_names_every_make_target_command_and_config() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    for target in targets[1].split():
        assert f"make {target}" in readme
    for file in (*ROOT.glob("configs/*.yaml"), *SOURCES, *ROOT.glob("tests/test_*.py")):
        if file.name != "__init__.py" and file.parent.name != "tests":
            assert file.name in readme, file.name


def test_ci_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert "make test" in script
    assert (ROOT / ".ci/run").stat().st_mode & 0o100


def test_version_is_stated_once_and_in_the_changelog() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
