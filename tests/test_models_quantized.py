"""Foundation models in 4 and 8 bits: what is quantised, that it computes the same everywhere, what is refused."""

import json
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from flows.cli import DONE, main
from tasks.data.prepare import check_input, prepare
from tasks.evaluation.adapter import measure_adapter
from tasks.evaluation.card import quantized_argument
from tasks.evaluation.references import measurement_key
from tasks.evaluation.zero_shot import load_language_model
from tasks.inference.export import export
from tasks.inference.portable import merge
from tasks.models import adapter as adapters
from tasks.models import foundation as models
from tasks.models import quantized, serving, trial
from tasks.settings.config import RunConfig, SweepConfig
from tasks.settings.fields import InputError
from tasks.settings.methods import METHODS, ON_QUANTIZED
from tasks.sources.hub import find
from tasks.studies.trials import check_sweep
from tasks.tracking.sending import serving_packages
from tasks.training.fit import fit_adapter
from tasks.training.watching import Watcher
from tests.conftest import Trained
from tests.support import build
from tests.test_finetune_flow import run_flow
from tests.test_models_foundation import attach, save, train

pytestmark = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="peft-flow[quantized] is not installed")

TEXTS = ["good", "a second text, with a few more words in it", "dull from start to end"]


class Loaded(NamedTuple):
    config: RunConfig
    tokenizer: Any
    model: Any
    fresh: list[str]

    def logits(self, texts: list[str], model: Any = None) -> Any:
        rows = serving.tokenize([texts], self.tokenizer, 32)
        return serving.classify(model or self.model, self.tokenizer, rows, len(texts))


@pytest.fixture
def load(small_config: Any) -> Callable[..., Loaded]:
    """`load("int8", "bert")`: that family's classifier, with its head."""

    def make(kind: str, family: str = "gpt2", **changes: Any) -> Loaded:
        name = changes.pop("name", None) or small_config(family=family).model.name
        config = small_config({"model": {"name": str(name), "quantization": kind}, **changes})
        source = find("model", config.model.name, "main", offline=True)
        tokenizer = models.load_tokenizer(source, config.model)
        return Loaded(config, tokenizer, *models.load_foundation(source, config, ("bad", "good"), tokenizer))

    return make


def attached(loaded: Loaded) -> Any:
    return adapters.attach_adapter(loaded.model, loaded.config, loaded.fresh, steps=10)


def is_quantized(layer: Any) -> bool:
    return serving.scales(layer.weight) is not None


# --- what is quantised -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "roberta", "distilbert", "t5", "bart"])
def test_head_is_never_quantised_and_the_body_is(family: str, load: Callable[..., Loaded]) -> None:
    check_head(load("nf4", family), load("none", family))


@pytest.mark.parametrize("family", ["deberta-v2", "modernbert", "qwen3_moe"])
def test_head_of_other_families_is_not_quantised(family: str, load: Callable[..., Loaded], tmp_path: Path) -> None:
    folder = build(family, tmp_path / family)
    check_head(load("nf4", name=folder), load("none", name=folder))


def check_head(loaded: Loaded, plain: Loaded) -> None:
    """Head and fresh modules are float32 and train; all linear layers besides are quantised, and are counted whole; the
    word embeddings are bfloat16 and give float32."""
    import torch
    from transformers.pytorch_utils import Conv1D

    body, kept = loaded.model.base_model_prefix, tuple(loaded.model._keep_in_fp32_modules or ())
    heads, layers = 0, 0
    for name, layer in loaded.model.named_modules():
        if isinstance(layer, torch.nn.Linear | Conv1D):
            is_head = name.split(".")[0] != body or name.startswith(tuple(loaded.fresh))
            heads, layers = heads + is_head, layers + is_quantized(layer)
            assert is_quantized(layer) is not (is_head or name.endswith(kept)), name
    assert heads and layers
    assert loaded.model.num_parameters() == plain.model.num_parameters()
    words = loaded.model.get_input_embeddings()
    formats = {weight.dtype for weight in loaded.model.parameters() if weight is not words.weight}
    assert formats == {torch.float32, torch.uint8} and words.weight.dtype == torch.bfloat16
    assert words(torch.tensor([[1]])).dtype == torch.float32
    assert quantized.number_format(loaded.model) == torch.float32
    attached(loaded).train()(**loaded.tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.sum().backward()


def test_pooler_that_the_files_lack_is_not_quantised(load: Callable[..., Loaded]) -> None:
    loaded = load("nf4", "bert")
    assert "bert.pooler.dense" in loaded.fresh and not is_quantized(loaded.model.bert.pooler.dense)


def test_adapter_goes_where_it_goes_on_floats(load: Callable[..., Loaded]) -> None:
    for family in ("gpt2", "bert"):
        counts = [attached(load(kind, family)).get_nb_trainable_parameters() for kind in ("none", "nf4", "int8")]
        assert len(set(counts)) == 1, family


def test_language_head_asked_without_training_is_quantised_alike(load: Callable[..., Loaded]) -> None:
    loaded = load("nf4", "gpt2")
    source = find("model", loaded.config.model.name, "main", offline=True)
    model, _, _ = load_language_model(source, loaded.config)
    asked, trained = (dict(one.named_modules()) for one in (model, loaded.model))
    name = "transformer.h.1.mlp.c_fc"
    assert (asked[name].weight == trained[name].weight).all() and not is_quantized(asked["lm_head"])
    assert asked["lm_head"].weight is asked["transformer.wte"].weight
    assert str(asked["lm_head"].weight.dtype) == "torch.float32"  # it multiplies


# --- it computes the same in training, in evaluation, alone and in a batch -------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_training_and_evaluation_compute_the_same(kind: str, family: str, load: Callable[..., Loaded]) -> None:
    """bitsandbytes by itself repacks 4-bit weights on some CPUs, and rounds what 8-bit layers are given."""
    import torch

    loaded = load(kind, family, adapter={"dropout": 0.0})
    model = attached(loaded)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    for config in {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}.values():
        config._attn_implementation = "eager"
    batch = loaded.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        evaluated = model.eval()(**batch).logits
        before = serving.weights_sha256(model.base_model.model, loaded.fresh)
    trained = model.train()(**batch).logits
    assert torch.allclose(trained, evaluated, atol=1e-6)
    trained.sum().backward()
    first = next(weight for name, weight in model.named_parameters() if "lora_B" in name)
    assert first.grad is not None and first.grad.any(), "gradients still pass through all layers"
    assert serving.weights_sha256(model.base_model.model, loaded.fresh) == before


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_gradients_are_those_of_the_floats_that_the_weights_stand_for(
    kind: str, family: str, load: Callable[..., Loaded]
) -> None:
    import torch

    found = []
    for is_float in (False, True):
        loaded = load(kind, family)
        if is_float:
            serving.dequantize(loaded.model)
        model = attached(loaded).eval()
        with trial.stirred(model):
            logits = model(**loaded.tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
            trained = [weight for weight in model.parameters() if weight.requires_grad]
            slopes = torch.autograd.grad((logits[:, 0] - 2 * logits[:, 1]).sum(), trained)
        found.append(torch.cat([logits.flatten(), *(slope.flatten() for slope in slopes)]))
    assert len(found[0]) > 1000 and torch.allclose(*found, rtol=1e-3, atol=1e-5)


def test_in_8_bits_what_a_text_gets_does_not_depend_on_the_batch(
    load: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLM.int8 picks columns by the largest number that the batch has there."""
    import torch

    def far_out(loaded: Loaded) -> float:
        with torch.no_grad():
            loaded.model.transformer.h[0].ln_1.weight *= 3
        loaded.model.eval()
        alone = torch.cat([loaded.logits([text]) for text in TEXTS])
        return float((loaded.logits(TEXTS) - alone).abs().max())

    assert far_out(load("int8")) < 1e-5
    monkeypatch.setattr(serving, "compute_alike", lambda model, dtype: None)
    assert far_out(load("int8")) > 1e-4, "else this would show nothing"


def test_base_is_recognised_where_another_device_rounds_a_few_weights_otherwise(load: Callable[..., Loaded]) -> None:
    import torch

    for kind in ("nf4", "int8"):
        loaded = load(kind)
        known = serving.weights_sha256(loaded.model, ())
        layer = loaded.model.transformer.h[0].mlp.c_fc
        with torch.no_grad():
            layer.weight.data.view(-1)[:3] ^= 1
        assert serving.weights_sha256(loaded.model, ()) == known
        with torch.no_grad():
            serving.scales(layer.weight)[0] *= 2
        assert serving.weights_sha256(loaded.model, ()) != known


@pytest.mark.parametrize("units", [True, False])
def test_products_are_bfloat16_where_the_machine_has_units_and_stay_so(
    units: bool, foundation: Any, small_config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was chosen is in the adapter's settings: another machine, with other units, computes like this one."""
    import torch

    monkeypatch.setattr("tasks.models.quantized.bfloat16_pays", lambda device, width: units)
    folder = shutil.copytree(foundation("gpt2"), tmp_path / "model")
    config = small_config({"model": {"name": str(folder), "quantization": "nf4"}})
    settings = models.base_model_settings(find("model", str(folder), "main", offline=True), config.model)
    monkeypatch.setattr("tasks.models.quantized.bfloat16_pays", lambda device, width: not units)
    model, _ = serving.load_classifier(settings, ("bad", "good"), 0, local_files_only=True)
    assert quantized.rounding(model) == settings["quantization"]["compute"] == ("bfloat16" if units else "float32")
    logits = model.eval()(input_ids=torch.tensor([[4, 5, 6]])).logits
    quantized.compute_in_float32(model)
    exact = model(input_ids=torch.tensor([[4, 5, 6]])).logits
    assert quantized.rounding(model) == "float32" and torch.equal(logits, exact) is not units
    assert torch.allclose(logits, exact, atol=0.02)


# --- a run, its adapter and its export -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(foundation: Any, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`fitted("nf4")`: GPT-2, whose layers are of another kind before, trained for a few steps."""
    from tasks.settings.loading import validated

    made: dict[str, Trained] = {}

    def get(kind: str) -> Trained:
        if kind not in made:
            work = tmp_path_factory.mktemp(kind)
            config = validated(
                {
                    "model": {"name": str(foundation("gpt2")), "quantization": kind},
                    "data": {"name": str(reviews), "max_length": 32},
                    "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.02},
                    "evaluation": {"batch_size": 8},
                }
            )
            data = prepare(config, work)
            made[kind] = Trained(config, data, fit_adapter(config, data, work / "run", Watcher(lambda progress: None)))
        return made[kind]

    return get


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapter_is_read_back_exactly_in_a_fresh_process(kind: str, fitted: Callable[[str], Trained]) -> None:
    from safetensors.torch import load_file

    from tasks.base.work import RunFolder

    trained = fitted(kind)
    measure_adapter(*trained)
    reloaded = load_file(RunFolder.around(trained.adapter.folder).reloaded)["probe"]
    # the last block of the model in training works for one token of each row: a product of another shape
    assert float((reloaded - load_file(trained.adapter.probe)["logits"]).abs().max()) < 1e-6
    assert trained.adapter.compute["quantised_products"] == "float32"


def test_adapter_of_the_word_embeddings_is_read_back_and_merged(small_config: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    config = small_config({"model": {"quantization": "nf4"}, "adapter": {"target_modules": ["wte", "c_attn"]}}, "gpt2")
    data = prepare(config, tmp_path)
    trained = Trained(config, data, fit_adapter(config, data, tmp_path / "run", Watcher(lambda progress: None)))
    measure_adapter(*trained)  # refuses what is not read back exactly
    exported = export(trained.adapter.folder, tmp_path / "out", merged=True, onnx=False)
    assert exported.largest_difference <= 1e-4
    assert {weight.dtype for weight in load_file(tmp_path / "out/model.safetensors").values()} == {torch.float32}


def test_adapter_folder_says_how_its_base_is_read(fitted: Callable[[str], Trained]) -> None:
    folder = Path(fitted("nf4").adapter.folder)
    settings = serving.read_settings(folder)["base_model"]
    assert settings["quantization"] == {"kind": "nf4", "compute": "float32", "skip": ["score"], "stored": False}
    assert serving_packages(folder)[-1] == "bitsandbytes"


def test_adapter_of_floats_says_and_needs_nothing_of_it(trained: Trained) -> None:
    settings = serving.read_settings(Path(trained.adapter.folder))["base_model"]
    assert "quantization" not in settings and "quantised_products" not in trained.adapter.compute
    assert "bitsandbytes" not in serving_packages(Path(trained.adapter.folder))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_export_writes_the_weights_out_and_says_how_far_that_is_off(
    kind: str, fitted: Callable[[str], Trained], tmp_path: Path
) -> None:
    trained, folder = fitted(kind), tmp_path / "out"
    has_onnx = kind == "nf4" and find_spec("onnxscript") is not None
    exported = export(trained.adapter.folder, folder, merged=True, onnx=has_onnx)
    assert exported.largest_difference <= 1e-4 and f"weights in {kind}" in exported.quantised
    assert exported.quantised in (folder / "README.md").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and (folder / "model.onnx").exists() is has_onnx


def test_a_method_that_peft_does_not_merge_into_4_bits_is_merged_into_floats(small_config: Any, tmp_path: Path) -> None:
    import torch

    config = small_config({"model": {"quantization": "nf4"}, "adapter": {"method": "ia3"}}, family="bert")
    model, built = attach(config)
    train(model, built.tokenizer)
    save(model, built, config, tmp_path / "adapter")
    rows = built.tokenizer(["a warm and funny film", "dull"])
    logits = serving.classify(model, built.tokenizer, rows, 4)
    plain, _ = serving.load_adapter(tmp_path / "adapter", dequantized=True)
    assert torch.allclose(serving.classify(merge(plain, "a"), built.tokenizer, rows, 4), logits, atol=1e-4)


def test_export_that_rounding_does_not_explain_is_refused(
    fitted: Callable[[str], Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: Any) -> None:
        real(model)
        model.transformer.h[0].mlp.c_fc.weight.data *= 2

    real = serving.dequantize
    monkeypatch.setattr(serving, "dequantize", wrong)
    with pytest.raises(InputError, match="without quantisation this adapter says something else"):
        export(fitted("nf4").adapter.folder, tmp_path / "out", merged=True, onnx=False)
    assert not (tmp_path / "out").exists()


def test_card_reads_the_base_as_it_was_trained_on(fitted: Callable[[str], Trained]) -> None:
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    trained = fitted("nf4")
    quantization = serving.read_settings(Path(trained.adapter.folder))["base_model"]["quantization"]
    argument = quantized_argument(quantization)
    name = trained.config.model.name
    scope = {"AutoModelForSequenceClassification": AutoModelForSequenceClassification}
    call = f"AutoModelForSequenceClassification.from_pretrained({name!r}, dtype='float32', {argument})"
    base = eval(call, scope | {"BitsAndBytesConfig": BitsAndBytesConfig})
    assert is_quantized(base.transformer.h[0].mlp.c_fc) and not is_quantized(base.score)
    assert quantized_argument(None) == ""


def test_import_of_bitsandbytes_gets_no_code_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """On some CPUs it asks the package kernels for it, where that is installed."""
    assert find_spec("kernels") is None, "in our own processes"
    there = ModuleType("kernels")
    monkeypatch.setitem(sys.modules, "kernels", there)
    with serving.without_code_of_the_hub(), pytest.raises(ImportError):
        import_module("kernels")
    assert import_module("kernels") is there


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_training_under_bfloat16_autocast_is_read_back_exactly(
    kind: str, small_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from datasets import load_from_disk
    from safetensors.torch import load_file

    monkeypatch.setattr("tasks.models.quantized.bfloat16_pays", lambda device, width: True)
    monkeypatch.setattr("tasks.training.fit.use_bfloat16", lambda model: True)
    models.quantization_settings.cache_clear()
    config = small_config({"model": {"quantization": kind}, "training": {"max_steps": 2}}, "bert")
    data = prepare(config, tmp_path)
    trained = fit_adapter(config, data, tmp_path / "run", Watcher(lambda progress: None))
    models.quantization_settings.cache_clear()
    assert trained.compute["training_precision"] == "bfloat16 autocast"
    assert trained.compute["quantised_products"] == "bfloat16"
    model, tokenizer = serving.load_adapter(Path(trained.folder))
    rows = serving.model_rows(load_from_disk(data.folder)["validation"], tokenizer)
    logits, probe = serving.classify(model, tokenizer, rows, 8), load_file(trained.probe)["logits"]
    assert torch.equal(logits, probe)


def test_lower_blocks_in_4_bits_are_computed_once(small_config: Any, workplace: Path) -> None:
    config = small_config({"model": {"quantization": "nf4"}, "adapter": {"layers": 1}, "training": {"max_steps": 2}})
    data = prepare(config, workplace / "work")
    trained = fit_adapter(config, data, workplace / "run", Watcher(lambda progress: None))
    assert trained.trunk_seconds > 0 and measure_adapter(config, data, trained)
    (file,) = (workplace / "mlruns/trunks").glob("*.states")
    plain = config.model_copy(update={"model": config.model.model_copy(update={"quantization": "none"})})
    fit_adapter(plain, data, workplace / "plain", Watcher(lambda progress: None))
    assert len(list(file.parent.glob("*.states"))) == 2, "of other weights they are others"


def test_results_on_other_weights_are_other_results(fitted: Callable[[str], Trained]) -> None:
    keys = set()
    for kind in ("none", "nf4", "int8"):
        trained = fitted("nf4")
        config = trained.config.model_copy(
            update={"model": trained.config.model.model_copy(update={"quantization": kind})}
        )
        keys.add(measurement_key("baseline", config, trained.data))
    assert len(keys) == 3


def test_memory_is_told_by_what_is_quantised_and_what_is_not(load: Callable[..., Loaded]) -> None:
    loaded = load("nf4")
    model = attached(loaded)
    body = 2 * (3 * 32 * 32 + 32 * 32 + 2 * 4 * 32 * 32)
    packed = body / 2 + body / 64 * 4
    said = quantized.weights_sentence(model, 256)
    assert f"{packed / 1000:.1f} kB quantised" in said
    assert f"in float32 they would take {4 * model.num_parameters() / 1000:.1f} kB" in said


def test_whole_run_in_4_bits_and_predictions_with_its_adapter(
    small_config: Any, reviews: Path, workplace: Path, prefect_harness: None, no_pictures: None
) -> None:
    import pandas as pd

    config = small_config({"model": {"quantization": "nf4"}, "training": {"epochs": 8}}, "bert")
    result = run_flow(config)
    assert result.status == "finished" and {"probe", "zero_shot"} <= set(result.references)
    adapter = Path(result.adapter_path)
    assert "bnb_4bit_quant_type='nf4'" in (adapter / "README.md").read_text()
    frame = pd.read_csv(reviews / "test.csv")
    assert main(["predict", str(adapter), str(reviews / "test.csv"), "out.csv"]) == DONE
    out = pd.read_csv("out.csv")
    expected = serving.predict(*serving.load_adapter(adapter), serving.read_settings(adapter), frame)
    assert out["label"].tolist() == expected["label"].tolist()
    assert out["probability"].to_numpy() == pytest.approx(expected["probability"].to_numpy(), abs=1e-5)
    assert (out["label"] == frame["label"]).mean() == pytest.approx(result.tuned["accuracy"])


# --- a base that is quantised in its files ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(foundation: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`stored("nf4")`: a Llama, with its language head, as transformers saves it when it is quantised."""

    def make(kind: str) -> Path:
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        folder, plain = tmp_path_factory.mktemp(kind), foundation("llama")
        how = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": kind}
        settings = BitsAndBytesConfig(**how, bnb_4bit_use_double_quant=kind == "nf4")
        AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, quantization_config=settings).save_pretrained(
            folder
        )
        for file in plain.glob("tokenizer*"):
            shutil.copy(file, folder)
        return folder

    return make


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_base_that_is_quantised_in_its_files_is_taken_as_it_is(
    kind: str, stored: Callable[[str], Path], small_config: Any, tmp_path: Path
) -> None:
    import torch
    from datasets import load_from_disk
    from safetensors.torch import load_file

    config = small_config({"model": {"name": str(stored(kind))}, "training": {"max_steps": 2}})
    data = prepare(config, tmp_path)
    trained = fit_adapter(config, data, tmp_path / "run", Watcher(lambda progress: None))
    model, tokenizer = serving.load_adapter(Path(trained.folder), local_files_only=True)
    assert not is_quantized(model.base_model.model.score.modules_to_save["default"])
    assert is_quantized(model.base_model.model.model.layers[0].mlp.up_proj)
    rows = serving.model_rows(load_from_disk(data.folder)["validation"], tokenizer)
    logits = serving.classify(model, tokenizer, rows, 8)
    assert torch.allclose(logits, load_file(trained.probe)["logits"], atol=1e-6)
    plain, _ = serving.load_adapter(Path(trained.folder), local_files_only=True, dequantized=True)
    assert torch.allclose(serving.classify(plain, tokenizer, rows, 8), logits, atol=1e-4)


def refusal(config: RunConfig) -> str:
    with pytest.raises(InputError) as error:
        check_input(config)
    (line,) = str(error.value).splitlines()
    return line


def test_another_quantisation_than_that_of_the_files_is_refused(
    stored: Callable[[str], Path], small_config: Any
) -> None:
    folder = str(stored("nf4"))
    says = refusal(small_config({"model": {"name": folder, "quantization": "int8"}}))
    assert "model.quantization" in says and "quantised already, in nf4" in says
    assert "model.dtype" in refusal(small_config({"model": {"name": folder, "dtype": "bfloat16"}}))


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "fp8"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"quant_method": "mxfp4"},
        {"quant_method": "of tomorrow"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"},
        {},
    ],
)
def test_base_that_is_quantised_by_another_method_is_refused_by_its_name(
    settings: dict[str, Any], foundation: Any, small_config: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(foundation("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    says = refusal(small_config({"model": {"name": str(folder)}}))
    assert "model.name" in says and f"quantised with {settings.get('quant_method', 'an unnamed method')}" in says


# --- what is refused -------------------------------------------------------------------------------------------------


def test_without_the_package_one_line_says_what_to_install(
    small_config: Any,
    stored: Callable[[str], Path],
    fitted: Callable[[str], Trained],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ready, folder = fitted("nf4"), stored("nf4")
    for module in (serving, quantized):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    says = refusal(small_config({"model": {"quantization": "nf4"}}))
    assert "model.quantization" in says and "pip install 'peft-flow[quantized]'" in says
    says = refusal(small_config({"model": {"name": str(folder)}}))
    assert "model.name" in says and "pip install 'peft-flow[quantized]'" in says
    swept = SweepConfig(space={"model": {"quantization": ["none", "nf4"]}})
    with pytest.raises(InputError, match=r"sweep: model\.quantization needs one more package"):
        check_sweep(swept)
    with pytest.raises(serving.NeedsPackage, match="pip install 'bitsandbytes"):
        serving.load_adapter(Path(ready.adapter.folder), local_files_only=True)


@pytest.mark.parametrize("method", sorted(set(METHODS) - ON_QUANTIZED))
def test_method_that_computes_otherwise_on_quantised_weights_is_refused(method: str, small_config: Any) -> None:
    config = small_config({"model": {"quantization": "nf4"}, "adapter": {"method": method}}, "bert")
    source = models.find_model(config)
    with pytest.raises(InputError, match=f"adapter.method: {method} does not work on quantised weights; choose of"):
        adapters.check_adapter(models.check_model(source, config), source, config)


@pytest.mark.endurance
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("method", sorted(ON_QUANTIZED))
def test_method_says_the_same_on_quantised_weights_as_on_the_floats_that_they_stand_for(
    method: str, family: str, kind: str, load: Callable[..., Loaded], tmp_path: Path
) -> None:
    import torch

    if (method, family) == ("prompt_tuning", "llama"):
        pytest.skip("it reads the wrong token of a decoder, quantised or not")
    loaded = load(kind, family, adapter={"method": method})
    trial.try_model(find("model", loaded.config.model.name, "main", offline=True), loaded.config)
    models_of = []
    for is_float in (False, True):
        again = load(kind, family, adapter={"method": method})
        if is_float:
            serving.dequantize(again.model)
        model = attached(again)
        with trial.stirred(model):
            models_of.append(again.logits(TEXTS, model.eval()))
    assert torch.allclose(*models_of, atol=1e-4)


@pytest.mark.parametrize("start", ["pissa", "olora", "mica"])
def test_start_from_the_weights_is_refused_where_these_are_quantised(start: str, small_config: Any) -> None:
    changes = {"adapter": {"options": {"init_lora_weights": start}}}
    says = refusal(small_config({"model": {"quantization": "nf4"}, **changes}, "llama"))
    assert f"init_lora_weights: {start} does not work with lora on quantised weights; choose of true" in says


def test_dtype_of_a_quantised_model_stays_float32(small_config: Any) -> None:
    with pytest.raises(InputError, match="with quantization nf4 all else is float32; leave dtype bfloat16 out"):
        small_config({"model": {"quantization": "nf4", "dtype": "bfloat16"}})


def test_none_on_the_command_line_is_no_quantisation(small_config: Any) -> None:
    assert small_config({"model": {"quantization": None}}).model.quantization == "none"


def test_single_words_are_not_trained_on_quantised_weights(small_config: Any) -> None:
    options = {"trainable_token_indices": [5]}
    config = small_config({"model": {"quantization": "nf4"}, "adapter": {"options": options}})
    with pytest.raises(InputError, match="trainable_token_indices does not work on quantised weights"):
        check_input(config)
