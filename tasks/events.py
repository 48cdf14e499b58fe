"""What happened to a run, as Prefect events: automations can wait for them. docs/automations.md shows two."""

from collections.abc import Mapping

from tasks.progress import warn

STATUSES = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
"""MLflow's word for the end of a run, and the last part of the event's name."""


def announce(status: str, run_id: str, name: str, flow_run_id: str, facts: Mapping[str, str]) -> None:
    """Emit `peft-flow.run.finished`, `.failed` or `.killed` for MLflow run `run_id`.

    `facts` are its payload, for messages, and labels `peft-flow.NAME` of its resource, for triggers to match. The
    resource is `mlflow.run.RUN_ID`, related to the flow run. No trouble with it disturbs the run.
    """
    from prefect.events import emit_event

    related = [{"prefect.resource.id": f"prefect.flow-run.{flow_run_id}", "prefect.resource.role": "flow-run"}]
    try:
        emit_event(
            event=f"peft-flow.run.{STATUSES[status]}",
            resource={
                "prefect.resource.id": f"mlflow.run.{run_id}",
                "prefect.resource.name": name,
                **{f"peft-flow.{fact}": value for fact, value in facts.items()},
            },
            related=related,
            payload={"run_id": run_id, "status": status, **facts},
        )
    except Exception as error:
        warn("automations do not hear of the end of this run: %s", error)
