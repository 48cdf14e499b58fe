"""The adapter that a user calls by a name, a version or a run, fetched from MLflow."""

import re
from contextlib import suppress
from pathlib import Path

from tasks.base.progress import warn
from tasks.base.trouble import first_line, is_network_trouble
from tasks.settings.fields import InputError
from tasks.tracking.address import client, public_uri, tracking_uri
from tasks.tracking.asking import fetched, run_facts
from tasks.tracking.champions import decisions_about, no_champion
from tasks.tracking.deleted import what_is_gone
from tasks.tracking.listing import find_run
from tasks.tracking.opening import NoRun, check_store
from tasks.tracking.patience import ABSENT, in_one_line
from tasks.tracking.versions import CHAMPION, Renamed, newest_version, promote_command, registered_versions


def fetched_adapter(name: str, folder: Path) -> tuple[Path, str, str]:
    """The adapter that a user calls `name` in `folder`, its version, and its address in MLflow.

    InputError where there is none, which says what became of it, and where the run was deleted that made it: its files
    may be cleaned up any time.
    """
    try:
        uri, version = find_adapter(name)
    except InputError:
        if gone := what_became_of(name):
            raise InputError(f"model: {gone}") from None
        raise
    if (run_id := run_of(uri)) and (gone := what_is_gone(run_id)):
        if run_facts(run_id):
            raise InputError(f"model: {name} cannot be used: {gone}, or choose another version or run")
        warn("%s; the files of %s are all that is left of it", gone, version)
    try:
        return download_adapter(uri, folder), version, uri
    except OSError as error:
        if is_network_trouble(error) or error.errno:
            raise
        raise InputError(f"model: {name} cannot be read: {first_line(error)}; choose another version or run") from error


def what_became_of(name: str) -> str:
    """Of a model that was there and is not any more, by what a user calls it; empty where nothing tells of it."""
    registered, *rest = re.split("[/@]", name.removeprefix("models:/"), maxsplit=1)
    try:
        versions = registered_versions(registered)
    except Renamed as error:
        return str(error)
    except InputError:
        return ""
    return no_champion(registered, versions, decisions_about(versions)) if rest in ([], [CHAMPION]) else ""


def find_adapter(name: str) -> tuple[str, str]:
    """Address, for `download_adapter`, and version of what a user calls `name`: NAME/3, or a run, see `find_run`.

    NAME alone is its champion, whatever runs are called so; NAME@ALIAS and NAME/3 may stand after `models:/`. Raises
    InputError where there is none.
    """
    from mlflow.exceptions import MlflowException

    check_store()
    api, asked = client(), name.removeprefix("models:/")
    with in_one_line():
        try:
            if re.fullmatch("[0-9a-f]{32}", asked):
                if not api.list_artifacts(asked, "adapter"):
                    raise InputError(f"model: run {asked} holds no adapter; give one that peft-flow finetune finished")
                return f"runs:/{asked}/adapter", asked
            if re.fullmatch("m-[0-9a-f]{32}", asked):  # a logged model, as finetune shows it
                return f"models:/{asked}", str(api.get_logged_model(asked).source_run_id or asked)
            registered, slash, number = asked.partition("/")
            registered, _, alias = (registered, "", "") if slash else asked.partition("@")
            found = (
                api.get_model_version(registered, number)
                if slash
                else api.get_model_version_by_alias(registered, alias or CHAMPION)
            )
        except MlflowException as error:
            if error.error_code not in ABSENT:
                raise
            registered = asked.removesuffix(f"@{CHAMPION}")
            if latest := newest_version(registered):
                raise InputError(
                    f"model: {registered} has no champion; make a version its champion "
                    f"({promote_command(registered, latest)}), or name the version: {registered}/{latest}"
                ) from None
            if not {"/", "@"}.intersection(asked) and not re.fullmatch("(m-)?[0-9a-f]{32}", asked):
                with suppress(NoRun):
                    return find_adapter(find_run(asked))
            raise NoRun(
                f"model: there is no run, registered model, version or alias {name!r:.100} in {public_uri()}, "
                "and no such folder; peft-flow runs and peft-flow models show what there is"
            ) from None
    return f"models:/{registered}/{found.version}", f"{registered}/{found.version}"


def download_adapter(uri: str, folder: Path) -> Path:
    """The adapter folder of a model that `log_model` logged, or of a run's artifacts, copied into `folder`; OSError
    where it has none."""
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri())
    try:
        files = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        raise FileNotFoundError(first_line(error)) from error  # run or model was deleted for good
    adapter = files if uri.startswith("runs:/") else files / "artifacts/adapter"
    if not adapter.is_dir():
        raise FileNotFoundError(f"{uri} holds no adapter")
    return adapter


def run_of(uri: str) -> str | None:
    """Id of the run that trained the model at an address of `find_adapter`; None where MLflow does not say."""
    kind, name, *number = uri.split("/")
    if kind == "runs:":
        return name
    with in_one_line():
        api = client()
        found = api.get_model_version(name, *number).run_id if number else api.get_logged_model(name).source_run_id
    return found or None


def find_test_table(uri: str, folder: Path) -> Path | None:
    """The table of test rows, with their texts, of the run that made this model; None where it is gone."""
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri())
    try:
        run_id = uri.split("/")[1] if uri.startswith("runs:/") else mlflow.models.get_model_info(uri).run_id
        return fetched(run_id, TEST_TABLE, folder)
    except (InputError, MlflowException):
        return None


TEST_TABLE = "comparison/predictions.json"
"""Artifact with a line for each test row."""
