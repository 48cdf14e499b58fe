"""A model in use: recent rows and answers beside those that it was made with; what has drifted is announced."""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect import flow, runtime
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.parameters import parameters_of
from tasks.monitoring.examine import examine
from tasks.monitoring.report import record_monitoring
from tasks.monitoring.watched import find_watched, monitor_folder
from tasks.settings.config import MonitorConfig
from tasks.settings.loading import checked
from tasks.tracking.address import where_to_find
from tasks.tracking.flow import first_sign_of_life, flow_tags, link_to_mlflow, live
from tasks.tracking.run import send_all, tracked_run


@first_sign_of_life
def flow_run_name() -> str:
    return checked(MonitorConfig, runtime.flow_run.parameters).run_name()


@flow(name="monitor", flow_run_name=flow_run_name, validate_parameters=True)
@parameters_of(MonitorConfig)
def monitor(**given: Any) -> Any:  # a MonitorResult, in a state that says what was found
    """Compare what a registered model is asked and answers now with its training and test rows."""
    config = MonitorConfig(**given)
    live()
    with TemporaryDirectory(prefix="peft-flow-") as folder:
        watched = find_watched(config, Path(folder))
        work = monitor_folder(config, watched)
        with tracked_run(config, work, flow_tags()):
            link_to_mlflow(work)
            result = examine(config, watched, str(send_all(work).run_id), work)
            record_monitoring(work, result, watched.run_id)
    logger = get_run_logger()
    logger.info("%s version %s: %s", result.name, result.version, result.verdict)
    logger.info("Recorded: %s", where_to_find(result.run_id))
    return Completed(name="Drift" if result.drifted else "Completed", message=result.verdict, data=result)
