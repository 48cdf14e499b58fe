"""Training in bfloat16 where a device has units for it; base model and adapter are measured as they are served."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tasks.base.machine import bfloat16_pays
from tasks.models.blocks import text_width


def use_bfloat16(model: Any) -> bool:
    """Whether bfloat16 autocast is faster for this model on its device; its weights stay what they are."""
    return bfloat16_pays(model.device.type, text_width(model.config))


@contextmanager
def quick_autocast(model: Any) -> Iterator[None]:
    """Within, bfloat16 autocast of `model` on a CPU leaves out what does not pay there.

    Frozen matrices are bfloat16, to which autocast would cast them again in each step: the same numbers. (Not those of
    adapted layers: some methods compute with them elsewhere than in the layer's product.) Their products come out as
    float32, in which PEFT adds to them; it would cast the sum back. Trained layers, whose products are small, compute
    in float32: in bfloat16 each length of a batch would cost time and memory for kernels.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.pytorch_utils import Conv1D

    adapted = {id(part) for layer in model.modules() if isinstance(layer, BaseTunerLayer) for part in layer.modules()}
    products = [module for module in model.modules() if type(module) in (torch.nn.Linear, Conv1D)]
    trained = [module for module in products if module.weight.requires_grad]
    still = [module for module in products if not module.weight.requires_grad]
    frozen = [module.weight for module in still if id(module) not in adapted]
    bases = [module for module in still if id(module) in adapted]
    full = [weight.data for weight in frozen]
    for weight in frozen:
        weight.data = weight.data.to(torch.bfloat16)
    for module in trained:
        module.forward = partial(in_float32, module.forward)
    for module in bases:
        module.forward = partial(to_float32, module.forward)
    try:
        yield
    finally:
        for weight, before in zip(frozen, full, strict=True):
            weight.data = before
        for module in (*trained, *bases):
            del module.forward


def in_float32(forward: Callable[..., Any], values: Any) -> Any:
    import torch

    with torch.autocast(values.device.type, enabled=False):
        return forward(values.float())


def to_float32(forward: Callable[..., Any], values: Any) -> Any:
    return forward(values).float()
