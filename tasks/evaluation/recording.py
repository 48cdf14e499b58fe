"""Put the result where people look: the MLflow run, complete, and the Prefect run page."""

import os
import shutil
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

from tasks.base.files import write_text
from tasks.base.progress import tell
from tasks.base.records import (
    Comparison,
    DataCheck,
    Difference,
    Evaluation,
    Logged,
    PreparedData,
    TrainedAdapter,
)
from tasks.base.work import RunFolder
from tasks.data.corrections import CORRECTIONS_FILE
from tasks.data.duplicates import stable_keys
from tasks.data.frozen import frozen_rows
from tasks.evaluation.card import model_card
from tasks.evaluation.predictions import paired_predictions
from tasks.evaluation.wording import description
from tasks.models import serving
from tasks.scores.objective import objective
from tasks.settings.config import RunConfig
from tasks.settings.fixed import SPLITS
from tasks.sources.hub import NETWORK
from tasks.tracking.address import experiment_url, run_url
from tasks.tracking.listing import SHORT, earlier_run_with
from tasks.tracking.run import describe, log, log_files, send_all
from tasks.tracking.runlist import TABLES_TAG, tables_tag

if TYPE_CHECKING:
    import pandas as pd


@task(
    name="record",
    task_run_name="record",
    **NETWORK,
)
def record(
    work: str,
    config: RunConfig,
    data: PreparedData,
    check: DataCheck,
    evaluations: Mapping[str, Evaluation],
    trained: TrainedAdapter,
    result: Comparison,
) -> Logged:
    """Everything about the run in MLflow, which is waited for, and the comparison in Prefect."""
    folder = Path(trained.folder)
    quantization = serving.read_settings(folder)["base_model"].get("quantization")
    write_text(folder / "README.md", model_card(config, data, trained, result, quantization))
    log_result(work, config, data, check, evaluations, trained, result)
    sent = send_all(work)
    assert sent.run_id
    if earlier := earlier_run_with(trained.sha256, sent.run_id):
        tell("The adapter is to the bit that of run %s, %s", earlier.run_id[:SHORT], earlier.name)
        log(work, "tags", {"same_adapter_as": earlier.run_id})
        send_all(work)
    show_in_prefect(sent.run_id, result)
    return Logged(run_id=sent.run_id, model_uri=f"models:/{sent.model_id}", version=sent.version)


def log_result(
    work: str,
    config: RunConfig,
    data: PreparedData,
    check: DataCheck,
    evaluations: Mapping[str, Evaluation],
    trained: TrainedAdapter,
    result: Comparison,
) -> None:
    """Model first, so that the metrics can be tied to it; the verdict last."""
    table = prediction_table(data, evaluations)
    log(work, "model", model_values(work, config, data, trained, table))
    log(work, "params", found_parameters(data, trained))
    log(work, "metrics", final_metrics(evaluations, trained, result), of_model=True)
    log(work, "metrics", data_metrics(check))
    for split in SPLITS:
        log(work, "inputs", input_values(work, config, data, split))
    log_comparison(work, evaluations, result, table, frozen_rows(config, data))
    if data.corrections:
        log_files(work, "comparison", Path(data.folder) / CORRECTIONS_FILE)
    if config.tracking.registered_model:
        log_seen(work, data)
    log_files(work, "adapter", Path(trained.folder))
    tags = {
        "data_fingerprint": data.fingerprint,
        "test_fingerprint": data.test_fingerprint,
        "adapter_sha256": trained.sha256,
        "verdict": result.verdict,
    }
    log(work, "tags", tags)
    describe(work, description(result))


def model_values(
    work: str, config: RunConfig, data: PreparedData, trained: TrainedAdapter, table: "pd.DataFrame"
) -> dict[str, Any]:
    """What the logged model is made of."""
    return {
        "adapter": os.path.relpath(trained.folder, work),
        "base_model": data.model.name,
        "text_columns": list(data.text_columns),
        "answers": serving.answer_columns(serving.read_settings(Path(trained.folder))),
        "example": table[list(data.text_columns)].head(2).to_numpy().tolist(),
        "registered_model": config.tracking.registered_model,
    }


def input_values(work: str, config: RunConfig, data: PreparedData, split: str) -> dict[str, Any]:
    """One split as a data set of the run, with our fingerprint as its digest; MLflow tells splits apart by name."""
    source, revision = data.source.name, data.source.revision
    return {
        "folder": os.path.relpath(data.folder, work),
        "split": split,
        "columns": [*data.text_columns, "labels"],
        "name": f"{Path(config.data.name).name[:200]} {split}",
        "digest": data.fingerprint[:32],
        "where": {"source": source} if data.source.is_local else {"path": source, "revision": revision},
    }


TABLES = ("ladder", "slices", "flips", "mistakes", "label_errors", "predictions")
"""In the order in which MLflow's page for several runs offers them."""


def log_comparison(
    work: str,
    evaluations: Mapping[str, Evaluation],
    result: Comparison,
    table: "pd.DataFrame",
    test: "pd.DataFrame",
) -> None:
    """The comparison's files under `comparison`; its tables are those that MLflow can show for several runs at once.

    `test.parquet` are the test rows, for a later run's `data.test_file`.
    Not `mlflow.log_table`: it appends to what is there, so that a retried task would log every line twice.
    """
    folder, run, judged = Path(result.folder), RunFolder(work), RunFolder.around(result.folder)
    shutil.rmtree(run.staged, ignore_errors=True)
    run.staged.mkdir()
    for file in (*folder.glob("*.*"), *folder.glob("tables/*.json")):
        shutil.copy(file, run.staged)
    for name, evaluation in evaluations.items():
        shutil.copyfile(evaluation.predictions, run.staged / f"{name}.parquet")
    table.to_json(run.test_table, orient="split", index=False)
    test.to_parquet(run.test_rows, index=False)
    log_files(work, "comparison", run.staged)
    log(work, "tags", {TABLES_TAG: tables_tag(TABLES)})
    log_files(work, "plots", judged.plots)
    # once more at the top: the compare page shows these next to each other, and no files in folders
    log_files(work, "", judged.comparison_page, judged.plots / "ladder.png")


def log_seen(work: str, data: PreparedData) -> None:
    """Keys of the texts that a registered model has learned from: these rows are no test for it, years later."""
    import pandas as pd
    from datasets import load_from_disk

    splits = load_from_disk(data.folder)
    keys = {
        key
        for role in ("train", "validation")
        for key in stable_keys([splits[role][name][:] for name in data.text_columns])
    }
    file = RunFolder(work).seen
    pd.DataFrame({"text": sorted(keys)}).to_parquet(file, index=False)
    log_files(work, "comparison", file)


def found_parameters(data: PreparedData, trained: TrainedAdapter) -> dict[str, str]:
    """What the run found out: exact revisions, the layers adapted, the size of what was trained, on what and how."""
    return {
        "model.revision": data.model.revision,
        "data.revision": data.source.revision,
        "data.task": data.task,
        **{f"data.{name}": value for name in FILES if (value := getattr(data.source, name))},
        "adapter.target_modules": ",".join(trained.target_modules),
        "trainable_parameters": str(trained.trainable_parameters),
        "total_parameters": str(trained.total_parameters),
        **{f"compute.{name}": value for name, value in trained.compute.items()},
    }


FILES = ("test_revision", "corrections_revision")
"""Of a Source: what else was read, by content."""


def final_metrics(
    evaluations: Mapping[str, Evaluation], trained: TrainedAdapter, result: Comparison
) -> dict[str, float]:
    """The same keys in every run, so that the compare page lines them up; less what a run was not asked for."""
    tuned, gain, first = result.rung("tuned"), result.gain, objective(result.task).metrics[0].name
    # the run's page lists them in this order
    metrics = named("tuned", tuned.values)
    metrics |= {f"tuned/{first}_low": tuned.primary.low, f"tuned/{first}_high": tuned.primary.high}
    metrics |= named(STRONGEST, gain_metrics(result.lead(result.against)))
    metrics |= {f"delta/{name}": interval.value for name, interval in gain.scores.items()}
    metrics |= {f"delta/{first}_low": gain.primary.low, f"delta/{first}_high": gain.primary.high}
    metrics |= {"delta/p_value": gain.p_value, "delta/fixed": gain.fixed, "delta/broken": gain.broken}
    metrics |= named("baseline", result.rung("baseline").values)
    for rung in result.ladder:
        if rung.adapter_gain and rung.name != "baseline":
            metrics |= named(f"reference/{rung.name}", rung.values | gain_metrics(rung.adapter_gain))
    metrics |= named("calibration", {name: value for name, value in result.calibration.items() if isfinite(value)})
    if result.leaked:
        metrics[f"test/{first}_without_leaked"] = result.score_without_leaked["tuned"]
    adapter_bytes = sum(file.stat().st_size for file in Path(trained.folder).rglob("*.safetensors"))
    return metrics | {
        "cost/baseline_seconds": evaluations["baseline"].seconds,
        "cost/train_seconds": trained.seconds,
        "cost/trunk_seconds": trained.trunk_seconds,
        "cost/tuned_seconds": evaluations["tuned"].seconds,
        "cost/train_examples_per_second": trained.examples_per_second,
        "cost/train_padding": trained.padding,
        "cost/peak_memory_mb": trained.peak_memory_mb,
        "cost/adapter_mb": adapter_bytes / 2**20,
        "train/steps": trained.steps,
        "train/best_step": trained.best_step,
    }


STRONGEST = "reference/strongest"
"""Metrics about the reference that the verdict is about, whichever it is."""


def gain_metrics(gain: Difference) -> dict[str, float]:
    interval = gain.primary
    return {
        "gain": interval.value,
        "gain_low": interval.low,
        "gain_high": interval.high,
        "gain_p_value": gain.p_value,
    }


def named(group: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in values.items()}


def data_metrics(check: DataCheck) -> dict[str, float]:
    """The figures of the run's data check.

    They go to the run with its results: the compare page draws its parallel coordinates to the metric that runs
    logged first, and these are the same in all runs on the same data.
    """
    metrics: dict[str, float] = {
        "data/leaked_test_rows": len(check.leaked["test"]),
        "data/conflicting_texts": sum(text.conflicting for text in check.same_texts),
        "data/duplicate_rows": sum(check.duplicates.values()),
        "data/kept_out_rows": sum(check.kept_out.values()),
    }
    if check.detectable is not None:
        metrics["test/detectable_difference"] = check.detectable
    return metrics


def prediction_table(data: PreparedData, evaluations: Mapping[str, Evaluation]) -> "pd.DataFrame":
    """One line for each test row: its place in the source, texts, label, and what foundation model and adapter said."""
    import pandas as pd
    from datasets import load_from_disk

    test = load_from_disk(data.folder)["test"]
    predictions = paired_predictions({name: evaluations[name].predictions for name in ("baseline", "tuned")})
    columns = {"row": test["row"][:], **{name: test[name][:] for name in data.text_columns}}
    task, labels, names = objective(data.task), predictions.labels, data.label_names
    columns |= task.truth(labels, names)
    for name, table in predictions.tables.items():
        said = task.said(table.astype(float), labels, names)
        columns |= {f"{name}_{column}": values for column, values in said.items()}
    return pd.DataFrame(columns)


def show_in_prefect(run_id: str, result: Comparison) -> None:
    from prefect.artifacts import create_markdown_artifact

    link = run_url(run_id)
    page = (Path(result.folder) / "comparison.md").read_text(encoding="utf-8")
    links = f"[MLflow run {run_id}]({link}), [all runs of its experiment]({experiment_url(run_id)})"
    create_markdown_artifact(f"{page}\n{links}\n", key="comparison", description=result.verdict)
