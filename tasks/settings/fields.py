"""What every field of a configuration obeys: bounds, letters, names, and the error that says so."""

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from tasks.settings.fixed import DATA_FILES
from tasks.settings.secrets import holds_secret, names_secret


class InputError(ValueError):
    """What the user gave cannot work; the message is one line that says what was given and what would do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def check_value(value: object, levels: int = 0) -> None:
    """ValueError for what no page or store can take: control characters, secrets, not-a-number, anything endless."""
    if levels > MOST_LEVELS:
        raise ValueError(f"is nested deeper than {MOST_LEVELS} levels; write it flatter")
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value}")
    elif isinstance(value, int) and abs(value) >= MOST_DIGITS:
        raise ValueError("is too large a number")
    elif isinstance(value, Mapping | list | tuple):
        if len(value) > MOST_ENTRIES:
            raise ValueError(f"has {len(value):,} entries; {MOST_ENTRIES:,} are the most")
        for name, inner in value.items() if isinstance(value, Mapping) else ((None, inner) for inner in value):
            check_value(name, levels + 1)
            if isinstance(name, str) and isinstance(inner, str) and names_secret(name):
                raise ValueError(SECRET)
            check_value(inner, levels + 1)
    elif not isinstance(value, float | int | None):
        raise ValueError(f"must be made of words and numbers, not of a {type(value).__name__}")


def check_text(text: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"has {len(text):,} characters; {MOST_CHARACTERS:,} are the most")
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ValueError(f"holds the control character {character!r}; leave it out")
    name, equals, _ = text.partition("=")
    if holds_secret(text) or (equals and names_secret(name)):
        raise ValueError(SECRET)


SECRET = (
    "holds what looks like a password or token, and configurations are stored where others can read them; "
    "leave it out and set it in the environment (HF_TOKEN, MLFLOW_TRACKING_PASSWORD, PREFECT_API_AUTH_STRING)"
)

BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def show_bounds(schema: dict[str, Any]) -> None:
    """Have each description of a form say the bounds, which the form itself shows only when they are crossed."""
    for field in schema["properties"].values():
        kinds = [field, *field.get("anyOf", ())]
        bounds = [f"{sign} {kind[key]:,}" for kind in kinds for key, sign in BOUNDS.items() if key in kind]
        if bounds:
            field["description"] = f"{field['description']} ({', '.join(bounds)})"


MOST_CHARACTERS, MOST_ENTRIES, MOST_LEVELS = 1_000, 1_000, 8
"""Of one text; of one list or mapping; of lists and mappings within each other. MLflow refuses longer parameters."""

MOST_DIGITS = 2**63
"""Whole numbers from here on fit into no store."""

MOST_BYTES = 1_000_000
"""Of a configuration file; the longest sensible one has a few thousand."""


class Config(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), json_schema_extra=show_bounds
    )

    command: ClassVar[str] = "finetune"
    """Of `peft-flow`, whose help lists the fields."""

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_kept(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and {int, float}.intersection((kind, *get_args(kind))):
            raise ValueError(f"must be a number, not {value}")  # pydantic would take `yes` for 1
        if not (isinstance(kind, type) and issubclass(kind, Config)):  # whose fields are checked one by one
            check_value(value)
        return value

    @field_validator(
        "text_columns",
        "label_columns",
        "target_modules",
        "target_parameters",
        "references",
        "tags",
        "threshold",
        mode="before",
        check_fields=False,
    )
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        """On the command line two columns are written `premise,hypothesis`; nothing is the empty list."""
        if value is None:
            return ()
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def stays_inside(name: str) -> str:
    """`name`, which becomes a path in the Hub's cache; ValueError where that would lead out of it."""
    if name.startswith("/") or "\\" in name or {"", ".", ".."}.intersection(name.split("/")):
        raise ValueError(f"must be a name, not the path '{name}'")
    return name


Revision = Annotated[str, AfterValidator(stays_inside)]

# of what reads rows for a trained model

Split = Annotated[str | None, Field(min_length=1, description="Split of a data set or folder. None: its only one.")]

Subset = Annotated[
    str | None, Field(description="Configuration (subset) of a Hub data set that has several. None: its only one.")
]

DataRevision = Annotated[Revision, Field(min_length=1, description="Branch, tag or commit of a data set on the Hub.")]

BatchSize = Annotated[int, Field(ge=1, le=65_536, description="Most rows in one forward pass.")]

TrustRemoteCode = Annotated[
    bool,
    Field(description="Run Python code that comes with the foundation model. Leave off unless you trust its authors."),
]

Offline = Annotated[bool, Field(description="Use only what is already on this machine; do not ask the Hub.")]


def check_not_blank(name: str) -> str:
    if not name.strip():
        raise ValueError("must be a name that can be read, not only spaces")
    return name


def check_model_name(name: str) -> str:
    """`name`, by which MLflow and every command find the model again; ValueError for another."""
    if wrong := [letter for letter in name if letter in '/:?@"']:
        raise ValueError(f"must be a name without {wrong[0]}, not {name!r:.80}")
    if name != name.strip() or name[0] in ".~-\\":
        raise ValueError(f"must begin with a letter or digit and not end with a space, not {name!r:.80}")
    if re.fullmatch("(m-)?[0-9a-f]{32}", name):
        raise ValueError(f"must not look like the id of a run or logged model, as {name!r} does")
    if name.endswith(DATA_FILES):
        raise ValueError(f"must not look like a file, as {name!r:.80} does")
    return name


Name = Annotated[str, Field(min_length=1, max_length=250), AfterValidator(check_not_blank)]

ModelName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(check_model_name)]


def parsed_weights(text: str) -> dict[str, float]:
    """ValueError where these are none."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    right = isinstance(found, dict) and all(
        isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight <= MOST_WEIGHT
        for weight in found.values()
    )
    if not found or not right:
        raise ValueError(f"must be none, balanced, or weights by class such as {{spam: 5}}, not {text!r:.80}")
    return {str(name): float(weight) for name, weight in found.items()}


MOST_WEIGHT = 1e6
