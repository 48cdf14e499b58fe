"""Where files of runs lie: a plugin of MLflow for addresses `mlflow-artifacts:/PATH`, which do not name a folder.

A store in a file (`sqlite:///.../mlflow.db`) keeps them beside itself, in `artifacts`. A server over the same store
serves that folder under the same addresses. So a run is whole with and without a server, and after the folder moved.
MLflow's own choice, absolute paths, lists no files after a move, and says nothing.
"""

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

SQLITE = "sqlite:///"


def repository(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
    """MLflow's way to the files at `artifact_uri`: the folder beside a store in a file, else the server."""
    import mlflow
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    store = tracking_uri or mlflow.get_tracking_uri()
    if not store.startswith(SQLITE):
        return MlflowArtifactsRepository(artifact_uri, tracking_uri, registry_uri)
    return LocalArtifactRepository(str(path_of(artifact_uri, folder_of(store))))


def folder_of(store: str) -> Path:
    """The folder of artifacts of a store in a file."""
    return Path(store.removeprefix(SQLITE)).resolve().parent / "artifacts"


def path_of(artifact_uri: str, folder: Path) -> Path:
    """Where an address points to in `folder`; ValueError where it leads out of it."""
    path = (folder / unquote(urlsplit(artifact_uri).path).lstrip("/")).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"{artifact_uri} leads out of {folder}")
    return path
