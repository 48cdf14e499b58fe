"""Attach an adapter to a classifier, save it with its head, put a checkpoint back."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from tasks.base.files import whole, write_text
from tasks.base.progress import tell
from tasks.base.records import PreparedData, Source
from tasks.base.trouble import first_line
from tasks.models import serving
from tasks.models.blocks import find_blocks, text_parts, text_width
from tasks.models.experts import adapted_name, check_layers_are_meant, chosen_weights
from tasks.models.foundation import base_model_settings, word_embeddings
from tasks.models.layers import (
    body_layers,
    chosen_layers,
    fully_named,
    is_all_linear,
    is_below,
    must_be_spelled_out,
    without_all_linear,
)
from tasks.models.options import check_attached, check_options
from tasks.models.quantized import stored_kind
from tasks.scores.objective import objective
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import did_you_mean
from tasks.settings.methods import METHODS, ON_QUANTIZED, Method, Shape
from tasks.settings.sections import AdapterConfig

if TYPE_CHECKING:
    from torch import Tensor


SET_BY_US = {
    "task_type",
    "modules_to_save",
    "peft_type",
    "inference_mode",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    # peft imports the module of this name, whatever it does
    "megatron_config",
    "megatron_core",
    # with it comes trust_remote_code, which has a field of its own
    "tokenizer_kwargs",
}
"""Fields of peft's configurations that `adapter.options` may not set."""


def check_adapter(model: Any, source: Source, config: RunConfig) -> None:
    """Attach the adapter to an empty classifier: what peft refuses is known in a second."""
    import torch

    names = [name for name, module in model.named_modules() if not any(module.children())]
    for wanted in () if is_all_linear(config.adapter.target_modules) else config.adapter.target_modules:
        if not any(name == wanted or name.endswith("." + wanted) for name in names):
            known = sorted({name.split(".")[-1] for name in body_layers(model, ())})
            raise InputError(f"adapter.target_modules: no layer is called '{wanted}'; there are {', '.join(known)}")
    is_quantized = (stored_kind(model.config, source.name) or config.model.quantization) != "none"
    if is_quantized and config.adapter.method not in ON_QUANTIZED:
        raise InputError(
            f"adapter.method: {config.adapter.method} does not work on quantised weights; choose of "
            f"{', '.join(sorted(ON_QUANTIZED))}"
        )
    check_options(model, config.adapter.method, without_all_linear(config.adapter.options), is_quantized)
    if text_parts(model) != [""]:
        tell("%s reads more than text: the adapter goes into what reads text, the rest stays as it is", source.name)
    if config.adapter.method == "prompt_tuning" and hasattr(model, "score"):
        raise InputError(
            f"adapter.method: prompt_tuning reads the wrong token on {source.name}, which classifies by its last one; "
            "choose lora, or an encoder model"
        )
    try:
        with torch.device("meta"):
            attach_adapter(model, config, (), steps=100)
    except RuntimeError as error:
        # some methods start from the weights' values, which are not here; they show in training whether they fit
        if "meta" not in str(error).lower():
            raise unfit(config, error) from error


def attach_adapter(model: Any, config: RunConfig, fresh: Sequence[str], steps: int) -> Any:
    """The PEFT model: foundation frozen; adapter and `fresh` modules trainable, drawn from the run's seed.

    Layers not named in the configuration are those that peft knows to suit the method and architecture, else all
    linear layers of the body (for ln_tuning, all its norms). What reads pictures or sound is left alone. Raises
    InputError for what peft refuses.
    """
    from peft.utils.error import NoMatchingPeftModuleError

    kind, values = peft_settings(model, config, fresh, steps)
    for name in config.adapter.target_modules:
        if config.adapter.layers and is_below(name, model, config):
            raise InputError(f"adapter.target_modules: {name} is below the top {config.adapter.layers} blocks")
    try:
        if not must_be_spelled_out(model, kind, values):
            try:
                return wrap(model, kind, values, config.seed)
            except ValueError as error:
                is_unknown = isinstance(error, NoMatchingPeftModuleError) or "specify `target_modules`" in str(error)
                if values.get("target_modules") or not is_unknown:
                    raise
        layers = chosen_layers(model, kind, values, fresh, config)
        return wrap(model, kind, fully_named(layers, values, model, config), config.seed)
    except InputError:
        raise
    except (AssertionError, AttributeError, LookupError, NotImplementedError, OSError, TypeError, ValueError) as error:
        if "meta" in str(error).lower():
            raise
        raise unfit(config, error) from error


def unfit(config: RunConfig, error: Exception) -> InputError:
    return InputError(f"adapter.method: {config.adapter.method} does not fit {config.model.name}: {first_line(error)}")


def wrap(model: Any, kind: type, values: dict[str, Any], seed: int) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    if not hasattr(model, "base_weights") and model.device.type != "meta":  # some methods change them when attached
        model.base_weights = serving.weights_sha256(model, values["modules_to_save"] or ())
    if kind is LoraConfig:
        check_layers_are_meant(values.get("target_modules"), model)
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, kind(**values))
    check_attached(wrapped, values)
    # embeddings are never resized here; peft's own guess, at each save and checkpoint, would ask the Hub
    wrapped.save_pretrained = partial(wrapped.save_pretrained, save_embedding_layers=False)
    return wrapped


def peft_settings(model: Any, config: RunConfig, fresh: Sequence[str], steps: int) -> tuple[type, dict[str, Any]]:
    """The method's configuration class in peft and its arguments; raises InputError for what it does not have."""
    import peft

    adapter, method = config.adapter, METHODS[config.adapter.method]
    kind = getattr(peft, method.config)
    fields, options = {field.name for field in dataclasses.fields(kind)}, dict(adapter.options)
    for option in options:
        if option in SET_BY_US:
            raise InputError(f"adapter.options: {option} follows from the model, or could run code, and cannot be set")
        for ours, theirs in (*fields_of(method), ("target_parameters", "target_parameters")):
            if option == theirs:
                raise InputError(f"adapter.options: '{option}' has a field of its own, adapter.{ours}")
        if option not in fields:
            hint = did_you_mean(option, sorted(fields), f"see peft's {method.config}")
            raise InputError(f"adapter.options: {method.config} has no field '{option}'; {hint}")
        options[option] = typed(option, options[option], get_type_hints(kind)[option])
    values: dict[str, Any] = {"task_type": "SEQ_CLS", "modules_to_save": list(fresh) or None}
    for ours, theirs in fields_of(method):
        if theirs:
            values[theirs] = getattr(adapter, ours)
        elif getattr(adapter, ours) != AdapterConfig.model_fields[ours].default:
            raise InputError(f"adapter.{ours}: {adapter.method} has none; its own settings go into adapter.options")
    if adapter.target_modules:
        if "target_modules" not in fields:
            raise InputError(f"adapter.target_modules: {adapter.method} does not adapt layers; leave it empty")
        if "target_modules" in adapter.options:
            raise InputError("adapter.target_modules: given here and in adapter.options; choose one")
        values["target_modules"] = list(adapter.target_modules)
    if adapter.layers:
        values |= top_blocks(model, config, fields)
    if adapter.target_parameters:
        values["target_parameters"] = weights_to_adapt(model, config)
    values |= {**method.fitted(method_shape(model, adapter, steps)), **options}
    if is_all_linear(values.get("target_modules")):
        layers = sorted(chosen_layers(model, kind, {}, fresh, config))
        if values.pop("layers_to_transform", None) is not None:  # peft heeds it for last names only
            layers = [name for name in layers if not is_below(name, model, config)]
        values["target_modules"] = layers
    return kind, values


def fields_of(method: Method) -> tuple[tuple[str, str | None], ...]:
    """Fields of ours, and what the method's configuration in peft calls them."""
    return ("r", method.r), ("alpha", method.alpha), ("dropout", method.dropout)


def weights_to_adapt(model: Any, config: RunConfig) -> list[str]:
    """Of `adapter.target_parameters`, in the blocks that are adapted."""
    names = chosen_weights(model, config.adapter)
    if config.adapter.layers or config.adapter.options.get("layers_to_transform") is not None:
        names = [name for name in names if not is_below(name, model, config)]
    if not names:
        raise InputError("adapter.target_parameters: the blocks that are adapted have none of these; name others")
    return names


def typed(option: str, value: Any, kind: Any) -> Any:
    """`value` as peft wants it: it takes the text "false" for true, and fails in training at the text "1e-3"."""
    if kind not in (bool, int, float):
        return value
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise InputError(f"adapter.options: {option}: {problem[:1].lower()}{problem[1:]}, not {value!r:.80}") from None


def top_blocks(model: Any, config: RunConfig, fields: Collection[str]) -> dict[str, Any]:
    """Which blocks to adapt, as peft's configurations take it; InputError where model or method has no such thing."""
    adapter, blocks = config.adapter, find_blocks(model)
    assert adapter.layers
    if "layers_to_transform" not in fields:
        raise InputError(f"adapter.layers: {adapter.method} adapts all blocks; leave it empty, or choose lora")
    if "layers_to_transform" in adapter.options:
        raise InputError("adapter.layers: adapter.options has layers_to_transform, too; choose one")
    if not blocks:
        raise InputError(f"adapter.layers: the blocks of {config.model.name} cannot be identified; leave it empty")
    count = len(blocks.modules)
    if adapter.layers >= count:
        raise InputError(
            f"adapter.layers: {config.model.name} has {count} blocks; give fewer, or leave it empty to adapt all"
        )
    return {"layers_to_transform": list(range(count - adapter.layers, count))}


def method_shape(model: Any, adapter: AdapterConfig, steps: int) -> Shape:
    layers = body_layers(model, ())
    shapes = [widths(layer) for layer in layers.values()] or [(1, 1)]
    inputs, outputs = zip(*shapes, strict=True)
    embeddings = word_embeddings(model)
    width = text_width(model.config) if embeddings is None else embeddings.shape[1]
    return Shape(gcd(*inputs), gcd(*outputs), width, steps, adapter.r)


def widths(layer: Any) -> tuple[int, int]:
    """Of what goes into a linear layer, and of what comes out."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(layer, torch.nn.Linear):  # of a quantised one the weight has another shape
        return layer.in_features, layer.out_features
    first, second = layer.weight.shape[:2]
    return (first, second) if isinstance(layer, Conv1D) else (second, first)


def adapted_modules(model: Any) -> tuple[str, ...]:
    """Last names of the layers that carry the adapter, in order of first appearance."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    names = (
        name.split(".")[-1]
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and adapted_name(name, module) == name
    )
    return tuple(dict.fromkeys(names))


def save_adapter(
    model: Any,
    tokenizer: Any,
    config: RunConfig,
    data: PreparedData,
    folder: Path,
    fitted: Mapping[str, Any],
    validation: "Mapping[str, Tensor] | None" = None,
) -> None:
    """Adapter with head (safetensors), tokenizer and settings in `folder`, which is replaced as a whole.

    `fitted` is what makes answers of its logits, besides what the task says; `validation` has the `logits` and
    `labels` of the validation rows, for whoever chooses thresholds later.
    """
    from safetensors.torch import save_file

    task = objective(data.task)
    settings = {
        "base_model": base_model_settings(data.model, config.model) | {"weights": model.base_weights},
        "label_names": data.label_names,
        "text_columns": data.text_columns,
        "max_length": config.data.max_length,
        "batch_size": config.evaluation.batch_size,
        "task": task.name,
        "problem_type": task.problem_type,
        "activation": task.activation,
        **fitted,
    }
    size = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    with whole(folder, size, writer="training") as staged:
        model.save_pretrained(staged, safe_serialization=True)
        sort_sets(model.peft_config["default"], staged / "adapter_config.json")
        (staged / "README.md").unlink(
            missing_ok=True
        )  # a template full of blanks; tasks/evaluation/card.py writes the real one
        tokenizer.save_pretrained(staged)
        if validation:
            save_file(dict(validation), staged / serving.VALIDATION)
        write_text(staged / serving.SETTINGS, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def sort_sets(config: Any, file: Path) -> None:
    """PEFT writes sets in an order that changes from process to process; the same run gives the same bytes."""
    written = json.loads(file.read_text(encoding="utf-8"))
    written |= {name: sorted(value) for name, value in vars(config).items() if isinstance(value, set)}
    write_text(file, json.dumps(written, indent=2, sort_keys=True))


PROBE_ROWS = 64
"""Validation rows whose logits are compared between memory and disk."""

PROBE_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference of a logit that rounding explains. On one machine the difference is 0."""
