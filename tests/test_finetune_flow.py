"""The whole flow, on a two-layer model and 72 sentences: what it leaves in MLflow, in Prefect and on disk."""

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml

from flows.cli import DONE, main
from tasks.base.records import RunResult
from tasks.base.verdict import capital
from tasks.settings.config import RunConfig
from tasks.settings.loading import validated
from tests.conftest import ROOT, Hub, only_run, tracked, without_pictures


class Run(NamedTuple):
    config: RunConfig
    result: RunResult
    folder: Path


def run_flow(config: RunConfig) -> RunResult:
    from flows.finetune import finetune

    return finetune(**{name: getattr(config, name) for name in RunConfig.model_fields})


@pytest.fixture(scope="module")
def finished(
    foundation: Any, reviews: Path, tmp_path_factory: pytest.TempPathFactory, prefect_harness: None
) -> Iterator[Run]:
    """The same configuration run twice in one empty folder, which stays the current one; the second run's result."""
    folder, before = tmp_path_factory.mktemp("place"), Path.cwd()
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    config = validated(
        {
            "model": {"name": str(foundation("gpt2"))},
            "data": {"name": str(reviews), "max_length": 32},
            "training": {"epochs": 14, "batch_size": 8, "learning_rate": 0.01},
            "evaluation": {"bootstrap_samples": 200, "batch_size": 8},
            "tracking": {"tags": {"team": "search"}, "registered_model": "reviews"},
        }
    )
    with without_pictures():
        first = run_flow(config)
    second = run_flow(config)
    assert first.run_id != second.run_id
    (folder / "first.json").write_text(first.model_dump_json())
    yield Run(config, second, folder)
    os.chdir(before)


@pytest.fixture(scope="module")
def mlflow_run(finished: Run) -> Any:
    return client(finished).get_run(finished.result.run_id)


def client(run: Run) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{run.folder}/mlruns/mlflow.db")


TASKS = [
    "find input",
    "prepare data", "check data", "evaluate baseline", "evaluate majority", "evaluate tfidf", "evaluate probe",
    "evaluate zero_shot",
    "train adapter", "evaluate adapter", "compare", "record",
]  # fmt: skip


def prefect_runs(finished: Run) -> tuple[Any, list[Any]]:
    """The flow run that the MLflow run points to, and its task runs in order."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    flow_run_id = client(finished).get_run(finished.result.run_id).data.tags["prefect.flow_run_id"]
    with get_client(sync_client=True) as api:
        flow_run = api.read_flow_run(flow_run_id)
        tasks: list[Any] = []
        for _ in range(60):  # task runs arrive as events, a moment later
            tasks = api.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id])))
            if len(tasks) == len(TASKS) and all(task.state and task.state.is_final() for task in tasks):
                break
            time.sleep(0.5)
    return flow_run, sorted(tasks, key=lambda task: task.start_time or task.expected_start_time)


def test_result_has_exactly_the_promised_keys(finished: Run) -> None:
    result = json.loads(finished.result.model_dump_json())
    assert list(result) == [
        "run_id", "experiment", "status", "verdict", "baseline", "tuned", "delta", "references", "adapter_path",
        "adapter_sha256", "model_uri", "version", "data_fingerprint", "seconds",
    ]  # fmt: skip
    assert set(result["baseline"]) == set(result["tuned"]) == {"accuracy", "macro_f1", "log_loss"}
    assert set(result["delta"]) == {"accuracy", "low", "high", "p_value", "fixed", "broken"}
    assert set(result["references"]) == {"majority", "tfidf", "probe", "zero_shot"}
    assert result["references"]["majority"] == pytest.approx(
        {"accuracy": 0.5, "macro_f1": 1 / 3, "log_loss": 0.693}, abs=1e-3
    )
    assert set(result["seconds"]) == {
        "total", "prepare", "check", "baseline", "references", "train", "tuned", "compare", "record",
    }  # fmt: skip
    assert sum(v for k, v in result["seconds"].items() if k != "total") <= result["seconds"]["total"]


def test_tuned_model_has_learned(finished: Run) -> None:
    assert finished.result.tuned["accuracy"] >= 0.75
    gain = finished.result.tuned["accuracy"] - finished.result.baseline["accuracy"]
    assert finished.result.delta["accuracy"] == pytest.approx(gain)


def test_same_configuration_gives_the_same_adapter_and_metrics(finished: Run) -> None:
    first = json.loads((finished.folder / "first.json").read_text())
    second = json.loads(finished.result.model_dump_json())
    for key in set(second) - {"run_id", "model_uri", "version", "seconds"}:
        assert first[key] == second[key], key


def test_run_is_finished_and_named_by_what_it_does(finished: Run, mlflow_run: Any) -> None:
    assert mlflow_run.info.status == "FINISHED"
    first = client(finished).get_run(json.loads((finished.folder / "first.json").read_text())["run_id"])
    assert first.info.run_name == finished.config.run_name()
    assert first.info.run_name.endswith("· lora r8 · lr 0.01")
    assert mlflow_run.info.run_name == f"{first.info.run_name} (2)"


def test_a_run_that_is_the_same_as_an_earlier_one_says_so(finished: Run, mlflow_run: Any) -> None:
    first = client(finished).get_run(json.loads((finished.folder / "first.json").read_text())["run_id"])
    assert mlflow_run.data.tags["same_adapter_as"] == first.info.run_id
    assert "same_adapter_as" not in first.data.tags


def test_parameters_are_the_flattened_configuration(finished: Run, mlflow_run: Any) -> None:
    params = mlflow_run.data.params
    assert params["training.learning_rate"] == "0.01"
    assert params["adapter.r"] == "8"
    assert params["adapter.target_modules"] == "c_attn" and params["compute.optimizer"] == "adamw_torch_fused"
    assert params["model.revision"].startswith("sha256:")
    assert int(params["trainable_parameters"]) > 0
    assert "seed" in params
    assert not any(name.startswith("tracking") for name in params)


def test_metrics_are_those_of_the_result(finished: Run, mlflow_run: Any) -> None:
    metrics, result = mlflow_run.data.metrics, finished.result
    for group in ("baseline", "tuned"):
        for name, value in getattr(result, group).items():
            assert metrics[f"{group}/{name}"] == pytest.approx(value)
    assert metrics["delta/accuracy"] == pytest.approx(result.delta["accuracy"])
    assert metrics["delta/accuracy_low"] == pytest.approx(result.delta["low"])
    assert metrics["delta/p_value"] == pytest.approx(result.delta["p_value"])
    assert metrics["reference/majority/accuracy"] == 0.5
    assert metrics["cost/train_seconds"] > 0
    assert metrics["cost/peak_memory_mb"] > 0


def test_curves_have_one_value_at_each_step(finished: Run) -> None:
    for name, points in (("train/loss", 84), ("validation/accuracy", 14), ("train/learning_rate", 84)):
        history = client(finished).get_metric_history(finished.result.run_id, name)
        steps = [point.step for point in history]
        assert steps == sorted(set(steps)), name
        assert len(steps) == points, name
    by_epoch = client(finished).get_metric_history(finished.result.run_id, "validation/loss")
    assert [point.step for point in by_epoch] == list(range(6, 85, 6))


def test_tags_say_verdict_and_content(finished: Run, mlflow_run: Any) -> None:
    tags = mlflow_run.data.tags
    assert tags["verdict"] == finished.result.verdict
    assert tags["data_fingerprint"] == finished.result.data_fingerprint
    assert tags["adapter_sha256"] == finished.result.adapter_sha256
    assert tags["team"] == "search"
    assert tags["mlflow.note.content"].startswith(f"**{capital(finished.result.verdict)}**")
    assert tags["prefect.flow_run_id"] in tags["prefect.flow_run_url"]


def test_data_sets_are_inputs_of_the_run(finished: Run, mlflow_run: Any) -> None:
    inputs = mlflow_run.inputs.dataset_inputs
    contexts = {tag.value for item in inputs for tag in item.tags if tag.key == "mlflow.data.context"}
    assert contexts == {"train", "validation", "test"}
    assert len(inputs) == 3
    rows = sorted(json.loads(item.dataset.profile)["num_rows"] for item in inputs)
    assert rows == [12, 12, 48]


def artifacts(run: Run) -> Path:
    from mlflow.artifacts import download_artifacts

    uri = f"sqlite:///{run.folder}/mlruns/mlflow.db"
    return Path(download_artifacts(run_id=run.result.run_id, artifact_path="", tracking_uri=uri))


def test_artifacts_are_complete(finished: Run) -> None:
    folder = artifacts(finished)
    for name in (
        "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/tokenizer.json",
        "adapter/README.md", "adapter/peft_flow.json", "comparison/comparison.json", "comparison/comparison.md",
        "comparison/predictions.json", "comparison/classes.json", "comparison/baseline.parquet",
        "comparison/tuned.parquet", "comparison/test.parquet", "plots/learning_curves.png",
        "plots/confusion_matrices.png", "plots/ladder.png", "plots/reliability.png", "plots/slices.png",
        "plots/lengths.png",
        "comparison/ladder.json", "comparison/slices.json", "comparison/flips.json", "comparison/mistakes.json",
        "comparison/label_errors.json", "data_check/data_check.md", "data_check/data_check.json", "config.yaml",
        "environment.txt",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert "torch==" in (folder / "environment.txt").read_text()


def test_recorded_configuration_is_the_one_that_ran(finished: Run) -> None:
    assert validated(yaml.safe_load((artifacts(finished) / "config.yaml").read_text())) == finished.config


def test_logged_test_rows_are_a_test_file_for_later_data(finished: Run, tmp_path: Path) -> None:
    from tasks.data.prepare import prepare

    file = artifacts(finished) / "comparison/test.parquet"
    values = finished.config.model_dump()
    later = prepare(validated({**values, "data": {**values["data"], "test_file": str(file)}}), tmp_path)
    tags = client(finished).get_run(finished.result.run_id).data.tags
    assert later.test_fingerprint == tags["test_fingerprint"]
    predictions = pd.read_parquet(artifacts(finished) / "comparison/tuned.parquet")
    assert list(predictions["row"]) == list(pd.read_parquet(file)["row"])


def test_pictures_are_pictures(finished: Run) -> None:
    from PIL import Image

    for file in (artifacts(finished) / "plots").glob("*.png"):
        with Image.open(file) as picture:
            assert picture.width >= 600
            assert len(picture.convert("RGB").getcolors(maxcolors=10**6) or []) > 10


def test_model_card_is_filled_in(finished: Run) -> None:
    text = (artifacts(finished) / "adapter/README.md").read_text()
    block = yaml.safe_load(text.split("---")[1])
    assert block["library_name"] == "peft"
    accuracy = next(m for m in block["model-index"][0]["results"][0]["metrics"] if m["type"] == "accuracy")
    assert accuracy["value"] == pytest.approx(finished.result.tuned["accuracy"], abs=1e-6)
    for part in (finished.result.data_fingerprint, "`bad`, `good`", "learning_rate: 0.01", "[More Information Needed]"):
        assert (part in text) == (part != "[More Information Needed]"), part


def test_logged_model_predicts_what_the_table_says(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another folder, with nobody there to ask: that a fresh process computes the same is proved by the run."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", burn)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished.folder}/mlruns/mlflow.db")
    recorded = pd.read_json(artifacts(finished) / "comparison/predictions.json", orient="split")
    said = mlflow.pyfunc.load_model(finished.result.model_uri).predict(recorded[["text"]])
    assert len(said) == 12
    assert said["label"].tolist() == recorded["tuned_label"].tolist()
    assert np.allclose(said["probability"], recorded["tuned_probability"], rtol=0, atol=1e-9)  # 10 digits in the table
    exact = np.stack(pd.read_parquet(artifacts(finished) / "comparison/tuned.parquet")["probabilities"])
    assert np.array_equal(said[["probability_bad", "probability_good"]].to_numpy(np.float32), exact)


def test_model_is_registered_with_signature_and_light_on_disk(finished: Run) -> None:
    from mlflow.models import get_model_info

    version = client(finished).get_model_version("reviews", "2")
    assert version.run_id == finished.result.run_id
    info = get_model_info(finished.result.model_uri)
    assert info.signature.inputs.input_names() == ["text"]
    assert info.signature.outputs.input_names() == ["label", "probability", "probability_bad", "probability_good"]


def test_metrics_are_tied_to_the_logged_model(finished: Run) -> None:
    model = client(finished).get_logged_model(finished.result.model_uri.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in model.metrics}["tuned/accuracy"] == finished.result.tuned["accuracy"]


def test_baseline_and_references_are_cached_the_second_time(finished: Run) -> None:
    flow_run, tasks = prefect_runs(finished)
    assert flow_run.state.is_completed()
    cached = {"evaluate baseline", "evaluate majority", "evaluate tfidf", "evaluate probe", "evaluate zero_shot"}
    states = {task.name: task.state.name for task in tasks}
    assert states == {name: "Cached" if name in cached else "Completed" for name in TASKS}


def test_prefect_run_says_what_it_does_in_order(finished: Run) -> None:
    flow_run, tasks = prefect_runs(finished)
    assert flow_run.name == finished.config.run_name()
    assert [task.name for task in tasks] == TASKS


def test_prefect_shows_progress_comparison_and_link(finished: Run) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    flow_run, _ = prefect_runs(finished)
    with get_client(sync_client=True) as api:
        found = api.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
        )
    shown = {artifact.key: artifact for artifact in found}
    assert set(shown) == {"training-progress", "data-check", "comparison", "mlflow-run"}
    assert shown["data-check"].data.startswith("# Data check")
    assert shown["training-progress"].data == 100
    assert finished.result.run_id in shown["comparison"].data
    assert "| classifier" in shown["comparison"].data
    assert finished.result.run_id in shown["mlflow-run"].data


def test_deleted_baseline_is_measured_again(finished: Run) -> None:
    from prefect import flow

    from tasks.base.work import WORK
    from tasks.data.prepare import prepare
    from tasks.evaluation.references import evaluate_baseline

    for folder in (finished.folder / "mlruns/work").glob("baseline-*"):
        shutil.rmtree(folder)
    data = prepare(finished.config, WORK)
    again = flow(lambda: evaluate_baseline(finished.config, data, str(WORK)), name="again")()
    assert again.scores == pytest.approx(finished.result.baseline, abs=1e-6)
    assert list((finished.folder / "mlruns/work").glob("baseline-*/baseline.parquet"))


def last_status(folder: Path) -> str:
    return str(only_run(folder).info.status)


def burn(*arguments: Any) -> None:
    raise RuntimeError("the disk is on fire")


def test_mismatch_after_reload_is_not_logged(
    small_config: Any, workplace: Path, prefect_harness: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    from tasks.evaluation.adapter import ReloadMismatch
    from tasks.models import adapter

    save = adapter.save_adapter

    def save_wrongly(trained: Any, tokenizer: Any, config: RunConfig, data: Any, folder: Path, *rest: Any) -> None:
        save(trained, tokenizer, config, data, folder, *rest)
        weights = load_file(folder / "adapter_model.safetensors")
        save_file({name: tensor * 1.5 for name, tensor in weights.items()}, folder / "adapter_model.safetensors")

    monkeypatch.setattr("tasks.models.adapter.save_adapter", save_wrongly)
    with pytest.raises(ReloadMismatch, match="was not logged"):
        run_flow(small_config({"training": {"epochs": 1}, "evaluation": {"references": []}}))
    assert last_status(workplace) == "FAILED"
    assert not list((workplace / "mlruns/artifacts").rglob("adapter_model.safetensors"))


def test_second_identical_run_waits_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from tasks.base import work

    said: list[str] = []
    monkeypatch.setattr(work, "tell", said.append)
    order: list[str] = []

    def second() -> None:
        with work.sole_user(str(tmp_path / "work")):
            order.append("second")

    with work.sole_user(str(tmp_path / "work")):
        thread = threading.Thread(target=second)
        thread.start()
        for _ in range(100):
            if said:
                break
            time.sleep(0.05)
        order.append("first")
    thread.join(timeout=30)
    assert order == ["first", "second"]
    assert "waiting" in said[0]


@contextmanager
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What Prefect's loggers, which pass nothing on, say within."""
    from prefect.logging.configuration import setup_logging

    setup_logging()  # the first time, it takes all other handlers away
    loggers = [logging.getLogger(name) for name in ("prefect.flow_runs", "prefect.task_runs")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    yield
    for logger in loggers:
        logger.removeHandler(caplog.handler)


def test_what_the_user_must_change_is_logged_in_one_line(
    small_config: Any, workplace: Path, prefect_harness: None, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a run from the Prefect UI, which no command line has checked before."""
    from tasks.settings.fields import InputError

    with heard(caplog), pytest.raises(InputError, match="no column 'nothing'"):
        run_flow(small_config({"data": {"text_columns": "nothing"}}))
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors
    assert "no column 'nothing'" in errors[0].getMessage()
    assert all(record.exc_info is None for record in errors)
    assert last_status(workplace) == "FAILED"


def until_it_trains(workplace: Path, **variables: str) -> "subprocess.Popen[str]":
    """The command, in a process group of its own as a terminal gives it, when its first steps are done."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "finetune", "run.yaml"],
        cwd=workplace,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stderr
    seen = ""
    while "step/s, " not in seen:
        part = process.stderr.read(1)
        assert part, f"it ended before training: {seen}"
        seen += part
    return process


def test_stopped_run_is_killed_in_mlflow(
    small_config: Any, workplace: Path, empty_store: Path, prefect_server: dict[str, str]
) -> None:
    """SIGTERM to the command while it trains."""
    shutil.copytree(empty_store.parent, workplace / "mlruns")
    config = small_config({"training": {"epochs": 9000}, "evaluation": {"references": []}})
    (workplace / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    process = until_it_trains(workplace, **prefect_server)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.wait(timeout=60) != 0
    assert last_status(workplace) == "KILLED"


def test_ctrl_c_saves_and_the_same_command_goes_on(
    small_config: Any,
    workplace: Path,
    prefect_harness: None,
    no_pictures: None,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a terminal it reaches all processes of the command, Prefect's own server too."""
    config = small_config({"training": {"epochs": 40}, "evaluation": {"references": []}})
    (workplace / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    process = until_it_trains(workplace)
    os.killpg(process.pid, signal.SIGINT)
    begun = time.monotonic()
    _, said = process.communicate()
    assert process.returncode == 1 and time.monotonic() - begun < 100  # 150 where Prefect's server goes first
    assert "Stopping when this step is saved" in said and "Stopped after step" in said and "Traceback" not in said
    stopped = only_run(workplace)
    assert stopped.info.status == "KILLED"
    with heard(caplog):
        assert main(["finetune", "run.yaml", "--json"]) == DONE
    step = int(re.findall(r"Stopped after step (\d+)", said)[0])
    assert f"Training goes on from step {step}" in caplog.text
    assert json.loads(capsys.readouterr().out)["run_id"] == stopped.info.run_id == only_run(workplace).info.run_id
    assert last_status(workplace) == "FINISHED"


@pytest.mark.endurance
def test_demo_keeps_its_promise_and_says_that_it_is_one(tmp_path: Path) -> None:
    """`make demo`: no configuration, no Hub. Pretrains the demo's model where the cache does not hold it yet."""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)  # of an earlier test: MLflow sets it for its child processes
    command = [sys.executable, "-m", "flows.cli", "finetune", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = RunResult.model_validate_json(done.stdout)
    assert 0.4 <= result.baseline["accuracy"] <= 0.6
    assert result.tuned["accuracy"] >= 0.9
    assert list(result.references) == ["probe", "tfidf", "majority", "zero_shot"], "best first"
    assert 0.4 <= result.references["zero_shot"]["accuracy"] <= 0.55, "its model has never read the classes' names"
    assert result.verdict == "better than every reference"
    assert "embedded demo" in done.stderr
    # `peft-flow up` needs the folder of prefect.yaml; nothing answers at any address
    assert re.search("\nbrowse    .*bin/mlflow server .*   shows it\n", done.stderr)
    assert f"Recorded: MLflow run {result.run_id}" in done.stderr
    assert result.adapter_path in done.stderr


@pytest.fixture(scope="module")
def hub_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub-job")


@pytest.fixture(scope="module")
def job_environment(hub_place: Path, prefect_server: dict[str, str]) -> dict[str, str]:
    return os.environ | prefect_server | {"HF_HOME": str(hub_place / "hf"), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def hub_job(hub: Hub, hub_place: Path, job_environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The reference job, shortened, through the real Hub client."""
    command = [
        sys.executable, "-m", "flows.cli", "finetune", str(ROOT / "configs/gpt2-rotten-tomatoes.yaml"),
        "--model.name", "openai-community/gpt2-tiny", "--data.max_train_rows", "64", "--data.max_test_rows", "64",
        "--training.max_steps", "2", "--evaluation.references", "majority", "--json",
    ]  # fmt: skip
    environment = job_environment | {"HF_ENDPOINT": hub.url}
    return subprocess.run(command, cwd=hub_place, env=environment, capture_output=True, text=True)


@pytest.mark.hub
def test_reference_job_runs_through_the_hub_client(hub_job: subprocess.CompletedProcess[str]) -> None:
    assert hub_job.returncode == 0, hub_job.stderr
    result = RunResult.model_validate_json(hub_job.stdout.splitlines()[-1])
    assert result.status == "finished"
    assert 0.3 < result.baseline["accuracy"] < 0.7


@pytest.mark.hub
def test_json_is_all_that_goes_to_standard_output(hub_job: subprocess.CompletedProcess[str]) -> None:
    assert len(hub_job.stdout.splitlines()) == 1
    assert "| classifier" in hub_job.stderr


@pytest.mark.hub
def test_no_library_warning_disturbs_the_log(hub_job: subprocess.CompletedProcess[str]) -> None:
    assert "Warning" not in hub_job.stderr
    assert "Traceback" not in hub_job.stderr


@pytest.mark.endurance
@pytest.mark.hub
def test_pretrained_encoder_learns_real_reviews(hub: Hub, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2, really pretrained, on 2,000 real reviews: well above chance, which is no verdict."""
    command = [
        sys.executable, "-m", "flows.cli", "finetune", "--model.name", "sentence-transformers/all-MiniLM-L6-v2",
        "--data.name", "rotten_tomatoes", "--data.max_train_rows", "2000", "--data.max_test_rows", "400",
        "--training.epochs", "1", "--training.learning_rate", "1e-3", "--training.batch_size", "16", "--json",
    ]  # fmt: skip
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = RunResult.model_validate_json(done.stdout.splitlines()[-1])
    assert 0.4 <= result.baseline["accuracy"] <= 0.6
    assert result.tuned["accuracy"] >= 0.7
    assert "majority" not in result.verdict and "foundation" not in result.verdict
    assert result.delta["p_value"] < 0.001


@pytest.mark.slow
@pytest.mark.timeout(1800)  # five minutes on two free cores, ten on busy ones
@pytest.mark.hub
def test_full_rotten_tomatoes_reaches_the_measured_accuracy(hub: Hub, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "flows.cli", "finetune", "--model.name", "sentence-transformers/all-MiniLM-L6-v2",
        "--data.name", "rotten_tomatoes", "--training.epochs", "3", "--training.learning_rate", "1e-3",
        "--training.batch_size", "16", "--json",
    ]  # fmt: skip
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = RunResult.model_validate_json(done.stdout.splitlines()[-1])
    assert result.tuned["accuracy"] >= 0.81
    tfidf, probe = (result.references[name]["accuracy"] for name in ("tfidf", "probe"))
    assert 0.75 <= tfidf <= 0.81 and 0.70 <= probe <= 0.82
    assert result.tuned["accuracy"] > max(tfidf, probe)
    assert result.verdict == "better than every reference"
    assert result.delta["p_value"] < 0.001


def test_usage_on_the_card_gives_the_logits_of_the_adapter(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippet is run as it stands."""
    from tasks.models import serving

    folder = Path(finished.result.adapter_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet.replace("THIS_FOLDER", str(folder)), names)
    model, tokenizer = serving.load_adapter(folder, local_files_only=True)
    rows = tokenizer(["i loved every minute of it", "dull"])
    expected = serving.classify(model, tokenizer, rows, 2)
    assert (serving.classify(names["model"].eval(), names["tokenizer"], rows, 2) == expected).all()


def test_retried_flow_run_goes_on_in_its_mlflow_run(workplace: Path) -> None:
    from tasks.tracking.address import FLOW_RUN_TAG

    tags = {FLOW_RUN_TAG: "8d1c"}
    with pytest.raises(ValueError, match="once"), tracked(tags=tags) as first:
        raise ValueError("once")
    assert last_status(workplace) == "FAILED"
    with tracked(tags=tags) as second:
        assert second == first
    assert last_status(workplace) == "FINISHED"
    with tracked(tags=tags) as third:
        assert third != first


def test_failed_run_is_failed_in_mlflow_and_shows_its_configuration(
    small_config: Any, workplace: Path, prefect_harness: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr("tasks.evaluation.references.ask_foundation", burn)
    with pytest.raises(RuntimeError, match="on fire"):
        run_flow(small_config({"training": {"learning_rate": 0.125}}))
    run, api = only_run(workplace), MlflowClient(f"sqlite:///{workplace}/mlruns/mlflow.db")
    assert run.info.status == "FAILED"
    assert run.data.params["training.learning_rate"] == "0.125"
    assert {file.path for file in api.list_artifacts(run.info.run_id)} == {
        "config.yaml", "data_check", "environment.txt",
    }  # fmt: skip


@pytest.mark.endurance
@pytest.mark.hub
def test_offline_job_asks_no_hub_and_gives_the_same_adapter(
    hub_job: subprocess.CompletedProcess[str], hub_place: Path, job_environment: dict[str, str]
) -> None:
    """The job again with `offline`, and at the Hub's address somebody who notes every call."""
    import threading

    calls: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def note() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            calls.append(connection.recv(200).decode(errors="replace"))
            connection.close()

    threading.Thread(target=note, daemon=True).start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    environment = job_environment | {"HF_ENDPOINT": address}
    done = subprocess.run(
        [*hub_job.args, "--offline", "true"], cwd=hub_place, env=environment, capture_output=True, text=True
    )
    listener.close()
    assert done.returncode == 0, done.stderr
    assert not calls
    first, again = (RunResult.model_validate_json(text) for text in (hub_job.stdout, done.stdout))
    assert again.adapter_sha256 == first.adapter_sha256
    assert again.tuned == first.tuned


def test_form_has_every_field_with_its_description_and_bounds() -> None:
    """The schema that Prefect makes the run form from."""
    from prefect.utilities.callables import parameter_schema

    from flows.finetune import finetune
    from tasks.settings.loading import sections

    schema = parameter_schema(finetune).model_dump()
    assert list(schema["properties"]) == [*RunConfig.model_fields, "advanced"]
    for name, section in sections():
        form = schema["definitions"][section.__name__]["properties"]
        assert list(form) == list(section.model_fields), name
        assert all(field["description"] for field in form.values()), name
    for name in ("seed", "offline"):
        assert schema["properties"][name]["description"].startswith(RunConfig.model_fields[name].description or "-")
    assert "dora" in schema["definitions"]["AdapterConfig"]["properties"]["method"]["enum"]
    assert schema["properties"]["seed"]["minimum"] == 0


def test_run_that_learns_nothing_is_not_called_better(
    small_config: Any, workplace: Path, prefect_harness: None, no_pictures: None
) -> None:
    changes = {"training": {"learning_rate": 0.0, "epochs": 1}, "evaluation": {"references": ["majority"]}}
    result = run_flow(small_config(changes))
    assert result.verdict.startswith(("worse than ", "not shown better than "))
    assert (result.delta["fixed"], result.delta["broken"]) == (0, 0)
    # its probabilities differ by the temperature alone
    assert result.tuned["accuracy"] == result.baseline["accuracy"]
