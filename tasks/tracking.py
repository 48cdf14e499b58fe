"""The one file that knows MLflow: open a run, draw its curves, fill it, log and register the model."""

import importlib.metadata
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tasks.config import SPLITS, InputError, RunConfig
from tasks.environment import describe_environment
from tasks.hub import is_network_trouble
from tasks.records import Comparison, Evaluation, Point, PreparedData, Record, TrainedAdapter

if TYPE_CHECKING:
    import pandas as pd

STORE = Path("mlruns")
UI = "http://127.0.0.1:5000"
"""Where `mlflow ui` shows a local store."""

FLOW_RUN_TAG = "prefect.flow_run_id"

NOT_COMPARED: Any = {
    "tracking": True,
    "offline": True,
    "model": {"trust_remote_code", "revision"},
    "data": {"revision"},
    "adapter": {"target_modules"},
}
"""Configuration that is recorded in config.yaml but is no parameter: nobody compares it, or what the run made of it
(`found_parameters`) says more, and MLflow never lets go of a value once logged."""


def tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE.resolve()}/mlflow.db"


def store_is_ours() -> bool:
    """Whether runs go into a file here; a server decides itself where artifacts lie."""
    return tracking_uri().startswith("sqlite:")


def public_uri() -> str:
    """The tracking address without user and password, to be shown and stored."""
    return re.sub(r"//[^/@]*@", "//", tracking_uri())


def run_url(run_id: str) -> str:
    """Address of the run in the MLflow UI: the server's, or where the UI of a local store opens."""
    from mlflow import MlflowClient

    experiment = MlflowClient(tracking_uri()).get_run(run_id).info.experiment_id
    server = public_uri() if tracking_uri().startswith("http") else UI
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


@contextmanager
def tracked_run(config: RunConfig, tags: Mapping[str, str]) -> Iterator[str]:
    """The id of the flow run's MLflow run, which ends as the block does; a retried flow run goes on in the same one.

    FINISHED; FAILED on an exception; KILLED when the process is told to stop (SIGTERM, Ctrl-C, a cancelled flow).
    """
    import mlflow

    open_experiment(config.tracking.experiment)
    earlier = earlier_run(tags.get(FLOW_RUN_TAG))
    run = mlflow.start_run(earlier, run_name=config.run_name(), tags={**config.tracking.tags, **tags})
    try:
        log_configuration(config)
        yield run.info.run_id
    except BaseException as error:
        mlflow.end_run("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    mlflow.end_run("FINISHED")


def earlier_run(flow_run_id: str | None) -> str | None:
    """The MLflow run that this flow run opened before it was retried."""
    import mlflow

    if not flow_run_id:
        return None
    found = mlflow.search_runs(
        filter_string=f"tags.`{FLOW_RUN_TAG}` = '{flow_run_id}'", output_format="list", max_results=1
    )
    return str(found[0].info.run_id) if found else None


def log_configuration(config: RunConfig) -> None:
    """What the active run was told, at its start, so that a run that fails shows it too."""
    import mlflow

    mlflow.log_params(flatten(config.model_dump(mode="json", exclude=NOT_COMPARED)))
    mlflow.log_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), "config.yaml")
    mlflow.log_text(describe_environment(), "environment.txt")


def open_experiment(name: str) -> None:
    """Make `name` the experiment of this process, creating store and experiment when they are new."""
    import mlflow
    from filelock import FileLock
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri())
    try:
        STORE.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{STORE.resolve()} cannot be made: {error.strerror}; run in a folder you can write to"
        ) from None
    # two first runs at once would both create the database
    with FileLock(STORE / ".mlflow.lock"), few_retries():
        try:
            if store_is_ours() and mlflow.get_experiment_by_name(name) is None:
                mlflow.create_experiment(name, artifact_location=(STORE / "artifacts").resolve().as_uri())
            mlflow.set_experiment(name)
        except MlflowException as error:
            if "deleted" in str(error):
                raise InputError(
                    f"tracking.experiment: '{name}' was deleted in MLflow; restore it or choose another name"
                ) from None
            if not store_is_ours() and is_network_trouble(error):
                raise InputError(
                    f"MLFLOW_TRACKING_URI: {public_uri()} does not answer; start it or unset it"
                ) from error
            raise


@contextmanager
def few_retries() -> Iterator[None]:
    """At the start, a wrong address must be told from a busy server within seconds, not minutes."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(name)
    os.environ[name] = before or "2"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def log_curve(run_id: str, *points: Point) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    metrics = [Metric(name, value, now, point.step) for point in points for name, value in point.metrics.items()]
    MlflowClient(tracking_uri()).log_batch(run_id, metrics=metrics)


class Logged(Record):
    """What the MLflow run now holds."""

    model_uri: str
    version: str | None
    """Version in the model registry, when tracking.registered_model asks for one."""


def log_everything(
    run_id: str,
    config: RunConfig,
    data: PreparedData,
    evaluations: tuple[Evaluation, Evaluation],
    trained: TrainedAdapter,
    result: Comparison,
    table: "pd.DataFrame",
    headline: str,
) -> Logged:
    """Complete the active run `run_id`: model first, so that the metrics can be tied to it; the verdict last."""
    import mlflow

    model = log_model(config, data, trained, table)
    mlflow.log_params(found_parameters(data, trained))
    mlflow.log_metrics(final_metrics(evaluations, trained, result), run_id=run_id, model_id=model.model_id)
    for split in SPLITS:
        mlflow.log_input(dataset_input(config, data, split), context=split)
    for evaluation in evaluations:
        mlflow.log_artifact(evaluation.predictions, "comparison")
    mlflow.log_artifacts(trained.folder, "adapter")
    mlflow.log_artifacts(result.folder, "comparison")
    mlflow.log_artifacts(str(Path(result.folder).parent / "plots"), "plots")
    mlflow.log_table(table, "comparison/predictions.json")
    mlflow.set_tags(
        {
            "data_fingerprint": data.fingerprint,
            "adapter_sha256": trained.sha256,
            "mlflow.note.content": headline,
            "verdict": result.verdict,
        }
    )
    version = model.registered_model_version
    return Logged(model_uri=model.model_uri, version=str(version) if version else None)


def found_parameters(data: PreparedData, trained: TrainedAdapter) -> dict[str, Any]:
    """What the run found out: exact revisions, the layers adapted, and the size of what was trained."""
    return {
        "model.revision": data.model.revision,
        "data.revision": data.source.revision,
        "adapter.target_modules": ",".join(trained.target_modules),
        "trainable_parameters": trained.trainable_parameters,
        "total_parameters": trained.total_parameters,
    }


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = ",".join(map(str, value)) if isinstance(value, list) else value
    return flat


def final_metrics(
    evaluations: tuple[Evaluation, Evaluation], trained: TrainedAdapter, result: Comparison
) -> dict[str, float]:
    """The same keys in every run, so that the compare page lines them up."""
    named = {"baseline": result.baseline, "tuned": result.tuned}
    named |= {f"reference/{name}": scores for name, scores in result.references.items()}
    metrics = {f"{name}/{key}": value for name, scores in named.items() for key, value in scores.model_dump().items()}
    for name in ("accuracy", "macro_f1", "log_loss"):
        interval = getattr(result, name)
        metrics |= {f"delta/{name}": interval.value}
        metrics |= {f"delta/{name}_low": interval.low, f"delta/{name}_high": interval.high}
    metrics |= {"delta/p_value": result.p_value, "delta/fixed": result.fixed, "delta/broken": result.broken}
    baseline, tuned = evaluations
    adapter_bytes = sum(file.stat().st_size for file in Path(trained.folder).rglob("*.safetensors"))
    return metrics | {
        "cost/baseline_seconds": baseline.seconds,
        "cost/train_seconds": trained.seconds,
        "cost/tuned_seconds": tuned.seconds,
        "cost/train_examples_per_second": trained.examples_per_second,
        "cost/peak_memory_mb": trained.peak_memory_mb,
        "cost/adapter_mb": adapter_bytes / 2**20,
        "train/steps": trained.steps,
        "train/best_step": trained.best_step,
    }


def dataset_input(config: RunConfig, data: PreparedData, split: str) -> Any:
    """One split as an MLflow data set, with our fingerprint as its digest; MLflow tells splits apart by name."""
    import mlflow
    from datasets import load_from_disk

    rows = load_from_disk(data.folder)[split].select_columns([*data.text_columns, "labels"])
    source, revision = data.source.name, data.source.revision
    where = {"source": source} if data.source.is_local else {"path": source, "revision": revision}
    name = f"{Path(config.data.name).name[:200]} {split}"
    return mlflow.data.from_huggingface(rows, name=name, targets="labels", digest=data.fingerprint[:32], **where)


def log_model(config: RunConfig, data: PreparedData, trained: TrainedAdapter, table: "pd.DataFrame") -> Any:
    """The adapter as a pyfunc model that returns label and probabilities; the foundation model is not copied.

    Not `mlflow.transformers.log_model`: with an adapter it reloads layers and head randomly initialised.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    from tasks import serving

    answers = ["probability", *(f"probability_{name}" for name in data.label_names)]
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string, name) for name in data.text_columns]),
        outputs=Schema([ColSpec(DataType.string, "label"), *(ColSpec(DataType.double, name) for name in answers)]),
    )
    return mlflow.pyfunc.log_model(
        name="model",
        python_model=serving.__file__,
        artifacts={"adapter": trained.folder},
        model_config={"base_model": data.model.name},
        signature=signature,
        input_example=table[list(data.text_columns)].head(2),
        pip_requirements=[f"{name}=={public_version(name)}" for name in SERVING_PACKAGES],
        registered_model_name=config.tracking.registered_model,
    )


SERVING_PACKAGES = ("mlflow", "torch", "transformers", "peft", "safetensors", "pandas", "numpy")


def public_version(package: str) -> str:
    """Without the local part: `2.13.0+cpu` can be installed from nowhere else."""
    return importlib.metadata.version(package).split("+")[0]
