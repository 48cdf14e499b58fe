"""The files of a finished run: where it was done they lie, and everywhere else MLflow has them."""

import shutil
from pathlib import Path

from filelock import FileLock

from tasks.base.progress import tell
from tasks.base.records import RunResult, file_sha256
from tasks.base.work import WORK, RunFolder
from tasks.tracking.asking import fetched

ADAPTER = "adapter_model.safetensors"


def run_folder(result: RunResult, *needed: str) -> RunFolder:
    """The run's own folder, or, where what is `needed` of it (names of a RunFolder) is not there, a copy from MLflow.

    InputError where MLflow does not have it either, RuntimeError where its adapter is not the one that was trained.
    """
    own, folder = RunFolder.around(result.adapter_path), (WORK / f"fetched-{result.run_id}").resolve()
    if all(getattr(own, name).exists() for name in needed):
        return own
    with FileLock(RunFolder(folder).lock):
        if not folder.is_dir():
            tell("The files of MLflow run %s are not on this machine: fetched from MLflow", result.run_id)
            fetch(result, folder)
    return RunFolder(folder)


def fetch(result: RunResult, folder: Path) -> None:
    """`folder`, whole or not at all, with the run's adapter, comparison and test rows at their usual places."""
    staged = folder.with_name(f".{folder.name}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    copy = RunFolder(staged)
    fetched(result.run_id, "adapter", staged)
    fetched(result.run_id, "comparison", staged).rename(copy.staged)
    if (found := file_sha256(copy.adapter / ADAPTER)) != result.adapter_sha256:
        raise RuntimeError(
            f"MLflow run {result.run_id} holds another adapter ({found[:12]}) than the one that was trained "
            f"({result.adapter_sha256[:12]}): its files were changed"
        )
    copy.comparison.mkdir()
    shutil.copy(copy.staged / copy.comparison_record.name, copy.comparison_record)
    shutil.copy(copy.staged / copy.predictions.name, copy.predictions)
    staged.rename(folder)
