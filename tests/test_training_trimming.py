"""The last block computes the one token that is read, and nothing else changes."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tasks.models import adapter as adapters
from tasks.models import foundation as models
from tasks.settings.loading import validated
from tasks.settings.methods import METHODS
from tasks.sources.hub import find
from tasks.training.trimming import trim_last_block
from tests.conftest import sentences
from tests.support import build
from tests.test_settings_methods import FAMILIES, REFUSED

TRIMMED = {
    "gpt2": {"attn.c_proj", "attn.resid_dropout", "ln_2", "mlp"},
    "bert": {"attention.self.query", "attention.output", "intermediate", "output"},
    "roberta": {"attention.self.query", "attention.output", "intermediate", "output"},
    "distilbert": {"attention.q_lin", "attention.out_lin", "sa_layer_norm", "ffn", "output_layer_norm"},
    "llama": {"self_attn.q_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp"},
}


class Prepared:
    """A classifier with a new adapter, and a batch of rows of different length."""

    def __init__(self, folder: Any, method: str = "lora") -> None:
        config = validated({"model": {"name": str(folder)}, "data": {"max_length": 32}, "adapter": {"method": method}})
        source = find("model", str(folder), "main", offline=True)
        self.tokenizer = models.load_tokenizer(source, config.model)
        model, fresh = models.load_foundation(source, config, ("bad", "good"), self.tokenizer)
        self.model = adapters.attach_adapter(model, config, fresh, steps=2)
        texts = [" ".join(sentences()[0][:count])[: 20 * count] for count in (1, 2, 3)]
        self.batch = self.tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")

    def trained(self) -> list[Any]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def learn(self) -> None:
        """The adapter is no longer the identity, of which half of its weights were zeros."""
        import torch

        torch.manual_seed(1)
        for weight in self.trained():
            weight.data += 0.05 * torch.randn_like(weight)

    def step(self) -> tuple[Any, list[Any]]:
        """Logits and gradients of one training step, without dropout."""
        import torch

        self.model.eval()
        self.model.zero_grad()
        logits = self.model(**self.batch).logits
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1])).backward()
        return logits.detach(), [deepcopy(weight.grad) for weight in self.trained()]


def check_same(make: Callable[[], Prepared], names: set[str] | None = None) -> None:
    """Trimmed before it has learned, the model is afterwards what it would have been."""
    import torch

    whole, cut = make(), make()
    trimmed = trim_last_block(cut.model, cut.batch)
    if names is not None:
        assert set(trimmed) == names
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(cut.trained(), whole.trained(), strict=True))
    whole.learn()
    cut.learn()
    (logits, gradients), (logits_cut, gradients_cut) = whole.step(), cut.step()
    assert torch.allclose(logits_cut, logits, atol=1e-5, rtol=0)
    # small gradients are differences of large ones, and as exact as these
    largest = max(float(gradient.abs().max()) for gradient in gradients if gradient is not None)
    for before, now in zip(gradients, gradients_cut, strict=True):
        assert (before is None) == (now is None)
        assert before is None or (now - before).abs().max() <= 1e-5 * max(1.0, largest)


@pytest.mark.parametrize("family", FAMILIES)
def test_last_block_of_every_family_is_trimmed_and_nothing_changes(foundation: Any, family: str) -> None:
    check_same(lambda: Prepared(foundation(family)), TRIMMED[family])


@pytest.mark.parametrize("method", ["adalora", "boft", "dora", "ia3", "ln_tuning", "prompt_tuning", "vera"])
def test_nothing_changes_whatever_the_adapter(foundation: Any, method: str) -> None:
    assert method in METHODS
    check_same(lambda: Prepared(foundation("bert"), method))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method"),
    [(family, method) for family in FAMILIES for method in METHODS if method not in REFUSED.get(family, ())],
)
def test_nothing_changes_with_any_adapter_on_any_family(foundation: Any, family: str, method: str) -> None:
    check_same(lambda: Prepared(foundation(family), method))


def test_pad_token_inside_a_text_moves_the_token_as_the_model_moves_it(foundation: Any) -> None:
    """GPT-2 pads with its end-of-text token, which a text may hold, also as its last."""

    def make() -> Prepared:
        prepared = Prepared(foundation("gpt2"))
        prepared.batch["input_ids"][2, 3] = prepared.batch["input_ids"][2, -1] = prepared.tokenizer.pad_token_id
        return prepared

    check_same(make, TRIMMED["gpt2"])


def test_trimming_draws_no_random_number_and_leaves_training_mode(foundation: Any) -> None:
    import torch

    prepared = Prepared(foundation("gpt2"))
    prepared.model.train()
    before = torch.get_rng_state()
    assert trim_last_block(prepared.model, prepared.batch)
    assert prepared.model.training and torch.equal(torch.get_rng_state(), before)
    assert all(weight.grad is None for weight in prepared.trained())


def classifier(kind: str, **settings: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=99, pad_token_id=1, **settings)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()


def batch_of_ids() -> dict[str, Any]:
    import torch

    ids = torch.arange(2, 18).reshape(2, 8)
    mask = torch.ones_like(ids)
    ids[0, 5:], mask[0, 5:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def test_model_whose_head_reads_every_token_is_left_alone() -> None:
    """XLNet-like summaries aside, Reformer and others average; here a head that does."""
    import torch

    model = classifier("Bert", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)

    class Average(torch.nn.Module):
        def forward(self, states: Any) -> Any:
            return states.mean(1)

    model.bert.pooler = Average()
    assert trim_last_block(model, batch_of_ids()) == ()


@pytest.mark.parametrize("groups", [1, 3])
def test_blocks_in_groups_or_repeated_change_nothing(groups: int) -> None:
    """ALBERT runs one block several times."""
    import torch

    model = classifier(
        "Albert",
        hidden_size=32,
        embedding_size=16,
        num_hidden_layers=3,
        num_hidden_groups=groups,
        num_attention_heads=2,
        intermediate_size=64,
    )
    before = model(**batch_of_ids()).logits
    assert bool(trim_last_block(model, batch_of_ids())) == (groups == 3)
    assert torch.allclose(model(**batch_of_ids()).logits, before, atol=1e-5)


def test_encoder_with_decoder_is_left_alone() -> None:
    model = classifier(
        "Bart",
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        eos_token_id=2,
    )
    batch = batch_of_ids()
    batch["input_ids"][:, 4] = 2
    assert trim_last_block(model, batch) == ()


def test_a_model_that_pads_inside_is_the_same_at_every_length(tmp_path: Path) -> None:
    """Tried on a batch of whole blocks, it is then given others. (Sparse attention, which peft-flow turns off.)"""
    import torch

    folder = build("big_bird", tmp_path / "model", block_size=4, num_random_blocks=1)
    whole, cut = Prepared(folder), Prepared(folder)
    long = cut.tokenizer.pad(dict(cut.batch), pad_to_multiple_of=32, return_tensors="pt")
    for prepared in (whole, cut):
        prepared.model.eval().base_model.model.bert.set_attention_type("block_sparse")
        prepared.learn()
    assert trim_last_block(cut.model, long)
    for length in (32, 30, 9):
        batch = {name: values[:, :length] for name, values in long.items()}
        with torch.no_grad():
            assert torch.allclose(cut.model(**batch).logits, whole.model(**batch).logits, atol=1e-5)
