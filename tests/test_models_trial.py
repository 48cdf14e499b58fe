"""Two texts before training: what cannot be trained and served with equal results is refused in one line."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.data.prepare import check_input
from tasks.models import serving, trial
from tasks.models.foundation import load_tokenizer
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import validated
from tests.support import build
from tests.test_models_foundation import local


def configure(folder: Path | str, dtype: str = "float32", **adapter: Any) -> RunConfig:
    return validated({"model": {"name": str(folder), "dtype": dtype}, "data": {"max_length": 32}, "adapter": adapter})


def attempt(folder: Path | str, dtype: str = "float32", **adapter: Any) -> None:
    trial.try_model(local(folder), configure(folder, dtype, **adapter))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta", "distilbert", "llama"])
def test_sound_models_pass_and_no_random_number_is_drawn(family: str, dtype: str, foundation: Any) -> None:
    import torch

    folder = foundation(family)
    before = torch.get_rng_state()
    attempt(folder, dtype)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "family", ["xlnet", "big_bird", "t5", "mixtral", "phimoe", "gemma3", "squeezebert", "longformer"]
)
def test_unusual_families_pass(family: str, tmp_path: Path) -> None:
    attempt(build(family, tmp_path / family))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["yoso", "nystromformer"])
def test_a_model_whose_answer_depends_on_the_padding_is_refused(family: str, dtype: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"depends on the other texts of the batch \(logits differ by 0\.\d+\).*another model$"
    ):
        attempt(build(family, tmp_path / family), dtype)


@pytest.mark.parametrize("family", ["fnet", "convbert", "funnel", "canine"])
def test_so_is_one_that_depends_on_it_a_little(family: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="depends on the other texts of the batch"):
        attempt(build(family, tmp_path / family))


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("xmod", r"it cannot read a few plain texts \(Input language unknown"),
        ("reformer", "no gradient reaches an adapted layer"),  # it has a backward pass of its own
        ("ibert", "lora finds no layers of a kind that it knows"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_with_the_reason(family: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why):
        attempt(build(family, tmp_path / family))


def test_it_is_refused_before_data_are_tokenized(tmp_path: Path, reviews: Path) -> None:
    folder = build("fnet", tmp_path / "fnet")
    values = {"model": {"name": str(folder)}, "data": {"name": str(reviews), "max_length": 32}}
    with pytest.raises(InputError, match="depends on the other texts of the batch"):
        check_input(validated(values))


def test_an_adapter_without_a_say_is_refused_and_an_idle_layer_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match=r"no gradient reaches an adapted layer.*adapter\.target_modules"):
        attempt(build("big_bird", tmp_path / "big_bird"), target_modules=["pooler"])
    with caplog.at_level(logging.WARNING):
        attempt(tmp_path / "big_bird", r=4)
        attempt(build("luke", tmp_path / "luke"))
    assert caplog.messages[0].startswith("1 adapted layer of")
    assert caplog.messages[0].endswith("does not use them: bert.pooler")
    assert " more" in caplog.messages[1]


def after_long_texts() -> Callable[[Any], Any]:
    """As BigBird's attention, which changes for good at a text of another length."""
    lengths = set()

    def drift(ids: Any) -> float:
        lengths.add(ids.shape[1])
        return float(60 in lengths)

    return drift


def by_chance() -> Callable[[Any], Any]:
    import torch

    return lambda ids: torch.rand(())


@pytest.mark.parametrize("drift", [after_long_texts, by_chance])
def test_a_model_that_answers_otherwise_the_second_time_is_refused(
    drift: Callable[[], Callable[[Any], Any]], foundation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = trial.load_foundation

    def load_with_drift(*arguments: Any) -> Any:
        model, fresh = load(*arguments)
        moved, forward = drift(), model.forward

        def move(**named: Any) -> Any:
            found = forward(**named)
            found.logits = found.logits + moved(named["input_ids"])
            return found

        model.forward = move
        return model, fresh

    monkeypatch.setattr(trial, "load_foundation", load_with_drift)
    with pytest.raises(InputError, match=r"differs when it is asked again after other texts \(logits differ by [01]"):
        values = {"model": {"name": str(foundation("bert"))}, "data": {"max_length": 60}}
        trial.try_model(local(foundation("bert")), validated(values))


@pytest.mark.parametrize("family", ["xlnet", "longformer"])
def test_blocks_whose_input_cannot_be_kept_are_refused_for_adapter_layers(family: str, tmp_path: Path) -> None:
    folder = build(family, tmp_path / family)
    with pytest.raises(InputError, match=r"adapter\.layers: .*cannot be kept for each text; leave it empty"):
        attempt(folder, layers=1)


@pytest.mark.parametrize("family", ["gemma3", "jamba"])
def test_blocks_of_an_unusual_family_are_found_for_adapter_layers(family: str, tmp_path: Path) -> None:
    attempt(build(family, tmp_path / family), layers=1)


def test_a_model_is_tried_once_a_process(foundation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(trial, "check_answers", lambda *given: calls.append("asked"))
    for r in (5, 5, 6):
        attempt(foundation("bert"), r=r)
    assert len(calls) == 2


def test_a_model_that_reads_the_last_place_is_padded_on_the_left_wherever_it_is_read(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = build("xlnet", tmp_path / "xlnet")
    tokenizer = load_tokenizer(local(folder), configure(folder).model)
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert tokenizer.padding_side == AutoTokenizer.from_pretrained(tmp_path / "adapter").padding_side == "left"


@pytest.mark.parametrize("family", ["big_bird", "bigbird_pegasus"])
def test_attention_of_bigbird_is_the_same_whatever_was_asked_before(family: str, tmp_path: Path) -> None:
    import torch

    folder = build(family, tmp_path / family, block_size=4, num_random_blocks=1)
    base = {"name": str(folder), "revision": None, "dtype": "float32", "trust_remote_code": False}
    texts = torch.arange(100).remainder(150).add(5)[None]
    answers = []
    for first in ([3], list(range(60))):
        torch.manual_seed(0)
        model = serving.load_classifier(base, ("one", "two"), 1, local_files_only=True)[0].eval()
        with torch.no_grad():
            model(input_ids=torch.cat([texts[:, first], torch.tensor([[3]])], 1))
            answers.append(model(input_ids=torch.cat([texts, torch.tensor([[3]])], 1)).logits)
    assert torch.equal(*answers)
    model.save_pretrained(tmp_path / "merged")
    assert '"attention_type": "original_full"' in (tmp_path / "merged/config.json").read_text()
