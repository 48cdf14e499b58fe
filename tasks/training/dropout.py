"""Dropout on a CPU for a fraction of the time: sixteen random bits decide about a value, where torch draws a number.

The probability is rounded to 1/65,536, and what is kept is scaled by what that gives, so that the mean stays exact.
Attention with dropout falls out of torch's fused kernel on a CPU; here it is four operations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


LEVELS = 2**16


def keep(shape: tuple[int, ...], p: float, dtype: "torch.dtype | None" = None) -> "Tensor":
    """`dtype` (float32) of `shape`: zero with probability `p`, else 1 / (1 - p).

    Drawn from a generator that torch's seeds, for its own takes three times as long. Where `dtype` is too coarse for
    that number, the next that it has is taken, and the probability that goes with it.
    """
    import math

    import numpy as np
    import torch

    count, dtype = math.prod(shape), dtype or torch.float32
    dropped = round(LEVELS * (1 - 1 / torch.tensor(1 / (1 - p), dtype=dtype).item()))
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = torch.from_numpy(np.random.PCG64(seed).random_raw((count + 3) // 4).view(np.int16))
    # signed: the lowest `dropped` of the 65,536 values; compared in place, for torch writes booleans slowly
    return words[:count].view(shape).ge_(dropped - LEVELS // 2).to(dtype).mul_(LEVELS / (LEVELS - dropped))


def can(values: "Tensor", p: float) -> bool:
    """Whether these values are ours; where there is a GPU, torch's own kernels are fast."""
    import torch

    ours = values.device.type == "cpu" and values.dtype in (torch.float32, torch.bfloat16)
    return ours and 0 < round(p * LEVELS) < LEVELS


def bias(seen: "Tensor") -> "Tensor":
    """What to add to scores of attention so that only those are left that `seen`, of booleans, allows."""
    import torch

    return torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)


@contextmanager
def quick_dropout(model: Any) -> Iterator[None]:
    """Within, the dropout of `model`, also that of its attention, is drawn by `keep`."""
    import torch
    from torch.nn import Dropout
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    class QuickDropout(Dropout):
        def forward(self, input: "Tensor") -> "Tensor":
            if not self.training or self.p == 0:
                return input
            if self.inplace or not can(input, self.p):
                return super().forward(input)
            return input * keep(tuple(input.shape), self.p, input.dtype)

    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def quick_attention(
        module: Any,
        query: "Tensor",
        key: "Tensor",
        value: "Tensor",
        attention_mask: "Tensor | None",
        dropout: float = 0.0,
        scaling: float | None = None,
        **more: Any,
    ) -> tuple["Tensor", None]:
        is_plain = all(more.get(name) is None for name in ("is_causal", "position_bias", "softcap"))
        if not is_plain or key.shape[1] != query.shape[1] or not can(query, dropout):
            done: tuple[Tensor, None] = attend(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
            )
            return done
        if attention_mask is None and query.shape[2] > 1 and getattr(module, "is_causal", True):
            attention_mask = query.new_ones(query.shape[2], key.shape[2]).tril().bool()
        given = query.dtype
        with torch.autocast("cpu", enabled=False):  # these products are too small to gain by bfloat16
            query, key, value = (part.float().contiguous() for part in (query, key, value))
            scores = (query * (scaling or query.shape[-1] ** -0.5)) @ key.transpose(2, 3)
            if attention_mask is not None:
                scores = scores + (attention_mask if attention_mask.dtype.is_floating_point else bias(attention_mask))
            weights = scores.softmax(-1)
            kept = weights * keep(tuple(weights.shape), dropout)
            found = (kept @ value).transpose(1, 2).contiguous()
        # autocast casts it for the next layer; without, that layer's weights are of the query's number format
        return found if torch.is_autocast_enabled("cpu") else found.to(given), None

    changed = [module for module in model.modules() if type(module) is Dropout]
    for module in changed:
        module.__class__ = QuickDropout
    ALL_ATTENTION_FUNCTIONS["sdpa"] = quick_attention
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
        for module in changed:
            module.__class__ = Dropout
