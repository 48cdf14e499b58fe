"""Foundation model and saved adapter on the test rows; the adapter as a fresh, offline process reads it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks import evaluation, serving
from tasks.config import RunConfig, validated
from tasks.evaluation import (
    ReloadMismatch,
    baseline_cache_key,
    baseline_file,
    baseline_is_intact,
    baseline_key,
    measure_adapter,
    measure_baseline,
    measure_majority,
    read_predictions,
    run_offline,
    write_evaluation,
)
from tasks.records import Evaluation, TrainedAdapter, file_sha256
from tests.conftest import Trained


@pytest.fixture(scope="module")
def baseline(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return measure_baseline(trained.config, trained.data, tmp_path_factory.mktemp("baseline"))


def copied(trained: Trained, folder: Path) -> TrainedAdapter:
    """The trained adapter with its probe, as files of this test."""
    shutil.copytree(trained.adapter.folder, folder / "adapter")
    probe = shutil.copy(trained.adapter.probe, folder)
    return trained.adapter.model_copy(update={"folder": str(folder / "adapter"), "probe": str(probe)})


def change_one_weight(adapter: TrainedAdapter) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(adapter.folder) / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "lora_B" in name)
    weights[name][0, 0] += 1
    save_file(weights, path, {"format": "pt"})


# --- prediction files ------------------------------------------------------------------------------------------------


def test_a_prediction_file_holds_the_test_rows_in_their_order(
    trained: Trained, measured: Evaluation, baseline: Evaluation
) -> None:
    source = pd.read_csv(Path(trained.config.data.name) / "test.csv")
    for result in (measured, baseline):
        rows, labels, probabilities = read_predictions(result.predictions)
        assert rows.tolist() == list(range(12))
        assert labels.tolist() == (source["label"] == "good").astype(int).tolist()
        assert probabilities.shape == (12, 2) and probabilities.sum(1) == pytest.approx(1)
        assert result.sha256 == file_sha256(Path(result.predictions))


def test_scores_are_those_of_the_file_by_hand(measured: Evaluation, baseline: Evaluation) -> None:
    for result in (measured, baseline):
        _, labels, table = read_predictions(result.predictions)
        said = table.argmax(1)
        assert result.scores.accuracy == pytest.approx((said == labels).mean())
        assert result.scores.log_loss == pytest.approx(-np.log(table[np.arange(12), labels].astype(float)).mean())
        f1 = []
        for label in (0, 1):
            hits = ((said == label) & (labels == label)).sum()
            f1.append(2 * hits / ((said == label).sum() + (labels == label).sum()))
        assert result.scores.macro_f1 == pytest.approx(np.mean(f1))


def test_adapter_and_foundation_model_are_told_apart(measured: Evaluation, baseline: Evaluation) -> None:
    tuned, untouched = (read_predictions(result.predictions)[2] for result in (measured, baseline))
    assert np.abs(tuned - untouched).max() > 0.05


def test_a_row_without_finite_probabilities_is_named_and_nothing_written(trained: Trained, tmp_path: Path) -> None:
    import torch
    from datasets import load_from_disk

    logits = torch.zeros(12, 2)
    logits[5, 0] = float("nan")
    test = load_from_disk(trained.data.folder)["test"]
    with pytest.raises(FloatingPointError, match="row 5"):
        write_evaluation(logits, test, tmp_path / "predictions.parquet", 1.0)
    assert list(tmp_path.iterdir()) == []


def test_writing_leaves_only_the_finished_file(trained: Trained, tmp_path: Path) -> None:
    import torch
    from datasets import load_from_disk

    test = load_from_disk(trained.data.folder)["test"]
    result = write_evaluation(torch.zeros(12, 2), test, tmp_path / "new/predictions.parquet", 1.0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["predictions.parquet"]
    assert result.scores.log_loss == pytest.approx(np.log(2))


def test_only_the_columns_a_model_reads_are_held_in_memory(trained: Trained) -> None:
    from datasets import load_from_disk
    from transformers import AutoTokenizer

    test = load_from_disk(trained.data.folder)["test"]
    rows = evaluation.model_rows(test, AutoTokenizer.from_pretrained(trained.adapter.folder))
    assert set(rows) == {"input_ids", "attention_mask"} and "text" in test.column_names


# --- the baseline ----------------------------------------------------------------------------------------------------


def test_the_baseline_is_the_same_every_time(trained: Trained, baseline: Evaluation, tmp_path: Path) -> None:
    again = measure_baseline(trained.config, trained.data, tmp_path)
    assert again.sha256 == baseline.sha256 and again.scores == baseline.scores


def other(config: RunConfig, **changes: Any) -> RunConfig:
    values = config.model_dump()
    for name, change in changes.items():
        values[name] = values[name] | change if isinstance(change, dict) else change
    return validated(values)


def test_the_baseline_key_changes_with_what_the_baseline_depends_on(trained: Trained, tmp_path: Path) -> None:
    config, data = trained.config, trained.data
    moved = data.model_copy(update={"folder": str(Path(data.folder).with_name("data-of-other-tokens"))})
    keys = [
        baseline_key(config, data),
        baseline_key(config, data.model_copy(update={"fingerprint": "0" * 64})),
        baseline_key(config, moved),
        baseline_key(config, data.model_copy(update={"model": data.model.model_copy(update={"revision": "new"})})),
        baseline_key(other(config, model={"dtype": "bfloat16"}), data),
        baseline_key(other(config, evaluation={"batch_size": 9}), data),
        baseline_key(other(config, seed=1), data),
    ]
    assert len(set(keys)) == len(keys)


def test_the_baseline_key_does_not_change_with_what_concerns_the_adapter(trained: Trained) -> None:
    config, data = trained.config, trained.data
    for changes in (
        {"training": {"learning_rate": 0.5, "epochs": 9, "batch_size": 3}},
        {"adapter": {"method": "dora", "r": 2}},
        {"evaluation": {"bootstrap_samples": 777, "confidence": 0.9}},
        {"tracking": {"experiment": "elsewhere", "run_name": "x"}},
        {"offline": True},
    ):
        assert baseline_key(other(config, **changes), data) == baseline_key(config, data), changes


def test_a_cached_baseline_is_of_one_place(trained: Trained) -> None:
    keys = {
        baseline_cache_key(None, {"config": trained.config, "data": trained.data, "work": work}) for work in ("a", "b")
    }
    assert len(keys) == 2


def test_a_baseline_is_intact_as_long_as_its_file_is_there(trained: Trained, tmp_path: Path) -> None:
    assert not baseline_is_intact(trained.config, trained.data, str(tmp_path))
    result = measure_baseline(trained.config, trained.data, tmp_path)
    assert Path(result.predictions) == baseline_file(trained.config, trained.data, tmp_path)
    assert baseline_is_intact(trained.config, trained.data, str(tmp_path))
    Path(result.predictions).unlink()
    assert not baseline_is_intact(trained.config, trained.data, str(tmp_path))


def test_the_task_hands_on_plain_values(trained: Trained, tmp_path: Path) -> None:
    plain = evaluation.evaluate_baseline.fn(trained.config, trained.data, str(tmp_path))
    assert Evaluation.model_validate(json.loads(json.dumps(plain))).scores.accuracy <= 1


def test_the_majority_reference_says_the_training_shares(trained: Trained) -> None:
    data = trained.data.model_copy(update={"class_counts": {"train": (30, 10)}})
    scores = measure_majority(data, np.array([0, 0, 1, 1]))
    assert scores.accuracy == 0.5 and scores.macro_f1 == pytest.approx((2 / 3) / 2)
    assert scores.log_loss == pytest.approx(-(np.log(0.75) + np.log(0.25)) / 2)


# --- the fresh process -----------------------------------------------------------------------------------------------


def test_the_fresh_process_computes_what_this_one_does(trained: Trained, measured: Evaluation) -> None:
    from datasets import load_from_disk

    model, tokenizer = serving.load_adapter(Path(trained.adapter.folder))
    rows = evaluation.model_rows(load_from_disk(trained.data.folder)["test"], tokenizer)
    here = serving.probabilities(serving.classify(model, tokenizer, rows, trained.config.evaluation.batch_size))
    assert (read_predictions(measured.predictions)[2] == here).all()


def test_a_weight_changed_on_disk_is_found(trained: Trained, tmp_path: Path) -> None:
    adapter = copied(trained, tmp_path)
    change_one_weight(adapter)
    with pytest.raises(ReloadMismatch, match=r"differs from the trained model by .* it was not logged"):
        measure_adapter(trained.config, trained.data, adapter)
    assert not (tmp_path / "tuned.parquet").exists()


def test_logits_that_are_no_numbers_are_a_mismatch_too(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import save_file

    def answer(module: str, request: dict[str, Any]) -> None:
        save_file({"probe": torch.full((12, 2), float("nan")), "test": torch.zeros(12, 2)}, request["out"])

    monkeypatch.setattr(evaluation, "run_offline", answer)
    with pytest.raises(ReloadMismatch, match="nan"):
        measure_adapter(trained.config, trained.data, copied(trained, tmp_path))


def test_a_model_of_the_hub_is_read_from_the_cache_with_no_hub_there(
    trained: Trained, measured: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_ENDPOINT leads nowhere, and the Hub's cache holds the foundation model."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hf/hub/models--org--tiny/snapshots" / commit
    shutil.copytree(trained.config.model.name, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text(commit)
    adapter = copied(trained, tmp_path)
    settings = serving.read_settings(Path(adapter.folder))
    settings["base_model"] |= {"name": "org/tiny", "revision": commit}
    (Path(adapter.folder) / serving.SETTINGS).write_text(json.dumps(settings))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    again = measure_adapter(trained.config, trained.data, adapter)
    assert again.scores == measured.scores


def module(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "stand_in.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return "stand_in"


def test_a_fresh_process_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module(
        tmp_path,
        "import json, pathlib, sys\n"
        "from huggingface_hub import HfApi\n"
        "from huggingface_hub.errors import OfflineModeIsEnabled\n"
        "try:\n"
        "    HfApi().model_info('gpt2')\n"
        "except OfflineModeIsEnabled:\n"
        "    pathlib.Path(json.loads(sys.argv[1])['out']).write_text('refused before a connection')\n",
        monkeypatch,
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    run_offline(name, {"out": str(tmp_path / "said")})
    assert (tmp_path / "said").read_text() == "refused before a connection"
    assert os.environ["HF_HUB_OFFLINE"] == "0", "this process stays as it was"


def test_the_last_words_of_a_failing_process_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys\nprint('x' * 9000, file=sys.stderr)\nraise MemoryError('no room for the model')\n"
    with pytest.raises(RuntimeError, match=r"(?s)stand_in failed .*\(exit code 1\).*no room for the model") as error:
        run_offline(module(tmp_path, code, monkeypatch), {})
    assert len(str(error.value)) < 2200


def test_a_process_that_is_killed_is_told_by_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    with pytest.raises(RuntimeError, match="exit code -9"):
        run_offline(module(tmp_path, code, monkeypatch), {})
