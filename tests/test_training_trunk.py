"""Only the top blocks adapted: what enters them is computed once, and the model says the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.base.records import PreparedData
from tasks.data.prepare import check_input, prepare
from tasks.evaluation.adapter import measure_adapter
from tasks.models import adapter as adapters
from tasks.models import foundation as models
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.training import trunk as trunks
from tasks.training.trunk import STATES, Trunk
from tests.conftest import Trained
from tests.test_settings_methods import FAMILIES


@pytest.fixture(autouse=True)
def own_trunks(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> Path:
    """`mlruns/trunks` of the test's own folder, as an absolute path would not be."""
    return workplace / trunks.TRUNKS


class Job:
    def __init__(self, config: RunConfig, folder: Path) -> None:
        from datasets import load_from_disk

        self.config, self.data = config, prepare(config, folder)
        self.splits = load_from_disk(self.data.folder)
        self.tokenizer = models.load_tokenizer(self.data.model, config.model)
        model, fresh = models.load_foundation(self.data.model, config, self.data.label_names, self.tokenizer)
        self.model = adapters.attach_adapter(model, config, fresh, steps=4)
        self.said: list[str] = []

    def trunk(self) -> Trunk:
        trunk = Trunk(self.model, self.data, self.config, self.splits)
        trunk.compute(self.model, self.tokenizer, self.splits, 8, self.said.append)
        return trunk

    def batch(self, trunk: Trunk) -> Any:
        from transformers import DataCollatorWithPadding

        columns = [*self.tokenizer.model_input_names, "labels", trunks.PLACE]
        rows = trunk.rows(self.splits, "validation")
        rows = rows.select_columns([name for name in columns if name in rows.column_names])
        return trunk.collator(DataCollatorWithPadding(self.tokenizer))([rows[place] for place in (0, 5, 7)])


@pytest.fixture
def job(small_config: Any, tmp_path: Path) -> Callable[..., Job]:
    def make(family: str = "gpt2", layers: int = 1, **changes: Any) -> Job:
        changes["adapter"] = {"layers": layers, **changes.get("adapter", {})}
        return Job(small_config(changes, family), tmp_path / "work")

    return make


def logits_and_gradients(model: Any, batch: Any) -> tuple[Any, list[Any]]:
    import torch

    model.eval()
    model.zero_grad()
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    logits = model(**inputs).logits
    torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()
    return logits.detach(), [w.grad.clone() for w in model.parameters() if w.requires_grad and w.grad is not None]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_whole_model(family: str, job: Callable[..., Job]) -> None:
    import torch

    made = job(family)
    trunk = made.trunk()
    batch = made.batch(trunk)
    whole = logits_and_gradients(made.model, {name: batch[name] for name in batch if name != STATES})
    trunk.check(made.model, batch)
    with trunk.in_place_of_blocks(made.model):
        cut = logits_and_gradients(made.model, batch)
        # they are really left out
        wrong = dict(batch) | {STATES: torch.zeros_like(batch[STATES])}
        assert not torch.allclose(logits_and_gradients(made.model, wrong)[0], whole[0], atol=1e-4)
    assert torch.allclose(cut[0], whole[0], atol=1e-5, rtol=0)
    assert len(cut[1]) == len(whole[1]) > 2
    for ours, theirs in zip(cut[1], whole[1], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)
    again = logits_and_gradients(made.model, {name: batch[name] for name in batch if name != STATES})
    assert torch.equal(again[0], whole[0])  # and put back


@pytest.mark.parametrize(("family", "top"), [("gpt2", ".h.1."), ("bert", ".layer.1."), ("distilbert", ".layer.1.")])
def test_only_the_top_blocks_are_adapted(family: str, top: str, job: Callable[..., Job]) -> None:
    """Peft knows layers for two of these, the third gets all that it has."""
    names = [name for name, weight in job(family).model.named_parameters() if weight.requires_grad]
    adapted = [name for name in names if "lora" in name]
    assert adapted and all(top in name for name in adapted)
    assert not [name for name in names if "embed" in name or "wte" in name]


def test_runs_that_differ_by_seed_rank_and_rate_share_the_file(job: Callable[..., Job], own_trunks: Path) -> None:
    first = job()
    first.trunk()
    second = job(seed=3, adapter={"r": 2}, training={"learning_rate": 0.5})
    second.trunk()
    assert "1 lower block computed once and kept" in first.said[0] and " kB in " in first.said[0]
    assert "1 lower block computed before" in second.said[0]
    assert len(list(own_trunks.glob("*.states"))) == 1
    other = job(data={"max_length": 4})
    other.trunk()
    assert "computed once" in other.said[0]


def test_more_disk_than_allowed_is_refused_with_both_sizes(job: Callable[..., Job]) -> None:
    made = job(training={"max_trunk_gb": 1e-6})
    with pytest.raises(InputError, match=r"training\.max_trunk_gb: .* needs .* kB on disk, and 1\.0 kB may be used"):
        made.trunk()


def test_files_unused_for_longest_make_room(own_trunks: Path, workplace: Path) -> None:
    import os

    own_trunks.mkdir(parents=True)
    for age, name in enumerate(("new", "middle", "old")):
        (own_trunks / f"{name}.states").write_bytes(b"x" * 100)
        os.utime(own_trunks / f"{name}.states", (1000 - age, 1000 - age))
    trunks.make_room(250)
    assert {file.stem for file in own_trunks.iterdir()} == {"new", "middle"}


def test_half_a_file_is_computed_again(job: Callable[..., Job], own_trunks: Path) -> None:
    made = job()
    made.trunk()
    (file,) = own_trunks.glob("*.states")
    file.write_bytes(file.read_bytes()[:100])
    again = job()
    trunk = again.trunk()
    assert "computed once" in again.said[0]
    trunk.check(again.model, again.batch(trunk))


def test_file_with_other_content_is_refused(job: Callable[..., Job], own_trunks: Path) -> None:
    made = job()
    trunk = made.trunk()
    trunk.file.write_bytes(bytes(trunk.file.stat().st_size))
    with pytest.raises(InputError, match=r"adapter\.layers: the 1 lower block .* cannot be computed once"):
        trunk.check(made.model, made.batch(trunk))


def test_training_learns_and_what_it_saves_is_an_adapter_like_any(
    small_config: Any, tmp_path: Path, own_trunks: Path
) -> None:
    from tasks.training.fit import fit_adapter
    from tasks.training.watching import Watcher

    changes = {"adapter": {"layers": 1}, "training": {"epochs": 8, "learning_rate": 0.02}}
    config = small_config(changes)
    data: PreparedData = prepare(config, tmp_path / "work")
    trained = fit_adapter(config, data, tmp_path / "run", Watcher(lambda progress: None))
    assert list(own_trunks.glob("*.states")) and trained.trunk_seconds > 0
    measured = measure_adapter(*Trained(config, data, trained))  # which compares logits with those after training
    assert measured.scores["accuracy"] > 0.8
    again = fit_adapter(config, data, tmp_path / "again", Watcher(lambda progress: None))
    assert again.sha256 == trained.sha256


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"layers": 2}, "adapter.layers: .* has 2 blocks; give fewer, or leave it empty to adapt all"),
        ({"layers": 9}, "adapter.layers: .* has 2 blocks; give fewer"),
        ({"layers": 1, "method": "ia3"}, "adapter.layers: ia3 adapts all blocks; leave it empty, or choose lora"),
        (
            {"layers": 1, "target_modules": ["transformer.h.0.attn.c_attn"]},
            "adapter.target_modules: transformer.h.0.attn.c_attn is below the top 1 blocks",
        ),
        ({"layers": 1, "options": {"layers_to_transform": [0]}}, "adapter.options has layers_to_transform, too"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(small_config: Any, adapter: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_input(small_config({"adapter": adapter}))
