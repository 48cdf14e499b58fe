"""The last block works for one token of each row alone, where the classifier's head reads no other.

Which token that is, and which layers of the block work for nothing else, is read off gradients, so that no
architecture has to be known by name. What is left out has a gradient of exactly zero: it changes nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.blocks import find_blocks

if TYPE_CHECKING:
    from torch import Tensor

    Find = Callable[[Tensor, Tensor, int], Tensor]

TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Of a logit: a product of fewer rows may be added up in another order."""


def trim_last_block(model: Any, batch: Any) -> tuple[str, ...]:
    """Names of the layers in the last block that from now on compute only the token which the head reads.

    `batch` is a padded batch of the tokenizer's columns on the model's device. Nothing is changed, and nothing
    returned, for a model whose head reads several tokens, or whose last block cannot be told.
    """
    import torch

    blocks = find_blocks(model)
    if not blocks or len(batch["input_ids"]) < 2:
        return ()
    block = blocks.modules[-1]
    training, batch = model.training, {name: batch[name] for name in batch if name != "labels"}
    model.eval()
    try:
        with torch.enable_grad():
            found = read_token(model, block, batch)
        if not found:
            return ()
        find, layers = found
        with torch.no_grad():
            whole = model(**batch).logits
            trim = Trim(model, find, list(layers.values()))
            tolerance = TOLERANCE[str(whole.dtype).removeprefix("torch.")]
            if not torch.allclose(model(**batch).logits, whole, rtol=0, atol=tolerance):
                trim.remove()
                return ()
        return tuple(layers)
    finally:
        model.train(training)


def linear_layers(block: Any) -> dict[str, Any]:
    """Layers of matrix products by name, each with the adapter that wraps it."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    found: dict[str, Any] = {}
    for name, module in block.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        if not is_inside and isinstance(module, BaseTunerLayer | Linear | Conv1D):
            found[name] = module
    return found


def first_token(ids: "Tensor", mask: "Tensor", pad: int) -> "Tensor":
    return ids.new_zeros(len(ids))


def last_token(ids: "Tensor", mask: "Tensor", pad: int) -> "Tensor":
    """As transformers' GenericForSequenceClassification finds it: the rightmost that is not the pad token."""
    import torch

    places = torch.arange(ids.shape[1], device=ids.device, dtype=torch.int32)
    return (places * (ids != pad).to(torch.int32)).argmax(-1)


def read_token(model: Any, block: Any, batch: Any) -> "tuple[Find, dict[str, Any]] | None":
    """How to find the token that the head reads, and the layers whose output matters there alone."""
    import torch

    outputs: dict[str, Any] = {}
    layers, shape = linear_layers(block), batch["input_ids"].shape
    with watching(block, layers, outputs):
        logits = model(**batch).logits
    if not logits.requires_grad or outputs.pop("calls", 0) != 1 or "" not in outputs:
        return None
    # not the plain sum: two logits may always add up to the same
    weights = torch.arange(1, logits.shape[1] + 1, device=logits.device, dtype=logits.dtype)
    gradients = torch.autograd.grad((logits * weights).sum(), list(outputs.values()), allow_unused=True)
    slopes = {name: slope for name, slope in zip(outputs, gradients, strict=True) if slope is not None}
    for find in (first_token, last_token):
        others = torch.ones(shape, dtype=torch.bool, device=logits.device)
        others[torch.arange(len(others)), token_of(find, model, batch)] = False
        # exactly zero: whatever is left out has no influence at all
        alone = [name for name, slope in slopes.items() if slope.shape[:2] == shape and not slope[others].any()]
        if "" in alone and len(alone) > 1:
            return find, {name: layers[name] for name in alone if name}
    return None


def token_of(find: "Find", model: Any, batch: Any) -> "Tensor":
    ids = batch["input_ids"]
    return find(ids, batch.get("attention_mask"), model.config.pad_token_id)


@contextmanager
def watching(block: Any, layers: dict[str, Any], outputs: dict[str, Any]) -> Iterator[None]:
    """Note the outputs of the block (as `""`) and of its layers, and how often it was called (as `calls`)."""

    def enter(module: Any, inputs: Any) -> Any:
        outputs["calls"] = outputs.get("calls", 0) + 1
        if inputs and not inputs[0].requires_grad:  # nothing below is trained
            return (inputs[0].detach().requires_grad_(), *inputs[1:])
        return None

    def note(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if tensor.requires_grad and tensor.dim() == 3:
                outputs[name] = tensor

        return hook

    hooks = [block.register_forward_pre_hook(enter), block.register_forward_hook(note(""))]
    hooks += [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Trim:
    """The hooks that do it: a layer is given the one token of each row, the others of its output are zero."""

    def __init__(self, model: Any, find: "Find", layers: list[Any]) -> None:
        self.find = find
        self.token: Tensor | None = None
        self.shape = (0, 0)
        self.hooks = [model.register_forward_pre_hook(self.look, with_kwargs=True)]
        for layer in layers:
            self.hooks += [layer.register_forward_pre_hook(self.narrow), layer.register_forward_hook(self.widen)]

    def look(self, model: Any, arguments: Any, named: Any) -> None:
        ids = named["input_ids"]
        self.token, self.shape = token_of(self.find, model, named), tuple(ids.shape)

    def narrow(self, layer: Any, inputs: Any) -> Any:
        import torch

        (values,) = inputs
        assert self.token is not None and tuple(values.shape[:2]) == self.shape
        return (values[torch.arange(len(values), device=values.device), self.token][:, None],)

    def widen(self, layer: Any, inputs: Any, output: Any) -> Any:
        import torch

        rows, length = self.shape
        wide = output.new_zeros(rows, length, output.shape[-1])
        return wide.index_put((torch.arange(rows, device=output.device), self.token), output[:, 0])

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()
