"""Labels that people have corrected: taken back by text, whatever became of the rows, or refused by row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from tasks.base.work import work_folder
from tasks.data.corrections import CORRECTIONS_FILE, ids_of
from tasks.data.prepare import find_data, prepare
from tasks.data.splits import Splits, read_splits
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tests.test_data_splits import film_reviews, read, write

Configure = Callable[..., RunConfig]


def reviewed(splits: Splits, answers: dict[tuple[str, int], str], file: Path, **more: list[Any]) -> Path:
    """A file as `peft-flow review` writes it: every row of train and validation, and these answers by split and row."""
    config = RunConfig().data
    rows = [
        (one, split, row, text, answers.get((split, row)))
        for split in splits.datasets
        for one, row, text in zip(
            ids_of(splits.datasets[split], config),
            splits.datasets[split]["row"],
            splits.datasets[split]["text"],
            strict=True,
        )
    ]
    frame = pd.DataFrame(rows, columns=["id", "split", "row", "text", "corrected_label"])
    return write(frame.assign(**more), file)


def labels(splits: Splits, split: str) -> dict[int, str]:
    """By place in the source."""
    rows = splits.datasets[split]
    return {row: splits.label_names[label] for row, label in zip(rows["row"], rows["label"], strict=True)}


def other(label: str) -> str:
    return {"good": "bad", "bad": "good"}[label]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(film_reviews(10), tmp_path / "reviews.csv")


def counts_of(splits: Splits) -> Any:
    assert splits.corrections
    return splits.corrections.counts


def test_corrected_labels_are_used_and_the_same_label_confirms(source: Path, tmp_path: Path) -> None:
    before = read(source)
    train, validation = labels(before, "train"), labels(before, "validation")
    (one, two), seen = list(train)[:2], next(iter(validation))
    answers = {("train", one): other(train[one]), ("train", two): train[two]}
    answers[("validation", seen)] = other(validation[seen])
    after = read(source, corrections=str(reviewed(before, answers, tmp_path / "labels.csv")))
    counts = counts_of(after)
    assert (counts.used, counts.confirmed, counts.in_test, counts.unmatched) == (2, 1, 0, ())
    assert counts.corrected == {"train": 1, "validation": 1} and counts.open == 120 - 3
    assert labels(after, "train") == train | {one: other(train[one])}
    assert labels(after, "validation") == validation | {seen: other(validation[seen])}
    assert "2 labels corrected (1 train row and 1 validation row), 1 confirmed, 117 not filled in" in after.notes[-1]


def test_which_rows_are_cut_and_drawn_stays_as_it_was(source: Path, tmp_path: Path) -> None:
    before = read(source, max_train_rows=60)
    answers = {("train", row): other(label) for row, label in list(labels(before, "train").items())[:20]}
    file = reviewed(before, answers, tmp_path / "labels.csv")
    after = read(source, max_train_rows=60, corrections=str(file))
    for split in ("train", "validation", "test"):
        assert list(after.datasets[split]["row"]) == list(before.datasets[split]["row"])
    assert counts_of(after).used == 20


def test_test_rows_keep_their_labels(source: Path, tmp_path: Path) -> None:
    before = read(source)
    test, train = labels(before, "test"), labels(before, "train")
    row = next(iter(train))
    answers = {("test", place): other(label) for place, label in test.items()} | {("train", row): other(train[row])}
    after = read(source, corrections=str(reviewed(before, answers, tmp_path / "labels.csv")))
    assert labels(after, "test") == test
    assert counts_of(after).in_test == len(test) and counts_of(after).used == 1
    assert f"{len(test)} not used because they are test rows" in after.notes[-1]


def test_correction_finds_its_text_in_data_that_have_grown_and_names_a_text_that_is_gone(tmp_path: Path) -> None:
    frame, folder = film_reviews(10), tmp_path / "data"
    write(frame[:120], folder / "train-b.csv")
    write(film_reviews(11)[120:], folder / "test.csv")
    before = read(folder)
    train = labels(before, "train")
    stays, goes = list(train)[3], list(train)[5]
    answers = {("train", row): other(train[row]) for row in (stays, goes)}
    file = reviewed(before, answers, tmp_path / "labels.csv")
    text = {
        row: text for row, text in zip(before.datasets["train"]["row"], before.datasets["train"]["text"], strict=True)
    }
    changed = frame[:120].replace({"text": {text[goes]: "another text altogether"}})
    write(changed, folder / "train-b.csv")
    write(film_reviews(13)[132:], folder / "train-a.csv")  # comes before the rows that were there
    after = read(folder, corrections=str(file))
    counts = counts_of(after)
    assert counts.used == 1 and len(counts.unmatched) == 1 and text[goes][:20] in counts.unmatched[0]
    rows = {row["text"]: after.label_names[row["label"]] for split in ("train", "validation")
            for row in after.datasets[split]}  # fmt: skip
    assert rows[text[stays]] == other(train[stays])
    assert "1 is about a text that no row has any more (row " in after.notes[-1]


def test_every_row_of_a_text_is_corrected(tmp_path: Path) -> None:
    frame = film_reviews(10)
    twice = pd.concat([frame, frame[:1]])
    folder = tmp_path / "data"
    write(twice, folder / "train.csv"), write(film_reviews(11)[120:], folder / "test.csv")
    write(film_reviews(12)[132:], folder / "validation.csv")
    before = read(folder)
    first = labels(before, "train")[0]
    file = reviewed(before, {("train", 0): other(first), ("train", 120): other(first)}, tmp_path / "labels.csv")
    after = read(folder, corrections=str(file))
    assert counts_of(after).used == 1 and counts_of(after).corrected == {"train": 2}
    assert labels(after, "train")[0] == labels(after, "train")[120] == other(first)


@pytest.mark.parametrize("kind", ["semicolons.csv", "bom.csv", "labels.xlsx", "labels.jsonl", "labels.parquet"])
def test_file_that_a_spreadsheet_has_saved_is_read_all_the_same(source: Path, kind: str, tmp_path: Path) -> None:
    before = read(source)
    row, label = next(iter(labels(before, "train").items()))
    frame = pd.read_csv(reviewed(before, {("train", row): other(label)}, tmp_path / "labels.csv"))
    file = tmp_path / kind
    if kind == "semicolons.csv":
        frame.to_csv(file, index=False, sep=";")
    elif kind == "bom.csv":
        frame.to_csv(file, index=False, encoding="utf-8-sig")
    elif kind == "labels.xlsx":
        frame.to_excel(file, index=False)
    else:
        write(frame, file)
    assert counts_of(read(source, corrections=str(file))).used == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda frame: frame.drop(columns="corrected_label"), ("no column 'corrected_label'", "peft-flow review")),
        (lambda frame: frame.drop(columns="id"), ("no column 'id'", "peft-flow review")),
        (lambda frame: frame.assign(corrected_label=None), ("no row of labels.csv has a corrected_label",)),
        (lambda frame: frame.assign(id="sha256:0000000000000000")[:1], ("none of its 1 correction is about a text",)),
        (lambda frame: frame.assign(id=None), ("row 0 of labels.csv (train row", "no id")),
        (
            lambda frame: frame.assign(corrected_label="godo"),
            ("row 0 of labels.csv (train row", "'godo'", "did you mean good?"),
        ),
        (
            lambda frame: pd.concat([frame[:1], frame[:1].assign(corrected_label="bad")]),
            ("rows 0 and 1 of labels.csv are about the same text and say 'good' and 'bad'",),
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_row(
    source: Path, change: Callable[[pd.DataFrame], pd.DataFrame], says: tuple[str, ...], tmp_path: Path
) -> None:
    before = read(source)
    answers = {("train", row): "good" for row in labels(before, "train")}
    file = reviewed(before, answers, tmp_path / "labels.csv")
    change(pd.read_csv(file)).to_csv(file, index=False)
    with pytest.raises(InputError) as refused:
        read(source, corrections=str(file))
    assert str(refused.value).startswith("data.corrections: ")
    assert all(part in str(refused.value) for part in says), refused.value


def test_file_in_another_encoding_is_refused_by_row(source: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(b"id,text,corrected_label\nsha256:1,caf\xe9,good\n")
    with pytest.raises(InputError, match=r"data.corrections: .*labels.csv: row 0 is not UTF-8 in column 'text'"):
        read(source, corrections=str(file))


def test_changed_id_is_named_and_the_others_are_used(source: Path, tmp_path: Path) -> None:
    before = read(source)
    answers = {("train", row): other(label) for row, label in list(labels(before, "train").items())[:3]}
    frame = pd.read_csv(file := reviewed(before, answers, tmp_path / "labels.csv"))
    filled = frame.index[frame["corrected_label"].notna()]
    frame.loc[filled[1], "id"] = "sha256:00"
    frame.to_csv(file, index=False)
    counts = counts_of(read(source, corrections=str(file)))
    assert counts.used == 2 and len(counts.unmatched) == 1
    assert counts.unmatched[0].startswith(f"row {filled[1]} '")


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_other_tasks_are_refused(task: str, tmp_path: Path) -> None:
    frame = film_reviews(10)
    frame["label"] = [f"a|{label}" for label in frame["label"]] if task == "multi_label" else range(len(frame))
    source = write(frame, tmp_path / "data.csv")
    file = reviewed(read(source, task=task), {("train", 0): "good"}, tmp_path / "labels.csv")
    with pytest.raises(InputError, match=f"data.corrections: rows with one class each .* these are for {task}"):
        read(source, task=task, corrections=str(file))


def test_corrections_make_another_run_wherever_their_file_lies(configure: Configure, tmp_path: Path) -> None:
    source = write(film_reviews(10), tmp_path / "reviews.csv")
    plain = configure(source)
    before = prepare(plain, tmp_path / "work")
    splits = read_splits(find_data(plain), plain.data)
    row, label = next(iter(labels(splits, "train").items()))
    file = reviewed(splits, {("train", row): other(label)}, tmp_path / "labels.csv")
    config = configure(source, corrections=str(file))
    after = prepare(config, tmp_path / "work")
    assert after.fingerprint != before.fingerprint and after.test_fingerprint == before.test_fingerprint
    assert after.corrections and after.corrections.used == 1
    kept = pd.read_csv(Path(after.folder) / CORRECTIONS_FILE)
    assert kept["outcome"].tolist() == ["corrected"]
    moved = configure(source, corrections=str(file.rename(tmp_path / "moved.csv")))
    assert prepare(moved, tmp_path / "work").folder == after.folder
    places = {work_folder(one, find_data(one)) for one in (plain, moved)}
    assert len(places) == 2
    # what the run keeps is itself a file of corrections that gives the same rows
    again = prepare(configure(source, corrections=str(Path(after.folder) / CORRECTIONS_FILE)), tmp_path / "work")
    assert again.fingerprint == after.fingerprint
    assert datasets.load_from_disk(after.folder)["train"].features["labels"].names == ["bad", "good"]
