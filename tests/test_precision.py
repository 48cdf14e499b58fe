"""Where training is in bfloat16, and what that leaves of the model."""

from typing import Any

import pytest

from tasks.precision import cast_once, use_bfloat16


@pytest.mark.parametrize(
    ("width", "has_units", "expected"), [(32, True, False), (384, True, True), (384, False, False)]
)
def test_a_cpu_trains_in_bfloat16_where_that_pays(
    width: int, has_units: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_units})
    shape = BertConfig(hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    assert use_bfloat16(BertForSequenceClassification(shape)) is expected


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_frozen_matrices_alone_are_cast_and_come_back(foundation: Any, family: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(foundation(family))
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS"))
    before = {name: weight.data for name, weight in model.named_parameters()}
    with cast_once(model):
        cast = {name for name, weight in model.named_parameters() if weight.dtype == torch.bfloat16}
        assert cast and not any(weight.requires_grad for name, weight in model.named_parameters() if name in cast)
        assert not any("lora" in name or "base_layer" in name or "embed" in name or "bias" in name for name in cast)
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
