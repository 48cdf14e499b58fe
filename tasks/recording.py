"""Put the result where people look: the MLflow run, complete, and the Prefect run page."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import runtime, task
from prefect.tasks import exponential_backoff

from tasks.card import model_card
from tasks.comparison import description
from tasks.config import RunConfig
from tasks.evaluation import paired_predictions
from tasks.hub import network_may_recover
from tasks.records import Comparison, Evaluation, PreparedData, TrainedAdapter, write_text
from tasks.tracking import FLOW_RUN_TAG, FLOW_RUN_URL_TAG, Logged, experiment_url, log_everything, run_url

if TYPE_CHECKING:
    import pandas as pd


@task(
    name="record",
    task_run_name="record",
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_condition_fn=network_may_recover,
)
def record(
    run_id: str,
    config: RunConfig,
    data: PreparedData,
    evaluations: Mapping[str, Evaluation],
    trained: TrainedAdapter,
    result: Comparison,
) -> Logged:
    """Everything about the run in MLflow, and the comparison in Prefect."""
    write_text(Path(trained.folder) / "README.md", model_card(config, data, trained, result))
    table = prediction_table(data, evaluations)
    logged = log_everything(run_id, config, data, evaluations, trained, result, table, description(result))
    show_in_prefect(run_id, result)
    return logged


def prediction_table(data: PreparedData, evaluations: Mapping[str, Evaluation]) -> "pd.DataFrame":
    """One line for each test row: its place in the source, texts, label, and what head and adapter said."""
    import pandas as pd
    from datasets import load_from_disk

    test = load_from_disk(data.folder)["test"]
    predictions = paired_predictions({name: evaluations[name].predictions for name in ("baseline", "tuned")})
    columns = {"row": test["row"][:], **{name: test[name][:] for name in data.text_columns}}
    columns["true_label"] = [data.label_names[label] for label in predictions.labels]
    for name, table in predictions.tables.items():
        columns[f"{name}_label"] = [data.label_names[label] for label in table.argmax(1)]
        columns[f"{name}_probability"] = table.max(1).astype(float)
    return pd.DataFrame(columns)


def show_in_prefect(run_id: str, result: Comparison) -> None:
    from prefect.artifacts import create_markdown_artifact

    link = run_url(run_id)
    page = (Path(result.folder) / "comparison.md").read_text(encoding="utf-8")
    links = f"[MLflow run {run_id}]({link}), [all runs of its experiment]({experiment_url(run_id)})"
    create_markdown_artifact(f"{page}\n{links}\n", key="comparison", description=result.verdict)


def link_to_mlflow(run_id: str) -> None:
    """Put the MLflow run's address onto the Prefect run page, while there is much to see live."""
    from prefect.artifacts import create_link_artifact

    create_link_artifact(run_url(run_id), f"MLflow run {run_id}", key="mlflow-run", description="The run in MLflow")


def flow_tags() -> dict[str, str]:
    """Tags that lead from the MLflow run back to the Prefect flow run."""
    flow_run = runtime.flow_run.id
    if not flow_run:
        return {}
    # without a server the run is in Prefect's local database, which `prefect server start` shows at this address
    address = runtime.flow_run.ui_url if os.environ.get("PREFECT_API_URL") else None
    return {
        FLOW_RUN_TAG: flow_run,
        FLOW_RUN_URL_TAG: address or f"http://127.0.0.1:4200/runs/flow-run/{flow_run}",
    }
