"""What the repository promises about itself."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import distributions, requires
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from flows.commands import COMMANDS
from tasks.settings.config import MonitorConfig, PredictionConfig, RetrainConfig, SweepConfig
from tasks.settings.loading import field_names
from tests.conftest import EACH_ALONE, LONGEST_ENDURANCE_FIRST, LONGEST_FIRST, ONE_STACK, ROOT, quarters, together

HEAVY = ("torch", "transformers", "peft", "datasets", "evaluate", "mlflow", "pandas", "sklearn", "matplotlib")
SOURCES = sorted([*ROOT.glob("flows/*.py"), *ROOT.glob("tasks/**/*.py")])


def test_there_are_sources_to_check() -> None:
    assert len(SOURCES) > 10


@pytest.mark.parametrize("module", ["flows.finetune", "flows.cli"])
def test_start_up_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_one_function_makes_the_mlflow_client() -> None:
    assert sum(file.read_text(encoding="utf-8").count(" MlflowClient(") for file in SOURCES) == 1


def test_code_that_is_handed_to_another_process_imports_what_is_there() -> None:
    """It stands in strings, where no linter looks."""
    asked = set()
    for file in (*SOURCES, *ROOT.glob("tests/*.py"), *ROOT.glob("benchmarks/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = re.findall(r"^from ((?:tasks|flows)[\w.]*) import ([\w, ]+)", node.value, re.MULTILINE)
                asked |= {(module, name.split()[0]) for module, names in found for name in names.split(",")}
    assert len(asked) > 10
    for module, name in asked:
        assert hasattr(import_module(module), name) or find_spec(f"{module}.{name}"), f"{module} has no {name}"


def test_files_that_are_begun_first_are_there() -> None:
    named = (*LONGEST_FIRST, *LONGEST_ENDURANCE_FIRST)
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []


def test_each_group_of_tests_runs_in_one_quarter_and_quarters_are_of_one_length() -> None:
    groups = [f"test_{number}.py" for number in range(21)]  # each a little longer than the next
    parts = quarters([*groups, *groups])
    assert sorted(group for part in parts for group in part) == sorted(groups)
    lengths = [sum(len(groups) - groups.index(group) for group in part) for part in parts]
    assert max(lengths) - min(lengths) <= 3


def test_tests_of_a_file_and_those_of_one_stack_stay_together() -> None:
    assert together("tests/test_cli.py::test_a[x::y]") == together("tests/test_cli.py::test_b") == "test_cli.py"
    assert len({together(f"tests/{file}::test_a") for file in ONE_STACK}) == 1
    assert together(f"tests/{EACH_ALONE}::test_a") != together(f"tests/{EACH_ALONE}::test_b")


def test_package_files_hold_nothing_but_what_a_wing_is_for() -> None:
    assert (ROOT / "flows/__init__.py").read_text() == ""
    assert (ROOT / "tasks/__init__.py").read_text() == ""
    for file in ROOT.glob("tasks/*/__init__.py"):
        (statement,) = ast.parse(file.read_text()).body
        assert isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant), file


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
        module, _, function = deployment["entrypoint"].rpartition(".")
        file = ROOT / f"{module.replace('.', '/')}.py"
        names = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert function in names
        runs_trials = deployment["name"] in ("sweep-runner", "predict-shard")
        assert deployment["work_pool"]["name"] == ("peft-flow-trials" if runs_trials else "peft-flow")


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_documentation_names_every_make_target_configuration_flow_and_wing() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    for target in targets[1].split():
        assert f"make {target}" in text
    wings = [file.parent for file in ROOT.glob("tasks/*/__init__.py")]
    flows = [file for file in ROOT.glob("flows/*.py") if file.name != "__init__.py"]
    for path in (*ROOT.glob("configs/*.yaml"), *flows, *wings):
        assert f"`{path.relative_to(ROOT)}`" in text, path


def test_readme_is_read_in_five_minutes() -> None:
    lines = PAGES[0].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 170
    assert max(map(len, lines)) <= 120
    assert "    make test " in "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, _, heading in re.findall(r"\]\(([^)#:]*)(#([^)]*))?\)", text):
        aim = page.parent / target if target else page
        assert aim.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", aim.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, heading


def test_documentation_writes_only_commands_and_options_that_there_are() -> None:
    flat = (*PredictionConfig.model_fields, *MonitorConfig.model_fields)
    options = {f"--{name}" for name in (*field_names(RetrainConfig), *field_names(SweepConfig), *flat)}
    options |= {argument.name for command in COMMANDS for argument in command.arguments}
    names = {command.name for command in COMMANDS} | {"COMMAND"}
    found = [
        command
        for page in PAGES
        for command in re.findall(
            r"(?:^    |`)(?:\.venv/bin/)?peft-flow ([a-zA-Z].*?)(?:`|$)", page.read_text(), re.MULTILINE
        )
    ]
    assert len(found) > 30
    for command in found:
        words = command.split("#")[0].split()
        assert words[0] in names, command
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in {*options, "--help", "--SECTION.FIELD", "--FIELD"}, command


def marks_of_tests() -> dict[str, tuple[bool, bool]]:
    """Whether each test, or some of its cases, runs in `make test`, and in `make endurance`."""
    found = {}
    for file in ROOT.glob("tests/**/test_*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        everywhere = "".join(
            ast.unparse(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        )
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                own = [ast.unparse(one) for one in node.decorator_list]
                always = "mark.endurance" in everywhere or "pytest.mark.endurance" in own
                found[node.name] = (not always, always or "endurance" in "".join(own) or "rarely" in "".join(own))
    return found


def test_every_test_named_in_the_documentation_runs_where_it_says() -> None:
    marks = marks_of_tests()
    rows = re.findall(r"^\|[^|]+\|(.*`test_.*)\|(.*)\|$", (ROOT / "docs/testing.md").read_text(), re.MULTILINE)
    assert len(rows) > 40
    for column, cells in enumerate(zip(*rows, strict=True)):
        for name in re.findall(r"`(test_\w+)`", " ".join(cells)):
            assert marks.get(name, (False, False))[column], name


def test_ci_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert "make test" in script
    assert (ROOT / ".ci/run").stat().st_mode & 0o100


def test_version_is_stated_once_and_in_the_changelog() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("there", "asked", "says"),
    [
        ((), ["pip uv", "uv torch==9.8.7", "pip -e"], "built for CPUs, about 190 MB"),
        (("uv fails",), ["pip uv", "uv torch==9.8.7", "pip -e"], "no build for CPUs is in reach"),
        (("pip has no uv",), ["pip uv", "pip -e"], "no build for CPUs is in reach"),
        (("a card",), ["pip -e"], "setting up .venv"),
        (("torch",), ["pip -e"], "setting up .venv"),
        (("older torch",), ["pip uv", "uv torch==9.8.7", "pip -e"], "built for CPUs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_set_up_takes_torch_for_cpus_where_there_is_no_card(
    there: tuple[str, ...], asked: list[str], says: str, tmp_path: Path
) -> None:
    """`make` with stand-ins for pip and uv, which write down what they are asked for."""
    if "a card" not in there and (shutil.which("nvidia-smi") or Path("/dev/nvidiactl").exists()):
        pytest.skip("there is a card here")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "constraints.txt").write_text("torch==9.8.7\nuv==1\n")
    site = tmp_path / ".venv/lib/python3.11/site-packages"
    for version in ("9.8.7+cpu",) * ("torch" in there) + ("9.8.6+cpu",) * ("older torch" in there):
        (site / f"torch-{version}.dist-info").mkdir(parents=True)
    programs = {
        ".venv/bin/pip": 'case "$*" in *--version*) exit;; *dev*) echo "pip -e" >>asked;; *) echo "pip uv" >>asked; '
        f"exit {int('pip has no uv' in there)};; esac",
        ".venv/bin/uv": f'for last; do :; done; echo "uv $last" >>asked; exit {2 * ("uv fails" in there)}',
        **({"bin/nvidia-smi": ""} if "a card" in there else {}),
        "bin/uname": "echo Linux",
    }
    for name, lines in programs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["make", ".venv/.ready"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert (tmp_path / "asked").read_text().splitlines() == asked
    assert says in done.stdout
