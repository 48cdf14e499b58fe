"""Rows whose label a person should look at: twelve wrong labels are planted, reviewed, and taken back."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from flows.cli import DONE, USER_MUST_CHANGE, main
from tasks.base.outcomes import RetrainResult
from tasks.data.corrections import CORRECTIONS_FILE
from tasks.studies.review import OURS, Review, out_of_fold, review, review_text
from tasks.tracking.asking import download
from tasks.tracking.versions import find_champion
from tests.conftest import sentences, without_pictures
from tests.test_retrain import NAME, Place, furnished, write

WRONG = tuple(range(5, 240, 20))
"""Rows of train with a planted wrong label: twelve."""


class Story(NamedTuple):
    """A champion that was trained with wrong labels, its rows reviewed, the file filled in, and a challenger."""

    place: Place
    run_id: str
    labels: Path
    review: Review
    before: pd.DataFrame
    """The file as it was written."""
    mark: bytes
    """Its first bytes."""
    better: RetrainResult
    same: RetrainResult
    more: RetrainResult
    """With another setting, too."""


def truth_of(texts: pd.Series) -> list[str]:
    known = dict(zip(*sentences(40), strict=True))
    return [("bad", "good")[known[text]] for text in texts]


@pytest.fixture(scope="module")
def story(foundation: Any, tmp_path_factory: pytest.TempPathFactory, prefect_harness: None) -> Iterator[Story]:
    folder, before = tmp_path_factory.mktemp("review"), Path.cwd()
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    place = furnished(folder, foundation)
    texts, labels = sentences(40)
    given = [1 - label if row in WRONG else label for row, label in enumerate(labels[:240])]
    write(place.data / "train-01.csv", texts[:240], given)
    write(place.data / "validation.csv", texts[240:264], labels[240:264])
    write(place.data / "test.csv", texts[264:], labels[264:])
    place.values["training"] |= {"epochs": 4}
    file = folder / "labels.csv"
    with without_pictures():
        first = place.retrain(force=True)
        reviewed = review(first.run_id, file, 100)
        written, mark = pd.read_csv(file, encoding="utf-8-sig"), file.read_bytes()[:3]
        pd.read_csv(file).assign(corrected_label=truth_of(written["text"])).to_csv(file, index=False, sep=";")
        with_them = {"data": {**place.values["data"], "corrections": str(file)}}
        better = place.retrain(**with_them, force=True)
        same = place.retrain(**with_them)
        more = place.retrain(**with_them, training={"weight_decay": 0.02})
    yield Story(place, first.run_id, file, reviewed, written, mark, better, same, more)
    os.chdir(before)


def test_planted_wrong_labels_are_listed_with_reasons_and_an_empty_column(story: Story) -> None:
    frame = story.before
    assert list(frame) == [*OURS[:3], "text", *OURS[3:]] and frame["corrected_label"].isna().all()
    assert story.mark == b"\xef\xbb\xbf"  # else Excel spoils what is not English
    train = frame[frame["split"] == "train"]
    assert set(WRONG) <= set(train["row"]), "all twelve"
    assert set(train["row"][: len(WRONG)]) == set(WRONG), "and first"
    assert "test" not in set(frame["split"])
    wrong = train[train["row"].isin(WRONG)]
    assert (wrong["given_label"] != truth_of(wrong["text"])).all()
    assert wrong["reason"].str.match("(likely label error: a linear probe, not|confident mistake: the adapter)").all()
    assert wrong["reason"].str.contains("likely label error").sum() >= 6
    assert story.review.rows == {"train": 240, "validation": 24}
    assert story.review.listed == len(frame) >= story.review.label_errors >= 6
    told = review_text(story.review)
    assert f"reviewed  240 train and 24 validation rows of run {story.run_id[:8]}" in told
    assert "--data.corrections labels.csv" in told.replace(f"{story.labels.parent}/", "")


def test_retrain_takes_them_back_and_says_how_many_it_used(story: Story, tmp_path: Path) -> None:
    assert story.better.action == "promoted" and story.better.gate and story.better.run_id
    confirmed = len(story.before) - 12
    told = story.better.gate.corrections or ""
    assert told.startswith("data.corrections: 12 labels corrected (12 train rows)"), told
    assert not confirmed or f", {confirmed} confirmed" in told
    champion, challenger = (
        int(told.partition(start)[2].partition(end)[0].split()[-1])
        for start, end in (("the champion has", " right"), ("learned from them,", "."))
    )
    assert champion <= challenger == 12
    page = download(story.better.run_id, "gate/gate.md", tmp_path)
    assert page and "## Corrected labels" in page.read_text() and "12 labels corrected" in page.read_text()


def test_gate_says_whether_anything_else_differs(story: Story) -> None:
    assert story.better.gate and story.more.gate
    told = story.better.gate.corrections or ""
    assert "Nothing else that is recorded differs from the champion's run: the difference (accuracy " in told
    told = story.more.gate.corrections or ""
    assert "also differs from the champion in training.weight_decay, the corrections that the champion" in told
    assert "is theirs is not known" in told


def test_run_with_corrections_keeps_them_and_is_not_trained_twice(story: Story, tmp_path: Path) -> None:
    assert story.same.action == "skipped"
    assert story.better.run_id
    kept = download(story.better.run_id, f"comparison/{CORRECTIONS_FILE}", tmp_path)
    assert kept and pd.read_csv(kept)["outcome"].value_counts()["corrected"] == 12


def test_next_review_lists_nothing_twice_and_keeps_what_was_said(
    story: Story, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file of corrections is gone: the run has its own copy."""
    hidden = story.labels.rename(tmp_path / "elsewhere.csv")
    try:
        champion = find_champion(NAME)
        assert champion and champion.run_id == story.better.run_id
        monkeypatch.chdir(story.labels.parent)
        assert main(["review", str(champion.run_id)[:8], "next.csv", "--limit", "3", "--json"]) == DONE
    finally:
        hidden.rename(story.labels)
    result = Review.model_validate_json(capsys.readouterr().out.splitlines()[-1])
    assert result.before == len(story.before) and result.listed <= 3
    frame = pd.read_csv(Path("next.csv"), encoding="utf-8-sig")
    carried = frame[frame["reason"] == "looked at before"]
    assert dict(zip(carried["id"], carried["corrected_label"], strict=True)) == dict(
        zip(story.before["id"], truth_of(story.before["text"]), strict=True)
    )
    assert not set(carried["id"]) & set(frame["id"][: result.listed])
    assert frame["corrected_label"][: result.listed].isna().all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-run", "new.csv"], "there is no run 'no-such-run'"),
        (["latest", "labels.csv"], "labels.csv is there already, and may be filled in"),
        (["latest", "new.txt"], "FILE.csv must be a file NAME.csv"),
        (["latest", "nowhere/new.csv"], "FILE.csv must be a file NAME.csv in a folder that is there"),
    ],
)
def test_what_cannot_be_reviewed_is_refused_in_one_line(
    story: Story,
    arguments: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(story.labels.parent)
    content = story.labels.read_bytes()
    assert main(["review", *arguments]) == USER_MUST_CHANGE
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert story.labels.read_bytes() == content and not Path("new.csv").exists()


def test_retrain_refuses_an_unknown_label_before_anything_starts(
    story: Story, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.read_csv(story.labels, sep=";").assign(corrected_label="bda")
    frame.to_csv(file := tmp_path / "wrong.csv", index=False)
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps(story.place.values))
    assert main(["retrain", str(config), "--data.corrections", str(file)]) == USER_MUST_CHANGE
    error = capsys.readouterr().err
    first = frame.iloc[0]
    assert f"row 0 of wrong.csv ({first['split']} row {first['row']}) has the label 'bda'" in error
    assert "did you mean bad?" in error and error.count("\n") == 1


def test_no_row_is_judged_by_what_has_learned_from_it() -> None:
    """Features that name each row: whoever has learned from a row knows its label, and nobody else knows it."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 60)
    table = out_of_fold(np.eye(60), labels, 2, seed=0)
    assert table.shape == (60, 2) and np.allclose(table.sum(1), 1)
    assert abs((table.argmax(1) == labels).mean() - 0.5) < 0.25


def test_class_of_a_single_row_is_not_judged() -> None:
    labels = np.array([0] * 20 + [1] * 20 + [2])
    table = out_of_fold(np.random.default_rng(0).normal(size=(41, 4)), labels, 3, seed=0)
    assert np.isnan(table[40]).all() and not np.isnan(table[:40]).any()
