"""A flow's parameters are the fields of its configuration, which alone describes them."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, TypeVar

from prefect import runtime

from tasks.settings.fields import Config
from tasks.settings.form import ADVANCED, unfolded
from tasks.settings.loading import checked, sections

F = TypeVar("F", bound=Callable[..., object])
K = TypeVar("K", bound=Config)


def parameters_of(kind: type[Config]) -> Callable[[F], F]:
    """Have a flow that takes `**given` show the fields of `kind` as its parameters, and `advanced`, see
    tasks/settings/form.py, where these have sections.

    Prefect reads names, types, bounds and defaults from the signature, and the descriptions from the docstring's Args.
    """
    described = kind.model_json_schema()["properties"]
    parameters, lines, defaults = [], [], defaults_of(kind)
    for name, field in kind.model_fields.items():
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else field.default,
                annotation=Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation,
            )
        )
        text = described[name].get("description") or inspect.getdoc(field.annotation)
        lines.append(f"    {name}: {text}")
    if any(sections(kind)):
        only = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(ADVANCED, only, default={}, annotation=dict[str, Any]))
        lines.append(f"    {ADVANCED}: Fields of any section that the form shows apart from the others.")

    def show(function: F) -> F:
        @wraps(function)
        def called(**given: Any) -> object:
            values = unfolded(given, defaults)
            return function(**(dict(checked(kind, values)) if given.get(ADVANCED) else values))

        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Args:", *lines])
        return called  # type: ignore[return-value]

    return show


def told(kind: type[K]) -> K:
    """What the flow run at hand was told."""
    return checked(kind, unfolded(runtime.flow_run.parameters, defaults_of(kind)))


def defaults_of(kind: type[Config]) -> dict[str, Any]:
    return {name: field.default for name, field in kind.model_fields.items() if not field.is_required()}
