"""An adapter attached, trained a little, saved and put back, on real small models."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.base.disk import DiskFull
from tasks.data.prepare import prepare
from tasks.inference.portable import merge
from tasks.models import adapter as adapters
from tasks.models import serving
from tasks.settings.fields import InputError
from tasks.settings.loading import validated
from tasks.training.fit import fit_adapter
from tasks.training.watching import Watcher
from tests.conftest import sentences, write_model, write_tokenizer
from tests.support import build as build_family
from tests.support import small_configuration
from tests.test_models_foundation import attach, build, check, refusal, save, train


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("gpt2", {"c_attn"}),
        ("llama", {"q_proj", "v_proj"}),
        ("bert", {"query", "value"}),
        ("roberta", {"query", "value"}),
        ("distilbert", {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"}),
    ],
)
def test_target_modules_are_found_for_the_architecture(family: str, expected: set[str], small_config: Any) -> None:
    model, _ = attach(small_config(family=family))
    assert set(adapters.adapted_modules(model)) == expected
    adapted = [name for name, p in model.named_parameters() if "lora_" in name]
    layers = 2 * len(expected)
    assert len(adapted) == 2 * layers, "every layer of the body, the head not"


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        # mixtures of experts: peft takes the names in their blocks for the experts' joint weights
        ("mixtral", ATTENTION),
        ("minimax", ATTENTION | {"out_proj", "output_gate", "qkv_proj"}),
        ("qwen3_moe", ATTENTION),
        ("hunyuan_v1_moe", ATTENTION),
        ("deepseek_v3", {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}),
        # what chooses the experts is left alone
        ("phimoe", ATTENTION),
        ("qwen2_moe", ATTENTION | {"gate_proj", "up_proj", "down_proj"}),
        ("jetmoe", {"kv_proj"}),
        # blocks of convolutions
        ("squeezebert", {"query", "key", "value", "conv1d"}),
        # embeddings that are no table
        ("canine", {"query", "key", "value", "dense"}),
        # a subclass of Linear that is nothing else
        ("falcon", {"query_key_value"}),
    ],
)
def test_layers_are_found_in_families_of_every_kind(family: str, expected: set[str]) -> None:
    model = adapters.attach_adapter(empty(family), validated({}), (), steps=10)
    assert set(adapters.adapted_modules(model)) == expected


def empty(family: str) -> Any:
    """A classifier of this family, without memory for weights."""
    import torch
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(small_configuration(family))


def adapted_layers(family: str, adapter: dict[str, Any]) -> list[str]:
    """Their full names, within the classifier."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = adapters.attach_adapter(empty(family), validated({"adapter": adapter}), (), steps=10).base_model.model
    return [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


@pytest.mark.parametrize(
    "adapter",
    [
        {},
        {"target_modules": ("q_proj", "v_proj")},
        {"target_modules": "all-linear"},
        {"options": {"target_modules": r".*\.[qv]_proj"}},
        {"method": "ia3"},
        {"method": "ln_tuning"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("gemma3", ("model.language_model.",)),
        ("qwen3_5", ("model.language_model.",)),
        ("t5gemma2", ("model.encoder.text_model.", "model.decoder.")),
        ("ultravbert", ("model.text_model.",)),
    ],
)
def test_of_a_model_that_reads_pictures_too_what_reads_text_is_adapted(
    family: str, text: tuple[str, ...], adapter: dict[str, Any]
) -> None:
    names = adapted_layers(family, adapter)
    assert names and all(name.startswith(text) for name in names)
    assert all(any(name.startswith(part) for name in names) for part in text)
    if isinstance(wanted := adapter.get("target_modules"), tuple):
        assert {name.split(".")[-1] for name in names} == set(wanted)


@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": ["out_proj"]},
        {"target_modules": ["vision_tower.encoder.layers.0.self_attn.q_proj"]},
        {"options": {"target_modules": r".*vision.*\.q_proj"}},
    ],
    ids=str,
)
def test_what_reads_pictures_cannot_be_adapted_by_name(adapter: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"what reads text in .* has no layer that is called '.*'; the rest is left"):
        adapted_layers("gemma3", adapter)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5"])
def test_a_model_that_reads_pictures_too_is_merged_into_one_that_transformers_reads(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a tokenizer that has another pad token than the configuration."""
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = build_family(family, tmp_path / "model")
    write_tokenizer(folder, eos_token="[EOS]")
    config = validated({"model": {"name": str(folder)}, "data": {"max_length": 32}})
    with caplog.at_level(logging.INFO):
        check(config)
    assert any("reads more than text: the adapter goes into what reads text" in line for line in caplog.messages)
    model, built = attach(config)
    before = {name: weight.clone() for name, weight in model.named_parameters() if "vis" in name}
    train(model, built.tokenizer)
    assert before and all(torch.equal(model.get_parameter(name), weight) for name, weight in before.items())
    trained, _ = model.get_nb_trainable_parameters()
    assert trained == sum(weight.numel() for name, weight in model.named_parameters() if weight.requires_grad)
    rows = built.tokenizer(["a warm and funny film", "dull", "so " * 20])
    logits = serving.classify(model, built.tokenizer, rows, 4)
    save(model, built, config, tmp_path / "adapter")
    again, tokenizer = serving.load_adapter(tmp_path / "adapter")
    assert torch.equal(serving.classify(again, tokenizer, rows, 4), logits)
    merge(again, family).save_pretrained(tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    assert plain.config.get_text_config().pad_token_id == tokenizer.pad_token_id
    with torch.no_grad():
        found = plain(**tokenizer.pad(rows, return_tensors="pt")).logits
    assert torch.allclose(found, logits, atol=1e-4)


def test_of_a_model_that_reads_pictures_too_the_top_blocks_are_those_that_read_text() -> None:
    names = adapted_layers("gemma3", {"layers": 1})
    assert names and all(name.startswith("model.language_model.layers.1.") for name in names)


@pytest.mark.parametrize(("family", "expected"), [("gpt2", {"ln_1", "ln_2", "ln_f"}), ("bert", {"LayerNorm"})])
def test_ln_tuning_finds_the_norms(family: str, expected: set[str], small_config: Any) -> None:
    model, _ = attach(small_config({"adapter": {"method": "ln_tuning"}}, family=family))
    assert set(adapters.adapted_modules(model)) == expected


def test_named_target_modules_are_the_ones_adapted(small_config: Any) -> None:
    config = small_config({"adapter": {"target_modules": ("c_fc", "attn.c_proj")}})
    check(config)
    model, _ = attach(config)
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    first = "base_model.model.transformer.h.0"
    assert {name for name in adapted if name.startswith(first)} == {f"{first}.mlp.c_fc", f"{first}.attn.c_proj"}


def test_an_unknown_target_module_is_refused_with_the_known_ones(small_config: Any) -> None:
    message = refusal(small_config({"adapter": {"target_modules": ("q_proj",)}}))
    assert "'q_proj'" in message and "c_attn, c_fc, c_proj" in message


def test_the_head_is_no_target_module(small_config: Any) -> None:
    assert "adapter.method: lora does not fit" in refusal(small_config({"adapter": {"target_modules": ("score",)}}))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"options": {"use_rslor": True}}, "LoraConfig has no field 'use_rslor'; did you mean use_rslora?"),
        ({"options": {"zzz": 1}}, "LoraConfig has no field 'zzz'; see peft's LoraConfig"),
        ({"options": {"task_type": "CAUSAL_LM"}}, "task_type follows from the model"),
        ({"options": {"modules_to_save": ["score"]}}, "modules_to_save follows from the model"),
        ({"options": {"inference_mode": True}}, "inference_mode follows from the model"),
        ({"options": {"lora_alpha": 4}}, "'lora_alpha' has a field of its own, adapter.alpha"),
        ({"options": {"bias": "sometimes"}}, "adapter.method: lora does not fit"),
        ({"options": {"target_modules": "all-linear"}, "target_modules": ("c_fc",)}, "choose one"),
        ({"method": "ln_tuning", "r": 4}, "adapter.r: ln_tuning has none"),
        ({"method": "ia3", "alpha": 4}, "adapter.alpha: ia3 has none"),
        ({"method": "hra", "dropout": 0.1}, "adapter.dropout: hra has none"),
        ({"method": "hra"}, "adapter.method: hra does not fit"),
        ({"method": "prompt_tuning"}, "reads the wrong token"),
    ],
)
def test_what_an_adapter_cannot_have_is_refused(adapter: dict[str, Any], message: str, small_config: Any) -> None:
    assert message in refusal(small_config({"adapter": adapter}))


def test_options_reach_peft(small_config: Any) -> None:
    model, _ = attach(small_config({"adapter": {"options": {"use_rslora": True, "target_modules": "all-linear"}}}))
    assert model.peft_config["default"].use_rslora
    assert set(adapters.adapted_modules(model)) == {"c_attn", "c_proj", "c_fc"}


def test_prompt_tuning_on_an_encoder_has_no_layers_to_name(small_config: Any) -> None:
    config = small_config({"adapter": {"method": "prompt_tuning", "target_modules": ("query",)}}, family="bert")
    assert "does not adapt layers" in refusal(config)


def test_without_dropout_no_dropout_runs(small_config: Any) -> None:
    import torch

    dropouts = {}
    for share in (0.0, 0.5):
        model, _ = attach(small_config({"adapter": {"dropout": share}}))
        dropouts[share] = {type(m.lora_dropout["default"]) for m in model.modules() if hasattr(m, "lora_dropout")}
    assert dropouts == {0.0: {torch.nn.Identity}, 0.5: {torch.nn.Dropout}}


def test_the_adapter_follows_the_seed(small_config: Any) -> None:
    import torch

    def adapter(seed: int) -> list[Any]:
        return [p for n, p in attach(small_config({"seed": seed}))[0].named_parameters() if "lora_A" in n]

    first, again, other = adapter(0), adapter(0), adapter(1)
    assert all(map(torch.equal, first, again)) and not any(map(torch.equal, first, other))


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "ln_tuning", "vera"])
def test_an_untrained_adapter_leaves_the_foundation_models_answers(method: str, small_config: Any) -> None:
    """Baseline and training start from the same function; VeRA's start is not exactly zero everywhere."""
    import torch

    config = small_config({"adapter": {"method": method}})
    built = build(config)
    rows = built.tokenizer(sentences()[0])
    before = serving.classify(built.model.eval(), built.tokenizer, rows, 4)
    model = adapters.attach_adapter(built.model, config, built.fresh, steps=10).eval()
    assert torch.allclose(serving.classify(model, built.tokenizer, rows, 4), before, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_bfloat16_weights_train_and_read_back(family: str, small_config: Any, tmp_path: Path) -> None:
    import torch
    from datasets import load_from_disk
    from safetensors.torch import load_file

    config = small_config({"model": {"dtype": "bfloat16"}, "training": {"epochs": 14}}, family)
    data = prepare(config, tmp_path)
    trained = fit_adapter(config, data, tmp_path / "run", Watcher(lambda progress: None))
    losses = [point.metrics["validation/loss"] for point in trained.history if "validation/loss" in point.metrics]
    assert losses[-1] < 0.5 * losses[0]
    again, tokenizer = serving.load_adapter(Path(trained.folder))
    assert again.base_model.model.dtype == torch.bfloat16
    rows = load_from_disk(data.folder)["validation"][:]
    logits = serving.classify(again, tokenizer, rows, config.evaluation.batch_size)
    assert logits.dtype == torch.float32 and torch.equal(logits, load_file(trained.probe)["logits"])


def test_the_adapter_folder_holds_what_it_should_and_no_pickle(small_config: Any, tmp_path: Path) -> None:
    config = small_config()
    model, built = attach(config)
    save(model, built, config, tmp_path / "adapter")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {
        "adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "peft_flow.json"
    } <= files  # fmt: skip
    for path in (tmp_path / "adapter").iterdir():
        start = path.read_bytes()[:2]
        assert path.suffix in (".json", ".safetensors", ".md", ".txt", ".jinja"), path.name
        assert start not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), path.name
    assert serving.read_settings(tmp_path / "adapter")["label_names"] == ["bad", "good"]


class Backwards(set[str]):
    """A set in an order that another process may well have."""

    def __iter__(self) -> Iterator[str]:
        return reversed(sorted(set.copy(self)))


def test_settings_are_the_same_bytes_whatever_order_a_set_has(small_config: Any, tmp_path: Path) -> None:
    config = small_config({"adapter": {"target_modules": ["query", "key", "value"]}}, family="bert")
    model, built = attach(config)
    model.peft_config["default"].target_modules = Backwards(("query", "key", "value"))
    save(model, built, config, tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert written["target_modules"] == ["key", "query", "value"]


def test_a_save_that_fails_leaves_the_old_adapter_and_the_next_one_works(
    small_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config()
    model, built = attach(config)
    folder = tmp_path / "adapter"
    save(model, built, config, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    train(model, built.tokenizer)

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DiskFull, match="adapter: the disk is full"):
        patch.setattr(adapters, "write_text", fail)
        save(model, built, config, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    save(model, built, config, folder)
    assert (folder / "adapter_model.safetensors").read_bytes() != before["adapter_model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_the_same_model_is_written_the_same_by_every_family(tmp_path: Path) -> None:
    """The tests' own models are seeded, or the truths above would be luck."""
    for name in ("one", "two"):
        write_model(tmp_path / name, "gpt2")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
