"""The spaces in configs/sweeps: each can be read, and no method in them is refused by the model that it is for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tasks.models import trial
from tasks.settings.config import RunConfig
from tasks.settings.loading import load_config, read_yaml
from tasks.settings.methods import METHODS
from tasks.settings.space import grid, read_space, shown, values_of, with_values
from tests.conftest import write_tokenizer
from tests.test_models_foundation import local

ROOT = Path(__file__).parent.parent
SPACES = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
METHODS_SPACE = ROOT / "configs/sweeps/peft-methods.yaml"


def combinations(config: RunConfig) -> list[dict[str, Any]]:
    return list(grid(read_space(read_yaml(METHODS_SPACE), config), values_of(config)))


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_space_can_be_read_and_says_how_it_is_started(path: Path) -> None:
    for config in (RunConfig(), load_config(ROOT / "configs/minilm-rotten-tomatoes.yaml")):
        space = read_space(read_yaml(path), config)
        assert len(space) >= 2
        for values in [{one.field: one.steps()[-1]} for one in space if one.choices or one.step]:
            with_values(config, values)
    assert f"--sweep configs/sweeps/{path.name}" in path.read_text()


def test_there_are_spaces() -> None:
    assert {"peft-methods", "lora", "quick"} == {path.stem for path in SPACES}


def test_shoot_out_has_every_method_with_three_seeds_and_the_usual_configuration_among_them() -> None:
    found = combinations(RunConfig())
    sizes: dict[str, set[str]] = {}
    for values in found:
        sizes.setdefault(values["adapter.method"], set()).add(size_of(values))
    assert set(sizes) == set(METHODS)
    assert len(found) == 3 * sum(map(len, sizes.values())) == 174
    assert {"adapter.method": "lora", "adapter.r": 8, "seed": 0} in found
    several = {method for method, ones in sizes.items() if len(ones) > 1}
    with_rank = {name for name, method in METHODS.items() if method.r}
    assert several == with_rank - {"tinylora", "unilora"} | {"fourierft", "waveft"}


def size_of(values: Mapping[str, Any]) -> str:
    return str([shown(values[field]) for field in ("adapter.r", "adapter.options") if field in values])


def test_each_method_keeps_its_own_learning_rate() -> None:
    rates = {
        values["adapter.method"]: with_values(RunConfig(model={"name": "x"}), values).training.learning_rate
        for values in combinations(RunConfig())
    }
    assert rates == {name: method.rate for name, method in METHODS.items()}


@pytest.fixture(scope="module")
def wide_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One random block as wide as MiniLM's: what must divide the width does so in both or in neither."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("wide")
    write_tokenizer(folder, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=200,
        max_position_embeddings=66,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=1,
        num_attention_heads=12,
        pad_token_id=1,
        initializer_range=0.1,
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


BASE = RunConfig()
ALL = [values for values in combinations(BASE) if values["seed"] == 0]


@pytest.mark.parametrize(
    "values",
    [
        # all of them take a minute; each kind of size is in the usual run
        pytest.param(values, marks=[] if values["adapter.method"] in ("vblora", "waveft") else pytest.mark.endurance)
        for values in ALL
    ],
    ids=lambda values: f"{values['adapter.method']} {size_of(values)}",
)
def test_no_method_of_the_shoot_out_is_refused(values: dict[str, Any], wide_bert: Path) -> None:
    base = RunConfig.model_validate({"model": {"name": str(wide_bert)}, "data": {"max_length": 32}})
    trial.try_model(local(wide_bert), with_values(base, values))
