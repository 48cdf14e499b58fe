"""Where training is in bfloat16, and what that leaves of the model."""

from pathlib import Path
from typing import Any

import pytest

from tasks.data.prepare import prepare
from tasks.models import serving
from tasks.training.fit import fit_adapter
from tasks.training.precision import quick_autocast, use_bfloat16
from tasks.training.watching import Watcher
from tests.support import small_configuration


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


def test_the_width_of_a_model_that_reads_pictures_too_is_that_of_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    for width, expected in ((64, False), (256, True)):
        shape = small_configuration("gemma3")
        shape.text_config.hidden_size = width
        assert use_bfloat16(AutoModelForSequenceClassification.from_config(shape)) is expected


@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta", "distilbert", "llama"])
def test_bfloat16_weights_train_on_a_cpu_without_units_for_them(
    family: str, small_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the product's own training; read back, they give the same logits."""
    import torch
    from datasets import load_from_disk
    from safetensors.torch import load_file

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False})
    name = small_config(family=family).model.name
    config = small_config({"model": {"name": name, "dtype": "bfloat16"}, "training": {"max_steps": 2}})
    data = prepare(config, tmp_path)
    trained = fit_adapter(config, data, tmp_path / "run", Watcher(lambda progress: None))
    assert trained.compute["training_precision"] == "bfloat16" and trained.steps == 2
    model, tokenizer = serving.load_adapter(Path(trained.folder))
    assert model.base_model.model.dtype == torch.bfloat16
    rows = serving.model_rows(load_from_disk(data.folder)["validation"], tokenizer)
    assert torch.equal(serving.classify(model, tokenizer, rows, 8), load_file(trained.probe)["logits"])


@pytest.fixture(params=["gpt2", "bert"])
def model(foundation: Any, request: pytest.FixtureRequest) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(foundation(request.param))
    base.config.pad_token_id = 0
    return get_peft_model(base, LoraConfig(task_type="SEQ_CLS", init_lora_weights=False)).eval()


def test_frozen_matrices_alone_are_cast_and_come_back(model: Any) -> None:
    import torch

    before = {name: weight.data for name, weight in model.named_parameters()}
    with quick_autocast(model):
        cast = {name: weight for name, weight in model.named_parameters() if weight.dtype == torch.bfloat16}
        assert cast and not any(weight.requires_grad for weight in cast.values())
        assert not any(part in name for name in cast for part in ("lora", "base_layer", "embed", "bias"))
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_is_trained_computes_in_float32_and_all_of_it_has_gradients(model: Any) -> None:
    import torch

    batch = {"input_ids": torch.arange(5, 17).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    with torch.no_grad():
        exact = model(**batch).logits
        with torch.autocast("cpu", torch.bfloat16):
            plain = model(**batch).logits
    with torch.autocast("cpu", torch.bfloat16), quick_autocast(model):
        logits = model(**batch).logits
        logits.sum().backward()
    assert plain.dtype == torch.bfloat16 and logits.dtype == torch.float32
    assert not torch.equal(logits, exact) and torch.allclose(logits, exact, atol=0.05)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in trained)
