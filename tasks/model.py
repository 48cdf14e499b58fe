"""Build tokenizer and classifier from a foundation model; attach an adapter, save it."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import Any

from tasks import serving
from tasks.config import DEMO_MODEL, AdapterConfig, InputError, ModelConfig, RunConfig, nearest_name
from tasks.environment import hide_short_bars
from tasks.hub import HubUnreachable, find, first_line, is_network_trouble
from tasks.methods import METHODS, VIRTUAL_TOKENS, Shape
from tasks.records import PreparedData, Source, write_text

model_texts = serving.model_texts

SET_BY_US = {
    "task_type",
    "modules_to_save",
    "peft_type",
    "inference_mode",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
}
"""Fields of peft's configurations that `adapter.options` may not set."""


def find_model(config: RunConfig) -> Source:
    """The foundation model, pinned; the demo's is made on first use."""
    if config.model.name == DEMO_MODEL:
        from tasks.demo import demo_model

        return find("model", str(demo_model()), "main", offline=True)
    return find("model", config.model.name, config.model.revision, config.offline)


def hub_arguments(source: Source, config: ModelConfig) -> dict[str, Any]:
    """What every `from_pretrained` needs to read exactly this content."""
    revision = {} if source.is_local else {"revision": source.revision}
    return {
        **revision,
        "local_files_only": source.local_files_only,
        "trust_remote_code": config.trust_remote_code,
    }


def load_tokenizer(source: Source, config: ModelConfig) -> Any:
    """Tokenizer with a pad token: GPT-style models have none and pad with their end-of-text token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name, **hub_arguments(source, config))
    except Exception as error:
        raise unusable("tokenizer", source, error) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without its files
        raise InputError(f"model.name: {source.name} has no tokenizer files")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.pad_token is None:
        raise InputError(f"model {source.name}: its tokenizer has no pad, end, unknown or start token to pad with")
    tokenizer.padding_side = "right"
    return tokenizer


def unusable(what: str, source: Source, error: Exception) -> Exception:
    """The error to raise when a library could not read `what` of the model."""
    if is_network_trouble(error) and not source.local_files_only:
        return HubUnreachable(f"the Hub broke off while sending the {what} of model {source.name}; try again")
    if isinstance(error, OSError) and error.errno not in (None, 2):
        return error
    if "trust_remote_code" in str(error):
        return InputError(
            f"model {source.name} brings its own Python code; set model.trust_remote_code only if you trust it"
        )
    hint = "; run once with the Hub reachable" if source.local_files_only and not source.is_local else ""
    return InputError(f"model {source.name}: its {what} cannot be read: {first_line(error)}{hint}")


def load_config(source: Source, config: ModelConfig) -> Any:
    """The architecture's configuration, without weights."""
    from transformers import AutoConfig

    hide_short_bars()
    try:
        return AutoConfig.from_pretrained(source.name, **hub_arguments(source, config))
    except Exception as error:
        raise unusable("configuration", source, error) from error


def load_foundation(
    source: Source, config: RunConfig, label_names: Sequence[str], tokenizer: Any
) -> tuple[Any, list[str]]:
    """The classifier with a head drawn from the run's seed, and the names of its modules that are not pretrained.

    The same seed gives the same head every time: baseline and training start from the same weights.
    """
    import torch

    torch.manual_seed(config.seed)
    try:
        model, info = serving.load_classifier(
            base_model_settings(source, config.model),
            label_names,
            tokenizer.pad_token_id,
            source.local_files_only,
        )
    except Exception as error:
        raise unusable("weights (safetensors)", source, error) from error
    missing = list(info["missing_keys"])
    misshapen = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    check_weights(missing, misshapen, model, source)
    return model, fresh_modules([*missing, *misshapen], model.base_model_prefix)


def check_weights(missing: Sequence[str], misshapen: Sequence[str], model: Any, source: Source) -> None:
    """Refuse a checkpoint that lacks more of the body than a pooler: its layers would be noise, silently."""
    body = {name for name in model.state_dict() if name.startswith(f"{model.base_model_prefix}.")}
    lost = [name for name in (*misshapen, *missing) if name in body]
    if len(lost) > 2 or body.intersection(misshapen):
        raise InputError(
            f"model {source.name}: {len(lost)} of its {len(body)} weights are not in its files or have another shape, "
            f"{lost[0]} for one; is config.json that of these weights?"
        )


def base_model_settings(source: Source, config: ModelConfig) -> dict[str, Any]:
    """What serving.load_classifier must know to find this model again."""
    return {
        "name": source.name,
        "revision": None if source.is_local else source.revision,
        "dtype": config.dtype,
        "trust_remote_code": config.trust_remote_code,
    }


def fresh_modules(parameters: Sequence[str], prefix: str) -> list[str]:
    """Modules that hold the freshly drawn `parameters`: the head's, and those a checkpoint lacks (BERT's pooler).

    They must be trained and saved with the adapter, or a reload would draw them anew.
    """
    modules = set()
    for parameter in parameters:
        path = parameter.split(".")
        modules.add(".".join(path[:-1]) if path[0] == prefix else path[0])
    return sorted(modules)


def check_limits(source: Source, config: RunConfig) -> None:
    """Refuse before any work what this model or method cannot do; raises InputError naming the field."""
    architecture = load_config(source, config.model)
    tokenizer = load_tokenizer(source, config.model)
    model = empty_classifier(architecture, source, config)
    limit = min(positions(model), tokenizer.model_max_length)
    if config.adapter.method == "prompt_tuning":
        limit -= config.adapter.options.get("num_virtual_tokens", VIRTUAL_TOKENS)
    if config.data.max_length > limit:
        raise InputError(
            f"data.max_length: {config.data.max_length} is more than the {limit} positions of {source.name}"
        )
    if source.is_local:
        check_files(source)
    check_adapter(model, source, config)


def check_files(source: Source) -> None:
    """A local model's weight files are there and whole; raises InputError naming the file."""
    from safetensors import SafetensorError, safe_open

    files = sorted(Path(source.name).glob("*.safetensors"))
    if not files:
        raise InputError(f"model {source.name}: there are no weights as safetensors; other formats can hide code")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise InputError(
                f"model {source.name}: {file.name} is damaged ({first_line(error)}); copy it again"
            ) from None


def empty_classifier(architecture: Any, source: Source, config: RunConfig) -> Any:
    """The model's shape, without memory for weights."""
    import torch
    from transformers import AutoModelForSequenceClassification

    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(
                architecture, trust_remote_code=config.model.trust_remote_code
            )
    except ValueError as error:
        raise InputError(f"model {source.name} cannot classify sequences: {first_line(error)}") from None


def positions(model: Any) -> int:
    """Longest text in tokens. RoBERTa's kin count positions from behind the pad token: two of 514 are lost."""
    config = model.config
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or sys.maxsize
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings - module.padding_idx - 1)
    return int(limit)


def check_adapter(model: Any, source: Source, config: RunConfig) -> None:
    """Attach the adapter to an empty classifier: what peft refuses is known in a second."""
    import torch

    names = [name for name, _ in model.named_modules()]
    for wanted in config.adapter.target_modules:
        if not any(name == wanted or name.endswith("." + wanted) for name in names):
            known = sorted({name.split(".")[-1] for name in body_layers(model, ())})
            raise InputError(f"adapter.target_modules: no layer is called '{wanted}'; there are {', '.join(known)}")
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
            raise


def attach_adapter(model: Any, config: RunConfig, fresh: Sequence[str], steps: int) -> Any:
    """The PEFT model: foundation frozen; adapter and `fresh` modules trainable, drawn from the run's seed.

    Layers not named in the configuration are those that peft knows to suit the method and architecture, else all
    linear layers of the body (for ln_tuning, all its norms). Raises InputError for what peft refuses.
    """
    kind, values = peft_settings(model, config, fresh, steps)
    try:
        try:
            return wrap(model, kind, values, config.seed)
        except ValueError as error:
            if "target_modules" in values or "specify `target_modules`" not in str(error):
                raise
        values["target_modules"] = sorted(body_layers(model, fresh, norms=config.adapter.method == "ln_tuning"))
        if config.adapter.method == "ia3":
            values["feedforward_modules"] = []
        return wrap(model, kind, values, config.seed)
    except (AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        if "meta" in str(error).lower():
            raise
        raise InputError(
            f"adapter.method: {config.adapter.method} does not fit {config.model.name}: {first_line(error)}"
        ) from error


def wrap(model: Any, kind: type, values: dict[str, Any], seed: int) -> Any:
    import torch
    from peft import get_peft_model

    torch.manual_seed(seed)
    return get_peft_model(model, kind(**values))


def peft_settings(model: Any, config: RunConfig, fresh: Sequence[str], steps: int) -> tuple[type, dict[str, Any]]:
    """The method's configuration class in peft and its arguments; raises InputError for what it does not have."""
    import peft

    adapter, method = config.adapter, METHODS[config.adapter.method]
    kind = getattr(peft, method.config)
    fields = {field.name for field in dataclasses.fields(kind)}
    for option in adapter.options:
        if option in SET_BY_US:
            raise InputError(f"adapter.options: {option} follows from the model and cannot be set")
        for ours, theirs in (("r", method.r), ("alpha", method.alpha), ("dropout", method.dropout)):
            if option == theirs:
                raise InputError(f"adapter.options: '{option}' has a field of its own, adapter.{ours}")
        if option not in fields:
            nearest = nearest_name(option, sorted(fields))
            hint = f"did you mean {nearest}?" if nearest else f"see peft's {method.config}"
            raise InputError(f"adapter.options: {method.config} has no field '{option}'; {hint}")
    values: dict[str, Any] = {"task_type": "SEQ_CLS", "modules_to_save": list(fresh) or None}
    for ours, theirs in (("r", method.r), ("alpha", method.alpha), ("dropout", method.dropout)):
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
    values |= method.fitted(method_shape(model, adapter, steps))
    return kind, values | adapter.options


def method_shape(model: Any, adapter: AdapterConfig, steps: int) -> Shape:
    layers = body_layers(model, ())
    inputs, outputs = zip(*(sorted(layer.weight.shape) for layer in layers.values()), strict=True)
    return Shape(gcd(*inputs), gcd(*outputs), model.get_input_embeddings().embedding_dim, steps, adapter.r)


def body_layers(model: Any, fresh: Sequence[str], norms: bool = False) -> dict[str, Any]:
    """Linear layers (or norms) by full name, without the head and without `fresh` modules, which train whole."""
    import torch
    from transformers.pytorch_utils import Conv1D

    heads = {name for name, _ in model.named_children() if name != model.base_model_prefix}
    outside = (*heads, *fresh)
    return {
        name: module
        for name, module in model.named_modules()
        if not name.startswith(outside)
        and ("Norm" in type(module).__name__ if norms else isinstance(module, torch.nn.Linear | Conv1D))
    }


def adapted_modules(model: Any) -> tuple[str, ...]:
    """Last names of the layers that carry the adapter, in order of first appearance."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    names = (name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return tuple(dict.fromkeys(names))


def load_checkpoint(model: Any, checkpoint: Path) -> None:
    """Put a saved adapter and head back into the PEFT model that they came from."""
    from peft import PeftConfig

    saved = PeftConfig.from_pretrained(checkpoint)
    if hasattr(saved, "rank_pattern"):
        # AdaLoRA may have pruned before or after it; peft sizes the layers by this before it reads them
        model.peft_config["default"].rank_pattern = saved.rank_pattern
    model.load_adapter(str(checkpoint), "default")


def save_adapter(model: Any, tokenizer: Any, config: RunConfig, data: PreparedData, folder: Path) -> None:
    """Adapter with head (safetensors), tokenizer and settings in `folder`, which is replaced as a whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    # embeddings are never resized here; peft's own guess would ask the Hub
    model.save_pretrained(partial, safe_serialization=True, save_embedding_layers=False)
    tokenizer.save_pretrained(partial)
    settings = {
        "base_model": base_model_settings(data.model, config.model),
        "label_names": data.label_names,
        "text_columns": data.text_columns,
        "max_length": config.data.max_length,
        "batch_size": config.evaluation.batch_size,
    }
    write_text(partial / serving.SETTINGS, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
