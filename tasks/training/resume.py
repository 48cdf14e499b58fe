"""What a training that goes on needs besides weights, and proof that what was read is what was written.

Trainer's own checkpoints lack the loss summed since the last log line, the random state at the start of the epoch
(which the order of its batches comes from), AdaLoRA's running averages, the best weights so far, and a way to tell a
broken file.
"""

import math
from typing import TYPE_CHECKING, Any

from tasks.training.checkpoint import Tensors

if TYPE_CHECKING:
    import numpy as np


MOST_SHARE = 0.01
"""A checkpoint is written when it costs at most this share of the time since the one before."""

FIRST_GUESS_SECONDS = 0.05
"""Taken as the cost of a checkpoint before one was written."""

PROBE_ROWS = 8
"""Validation rows whose loss must be the same before a checkpoint is written and after it was read."""

PROBE_TOLERANCE = 1e-3
"""Of that loss; what rounding explains when the device differs. On one machine the difference is 0."""


class NotContinued(RuntimeError):
    """What was read from a checkpoint is not what was trained."""


class Best:
    """The weights that scored best on validation so far, and what the model said about the validation rows then."""

    step = 0
    tensors: Tensors
    logits: "np.ndarray"
    """(rows, outputs), the rows in the order of the validation data that the trainer was given: by length."""
    labels: "np.ndarray"
    rank_pattern: dict[str, Any] | None = None
    """AdaLoRA's: which ranks were left."""

    def rows(self) -> Tensors:
        """Logits and labels of the validation rows."""
        import torch

        return {"logits": torch.from_numpy(self.logits.copy()), "labels": torch.from_numpy(self.labels.copy())}


def is_same(loss: float, before: float) -> bool:
    """Within rounding; a loss that was no number then is none now."""
    if not math.isfinite(before):
        return math.isnan(loss) if math.isnan(before) else loss == before
    return abs(loss - before) <= PROBE_TOLERANCE * max(1.0, before)


# --- AdaLoRA keeps more than weights ----------------------------------------------------------------------------------

AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""Of its rank allocator: how important each weight was lately."""


def averages(model: Any) -> Tensors:
    allocator = getattr(model.base_model, "rankallocator", None)
    kinds = AVERAGES if allocator else ()
    return {
        f"{kind}.{name}": value.detach().cpu().clone().contiguous()
        for kind in kinds
        for name, value in getattr(allocator, kind).items()
    }


def set_averages(model: Any, tensors: Tensors) -> None:
    device = next(model.parameters()).device
    for place, tensor in tensors.items():
        kind, name = place.split(".", 1)
        getattr(model.base_model.rankallocator, kind)[name] = tensor.to(device)


def rank_pattern(model: Any) -> dict[str, Any] | None:
    pattern = getattr(model.peft_config["default"], "rank_pattern", None)
    return dict(pattern) if pattern else None


def set_rank_pattern(model: Any, pattern: dict[str, Any] | None) -> None:
    if hasattr(model.base_model, "rankallocator"):
        model.peft_config["default"].rank_pattern = pattern
