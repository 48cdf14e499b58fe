"""What training makes small, by the names that objectives give: see tasks/scores/objective.py."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    Loss = Callable[[Tensor, Tensor, Mapping[str, Any], str], Tensor]


def mean_loss(name: str, scaling: Mapping[str, Any]) -> "Callable[..., Tensor]":
    """Loss `name` as Trainer calls it: mean over the labels of the optimizer step, however many passes make it.

    BERT and its kin ignore Trainer's count of these: their own loss grows with gradient accumulation.
    """

    def compute(outputs: Any, labels: "Tensor", num_items_in_batch: Any = None) -> "Tensor":
        logits = outputs["logits"].float()
        if num_items_in_batch is None:
            return LOSSES[name](logits, labels, scaling, "mean")
        return LOSSES[name](logits, labels, scaling, "sum") / num_items_in_batch

    return compute


def cross_entropy(logits: "Tensor", labels: "Tensor", scaling: Mapping[str, Any], reduction: str) -> "Tensor":
    """Logits (rows, classes), labels (rows,)."""
    from torch.nn import functional

    return functional.cross_entropy(logits, labels, reduction=reduction)


def binary_cross_entropy(logits: "Tensor", labels: "Tensor", scaling: Mapping[str, Any], reduction: str) -> "Tensor":
    """Logits and labels (rows, labels); each label of each row counts by itself."""
    from torch.nn import functional

    return functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction=reduction)


def squared_error(logits: "Tensor", labels: "Tensor", scaling: Mapping[str, Any], reduction: str) -> "Tensor":
    """Logits (rows, 1), labels (rows,), which are taken in units of the training labels' standard deviation."""
    from torch.nn import functional

    target = ((labels.double() - scaling["mean"]) / scaling["std"]).float()
    return functional.mse_loss(logits[:, 0], target, reduction=reduction)


LOSSES: "dict[str, Loss]" = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "squared_error": squared_error,
}
