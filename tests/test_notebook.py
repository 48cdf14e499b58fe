"""The notebook of the reference story: its calls fit the product, it runs from its first cell to its last."""

import ast
import inspect
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "notebooks/rotten_tomatoes.ipynb"


@pytest.fixture
def cells() -> list[Any]:
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


def test_calls_of_the_notebook_fit_the_product(cells: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "notebooks")
    names: dict[str, Any] = {}
    exec(cells[0].source, names)
    assert Path.cwd() == ROOT
    called = set()
    for call in (node for cell in cells for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)):
        function = names.get(ast.unparse(call.func).removesuffix(".fn"))
        if function and function.__module__.startswith(("flows", "tasks")):
            inspect.signature(function).bind(*call.args, **{word.arg: word for word in call.keywords if word.arg})
            called.add(function.__name__)
    assert {"prepare", "load_foundation", "attach_adapter", "fit_adapter", "measure_adapter", "compare"} <= called


def test_notebook_is_kept_with_what_its_cells_said(cells: list[Any]) -> None:
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert str(ROOT) not in NOTEBOOK.read_text() and "/tmp/" not in NOTEBOOK.read_text()


@pytest.mark.endurance
def test_notebook_runs_to_its_end(foundation: Any, reviews: Path, workplace: Path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    small = {
        "model": {"name": str(foundation("gpt2"))},
        "data": {"name": str(reviews), "max_length": 32},
        "training": {"epochs": 1, "batch_size": 8},
    }
    settings.source += f"\nconfig = validated({small!r})"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(workplace)}}).execute()
    assert len((workplace / "mlruns/labelled.csv").read_text().splitlines()) == 4
