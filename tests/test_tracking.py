"""What goes to MLflow, apart from the flow that calls it."""

from pathlib import Path

import pytest

from tasks import runlist, tracking
from tasks.config import InputError, validated
from tasks.records import (
    Calibration,
    Comparison,
    DataCheck,
    Difference,
    Evaluation,
    Interval,
    Place,
    Point,
    Rung,
    SameText,
    Scores,
    TrainedAdapter,
)
from tests.conftest import only_run


@pytest.mark.parametrize(
    ("end", "status"), [(None, "FINISHED"), (ValueError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_run_ends_as_its_block_does(workplace: Path, end: BaseException | None, status: str) -> None:
    try:
        with tracking.tracked_run(validated({}), {"made.by": "a test"}):
            if end:
                raise end
    except (ValueError, KeyboardInterrupt) as error:
        assert error is end
    run = only_run(workplace)
    assert run.info.status == status
    assert run.data.tags["made.by"] == "a test"


def test_store_lies_in_the_current_folder_and_artifacts_beside_it(workplace: Path) -> None:
    with tracking.tracked_run(validated({}), {}) as run_id:
        pass
    assert (workplace / "mlruns/mlflow.db").exists()
    assert (workplace / "mlruns/artifacts" / run_id / "artifacts/config.yaml").exists()
    assert only_run(workplace).info.artifact_uri == f"mlflow-artifacts:/{run_id}/artifacts"


def test_address_in_the_environment_is_used(
    workplace: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "mlruns").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}/mlruns/mlflow.db")
    with tracking.tracked_run(validated({"tracking": {"experiment": "other"}}), {}):
        pass
    assert only_run(elsewhere, "other").info.status == "FINISHED"
    assert not (workplace / "mlruns/mlflow.db").exists()


def test_deleted_experiment_is_refused_with_what_to_do(workplace: Path) -> None:
    import mlflow

    with tracking.tracked_run(validated({}), {}):
        pass
    mlflow.delete_experiment(mlflow.get_experiment_by_name("peft-flow").experiment_id)
    with (
        pytest.raises(InputError, match=r"tracking\.experiment: 'peft-flow' was deleted"),
        tracking.tracked_run(validated({}), {}),
    ):
        pass


def test_server_that_does_not_answer_is_refused_in_seconds(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with (
        pytest.raises(InputError, match=r"MLFLOW_TRACKING_URI: http://127\.0\.0\.1:9 does not answer"),
        tracking.tracked_run(validated({}), {}),
    ):
        pass


def test_store_that_cannot_be_made_is_refused_with_its_path(workplace: Path) -> None:
    (workplace / "mlruns").write_text("a file")
    with pytest.raises(InputError, match="mlruns cannot be made"), tracking.tracked_run(validated({}), {}):
        pass


def test_curve_points_keep_their_steps(workplace: Path) -> None:
    from mlflow import MlflowClient

    points = [Point(step=step, metrics={"train/loss": 1 / step, "train/learning_rate": 0.1}) for step in (1, 2, 5)]
    with tracking.tracked_run(validated({}), {}) as run_id:
        tracking.log_curve(run_id, *points)
    history = MlflowClient(tracking.tracking_uri()).get_metric_history(run_id, "train/loss")
    assert [(p.step, p.value) for p in history] == [(1, 1.0), (2, 0.5), (5, 0.2)]


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example/base")
    assert tracking.public_uri() == "https://mlflow.example/base"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@db:5432/mlflow")
    assert tracking.public_uri() == "postgresql://db:5432/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////tmp/a@b/mlflow.db")
    assert tracking.public_uri() == "sqlite:////tmp/a@b/mlflow.db"


def test_nested_values_are_flattened_with_dots() -> None:
    values = {"a": {"b": 1, "c": {"d": None}}, "e": ["x", "y"], "f": []}
    assert tracking.flatten(values) == {"a.b": 1, "a.c.d": None, "e": "x,y", "f": ""}


def test_local_part_of_a_version_is_left_out() -> None:
    assert "+" not in tracking.public_version("torch")
    assert tracking.public_version("torch") == "2.13.0"


def scores(accuracy: float) -> Scores:
    return Scores(accuracy=accuracy, macro_f1=accuracy - 0.01, log_loss=1 - accuracy)


def around(value: float) -> Interval:
    return Interval(value=value, low=value - 0.05, high=value + 0.05)


def rung(name: str, accuracy: float, best: float) -> Rung:
    gain = Difference(
        verdict="improved",
        accuracy=around(best - accuracy),
        macro_f1=around(best - accuracy),
        log_loss=around(accuracy - best),
        p_value=0.01,
        fixed=9,
        broken=1,
    )
    return Rung(
        name=name,
        scores=scores(accuracy),
        accuracy=around(accuracy),
        macro_f1=around(accuracy),
        log_loss=around(1 - accuracy),
        adapter_gain=None if name == "tuned" else gain,
    )


def a_comparison(folder: Path, leaked: int = 0, **references: float) -> Comparison:
    accuracies = {"tuned": 0.85, "baseline": 0.5, **references}
    return Comparison(
        folder=str(folder),
        rows=100,
        confidence=0.95,
        detectable=0.12,
        ladder=tuple(rung(name, accuracy, accuracies["tuned"]) for name, accuracy in accuracies.items()),
        leaked=leaked,
        accuracy_without_leaked=dict.fromkeys(accuracies, 0.84) if leaked else {},
        calibration=Calibration(
            temperature=1.5, error_before=0.08, error_after=0.02, log_loss_before=0.4, log_loss_after=0.36
        ),
        slices=(),
    )


def an_adapter(folder: Path) -> TrainedAdapter:
    (folder / "adapter_model.safetensors").write_bytes(bytes(2**20))
    return TrainedAdapter(
        folder=str(folder),
        sha256="",
        probe="",
        history=(),
        trainable_parameters=1,
        total_parameters=2,
        target_modules=(),
        fresh_modules=(),
        steps=30,
        best_step=20,
        temperature=1.5,
        seconds=3,
        examples_per_second=100,
        peak_memory_mb=400,
    )


def evaluations_for(result: Comparison, folder: Path) -> dict[str, Evaluation]:
    """Prediction files whose own names say nothing."""
    found = {}
    for i, rung in enumerate(result.ladder):
        (folder / f"file{i}.parquet").write_text(rung.name)
        found[rung.name] = Evaluation(
            predictions=str(folder / f"file{i}.parquet"), sha256="", scores=rung.scores, seconds=i
        )
    return found


def test_every_classifier_has_its_metrics_and_nothing_else(tmp_path: Path) -> None:
    result = a_comparison(tmp_path, tfidf=0.79, majority=0.5)
    metrics = tracking.final_metrics(evaluations_for(result, tmp_path), an_adapter(tmp_path), result)
    assert {name: value for name, value in metrics.items() if name.startswith("reference/tfidf")} == pytest.approx(
        {
            "reference/tfidf/accuracy": 0.79,
            "reference/tfidf/macro_f1": 0.78,
            "reference/tfidf/log_loss": 0.21,
            "reference/tfidf/gain": 0.06,
            "reference/tfidf/gain_low": 0.01,
            "reference/tfidf/gain_high": 0.11,
            "reference/tfidf/gain_p_value": 0.01,
        }
    )
    assert metrics["tuned/accuracy"] == 0.85
    assert (metrics["tuned/accuracy_low"], metrics["tuned/accuracy_high"]) == pytest.approx((0.80, 0.90))
    assert metrics["delta/accuracy"] == pytest.approx(0.35)
    assert metrics["delta/fixed"] == 9
    assert metrics["calibration/temperature"] == 1.5
    assert metrics["cost/adapter_mb"] == 1
    assert {name.split("/")[0] for name in metrics} == {
        "baseline", "tuned", "reference", "delta", "calibration", "cost", "train"
    }  # fmt: skip
    assert len(metrics) < 50  # more is a page that nobody reads


def test_leaked_rows_add_the_accuracy_without_them(tmp_path: Path) -> None:
    clean, leaky = a_comparison(tmp_path), a_comparison(tmp_path, leaked=3)
    evaluations = evaluations_for(clean, tmp_path)
    before, after = (tracking.final_metrics(evaluations, an_adapter(tmp_path), result) for result in (clean, leaky))
    assert after == before | {"test/accuracy_without_leaked": 0.84}


def test_tables_are_logged_once_however_often_the_task_is_tried(workplace: Path) -> None:
    import mlflow
    import pandas as pd
    from mlflow import MlflowClient

    folder = workplace / "work/comparison"
    (folder / "tables").mkdir(parents=True)
    (workplace / "work/plots").mkdir()
    (workplace / "work/plots/ladder.png").write_bytes(b"a picture")
    for name in ("comparison.json", "comparison.md"):
        (folder / name).write_text("{}")
    for name in set(tracking.TABLES) - {"predictions"}:
        frame = pd.DataFrame({"classifier": ["adapter", "é"], "accuracy": [0.85, 0.5]})
        frame.to_json(folder / f"tables/{name}.json", orient="split", index=False)
    result = a_comparison(folder, probe=0.7)
    table = pd.DataFrame({"row": [0, 1, 2]})
    with tracking.tracked_run(validated({}), {}) as run_id:
        for _ in range(2):
            tracking.log_comparison(evaluations_for(result, workplace), result, table)
    tables = {name: mlflow.load_table(f"comparison/{name}.json", run_ids=[run_id]) for name in tracking.TABLES}
    assert [len(tables[name]) for name in tracking.TABLES] == [2, 2, 2, 2, 2, 3]
    assert list(tables["ladder"]["classifier"]) == ["adapter", "é"]
    api = MlflowClient(tracking.tracking_uri())
    logged = {Path(file.path).name for file in api.list_artifacts(run_id, "comparison")}
    assert logged == {
        "comparison.json", "comparison.md", "tuned.parquet", "baseline.parquet", "probe.parquet",
        *(f"{name}.json" for name in tracking.TABLES),
    }  # fmt: skip
    place = api.download_artifacts(run_id, "comparison/probe.parquet", str(workplace))
    assert Path(place).read_text() == "probe"
    # the compare page of several runs shows only what lies at the top
    assert {"comparison.md", "ladder.png"} <= {file.path for file in api.list_artifacts(run_id)}


def test_data_check_is_in_the_run_before_its_figures_are(workplace: Path) -> None:
    from mlflow import MlflowClient

    places = (Place(split="train", row=1), Place(split="test", row=4))
    check = DataCheck(
        same_texts=(
            SameText(text="good", places=places, labels=("good", "bad")),
            SameText(text="bad", places=places, labels=("bad", "bad")),
        ),
        duplicates={"train": 5, "validation": 0, "test": 1},
        leaked={"validation": (), "test": (4, 7)},
        near_empty=(),
        max_length=32,
        truncated={},
        lengths={},
        length_edges=(),
        detectable=0.04,
        warnings=(),
    )
    folder = workplace / "check"
    folder.mkdir()
    check.write(folder / "data_check.json")
    (folder / "data_check.md").write_text("# Data check\n")
    with tracking.tracked_run(validated({}), {}) as run_id:
        tracking.log_data_check(run_id, check, folder)
        api = MlflowClient(tracking.tracking_uri())
        logged = {file.path for file in api.list_artifacts(run_id, "data_check")}
        assert logged == {"data_check/data_check.json", "data_check/data_check.md"}
        assert not api.get_run(run_id).data.metrics
        assert tracking.data_metrics(run_id) == {
            "data/leaked_test_rows": 2,
            "data/conflicting_texts": 1,
            "data/duplicate_rows": 6,
            "test/detectable_difference": 0.04,
        }


def test_view_of_the_run_list_is_made_once_and_then_left_to_people(workplace: Path) -> None:
    import mlflow
    from mlflow import MlflowClient

    with tracking.tracked_run(validated({}), {}) as run_id:
        pass
    experiment = mlflow.get_experiment_by_name("peft-flow")
    tags = runlist.experiment_tags(experiment.experiment_id)
    assert experiment.tags.items() >= tags.items()
    assert tracking.experiment_url(run_id).startswith("http://127.0.0.1:5000/#/experiments/1/runs?")
    name, _ = tags
    MlflowClient(tracking.tracking_uri()).set_experiment_tag(experiment.experiment_id, name, "somebody's own")
    with tracking.tracked_run(validated({}), {}):
        pass
    assert mlflow.get_experiment_by_name("peft-flow").tags[name] == "somebody's own"


def test_stop_is_not_called_a_failure_when_something_else_breaks_on_the_way_out(workplace: Path) -> None:
    """Ctrl-C in a terminal reaches Prefect's server too, which then no longer answers."""
    with pytest.raises(RuntimeError, match="seed 1"), tracking.tracked_run(validated({}), {}):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            try:
                raise ConnectionError("refused")
            except ConnectionError as error:
                raise RuntimeError("seed 1 failed") from error
    assert only_run(workplace).info.status == "KILLED"


def test_run_inside_another_is_its_child(workplace: Path) -> None:
    from mlflow import MlflowClient

    with tracking.tracked_run(validated({}), {}) as parent:
        with pytest.raises(ValueError), tracking.tracked_run(validated({"seed": 1}), {}) as child:
            raise ValueError
        assert MlflowClient().get_run(parent).info.status == "RUNNING"
    runs = {run_id: MlflowClient(tracking.tracking_uri()).get_run(run_id) for run_id in (parent, child)}
    assert runs[child].data.tags["mlflow.parentRunId"] == parent
    assert "mlflow.parentRunId" not in runs[parent].data.tags
    assert [runs[run_id].info.status for run_id in (parent, child)] == ["FINISHED", "FAILED"]
