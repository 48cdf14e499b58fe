"""The model that is watched, and the rows that it was made with, from its run in MLflow."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.base.machine import environment_key
from tasks.base.records import Record, digest
from tasks.base.trouble import first_line
from tasks.base.work import WORK
from tasks.data.duplicates import stable_keys
from tasks.data.prepare import find_data
from tasks.data.splits import read_splits
from tasks.inference.job import Job, find_job
from tasks.settings.config import MonitorConfig, RunConfig
from tasks.settings.fields import InputError
from tasks.settings.sections import DataConfig
from tasks.sources.hub import patient
from tasks.tracking.adapters import run_of
from tasks.tracking.asking import SEEN, TEST_ROWS, download, fetched, recorded_run

if TYPE_CHECKING:
    import pandas as pd


class Watched(Record):
    name: str
    """Of the registered model."""
    version: str
    run_id: str
    """Of the run that trained it."""
    config: RunConfig
    """Of that run, at the revisions of data and model that it found."""
    data_revision: str
    task: str
    job: Job
    """How it would label the inputs."""
    answers: str
    """Parquet file with what it said about its test rows."""
    folder: str
    """Of what was fetched from its run."""

    @property
    def text_columns(self) -> tuple[str, ...]:
        return self.config.data.text_columns


@contextmanager
def as_monitor() -> Iterator[None]:
    """Errors of a prediction, in the words of a monitoring's fields."""
    try:
        yield
    except InputError as error:
        names = {"input": "inputs", "model": "name"}
        told = re.sub(r"^(input|model):", lambda found: f"{names[found[1]]}:", str(error))
        raise type(error)(told) from error


def find_watched(config: MonitorConfig, folder: Path) -> Watched:
    """Model and inputs, found and checked; files of the model's run are put into `folder`. InputError for all that the
    user must change."""
    if config.inputs == "-":
        raise InputError("inputs: standard input cannot be watched; give a file or folder")
    with as_monitor():
        job = find_job(config.prediction, folder / "model")
    name, slash, version = job.version.rpartition("/")
    if not slash:
        raise InputError(f"name: {config.name} is not a registered model; peft-flow models lists them")
    run_id = run_of(f"models:/{job.version}")
    if not run_id:
        raise InputError(f"name: MLflow does not know which run trained {job.version}; watch a version that one did")
    recorded = recorded_run(run_id, folder / "run")
    own, parameters = recorded.config, recorded.run.parameters
    sections = {
        section: getattr(own, section).model_copy(update={"revision": parameters[f"{section}.revision"]})
        for section in ("data", "model")
        if not parameters[f"{section}.revision"].startswith("sha256:")
    }
    own = own.model_copy(update={**sections, "offline": config.offline})
    if own.data.test_file:  # the run's own copy of these rows: the file may be gone
        rows = str(fetched(run_id, TEST_ROWS, folder / "run"))
        own = own.model_copy(update={"data": own.data.model_copy(update={"test_file": rows})})
    watched = Watched(
        name=name,
        version=version,
        run_id=run_id,
        config=own,
        data_revision=parameters["data.revision"],
        task=parameters.get("data.task", "single_label"),
        job=job,
        answers=recorded.run.predictions,
        folder=str(folder / "run"),
    )
    truth_columns(config, watched)
    return watched


def truth_columns(config: MonitorConfig, watched: Watched) -> DataConfig:
    """Where the inputs have the true labels; InputError where as many columns as these cannot hold them."""
    own, asked = watched.config.data, config.label_columns
    if not asked:
        return own
    if own.label_columns and len(asked) != len(own.label_columns):
        raise InputError(
            f"label_columns: the model's labels lie in {len(own.label_columns)} columns, "
            f"{', '.join(own.label_columns):.200}; name as many, in this order"
        )
    if not own.label_columns and len(asked) > 1:
        raise InputError(f"label_columns: the model's labels lie in one column; name one, not {', '.join(asked):.200}")
    return own.model_copy(update={"label_columns": asked} if own.label_columns else {"label_column": asked[0]})


def tested_rows(watched: Watched) -> "pd.DataFrame":
    """In the order of the answers about them."""
    import pandas as pd

    return pd.read_parquet(fetched(watched.run_id, TEST_ROWS, Path(watched.folder)))[list(watched.text_columns)]


def training_rows(watched: Watched) -> "tuple[pd.DataFrame | None, str]":
    """Texts of the rows that it was trained on, where they can still be had; else why not, in a sentence."""
    own = watched.config
    try:
        source = find_data(own)
        if source.revision != watched.data_revision:
            return None, f"The training data in {own.data.name} have changed since; only the test rows are known."
        train = patient(read_splits)(source, own.data).datasets["train"]
    except (InputError, OSError) as error:
        return None, f"The training rows cannot be read ({first_line(error)}); only the test rows are known."
    return train.select_columns(list(watched.text_columns)).to_pandas(), ""


def learned_keys(watched: Watched) -> set[int]:
    """Of the texts that it has learned from, as `stable_keys` gives them."""
    import pandas as pd

    file = download(watched.run_id, SEEN, Path(watched.folder))
    return set(pd.read_parquet(file)["text"].tolist()) if file else set()


def keys_of(rows: "pd.DataFrame") -> list[int]:
    return list(stable_keys([rows[name] for name in rows]))


def monitor_folder(config: MonitorConfig, watched: Watched) -> str:
    """Where this monitoring's files are: one that was interrupted goes on in the same MLflow run."""
    source = watched.job.source
    assert source
    told = config.model_dump(mode="json", exclude={"offline"})
    folder = WORK / f"monitor-{digest([told, source.content, watched.job.version, environment_key()])}"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder.resolve())
