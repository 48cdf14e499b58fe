"""The like blocks that a model is made of, whatever its architecture calls them."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Blocks(NamedTuple):
    name: str
    """Of the list: `transformer.h`, `bert.encoder.layer`."""
    modules: Any
    """From the bottom, which reads the embeddings, to the top, which the head reads."""


def find_blocks(model: Any) -> Blocks | None:
    """None for an encoder with a decoder, and where no list in the model is as long as its configuration says."""
    from torch.nn import ModuleList

    if getattr(model.config, "is_encoder_decoder", False):
        return None
    count, parts = getattr(model.config.get_text_config(), "num_hidden_layers", None), text_parts(model)
    for name, module in model.named_modules():
        if isinstance(module, ModuleList) and len(module) == count and is_inside(name, parts):
            return Blocks(name, module)
    return None


def text_parts(model: Any) -> list[str]:
    """Names of the parts that read text, of a model that reads pictures too; of any other `[""]`: all of it."""
    kinds = text_kinds(model.config)
    parts: list[str] = []
    for name, module in model.named_modules():
        if type(getattr(module, "config", None)) in kinds and not is_inside(name, parts):
            parts.append(name)
    return parts or [""]


def text_width(config: Any) -> int:
    """Numbers for each token between the blocks that read text; 0 where the configuration does not say."""
    return int(getattr(config.get_text_config(), "hidden_size", 0))


def text_kinds(config: Any) -> set[type]:
    """Classes of configurations: this one's, or of those that it is made of the ones for text."""
    names = [name for name in getattr(config, "sub_configs", {}) if getattr(config, name, None) is not None]
    if not names:
        return {type(config)}
    return set().union(*(text_kinds(getattr(config, name)) for name in names if not name.startswith(OTHER_SENSES)))


OTHER_SENSES = ("vision", "audio", "image", "video", "speech")


def is_inside(name: str, parts: Collection[str]) -> bool:
    """Whether a module is one of these parts, or within one."""
    return any(part == "" or f"{name}.".startswith(f"{part}.") for part in parts)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Within, the model is in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def compute_blocks_twice(model: Any) -> None:
    """From now on training keeps what enters each block, and computes the rest again when it needs it for gradients:
    the same numbers in less memory. ValueError for a model that cannot."""
    model.activation_checkpointing_enable({"use_reentrant": False})
    # that wants gradients of the embeddings, as the reentrant kind does: those of all blocks, adapted or not
    model.disable_input_require_grads()


def entering(block: Any, model: Any, inputs: Any) -> "Tensor":
    """What the model gives this block first, without dropout."""
    caught: list[Tensor] = []

    def catch(block: Any, given: Any) -> None:
        caught.append(given[0])
        raise Enough

    hook = block.register_forward_pre_hook(catch)
    try:
        with evaluating(model), suppress(Enough):
            model(**inputs)
    finally:
        hook.remove()
    return caught[0]


class Enough(Exception):
    """Everything wanted is known."""
