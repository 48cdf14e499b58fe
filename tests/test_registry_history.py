"""A registered model's life as tables, one JSON object, and a page in Prefect."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.cli import DONE, USER_MUST_CHANGE, main
from tasks.base.records import Interval
from tasks.registry import publishing
from tasks.registry.decisions import keep, promote, rollback
from tasks.registry.history import History, history_of, history_text, letters_of
from tasks.registry.publishing import artifact_key, publish
from tests.conftest import register

SCORES = [
    {"tuned/accuracy": value, "tuned/accuracy_low": value - 0.0625, "tuned/accuracy_high": value + 0.0625}
    for value in (0.75, 0.5, 0.875, 0.625)
]


FLOW = {"prefect.flow_run_id": "f-1", "prefect.flow_run_url": "http://127.0.0.1:4200/runs/flow-run/f-1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a store in which `reviews` was promoted, kept out, promoted and rolled back; a last version is undecided,
    and was measured on other test rows."""
    folder = tmp_path_factory.mktemp("reviews")
    with pytest.MonkeyPatch.context() as place:
        place.chdir(folder)
        place.delenv("MLFLOW_TRACKING_URI", raising=False)
        register(folder, "reviews", 4, SCORES, ["a" * 64, "a" * 64, "a" * 64, "b" * 64])
        promote("reviews", "1", "the first | model", "first")
        keep("reviews", "2", "no evidence of a gain", "gate")
        promote("reviews", "3", "gained 0.030", "gate", tags=FLOW)
        rollback("reviews", "complaints about sarcasm", "anna")
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is that one."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def line_with(text: str, *words: str) -> list[str]:
    """Cells of the only table row that has all of `words`."""
    (line,) = (line for line in text.splitlines() if line.startswith("|") and all(word in line for word in words))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.usefixtures("here")
def test_every_version_has_its_score_its_test_rows_and_what_was_decided() -> None:
    found = history_of("reviews")
    assert [version.version for version in found.versions] == ["1", "2", "3", "4"]
    assert found.champion == "1"
    assert [version.test_rows for version in found.versions] == ["A", "A", "A", "B"]
    assert found.versions[2].score == Interval(value=0.875, low=0.8125, high=0.9375)
    assert [decision.action for decision in found.decisions] == ["promoted", "kept", "promoted", "rolled back"]
    assert [(change.previous, change.version) for change in found.changes] == [(None, "1"), ("1", "3"), ("3", "1")]
    assert [len(version.decisions) for version in found.versions] == [2, 1, 2, 0]
    assert found.versions[0].registered <= found.decisions[0].at


@pytest.mark.usefixtures("here")
def test_text_is_for_reading() -> None:
    found = history_of("reviews")
    text = history_text(found)
    assert text.startswith("reviews: 4 versions, version 1 is champion")
    run_id = str(found.versions[1].run_id)
    row = line_with(text, run_id)
    assert row[0] == "2" and row[3:] == ["0.500 (0.438-0.562)", "A", "", "kept", "gate", "no evidence of a gain"]
    assert line_with(text, str(found.versions[2].run_id))[5:] == [
        *("previous", "rolled back", "anna", "complaints about sarcasm"),
    ]
    assert "champion again" in text and "do not compare them" in text
    changes = text[text.index("| when") :]
    assert [line_with(changes, word)[1:3] for word in ("first", "gained", "sarcasm")] == [
        *(["1", ""], ["3", "1"], ["1", "3"]),
    ]


@pytest.mark.usefixtures("here")
def test_page_leads_to_runs_and_flow_runs_and_shows_the_picture() -> None:
    found = history_of("reviews")
    page = publishing.page(found)
    run_id = str(found.versions[2].run_id)
    assert f"[{run_id[:8]}](http://127.0.0.1:5000/#/experiments/1/runs/{run_id}?" in page
    assert "[gate](http://127.0.0.1:4200/runs/flow-run/f-1)" in page
    assert "![History](data:image/png;base64,iVBOR" in page


def test_alias_that_was_changed_by_hand_is_reported(here: Path) -> None:
    found = history_of("reviews").model_copy(update={"champion": "4"})
    assert "Nothing is on record of how version 4 is champion: the alias was changed by hand." in history_text(found)
    assert "by hand" not in history_text(history_of("reviews"))


def test_model_without_versions_or_runs_has_a_history(workplace: Path) -> None:
    api = register(workplace, "bare", 0)
    assert history_text(history_of("bare")) == "bare: 0 versions, none is champion"
    assert "data:image" not in publishing.page(history_of("bare"))
    register(workplace, "bare", 1)
    api.delete_run(api.get_model_version("bare", "1").run_id)
    (version,) = history_of("bare").versions
    assert version.score is None and version.test_rows == ""
    assert "| 1 " in history_text(history_of("bare"))


NUMBERS = [{"tuned/mae": value, "tuned/mae_low": value - 64, "tuned/mae_high": value + 64} for value in (840.0, 712.5)]


def test_score_is_that_of_the_task_with_its_direction(workplace: Path) -> None:
    register(workplace, "prices", 2, NUMBERS)
    found = history_of("prices")
    assert [version.metric for version in found.versions] == ["mae", "mae"]
    assert found.scores["2"] == Interval(value=712.5, low=648.5, high=776.5)
    assert "| mean absolute error (lower is better) |" in history_text(found)
    assert "data:image/png" in publishing.page(found)


def test_scores_of_another_task_are_named_and_not_drawn_among_the_new_ones(workplace: Path) -> None:
    register(workplace, "mixed", 1, SCORES)
    register(workplace, "mixed", 1, NUMBERS)
    found = history_of("mixed")
    assert found.metric and found.metric.name == "mae" and list(found.scores) == ["2"]
    text = history_text(found)
    assert "accuracy 0.750 (0.688-0.812)" in text and "accuracy 71" not in text


def test_letters_tell_any_number_of_test_rows_apart() -> None:
    names = letters_of([None, *(f"{i}" for i in range(60)), "0"])
    assert (names["0"], names["25"], names["26"], names["59"]) == ("A", "Z", "A2", "H3")
    assert len(set(names.values())) == 60 and None not in names


@pytest.mark.parametrize(
    ("name", "key"), [("reviews", "history-reviews"), ("Film reviews", "history-film-reviews-"), ("日本", "history-")]
)
def test_key_of_the_artifact_has_only_what_prefect_takes(name: str, key: str) -> None:
    import re

    found = artifact_key(name)
    assert found.startswith(key) and re.fullmatch("[a-z0-9-]+", found)
    assert artifact_key("Film_reviews") != artifact_key("Film reviews")


def test_command_prints_tables_or_one_json_object_and_draws(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "reviews", "--picture", "life.png"]) == DONE
    output, errors = capsys.readouterr()
    assert output.startswith("reviews: 4 versions") and errors == ""
    assert Path("life.png").read_bytes().startswith(b"\x89PNG")
    assert main(["history", "reviews", "--json"]) == DONE
    output, _ = capsys.readouterr()
    assert output.count("\n") == 1
    assert History.model_validate(json.loads(output)) == history_of("reviews")


@pytest.mark.parametrize("name", ["life.jpg", "nowhere/life.png"])
def test_picture_that_cannot_be_written_is_refused(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "reviews", "--picture", name]) == USER_MUST_CHANGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "--picture" in line and name in line


def test_history_is_published_within_a_flow_only(
    here: Path, prefect_harness: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow
    from prefect.artifacts import Artifact

    publish("reviews")  # nothing to put it on
    flow(name="retrain")(lambda: publish("reviews"))()
    artifact: Any = Artifact.get("history-reviews")
    assert artifact and artifact.flow_run_id
    assert "no evidence of a gain" in artifact.data and "data:image/png" in artifact.data


def test_trouble_with_the_history_disturbs_no_flow(
    workplace: Path, prefect_harness: None, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect import flow

    flow(name="retrain")(lambda: publish("reviews"))()
    assert "the history of reviews is not shown: there are no runs in" in caplog.text
