"""Data tokenized, kept, reused and known by their content."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pandas as pd
import pytest

from tasks.base.records import PreparedData
from tasks.data import prepare as data
from tasks.data.datacheck import read_check
from tasks.data.prepare import check_training, prepare
from tasks.data.splits import Splits
from tasks.models import foundation as model
from tasks.models.serving import model_rows
from tasks.settings.config import RunConfig
from tasks.settings.fields import InputError
from tasks.settings.loading import load_config, validated
from tasks.sources.hub import HubUnreachable, network_may_recover
from tests.conftest import ROOT
from tests.test_data_splits import film_reviews, fingerprint_of, write


def tokenizer_of(prepared: PreparedData, config: RunConfig) -> Any:
    return model.load_tokenizer(prepared.model, config.model)


# formats, columns, labels


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama", "roberta"])
def test_prepared_columns_are_what_the_tokenizer_gives(
    family: str, reviews: Path, configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = configure(reviews, family)
    prepared = prepare(config, tmp_path)
    tokenizer = tokenizer_of(prepared, config)
    for name, split in datasets.load_from_disk(prepared.folder).items():
        expected = tokenizer(list(split["text"]))
        for column, values in expected.items():
            assert list(split[column]) == values
        assert list(split["length"]) == [len(ids) for ids in expected["input_ids"]]
        source = pd.read_csv(reviews / f"{name}.csv")
        assert list(split["text"]) == list(source["text"][split["row"]])
        assert [prepared.label_names[label] for label in split["labels"]] == list(source["label"][split["row"]])
    assert prepared.truncated == 0
    assert prepared.class_counts == {"train": (24, 24), "validation": (6, 6), "test": (6, 6)}


def test_model_without_pad_token_gets_one_that_it_knows(foundation: Any, reviews: Path, configure: Any) -> None:
    config = configure(reviews)
    files = json.loads((foundation("gpt2") / "tokenizer_config.json").read_text())
    assert files.get("pad_token") is None
    tokenizer = model.load_tokenizer(model.find_model(config), config.model)
    padded = tokenizer(["a", "a longer text"], padding=True)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert padded["attention_mask"][0][0] == 1 and padded["attention_mask"][0][-1] == 0


def test_long_texts_are_cut_and_counted(reviews: Path, configure: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = configure(reviews, max_length=6)
    prepared = prepare(config, tmp_path)
    splits = datasets.load_from_disk(prepared.folder)
    tokenizer = tokenizer_of(prepared, config)
    whole = [len(ids) for split in splits.values() for ids in tokenizer(list(split["text"]))["input_ids"]]
    assert 0 < prepared.truncated < len(whole)
    assert prepared.truncated == sum(length > 6 for length in whole)
    assert max(length for split in splits.values() for length in split["length"]) == 6
    assert [length for split in splits.values() for length in split["full_length"]] == whole


def test_ready_configuration_for_local_files_prepares_what_its_comments_describe(
    foundation: Any, workplace: Path
) -> None:
    texts = film_reviews(10)
    frame = pd.DataFrame({"title": texts["text"], "body": texts["text"][::-1].array, "category": texts["label"]})
    write(frame, workplace / "my-data/train.csv")
    write(frame[:24], workplace / "my-data/test.csv")
    overrides = {"model.name": str(foundation("distilbert")), "data.max_length": "64"}
    config = load_config(ROOT / "configs/local-files.yaml", overrides)
    prepared = prepare(config, workplace / "work")
    assert prepared.class_counts == {"train": (54, 54), "validation": (6, 6), "test": (12, 12)}
    assert len(prepared.notes) == 2 and "no validation split" in prepared.notes[1]


# what the task of these rows does not have

ROWS: dict[str, Any] = {"single_label": [0, 1], "multi_label": [[1, 0], [0, 1]], "regression": [1.5, 2.0]}


def check_task(task: str, values: dict[str, Any]) -> None:
    rows = datasets.DatasetDict(train=datasets.Dataset.from_dict({"label": ROWS[task]}))
    names = ("stars",) if task == "regression" else ("bad", "good")
    check_training(Splits(rows, task, names, (), pd.DataFrame(), names, (), {}), validated(values))


@pytest.mark.parametrize("field", ["training.class_weights", "evaluation.zero_shot_words"])
@pytest.mark.parametrize(("name", "says"), [("goood", "did you mean good?"), ("zebra", "there are bad, good")])
def test_unknown_class_is_refused_with_those_that_there_are(field: str, name: str, says: str) -> None:
    section, _, option = field.partition(".")
    given = {"class_weights": {name: 2}, "zero_shot_words": {name: "two"}}[option]
    with pytest.raises(InputError, match=re.escape(f"{field}: there is no class '{name}'; {says}")):
        check_task("single_label", {section: {option: given}})


@pytest.mark.parametrize("task", ["multi_label", "regression"])
@pytest.mark.parametrize(
    "asked",
    [
        {"references": ["majority", "zero_shot"]},
        {"zero_shot_template": "{text} It is {label}."},
        {"zero_shot_words": {"bad": "awful"}},
    ],
)
def test_zero_shot_asked_for_is_refused_where_a_text_has_not_one_class(task: str, asked: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        check_task(task, {"evaluation": asked})
    says = f"zero_shot is for single_label, and these rows are for {task}; leave it out"
    assert str(refused.value) == f"evaluation.{next(iter(asked))}: {says}"
    check_task("single_label", {"evaluation": asked})


@pytest.mark.parametrize("task", ROWS)
def test_references_that_nobody_chose_are_refused_to_no_task(task: str) -> None:
    check_task(task, {})
    check_task(task, RunConfig().model_dump())  # as a run done again has them, and the form
    check_task(task, {"evaluation": {"references": ["majority"]}})


# kept and reused


def test_nothing_is_tokenized_twice(
    reviews: Path, configure: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(reviews)
    first = prepare(config, tmp_path)
    monkeypatch.setattr(data, "tokenize", lambda *_: pytest.fail("tokenized again"))
    assert prepare(config, tmp_path) == first
    other_run = validated({**config.model_dump(), "training": {"epochs": 9}, "adapter": {"r": 2}, "offline": True})
    assert prepare(other_run, tmp_path) == first


@pytest.mark.parametrize("changes", [{"max_length": 16}, {"split_seed": 1}, {"max_train_rows": 24}, {"family": "bert"}])
def test_what_changes_the_prepared_data_prepares_them_anew(
    changes: dict[str, Any], reviews: Path, configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    first, second = prepare(configure(reviews), tmp_path), prepare(configure(reviews, **changes), tmp_path)
    assert first.folder != second.folder
    assert first == prepare(configure(reviews), tmp_path)


def test_changed_content_is_read_even_when_path_size_and_time_stay(
    configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    path = write(film_reviews(), tmp_path / "reviews.csv")
    first = prepare(configure(path), tmp_path / "work")
    before = path.stat()
    path.write_text(path.read_text().replace("warm", "fine"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = prepare(configure(path), tmp_path / "work")
    assert first.folder != second.folder and first.fingerprint != second.fingerprint
    texts = [text for split in datasets.load_from_disk(second.folder).values() for text in split["text"]]
    assert any("fine" in text for text in texts) and not any("warm" in text for text in texts)


def test_data_are_tokenized_again_by_other_packages(
    reviews: Path, configure: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare(configure(reviews), tmp_path)
    monkeypatch.setattr("tasks.data.prepare.environment_key", lambda: "after an upgrade")
    assert prepare(configure(reviews), tmp_path).folder != before.folder


def test_runs_that_differ_only_by_seed_share_their_data(
    reviews: Path, configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    assert prepare(configure(reviews, seed=1), tmp_path) == prepare(configure(reviews), tmp_path)


def test_reused_data_bring_their_check_along(
    reviews: Path, configure: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(configure(reviews), tmp_path)
    monkeypatch.setattr(data, "make_check", lambda *_: pytest.fail("checked again"))
    again = prepare(configure(reviews), tmp_path)
    assert read_check(configure(reviews), again) == read_check(configure(reviews), first)


def test_broken_off_preparation_leaves_nothing_behind(
    reviews: Path, configure: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(PreparedData, "write", fail)  # the last of its steps
        with pytest.raises(OSError, match="no space"):
            prepare(configure(reviews), tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []
    assert Path(prepare(configure(reviews), tmp_path / "work").folder).is_dir()


# fingerprint


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda frame: frame.replace({"a warm and funny film": "a warm and funny film!"}), id="character"),
        pytest.param(lambda frame: frame.assign(label=["good", *frame["label"][1:]]), id="label"),
        pytest.param(lambda frame: frame[::-1], id="order"),
        pytest.param(lambda frame: frame[1:], id="row-fewer"),
    ],
)
def test_fingerprint_changes_with_what_a_classifier_sees(change: Callable[..., pd.DataFrame], tmp_path: Path) -> None:
    frame = film_reviews()
    for folder, train in (("before", frame), ("after", change(frame))):
        write(train, tmp_path / folder / "train.csv")
        write(film_reviews(8)[72:84], tmp_path / folder / "validation.csv")
        write(film_reviews(8)[84:], tmp_path / folder / "test.csv")
    assert fingerprint_of(tmp_path / "before") != fingerprint_of(tmp_path / "after")


def test_fingerprint_changes_with_the_name_of_a_label(tmp_path: Path) -> None:
    frames = film_reviews(), film_reviews().replace({"good": "fine"})
    assert len({fingerprint_of(write(frame, tmp_path / f"{n}.csv")) for n, frame in enumerate(frames)}) == 2


def test_fingerprint_sees_where_a_text_ends(tmp_path: Path) -> None:
    columns, prints = ("first", "second"), set()
    for first, second in (("ab", "c"), ("a", "bc")):
        frame = film_reviews()
        frame = frame.assign(first=[f"{n} {first}" for n in frame.index], second=[f"{second} {n}" for n in frame.index])
        path = write(frame, tmp_path / f"{first}.csv")
        prints.add(fingerprint_of(path, text_columns=columns))
    assert len(prints) == 2


def test_fingerprint_does_not_depend_on_the_model(
    reviews: Path, configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    first, second = (prepare(configure(reviews, family), tmp_path) for family in ("gpt2", "bert"))
    assert first.fingerprint == second.fingerprint and first.folder != second.folder


def test_fingerprint_of_the_test_rows_depends_on_nothing_else(
    configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    frame, prints = film_reviews(8), []
    for name, train, test in (
        ("first", frame[:36], frame[84:]),
        ("other-train", frame[36:72], frame[84:]),
        ("other-test", frame[:36], frame[83:]),
        ("other-name", frame[:36].replace({"good": "fine"}), frame[84:].replace({"good": "fine"})),
    ):
        write(train, tmp_path / name / "train.csv")
        write(test, tmp_path / name / "test.csv")
        prints.append(prepare(configure(tmp_path / name), tmp_path / "work").test_fingerprint)
    first, other_train, other_test, other_name = prints
    assert first == other_train
    assert len({first, other_test, other_name}) == 3


# slices


def test_slices_are_kept_for_the_test_rows_and_seen_by_no_model(
    configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    plain = film_reviews(8)
    # the name of a column that tokenizers make: it must not become an input
    columns = {"region": ["north", "south", ""] * 32, "token_type_ids": [0, 1] * 48}
    for name, frame in (("plain", plain), ("sliced", plain.assign(**columns))):
        for split, part in (("train", frame[:72]), ("validation", frame[72:84]), ("test", frame[84:])):
            write(part, tmp_path / name / f"{split}.csv")
    config = configure(tmp_path / "sliced", family="bert")
    without, prepared = prepare(configure(tmp_path / "plain", family="bert"), tmp_path), prepare(config, tmp_path)
    assert prepared.slice_columns == ("region", "token_type_ids")
    assert (prepared.fingerprint, prepared.test_fingerprint) == (without.fingerprint, without.test_fingerprint)
    splits, plain_splits = (datasets.load_from_disk(folder) for folder in (prepared.folder, without.folder))
    assert list(splits["test"]["slice region"]) == ["north", "south", "(none)"] * 4
    assert splits["train"].column_names == plain_splits["train"].column_names
    tokenizer = tokenizer_of(prepared, config)
    assert model_rows(splits["test"], tokenizer) == model_rows(plain_splits["test"], tokenizer)


# the task


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (HubUnreachable("the Hub cannot be reached"), True),
        (ConnectionResetError("reset"), True),
        (InputError("data.name: no such file"), False),
        (ZeroDivisionError("a bug"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_the_network_is_worth_another_try(error: Exception, again: bool) -> None:
    assert network_may_recover(None, None, SimpleNamespace(result=lambda raise_on_failure: error)) is again


def test_task_does_what_the_plain_function_does(
    reviews: Path, configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = configure(reviews)
    found = data.find_input.fn(config)
    assert data.prepare_data.fn(config, *found, str(tmp_path)) == prepare(config, tmp_path)
