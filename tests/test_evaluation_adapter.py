"""Prediction files; the saved adapter on the test rows, as a fresh, offline process reads it."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.base import fresh_process
from tasks.base.fresh_process import reload_at_hand, run_offline, start_offline
from tasks.base.records import Evaluation, TrainedAdapter, file_sha256
from tasks.evaluation import adapter as evaluation
from tasks.evaluation.adapter import ReloadMismatch, measure_adapter
from tasks.evaluation.predictions import paired_predictions, read_predictions, write_evaluation
from tasks.evaluation.references import measure
from tasks.models import serving
from tasks.scores.statistics import without_temperature
from tests.conftest import Trained


@pytest.fixture(scope="module")
def baseline(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return measure("baseline", trained.config, trained.data, tmp_path_factory.mktemp("baseline"))


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
        assert result.scores["accuracy"] == pytest.approx((said == labels).mean())
        assert result.scores["log_loss"] == pytest.approx(-np.log(table[np.arange(12), labels].astype(float)).mean())
        f1 = []
        for label in (0, 1):
            hits = ((said == label) & (labels == label)).sum()
            f1.append(2 * hits / ((said == label).sum() + (labels == label).sum()))
        assert result.scores["macro_f1"] == pytest.approx(np.mean(f1))


def test_adapter_and_foundation_model_are_distinguished(
    trained: Trained, measured: Evaluation, baseline: Evaluation
) -> None:
    tuned, untouched = (read_predictions(result.predictions)[2] for result in (measured, baseline))
    assert np.abs(without_temperature(tuned, trained.adapter.fitted["temperature"]) - untouched).max() > 0.05


def test_the_adapters_probabilities_are_calibrated_by_its_temperature(trained: Trained, measured: Evaluation) -> None:
    from safetensors.torch import load_file
    from scipy.special import softmax

    logits = load_file(Path(trained.adapter.folder).parent / "reloaded.safetensors")["test"].numpy()
    assert trained.adapter.fitted["temperature"] != 1
    expected = softmax(logits / trained.adapter.fitted["temperature"], axis=1)
    assert read_predictions(measured.predictions)[2] == pytest.approx(expected, abs=1e-6)


def test_rows_and_labels_are_those_of_the_test_split(
    trained: Trained, measured: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation split of the reviews has as many rows, with the same labels in the same order."""
    from datasets import load_from_disk

    from tasks.models import reload

    def read_here(module: str, request: dict[str, Any]) -> None:
        reload.main(request)

    splits = load_from_disk(trained.data.folder)
    splits["test"] = splits["test"].select([11, 5, 2])
    splits.save_to_disk(tmp_path / "data")
    monkeypatch.setattr(evaluation, "run_offline", read_here)
    data = trained.data.model_copy(update={"folder": str(tmp_path / "data")})
    found = measure_adapter(trained.config, data, copied(trained, tmp_path))
    rows, labels, table = read_predictions(found.predictions)
    _, all_labels, all_tables = read_predictions(measured.predictions)
    assert rows.tolist() == [11, 5, 2]
    assert labels.tolist() == all_labels[rows].tolist()
    assert table == pytest.approx(all_tables[rows], abs=1e-5)


def test_a_row_without_finite_probabilities_is_named_and_nothing_written(trained: Trained, tmp_path: Path) -> None:
    from datasets import load_from_disk

    table = np.full((12, 2), 0.5)
    table[5, 0] = float("nan")
    test = load_from_disk(trained.data.folder)["test"]
    with pytest.raises(FloatingPointError, match="row 5"):
        write_evaluation("single_label", table, test, tmp_path / "predictions.parquet", 1.0)
    assert list(tmp_path.iterdir()) == []


def test_writing_leaves_only_the_finished_file(trained: Trained, tmp_path: Path) -> None:
    from datasets import load_from_disk

    test = load_from_disk(trained.data.folder)["test"]
    result = write_evaluation("single_label", np.full((12, 2), 0.5), test, tmp_path / "new/predictions.parquet", 1.0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["predictions.parquet"]
    assert result.scores["log_loss"] == pytest.approx(np.log(2))


def test_only_the_columns_a_model_reads_are_held_in_memory(trained: Trained) -> None:
    from datasets import load_from_disk
    from transformers import AutoTokenizer

    test = load_from_disk(trained.data.folder)["test"]
    rows = serving.model_rows(test, AutoTokenizer.from_pretrained(trained.adapter.folder))
    assert set(rows) == {"input_ids", "attention_mask"} and "text" in test.column_names


# --- predictions of several classifiers ------------------------------------------------------------------------------


def write_rows(folder: Path, name: str, rows: list[int], labels: list[int], classes: int = 2) -> str:
    from datasets import Dataset

    split = Dataset.from_dict({"row": rows, "labels": labels})
    table = np.full((len(rows), classes), 1 / classes)
    return write_evaluation("single_label", table, split, folder / f"{name}.parquet", 1).predictions


def test_predictions_on_the_same_rows_are_read_together(measured: Evaluation, baseline: Evaluation) -> None:
    read = paired_predictions({"tuned": measured.predictions, "baseline": baseline.predictions})
    assert list(read.tables) == ["tuned", "baseline"]
    for name, file in (("tuned", measured.predictions), ("baseline", baseline.predictions)):
        rows, labels, table = read_predictions(file)
        assert (read.rows == rows).all() and (read.labels == labels).all() and (read.tables[name] == table).all()


@pytest.mark.parametrize(
    ("rows", "labels", "classes"),
    [([0, 1, 3], [0, 1, 0], 2), ([0, 1], [0, 1], 2), ([0, 1, 2], [0, 1, 1], 2), ([0, 1, 2], [0, 1, 0], 3)],
    ids=["other rows", "fewer rows", "other labels", "more classes"],
)
def test_predictions_about_something_else_are_named(
    rows: list[int], labels: list[int], classes: int, tmp_path: Path
) -> None:
    files = {name: write_rows(tmp_path, name, [0, 1, 2], [0, 1, 0]) for name in ("tuned", "baseline")}
    files["probe"] = write_rows(tmp_path, "probe", rows, labels, classes)
    with pytest.raises(ValueError, match="tuned and probe are about different test rows or labels"):
        paired_predictions(files)


# --- the fresh process -----------------------------------------------------------------------------------------------


def test_the_fresh_process_computes_what_this_one_does(trained: Trained, measured: Evaluation) -> None:
    from datasets import load_from_disk

    model, tokenizer = serving.load_adapter(Path(trained.adapter.folder))
    rows = serving.model_rows(load_from_disk(trained.data.folder)["test"], tokenizer)
    logits = serving.classify(model, tokenizer, rows, trained.config.evaluation.batch_size)
    here = serving.answers(logits, trained.adapter.fitted)
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
    trained: Trained, measured: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_forks: None
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


def test_a_fresh_process_takes_no_module_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People call such files tasks.py and flows.py for Celery, Invoke or Prefect, and may have a json.py."""
    for name in ("tasks.py", "flows.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('somebody else\\'s')\n")
    monkeypatch.chdir(tmp_path)
    with start_offline("tasks.settings.secrets") as process:  # which does nothing
        assert process.communicate("{}") == ("", "") and process.returncode == 0


def test_a_fresh_process_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module(
        tmp_path,
        "import json, pathlib, sys\n"
        "from huggingface_hub import HfApi\n"
        "from huggingface_hub.errors import OfflineModeIsEnabled\n"
        "try:\n"
        "    HfApi().model_info('gpt2')\n"
        "except OfflineModeIsEnabled:\n"
        "    pathlib.Path(json.load(sys.stdin)['out']).write_text('refused before a connection')\n",
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


def test_the_process_at_hand_is_the_one_that_reads_the_adapter_back(
    trained: Trained, measured: Evaluation, tmp_path: Path
) -> None:
    with reload_at_hand(), reload_at_hand():  # a flow that its command has prepared for
        (ready,) = fresh_process._waiting.values()
        again = measure_adapter(trained.config, trained.data, copied(trained, tmp_path))
        assert ready.returncode == 0 and not fresh_process._waiting
    assert again.scores == measured.scores


def test_a_process_that_was_not_needed_is_gone_afterwards_and_one_that_died_is_replaced(
    trained: Trained, measured: Evaluation, tmp_path: Path
) -> None:
    with reload_at_hand():
        (ready,) = fresh_process._waiting.values()
    assert ready.returncode == -signal.SIGKILL and not fresh_process._waiting
    with reload_at_hand():
        (ready,) = fresh_process._waiting.values()
        ready.kill()
        ready.wait()
        assert measure_adapter(trained.config, trained.data, copied(trained, tmp_path)).scores == measured.scores


def test_a_process_whose_master_is_gone_ends_by_itself() -> None:
    with start_offline(fresh_process.RELOAD) as ready:
        assert ready.stdin
        ready.stdin.close()  # as when the other process is killed
        assert ready.wait(timeout=60) == 0
