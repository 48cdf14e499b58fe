"""Losses against formulas written out in numpy."""

import numpy as np
import pytest
import torch

from tasks.models.losses import mean_loss

LOGITS = torch.tensor(np.random.default_rng(0).normal(size=(6, 3)), dtype=torch.float32)
CLASSES = torch.tensor([0, 1, 2, 2, 1, 0])
SETS = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.int8)


def by_hand(several: bool, weights: list[float], gamma: float) -> np.ndarray:
    """Each label's loss, (rows,) or (rows, labels)."""
    logits = LOGITS.numpy().astype(float)
    if several:
        chance, truth = 1 / (1 + np.exp(-logits)), SETS.numpy()
        right = np.where(truth == 1, chance, 1 - chance)
        return np.where(truth == 1, weights, 1) * (1 - right) ** gamma * -np.log(right)
    table = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    right = table[np.arange(6), CLASSES]
    return np.asarray(weights)[CLASSES] * (1 - right) ** gamma * -np.log(right)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("gamma", [0, 2, 0.5])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 2.0, 7.0]])
def test_weighted_and_focal_losses_are_those_of_the_formulas(several: bool, gamma: float, weights: list[float]) -> None:
    name, labels = ("binary_cross_entropy", SETS) if several else ("cross_entropy", CLASSES)
    loss = mean_loss(name, {"weights": weights, "gamma": gamma})
    expected = by_hand(several, weights, gamma)
    assert float(loss({"logits": LOGITS}, labels)) == pytest.approx(expected.mean(), rel=1e-4)
    assert float(loss({"logits": LOGITS}, labels, 10)) == pytest.approx(expected.sum() / 10, rel=1e-4)


def test_squared_error_is_in_units_of_the_training_labels() -> None:
    labels = torch.tensor([10.0, 20, 30, -100, 0, 5], dtype=torch.float64)
    loss = mean_loss("squared_error", {"mean": 12.0, "std": 4.0})
    expected = ((LOGITS[:, 0].numpy() - (labels.numpy() - 12) / 4) ** 2).mean()
    assert float(loss({"logits": LOGITS[:, :1]}, labels)) == pytest.approx(expected, rel=1e-5)
