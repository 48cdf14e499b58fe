"""The one file that knows MLflow: open a run, draw its curves, fill it, log and register the model."""

import importlib.metadata
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tasks import closing, liveness, runlist
from tasks.artifacts import folder_of
from tasks.config import SPLITS, STORE, InputError, RunConfig
from tasks.environment import describe_environment
from tasks.events import announce
from tasks.hub import is_network_trouble
from tasks.progress import warn
from tasks.records import (
    Comparison,
    DataCheck,
    Difference,
    Evaluation,
    Point,
    PreparedData,
    Record,
    SeedsResult,
    StoredRun,
    TrainedAdapter,
)

if TYPE_CHECKING:
    import pandas as pd

UI = "http://127.0.0.1:5000"
"""Where `peft-flow up` shows a local store."""

FLOW_RUN_TAG, FLOW_RUN_URL_TAG = "prefect.flow_run_id", "prefect.flow_run_url"
NOTE = "mlflow.note.content"
"""Where MLflow keeps a run's description."""

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
    return os.environ.get("MLFLOW_TRACKING_URI") or default_store()


def default_store() -> str:
    return f"sqlite:///{STORE.resolve()}/mlflow.db"


def store_is_ours() -> bool:
    """Whether runs go into a file here; a server decides itself where artifacts lie."""
    return tracking_uri().startswith("sqlite:")


def public_uri() -> str:
    """The tracking address without user and password, to be shown and stored."""
    return re.sub(r"//[^/@]*@", "//", tracking_uri())


def run_url(run_id: str) -> str:
    """Address of the run in the MLflow UI."""
    return f"{ui()}/{runlist.run_address(experiment_of(run_id), run_id)}"


def experiment_url(run_id: str) -> str:
    """Address of the list of all runs of the run's experiment, with the columns that runs are compared by."""
    return f"{ui()}/{runlist.address(experiment_of(run_id))}"


def ui() -> str:
    """Where people open MLflow, without a slash at the end: MLFLOW_UI_URL (behind a proxy), else the server."""
    server = public_uri() if tracking_uri().startswith("http") else UI
    return (os.environ.get("MLFLOW_UI_URL") or server).rstrip("/")


def serve_command() -> list[str]:
    """What to run to see a store in a file; nothing where there is a server."""
    if not store_is_ours():
        return []
    if tracking_uri() == default_store():
        return ["peft-flow", "up"]
    store = tracking_uri()
    return ["mlflow", "server", "--backend-store-uri", store, "--artifacts-destination", str(folder_of(store))]


def experiment_of(run_id: str) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient(tracking_uri()).get_run(run_id).info.experiment_id)


@contextmanager
def tracked_run(config: RunConfig, tags: Mapping[str, str]) -> Iterator[str]:
    """The id of the flow run's MLflow run, which ends as the block does; a retried flow run goes on in the same one.

    FINISHED; FAILED on an exception; KILLED when the process is told to stop (SIGTERM, Ctrl-C, a cancelled flow).
    Whatever of this cannot be said, because the process or the server is gone, the next run says: before it starts,
    it closes the runs that died.
    """
    import mlflow

    open_experiment(config.tracking.experiment)
    flow_run = tags.get(FLOW_RUN_TAG)
    if flow_run:
        liveness.hold(flow_run)
    try:
        close_dead_runs()
    except Exception as error:
        warn("runs that died cannot be closed yet: %s", error)
    earlier = run_of_flow(flow_run) if flow_run else None
    told = dict(tag.split("=", 1) for tag in config.tracking.tags)
    tags = {"mlflow.source.name": "peft-flow", NOTE: link_to_prefect(tags), **told, **tags}
    # inside another run of this thread it becomes that one's child
    run = mlflow.start_run(earlier, run_name=config.run_name(), nested=True, tags=tags)
    status = "FAILED"
    try:
        log_configuration(config)
        yield run.info.run_id
        status = "FINISHED"
    except BaseException as error:
        status = "KILLED" if told_to_stop(error) else "FAILED"
        raise
    finally:
        try:
            mlflow.end_run(status)
            announce_end(run.info.run_id)
        except Exception as error:
            warn("MLflow could not be told that the run has ended; the next run will do so: %s", error)


def link_to_prefect(tags: Mapping[str, str]) -> str:
    """The last line of a run's description: MLflow shows tags as plain text."""
    return f"[Run page in Prefect]({tags[FLOW_RUN_URL_TAG]})" if FLOW_RUN_URL_TAG in tags else ""


def close_dead_runs() -> list[str]:
    """Give every run of this folder whose process is gone its end, in MLflow and Prefect; ids of their flow runs."""
    return closing.close_dead_runs(end_dead_run)


ENDS = {"COMPLETED": "FINISHED", "FAILED": "FAILED", "CRASHED": "KILLED", "CANCELLED": "KILLED"}
"""How a run that could not say so itself ended, by the final state of its flow run."""


def end_dead_run(flow_run_id: str, how: closing.End) -> bool:
    """Whether the flow run's MLflow run showed as running, which it does no longer."""
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(tracking_uri())
    with few_retries():
        run_id = run_of_flow(flow_run_id)
        api = MlflowClient(tracking_uri())
        if run_id is None or api.get_run(run_id).info.status != "RUNNING":  # it died before it had one; it had ended
            return False
        api.set_terminated(run_id, ENDS[how.state], end_time=int(1000 * how.time.timestamp()))
        announce_end(run_id)
        return True


def close_silent_runs() -> None:
    """End in MLflow what has ended in Prefect, for runs that left no note in this folder: they ran elsewhere."""
    from mlflow import MlflowClient

    api, here = MlflowClient(tracking_uri()), {note.flow_run_id for note in liveness.notes()}
    experiments = [experiment.experiment_id for experiment in api.search_experiments()]
    for run in api.search_runs(experiments, "attributes.status = 'RUNNING'"):
        flow_run = run.data.tags.get(FLOW_RUN_TAG)
        if flow_run and flow_run not in here and (how := closing.settled_end(flow_run)):
            end_dead_run(flow_run, how)


def announce_end(run_id: str) -> None:
    from mlflow import MlflowClient

    api = MlflowClient(tracking_uri())
    run = api.get_run(run_id)
    flow_run = run.data.tags.get(FLOW_RUN_TAG)
    if not flow_run:  # not run by Prefect
        return
    facts = {"experiment": api.get_experiment(run.info.experiment_id).name, "url": run_url(run_id)}
    for name in ("tuned/accuracy", "delta/accuracy"):
        if name in run.data.metrics:
            facts[name.replace("/", "_")] = f"{run.data.metrics[name]:.4f}"
    if "verdict" in run.data.tags:
        facts["verdict"] = run.data.tags["verdict"]
    announce(run.info.status, run_id, run.info.run_name, flow_run, facts)


def told_to_stop(error: BaseException) -> bool:
    """Whether a signal or a cancelled flow is at the bottom of it: then Prefect's server may be gone first, and
    what is raised on the way out says only that it does not answer."""
    causes: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in causes:
        causes.append(current)
        current = current.__cause__ or current.__context__
    return any(not isinstance(cause, Exception) for cause in causes)


def run_of_flow(flow_run_id: str) -> str | None:
    """The MLflow run that a flow run has opened, before it was retried or died."""
    import mlflow

    found = mlflow.search_runs(
        filter_string=f"tags.`{FLOW_RUN_TAG}` = '{flow_run_id}'",
        search_all_experiments=True,
        output_format="list",
        max_results=1,
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
    make_store()
    # two first runs at once would both create the database
    with FileLock(STORE / ".mlflow.lock"), few_retries():
        try:
            if store_is_ours() and mlflow.get_experiment_by_name(name) is None:
                mlflow.create_experiment(name, artifact_location="mlflow-artifacts:/")  # see tasks/artifacts.py
            furnish(mlflow.set_experiment(name))
        except MlflowException as error:
            if "deleted" in str(error):
                raise InputError(
                    f"tracking.experiment: '{name}' was deleted in MLflow; restore it or choose another name"
                ) from None
            raise


def make_store() -> None:
    try:
        (STORE / "artifacts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{STORE.resolve()} cannot be made: {error.strerror}; run in a folder you can write to"
        ) from None


def furnish(experiment: Any) -> None:
    """Description and saved view of the experiment's run list, where it has none; what people changed there stays."""
    import mlflow

    for name, value in runlist.experiment_tags(experiment.experiment_id).items():
        if name not in experiment.tags:
            mlflow.set_experiment_tag(name, value)


@contextmanager
def few_retries() -> Iterator[None]:
    """At the start, a wrong address must be told from a busy server within seconds, not minutes, and in one line."""
    from mlflow.exceptions import MlflowException

    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(name)
    os.environ[name] = before or "2"
    try:
        yield
    except MlflowException as error:
        if not store_is_ours() and is_network_trouble(error):
            raise InputError(f"MLFLOW_TRACKING_URI: {public_uri()} does not answer; start it or unset it") from error
        raise
    finally:
        if before is None:
            del os.environ[name]


def log_curve(run_id: str, *points: Point) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    metrics = [Metric(name, value, now, point.step) for point in points for name, value in point.metrics.items()]
    MlflowClient(tracking_uri()).log_batch(run_id, metrics=metrics)


def log_data_check(run_id: str, check: DataCheck, folder: Path) -> None:
    """What `folder` says about the data, before anything expensive: a run that stops later shows it too."""
    from mlflow import MlflowClient

    MlflowClient(tracking_uri()).log_artifacts(run_id, str(folder), "data_check")


def log_checkpoint(run_id: str, folder: Path, step: int) -> None:
    """What a run that was stopped had trained."""
    from mlflow import MlflowClient

    api = MlflowClient(tracking_uri())
    api.log_artifacts(run_id, str(folder), "checkpoint")
    describe(run_id, f"**Stopped** after step {step}; what was trained is under `checkpoint`")


def describe(run_id: str, text: str) -> None:
    from mlflow import MlflowClient

    api = MlflowClient(tracking_uri())
    link = link_to_prefect(api.get_run(run_id).data.tags)
    api.set_tag(run_id, NOTE, "  \n".join(filter(None, (text, link))))  # two spaces: a line break in markdown


DATA_CHECK = "data_check/data_check.json"


def data_metrics(run_id: str) -> dict[str, float]:
    """The figures of the run's data check.

    They go to the run with its results: the compare page draws its parallel coordinates to the metric that runs
    logged first, and these are the same in all runs on the same data.
    """
    from mlflow.artifacts import load_dict

    check = DataCheck.model_validate(load_dict(f"runs:/{run_id}/{DATA_CHECK}"))
    metrics: dict[str, float] = {
        "data/leaked_test_rows": len(check.leaked["test"]),
        "data/conflicting_texts": sum(text.conflicting for text in check.same_texts),
        "data/duplicate_rows": sum(check.duplicates.values()),
    }
    if check.detectable is not None:
        metrics["test/detectable_difference"] = check.detectable
    return metrics


class Logged(Record):
    """What the MLflow run now holds."""

    model_uri: str
    version: str | None
    """Version in the model registry, when tracking.registered_model asks for one."""


def log_everything(
    run_id: str,
    config: RunConfig,
    data: PreparedData,
    evaluations: Mapping[str, Evaluation],
    trained: TrainedAdapter,
    result: Comparison,
    table: "pd.DataFrame",
    description: str,
) -> Logged:
    """Complete the active run `run_id`: model first, so that the metrics can be tied to it; the verdict last."""
    import mlflow

    model = log_model(config, data, trained, table)
    mlflow.log_params(found_parameters(data, trained))
    mlflow.log_metrics(final_metrics(evaluations, trained, result), run_id=run_id, model_id=model.model_id)
    mlflow.log_metrics(data_metrics(run_id), run_id=run_id)
    for split in SPLITS:
        mlflow.log_input(dataset_input(config, data, split), context=split)
    log_comparison(evaluations, result, table)
    mlflow.log_artifacts(trained.folder, "adapter")
    mlflow.set_tags(
        {
            "data_fingerprint": data.fingerprint,
            "test_fingerprint": data.test_fingerprint,
            "adapter_sha256": trained.sha256,
            "verdict": result.verdict,
        }
    )
    describe(run_id, description)
    version = model.registered_model_version
    return Logged(model_uri=model.model_uri, version=str(version) if version else None)


TABLES = ("ladder", "slices", "flips", "mistakes", "label_errors", "predictions")
"""In the order in which MLflow's page for several runs offers them."""


TABLES_TAG = "mlflow.loggedArtifacts"
"""Where MLflow looks for tables that it can show for several runs at once."""


def tables_tag(names: Sequence[str]) -> str:
    return json.dumps([{"path": f"comparison/{name}.json", "type": "table"} for name in names])


def log_comparison(evaluations: Mapping[str, Evaluation], result: Comparison, table: "pd.DataFrame") -> None:
    """The comparison's files under `comparison`; its tables are those that MLflow can show for several runs at once.

    Not `mlflow.log_table`: it appends to what is there, so that a retried task would log every line twice.
    """
    import mlflow

    folder = Path(result.folder)
    with tempfile.TemporaryDirectory() as staged:
        for file in (*folder.glob("*.*"), *folder.glob("tables/*.json")):
            shutil.copy(file, staged)
        for name, evaluation in evaluations.items():
            shutil.copyfile(evaluation.predictions, Path(staged, f"{name}.parquet"))
        table.to_json(Path(staged, "predictions.json"), orient="split", index=False)
        mlflow.log_artifacts(staged, "comparison")
    mlflow.set_tag(TABLES_TAG, tables_tag(TABLES))
    plots = folder.parent / "plots"
    mlflow.log_artifacts(str(plots), "plots")
    # once more at the top: the compare page shows these next to each other, and no files in folders
    for file in (folder / "comparison.md", plots / "ladder.png"):
        mlflow.log_artifact(str(file))


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
    evaluations: Mapping[str, Evaluation], trained: TrainedAdapter, result: Comparison
) -> dict[str, float]:
    """The same keys in every run, so that the compare page lines them up; less what a run was not asked for."""
    accuracy, gain = result.rung("tuned").accuracy, result.gain
    # the run's page lists them in this order
    metrics = named("tuned", result.rung("tuned").scores.model_dump())
    metrics |= {"tuned/accuracy_low": accuracy.low, "tuned/accuracy_high": accuracy.high}
    for name, interval in (("accuracy", gain.accuracy), ("macro_f1", gain.macro_f1), ("log_loss", gain.log_loss)):
        metrics |= {f"delta/{name}": interval.value}
        metrics |= {f"delta/{name}_low": interval.low, f"delta/{name}_high": interval.high}
    metrics |= {"delta/p_value": gain.p_value, "delta/fixed": gain.fixed, "delta/broken": gain.broken}
    metrics |= named("baseline", result.rung("baseline").scores.model_dump())
    for rung in result.ladder:
        if rung.adapter_gain and rung.name != "baseline":
            metrics |= named(f"reference/{rung.name}", rung.scores.model_dump() | gain_metrics(rung.adapter_gain))
    metrics |= named("calibration", result.calibration.model_dump())
    if result.leaked:
        metrics["test/accuracy_without_leaked"] = result.accuracy_without_leaked["tuned"]
    adapter_bytes = sum(file.stat().st_size for file in Path(trained.folder).rglob("*.safetensors"))
    return metrics | {
        "cost/baseline_seconds": evaluations["baseline"].seconds,
        "cost/train_seconds": trained.seconds,
        "cost/tuned_seconds": evaluations["tuned"].seconds,
        "cost/train_examples_per_second": trained.examples_per_second,
        "cost/peak_memory_mb": trained.peak_memory_mb,
        "cost/adapter_mb": adapter_bytes / 2**20,
        "train/steps": trained.steps,
        "train/best_step": trained.best_step,
    }


def gain_metrics(gain: Difference) -> dict[str, float]:
    accuracy = gain.accuracy
    return {
        "gain": accuracy.value,
        "gain_low": accuracy.low,
        "gain_high": accuracy.high,
        "gain_p_value": gain.p_value,
    }


def named(group: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in values.items()}


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


def stored_run(run_id: str, folder: Path) -> StoredRun:
    """A finished run, with its adapter's predictions downloaded into `folder`; InputError where it has none."""
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    if not os.environ.get("MLFLOW_TRACKING_URI") and not (STORE / "mlflow.db").exists():
        raise InputError(f"there are no runs in {STORE.resolve()}; go to the folder of your runs")
    with few_retries():
        try:
            run = MlflowClient(tracking_uri()).get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise InputError(f"there is no run {run_id} in {public_uri()}; MLflow shows each run's id") from None
    parameters, tags = run.data.params, run.data.tags
    if run.info.lifecycle_stage == "deleted":
        raise InputError(f"run {run_id} was deleted in MLflow; restore it or choose another run")
    if "seeds" in parameters:
        raise InputError(f"run {run_id} stands for {parameters['seeds']} runs, one for each seed; name one of those")
    if run.info.status != "FINISHED":
        raise InputError(f"run {run_id} has not finished ({run.info.status}) and cannot be compared; run it again")
    if "verdict" not in tags:
        raise InputError(f"run {run_id} was not made by peft-flow finetune")
    if "test_fingerprint" not in tags:
        raise InputError(f"run {run_id} is of an older version, which did not say what its test rows are; run it again")
    try:
        file = download_artifacts(
            run_id=run_id, artifact_path=PREDICTIONS, dst_path=str(folder), tracking_uri=tracking_uri()
        )
    except (MlflowException, OSError) as error:
        raise InputError(f"run {run_id}: its predictions {PREDICTIONS} cannot be read: {error}") from error
    return StoredRun(
        run_id=run_id,
        name=run.info.run_name,
        verdict=tags["verdict"],
        parameters=parameters,
        test_fingerprint=tags["test_fingerprint"],
        predictions=file,
    )


PREDICTIONS = "comparison/tuned.parquet"
"""Artifact with what the adapter said about the test rows."""


def log_seeds(result: SeedsResult, page: str, ladder: dict[str, Any], description: str) -> None:
    """Complete the parent of several seeds' runs: means under the names that single runs use, and their spread."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    api, now = MlflowClient(tracking_uri()), int(1000 * time.time())
    tags = {
        "data_fingerprint": result.data_fingerprint,
        "verdict": result.verdict,
        TABLES_TAG: tables_tag(["ladder"]),
    }
    api.log_text(result.run_id, page, "comparison/comparison.md")
    api.log_dict(result.run_id, ladder, "comparison/ladder.json")
    describe(result.run_id, description)
    api.log_batch(
        result.run_id,
        metrics=[Metric(name, value, now, 0) for name, value in seed_metrics(result).items()],
        params=[Param("seeds", str(len(result.runs)))],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )


def seed_metrics(result: SeedsResult) -> dict[str, float]:
    metrics = {"delta/accuracy": result.gain.mean.value}
    for rung in result.ladder:
        group = rung.name if rung.name in ("tuned", "baseline") else f"reference/{rung.name}"
        for name in ("accuracy", "macro_f1", "log_loss"):
            metrics[f"{group}/{name}"] = getattr(rung, name).mean.value
    accuracy = result.rung("tuned").accuracy
    return metrics | {
        "seeds/count": len(result.runs),
        "seeds/accuracy_std": accuracy.deviation,
        "seeds/accuracy_low": accuracy.mean.low,
        "seeds/accuracy_high": accuracy.mean.high,
        "seeds/noise": result.noise,
    }


CHAMPION = "champion"
"""Alias, in MLflow's model registry, of the version that the next one has to beat."""


class Champion(Record):
    uri: str
    """`models:/NAME/VERSION`"""
    source: str
    """The logged model behind it: a version number is given anew after its model was deleted, this name never."""


def find_champion(config: RunConfig) -> Champion | None:
    """What carries the alias in the registry of `tracking.registered_model`, where there is one."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name = config.tracking.registered_model
    if not name:
        return None
    try:
        found = MlflowClient(tracking_uri()).get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model; no such alias
            return None
        raise
    return Champion(uri=f"models:/{name}/{found.version}", source=str(found.source))


def download_adapter(uri: str, folder: Path) -> Path:
    """The adapter folder of a model that `log_model` logged, copied into `folder`; OSError where it has none."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    files = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    adapter = files / "artifacts/adapter"
    if not adapter.is_dir():
        raise FileNotFoundError(f"{uri} holds no adapter")
    return adapter
