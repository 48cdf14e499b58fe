"""Weights without a layer of their own, as the joint weights of a mixture's experts: `adapter.target_parameters`."""

import re
from collections.abc import Iterable
from typing import Any

from tasks.models.blocks import is_inside, text_parts
from tasks.settings.fields import InputError
from tasks.settings.loading import did_you_mean
from tasks.settings.sections import AdapterConfig

METHODS_FOR_WEIGHTS = ("lora", "rslora")

NOT_FOR_WEIGHTS = (
    "use_dora", "use_bdlora", "lora_bias", "fan_in_fan_out", "velora_config", "kasa_config", "monteclora_config",
)  # fmt: skip
"""Options of LoraConfig that peft has for layers only."""

STARTS_FOR_WEIGHTS = ("true", "false", "gaussian")
"""The other values of init_lora_weights read the weights of a layer."""


def chosen_weights(model: Any, adapter: AdapterConfig) -> list[str]:
    """Full names of what `adapter.target_parameters` names; InputError for what is not there or cannot be adapted."""
    if not adapter.target_parameters:
        return []
    check_method(adapter)
    there = free_weights(model)
    chosen: list[str] = []
    for wanted in adapter.target_parameters:
        found = [name for name in there if f".{name}".endswith(f".{wanted}")]
        if not found:
            raise InputError(f"adapter.target_parameters: {why_none(wanted, model, there)}")
        chosen += found
    return sorted(set(chosen))


def check_method(adapter: AdapterConfig) -> None:
    if adapter.method not in METHODS_FOR_WEIGHTS:
        raise InputError(
            f"adapter.target_parameters: {adapter.method} adapts layers only; leave it empty, or choose "
            f"{' or '.join(METHODS_FOR_WEIGHTS)} as adapter.method"
        )
    if adapter.dropout:
        raise InputError(
            "adapter.dropout: peft has none for adapter.target_parameters; set it to 0, or leave these empty"
        )
    start = str(adapter.options.get("init_lora_weights", True)).lower()
    refused = [option for option in NOT_FOR_WEIGHTS if adapter.options.get(option)]
    if refused or start not in STARTS_FOR_WEIGHTS:
        option = refused[0] if refused else f"init_lora_weights: {start}"
        raise InputError(
            f"adapter.options: {option} does not work with adapter.target_parameters; leave one of them out"
        )


def free_weights(model: Any) -> list[str]:
    """Names of the matrices, one or one for each expert, that no layer has as its own, in what reads text."""
    import torch
    from transformers.pytorch_utils import Conv1D

    layers, parts = (torch.nn.Linear, Conv1D, torch.nn.Embedding, torch.nn.Conv1d), text_parts(model)
    return [
        f"{owner}.{name}"
        for owner, module in model.named_modules()
        if is_inside(owner, parts) and not isinstance(module, layers)
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() in (2, 3)
    ]


def why_none(wanted: str, model: Any, there: Iterable[str]) -> str:
    """Of a name that is none of those."""
    names = without_numbers(there)
    if any(f".{name}".endswith(f".{wanted}") for name, _ in model.named_parameters()):
        layer = wanted.removesuffix(".weight").rpartition(".")[2]
        return f"'{wanted}' belongs to a layer; name the layer in adapter.target_modules, for example {layer}"
    if not names:
        return f"no weight is called '{wanted}', and each of this model belongs to a layer; use adapter.target_modules"
    return f"no weight is called '{wanted}'; {did_you_mean(wanted, names)}"


def without_numbers(names: Iterable[str]) -> list[str]:
    """What is behind the number of the block, each once."""
    return sorted({re.sub(r".*\.\d+\.", "", name) for name in names})


def taken_for_experts(name: str, model: Any) -> bool:
    """Whether peft's LoRA would adapt the experts' joint weights in place of the layers of this name.

    In transformers 4 each expert had such layers, and peft still reads the names so, of any adapter for a family that
    had them: shared experts and blocks without experts cannot be named.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one of two that it joins
        return True
    return not config.target_modules


def check_layers_are_meant(names: Any, model: Any) -> None:
    """Raises InputError where one of `names`, if it is a list, would not be the layers of that name."""
    for name in dict.fromkeys(name.rpartition(".")[2] for name in names or () if not isinstance(names, str)):
        if taken_for_experts(name, model):
            weights = ", ".join(without_numbers(free_weights(model)))
            raise InputError(
                f"adapter.target_modules: peft would adapt the experts in place of layers called '{name}'; leave it "
                f"out, or name experts in adapter.target_parameters: {weights}"
            )


def renames_layers(model: Any) -> bool:
    """Whether peft's LoRA reads names of layers in this family as transformers 4 had them, patterns included."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[])
    convert_peft_config_for_transformers(config, model, None)
    return config.target_parameters is not None


def adapted_name(name: str, module: Any) -> str:
    """Of a module that carries the adapter: its name, or that of the weight in it which it adapts."""
    weight = getattr(module, "parameter_name", None)
    return f"{name.replace('.base_layer', '')}.{weight}" if weight else name
