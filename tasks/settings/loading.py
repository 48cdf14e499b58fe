"""Configurations read from files, the command line and MLflow, with errors that name the field."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from tasks.settings.config import RunConfig
from tasks.settings.fields import MOST_BYTES, Config, InputError

K = TypeVar("K", bound=Config)


def sections(kind: type[Config] = RunConfig) -> Iterator[tuple[str, type[Config]]]:
    """Name and class of each section, in the order people think."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield name, field.annotation


def load_config(
    path: Path | None = None,
    overrides: Mapping[str, str] | None = None,
    kind: type[K] = RunConfig,  # type: ignore[assignment]
    more: Mapping[str, Any] | None = None,
) -> K:
    """A configuration from a YAML file, `more` fields and dotted `section.field` overrides, checked.

    Raises InputError with one line that names the file or field and what would do.
    """
    values = (read_yaml(path) if path else {}) | dict(more or {})
    for dotted, text in (overrides or {}).items():
        *parents, name = dotted.split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise InputError(f"{path}: '{parent}' must be a section with fields, not {section!r}")
        section[name] = from_text(dotted, text)
    return checked(kind, values, f"{path}: " if path else "")


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        if not path.exists():
            raise InputError(f"no configuration file at {path}; the ready ones are in configs/")
        if not path.is_file():  # a pipe would be waited for, a device read for ever
            what = "a folder" if path.is_dir() else "a pipe or device"
            raise InputError(f"cannot read the configuration {path}: it is {what}, not a file")
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"cannot read the configuration {path}: it has more than {MOST_BYTES:,} bytes")
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the configuration {path}: {error}; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict | None):
        raise InputError(f"{path} must hold sections such as 'model:' and 'data:', not a {type(values).__name__}")
    # a section whose fields are all commented out reads as null: it is as if it were not there
    return {name: section for name, section in (values or {}).items() if section is not None}


class PlainLoader(yaml.SafeLoader):
    """YAML in which everything stands where it counts: no name twice, no references to other places.

    Of a field that is there twice YAML drops the first without a word, and ten lines of references to each other can
    stand for billions of values.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise at(self.peek_event(), "references (*name) are not read; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = set()
        for name, _ in node.value:
            if not isinstance(name.value, str):
                raise at(name, "a name must be a word")
            if name.value in names:
                raise at(name, f"the name {name.value!r:.80} is there twice")
            names.add(name.value)
        return super().construct_mapping(node, deep)


def at(place: Any, message: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"{message} (line {place.start_mark.line + 1})")


def parse_yaml(text: str) -> Any:
    """The values in `text`; YAMLError in few words, without the lines around the fault: they can hold anything."""
    try:
        return yaml.load(text, PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise yaml.YAMLError(f"{error.problem}{line}") from None
    except yaml.reader.ReaderError as error:
        raise yaml.YAMLError(f"it holds the character #x{error.character:04x}") from None
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except ValueError as error:  # numbers of thousands of digits, the 30th of February
        raise yaml.YAMLError(str(error)) from None


def from_text(dotted: str, text: str) -> object:
    """A command-line value: lists, mappings and 'null' are read as YAML, all else is left to the field's type."""
    if text.strip().lower() in ("null", "none", ""):
        return None
    if not text.lstrip().startswith(("{", "[")) or text.lstrip().startswith("{text}"):  # a template
        return text
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(
            f"{dotted}: cannot read {text!r:.80}: {error}; write lists as [a, b] and mappings as {{a: 1}}"
        ) from None


def validated(values: Mapping[str, Any]) -> RunConfig:
    return checked(RunConfig, values)


def checked(kind: type[K], values: Mapping[str, Any], where: str = "") -> K:
    """`values` as a `kind`; raises InputError naming the first wrong field and how many more there are."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first, *others = (describe(problem, kind) for problem in error.errors())
        more = f" (and {len(others)} more)" if others else ""
        raise InputError(f"{where}{first}{more}") from None


def describe(problem: Mapping[str, Any], kind: type[Config]) -> str:
    """One line for one pydantic error: the field, what is wrong with it, what was given."""
    dotted = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return unknown_field(dotted, kind)
    message = problem["msg"].removeprefix("Value error, ").replace("valid tuple", "list").replace("Tuple", "list")
    message = f"{dotted}: {message[:1].lower()}{message[1:].split(' after validation')[0]}"
    if problem["type"] == "value_error":  # our own words, which say what was given
        return message
    given = repr(problem["input"])
    return f"{message}, not {given if len(given) <= 80 else given[:77] + '...'}"


def unknown_field(dotted: str, kind: type[Config] = RunConfig) -> str:
    """`unknown field 'training.lr'; did you mean training.learning_rate?`"""
    if len(dotted) > 100:
        return f"unknown field '{dotted[:100]}...'; see peft-flow {kind.command} --help"
    if section := dict(sections(kind)).get(dotted):
        return (
            f"'{dotted}' is a section; its fields are {', '.join(f'{dotted}.{name}' for name in section.model_fields)}"
        )
    names, manual = field_names(kind), f"see peft-flow {kind.command} --help"
    if dotted in names:  # it has no option of its own
        return f"unknown field '{dotted}'; write it as an argument without a name; {manual}"
    return f"unknown field '{dotted}'; {did_you_mean(dotted, names, manual)}"


def field_names(kind: type[Config] = RunConfig) -> list[str]:
    inner = [f"{name}.{field}" for name, section in sections(kind) for field in section.model_fields]
    return [*inner, *kind.model_fields]


def did_you_mean(name: str, names: Sequence[str], otherwise: str | None = None) -> str:
    """What may have been meant by `name`: the most similar of `names`, and where none is, which there are."""
    nearest = nearest_name(name, names)
    return f"did you mean {nearest}?" if nearest else otherwise or f"there are {', '.join(names)}"


def nearest_name(name: str, names: Sequence[str]) -> str | None:
    """The most similar of `names`: its last part must be alike or have `name` as initials; sections break the tie."""
    section, _, last = name.rpartition(".")

    def likeness(candidate: str) -> float:
        other_section, _, other = candidate.rpartition(".")
        initials = "".join(word[:1] for word in other.split("_")) if "_" in other else ""
        alike = 1.0 if last == initials else similarity(last, other)
        return alike + similarity(section, other_section) / 2 if alike >= 0.6 else 0

    best = max(names, key=likeness, default="")
    return best if likeness(best) else None


def similarity(left: str, right: str) -> float:
    return difflib.SequenceMatcher(None, left, right).ratio()


def choices(section: type[Config], field: str) -> tuple[str, ...]:
    """The closed set of values a field allows, besides None, or nothing when it is open."""
    annotation = section.model_fields[field].annotation
    kinds = (
        get_args(annotation) if isinstance(annotation, UnionType) or get_origin(annotation) is Union else (annotation,)
    )
    return tuple(value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind))
