"""The saved view that the run list is opened with, apart from a browser (test_browser.py opens it)."""

import base64
import json
import zlib
from typing import Any

from tasks.settings.loading import validated
from tasks.tracking import runlist
from tasks.tracking.run import NOT_COMPARED, flatten


def unpacked(tag: str) -> dict[str, Any]:
    """The page's state, as MLflow's page reads it."""
    state = json.loads(tag)["state"]
    assert state.startswith("deflate;")
    return dict(json.loads(zlib.decompress(base64.b64decode(state.removeprefix("deflate;")))))


def test_tag_holds_the_columns_in_order() -> None:
    state = unpacked(runlist.saved_view())
    assert state["selectedColumns"][:2] == ["tags.`verdict`", "metrics.`tuned/accuracy`"]
    assert len(state["selectedColumns"]) == len(runlist.COLUMNS)
    placed = [name for name in state["columnOrder"] if name in state["selectedColumns"]]
    assert placed == state["selectedColumns"]
    assert set(state["selectedColumns"]) < set(state["columnWidths"]) < set(state["columnOrder"])


def test_each_task_has_a_column_and_charts_of_its_own_score() -> None:
    state = unpacked(runlist.saved_view())
    drawn = {chart.get("metricKey") or chart["selectedMetrics"][0] for chart in state["compareRunCharts"]}
    for name in ("accuracy", "micro_f1", "mae"):
        assert {f"metrics.`{group}/{name}`" for group in ("tuned", "reference/tfidf", "reference/probe")} <= set(
            state["selectedColumns"]
        )
        assert {f"{group}/{name}" for group in ("tuned", "delta", "validation")} <= drawn
    assert state["hideEmptyCharts"], "runs without a task have no empty charts of it"


def test_tags_fit_what_mlflow_stores() -> None:
    tags = runlist.experiment_tags("1" * 18)
    assert all(len(value) < 5000 for value in tags.values())
    assert runlist.address("1" * 18) in tags["mlflow.note.content"]


def test_parameters_of_the_view_are_parameters_of_every_run() -> None:
    logged = flatten(validated({}).model_dump(mode="json", exclude=NOT_COMPARED))
    named = {name for kind, name in runlist.COLUMNS if kind == "params"}
    assert named | set(runlist.SETTINGS) <= logged.keys()
