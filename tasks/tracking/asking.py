"""What MLflow knows of runs and their files."""

from collections.abc import Mapping
from pathlib import Path

from tasks.base.outcomes import RecordedRun, StoredRun
from tasks.base.records import Record
from tasks.base.trouble import first_line
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import checked, parse_yaml
from tasks.tracking import runlist
from tasks.tracking.address import NOTE, client, public_uri, tracking_uri, ui
from tasks.tracking.deleted import what_is_gone
from tasks.tracking.listing import find_run, kind_of
from tasks.tracking.opening import check_store
from tasks.tracking.patience import ABSENT, in_one_line


def stored_run(asked: str, folder: Path) -> StoredRun:
    """A finished run, by what a user calls it, with its adapter's predictions downloaded into `folder`; InputError
    where it has none."""
    from mlflow.exceptions import MlflowException

    check_store()
    run_id = find_run(asked)
    with in_one_line():
        try:
            run = client().get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise InputError(f"there is no run '{run_id}' in {public_uri()}; peft-flow runs shows them") from None
    parameters, tags = run.data.params, run.data.tags
    if gone := what_is_gone(run_id):
        raise InputError(f"{gone}, or choose another run")
    kind = kind_of(parameters, tags)
    if kind == "sweep":
        raise InputError(f"run {run_id} stands for the trials of a sweep; name its best run, or another of its runs")
    if kind == "monitoring":
        raise InputError(f"run {run_id} has watched a model and trained none; name the run that trained it")
    if kind == "trial":
        raise InputError(
            f"run {run_id} is a trial of a sweep, which has not seen the test rows; name a run of finetune"
        )
    if kind == "learning curve":
        count = int(parameters["seeds"]) * len(parameters["curve_rows"].split(","))
        raise InputError(f"run {run_id} stands for the {count} runs of a learning curve; name one of those")
    if kind == "seeds":
        raise InputError(f"run {run_id} stands for {parameters['seeds']} runs, one for each seed; name one of those")
    if run.info.status != "FINISHED":
        raise InputError(f"run {run_id} has not finished ({run.info.status}); run it again, or choose another run")
    if "verdict" not in tags:
        raise InputError(f"run {run_id} was not made by peft-flow finetune")
    if "test_fingerprint" not in tags:
        raise InputError(f"run {run_id} is of an older version, which did not say what its test rows are; run it again")
    return StoredRun(
        run_id=run_id,
        name=run.info.run_name,
        verdict=tags["verdict"],
        parameters=parameters,
        test_fingerprint=tags["test_fingerprint"],
        predictions=str(fetched(run_id, PREDICTIONS, folder)),
    )


def fetched(run_id: str, artifact: str, folder: Path) -> Path:
    """A file of the run, downloaded into `folder`; InputError where it is gone."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(
            download_artifacts(run_id=run_id, artifact_path=artifact, dst_path=str(folder), tracking_uri=tracking_uri())
        )
    except (MlflowException, OSError) as error:
        raise InputError(f"run {run_id}: its file {artifact} cannot be read: {first_line(error)}") from error


def recorded_run(asked: str, folder: Path) -> RecordedRun:
    """All that a finished run needs to be done again; InputError where something of it is missing."""
    stored = stored_run(asked, folder)
    run_id = stored.run_id
    tags = client().get_run(run_id).data.tags
    needed = ("data_fingerprint", "adapter_sha256")
    if not {*needed} <= tags.keys() or not {"model.revision", "data.revision"} <= stored.parameters.keys():
        raise InputError(f"run {run_id} is of an older version, which did not record all that a rerun needs")
    config, environment = (
        fetched(run_id, name, folder).read_text(encoding="utf-8") for name in ("config.yaml", "environment.txt")
    )
    return RecordedRun(
        run=stored,
        config=checked(RunConfig, parse_yaml(config), f"run {run_id}, config.yaml: "),
        environment=environment,
        **{name: tags[name] for name in needed},
    )


def note_outcome(run_id: str, tags: Mapping[str, str], line: str, page: Path) -> None:
    """What became known of a run after it had ended: tags, a file, and the first line of its description."""
    api = client()
    text = api.get_run(run_id).data.tags.get(NOTE, "")
    if not text.startswith(line):  # else it has been said before
        tags = {**tags, NOTE: f"{line}  \n{text}"}  # two spaces: a line break in markdown
    api.log_artifact(run_id, str(page))
    for name, value in tags.items():
        api.set_tag(run_id, name, value)


PREDICTIONS, TEST_ROWS, SEEN = (f"comparison/{name}.parquet" for name in ("tuned", "test", "seen"))
"""Artifacts of a run: what its adapter said about the test rows, these as data.test_file takes them, and keys of the
texts that a registered model has learned from."""


class RunFacts(Record):
    """What a run says of itself, whatever made it."""

    run_id: str
    name: str
    url: str
    """Of its page in MLflow."""
    started: int
    """Milliseconds since 1970."""
    parameters: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    deleted: bool = False
    """As long as it can be restored."""


def run_facts(run_id: str) -> RunFacts | None:
    """None for a run that is not there any more."""
    from mlflow.exceptions import MlflowException

    with in_one_line():
        try:
            run = client().get_run(run_id)
        except MlflowException as error:
            if error.error_code in ABSENT:
                return None
            raise
    return RunFacts(
        run_id=run_id,
        name=run.info.run_name or "",
        url=f"{ui()}/{runlist.run_address(run.info.experiment_id, run_id)}",
        started=run.info.start_time,
        parameters=run.data.params,
        metrics=run.data.metrics,
        tags=run.data.tags,
        deleted=run.info.lifecycle_stage == "deleted",
    )


def runs_tagged(tag: str, value: str) -> set[str]:
    """Ids of the runs, of all experiments, that carry the tag with this value."""
    api = client()
    experiments = [experiment.experiment_id for experiment in api.search_experiments()]
    return {run.info.run_id for run in api.search_runs(experiments, f"tags.`{tag}` = '{value}'")}


def attach(run_id: str, to: str, *files: Path) -> None:
    """Files for the artifacts of a run that has ended, in its folder `to`."""
    for file in files:
        client().log_artifact(run_id, str(file), to)


def download(run_id: str, path: str, folder: Path) -> Path | None:
    """A copy of one artifact of a run under `folder`; None where the run has none of this name."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    parent = path.rpartition("/")[0] or None
    api = client()
    try:
        if path not in [file.path for file in api.list_artifacts(run_id, parent)]:
            return None
    except MlflowException as error:
        if error.error_code in ABSENT:  # the run is gone
            return None
        raise
    folder.mkdir(parents=True, exist_ok=True)
    return Path(
        download_artifacts(run_id=run_id, artifact_path=path, dst_path=str(folder), tracking_uri=tracking_uri())
    )
