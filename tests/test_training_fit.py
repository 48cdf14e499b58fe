"""What training promises, on two-layer models and a few dozen sentences."""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.base.records import PreparedData, TrainedAdapter
from tasks.data.prepare import prepare
from tasks.evaluation.plots import final_points
from tasks.models import adapter as adapters
from tasks.models import foundation as models
from tasks.models import losses, serving
from tasks.scores.objective import objective
from tasks.settings.config import RunConfig
from tasks.settings.methods import METHODS
from tasks.training import fit as training
from tasks.training.fit import fit_adapter, planned_steps
from tasks.training.pieces import pieces_here
from tasks.training.target import target_of
from tasks.training.watching import Progress, Watcher
from tests.conftest import Trained, rarely, sentences

STEPS_PER_EPOCH = 6
"""48 training rows in batches of 8."""


def ignore(progress: Progress) -> None:
    pass


silent = Watcher(ignore)


@pytest.fixture
def fit(small_config: Any, tmp_path: Path) -> Any:
    """`fit({"training": {"epochs": 1}})`: an adapter trained in a folder of this test."""

    def run(
        changes: dict[str, Any] | None = None,
        family: str = "gpt2",
        work: str = "run",
        report: Callable[[Progress], None] = ignore,
        **watching: Any,
    ) -> TrainedAdapter:
        config = small_config(changes, family)
        return fit_adapter(config, prepare(config, tmp_path), tmp_path / work, Watcher(report, **watching))

    return run


def weights(folder: str | Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(Path(folder) / "adapter_model.safetensors"))


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    import torch

    assert first.keys() == second.keys()
    return all(torch.equal(weight, second[name]) for name, weight in first.items())


def probe_logits(trained: TrainedAdapter) -> Any:
    from safetensors.torch import load_file

    return load_file(trained.probe)["logits"]


def read_back_logits(trained: TrainedAdapter, config: RunConfig, data: PreparedData) -> Any:
    """Logits of the validation rows from the adapter on disk."""
    from datasets import load_from_disk

    model, tokenizer = serving.load_adapter(Path(trained.folder))
    validation = load_from_disk(data.folder)["validation"]
    return serving.classify(model, tokenizer, validation[:], config.evaluation.batch_size)


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that receives the adapter as it is at each validation, by its step."""
    from transformers import Trainer

    kept = tmp_path / "kept"
    evaluate = Trainer.evaluate

    def evaluate_and_save(self: Any, *arguments: Any, **keywords: Any) -> Any:
        scores = evaluate(self, *arguments, **keywords)
        self.model.save_pretrained(kept / str(self.state.global_step))
        return scores

    monkeypatch.setattr(Trainer, "evaluate", evaluate_and_save)
    return kept


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`scripted(accuracy=[0.9, 0.1])`: validation says so, epoch by epoch, whatever the model does."""
    from tasks.base.records import Scores
    from tasks.scores import metrics

    def script(**by_epoch: list[float]) -> None:
        epochs = iter(zip(*by_epoch.values(), strict=True))

        def score(probabilities: Any, labels: Any) -> Scores:
            values = dict(zip(by_epoch, next(epochs), strict=True))
            return {"accuracy": 0.5, "macro_f1": 0.5, "log_loss": 0.7, **values}

        monkeypatch.setattr(metrics, "score", score)

    return script


# --- it learns, and does so the same way every time -----------------------------------------------------------------


def test_eight_examples_can_be_learned(small_config: Any, tmp_path: Path) -> None:
    texts, labels = sentences()
    rows = [*range(4), *range(6, 10)]
    frame = pd.DataFrame({"text": [texts[i] for i in rows], "label": [labels[i] for i in rows]})
    for split in ("train", "validation", "test"):
        (tmp_path / "eight").mkdir(exist_ok=True)
        frame.to_csv(tmp_path / f"eight/{split}.csv", index=False)
    # test rows that are all in train would be refused
    new = pd.DataFrame({"text": [texts[4]], "label": [labels[4]]})
    pd.concat([frame, new]).to_csv(tmp_path / "eight/test.csv", index=False)
    changes = {"data": {"name": str(tmp_path / "eight")}, "training": {"epochs": 30, "learning_rate": 0.02}}
    config = small_config(changes)
    data = prepare(config, tmp_path)
    trained = fit_adapter(config, data, tmp_path / "run", silent)
    accuracies = [value for _, value in final_points(trained.history, "validation/accuracy")]
    assert accuracies[0] < 1 and max(accuracies) == 1.0
    assert read_back_logits(trained, config, data).argmax(-1).tolist() == frame["label"].tolist()


def test_the_same_configuration_gives_the_same_bits_and_another_seed_does_not(fit: Any) -> None:
    first, again = fit(work="first"), fit(work="again")
    other = fit({"seed": 1}, work="other")
    assert first.sha256 == again.sha256 != other.sha256
    assert first.history == again.history != other.history
    assert (Path(first.folder).parent / "probe.safetensors").read_bytes() == (
        Path(again.folder).parent / "probe.safetensors"
    ).read_bytes()


def test_base_weights_stay_frozen(fit: Any, small_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors.torch import load_file

    after: dict[str, Any] = {}
    save = adapters.save_adapter

    def look_and_save(model: Any, *rest: Any) -> None:
        after.update(model.get_base_model().state_dict())
        save(model, *rest)

    monkeypatch.setattr(adapters, "save_adapter", look_and_save)
    trained = fit()
    body = load_file(Path(small_config().model.name) / "model.safetensors")
    compared = 0
    for name, weight in body.items():
        inside = next((n for n in after if n.replace(".base_layer", "") == name), None)
        if inside:
            assert torch.equal(after[inside], weight), name
            compared += 1
    assert compared == len(body) > 20
    assert all("lora_" in name or "score" in name for name in weights(trained.folder))


def test_baseline_and_training_start_from_the_same_head(fit: Any, small_config: Any) -> None:
    import torch

    trained = fit({"training": {"learning_rate": 0.0, "epochs": 1}})
    config = small_config()
    source = models.find_model(config)
    tokenizer = models.load_tokenizer(source, config.model)
    baseline, _ = models.load_foundation(source, config, ("bad", "good"), tokenizer)
    assert torch.equal(weights(trained.folder)["base_model.model.score.weight"], baseline.score.weight)


def test_a_learning_rate_of_zero_leaves_the_adapter_at_its_start(fit: Any, small_config: Any) -> None:
    from peft import get_peft_model_state_dict

    trained = fit({"training": {"learning_rate": 0.0, "epochs": 1}})
    config = small_config()
    source = models.find_model(config)
    tokenizer = models.load_tokenizer(source, config.model)
    model, fresh = models.load_foundation(source, config, ("bad", "good"), tokenizer)
    start = get_peft_model_state_dict(adapters.attach_adapter(model, config, fresh, steps=6))
    assert same(weights(trained.folder), start)
    assert not same(weights(fit(work="moved").folder), start)


# --- the best checkpoint is what is kept -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "adalora"])
@pytest.mark.parametrize(("best_epoch", "accuracy"), [(1, [0.9, 0.2, 0.4, 0.1]), (3, [0.1, 0.2, 0.9, 0.3])])
def test_the_best_checkpoint_by_validation_is_kept_not_the_last(
    method: str, best_epoch: int, accuracy: list[float], small_config: Any, tmp_path: Path,
    checkpoints: Path, scripted: Any,
) -> None:  # fmt: skip
    import torch

    scripted(accuracy=accuracy)
    if method == "adalora":
        best_epoch = 3  # it prunes until step 16 of 24: what was better before has more than its rank
    config = small_config({"training": {"epochs": 4, "learning_rate": 0.05}, "adapter": {"method": method, "r": 2}})
    data = prepare(config, tmp_path)
    trained = fit_adapter(config, data, tmp_path / "run", silent)
    assert trained.best_step == best_epoch * STEPS_PER_EPOCH and trained.steps == 4 * STEPS_PER_EPOCH
    kept = weights(trained.folder)
    assert same(kept, weights(checkpoints / str(trained.best_step)))
    last = weights(checkpoints / str(trained.steps))
    assert any(kept[n].shape != w.shape or not torch.equal(kept[n], w) for n, w in last.items())
    assert torch.allclose(read_back_logits(trained, config, data), probe_logits(trained), atol=1e-6)


def test_the_last_checkpoint_is_kept_when_it_is_the_best(fit: Any, checkpoints: Path, scripted: Any) -> None:
    scripted(accuracy=[0.2, 0.8])
    trained = fit()
    assert trained.best_step == trained.steps == 2 * STEPS_PER_EPOCH
    assert same(weights(trained.folder), weights(checkpoints / str(trained.steps)))


@pytest.mark.parametrize(("metric", "best_epoch"), [("log_loss", 2), ("accuracy", 3), ("macro_f1", 1)])
def test_selection_maximises_accuracy_and_f1_and_minimises_log_loss(
    metric: str, best_epoch: int, fit: Any, scripted: Any
) -> None:
    scripted(log_loss=[0.7, 0.3, 0.9], accuracy=[0.5, 0.4, 0.6], macro_f1=[0.9, 0.1, 0.2])
    trained = fit({"training": {"epochs": 3, "selection_metric": metric}})
    assert trained.best_step == best_epoch * STEPS_PER_EPOCH


def test_the_test_split_is_never_read(small_config: Any, tmp_path: Path) -> None:
    config = small_config({"training": {"epochs": 1}})
    data = prepare(config, tmp_path)
    whole = fit_adapter(config, data, tmp_path / "whole", silent)
    blind = shutil.copytree(data.folder, tmp_path / "blind")
    shutil.rmtree(blind / "test")
    (blind / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    without = fit_adapter(config, data.model_copy(update={"folder": str(blind)}), tmp_path / "without", silent)
    assert without.sha256 == whole.sha256


# --- its length ------------------------------------------------------------------------------------------------------


def test_fewer_steps_than_an_epoch_are_still_evaluated_and_saved(fit: Any) -> None:
    trained = fit({"training": {"max_steps": 2}})
    assert trained.steps == trained.best_step == 2
    assert [step for step, _ in final_points(trained.history, "validation/accuracy")] == [2]
    assert weights(trained.folder)


def test_a_single_step_trains(fit: Any) -> None:
    """The warm-up must not be all there is."""
    one, none = fit({"training": {"max_steps": 1}}), fit({"training": {"max_steps": 1, "learning_rate": 0}})
    assert one.sha256 != none.sha256


def test_max_steps_may_go_beyond_the_epochs(fit: Any) -> None:
    assert fit({"training": {"epochs": 1, "max_steps": STEPS_PER_EPOCH + 1}}).steps == STEPS_PER_EPOCH + 1


def test_early_stopping_stops_and_progress_still_reaches_the_end(fit: Any, scripted: Any) -> None:
    scripted(accuracy=[0.6] + [0.5] * 9)
    reports: list[Progress] = []
    trained = fit({"training": {"epochs": 10, "early_stopping_patience": 2}}, report=reports.append)
    assert trained.steps == 3 * STEPS_PER_EPOCH and trained.best_step == STEPS_PER_EPOCH
    assert reports[-1].step == reports[-1].total_steps == trained.steps


@pytest.mark.parametrize(("batch_size", "accumulation"), [(7, 3), (48, 1), (5, 4), (64, 2)])
def test_planned_steps_are_those_of_trainer(batch_size: int, accumulation: int, fit: Any, small_config: Any) -> None:
    changes = {"training": {"epochs": 2, "batch_size": batch_size, "gradient_accumulation_steps": accumulation}}
    reports: list[Progress] = []
    trained = fit(changes, report=reports.append)
    assert planned_steps(small_config(changes), 48) == reports[0].total_steps == trained.steps


@pytest.mark.parametrize("family", ["gpt2", rarely("bert"), rarely("distilbert")])
def test_gradient_accumulation_changes_memory_not_training(family: str, small_config: Any, tmp_path: Path) -> None:
    """BERT's own loss would count each of the accumulated batches as a whole one."""
    folder = shutil.copytree(small_config(family=family).model.name, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {name: 0.0 for name in settings if "drop" in name and isinstance(settings[name], float)}
    (folder / "config.json").write_text(json.dumps(settings))
    histories = []
    for batch_size, accumulation in ((8, 1), (4, 2), (1, 8)):
        config = small_config(
            {
                "model": {"name": str(folder)},
                "training": {"epochs": 1, "batch_size": batch_size, "gradient_accumulation_steps": accumulation},
            }
        )
        trained = fit_adapter(config, prepare(config, tmp_path), tmp_path / f"run-{accumulation}", silent)
        histories.append(trained.history)
    for name in ("train/loss", "train/gradient_norm", "validation/loss"):
        whole, half, single = ([value for _, value in final_points(history, name)] for history in histories)
        assert len(whole) >= 1 and half == pytest.approx(whole, rel=1e-3) and single == pytest.approx(whole, rel=1e-3)


def test_rows_of_like_length_share_a_batch_and_each_comes_once_an_epoch(small_config: Any, tmp_path: Path) -> None:
    from datasets import load_from_disk

    words = sentences()[0][0].split()
    texts = [" ".join(words[(i + k) % len(words)] for k in range(1 + i * 7 % 25)) + f" {i}" for i in range(400)]
    frame = pd.DataFrame({"text": texts, "label": [i % 2 for i in range(400)]})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    config = small_config({"data": {"name": str(tmp_path / "rows.csv")}})
    data = prepare(config, tmp_path)
    splits = load_from_disk(data.folder)
    tokenizer = models.load_tokenizer(data.model, config.model)
    model, fresh = models.load_foundation(data.model, config, data.label_names, tokenizer)
    model = adapters.attach_adapter(model, config, fresh, steps=100)
    target = target_of(config, data, np.asarray(splits["train"]["labels"]))
    trainer = training.build_trainer(
        config, pieces_here(None), model, tokenizer, splits, None, tmp_path / "run", silent, target
    )
    loader = trainer.get_train_dataloader()

    def epoch() -> list[Any]:
        return [batch["attention_mask"] for batch in loader]

    first, second = epoch(), epoch()
    for batches in (first, second):
        lengths = sorted(int(length) for mask in batches for length in mask.sum(1))
        assert lengths == sorted(splits["train"]["length"])
        padded, real = sum(mask.numel() for mask in batches), sum(lengths)
        assert padded / real < 1.2
    by_chance = [lengths[i::40] for i in range(40)]
    assert sum(max(batch) * len(batch) for batch in by_chance) / sum(lengths) > 1.4, "else grouping shows nothing"
    assert [mask.shape for mask in first] != [mask.shape for mask in second], "each epoch is shuffled anew"


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "adapter"),
    [
        ("gpt2", {"dropout": 0.2}),
        ("gpt2", {"layers": 1}),
        ("bert", {"method": "adalora"}),
        rarely("bert", {"dropout": 0.2}),
        rarely("llama", {"dropout": 0.2}),
        rarely("bart", {}),
        *(rarely("bert", {"method": method}) for method in METHODS if method != "adalora"),
    ],
)
def test_gradient_checkpointing_changes_memory_not_training(
    family: str, adapter: dict[str, Any], small_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import modeling_utils

    blocks, checkpoint = [0], modeling_utils.checkpoint

    def counted(*arguments: Any, **named: Any) -> Any:
        blocks[0] += 1
        assert not named["use_reentrant"]
        return checkpoint(*arguments, **named)

    monkeypatch.setattr(modeling_utils, "checkpoint", counted)
    found, steps = [], 4
    for is_on in (False, True):
        changes = {"adapter": adapter, "training": {"max_steps": steps, "gradient_checkpointing": is_on}}
        config = small_config(changes, family)
        data = prepare(config, tmp_path)
        found.append(fit_adapter(config, data, tmp_path / f"run-{is_on}", silent))
        # which decompose weights when read, or have fewer ranks then, which some processors multiply otherwise
        rounding = 1e-5 if adapter.get("method") in ("psoft", "tinylora", "adalora", "adamss") else 0
        read_back = read_back_logits(found[-1], config, data)
        assert torch.allclose(read_back, probe_logits(found[-1]), rtol=0, atol=rounding)
        assert bool(blocks[0]) is is_on
    plain, checkpointed = found
    assert checkpointed.sha256 == plain.sha256 and checkpointed.history == plain.history
    in_each = {"bart": 4}.get(family, adapter.get("layers", 2))
    assert blocks[0] == steps * in_each


def test_optimizer_and_checkpoints_hold_what_is_trained_and_nothing_else(
    fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from tasks.training import resume

    groups: list[tuple[dict[str, Any], dict[str, Any]]] = []
    write = "tasks.training.trainer.write_checkpoint"

    def look(folder: Path, step: int, tensors: Any, state: Any) -> None:
        groups.append((tensors["weights"], tensors["optimizer"]))

    monkeypatch.setattr(resume, "MOST_SHARE", float("inf"))
    monkeypatch.setattr(write, look)
    trained = fit({"training": {"max_steps": 3}})
    kept, optimizer = groups[-1]
    saved = load_file(Path(trained.folder) / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in kept.values()) == trained.trainable_parameters
    assert sorted(tuple(tensor.shape) for tensor in kept.values()) == sorted(tuple(w.shape) for w in saved.values())
    moments = [tensor for name, tensor in optimizer.items() if name.endswith(("exp_avg", "exp_avg_sq"))]
    assert sum(tensor.numel() for tensor in moments) == 2 * trained.trainable_parameters
    assert len(optimizer) == len(moments) * 3 // 2, "and a step for each"


# --- what it reports -------------------------------------------------------------------------------------------------


def test_each_curve_has_strictly_rising_steps_and_finite_values(trained: Trained) -> None:
    history = trained.adapter.history
    names = {name for point in history for name in point.metrics}
    scores = {f"validation/{metric.name}" for metric in objective("single_label").metrics}
    assert names == {"train/loss", "train/learning_rate", "train/gradient_norm", "validation/loss", *scores}
    for name in names:
        steps, values = zip(*final_points(history, name), strict=True)
        assert all(a < b for a, b in pairwise(steps)) and np.isfinite(values).all(), name
    epochs = [STEPS_PER_EPOCH * epoch for epoch in range(1, 9)]
    assert [step for step, _ in final_points(history, "validation/accuracy")] == epochs
    assert [step for step, _ in final_points(history, "train/loss")] == list(range(1, epochs[-1] + 1))


def test_validation_loss_counts_each_row_once_also_in_the_last_batch(fit: Any, small_config: Any) -> None:
    """12 rows in batches of 8: a mean of batch means would be another number."""
    from torch import tensor
    from torch.nn.functional import cross_entropy

    trained = fit({"training": {"epochs": 1}})
    validation = pd.read_csv(Path(small_config().data.name) / "validation.csv")
    labels = tensor((validation["label"] == "good").astype(int).tolist())
    logits = probe_logits(trained)
    expected = cross_entropy(logits, labels).item()
    metrics = {name: final_points(trained.history, f"validation/{name}")[0][1] for name in ("loss", "log_loss")}
    assert len(logits) == 12 and metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["log_loss"] == pytest.approx(expected, rel=1e-5)
    accuracy = (logits.argmax(-1) == labels).float().mean().item()
    assert final_points(trained.history, "validation/accuracy")[0][1] == pytest.approx(accuracy)


def test_progress_is_reported_after_every_step_up_to_the_last(fit: Any) -> None:
    reports: list[Progress] = []
    trained = fit(report=reports.append)
    total = 2 * STEPS_PER_EPOCH
    assert list(dict.fromkeys(report.step for report in reports)) == list(range(1, total + 1))
    assert {report.total_steps for report in reports} == {total}
    assert all(report.seconds_left >= 0 for report in reports) and reports[-1].seconds_left == 0
    assert tuple(report.point for report in reports if report.point) == trained.history


def test_the_task_writes_every_point_into_the_journal(
    small_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[Any, ...]] = []
    monkeypatch.setattr(training, "log", lambda work, kind, values, step: lines.append((work, kind, values, step)))
    config, work = small_config({"training": {"epochs": 1}}), tmp_path / "run"
    trained = training.train_adapter.fn(config, prepare(config, tmp_path), str(work))
    assert lines == [(str(work), "metrics", point.metrics, point.step) for point in trained.history]
    assert training.train_adapter.fn(config, prepare(config, tmp_path), str(work)) == trained  # not once more
    assert lines == 2 * lines[: len(trained.history)]  # the journal, told again, keeps each once


def test_the_record_describes_the_adapter(trained: Trained) -> None:
    import torch

    adapter = trained.adapter
    saved = weights(adapter.folder)
    assert adapter.trainable_parameters == sum(weight.numel() for weight in saved.values())
    assert adapter.total_parameters > 10 * adapter.trainable_parameters
    assert adapter.target_modules == ("c_attn",) and adapter.peak_memory_mb > 50
    assert adapter.steps == 8 * STEPS_PER_EPOCH and adapter.examples_per_second > 0
    used = adapter.compute
    assert used["tokens_at_a_time"] == str(pieces_here(None).most_tokens)
    assert used["threads"] == str(torch.get_num_threads()) and used["optimizer"] == "adamw_torch_fused"
    assert (used["device"], used["attention"]) == ("cpu", "sdpa") or torch.cuda.is_available()


# --- when things go wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_training_and_says_at_which_step(
    value: float, fit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1000))
    loss = losses.cross_entropy

    def broken(*arguments: Any) -> Any:
        return loss(*arguments) * (value if next(calls) == 3 else 1)

    monkeypatch.setitem(losses.LOSSES, "cross_entropy", broken)
    with pytest.raises(
        FloatingPointError, match=r"the loss is (nan|inf) at step 4, and was 0\.\d+ at step 3; try a lower"
    ):
        fit()


def test_leftovers_of_a_killed_run_do_not_matter_and_do_not_stay(fit: Any, tmp_path: Path) -> None:
    clean = fit(work="clean")
    half = ("checkpoints/.checkpoint-8.training.partial", ".adapter.training.partial")
    for leftover in ("checkpoints/checkpoint-6", "adapter", *half):
        (tmp_path / "run" / leftover).mkdir(parents=True)
        (tmp_path / "run" / leftover / "adapter_model.safetensors").write_bytes(b"half")
    again = fit(work="run")
    assert again.sha256 == clean.sha256
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["adapter", "probe.safetensors"]
    assert {p.name for p in Path(again.folder).iterdir()} == {p.name for p in Path(clean.folder).iterdir()}


@pytest.fixture
def bfloat16_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(training, "use_bfloat16", lambda model: True)
    yield


def test_mixed_precision_ends_with_training(small_config: Any, tmp_path: Path, bfloat16_on_a_cpu: None) -> None:
    """Trainer leaves autocast on the model; the probe must be computed as the adapter read back from disk computes."""
    import torch

    config = small_config({"training": {"epochs": 1}})
    data = prepare(config, tmp_path)
    mixed = fit_adapter(config, data, tmp_path / "mixed", silent)
    assert torch.equal(read_back_logits(mixed, config, data), probe_logits(mixed))
    # and it was on: rounding to bfloat16 shows in the validation loss
    validated_in_training = final_points(mixed.history, "validation/log_loss")[0][1]
    labels = torch.tensor((pd.read_csv(Path(config.data.name) / "validation.csv")["label"] == "good").astype(int))
    in_full = torch.nn.functional.cross_entropy(probe_logits(mixed), labels).item()
    assert validated_in_training != pytest.approx(in_full, rel=1e-6)
    assert validated_in_training == pytest.approx(in_full, rel=0.05)


@pytest.mark.gpu
def test_an_adapter_trained_on_a_gpu_reads_back_as_it_was(small_config: Any, tmp_path: Path) -> None:
    from tasks.evaluation.adapter import measure_adapter

    config = small_config({"training": {"epochs": 1}})
    data = prepare(config, tmp_path)
    trained = fit_adapter(config, data, tmp_path / "run", silent)
    assert measure_adapter(config, data, trained).scores["log_loss"] > 0


def test_stopped_training_keeps_an_adapter_that_can_be_read(fit: Any, tmp_path: Path) -> None:
    """Of an epoch of six steps, the weights after the third; no checkpoint of the Trainer holds them."""

    def stop_after_three(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    constant = {"scheduler": "constant", "warmup_fraction": 0}
    whole = fit({"training": {"max_steps": 3, **constant}}, work="whole")
    with pytest.raises(KeyboardInterrupt):
        fit({"training": constant}, report=stop_after_three)
    assert same(weights(tmp_path / "run/checkpoint"), weights(whole.folder))
    serving.load_adapter(tmp_path / "run/checkpoint")


def test_update_that_is_broken_off_is_undone(fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    update, before = torch.optim.AdamW.step, []

    def break_off_the_third(self: Any, *arguments: Any, **keywords: Any) -> Any:
        before.append([weight.detach().clone() for group in self.param_groups for weight in group["params"]])
        outcome = update(self, *arguments, **keywords)
        if len(before) == 3:
            raise KeyboardInterrupt
        return outcome

    monkeypatch.setattr(torch.optim.AdamW, "step", break_off_the_third)
    with pytest.raises(KeyboardInterrupt):
        fit()
    kept = weights(tmp_path / "run/checkpoint").values()
    for weight in before[2]:
        assert any(weight.shape == other.shape and torch.equal(weight, other) for other in kept)
    assert not all(torch.equal(first, third) for first, third in zip(before[0], before[2], strict=True))


def test_stopped_training_says_where_and_when_it_stopped(small_config: Any, tmp_path: Path) -> None:
    said: list[tuple[Path, int]] = []

    def stop_after_four(progress: Progress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    config = small_config()
    with pytest.raises(KeyboardInterrupt):
        watcher = Watcher(stop_after_four, lambda *where: said.append(where))
        fit_adapter(config, prepare(config, tmp_path), tmp_path / "run", watcher)
    assert said == [(tmp_path / "run/checkpoint", 4)]


def test_training_that_fails_keeps_nothing(fit: Any, tmp_path: Path) -> None:
    def fail(progress: Progress) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fit(report=fail)
    assert not (tmp_path / "run/checkpoint").exists()
