"""Versions of registered models, and their aliases."""

import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tasks.base.records import Record
from tasks.settings.fields import InputError
from tasks.tracking.address import client, every_page, public_uri, tracking_uri
from tasks.tracking.opening import check_store, is_there
from tasks.tracking.patience import ABSENT, in_one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient


CHAMPION, PREVIOUS = "champion", "previous"
"""Aliases, in MLflow's model registry: of the version in use, which the next one has to beat, and of the one before."""


class Champion(Record):
    uri: str
    """`models:/NAME/VERSION`"""
    version: str
    source: str
    """The logged model behind it: a version number is given anew after its model was deleted, this name never."""
    run_id: str | None
    """Of the run that trained it."""


def find_champion(name: str) -> Champion | None:
    """What carries the alias among the versions of registered model `name`, where there is one."""
    from mlflow.exceptions import MlflowException

    if not is_there():
        return None
    try:
        found = client().get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ABSENT:  # no such model; no such alias
            return None
        raise
    version = str(found.version)
    return Champion(
        uri=f"models:/{name}/{version}", version=version, source=str(found.source), run_id=found.run_id or None
    )


class RegisteredVersion(Record):
    """One version of a registered model."""

    version: str
    created: int
    """Milliseconds since 1970."""
    run_id: str | None
    source: str
    aliases: tuple[str, ...]
    tags: dict[str, str]
    description: str


class NoModel(InputError):
    """There is no registered model of this name."""


class Renamed(InputError):
    """The registered model of this name has another now."""


def registered_versions(name: str) -> list[RegisteredVersion]:
    """All versions of registered model `name`, oldest first; InputError where it, or store or server, is missing:
    NoModel, or Renamed."""
    from mlflow.exceptions import MlflowException

    if not name.strip() or {"/", ":"}.intersection(name):
        raise InputError(f"registered models have a name without '/' and ':', not {name!r:.80}")
    check_store()
    api = client()
    with in_one_line():
        try:
            aliases = api.get_registered_model(name).aliases  # a search leaves them out
        except MlflowException as error:
            if error.error_code not in ABSENT:
                raise
            if renamed := new_name(api, name):
                raise Renamed(
                    f"registered model {name} was renamed to {renamed} in MLflow; give that name, or rename it back"
                ) from None
            known = ", ".join(model.name for model in api.search_registered_models(max_results=10))
            there = f"it has {known}" if known else "none was registered yet; see tracking.registered_model"
            raise NoModel(f"there is no registered model {name!r:.80} in {public_uri()}; {there}") from None
        quote = '"' if "'" in name else "'"
        found = api.search_model_versions(f"name={quote}{name}{quote}", max_results=MOST_VERSIONS)
    versions = [
        RegisteredVersion(
            version=str(one.version),
            created=one.creation_timestamp,
            run_id=one.run_id or None,
            source=str(one.source),
            aliases=tuple(sorted(alias for alias, version in aliases.items() if str(version) == str(one.version))),
            tags=one.tags,
            description=one.description or "",
        )
        for one in found
    ]
    return sorted(versions, key=lambda version: int(version.version))


MOST_VERSIONS = 10_000


def registered_names() -> list[str]:
    """Of all registered models."""
    check_store()
    with in_one_line():
        return [model.name for model in every_page(client().search_registered_models)]


def new_name(api: "MlflowClient", name: str) -> str | None:
    """What the registered model is called now that was `name`: what was decided about its versions says so."""
    said = f'"name":{json.dumps(name, ensure_ascii=False)},'
    for version in api.search_model_versions(max_results=MOST_VERSIONS):
        if version.name != name and any(
            tag.startswith("decision.") and said in value for tag, value in version.tags.items()
        ):
            return str(version.name)
    return None


def register_again(name: str, model_uri: str) -> str:
    """The new version of a logged model whose registered model, or version of it, was deleted."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    with in_one_line():
        return str(mlflow.register_model(model_uri, name).version)


def set_alias(name: str, alias: str, version: str) -> None:
    with in_one_line():
        client().set_registered_model_alias(name, alias, version)


def tag_version(name: str, version: str, tags: Mapping[str, str]) -> None:
    api = client()
    with in_one_line():
        for tag, value in tags.items():
            api.set_model_version_tag(name, version, tag, value)


def describe_version(name: str, version: str, text: str) -> None:
    with in_one_line():
        client().update_model_version(name, version, text)


def promote_command(name: str, version: str) -> str:
    """To be copied into a shell: a name can hold spaces and apostrophes."""
    return f"peft-flow promote {shlex.quote(name)} {version} --reason TEXT"


def newest_version(name: str) -> str | None:
    """Of a registered model; None where it has no version, or is not there."""
    try:
        versions = registered_versions(name)
    except InputError:
        return None
    return versions[-1].version if versions else None
