"""Dropout is dropout, whoever draws it."""

from typing import Any

import pytest

from tasks.training.dropout import keep, quick_dropout
from tests.test_training_trimming import Prepared


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
def test_share_of_zeros_and_mean_are_those_asked_for(p: float) -> None:
    import torch

    torch.manual_seed(0)
    kept = keep((1000, 1001), p)
    assert abs(float((kept == 0).float().mean()) - p) < 0.002  # four standard errors
    assert abs(float(kept.double().mean()) - 1) < 0.003
    assert len(kept.unique()) == 2 and kept.shape == (1000, 1001)


def test_neighbours_fall_out_independently() -> None:
    """Four of them come from one random number."""
    import torch

    torch.manual_seed(0)
    dropped = (keep((250_000, 4), 0.3) == 0).double()
    together = (dropped.T @ dropped) / len(dropped)
    assert torch.allclose(together, torch.full((4, 4), 0.09).double() + 0.21 * torch.eye(4).double(), atol=0.004)


def test_same_seed_same_zeros() -> None:
    import torch

    torch.manual_seed(3)
    first = keep((7, 9), 0.4)
    second = keep((7, 9), 0.4)
    torch.manual_seed(3)
    assert torch.equal(keep((7, 9), 0.4), first) and not torch.equal(first, second)


@pytest.mark.parametrize("family", ["gpt2", "bert", "distilbert"])
def test_model_is_what_it_was_outside_and_in_evaluation(foundation: Any, family: str) -> None:
    import torch
    from torch.nn import Dropout
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    prepared, before = Prepared(foundation(family)), ALL_ATTENTION_FUNCTIONS["sdpa"]
    model = prepared.model.eval()
    with torch.no_grad():
        expected = model(**prepared.batch).logits
        with quick_dropout(model):
            assert not any(type(module) is Dropout for module in model.modules())
            assert torch.equal(model(**prepared.batch).logits, expected)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    assert {type(module) for module in model.modules() if isinstance(module, Dropout)} == {Dropout}


@pytest.mark.parametrize("family", ["gpt2", "bert", "distilbert", "llama"])
def test_mean_over_many_draws_is_that_of_torchs_dropout(foundation: Any, family: str) -> None:
    """Of the logits in training mode, within four standard errors; they differ from those without dropout."""
    import torch

    prepared = Prepared(foundation(family))
    if family == "llama":
        prepared.model.config.attention_dropout = 0.1
        for module in prepared.model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.1
    model, draws, rows = prepared.model.train(), 600, len(prepared.batch["input_ids"])
    copies = {name: column.repeat(100, *[1] * (column.dim() - 1)) for name, column in prepared.batch.items()}

    def many() -> Any:
        torch.manual_seed(1)
        with torch.no_grad():
            return torch.cat([model(**copies).logits.reshape(100, rows, -1) for _ in range(draws // 100)]).double()

    theirs = many()
    with quick_dropout(model):
        ours = many()
    error = (theirs.var(0) / draws + ours.var(0) / draws).sqrt()
    assert (error > 0).all() and not torch.equal(ours, theirs)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error).all()
    assert (ours.std(0) / theirs.std(0)).log().abs().max() < 0.25


def test_attention_without_dropout_in_its_weights_is_torchs_to_rounding(foundation: Any) -> None:
    """With a probability that drops next to nothing, so that both are the same but for the kernel."""
    import torch

    prepared = Prepared(foundation("bert"))
    model = prepared.model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    expected = model(**prepared.batch).logits
    for layer in model.base_model.model.bert.encoder.layer:
        layer.attention.self.dropout.p = 1.0 / 65_536
    torch.manual_seed(5)
    with quick_dropout(model):
        found = model(**prepared.batch).logits
    assert not torch.equal(found, expected) and torch.allclose(found, expected, atol=1e-3)


def test_dropout_of_bfloat16_keeps_the_mean() -> None:
    """As autocast gives it; 1 / 0.9 as bfloat16 would lose 0.2 % of it, with zeros for a tenth."""
    import torch

    layer = torch.nn.Sequential(torch.nn.Dropout(0.1)).train()
    torch.manual_seed(0)
    with quick_dropout(layer):
        found = layer(torch.ones(1000, 1000, dtype=torch.bfloat16))
    assert abs(float(found.double().mean()) - 1) < 0.0014  # four standard errors
