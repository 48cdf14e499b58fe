"""Registered models as a table: which version is in use, how good it is, since when."""

import json
from pathlib import Path

import pytest

from flows.cli import DONE, main
from tasks.registry.decisions import promote
from tasks.registry.overview import chosen_models, models_text
from tests.conftest import register

SCORES = [{"tuned/accuracy": value, "tuned/accuracy_low": 0.5, "tuned/accuracy_high": 1.0} for value in (0.75, 0.875)]


@pytest.fixture(scope="module")
def folder(store_made_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as place:
        place.chdir(folder)
        place.delenv("MLFLOW_TRACKING_URI", raising=False)
        register(folder, "reviews", 2, SCORES)
        register(folder, "Mails", 1, SCORES[1:])
        register(folder, "idle", 1)
        promote("reviews", "1", "the first", "anna")
        promote("Mails", "1", "the first", "gate")
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_each_model_has_the_score_of_its_champion() -> None:
    idle, mails, reviews = chosen_models([], "name")
    assert (idle.name, idle.champion, idle.score, idle.since) == ("idle", None, None, None)
    assert (reviews.versions, reviews.champion, reviews.by) == (2, "1", "anna")
    assert reviews.score and reviews.score.value == 0.75 and mails.score and mails.score.value == 0.875
    assert reviews.since and reviews.since >= reviews.registered
    assert "| reviews | 2        | 1        | accuracy 0.750 (0.500-1.000) | 20" in models_text([reviews])


@pytest.mark.parametrize(
    ("filters", "sort", "found"),
    [
        ([], "score", ["Mails", "reviews", "idle"]),
        ([], "registered", ["idle", "Mails", "reviews"]),
        (["E"], "name", ["idle", "reviews"]),
        (["e", "view"], "name", ["reviews"]),
        (["zzz"], "name", []),
    ],
)
def test_filtered_and_sorted(
    filters: list[str], sort: str, found: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [part for word in filters for part in ("--filter", word)]
    assert main(["models", *words, "--sort", sort, "--json"]) == DONE
    assert [model["name"] for model in json.loads(capsys.readouterr().out)] == found


def test_nothing_is_said_to_be_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--filter", "zzz"]) == DONE
    assert capsys.readouterr().out == "no registered models\n"
