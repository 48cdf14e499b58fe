"""The result of a monitoring where people look and automations listen: MLflow, Prefect, an event."""

from prefect import task

from tasks.base.events import announce_drift
from tasks.base.outcomes import MonitorResult
from tasks.base.work import RunFolder
from tasks.monitoring.page import PAGE, description, metric_of
from tasks.sources.hub import NETWORK
from tasks.tracking.address import experiment_url, run_url
from tasks.tracking.run import describe, log, log_files, send_all

MODEL_TAG, RUN_TAG = "peft_flow.monitored", "peft_flow.monitored_run"
"""Of the monitoring's run: NAME/3, and the run that trained it."""


@task(
    name="record",
    task_run_name="record",
    **NETWORK,
)
def record_monitoring(work: str, result: MonitorResult, trained_by: str) -> None:
    """Page, pictures and figures in MLflow, the page in Prefect; where there is drift, its event."""
    from prefect.artifacts import create_markdown_artifact

    folder = RunFolder(work)
    log_files(work, "monitoring", folder.staged)
    log_files(work, "plots", folder.plots)
    log(work, "metrics", monitor_metrics(result))
    version = f"{result.name}/{result.version}"
    log(work, "tags", {"verdict": result.verdict, MODEL_TAG: version, RUN_TAG: trained_by})
    describe(work, description(result))
    send_all(work)
    link = run_url(result.run_id)
    page = (folder.staged / PAGE).read_text(encoding="utf-8")
    links = f"[MLflow run {result.run_id}]({link}), [all runs of its experiment]({experiment_url(result.run_id)})"
    create_markdown_artifact(f"{page}\n{links}\n", key="monitoring", description=result.verdict)
    if result.drifted:
        facts = {
            "version": result.version,
            "run_id": result.run_id,
            "url": link,
            "drifted": ", ".join(result.drifted),
            "rows": str(result.examined),
            **{test.name: "drift" if test.found else "no drift" for test in result.tests},
        }
        announce_drift(result.name, facts, {test.name: test.adjusted_p_value for test in result.tests})


def monitor_metrics(result: MonitorResult) -> dict[str, float]:
    """By the names that runs of all monitorings share, so that MLflow draws them over time."""
    metrics: dict[str, float] = {
        "drift/found": len(result.drifted),
        "recent/rows": result.rows,
        "recent/examined": result.examined,
        "recent/copies": result.copies,
        "recent/labelled": result.labelled,
    }
    for test in result.tests:
        metrics |= {f"drift/{test.name}_p_value": test.adjusted_p_value, f"drift/{test.name}_distance": test.distance}
        if test.detectable is not None:
            metrics[f"drift/{test.name}_detectable"] = test.detectable
    for group, score in (("recent", result.score), ("test", result.test_score)):
        if score:
            ends = {"": score.value, "_low": score.low, "_high": score.high}
            metrics |= {f"{group}/{metric_of(result).name}{end}": number for end, number in ends.items()}
    return metrics
