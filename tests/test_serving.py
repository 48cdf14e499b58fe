"""Text in, probabilities out: the same code and the same numbers in evaluation and in the served model."""

import ast
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks import serving
from tasks.evaluation import read_predictions
from tasks.records import Evaluation
from tests.conftest import Trained


@pytest.fixture(scope="module")
def served(trained: Trained) -> tuple[Any, Any, dict[str, Any]]:
    folder = Path(trained.adapter.folder)
    return *serving.load_adapter(folder), serving.read_settings(folder)


@pytest.fixture(scope="module")
def test_rows(trained: Trained) -> pd.DataFrame:
    return pd.read_csv(Path(trained.config.data.name) / "test.csv")


def numbers(table: pd.DataFrame) -> np.ndarray:
    return table[["probability_bad", "probability_good"]].to_numpy()


# --- what is served is what was measured -----------------------------------------------------------------------------


def test_predictions_on_the_test_texts_are_those_of_the_prediction_file_to_the_bit(
    served: Any, test_rows: pd.DataFrame, measured: Evaluation
) -> None:
    _, _, probabilities = read_predictions(measured.predictions)
    table = serving.predict(*served, test_rows)
    assert (numbers(table) == probabilities).all() and numbers(table).dtype == probabilities.dtype
    assert table["label"].tolist() == [("bad", "good")[i] for i in probabilities.argmax(1)]
    assert (table["probability"] == probabilities.max(1)).all()
    assert probabilities.std() > 0.01


def test_the_file_imports_nothing_of_the_project() -> None:
    tree = ast.parse(Path(serving.__file__).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import is one of the project"
            imported.add(str(node.module).split(".")[0])
    assert {"torch", "peft", "transformers", "mlflow"} <= imported
    assert imported <= {*sys.stdlib_module_names, "mlflow", "numpy", "pandas", "peft", "torch", "transformers"}


# --- any frame a caller may send -------------------------------------------------------------------------------------


def test_the_answer_has_a_label_its_probability_and_one_column_for_each_class(
    served: Any, test_rows: pd.DataFrame
) -> None:
    table = serving.predict(*served, test_rows)
    assert list(table) == ["label", "probability", "probability_bad", "probability_good"]
    assert numbers(table).sum(1) == pytest.approx(1)
    for _, row in table.iterrows():
        assert row["probability"] == row[f"probability_{row['label']}"] >= 0.5


def test_a_missing_column_is_named(served: Any) -> None:
    with pytest.raises(ValueError, match=r"the input needs the column text$"):
        serving.predict(*served, pd.DataFrame({"review": ["fine"]}))


@pytest.mark.parametrize("nothing", [None, float("nan"), pd.NA])
def test_a_missing_text_is_refused_with_its_row(served: Any, nothing: object) -> None:
    with pytest.raises(ValueError, match="column text has no text in row 1"):
        serving.predict(*served, pd.DataFrame({"text": ["fine", nothing, "dull"]}, index=[7, 8, 9]))


def test_no_rows_give_no_rows_with_the_same_columns(served: Any, test_rows: pd.DataFrame) -> None:
    table = serving.predict(*served, test_rows[:0])
    assert len(table) == 0 and list(table) == list(serving.predict(*served, test_rows[:1]))


def test_a_single_row_is_predicted_as_among_others(served: Any, test_rows: pd.DataFrame) -> None:
    together = serving.predict(*served, test_rows)
    for i in range(3):
        alone = serving.predict(*served, test_rows[i : i + 1])
        assert numbers(alone)[0] == pytest.approx(numbers(together)[i], abs=1e-6)
        assert alone.index.tolist() == [i]


def test_rows_keep_their_order_and_index(served: Any, test_rows: pd.DataFrame) -> None:
    shuffled = test_rows.assign(extra=1).sample(frac=1, random_state=3)
    assert shuffled.index.tolist() != test_rows.index.tolist()
    there, back = serving.predict(*served, shuffled), serving.predict(*served, test_rows)
    assert there.index.tolist() == shuffled.index.tolist()
    assert numbers(there.sort_index()) == pytest.approx(numbers(back), abs=1e-6)


@pytest.mark.parametrize("text", ["", "   ", "映画は最高 🎬", "Größe\u0000ß", "\ud800", "a" * 10_000, "x\ny\tz", 42])
def test_any_text_gets_an_answer_alone_and_among_others(served: Any, text: object) -> None:
    if text == "\ud800":  # half a surrogate pair is no text: tokenizers refuse it, and so do we, loudly
        with pytest.raises((TypeError, UnicodeError, ValueError)):
            serving.predict(*served, pd.DataFrame({"text": [text]}))
        return
    alone = serving.predict(*served, pd.DataFrame({"text": [text]}))
    among = serving.predict(*served, pd.DataFrame({"text": ["a warm and funny film", text, "dull"]}))
    assert np.isfinite(numbers(alone)).all() and np.isfinite(numbers(among)).all()
    assert numbers(among)[1] == pytest.approx(numbers(alone)[0], abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_logits_do_not_depend_on_the_batch_size(served: Any, test_rows: pd.DataFrame, batch_size: int) -> None:
    model, tokenizer, _ = served
    rows = tokenizer(test_rows["text"].tolist())
    by_eight = serving.classify(model, tokenizer, rows, 8)
    assert serving.classify(model, tokenizer, rows, batch_size).numpy() == pytest.approx(by_eight.numpy(), abs=1e-5)


def test_a_pair_of_texts_is_kept_apart_with_and_without_a_separator(foundation: Any) -> None:
    from transformers import AutoTokenizer

    pair = [["a film", "dull"], ["one year", "two"]]
    bert, gpt = (AutoTokenizer.from_pretrained(foundation(family)) for family in ("bert", "gpt2"))
    assert serving.model_texts(pair, bert) is pair
    assert serving.model_texts(pair, gpt) == [["a film\none year", "dull\ntwo"]]
    assert serving.model_texts(pair[:1], gpt) == pair[:1]


# --- reading it ------------------------------------------------------------------------------------------------------


def test_the_foundation_model_may_lie_elsewhere(trained: Trained, served: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.adapter.folder, tmp_path / "adapter")
    moved = shutil.copytree(trained.config.model.name, tmp_path / "moved")
    settings = serving.read_settings(folder)
    settings["base_model"]["name"] = str(tmp_path / "gone")
    (folder / serving.SETTINGS).write_text(json.dumps(settings))
    frame = pd.DataFrame({"text": ["a warm and funny film", "dull"]})
    model, tokenizer = serving.load_adapter(folder, base_model=str(moved))
    assert serving.predict(model, tokenizer, settings, frame).equals(serving.predict(*served, frame))
    with pytest.raises(OSError, match="gone"):
        serving.load_adapter(folder, local_files_only=True)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickled_adapter_is_refused_and_not_executed(trained: Trained, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.adapter.folder, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Malicious(tmp_path / "executed")))
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors"):
        serving.load_adapter(folder)
    assert not (tmp_path / "executed").exists()


def test_reading_does_not_depend_on_the_random_state(trained: Trained, served: Any, test_rows: pd.DataFrame) -> None:
    import torch

    torch.manual_seed(31337)
    folder = Path(trained.adapter.folder)
    again = serving.predict(*serving.load_adapter(folder), serving.read_settings(folder), test_rows)
    assert again.equals(serving.predict(*served, test_rows))
