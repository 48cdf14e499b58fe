"""adapter.target_parameters: experts of a mixture carry the adapter where they are named, and nowhere else."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tasks.data.prepare import prepare
from tasks.inference import portable
from tasks.models import adapter as adapters
from tasks.models import serving, trial
from tasks.settings.fields import InputError
from tasks.settings.loading import validated
from tasks.training import resume
from tests.support import build, load_rows, reviews
from tests.test_models_adapter import empty
from tests.test_models_foundation import attach, check, local, save, train
from tests.test_models_trial import configure
from tests.test_training_resume import Job, what_counts

EXPERTS = ("experts.gate_up_proj", "experts.down_proj")

JETMOE = ("mlp.input_linear.weight", "mlp.output_linear.weight")


def carries(model: Any) -> list[str]:
    """Full names of the layers and weights that carry the adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [
        adapters.adapted_name(name, module).removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]


def adapted(family: str, **adapter: Any) -> list[str]:
    return carries(adapters.attach_adapter(empty(family), validated({"adapter": adapter}), (), steps=10))


def rarely(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        *((family, EXPERTS) for family in ("mixtral", "gpt_oss", "deepseek_v3")),
        ("jetmoe", JETMOE),
        *(rarely(family, EXPERTS) for family in ("qwen2_moe", "qwen3_moe", "qwen3_next", "deepseek_v2", "phimoe")),
        *(rarely(family, EXPERTS) for family in ("minimax", "hunyuan_v1_moe", "jamba", "axk1", "axk2", "mistral4")),
    ],
)
def test_experts_are_trained_read_back_and_merged(family: str, names: tuple[str, ...], tmp_path: Path) -> None:
    import torch

    config = configure(build(family, tmp_path / "model"), target_parameters=names)
    check(config)
    trial.try_model(local(config.model.name), config)
    model, built = attach(config)
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    losses = train(model, built.tokenizer)
    experts = {place.rpartition(".")[0] for place in carries(model) if place.endswith(names)}
    assert losses[-1] < losses[0] and experts
    for place in experts:
        assert any(
            place in name and not torch.equal(weight, model.get_parameter(name)) for name, weight in before.items()
        )
    rows = built.tokenizer(["a warm and funny film", "dull", "so " * 20])
    logits = serving.classify(model, built.tokenizer, rows, 4)
    save(model, built, config, tmp_path / "adapter")
    torch.manual_seed(99)
    again, tokenizer = serving.load_adapter(tmp_path / "adapter")
    assert torch.equal(serving.classify(again, tokenizer, rows, 4), logits)
    plain = portable.merge(again, family)
    plain.save_pretrained(tmp_path / "plain")
    settings = serving.read_settings(tmp_path / "adapter")
    for found in (
        serving.classify(plain, tokenizer, rows, 4),
        portable.ask_transformers(tmp_path / "plain", tokenizer, rows, settings),
    ):
        assert torch.allclose(found, logits, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_with_experts_is_read_back_and_goes_on_with_the_same_bits(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    monkeypatch.setattr(resume, "MOST_SHARE", float("inf"))
    config = validated(
        {
            "model": {"name": str(build("mixtral", tmp_path / "model")), "dtype": dtype},
            "data": {"name": str(reviews(tmp_path / "reviews")), "max_length": 32},
            "adapter": {"target_parameters": EXPERTS},
            "training": {"epochs": 2, "batch_size": 8},
        }
    )
    job = Job(config, prepare(config, tmp_path), tmp_path)
    whole = job.fit("whole")
    assert what_counts(job.interrupted(4, 1)) == what_counts(whole)
    assert any("goes on from step" in line for line in job.said)
    again, tokenizer = serving.load_adapter(Path(whole.folder))
    rows = serving.model_rows(load_rows(job.data.folder), tokenizer)
    found = serving.classify(again, tokenizer, rows, config.evaluation.batch_size)
    # training computes the last block for one token alone, and products of fewer rows may round otherwise
    assert torch.allclose(found, load_file(whole.probe)["logits"], atol=1e-6)


def test_two_requests_at_once_get_the_answers_of_one(tmp_path: Path) -> None:
    import torch

    config = configure(build("mixtral", tmp_path / "model"), target_parameters=EXPERTS)
    model, built = attach(config)
    train(model, built.tokenizer)
    save(model, built, config, tmp_path / "adapter")
    model, tokenizer = serving.load_adapter(tmp_path / "adapter")
    rows = tokenizer(["a warm and funny film", "dull"])
    expected = serving.classify(model, tokenizer, rows, 4)

    def ask(_: int) -> Any:
        return serving.classify(model, tokenizer, rows, 4)

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(ask, range(40)))


@pytest.mark.parametrize(
    ("family", "adapter", "message"),
    [
        ("mixtral", {"method": "dora"}, "adapter.target_parameters: dora adapts layers only; .* lora or rslora"),
        ("mixtral", {"method": "adalora"}, "adapter.target_parameters: adalora adapts layers only"),
        ("mixtral", {"method": "ia3"}, "adapter.target_parameters: ia3 adapts layers only"),
        ("mixtral", {"dropout": 0.1}, "adapter.dropout: peft has none for adapter.target_parameters; set it to 0"),
        ("mixtral", {"options": {"use_dora": True}}, "use_dora does not work with adapter.target_parameters"),
        ("mixtral", {"options": {"lora_bias": True}}, "lora_bias does not work with adapter.target_parameters"),
        ("mixtral", {"options": {"init_lora_weights": "pissa"}}, "pissa does not work with adapter.target_parameters"),
        (
            "mixtral",
            {"target_parameters": ["experts.down_prj"]},
            "'experts.down_prj'; did you mean mlp.experts.down_pr",
        ),
        ("mixtral", {"target_parameters": ["zzz"]}, "there are .*mlp.experts.down_proj, mlp.experts.gate_up_proj"),
        (
            "mixtral",
            {"target_parameters": ["q_proj.weight"]},
            "belongs to a layer; .*target_modules, for example q_proj",
        ),
        ("llama", {"target_parameters": ["zzz"]}, "each of this model belongs to a layer; use adapter.target_modules"),
        ("mixtral", {"options": {"target_parameters": ["x"]}}, "has a field of its own, adapter.target_parameters"),
        # which peft would take for the experts' joint weights
        ("hunyuan_v1_moe", {"target_modules": ["gate_proj", "up_proj"], "target_parameters": ()}, "in place of layers"),
        ("qwen3_next", {"options": {"target_modules": ".*down_proj"}, "target_parameters": ()}, "in place of layers"),
    ],
)
def test_what_experts_cannot_have_is_refused(family: str, adapter: dict[str, Any], message: str) -> None:
    values = {"target_parameters": ["experts.down_proj"], **adapter}
    with pytest.raises(InputError, match=message):
        adapted(family, **values)


@pytest.mark.parametrize("family", ["deepseek_v2", "hunyuan_v1_moe", "mixtral", "qwen2_moe", "qwen3_next"])
@pytest.mark.parametrize("adapter", [{}, {"target_modules": "all-linear"}, {"method": "rslora"}])
def test_experts_that_are_not_named_are_left_alone(family: str, adapter: dict[str, Any]) -> None:
    names = adapted(family, **adapter)
    assert names and not [name for name in names if ".experts" in name]
    assert any(name.endswith("o_proj") for name in names)


def test_experts_are_adapted_besides_the_layers_and_in_the_top_blocks_alone() -> None:
    both = adapted("mixtral", target_parameters=EXPERTS)
    layers = adapted("mixtral")
    experts = [f"model.layers.{block}.mlp.{name}" for block in (0, 1) for name in EXPERTS]
    assert sorted(both) == sorted([*layers, *experts])
    for top in ({"layers": 1}, {"options": {"layers_to_transform": [1]}}):
        names = adapted("mixtral", target_parameters=EXPERTS, **top)
        assert sorted(names) == sorted(name for name in both if ".layers.1." in name)
    assert sorted(adapted("mixtral", target_parameters=EXPERTS, options={"target_modules": []})) == sorted(experts)
    named = adapted("mixtral", target_parameters=EXPERTS, target_modules=["q_proj"])
    assert sorted(named) == sorted([*experts, *(name for name in layers if name.endswith("q_proj"))])


def test_a_pattern_of_layers_means_these_alone_where_peft_reads_names_anew() -> None:
    assert adapted("qwen3_moe", options={"target_modules": r".*layers\.0\..*q_proj"}) == [
        "model.layers.0.self_attn.q_proj"
    ]


def test_experts_may_have_a_rank_of_their_own() -> None:
    names = adapted("mixtral", target_parameters=EXPERTS, options={"rank_pattern": {r".*\.down_proj": 2}})
    assert [name for name in names if name.endswith("down_proj")]
    with pytest.raises(InputError, match="no layer with the adapter is called 'down_prj'; did you mean down_proj"):
        adapted("mixtral", target_parameters=EXPERTS, options={"rank_pattern": {"down_prj": 2}})
