"""A flow's parameters are the fields of its configuration, which alone describes them."""

import inspect
from collections.abc import Callable
from typing import Annotated, TypeVar

from tasks.settings.fields import Config

F = TypeVar("F", bound=Callable[..., object])


def parameters_of(kind: type[Config]) -> Callable[[F], F]:
    """Have a flow that takes `**given` show the fields of `kind` as its parameters.

    Prefect reads names, types, bounds and defaults from the signature, and the descriptions from the docstring's Args.
    """
    described = kind.model_json_schema()["properties"]
    parameters, lines = [], []
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

    def show(function: F) -> F:
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        function.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Args:", *lines])
        return function

    return show
