"""The last block works for one token of each row alone, where the classifier's head reads no other.

Which token that is, and which parts of the block work for nothing else, is read off gradients, so that no
architecture has to be known by name. What is left out has a gradient of exactly zero: it changes nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.models.blocks import evaluating, find_blocks
from tasks.models.quantized import rounding
from tasks.models.sharding import gathered
from tasks.models.trial import stirred

if TYPE_CHECKING:
    from torch import Tensor

    Find = Callable[[Tensor, Tensor, int], Tensor]


TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Relative, of a number: a product of fewer rows may be added up in another order."""


def trim_last_block(model: Any, batch: Any) -> tuple[str, ...]:
    """Names of the parts of the last block that from now on compute only the token which the head reads.

    `batch` is a padded batch of the tokenizer's columns on the model's device. Nothing is changed, and nothing
    returned, for a model whose head reads several tokens, or whose last block cannot be told.
    """
    import torch

    blocks = find_blocks(model)
    if not blocks or len(batch["input_ids"]) < 2:
        return ()
    batch = {name: batch[name] for name in batch if name != "labels"}
    with evaluating(model):
        with torch.enable_grad(), stirred(model):
            found = read_token(model, blocks.modules[-1], batch)
        if not found:
            return ()
        with torch.no_grad():
            whole = model(**batch).logits
            trim = Trim(model, found)
            if not close(model(**batch).logits, whole, TOLERANCE[rounding(model)]):
                trim.remove()
                return ()
    return tuple(found.parts)


def close(one: "Tensor", other: "Tensor", tolerance: float) -> bool:
    import torch

    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)


class Found(NamedTuple):
    find: "Find"
    """Places (rows,) of the token that the head reads, from ids and mask (rows, length) and the pad token."""
    parts: dict[str, Any]
    """Modules of the block whose output matters at that token alone, by name."""


def first_token(ids: "Tensor", mask: "Tensor", pad: int) -> "Tensor":
    return ids.new_zeros(len(ids))


def last_token(ids: "Tensor", mask: "Tensor", pad: int) -> "Tensor":
    """As transformers' GenericForSequenceClassification finds it: the rightmost that is not the pad token."""
    import torch

    places = torch.arange(ids.shape[1], device=ids.device, dtype=torch.int32)
    return (places * (ids != pad).to(torch.int32)).argmax(-1)


def token_of(find: "Find", model: Any, batch: Any) -> "Tensor":
    ids = batch["input_ids"]
    return find(ids, batch.get("attention_mask"), model.config.pad_token_id)


class Call(NamedTuple):
    """What a module was given and what it made of it, each (rows, length, width)."""

    module: Any
    inputs: tuple["Tensor", ...]
    output: "Tensor"


def read_token(model: Any, block: Any, batch: Any) -> Found | None:
    """How to find the token that the head reads, and what works for it alone."""
    import torch

    calls: dict[str, list[Call]] = {}
    with watching(block, tuple(batch["input_ids"].shape), calls), torch.no_grad():
        logits = model(**batch).logits
    once = {name: found[0] for name, found in calls.items() if len(found) == 1}
    if not logits.requires_grad or "" not in once:
        return None
    # not the plain sum: two logits may always add up to the same
    weights = torch.arange(1, logits.shape[1] + 1, device=logits.device, dtype=logits.dtype)
    outputs = [call.output for call in once.values()]
    gradients = torch.autograd.grad((logits * weights).sum(), outputs, allow_unused=True)
    slopes = {name: slope for name, slope in zip(once, gradients, strict=True) if slope is not None}
    tolerance = TOLERANCE[rounding(model)]
    for find in (first_token, last_token):
        token = token_of(find, model, batch)
        others = torch.ones(slopes[""].shape[:2], dtype=torch.bool, device=logits.device)
        others[torch.arange(len(others)), token] = False
        # exactly zero: whatever is left out has no influence at all
        alone = {name: once[name] for name, slope in slopes.items() if not slope[others].any()}
        if "" in alone:
            with gathered(block):
                parts = outermost(
                    {name: call for name, call in alone.items() if name and works_alone(call, token, tolerance)}
                )
            return Found(find, parts) if parts else None
    return None


def works_alone(call: Call, token: "Tensor", tolerance: float) -> bool:
    """Whether the module makes the same of a token without the others: attention does not."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    if any(isinstance(part, _BatchNorm) for part in call.module.modules()):  # in training it mixes rows
        return False
    with torch.no_grad():
        try:
            narrow = call.module(*(at(values, token) for values in call.inputs))
        except Exception:  # it needs to know the length
            return False
    return isinstance(narrow, torch.Tensor) and close(narrow, at(call.output, token), tolerance)


def outermost(calls: dict[str, Call]) -> dict[str, Any]:
    """The modules that are not inside another of them."""
    return {
        name: call.module
        for name, call in calls.items()
        if not any(name.startswith(f"{other}.") for other in calls if other != name)
    }


def at(values: "Tensor", token: "Tensor") -> "Tensor":
    """(rows, 1, width) of (rows, length, width)"""
    import torch

    return values[torch.arange(len(values), device=values.device), token][:, None]


@contextmanager
def watching(block: Any, shape: tuple[int, ...], calls: dict[str, list[Call]]) -> Iterator[None]:
    """Note the calls of the block (as `""`) and of all modules in it that map tensors to a tensor, token by token."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    def fits(values: Any) -> bool:
        is_one = isinstance(values, torch.Tensor) and values.is_floating_point()
        return is_one and values.dim() == 3 and tuple(values.shape[:2]) == shape

    def enter(module: Any, inputs: Any, named: Any) -> Any:
        torch.set_grad_enabled(True)  # not before: nobody needs what the blocks below would keep for gradients
        if inputs:
            return (inputs[0].detach().requires_grad_(), *inputs[1:]), named
        return inputs, {
            name: value.detach().requires_grad_() if fits(value) else value for name, value in named.items()
        }

    def note(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, named: Any, output: Any) -> None:
            if name == "":  # what else it is given, and whether it gives a tuple, does not matter
                inputs, named, output = (), {}, output[0] if isinstance(output, tuple) else output
            if all(map(fits, (*inputs, output))) and not named and output.requires_grad:
                calls.setdefault(name, []).append(Call(module, inputs, output))
            else:
                calls.setdefault(name, []).extend([Call(module, (), output)] * 2)  # not one of those that we can trim

        return hook

    adapters = [name for name, part in block.named_modules() if isinstance(part, BaseTunerLayer)]
    hooks = [block.register_forward_pre_hook(enter, with_kwargs=True)]
    for name, part in block.named_modules():
        if not any(name.startswith(f"{adapter}.") for adapter in adapters):  # each a whole with the layer that it wraps
            hooks.append(part.register_forward_hook(note(name), with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Trim:
    """The hooks that do it: a part is given the one token of each row, the others of its output are zero."""

    def __init__(self, model: Any, found: Found) -> None:
        self.find = found.find
        self.token: Tensor | None = None
        self.hooks = [model.register_forward_pre_hook(self.look, with_kwargs=True)]
        for part in found.parts.values():
            self.hooks += [part.register_forward_pre_hook(self.narrow), part.register_forward_hook(self.widen)]
        self.length = 0

    def look(self, model: Any, arguments: Any, named: Any) -> None:
        self.token = token_of(self.find, model, named)

    def narrow(self, part: Any, inputs: Any) -> Any:
        assert self.token is not None
        self.length = inputs[0].shape[1]  # not that of the ids: Longformer pads to whole windows inside
        return tuple(at(values, self.token) for values in inputs)

    def widen(self, part: Any, inputs: Any, output: Any) -> Any:
        import torch

        rows = len(output)
        wide = output.new_zeros(rows, self.length, output.shape[-1])
        return wide.index_put((torch.arange(rows, device=output.device), self.token), output[:, 0])

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()
