"""The cases of users, each in its right form: read as `finetune` and as `predict` read them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tasks.data.splits import Splits, read_splits
from tasks.inference.rows import find_rows, notes_of, read_rows
from tasks.settings.config import PredictionConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import validated
from tasks.sources.hub import find
from tasks.sources.reading import check_early, load
from tests.conftest import ROOT

CASES = ROOT.parent / "shared/cases"

pytestmark = pytest.mark.hub


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    if not CASES.is_dir():
        pytest.skip("no ../shared/cases")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def read(path: Path, **fields: Any) -> Splits:
    """What a run trains and is tested on."""
    config = validated({"data": {"name": str(path), **fields}}).data
    check_early(config)
    return read_splits(find("dataset", str(path), "main", offline=True), config)


def labelled(splits: Splits) -> dict[str, str]:
    return {
        text: splits.label_names[label]
        for split in splits.datasets.values()
        for text, label in zip(split["text"], split["label"], strict=True)
    }


def predicted_on(path: Path, **fields: Any) -> list[str]:
    """The texts that `predict` would label."""
    asked = PredictionConfig(model="m", input=str(path), output="out.csv", offline=True, **fields)
    rows = list(read_rows(asked, find_rows(asked), ("text",)))
    assert not any(row.fault for row in rows)
    return [row.texts[0] for row in rows]


def refusal(path: Path, **fields: Any) -> str:
    with pytest.raises(InputError) as refused:
        read(path, **fields)
    return str(refused.value)


def rows_of(name: str) -> list[dict[str, str]]:
    return pd.read_csv(CASES / name, dtype=str, keep_default_na=False).to_dict("records")


@pytest.mark.parametrize("name", ["leading-zeros.csv", "icd-codes.csv"])
def test_labels_of_a_csv_are_what_the_file_says(name: str, tmp_path: Path) -> None:
    rows = rows_of(name)
    expected = {row["text"]: row["label"] for row in rows}
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from_csv, from_jsonl = read(CASES / name), read(tmp_path / "same.jsonl")
    assert labelled(from_csv) == labelled(from_jsonl) == expected
    assert from_csv.label_names == from_jsonl.label_names == tuple(sorted(set(expected.values())))
    assert predicted_on(CASES / name) == predicted_on(tmp_path / "same.jsonl") == [row["text"] for row in rows]


def test_leading_zeros_of_jsonl_are_kept() -> None:
    assert read(CASES / "leading-zeros.jsonl").label_names == ("0110", "0111", "0210")


def test_column_that_nobody_uses_stops_nothing() -> None:
    splits = read(CASES / "late-word-in-unused-column.csv", max_train_rows=200)
    assert splits.label_names == ("neg", "pos") and len(splits.datasets["train"]) == 200


def test_test_file_without_the_label_column_is_named() -> None:
    assert "test.csv has no column 'label'; it has text" in refusal(CASES / "test-without-label")
    assert len(predicted_on(CASES / "test-without-label", split="test")) == 40


@pytest.mark.parametrize("name", ["semicolon.csv", "reviews.tsv", "reviews.csv.gz", "reviews.ndjson"])
def test_formats_that_people_have_are_read(name: str) -> None:
    splits = read(CASES / name)
    said = {"semicolon.csv": "semicolon.csv has ';'", "reviews.tsv": "reviews.tsv has a tab"}.get(name)
    assert splits.label_names == ("0", "1") and len(labelled(splits)) == 120
    assert labelled(splits) == labelled(read(CASES / "reviews.tsv"))
    assert predicted_on(CASES / name) == predicted_on(CASES / "reviews.tsv")
    asked = PredictionConfig(model="m", input=str(CASES / name), output="out.csv", offline=True)
    for notes in (splits.notes, notes_of(asked, find_rows(asked))):
        assert any(said in note for note in notes) if said else not any("columns" in note for note in notes)


def test_json_that_pandas_writes_by_columns_is_refused_in_one_line() -> None:
    said = refusal(CASES / "pandas-columns.json")
    assert 'orient="records"' in said and len(said) < 300


def test_string_views_are_texts() -> None:
    assert len(labelled(read(CASES / "string-view.parquet"))) == len(predicted_on(CASES / "string-view.parquet")) > 0


def test_all_files_of_a_folder_are_used() -> None:
    splits = read(CASES / "three-files")
    assert sum(map(len, splits.datasets.values())) == len(predicted_on(CASES / "three-files")) == 300
    assert "train: bus_tickets.csv, train_tickets.csv, tram_tickets.csv" in splits.notes


def test_growing_folder_is_trained_on_whole(tmp_path: Path) -> None:
    def rows() -> int:
        config = validated({"data": {"name": str(tmp_path / "data")}}).data
        return len(load(find("dataset", config.name, "main", offline=True), config)["train"])

    (tmp_path / "data").mkdir()
    contents = []
    for name, expected in (("january", 100), ("february", 200), ("train-march", 300)):
        shutil.copyfile(CASES / f"growing-folder/{name}.csv", tmp_path / f"data/{name}.csv")
        contents.append(find("dataset", str(tmp_path / "data"), "main", offline=True).content)
        assert rows() == expected
    assert len(set(contents)) == 3  # which is how retrain knows that there is something new


def test_eval_is_validation_where_there_is_a_test() -> None:
    splits = read(CASES / "eval-and-test")
    assert {role: len(split) for role, split in splits.datasets.items()} == {"train": 160, "validation": 40, "test": 50}
    assert "train: train.csv; validation: eval.csv; test: test.csv" in splits.notes
