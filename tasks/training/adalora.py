"""What AdaLoRA needs of a training besides its layers: its penalty, and its pruning between optimizer steps.

Zhang et al., AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, ICLR 2023.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

ADAPTER = "default"
"""What peft calls an adapter that was given no name."""


def with_penalty(loss: "Callable[..., Tensor]", model: Any) -> "Callable[..., Tensor]":
    """`loss` as Trainer calls it, in training with `orth_reg_weight` times the penalty.

    peft adds it to the loss that a model computes itself, which is not the one that is trained here.
    """
    import torch

    weight = model.peft_config[ADAPTER].orth_reg_weight

    def compute(outputs: Any, labels: "Tensor", num_items_in_batch: Any = None) -> "Tensor":
        found = loss(outputs, labels, num_items_in_batch)
        if not torch.is_grad_enabled():  # validation, of which Trainer tells the number of items, too
            return found
        return found + weight * penalty(model) * (labels.numel() / num_items_in_batch)  # its share of the step

    return compute


def penalty(model: Any) -> "Tensor":
    """How far the singular vectors of the updates are from orthogonal: the mean Frobenius norm of P'P - I and QQ' - I,
    equation 4 of the paper, over all layers."""
    import torch

    norms = []
    for name, vectors in model.named_parameters():
        if f"lora_A.{ADAPTER}" in name or f"lora_B.{ADAPTER}" in name:
            square = vectors @ vectors.T if "lora_A" in name else vectors.T @ vectors
            norms.append(torch.linalg.matrix_norm(square - torch.eye(len(square), device=square.device)))
    return torch.stack(norms).mean()


def pruning_callback() -> "TrainerCallback":
    from transformers import TrainerCallback

    class AdaLoraCallback(TrainerCallback):
        """AdaLoRA prunes between optimizer steps; nobody does it unless told."""

        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.base_model.update_and_allocate(state.global_step)

    return AdaLoraCallback()


def pruned_from(model: Any) -> int:
    """The step from which on the adapter has no more than the ranks that were asked for."""
    config = model.peft_config[ADAPTER]
    return int(config.total_step - config.tfinal)
