"""A batch cut into pieces is the same step; one that fits goes as if there were no pieces."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer

from tasks.data.prepare import prepare
from tasks.models import adapter as adapters
from tasks.models import foundation as models
from tasks.models.losses import mean_loss
from tasks.training import pieces
from tasks.training.fit import build_trainer, fit_adapter
from tasks.training.pieces import Pieces
from tasks.training.target import target_of
from tasks.training.trainer import ResumableTrainer
from tasks.training.trunk import STATES, Trunk
from tasks.training.watching import Watcher
from tests.test_training_fit import weights

silent = Watcher(lambda progress: None)


def batch_of(*lengths: int, left: bool = False, **more: Any) -> dict[str, Any]:
    """Rows whose tokens are their own number, from 1; the label of a row is it, too."""
    longest, numbers = max(lengths), torch.arange(1, len(lengths) + 1)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    mask = mask.flip(1) if left else mask
    return {"input_ids": mask * numbers[:, None], "attention_mask": mask, "labels": numbers, **more}


# --- how a batch is cut -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "lengths", "sizes"),
    [
        ((40,), [10, 10, 9, 8], [(4, 10)]),
        ((39,), [10, 10, 9, 8], [(2, 10), (2, 9)]),
        ((30,), [10] * 7, [(2, 10), (2, 10), (3, 10)]),
        ((100, 400), [10] * 5, [(2, 10), (3, 10)]),
        ((100, 400), [5] * 16, [(16, 5)]),
        ((10,), [50, 4, 3], [(1, 50), (1, 4), (1, 3)]),
        ((100, 10), [50, 4, 3], [(1, 50), (1, 4), (1, 3)]),
    ],
)
@pytest.mark.parametrize("left", [False, True])
def test_no_piece_is_larger_than_allowed_unless_it_is_one_row(
    limits: tuple[int, ...], lengths: list[int], sizes: list[tuple[int, int]], left: bool
) -> None:
    batch = batch_of(*lengths, left=left)
    cut = list(Pieces(*limits).of(batch))
    assert [tuple(piece["input_ids"].shape) for piece in cut] == sizes
    assert torch.equal(torch.cat([piece["labels"] for piece in cut]), batch["labels"])
    for piece in cut:
        assert torch.equal(piece["input_ids"], piece["attention_mask"] * piece["labels"][:, None])
    assert sum(int(piece["attention_mask"].sum()) for piece in cut) == sum(lengths)


def test_batch_that_fits_is_not_touched() -> None:
    batch = batch_of(10, 8)
    (piece,) = Pieces(20).of(batch)
    assert piece is batch


def test_states_are_cut_like_tokens_and_labels_are_not() -> None:
    """Also where a text has as many labels as tokens."""
    labels = torch.arange(12.0).view(3, 4)
    batch = batch_of(4, 2, 1) | {"labels": labels, STATES: torch.arange(36).view(3, 4, 3)}
    cut = list(Pieces(4).of(batch))
    assert [tuple(piece[STATES].shape) for piece in cut] == [(1, 4, 3), (1, 2, 3), (1, 1, 3)]
    assert torch.equal(torch.cat([piece["labels"] for piece in cut]), labels)
    assert torch.equal(cut[1][STATES][0], batch[STATES][1, :2])


@pytest.mark.parametrize(("rows", "smaller"), [(8, 40), (7, 30), (2, 10), (1, 0)])
def test_half_of_a_piece_fits_into_what_comes_next(rows: int, smaller: int) -> None:
    cut = Pieces(1000)
    assert cut.smaller() == 0
    list(cut.of(batch_of(*[10] * rows)))
    assert cut.smaller() == smaller


@pytest.mark.parametrize("length", [16, 64, 128])
def test_default_batch_of_short_texts_is_whole(length: int) -> None:
    assert len(list(pieces.pieces_here(None).of(batch_of(*[length] * 32)))) == 1


@pytest.mark.parametrize(("rows", "length"), [(32, 512), (8, 1024), (64, 256)])
def test_memory_of_a_piece_does_not_grow_with_the_batch(rows: int, length: int) -> None:
    for piece in pieces.pieces_here(None).of(batch_of(*[length] * rows)):
        assert piece["attention_mask"].numel() <= pieces.CPU_TOKENS
        assert piece["attention_mask"].numel() * length <= pieces.CPU_PAIRS


# --- the same step ----------------------------------------------------------------------------------------------------

LOSSES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "one label": ("cross_entropy", {}, [0, 1, 1, 0, 1]),
    "class weights": ("cross_entropy", {"weights": [1.0, 5.0]}, [0, 1, 1, 0, 1]),
    "focal": ("cross_entropy", {"gamma": 2.0}, [0, 1, 1, 0, 1]),
    "several labels": ("binary_cross_entropy", {}, [[0, 1], [1, 1], [0, 0], [1, 0], [0, 1]]),
    "several labels, weights": (
        "binary_cross_entropy",
        {"weights": [1.0, 5.0], "gamma": 1.0},
        [[0, 1], [1, 1], [0, 0], [1, 0], [0, 1]],
    ),
    "a number": ("squared_error", {"mean": 1.0, "std": 2.0}, [0.5, 3.0, -1.0, 7.0, 2.5]),
}


@pytest.fixture
def trainer(small_config: Any, tmp_path: Path) -> Callable[..., Any]:
    """`trainer("bert", "focal")`: ready to train, without dropout, and a batch of five rows of unlike lengths."""

    def make(family: str, loss: str = "one label", **adapter: Any) -> tuple[Any, Any]:
        from datasets import load_from_disk

        config = small_config({"adapter": adapter}, family)
        data = prepare(config, tmp_path)
        splits = load_from_disk(data.folder)
        target = target_of(config, data, np.asarray(splits["train"]["labels"]))
        name, settings, labels = LOSSES[loss]
        tokenizer = models.load_tokenizer(data.model, config.model)
        model, fresh = models.load_foundation(data.model, config, data.label_names, tokenizer)
        model = adapters.attach_adapter(model, config, fresh, steps=100)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trunk = Trunk(model, data, config, splits) if config.adapter.layers else None
        if trunk:
            trunk.compute(model, tokenizer, splits, 8, lambda line: None)
        made = build_trainer(
            config, Pieces(10**9), model, tokenizer, splits, trunk, tmp_path / "run", silent,
            target._replace(loss=mean_loss(name, settings)),
        )  # fmt: skip
        made.trunk = trunk
        rows = [made.train_dataset[place] for place in np.argsort(splits["train"]["length"])[[-1, -2, 20, 1, 0]]]
        return made, made.data_collator(rows) | {"labels": torch.tensor(labels)}

    return make


def step(trainer: Any, batch: Any, most_tokens: int) -> tuple[float, dict[str, Any]]:
    """Loss and gradients."""
    trainer.pieces = Pieces(most_tokens)
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, dict(batch), batch["labels"].ne(-100).sum())
    named = trainer.model.named_parameters()
    return float(loss), {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


def check_same_step(trainer: Any, batch: Any) -> None:
    whole, half, rows = (step(trainer, batch, most) for most in (10**9, 3 * batch["input_ids"].shape[1], 1))
    assert len(whole[1]) >= 3 and any(gradient.abs().max() > 1e-3 for gradient in whole[1].values())
    for loss, gradients in (half, rows):
        assert loss == pytest.approx(whole[0], rel=1e-6) and gradients.keys() == whole[1].keys()
        for name, gradient in whole[1].items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_gradients_of_the_pieces_add_up_to_those_of_the_batch(family: str, loss: str, trainer: Any) -> None:
    made, batch = trainer(family, loss)
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 2, "else there is no padding to cut"
    check_same_step(made, batch)


@pytest.mark.parametrize("method", ["adalora", "prompt_tuning"])
def test_so_do_those_of_a_penalty_and_of_a_prompt(method: str, trainer: Any) -> None:
    check_same_step(*trainer("bert", method=method))


def test_so_do_those_above_blocks_computed_once(trainer: Any, workplace: Path) -> None:
    made, batch = trainer("gpt2", layers=1)
    assert batch[STATES].shape[:2] == batch["input_ids"].shape
    with made.trunk.in_place_of_blocks(made.model):
        check_same_step(made, batch)


@pytest.mark.parametrize("loss", ["class weights", "several labels", "a number"])
def test_validation_in_pieces_says_the_same(loss: str, trainer: Any) -> None:
    made, batch = trainer("bert", loss)
    found = []
    for most in (10**9, 40):
        made.pieces = Pieces(most)
        made.model.eval()
        found.append(made.prediction_step(made.model, dict(batch), prediction_loss_only=False))
    (whole, logits, labels), (loss_in_pieces, cut, given) = found
    assert float(loss_in_pieces) == pytest.approx(float(whole), rel=1e-6)
    torch.testing.assert_close(cut, logits, rtol=1e-5, atol=1e-6)
    assert torch.equal(given, labels) and torch.equal(labels, batch["labels"])


# --- a training in pieces ---------------------------------------------------------------------------------------------


def test_training_that_needs_no_pieces_has_the_bits_of_one_without(
    small_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config({"adapter": {"dropout": 0.1}})
    data = prepare(config, tmp_path)
    ours = fit_adapter(config, data, tmp_path / "ours", silent)

    def without(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        self.tokens += int(inputs["attention_mask"].sum())
        self.tokens_with_padding += inputs["attention_mask"].numel()
        return Trainer.training_step(self, model, inputs, *rest)

    monkeypatch.setattr(ResumableTrainer, "training_step", without)
    monkeypatch.setattr(ResumableTrainer, "prediction_step", Trainer.prediction_step)
    plain = fit_adapter(config, data, tmp_path / "plain", silent)
    assert ours.sha256 == plain.sha256 and ours.history == plain.history and ours.padding == plain.padding


def test_pieces_change_memory_not_training(small_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama has no dropout, which is drawn for each piece."""
    config = small_config({"adapter": {"dropout": 0.0}, "training": {"epochs": 1}}, "llama")
    data, sizes, forward = prepare(config, tmp_path), list[tuple[int, int]](), Trainer.compute_loss

    def watched(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        sizes.append(tuple(inputs["attention_mask"].shape))
        return forward(self, model, inputs, *rest, **named)

    monkeypatch.setattr(Trainer, "compute_loss", watched)
    whole = fit_adapter(config, data, tmp_path / "whole", silent)
    assert max(map(math.prod, sizes)) > 30
    del sizes[:]
    monkeypatch.setattr(pieces, "CPU_TOKENS", 30)
    cut = fit_adapter(config, data, tmp_path / "cut", silent)
    assert max(map(math.prod, sizes)) <= 30, "in training and in validation"
    assert cut.steps == whole.steps and cut.compute["tokens_at_a_time"] == "30"
    for one, other in zip(cut.history, whole.history, strict=True):
        assert one.step == other.step and one.metrics == pytest.approx(other.metrics, rel=1e-3)
    for name, weight in weights(whole.folder).items():
        torch.testing.assert_close(weights(cut.folder)[name], weight, rtol=1e-3, atol=1e-4)
