"""A test set that stays while the data grow: the same rows, and none of their texts in training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from tasks.base.records import PreparedData
from tasks.base.work import work_folder
from tasks.data.datacheck import read_check
from tasks.data.frozen import frozen_rows, in_our_columns
from tasks.data.prepare import find_data, find_input, prepare
from tasks.data.splits import Splits, read_splits
from tasks.evaluation.references import measurement_key
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.sections import DataConfig
from tests.test_data_splits import film_reviews, write

Configure = Callable[..., RunConfig]


def read(config: RunConfig) -> Splits:
    return read_splits(find_data(config), config.data)


def frozen(config: RunConfig, prepared: PreparedData, path: Path) -> Path:
    """The test rows as a run logs them."""
    frozen_rows(config, prepared).to_parquet(path, index=False)
    return path


def frame_of(prepared: PreparedData) -> pd.DataFrame:
    return datasets.load_from_disk(prepared.folder)["test"].to_pandas()


@pytest.mark.parametrize("column", ["label", "stars"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_frozen_test_set_is_the_same_rows_after_the_data_have_grown(
    kind: str, column: str, configure: Configure, tmp_path: Path
) -> None:
    frame = film_reviews(20).rename(columns={"label": column})
    frame = frame.assign(region=["north", "south", "east"] * 80, year=[1990 + row % 4 for row in range(240)])
    write(frame[:120], tmp_path / f"data/b.{kind}")
    config = configure(tmp_path / "data", label_column=column)
    first = prepare(config, tmp_path / "work")
    file = frozen(config, first, tmp_path / "test.parquet")
    write(frame[120:], tmp_path / f"data/a.{kind}")  # comes before the rows that were there
    config = configure(tmp_path / "data", label_column=column, test_file=str(file))
    later = prepare(config, tmp_path / "work")
    assert later.test_fingerprint == first.test_fingerprint and later.fingerprint != first.fingerprint
    assert later.slice_columns == first.slice_columns == ("region", "year")
    pd.testing.assert_frame_equal(frame_of(later), frame_of(first))
    assert later.rows("train") + later.rows("validation") == 240 - first.rows("test")
    assert frozen(config, later, tmp_path / "again.parquet").read_bytes() == file.read_bytes()


def test_rows_of_a_limited_test_set_are_the_same_too(configure: Configure, tmp_path: Path) -> None:
    write(film_reviews(20), tmp_path / "data/train.csv")
    config = configure(tmp_path / "data", max_test_rows=8)
    first = prepare(config, tmp_path / "work")
    file = frozen(config, first, tmp_path / "test.parquet")
    later = prepare(configure(tmp_path / "data", max_test_rows=8, test_file=str(file)), tmp_path / "work")
    assert later.test_fingerprint == first.test_fingerprint
    assert list(frame_of(later)["row"]) == list(frame_of(first)["row"])


def test_texts_of_test_rows_are_excluded_from_training_whatever_their_case_and_punctuation(
    configure: Configure, tmp_path: Path
) -> None:
    frame = film_reviews(10)
    test, new = frame[:12], frame[12:]
    write(pd.concat([new[:84], test[:3]]), tmp_path / "data/train.csv")
    shouted = test[3:5].assign(text=test["text"][3:5].str.upper().str.replace(" ", "  ") + "!")
    write(pd.concat([shouted, new[84:]]), tmp_path / "data/validation.csv")
    write(film_reviews(11)[120:], tmp_path / "data/test.csv")
    config = configure(tmp_path / "data", test_file=str(write(test, tmp_path / "frozen.csv")))
    prepared = prepare(config, tmp_path / "work")
    assert {split: prepared.rows(split) for split in ("train", "validation", "test")} == {
        "train": 84, "validation": 24, "test": 12
    }  # fmt: skip
    splits = datasets.load_from_disk(prepared.folder)
    assert list(splits["test"]["text"]) == list(test["text"]) and list(splits["test"]["row"]) == list(range(12))
    assert list(splits["train"]["text"]) == list(new["text"][:84])
    assert list(splits["validation"]["row"]) == list(range(2, 26))  # their places in the file are not changed
    told = "excluded because their text is in data.test_file: 3 train rows, 2 validation rows"
    assert prepared.notes[1:] == ("not used: the split test", f"12 test rows from data.test_file; {told}")
    check = read_check(config, prepared)
    assert check.kept_out == {"train": 3, "validation": 2}
    assert not any("in train" in warning for warning in check.warnings)
    assert f"\n{told.capitalize()}.\n" in (Path(prepared.folder) / "data_check.md").read_text()


def test_without_a_test_file_nothing_is_excluded(reviews: Path, configure: Configure, tmp_path: Path) -> None:
    config = configure(reviews)
    prepared = prepare(config, tmp_path)
    assert read_check(config, prepared).kept_out == {}
    assert "excluded because" not in (Path(prepared.folder) / "data_check.md").read_text().lower()


def test_only_validation_is_cut_from_train(configure: Configure, tmp_path: Path) -> None:
    path = write(film_reviews(10), tmp_path / "reviews.csv")
    splits = read(configure(path, test_file=str(write(film_reviews(11)[120:], tmp_path / "frozen.csv"))))
    assert {name: len(split) for name, split in splits.datasets.items()} == {"train": 108, "validation": 12, "test": 12}
    assert any(note.startswith("no validation split") for note in splits.notes)
    assert not any(note.startswith("no test split") for note in splits.notes)


def test_own_test_split_may_have_any_name(configure: Configure, tmp_path: Path) -> None:
    path = write(film_reviews(10), tmp_path / "reviews.csv")
    file = write(film_reviews(11)[120:], tmp_path / "frozen.csv")
    assert len(read(configure(path, test_split="held_out", test_file=str(file))).datasets["test"]) == 12


@pytest.mark.parametrize("names", [["bad", "good"], ["good", "bad"]])
def test_class_names_of_the_file_are_found_among_those_of_the_training_rows(
    names: list[str], configure: Configure, tmp_path: Path
) -> None:
    frame = film_reviews(11)
    path = write(frame[:120], tmp_path / "reviews.csv")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    test = frame[120:].reset_index(drop=True)
    datasets.Dataset.from_pandas(test, features=features).to_parquet(str(tmp_path / "frozen.parquet"))
    splits = read(configure(path, test_file=str(tmp_path / "frozen.parquet")))
    assert [splits.label_names[label] for label in splits.datasets["test"]["label"]] == list(test["label"])


@pytest.mark.parametrize(
    ("theirs", "label", "ours", "our_label", "expected"),
    [
        (["text"], "label", ("text",), "label", ["row", "text", "label", "region"]),
        (["text"], "label", ("review",), "stars", ["row", "review", "stars", "region"]),
        (["text"], "stars", ("text",), "region", ["row", "text", "region"]),
        (["one", "two"], "label", ("two", "one"), "label", ["row", "one", "two", "label", "region"]),
        (["one", "two"], "label", ("first", "second"), "label", ["row", "first", "second", "label", "region"]),
    ],
)
def test_rows_of_another_run_get_our_columns(
    theirs: list[str], label: str, ours: tuple[str, ...], our_label: str, expected: list[str]
) -> None:
    rows = pd.DataFrame([range(3 + len(theirs))], columns=["row", *theirs, label, "region"])
    renamed = in_our_columns(rows, theirs, DataConfig(text_columns=ours, label_column=our_label))
    assert list(renamed) == expected and renamed.iloc[0].tolist() == list(range(len(expected)))


# what the run is known by


def test_content_of_the_file_is_part_of_what_a_run_is_and_its_path_is_not(
    reviews: Path, configure: Configure, workplace: Path
) -> None:
    rows = film_reviews(8)[84:]
    files = (
        write(rows, workplace / "a/test.csv"),
        write(rows, workplace / "b.csv"),
        write(rows[1:], workplace / "c.csv"),
    )
    found: dict[str, list[Any]] = {"work": [], "prepared": [], "measured": []}
    for file in files:
        config = configure(reviews, test_file=str(file))
        prepared = prepare(config, workplace / "work")
        found["work"].append(work_folder(config, *find_input.fn(config)))
        found["prepared"].append(prepared)
        # of the fingerprint alone it would be known
        found["measured"].append(
            measurement_key("tfidf", config, prepared.model_copy(update={"fingerprint": ""}), None)
        )
    found["work"].append(work_folder(configure(reviews), *find_input.fn(configure(reviews))))
    for same, again, other, *without in found.values():
        assert same == again != other
        assert same not in without


# what is refused


def refusal(config: RunConfig) -> str:
    with pytest.raises(InputError) as refused:
        read(config)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_nothing_left_to_train_on_is_refused(configure: Configure, tmp_path: Path) -> None:
    path = write(film_reviews(), tmp_path / "reviews.csv")
    assert refusal(configure(path, test_file=str(path))) == (
        "data.test_file: all 72 train rows have the text of a test row; give other train rows"
    )


def test_class_that_is_excluded_whole_is_refused(configure: Configure, tmp_path: Path) -> None:
    frame = film_reviews()
    frame.loc[:5, "label"] = "so-so"
    path = write(frame, tmp_path / "reviews.csv")
    test = write(frame[:12], tmp_path / "frozen.csv")
    assert "label 'so-so' in test never appears in train (test row 0)" in refusal(configure(path, test_file=str(test)))


@pytest.mark.parametrize("rows", [[1] * 12, [-1, *range(11)], ["a", *range(11)], [0.5, *range(11)], [None, *range(11)]])
def test_row_numbers_that_say_no_place_are_refused(rows: list[Any], configure: Configure, tmp_path: Path) -> None:
    path = write(film_reviews(), tmp_path / "reviews.csv")
    test = write(film_reviews(7)[72:].assign(row=[str(row) for row in rows]), tmp_path / "frozen.csv")
    said = refusal(configure(path, test_file=str(test)))
    assert said.startswith("data.test_file: the column 'row' of ") and "different whole number" in said


def test_row_numbers_of_a_csv_are_numbers(configure: Configure, tmp_path: Path) -> None:
    path = write(film_reviews(), tmp_path / "reviews.csv")
    test = write(film_reviews(7)[72:].assign(row=range(50, 62)), tmp_path / "frozen.csv")
    assert list(read(configure(path, test_file=str(test))).datasets["test"]["row"]) == list(range(50, 62))


def test_unknown_label_is_not_blamed_on_the_texts_that_would_be_excluded(configure: Configure, tmp_path: Path) -> None:
    frame = film_reviews()
    path = write(frame, tmp_path / "reviews.csv")
    test = write(frame[:12].assign(label=["so-so", *frame["label"][1:12]]), tmp_path / "frozen.csv")
    said = refusal(configure(path, test_file=str(test)))
    assert "label 'so-so' is not one of bad, good (test row 0)" in said and "Leakage" not in said


def test_file_without_labels_is_refused_with_what_to_do(configure: Configure, tmp_path: Path) -> None:
    path = write(film_reviews(), tmp_path / "reviews.csv")
    test = write(film_reviews(7)[72:].assign(label=-1), tmp_path / "frozen.csv")
    said = refusal(configure(path, test_file=str(test)))
    assert said.startswith("data.label_column: the rows of data.test_file are not labelled: 12 rows with ")
    assert said.endswith("label the rows of data.test_file, or leave it out")
    test = write(film_reviews(7)[72:].drop(columns="label"), tmp_path / "bare.csv")
    said = refusal(configure(path, test_file=str(test)))
    assert said.endswith(
        "bare.csv has no column 'label'; it has text; label the rows of data.test_file, or leave it out"
    )


def test_rows_with_label_columns_keep_them_by_name() -> None:
    rows = pd.DataFrame({"row": [4], "said": ["a film"], "loud": [1], "long": [0], "shop": ["north"]})
    data = DataConfig.model_validate({"text_columns": ["text"], "label_columns": ["loud", "long"]})
    ours = in_our_columns(rows, ["said"], data)
    assert list(ours) == ["row", "text", "loud", "long", "shop"] and ours.iloc[0].tolist() == [
        4,
        "a film",
        1,
        0,
        "north",
    ]
    with pytest.raises(InputError, match="have no weight; draw new ones with --refresh_test"):
        in_our_columns(rows, ["said"], data.model_copy(update={"label_columns": ("loud", "weight")}))
