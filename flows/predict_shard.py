"""A process that labels some of the rows of a prediction, where the work pool has a worker."""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

from typing import Any

from prefect import flow, runtime

from tasks.inference.shard import Shard, label_shard
from tasks.tracking.flow import first_sign_of_life, live


@first_sign_of_life
def flow_run_name() -> str:
    shard = Shard.model_validate(runtime.flow_run.parameters["shard"])
    return f"{shard.config.run_name()} · {shard}"


@flow(name="predict-shard", flow_run_name=flow_run_name, validate_parameters=True)
def predict_shard(shard: dict[str, Any]) -> None:
    """Label some of the rows of a prediction. Predictions in shards start this themselves.

    Args:
        shard: What the prediction tells it.
    """
    live()
    label_shard(Shard.model_validate(shard))
