from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig

from tasks.data.prepare import prepare
from tasks.training.adalora import penalty, with_penalty
from tasks.training.fit import fit_adapter
from tasks.training.watching import Watcher


def model_of(weight: float) -> Any:
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    options = {"total_step": 100, "tinit": 10, "tfinal": 10, "target_modules": ["query"], "orth_reg_weight": weight}
    config = AdaLoraConfig(task_type=TaskType.SEQ_CLS, init_r=4, target_r=2, **options)
    return get_peft_model(AutoModelForSequenceClassification.from_config(shape), config).eval()


def test_penalty_is_what_peft_adds_to_the_loss_of_a_model() -> None:
    rows = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "labels": torch.tensor([0, 2])}
    with torch.no_grad():
        plain, penalised = (float(model_of(weight)(**rows).loss) for weight in (0.0, 2.0))
        assert 2 * float(penalty(model_of(2.0))) == pytest.approx(penalised - plain, rel=1e-4)


def test_each_batch_of_a_step_adds_its_share_and_validation_nothing() -> None:
    model = model_of(2.0)
    loss = with_penalty(lambda *_: torch.tensor(1.0), model)
    whole, labels = 2 * float(penalty(model)), torch.zeros(4)
    with torch.no_grad():
        assert float(loss(None, labels)) == float(loss(None, labels, 4)) == 1
    assert float(loss(None, labels, 4)) == pytest.approx(1 + whole)
    assert float(loss(None, labels, 16)) == pytest.approx(1 + whole / 4)


def test_loss_of_the_validation_rows_holds_no_penalty(small_config: Any, tmp_path: Path) -> None:
    found = []
    for weight in (0.0, 5.0):
        adapter = {"method": "adalora", "options": {"orth_reg_weight": weight}}
        config = small_config({"adapter": adapter, "training": {"max_steps": 1, "learning_rate": 0}}, "bert")
        trained = fit_adapter(config, prepare(config, tmp_path), tmp_path / f"{weight}", Watcher(lambda progress: None))
        found.append({name: value for point in trained.history for name, value in point.metrics.items()})
    without, penalised = found
    assert penalised["train/loss"] > 1 + without["train/loss"]
    assert penalised["validation/loss"] == without["validation/loss"]


def test_weight_of_the_penalty_changes_what_is_learned(small_config: Any, tmp_path: Path) -> None:
    found = []
    for weight in (0.0, 5.0):
        adapter = {"method": "adalora", "options": {"orth_reg_weight": weight}}
        config = small_config({"adapter": adapter, "training": {"max_steps": 3}}, "bert")
        trained = fit_adapter(config, prepare(config, tmp_path), tmp_path / f"{weight}", Watcher(lambda progress: None))
        found.append(load_file(Path(trained.folder) / "adapter_model.safetensors"))
    assert any(not torch.equal(found[0][name], found[1][name]) for name in found[0])
