"""What goes to MLflow, apart from the flow that calls it."""

from pathlib import Path

import pytest

from tasks import tracking
from tasks.config import InputError, validated
from tasks.records import Point
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
    with tracking.tracked_run(validated({}), {}):
        pass
    assert (workplace / "mlruns/mlflow.db").exists()
    assert only_run(workplace).info.artifact_uri.startswith((workplace / "mlruns/artifacts").as_uri())


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
