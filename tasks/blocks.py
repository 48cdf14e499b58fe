"""The like blocks that a model is made of, whatever its architecture calls them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Blocks(NamedTuple):
    name: str
    """Of the list: `transformer.h`, `bert.encoder.layer`."""
    modules: Any
    """From the bottom, which reads the embeddings, to the top, which the head reads."""


def find_blocks(model: Any) -> Blocks | None:
    """None for an encoder with a decoder, and where no list in the model is as long as its configuration says."""
    from torch.nn import ModuleList

    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        return None
    count = getattr(config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, ModuleList) and len(module) == count:
            return Blocks(name, module)
    return None


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Within, the model is in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
