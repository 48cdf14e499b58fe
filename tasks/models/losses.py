"""What training makes small, by the names that objectives give: see tasks/scores/objective.py."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    Loss = Callable[[Tensor, Tensor, Mapping[str, Any], str], Tensor]


def mean_loss(name: str, settings: Mapping[str, Any]) -> "Callable[..., Tensor]":
    """Loss `name` as Trainer calls it: mean over the labels of the optimizer step, however many passes make it.

    BERT and its kin ignore Trainer's count of these: their own loss grows with gradient accumulation.
    """

    def compute(outputs: Any, labels: "Tensor", num_items_in_batch: Any = None) -> "Tensor":
        logits = outputs["logits"].float()
        if num_items_in_batch is None:
            return LOSSES[name](logits, labels, settings, "mean")
        return LOSSES[name](logits, labels, settings, "sum") / num_items_in_batch

    return compute


def cross_entropy(logits: "Tensor", labels: "Tensor", settings: Mapping[str, Any], reduction: str) -> "Tensor":
    """Logits (rows, classes), labels (rows,)."""
    from torch.nn import functional

    if is_plain(settings):
        return functional.cross_entropy(logits, labels, reduction=reduction)
    losses = focal(functional.cross_entropy(logits, labels, reduction="none"), settings)
    if weights := settings.get("weights"):
        losses = losses * logits.new_tensor(weights)[labels]
    return losses.sum() if reduction == "sum" else losses.mean()


def binary_cross_entropy(logits: "Tensor", labels: "Tensor", settings: Mapping[str, Any], reduction: str) -> "Tensor":
    """Logits and labels (rows, labels); each label of each row counts by itself."""
    import torch
    from torch.nn import functional

    target = labels.float()
    if is_plain(settings):
        return functional.binary_cross_entropy_with_logits(logits, target, reduction=reduction)
    losses = focal(functional.binary_cross_entropy_with_logits(logits, target, reduction="none"), settings)
    if weights := settings.get("weights"):
        losses = torch.where(labels > 0, losses * logits.new_tensor(weights), losses)
    return losses.sum() if reduction == "sum" else losses.mean()


def is_plain(settings: Mapping[str, Any]) -> bool:
    return not settings.get("weights") and not settings.get("gamma")


def focal(losses: "Tensor", settings: Mapping[str, Any]) -> "Tensor":
    """Negative log probabilities, those of what the model is sure of made smaller: Lin et al., ICCV 2017."""
    if not (gamma := settings.get("gamma")):
        return losses
    unsure = (1 - (-losses).exp()).clamp_min(1e-6)  # at 0 a root has no slope
    return losses * unsure**gamma


def squared_error(logits: "Tensor", labels: "Tensor", settings: Mapping[str, Any], reduction: str) -> "Tensor":
    """Logits (rows, 1), labels (rows,), which are taken in units of the training labels' standard deviation."""
    from torch.nn import functional

    target = ((labels.double() - settings["mean"]) / settings["std"]).float()
    return functional.mse_loss(logits[:, 0], target, reduction=reduction)


LOSSES: "dict[str, Loss]" = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "squared_error": squared_error,
}
