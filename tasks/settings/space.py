"""What a sweep varies: fields of the configuration, each with choices or a range, checked before anything starts."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import checked, nearest_name, sections, unknown_field
from tasks.settings.methods import METHODS

Assignment = Mapping[str, Any]
"""Values by field, as `{"training.learning_rate": 0.001}`."""

VARIED = {
    "model": ("name", "revision", "dtype", "quantization"),
    "data": ("max_length", "max_train_rows"),
    "adapter": ("method", "r", "alpha", "dropout", "target_modules", "target_parameters", "layers", "options"),
    "training": (
        *("epochs", "max_steps", "batch_size", "gradient_accumulation_steps", "learning_rate", "warmup_fraction"),
        *("weight_decay", "scheduler", "class_weights", "focal_gamma", "early_stopping_patience"),
    ),
}
"""Fields, by section, that leave the validation rows and what is measured on them as they are; and `seed`."""

OF_METHOD = ("adapter.r", "adapter.alpha", "adapter.dropout")
"""Fields that some methods have nothing for."""

RANGE = ("low", "high", "log", "step")


class Varied(NamedTuple):
    """One field of the space: choices, or a range from `low` to `high`, both included."""

    field: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    whole: bool = False
    """Only whole numbers."""
    when: Mapping[str, tuple[Any, ...]] = {}
    """Varied only where each of these fields has one of these values."""

    def applies(self, values: Assignment) -> bool:
        """Whether it has an effect where the other fields have `values`."""
        known = self.field not in OF_METHOD or has_field(values["adapter.method"], self.field)
        return known and all(values[field] in allowed for field, allowed in self.when.items())

    def steps(self) -> tuple[Any, ...]:
        """All values, in order. Raises InputError for a range without a step, which has no end of them."""
        if self.choices:
            return self.choices
        if self.step is None:
            raise InputError(f"sweep: {self.field} is a range without step, and a grid needs one; or list the choices")
        count = math.floor((self.high - self.low) / self.step + 1e-9)
        kind = int if self.whole else float
        return tuple(kind(round(self.low + place * self.step, 12)) for place in range(count + 1))


def read_space(given: Mapping[str, Any], config: RunConfig) -> tuple[Varied, ...]:
    """The fields of the space, each after those that its conditions name.

    `given` is as in the file: fields in their sections, or by dotted name. Raises InputError in one line.
    """
    if not given:
        raise InputError("sweep: the space is empty; name fields to vary, such as training.learning_rate")
    values = {field: one_field(field, value, config) for field, value in flat(given)}
    base = values_of(config)
    for one in values.values():
        check_conditions(one, values, base)
    return tuple(in_order(values))


def flat(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    seen = set[str]()
    inner = dict(sections())
    for name, value in given.items():
        if name in inner and not isinstance(value, Mapping):
            raise InputError(f"sweep: '{name}' is a section; name its fields below it")
        pairs = [(f"{name}.{field}", one) for field, one in value.items()] if name in inner else [(name, value)]
        for field, one in pairs:
            if field in seen:
                raise InputError(f"sweep: {field} is there twice")
            seen.add(field)
            yield field, one


def one_field(field: str, given: Any, config: RunConfig) -> Varied:
    check_may_vary(field)
    if isinstance(given, list | tuple):
        given = {"choices": list(given)}
    if not isinstance(given, Mapping):
        raise InputError(f"sweep: {field} must be a list of choices, or low and high, not {given!r:.80}")
    for name in given:
        if name not in ("choices", "when", *RANGE):
            nearest = nearest_name(str(name), ["choices", "when", *RANGE])
            advice = f"did you mean {nearest}?" if nearest else f"it takes choices, or {', '.join(RANGE)}; and when"
            raise InputError(f"sweep: {field} has an unknown entry {name!r:.80}; {advice}")
    if "choices" in given and (twice := [name for name in RANGE if name in given]):
        raise InputError(f"sweep: {field} has choices and {twice[0]}; leave one out")
    when = conditions(field, given.get("when", {}))
    if "choices" in given:
        return Varied(field, check_choices(field, given["choices"], config), when=when)
    return check_range(field, given, config)._replace(when=when)


def check_may_vary(field: str) -> None:
    section, _, name = field.partition(".")
    if field == "seed" or name in VARIED.get(section, ()):
        return
    known = dict(sections())
    if (section in known and name in known[section].model_fields) or field in RunConfig.model_fields:
        allowed = ", ".join(f"{section}.{name}" for name in VARIED.get(section, ())) or "model, adapter, training, seed"
        raise InputError(f"sweep: {field} must be the same for all trials, to compare them; what can vary: {allowed}")
    raise InputError(f"sweep: {unknown_field(field)}")


def conditions(field: str, given: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(given, Mapping):
        raise InputError(f"sweep: {field}.when must name fields and their values, not {given!r:.80}")
    return {name: tuple(one) if isinstance(one, list | tuple) else (one,) for name, one in given.items()}


def check_choices(field: str, choices: Any, config: RunConfig) -> tuple[Any, ...]:
    """The choices as the field has them: `1e-3` read as text becomes a number."""
    if not isinstance(choices, list | tuple) or not choices:
        raise InputError(f"sweep: {field} has no choices; list two or more")
    found = [as_the_field_has_it(field, choice, config) for choice in choices]
    if len({shown(one) for one in found}) < len(found):
        raise InputError(f"sweep: {field} has the same choice twice")
    if len(found) == 1:
        raise InputError(f"sweep: {field} has one choice; a value for all trials belongs into the configuration")
    return tuple(found)


def check_range(field: str, given: Mapping[str, Any], config: RunConfig) -> Varied:
    if missing := [name for name in ("low", "high") if name not in given]:
        raise InputError(f"sweep: {field} has no {missing[0]}; a range needs low and high")
    log, step = given.get("log", False), given.get("step")
    if not isinstance(log, bool):
        raise InputError(f"sweep: {field}.log must be true or false, not {log!r:.80}")
    low, high = (number(f"{field}.{name}", given[name]) for name in ("low", "high"))
    if low >= high:
        raise InputError(f"sweep: {field}.low must be less than high, not {given['low']} and {given['high']}")
    ends = [as_the_field_has_it(field, given[name], config) for name in ("low", "high")]
    if not all(isinstance(end, int | float) for end in ends):
        raise InputError(f"sweep: {field} is not a number; list its choices")
    whole = all(isinstance(end, int) for end in ends)
    if log and low <= 0:
        raise InputError(f"sweep: {field}.low must be above 0 where log is true, not {given['low']}")
    if step is not None:
        if log:
            raise InputError(f"sweep: {field} has step and log; leave one out")
        step = number(f"{field}.step", step)
        if not 0 < step <= high - low or (whole and step != int(step)):
            kind = "a whole number" if whole else "a number"
            raise InputError(f"sweep: {field}.step must be {kind} above 0 and at most high - low, not {given['step']}")
    return Varied(field, low=ends[0], high=ends[1], log=log, step=step, whole=whole)


def number(name: str, given: Any) -> float:
    """`given`, also where YAML has read `1e-3` as text."""
    try:
        found = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"sweep: {name} must be a number, not {given!r:.80}")
    return found


def as_the_field_has_it(field: str, value: Any, config: RunConfig) -> Any:
    """The value after the field's own check; InputError in its words."""
    try:
        return values_of(with_values(config, {field: value}))[field]
    except InputError as error:
        raise InputError(f"sweep: {error}") from None


def check_conditions(one: Varied, space: Mapping[str, Varied], base: Assignment) -> None:
    if one.field in OF_METHOD:
        methods = space["adapter.method"].choices if "adapter.method" in space else (base["adapter.method"],)
        if not any(has_field(method, one.field) for method in methods):
            raise InputError(f"sweep: {one.field} has no effect with adapter.method {', '.join(methods)}; leave it out")
    for name, allowed in one.when.items():
        if name == one.field:
            raise InputError(f"sweep: {one.field}.when names the field itself")
        if name not in base:
            raise InputError(f"sweep: {one.field}.when: {unknown_field(name)}")
        known = space[name].choices if name in space else (base[name],)
        if name in space and not known:
            raise InputError(f"sweep: {one.field}.when names {name}, which is a range; list its choices")
        if strange := [value for value in allowed if value not in known]:
            raise InputError(
                f"sweep: {one.field}.when waits for {name} {shown(strange[0])!r:.80}, which it never is; it can be "
                f"{', '.join(str(shown(value)) for value in known)}"
            )


def in_order(space: Mapping[str, Varied]) -> Iterator[Varied]:
    """Each field after those that it depends on, otherwise as they were given. Raises InputError for a circle."""
    done = set[str]()
    left = dict(space)
    while left:
        ready = [name for name, one in left.items() if not depends_on(one).intersection(left)]
        if not ready:
            raise InputError(f"sweep: the conditions of {' and '.join(left)} wait for each other")
        done.add(ready[0])
        yield left.pop(ready[0])


def depends_on(one: Varied) -> set[str]:
    return {*one.when, *(["adapter.method"] if one.field in OF_METHOD else [])}


def has_field(method: str, field: str) -> bool:
    """Whether the method has something for `adapter.r`, `adapter.alpha` or `adapter.dropout`."""
    return getattr(METHODS[method], field.removeprefix("adapter.")) is not None


def values_of(config: RunConfig) -> dict[str, Any]:
    """All that can vary, by dotted name."""
    found = {
        f"{section}.{name}": getattr(getattr(config, section), name) for section in VARIED for name in VARIED[section]
    }
    return found | {"seed": config.seed}


def with_values(config: RunConfig, values: Assignment) -> RunConfig:
    """The configuration with these values in it; InputError where it refuses one of them.

    A learning rate that the configuration left to the method is left to the method of `values`.
    """
    told = config.model_dump()
    if config.training.learning_rate == config.usual_rate():
        told["training"]["learning_rate"] = None
    for field, value in values.items():
        section, _, name = field.rpartition(".")
        (told[section] if section else told)[name] = value
    return checked(RunConfig, told)


def shown(value: Any) -> Any:
    """A choice as a plain value, which a study and a table can hold."""
    if isinstance(value, str | int | float | None):
        return value
    return json.dumps(value, ensure_ascii=False)


def grid(space: Sequence[Varied], base: Assignment) -> Iterator[dict[str, Any]]:
    """Every combination once, without fields that have no effect in it."""
    if not space:
        yield {}
        return
    first, *others = space
    if not first.applies(base):
        yield from grid(others, base)
        return
    for value in first.steps():
        for rest in grid(others, {**base, first.field: value}):
            yield {first.field: value} | rest
