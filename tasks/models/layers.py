"""Which layers of a model carry the adapter, by name."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.models.blocks import find_blocks, is_inside, text_parts
from tasks.models.experts import renames_layers, taken_for_experts
from tasks.models.options import listed
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError


def must_be_spelled_out(model: Any, kind: type, values: Mapping[str, Any]) -> bool:
    """Whether peft would take other layers than are meant: those that read pictures, the experts, or none."""
    if "target_modules" not in {field.name for field in dataclasses.fields(kind)}:
        return False
    named = values.get("target_modules")
    if kind.__name__ == "LoraConfig" and isinstance(named, str) and renames_layers(model):
        return True
    return text_parts(model) != [""] or bool(values.get("target_parameters") and named is None)


def chosen_layers(
    model: Any, kind: type, values: Mapping[str, Any], fresh: Sequence[str], config: RunConfig
) -> dict[str, Any]:
    """By full name, in what reads text, the layers that `target_modules` names; without it, all that suit."""
    named = values.get("target_modules")
    if named is None:
        layers = body_layers(model, fresh, norms=config.adapter.method == "ln_tuning")
        if kind.__name__ == "LoraConfig":
            layers = {name: layer for name, layer in layers.items() if not taken_for_experts(name, model)}
        if not layers:
            raise InputError(
                f"adapter.method: {config.adapter.method} finds no layers of a kind that it knows in "
                f"{config.model.name}; choose another model"
            )
        return layers
    parts = text_parts(model)
    layers = {
        name: module
        for name, module in model.named_modules()
        if is_inside(name, parts)
        and (re.fullmatch(named, name) if isinstance(named, str) else f".{name}".endswith(suffixes(named)))
    }
    if not layers:
        raise InputError(
            f"adapter.target_modules: what reads text in {config.model.name} has no layer that is called "
            f"'{', '.join(listed(named))}'; the rest is left as it is"
        )
    return layers


def suffixes(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f".{name}" for name in names)


def fully_named(layers: Mapping[str, Any], values: dict[str, Any], model: Any, config: RunConfig) -> dict[str, Any]:
    """`values` for just these layers."""
    if values.get("layers_to_transform") is not None:  # peft heeds it for last names only
        layers = {name: layer for name, layer in layers.items() if not is_below(name, model, config)}
    changes: dict[str, Any] = {"target_modules": sorted(layers)}
    if config.adapter.method == "ia3":
        changes["feedforward_modules"] = []
    return {name: value for name, value in values.items() if name != "layers_to_transform"} | changes


def is_below(name: str, model: Any, config: RunConfig) -> bool:
    """Whether this part of the model is in a block below `adapter.layers`, or not among those in adapter.options."""
    blocks, chosen = find_blocks(model), config.adapter.options.get("layers_to_transform")
    if not blocks:
        raise InputError(
            f"adapter.options: the blocks of {config.model.name} cannot be identified; leave layers_to_transform out"
        )
    inside = f".{name}".partition(f".{blocks.name}.")[2]
    number = int(inside.split(".")[0]) if inside else len(blocks.modules)
    if chosen is None:
        assert config.adapter.layers
        return number < len(blocks.modules) - config.adapter.layers
    return number < len(blocks.modules) and number not in listed(chosen)


def body_layers(model: Any, fresh: Sequence[str], norms: bool = False) -> dict[str, Any]:
    """Linear layers (or norms) by full name, of what reads text; without the head, without `fresh` modules, which train
    whole, and without what chooses experts. SqueezeBERT's blocks have convolutions in their place.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    heads = {name for name, _ in model.named_children() if name != model.base_model_prefix}
    outside, parts, blocks = (*heads, *fresh), text_parts(model), find_blocks(model)
    linear = (torch.nn.Linear, Conv1D)
    is_convolved = blocks and not any(isinstance(module, linear) for module in blocks.modules.modules())
    kinds = (torch.nn.Conv1d,) if is_convolved else linear
    return {
        name: module
        for name, module in model.named_modules()
        if not name.startswith(outside)
        and is_inside(name, parts)
        and ("Norm" in type(module).__name__ if norms else isinstance(module, kinds) and not ROUTER.search(name))
    }


ROUTER = re.compile(r"(^|\.)(router|gating|gate|shared_expert_gate)(\.|$)")
"""What decides which expert a token goes to; PhiMoE's returns no tensor."""


def is_all_linear(target_modules: Any) -> bool:
    """Whether this is peft's word for all linear layers, as people write it: `all_linear`, `[all-linear]`."""
    names = listed(target_modules)
    return len(names) == 1 and re.sub("[_ ]", "-", str(names[0]).lower()) == "all-linear"


def without_all_linear(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "target_modules" or not is_all_linear(value)}
