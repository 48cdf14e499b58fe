"""Tokenizer, classifier and adapter, on two-layer models as they lie on disk."""

import contextlib
import json
import pickle
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tasks.base.records import Source
from tasks.models import adapter as adapters
from tasks.models import foundation as models
from tasks.models import serving
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.sources.hub import find
from tests.conftest import bare_data, sentences
from tests.support import build as build_family
from tests.support import small_configuration

NAMES = ("bad", "good")
FAMILIES = ("gpt2", "bert", "roberta", "distilbert", "llama")


class Built(NamedTuple):
    source: Source
    tokenizer: Any
    model: Any
    fresh: list[str]


def local(folder: Path | str) -> Source:
    return find("model", str(folder), "main", offline=True)


def build(config: RunConfig, names: Sequence[str] = NAMES) -> Built:
    source = local(config.model.name)
    tokenizer = models.load_tokenizer(source, config.model)
    return Built(source, tokenizer, *models.load_foundation(source, config, names, tokenizer))


def attach(config: RunConfig) -> tuple[Any, Built]:
    built = build(config)
    return adapters.attach_adapter(built.model, config, built.fresh, steps=10), built


def train(model: Any, tokenizer: Any, steps: int = 3) -> list[float]:
    import torch

    texts, labels = sentences()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**batch, labels=torch.tensor(labels)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def save(model: Any, built: Built, config: RunConfig, folder: Path) -> None:
    adapters.save_adapter(model, built.tokenizer, config, bare_data(built.source), folder, {"temperature": 1.0})


def head_weights(model: Any) -> dict[str, Any]:
    return {name: weight for name, weight in model.state_dict().items() if not name.startswith("transformer.")}


def refusal(config: RunConfig) -> str:
    with pytest.raises(InputError) as error:
        check(config)
    return str(error.value)


def check(config: RunConfig) -> None:
    source = local(config.model.name)
    adapters.check_adapter(models.check_model(source, config), source, config)


# --- tokenizer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_gpt_style_tokenizer_gets_its_end_token_to_pad_with(family: str, small_config: Any) -> None:
    from transformers import AutoTokenizer

    config = small_config(family=family)
    assert AutoTokenizer.from_pretrained(config.model.name).pad_token is None
    tokenizer = models.load_tokenizer(local(config.model.name), config.model)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
    assert build(config).model.config.pad_token_id == tokenizer.pad_token_id


def test_a_pad_token_of_its_own_is_kept(small_config: Any) -> None:
    assert build(small_config(family="bert")).tokenizer.pad_token == "[PAD]"


def test_a_tokenizer_that_pads_on_the_left_pads_on_the_right_here_and_when_read_back(
    small_config: Any, tmp_path: Path
) -> None:
    config = small_config()
    folder = shutil.copytree(config.model.name, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    config = small_config({"model": {"name": str(folder)}})
    model, built = attach(config)
    assert built.tokenizer.padding_side == "right"
    save(model, built, config, tmp_path / "adapter")
    assert serving.load_adapter(tmp_path / "adapter")[1].padding_side == "right"


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(small_config: Any, tmp_path: Path) -> None:
    config = small_config()
    folder = shutil.copytree(config.model.name, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in settings.items() if not name.endswith("_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    config = small_config({"model": {"name": str(folder)}})
    with pytest.raises(InputError, match="to pad with"):
        models.load_tokenizer(local(folder), config.model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rows_logits_do_not_depend_on_the_padding_of_its_batch(family: str, small_config: Any) -> None:
    import torch

    _, tokenizer, model, _ = build(small_config(family=family))
    texts = ["dull", "the best comedy this year and every minute of it, moving from start to end", "a warm film"]
    rows = tokenizer(texts)
    assert len({len(ids) for ids in rows["input_ids"]}) == 3
    together = serving.classify(model.eval(), tokenizer, rows, 3)
    for i, text in enumerate(texts):
        alone = serving.classify(model, tokenizer, tokenizer([text]), 1)
        assert torch.allclose(alone[0], together[i], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-4)


# --- the fresh head --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fresh_head_follows_the_seed_and_nothing_else(family: str, small_config: Any) -> None:
    import torch

    first = build(small_config(family=family))
    torch.manual_seed(99)
    again = build(small_config({"training": {"learning_rate": 1.0}}, family=family))
    other = build(small_config({"seed": 1}, family=family))
    assert all(torch.equal(w, again.model.state_dict()[n]) for n, w in first.model.state_dict().items())
    differing = {n for n, w in first.model.state_dict().items() if not torch.equal(w, other.model.state_dict()[n])}
    assert {name.rsplit(".", 1)[1] for name in differing} == {"weight"}
    modules = {module for module in first.fresh if any(name.startswith(module + ".") for name in differing)}
    assert modules == set(first.fresh)
    assert all(name.startswith(tuple(first.fresh)) for name in differing)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("gpt2", ["score"]),
        ("llama", ["score"]),
        ("bert", ["bert.pooler.dense", "classifier"]),
        ("roberta", ["classifier"]),
        ("distilbert", ["classifier", "pre_classifier"]),
    ],
)
def test_modules_that_a_checkpoint_lacks_are_fresh(family: str, expected: list[str], small_config: Any) -> None:
    assert build(small_config(family=family)).fresh == expected


def test_a_bert_checkpoint_with_its_pooler_keeps_it_frozen(small_config: Any, tmp_path: Path) -> None:
    import transformers

    folder = shutil.copytree(small_config(family="bert").model.name, tmp_path / "model")
    transformers.BertModel(transformers.BertConfig.from_pretrained(folder)).save_pretrained(folder)
    model, built = attach(small_config({"model": {"name": str(folder)}}))
    assert built.fresh == ["classifier"]
    assert not any("pooler" in name for name, p in model.named_parameters() if p.requires_grad)


def test_a_head_for_other_classes_is_replaced_by_a_fresh_one(small_config: Any, tmp_path: Path) -> None:
    import transformers

    folder = shutil.copytree(small_config().model.name, tmp_path / "model")
    config = transformers.GPT2Config.from_pretrained(folder, num_labels=5)
    transformers.GPT2ForSequenceClassification(config).save_pretrained(folder)
    built = build(small_config({"model": {"name": str(folder)}}), ("a", "b", "c"))
    assert built.fresh == ["score"] and built.model.score.out_features == 3
    assert built.model.config.id2label == {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize("family", ["albert", "xlnet"])
def test_gradient_checkpointing_of_a_model_that_has_none_is_refused(
    family: str, small_config: Any, tmp_path: Path
) -> None:
    changes = {"model": {"name": str(build_family(family, tmp_path / "model"))}}
    check(small_config(changes))
    said = refusal(small_config(changes | {"training": {"gradient_checkpointing": True}}))
    assert said == f"training.gradient_checkpointing: {tmp_path / 'model'} does not support it; leave it off"


def test_weights_of_another_shape_of_model_are_refused(small_config: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(small_config().model.name, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"n_layer": 3}))
    with pytest.raises(InputError, match=r"\d+ of its \d+ weights are not in its files.*transformer\.h\.2"):
        build(small_config({"model": {"name": str(folder)}}))


@pytest.mark.parametrize(("family", "part"), [("bert", "pooler.dense"), ("distilbert", "pre_classifier")])
def test_fresh_modules_are_trained_saved_and_read_back(
    family: str, part: str, small_config: Any, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    config = small_config(family=family)
    model, built = attach(config)
    at_start = {n: w.clone() for n, w in model.state_dict().items() if part in n}
    train(model, built.tokenizer)
    save(model, built, config, tmp_path / "adapter")
    saved = {n: w for n, w in load_file(tmp_path / "adapter/adapter_model.safetensors").items() if part in n}
    assert len(saved) == 2
    originals = {w for n, w in at_start.items() if "original_module" in n}
    assert all(not any(torch.equal(w, original) for original in originals) for w in saved.values())
    torch.manual_seed(5)
    again, tokenizer = serving.load_adapter(tmp_path / "adapter")
    rows = built.tokenizer(sentences()[0])
    assert torch.equal(serving.classify(again, tokenizer, rows, 4), serving.classify(model, built.tokenizer, rows, 4))


# --- limits ----------------------------------------------------------------------------------------------------------


def widen(config: RunConfig, folder: Path) -> str:
    """A copy of the model whose tokenizer knows no limit."""
    shutil.copytree(config.model.name, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 10**9}))
    return str(folder)


@pytest.mark.parametrize(
    ("family", "method", "limit"),
    [
        ("gpt2", "lora", 64),
        ("llama", "lora", 64),
        ("distilbert", "lora", 64),
        # 66 position embeddings; the pad token, of id 1, and what is before it take two
        ("roberta", "lora", 64),
        ("bert", "lora", 66),
        ("bert", "prompt_tuning", 46),
    ],
)
def test_texts_may_be_as_long_as_the_model_reads_and_no_longer(
    family: str, method: str, limit: int, small_config: Any, tmp_path: Path
) -> None:
    import torch

    name = widen(small_config(family=family), tmp_path / "model")
    changes = {"model": {"name": name}, "adapter": {"method": method}}
    check(small_config({**changes, "data": {"max_length": limit}}))
    message = refusal(small_config({**changes, "data": {"max_length": limit + 1}}))
    virtual = 20 if method == "prompt_tuning" else 0
    assert f"data.max_length: {limit + 1} is more than the {limit + virtual} positions" in message
    assert message.endswith(f", less {virtual} for num_virtual_tokens") == bool(virtual)
    # and so it is: the longest text runs, one more token does not (rotary positions have no end)
    config = small_config({**changes, "data": {"max_length": limit}})
    model, _ = attach(config)
    ids = torch.full((1, limit + 1), 7)
    model(input_ids=ids[:, :limit], attention_mask=torch.ones_like(ids[:, :limit]))
    if family != "llama":
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_the_tokenizers_limit_counts_too(small_config: Any) -> None:
    assert "more than the 64 positions" in refusal(small_config({"data": {"max_length": 65}}, family="bert"))


# --- safetensors only ------------------------------------------------------------------------------------------------


class Malicious:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_the_malicious_pickle_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_a_folder_with_pickled_weights_only_is_refused_and_they_are_not_executed(
    small_config: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(small_config().model.name, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(tmp_path / "executed")))
    config = small_config({"model": {"name": str(folder)}})
    says = refusal(config)
    assert "weights are there as pytorch_model.bin only" in says
    assert f"n, to = '{folder}', 'converted'" in says
    with pytest.raises(InputError, match="safetensors"):
        build(config)
    assert not (tmp_path / "executed").exists()


def test_harmless_pickled_weights_are_not_read_either(small_config: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(small_config().model.name, tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"its weights \(safetensors\) cannot be read"):
        build(small_config({"model": {"name": str(folder)}}))


def test_command_of_the_refusal_converts_and_the_result_is_the_same_model(small_config: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(small_config().model.name, tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    command = refusal(small_config({"model": {"name": str(folder)}})).partition('python -c "')[2].removesuffix('"')
    with contextlib.chdir(tmp_path):
        exec(command, {})
    converted, first = build(small_config({"model": {"name": str(tmp_path / "converted")}})), build(small_config())
    assert all(torch.equal(w, converted.model.state_dict()[n]) for n, w in first.model.state_dict().items())


def test_a_pickle_next_to_safetensors_is_not_executed(small_config: Any, tmp_path: Path) -> None:
    import torch

    folder = shutil.copytree(small_config().model.name, tmp_path / "model")
    for name in ("pytorch_model.bin", "training_args.bin", "tokenizer.pkl", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Malicious(tmp_path / "executed")))
    planted = build(small_config({"model": {"name": str(folder)}}))
    clean = build(small_config())
    assert not (tmp_path / "executed").exists()
    assert all(torch.equal(w, planted.model.state_dict()[n]) for n, w in clean.model.state_dict().items())


# --- configurations that lack a field, or have it elsewhere -----------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "words", "limit"),
    [
        ("xlnet", 200, sys.maxsize),  # -1 means that there is none
        ("t5", 200, sys.maxsize),
        ("gemma3", 200, 128),  # in the part that reads text
        ("ibert", 200, 126),  # embeddings of another class
        ("perceiver", None, 128),  # a bare parameter
        ("canine", None, 128),  # none: it hashes characters
    ],
)
def test_words_and_positions_are_found_in_families_of_every_kind(family: str, words: int | None, limit: int) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(small_configuration(family))
    assert models.vocabulary(model) == words
    assert models.positions(model) == limit


def test_the_pad_token_reaches_the_part_that_reads_text(tmp_path: Path) -> None:
    folder = build_family("gemma3", tmp_path / "gemma3")
    settings = {"name": str(folder), "revision": None, "dtype": "float32", "trust_remote_code": False}
    model, _ = serving.load_classifier(settings, NAMES, 7, local_files_only=True)
    assert model.config.pad_token_id == model.config.get_text_config().pad_token_id == 7
