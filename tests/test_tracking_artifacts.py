import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

from tasks.tracking.address import tracking_uri
from tasks.tracking.artifacts import path_of
from tests.conftest import tracked


def test_run_is_whole_after_its_folder_moved(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tracked() as run_id:
        mlflow.MlflowClient().log_text(run_id, "hello", "notes/hello.txt")
    assert (workplace / "mlruns/artifacts" / run_id / "artifacts/notes/hello.txt").read_text() == "hello"
    shutil.move(workplace / "mlruns", workplace / "elsewhere/mlruns")
    monkeypatch.chdir(workplace / "elsewhere")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the old place: MLflow sets it for its child processes
    mlflow.set_tracking_uri(tracking_uri())
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/notes/hello.txt") == "hello"


def test_server_is_asked_where_there_is_one() -> None:
    assert isinstance(get_artifact_repository("mlflow-artifacts:/a", "http://127.0.0.1:1"), MlflowArtifactsRepository)


def test_address_cannot_lead_out_of_the_store(tmp_path: Path) -> None:
    assert path_of("mlflow-artifacts:/1/run/artifacts", tmp_path) == tmp_path / "1/run/artifacts"
    for address in ("mlflow-artifacts:/../secret", "mlflow-artifacts:/a/%2e%2e/%2e%2e/secret"):
        with pytest.raises(ValueError, match="leads out of"):
            path_of(address, tmp_path)
