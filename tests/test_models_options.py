"""What adapter.options may say: it matches the model, does something, and is read back; else one line refuses it."""

from pathlib import Path
from typing import Any

import pytest

from tasks.inference.portable import merge
from tasks.models import adapter as adapters
from tasks.models import serving
from tasks.settings.fields import InputError
from tests.test_models_foundation import attach, check, refusal, save, train

LISTS = {"layers_to_transform": [1], "layers_pattern": ["layer", "layr"]}


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora", {"rank_pattern": {"qury": 4}}, "no layer in this model is called 'qury'; did you mean query"),
        ("lora", {"alpha_pattern": {"query": 4, "valeu": 4}}, "alpha_pattern: no layer in this model is called"),
        ("lora", {"alpha_pattern": {"[": 4}}, "'[' is not a regular expression"),
        ("lora", {"rank_pattern": {"key": 4}}, "no layer with the adapter is called 'key'; there are query, value"),
        ("lora", {"rank_pattern": {"zzz": 4}}, "there are"),
        ("delora", {"lambda_pattern": {"valeu": 4}}, "lambda_pattern"),
        ("fourierft", {"n_frequency_pattern": {"valeu": 4}}, "n_frequency_pattern"),
        ("c3a", {"block_size_pattern": {"valeu": 4}}, "block_size_pattern"),
        ("lora", {"target_modules": ["query", "valeu"]}, "nothing in this model is called 'valeu'; did you mean value"),
        ("lora", {"target_modules": ".*valeu"}, "'.*valeu'"),
        ("lora", {"exclude_modules": ["qury"]}, "exclude_modules: nothing in this model is called 'qury'"),
        ("lora", {"exclude_modules": ".*qury"}, "exclude_modules"),
        ("lora", {"target_parameters": ["query.weight"]}, "has a field of its own, adapter.target_parameters"),
        ("ia3", {"target_modules": ["dense"], "feedforward_modules": ["dens"]}, "did you mean dense"),
        ("lora", {"layers_to_transform": [0, 7]}, "there is no block 7; there are 0 to 1"),
        ("lora", {"layers_to_transform": 7}, "there is no block 7"),
        ("lora", LISTS, "layers_pattern: no list of blocks is called 'layr'"),
        ("lora", {"trainable_token_indices": [200]}, "200 is outside of 0 to 199"),
        ("lora", {"trainable_token_indices": {"word_embedings": [1]}}, "did you mean word_embeddings"),
        ("lora", {"trainable_token_indices": {"word_embeddings": [200]}}, "200 is outside of 0 to 199"),
        ("lora", {"trainable_token_indices": 5}, "trainable_token_indices: 5 is not what peft takes"),
        ("lora", {"exclude_modules": [5]}, "exclude_modules: [5] is not what peft takes"),
        ("lora", {"rank_pattern": ["query"]}, "rank_pattern: ['query'] is not what peft takes"),
        ("lora", {"layers_pattern": "("}, "layers_pattern: '(' is not a regular expression"),
        ("lora", {"use_dora": "perhaps"}, "use_dora: input should be a valid boolean"),
        ("prompt_tuning", {"num_virtual_tokens": "x"}, "num_virtual_tokens: input should be a valid integer"),
        ("prompt_tuning", {"num_virtual_tokens": 99}, "the 64 positions of"),
        ("prompt_tuning", {"prompt_tuning_init": "TEXT"}, "choose RANDOM or SAMPLE_VOCAB"),
        ("prompt_tuning", {"prompt_tuning_init_text": "good or bad"}, "prompt_tuning_init_text is read by a tokenizer"),
        ("prompt_tuning", {"tokenizer_name_or_path": "gpt2"}, "would be asked for at the Hub"),
        ("lora", {"init_lora_weights": "eva"}, "init_lora_weights: eva does not work with lora"),
        ("lora", {"init_lora_weights": "lora_ga"}, "choose of true, false, gaussian"),
        ("dora", {"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 does not work"),
        ("adalora", {"init_lora_weights": "pissa"}, "choose of true, false"),
        ("adalora", {"rank_pattern": {"query": 4}}, "finds in training"),
        ("lora", {"eva_config": {"rho": 2}}, "needs a pass over the data"),
        ("lora", {"use_qalora": True}, "quantised in other ways"),
        ("lora", {"layer_replication": [[0, 2]]}, "deeper model"),
        ("lora", {"alora_invocation_tokens": [3]}, "write text"),
        ("tinylora", {"init_weights": False}, "choose of true, uniform"),
        ("pvera", {"sample_at_inference": True}, "another prediction each time"),
        ("hra", {"apply_GS": True}, "divides by zero"),
        ("adamss", {"use_asa": True}, "leave it out"),
        ("glora", {"config_A_B": "none", "config_C": "none", "config_D_E": "none"}, "no weights to train"),
        ("fourierft", {"random_loc_seed": None}, "does not fit"),
    ],
    ids=str,
)  # fmt: skip
def test_option_that_does_nothing_or_cannot_be_read_back_is_refused(
    method: str, options: dict[str, Any], message: str, small_config: Any
) -> None:
    config = small_config({"adapter": {"method": method, "options": options}}, family="bert")
    assert message in refusal(config)


def test_pattern_for_a_layer_without_the_adapter_is_refused_where_the_method_needs_the_weights_to_attach(
    small_config: Any,
) -> None:
    options = {"init_lora_weights": "pissa", "rank_pattern": {"key": 4}}
    with pytest.raises(InputError, match="no layer with the adapter is called 'key'"):
        attach(small_config({"adapter": {"options": options}}, family="bert"))


def test_olora_is_refused_where_it_would_fail_in_the_first_step(small_config: Any) -> None:
    options = {"init_lora_weights": "olora"}
    assert "choose pissa" in refusal(small_config({"adapter": {"options": options}}, family="gpt2"))
    check(small_config({"adapter": {"options": options}}, family="bert"))


STARTS = (False, "gaussian", "orthogonal", "pissa", "olora", "mica")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *(("lora", {"init_lora_weights": start}) for start in STARTS),
        ("lora", {"rank_pattern": {r"layer\.0.*query": 4}, "alpha_pattern": {"value": 4}}),
        ("lora", {"layers_to_transform": 1, "layers_pattern": "layer"}),
        ("lora", {"target_modules": ".*query", "exclude_modules": ["layer.0.attention.self.query"]}),
        ("lora", {"trainable_token_indices": {"word_embeddings": [5, 6]}}),
        ("lora", {"bias": "all", "lora_bias": True}),
        ("ia3", {"target_modules": ["query", "dense"], "feedforward_modules": ["dense"]}),
    ],
    ids=str,
)  # fmt: skip
def test_option_that_is_accepted_is_read_back_and_merged(
    method: str, options: dict[str, Any], small_config: Any, tmp_path: Path
) -> None:
    import torch

    config = small_config({"adapter": {"method": method, "options": options}}, family="bert")
    check(config)
    model, built = attach(config)
    train(model, built.tokenizer)
    rows = built.tokenizer(["a warm and funny film", "dull"])
    logits = serving.classify(model, built.tokenizer, rows, 4)
    save(model, built, config, tmp_path / "adapter")
    torch.manual_seed(99)
    again, tokenizer = serving.load_adapter(tmp_path / "adapter")
    assert torch.equal(serving.classify(again, tokenizer, rows, 4), logits)
    assert torch.allclose(serving.classify(merge(again, "a"), tokenizer, rows, 4), logits, atol=1e-4)


@pytest.mark.parametrize("written", ["all-linear", "all_linear", "ALL LINEAR", ["all-linear"]], ids=str)
def test_all_linear_is_understood_as_people_write_it(written: Any, small_config: Any) -> None:
    changes: list[dict[str, Any]] = [{"target_modules": written}, {"options": {"target_modules": written}}]
    for change in changes:
        config = small_config({"adapter": change}, family="bert")
        check(config)
        model, _ = attach(config)
        assert set(adapters.adapted_modules(model)) == {"query", "key", "value", "dense"}
        assert not any(
            "lora" in name for name, _ in model.named_parameters() if "classifier" in name or "pooler" in name
        )


@pytest.mark.parametrize("adapter", [{"layers": 1}, {"options": {"layers_to_transform": [1]}}], ids=str)
@pytest.mark.parametrize(("family", "block"), [("bert", ".layer.1."), ("distilbert", ".layer.1.")])
def test_all_linear_and_layers_found_by_name_heed_the_blocks(
    adapter: dict[str, Any], family: str, block: str, small_config: Any
) -> None:
    """DistilBERT is not known to peft: its layers are given by their full names, for which peft forgets the blocks."""
    wanted = {} if family == "distilbert" else {"target_modules": "all-linear"}
    config = small_config({"adapter": {**adapter, **wanted}}, family=family)
    check(config)
    model, _ = attach(config)
    adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert adapted and all(block in name for name in adapted)
