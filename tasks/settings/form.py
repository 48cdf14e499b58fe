"""The form in Prefect: the few fields that people set first, and all others, folded, under `advanced`.

A form changes where a value stands, never what it is called. What a program or an older form has said in the sections
alone is taken as before.
"""

from collections.abc import Mapping
from typing import Any

from tasks.settings.fields import Config

ADVANCED = "advanced"

FIRST: dict[str, tuple[str, ...]] = {
    "model": ("name",),
    "data": ("name", "text_columns", "label_column", "task"),
    "training": ("epochs", "learning_rate"),
    "tracking": ("run_name",),
}
"""By section."""

FIRST_OF_RETRAINING = {"data": ("corrections",), "tracking": ("registered_model",)}

FIRST_OUTSIDE = ("space", "trials", "parallel", "seeds")

NOT_PREFILLED = ("model", "data")
"""Sections whose `name` is the demo's by default: in a form somebody's own job begins with nothing there."""

FOLDED = ("finetune", "finetune_seeds", "learning_curve", "sweep", "retrain")
"""Flows, by the last part of their entry point."""


def first_of(section: str, retraining: bool) -> tuple[str, ...]:
    """Fields of a section that are shown first, in this order."""
    return FIRST.get(section, ()) + (FIRST_OF_RETRAINING.get(section, ()) if retraining else ())


def unfolded(given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Parameters with all that is under `advanced` in its section.

    What stands outside `advanced` though the form has it there was told by a program, a schedule or an older form.
    Prefect puts it beside what the deployment has under `advanced`, over which it counts: a section as a whole, as
    Prefect has it for all sections. `defaults` are of fields that Prefect adds where nothing was told.
    """
    values, defaults = dict(given), defaults or {}
    for name, value in (values.pop(ADVANCED, None) or {}).items():
        own = values.get(name)
        if isinstance(value, Mapping) and isinstance(own, Config | Mapping):
            said = own.model_dump(exclude_unset=True) if isinstance(own, Config) else own
            if said.keys() <= {*first_of(name, retraining=True)}:
                values[name] = {**said, **value}
        elif name not in values or (name in defaults and own == defaults[name]):
            values[name] = value
    return values


def with_names(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Parameters in sections that name model and data: an older form had the demo's, `names`, where they were not
    told; this one has none."""
    return {**given, **{section: {"name": names[section], **given.get(section, {})} for section in NOT_PREFILLED}}


def folded(given: Mapping[str, Any], entrypoint: str) -> dict[str, Any]:
    """Parameters of a deployment, as its form shows them."""
    flow = entrypoint.rpartition(".")[2]
    if flow not in FOLDED:
        return dict(given)
    shown, rest = dict[str, Any](), dict[str, Any]()
    for name, value in unfolded(given).items():
        if isinstance(value, Mapping) and name not in FIRST_OUTSIDE:
            for field, inner in value.items():
                place = shown if field in first_of(name, flow == "retrain") else rest
                place.setdefault(name, {})[field] = inner
        else:
            (shown if name in FIRST_OUTSIDE else rest)[name] = value
    return {**shown, **({ADVANCED: rest} if rest else {})}


def form(schema: dict[str, Any]) -> dict[str, Any]:
    """A flow's schema of parameters, as Prefect writes it, as the schema of its form.

    Prefect's page shows `properties`, in their order; its server checks what stands in `patternProperties` as well. So
    a value is also taken where an older form, or a program, gives it, and refused there by name and bounds.
    """
    properties, sections = dict(schema["properties"]), dict(schema.get("definitions", {}))
    if ADVANCED not in properties:
        return schema
    retraining, shown, rest = "gate" in properties, dict[str, Any](), dict[str, Any]()
    del properties[ADVANCED]
    for name, field in properties.items():
        if "$ref" not in field:
            (shown if name in FIRST_OUTSIDE else rest)[name] = titled(field, name)
            continue
        section = sections.pop(field["$ref"].rpartition("/")[2])
        defaults = field.get("default", {})
        fields = {
            inner: titled({**one, **({"default": defaults[inner]} if inner in defaults else {})}, f"{name}.{inner}")
            for inner, one in section["properties"].items()
        }
        first = {inner: fields[inner] for inner in first_of(name, retraining)}
        others = {inner: one for inner, one in fields.items() if inner not in first}
        if first:
            text = field.get("description") or section.get("description")
            shown[name] = part(first, others, title=name) | ({"description": text} if text else {})
            if name in NOT_PREFILLED:
                del first["name"]["default"]
                shown[name]["required"] = ["name"]
        if others:
            rest[name] = part(others, first, title=f"{ADVANCED}.{name}")
    ordered = {name: {**one, "position": place} for place, (name, one) in enumerate(shown.items())}
    ordered[ADVANCED] = {**switch(rest), "position": len(ordered)}
    required = [name for name in schema.get("required", []) if name != ADVANCED]
    return {
        **schema,
        "properties": ordered,
        "patternProperties": {f"^{name}$": one for name, one in rest.items() if name not in shown},
        "required": [*required, *(name for name in NOT_PREFILLED if name not in required)],
        "definitions": sections,
    }


def titled(field: dict[str, Any], name: str) -> dict[str, Any]:
    """With the name that it has in YAML and on the command line, which no other field of the page has."""
    return {key: value for key, value in field.items() if key != "position"} | {"title": name}


def part(shown: dict[str, Any], taken: dict[str, Any], title: str) -> dict[str, Any]:
    """A section of which these fields are shown, and these are taken too."""
    return {
        "type": "object",
        "title": title,
        "properties": shown,
        "patternProperties": {f"^{name}$": field for name, field in taken.items()},
        "additionalProperties": False,
    }


def switch(rest: dict[str, Any]) -> dict[str, Any]:
    """Two buttons, the second of which shows the fields: Prefect's page can fold nothing, but offer one of several
    forms. Any object fits the first, so that what is refused is refused by the field, and not by both forms."""
    names = ", ".join(rest)
    return {
        "title": ADVANCED,
        "description": f"All other fields: {names}. Those that you leave alone have their defaults.",
        "anyOf": [
            {"type": "object", "title": "defaults", "properties": {}},
            {"type": "object", "title": "set more", "properties": rest},
        ],
        "patternProperties": {f"^{name}$": field for name, field in rest.items()},
        "additionalProperties": False,
    }
