"""Weights of the foundation model in 4 or 8 bits: what is asked for, what its files hold, what it takes in memory."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from tasks.base.disk import size
from tasks.base.machine import bfloat16_pays
from tasks.models import serving
from tasks.models.blocks import text_width
from tasks.settings.fields import InputError
from tasks.settings.sections import ModelConfig


def check_quantization(architecture: Any, name: str, config: ModelConfig) -> None:
    """Refuses what cannot be loaded here, before anything is: InputError with the field."""
    stored = stored_kind(architecture, name)
    kind = stored or config.quantization
    if kind == "none":
        return
    if stored and config.quantization not in ("none", stored):
        raise InputError(
            f"model.quantization: the weights of {name} are quantised already, in {stored}; leave "
            f"{config.quantization} out"
        )
    if config.dtype != "float32":
        raise InputError(f"model.dtype: {name} is quantised, and all else is float32; leave {config.dtype} out")
    check_package(f"model.name: {name}, whose weights are in {stored}," if stored else f"model.quantization: {kind}")


def check_package(field: str) -> None:
    if not find_spec("bitsandbytes"):
        raise InputError(f"{field} needs one more package: pip install 'peft-flow[quantized]'")


def stored_kind(architecture: Any, name: str) -> str | None:
    """How the weights are quantised in the model's own files, in words of `model.quantization`; fp4 besides."""
    stored = stored_settings(architecture)
    if stored is None:
        return None
    storage = stored.get("bnb_4bit_quant_storage", "uint8")
    if stored.get("load_in_8bit"):
        return "int8"
    if stored.get("load_in_4bit") and storage == "uint8":
        return str(stored.get("bnb_4bit_quant_type", "fp4"))
    method = stored.get("quant_method", "an unnamed method")
    if stored.get("load_in_4bit"):
        method += f" and stored as {storage}"
    raise InputError(
        f"model.name: the weights of {name} are quantised with {method}, on which nothing can be trained here; choose "
        "the model that they were made from, or one that bitsandbytes has quantised"
    )


def without_stored(architecture: Any) -> Any:
    """The configuration, changed to that of a model which is not quantised."""
    for config in (architecture, architecture.get_text_config()):
        config.quantization_config = None
    return architecture


def stored_settings(architecture: Any) -> Mapping[str, Any] | None:
    for config in (architecture, architecture.get_text_config()):
        if (found := getattr(config, "quantization_config", None)) is not None:
            settings: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
            return settings
    return None


def computes_in(architecture: Any) -> str:
    """The number format of products with quantised weights: kept with the adapter, so that it is the same anywhere."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return "bfloat16" if bfloat16_pays(device, text_width(architecture)) else "float32"


def rounding(model: Any) -> str:
    """The number format whose rounding shows in the model's answers."""
    import torch

    formats = (number_format(model), *(getattr(module, "compute_dtype", None) for module in model.modules()))
    return "bfloat16" if torch.bfloat16 in formats else "float32"


def number_format(model: Any) -> Any:
    """torch's type of what goes from layer to layer; the word embeddings of a quantised model are kept in another."""
    import torch

    return torch.float32 if packed(model) else model.dtype


def compute_in_float32(model: Any) -> None:
    """The whole model, for good."""
    import torch

    torch.nn.Module.float(model)  # a quantised model itself refuses
    if packed(model):
        serving.compute_alike(model, torch.float32)


def packed(model: Any) -> list[Any]:
    """Its quantised weights."""
    return [weight for weight in model.parameters() if serving.scales(weight) is not None]


def weights_sentence(model: Any, tokens: int) -> str:
    """What the weights take in memory, and what training adds to them with up to so many `tokens` at a time."""
    small, whole = bytes_of(packed(model)), bytes_of(model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return (
        f"The model's weights take {size(whole)} in memory: {size(small)} quantised and {size(whole - small)} not; "
        f"in float32 they would take {size(4 * model.num_parameters())}. Training adds "
        f"{size(BYTES_TRAINED * trained)} for gradients and optimizer, and what up to {tokens:,} tokens at "
        "a time take on their way through the model"
    )


def bytes_of(weights: Iterable[Any]) -> int:
    """With their scales, where they are quantised."""
    return sum(weight.nbytes + getattr(serving.scales(weight), "nbytes", 0) for weight in weights)


BYTES_TRAINED = 16
"""For each trained weight: its gradient, Adam's two averages, and a copy while it is updated."""
