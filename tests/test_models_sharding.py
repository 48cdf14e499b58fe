"""Frozen weights that processes share out: the same bits, a part of the bytes each, and what cannot be shared."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.models import sharding
from tasks.models.sharding import is_to_be_sharded
from tasks.settings.fields import InputError
from tests.test_training_group import TWO, job, rarely, still, what_counts  # noqa: F401  (fixtures)

# ruff: noqa: F811  (fixtures of another file)

SHARDED, KINDS = {**TWO, "shard_model": "always"}, ("always", "never")


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("gpt2", {"epochs": 3}),
        rarely("bert", {"gradient_checkpointing": True}),
        rarely("llama", {}),
        rarely("distilbert", {}),
    ],
)
def test_shared_weights_give_the_bits_of_whole_ones_and_need_half_the_memory(
    family: str, more: dict[str, Any], job: Any, still: Any
) -> None:
    """In an epoch's last step the second process has no row: it computes with the first all the same."""
    model = {"name": still(family)}
    shared = job({**SHARDED, **more}, family, model=model).fit("shared")
    whole = job({**TWO, **more}, family, model=model).fit("whole")
    assert what_counts(shared) == what_counts(whole)
    here, total = (int(word) for word in shared.compute["frozen_weights_here"].split() if word.isdecimal())
    assert here < 0.56 * total and "frozen_weights_here" not in whole.compute


def test_training_with_shared_weights_goes_on_with_the_same_bits(job: Any, tmp_path: Path) -> None:
    """With dropout, for which each process draws its own numbers, and draws none for the passes of the other."""
    shared, whole = (job({**TWO, "epochs": 2, "shard_model": kind}, adapter={"dropout": 0.2}) for kind in KINDS)
    with pytest.raises(KeyboardInterrupt):
        shared.fit("cut", stop=lambda: len(shared.steps) >= 3)
    assert (tmp_path / "cut/checkpoint/adapter_model.safetensors").is_file()
    assert what_counts(shared.fit("cut")) == what_counts(whole.fit("whole"))
    assert shared.said and shared.said[-1].startswith("Training goes on from step ")


@pytest.mark.endurance
def test_pieces_of_which_one_process_has_more_make_the_same_bits(job: Any, tmp_path: Path) -> None:
    shared, whole = (job({**TWO, "epochs": 2, "shard_model": kind}) for kind in KINDS)
    for work in KINDS:
        (tmp_path / work).mkdir()
        (tmp_path / work / "fitting.json").write_text(json.dumps({"tokens": 30}))
    assert what_counts(shared.fit("always")) == what_counts(whole.fit("never"))


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"training": {"processes": 1}}, "one process has nobody"),
        ({"adapter": {"layers": 1}}, "adapter.layers"),
        ({"adapter": {"method": "prompt_tuning"}}, "prompt_tuning reads the word embeddings"),
        ({"model": {"quantization": "nf4"}, "family": "llama"}, "quantised weights"),
        ({"family": "t5"}, "no one list of blocks"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_line(sections: dict[str, Any], says: str, job: Any) -> None:
    family = sections.pop("family", "bert")
    training = {**SHARDED, **sections.pop("training", {})}
    with pytest.raises(InputError, match=f"^training.shard_model: .*{says}.*; leave it out, or say never$"):
        job(training, family, **sections)


def test_weights_are_shared_where_they_do_not_fit_on_one_gpu(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job(TWO)
    numbers = sum(
        weight.numel()
        for weight in sharding.empty_classifier(
            sharding.load_config(one.data.model, one.config.model), one.data.model, one.config
        ).parameters()
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for free, expected in ((10 * numbers, False), (4 * numbers, True)):
        memory = type("Properties", (), {"total_memory": free})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, memory=memory: memory)
        assert is_to_be_sharded(one.data.model, one.config) is expected
        never = one.config.training.model_copy(update={"shard_model": "never"})
        assert not is_to_be_sharded(one.data.model, one.config.model_copy(update={"training": never}))
