"""The run list as people should find it in MLflow: the columns and charts that runs are compared by.

MLflow keeps columns in each browser. What it keeps for everybody is a saved view (menu "Views", or its own address): an
experiment tag, which is written here in the shape that the page of MLflow 3.17 itself gives it.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

from tasks.scores.objective import first_metrics

VIEW, TITLE = "peft-flow", "Comparison"
"""The view's id in addresses, and its name in the menu."""

KIND = "workflowType=machine_learning"
"""Without it in an address MLflow shows its menu for LLM applications, which leads to empty pages."""

FIRST = tuple(first_metrics())
"""The metric that decides, of each task: a page of runs without one leaves out its columns and charts."""

COLUMNS = (
    ("tags", "verdict"),
    *(("metrics", f"tuned/{name}") for name in FIRST),
    ("metrics", "reference/strongest/gain"),
    ("metrics", "reference/strongest/gain_p_value"),
    *(("metrics", f"reference/{rival}/{name}") for rival in ("tfidf", "probe") for name in FIRST),
    ("metrics", "tuned/log_loss"),
    ("metrics", "calibration/error_after"),
    ("params", "model.name"),
    ("params", "data.name"),
    ("params", "adapter.method"),
    ("params", "adapter.r"),
    ("params", "training.learning_rate"),
    ("params", "seed"),
    ("metrics", "cost/train_seconds"),
)
"""From left to right, after the run's name and time."""

WIDE = {"verdict": 240, "reference/strongest/gain_p_value": 160, "model.name": 160, "data.name": 160}
"""Pixels. A p-value needs room for all its digits: where 1.2e-61 does not fit, the page cuts off the exponent."""

SETTINGS = ("training.learning_rate", "adapter.r", "seed")
"""Where the lines of the parallel coordinates start; they end at the adapter's score."""

CHARTS = (
    *(("BAR", f"tuned/{name}") for name in FIRST),
    ("BAR", "reference/strongest/gain"),
    *(("BAR", f"delta/{name}") for name in FIRST),
    *(("LINE", f"validation/{name}") for name in FIRST),
    ("BAR", "tuned/log_loss"),
    ("BAR", "calibration/error_after"),
)

RUN_NAME = "attributes.`Run Name`"


def run_address(experiment_id: str, run_id: str) -> str:
    """The run's page, after the address of the server."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{KIND}"


def address(experiment_id: str) -> str:
    """The run list in the view, after the address of the server."""
    return f"#/experiments/{experiment_id}/runs?{KIND}&viewStateShareKey={VIEW}"


def experiment_tags(experiment_id: str) -> dict[str, str]:
    """The saved view, and the experiment's description, which leads to it."""
    note = (
        f"[Columns and charts to compare runs by]({address(experiment_id)}), also in the menu Views: {TITLE}\n\n"
        "All scores are of the test rows. `tuned/` is the adapter, `baseline/` the foundation model with an untrained "
        "head, `delta/` the first minus the second; `reference/` are other classifiers, and their `gain` is the "
        "adapter minus the reference; `reference/strongest/` is the one that the verdict is about."
    )
    return {f"mlflow.sharedViewState.{VIEW}": saved_view(), "mlflow.note.content": note}


def saved_view() -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(page_state()).encode())).decode()
    return json.dumps({"name": TITLE, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"})


def page_state() -> dict[str, Any]:
    columns = [f"{kind}.`{name}`" for kind, name in COLUMNS]
    widths = [max(WIDE.get(name, 105), 6 * len(name) + 26) for _, name in COLUMNS]
    return {
        "selectedColumns": columns,
        # only columns named here keep their place and width
        "columnOrder": [RUN_NAME, "runDateAndNestInfo", *columns, "duration"],
        "columnWidths": {RUN_NAME: 460, **dict(zip(columns, widths, strict=True))},
        "compareRunSections": [{"uuid": VIEW, "name": TITLE, "display": True, "isReordered": True}],
        "compareRunCharts": [
            *(lines(name) for name in FIRST),
            *(chart(kind, metric, metricKey=metric) for kind, metric in CHARTS),
        ],
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
    }


def lines(name: str) -> dict[str, Any]:
    """The parallel coordinates that end at this metric."""
    more = {"selectedParams": SETTINGS, "selectedMetrics": [f"tuned/{name}"], "showAllRuns": True}
    return chart("PARALLEL", f"settings {name}", **more)


def chart(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    identity = {"type": kind, "uuid": f"{VIEW} {name}", "metricSectionId": VIEW}
    return {**identity, "runsCountToCompare": 10, "xAxisKey": "step", "lineSmoothness": 0, **settings}


TABLES_TAG = "mlflow.loggedArtifacts"
"""Where MLflow looks for tables that it can show for several runs at once."""


def tables_tag(names: Sequence[str]) -> str:
    return json.dumps([{"path": f"comparison/{name}.json", "type": "table"} for name in names])
