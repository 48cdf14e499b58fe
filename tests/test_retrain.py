"""Retraining, on a two-layer model: what is skipped, promoted, rejected and kept, and what goes on record."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from tasks.base.outcomes import Finding, Gate, RetrainResult
from tasks.base.records import RunResult
from tasks.registry import decisions as registry
from tasks.registry.history import history_of
from tasks.retraining.challenger import decide
from tasks.retraining.gate import Trial, against_champion
from tasks.settings.config import GateConfig, RetrainConfig
from tasks.settings.loading import checked
from tasks.tracking.decision import Decision
from tasks.tracking.versions import find_champion, registered_versions
from tests.conftest import made_up_labeller, only_run, register, sentences, without_pictures

NAME = "reviews"


class Place(NamedTuple):
    """A folder that is retrained from, and what the runs in it share."""

    data: Path
    values: dict[str, Any]

    def config(self, **changes: Any) -> RetrainConfig:
        values = dict(self.values)
        for section, fields in changes.items():
            values[section] = {**values.get(section, {}), **fields} if isinstance(fields, dict) else fields
        return checked(RetrainConfig, values)

    def retrain(self, return_state: bool = False, **changes: Any) -> Any:
        from flows.retrain import retrain

        config = self.config(**changes)
        return retrain(
            **{name: getattr(config, name) for name in RetrainConfig.model_fields}, return_state=return_state
        )


def write(file: Path, texts: list[str], labels: list[int]) -> None:
    pd.DataFrame({"text": texts, "label": [("bad", "good")[label] for label in labels]}).to_csv(file, index=False)


def furnished(folder: Path, foundation: Any) -> Place:
    """48 rows to train on, 12 to validate and 180 to test with."""
    data = folder / "drops"
    data.mkdir()
    texts, labels = sentences(20)
    write(data / "train-01.csv", texts[:48], labels[:48])
    write(data / "validation.csv", texts[48:60], labels[48:60])
    write(data / "test.csv", texts[60:], labels[60:])
    values = {
        "model": {"name": str(foundation("gpt2"))},
        "data": {"name": str(data), "max_length": 16},
        "training": {"epochs": 12, "batch_size": 8, "learning_rate": 0.01},
        "evaluation": {"bootstrap_samples": 300, "references": []},
        "tracking": {"registered_model": NAME},
    }
    return Place(data, values)


@pytest.fixture
def empty_place(workplace: Path, foundation: Any, prefect_harness: None, no_pictures: None) -> Place:
    """A folder without any run."""
    return furnished(workplace, foundation)


def grow(place: Place, number: int) -> None:
    texts, labels = sentences(20 + number)
    write(place.data / f"train-{number:02}.csv", texts[-12:], labels[-12:])


UNTRAINED = {"training": {"learning_rate": 0.0, "epochs": 1}}
"""A champion that is easy to beat."""


class Story(NamedTuple):
    """Retrainings one after the other in one folder."""

    rejected: RetrainResult
    forced: RetrainResult
    same: Any
    better: RetrainResult
    tie: RetrainResult
    tie_again: RetrainResult
    taken_back: RetrainResult
    runs: int
    api: Any


@pytest.fixture(scope="module")
def story(foundation: Any, tmp_path_factory: pytest.TempPathFactory, prefect_harness: None) -> Iterator[Story]:
    from mlflow import MlflowClient

    folder, before = tmp_path_factory.mktemp("story"), Path.cwd()
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    place = furnished(folder, foundation)
    with without_pictures():
        rejected, forced = place.retrain(**UNTRAINED), place.retrain(**UNTRAINED, force=True)
        same = place.retrain(**UNTRAINED, return_state=True)
        grow(place, 2)
        better = place.retrain()
        almost = {"training": {"weight_decay": 0.0101}}
        tie, tie_again = place.retrain(**almost), place.retrain(**almost)
        registry.rollback(NAME, "it answers too slowly", "a test")
        taken_back = place.retrain()
    api = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    runs = len(api.search_runs(["1"]))
    yield Story(rejected, forced, same, better, tie, tie_again, taken_back, runs, api)
    os.chdir(before)


@pytest.fixture
def place(story: Story, tmp_path: Path, foundation: Any, no_pictures: None, request: pytest.FixtureRequest) -> Place:
    """In the story's folder, with data of its own; the champion of its own model is the untrained one of the story."""
    given, name = furnished(tmp_path, foundation), request.node.name
    story.api.create_registered_model(name)
    registry.promote(name, another_version(story, name), "to begin with", "a test")
    given.values["tracking"] = {"registered_model": name}
    return given


def another_version(story: Story, name: str) -> str:
    """Of registered model `name`, made of the story's untrained run; nothing is decided about it."""
    made = story.api.get_model_version(NAME, story.forced.version)
    return str(story.api.create_model_version(name, made.source, made.run_id).version)


def test_first_model_is_rejected_until_it_beats_the_references_or_is_forced(story: Story) -> None:
    assert (story.rejected.action, story.rejected.version, story.rejected.champion) == ("rejected", "1", None)
    assert "TF-IDF + logistic regression" in story.rejected.reason and "linear probe" in story.rejected.reason
    assert story.rejected.subject == f"{NAME} version 1"
    assert (story.forced.action, story.forced.version, story.forced.champion) == ("promoted", "2", "2")
    assert story.forced.reason.startswith("forced, although significantly worse than TF-IDF")


def test_better_challenger_is_promoted_and_a_tie_is_not(story: Story) -> None:
    assert (story.better.action, story.better.champion) == ("promoted", "3"), story.better.reason
    assert story.better.gate and story.better.gate.rows == 180 and story.better.gate.passed
    assert (story.tie.action, story.tie.champion, story.tie.version) == ("kept", "3", "4")
    assert story.tie.subject == f"{NAME} version 3, not version 4"
    assert "not shown to be better than the champion" in story.tie.reason


def test_test_set_is_frozen_while_the_training_rows_grow(story: Story) -> None:
    runs = [story.api.get_run(result.run_id) for result in (story.forced, story.better, story.tie)]
    assert len({run.data.tags["test_fingerprint"] for run in runs}) == 1
    assert [run.data.metrics["train/steps"] for run in runs] == [6, 96, 96]


def test_why_is_on_record_with_run_and_version(story: Story) -> None:
    files = {file.path for file in story.api.list_artifacts(story.tie.run_id, "gate")}
    assert files == {"gate/gate.md", "gate/gate.json"}
    versions = {str(version.version): version for version in story.api.search_model_versions(f"name='{NAME}'")}
    assert {number: version.tags["decision"] for number, version in versions.items()} == {
        "1": "rejected", "2": "champion again", "3": "rolled back", "4": "kept",
    }  # fmt: skip
    assert [version.tags["decision.by"] for version in versions.values()].count("gate") == 2
    first_promotion = Decision.model_validate_json(versions["2"].tags["decision.1"])
    assert (first_promotion.by, first_promotion.action, first_promotion.previous) == ("force", "promoted", None)
    assert first_promotion.flow_run_id


def test_nothing_new_is_skipped_whatever_was_decided_about_it(story: Story) -> None:
    assert story.same.is_completed() and story.same.name == "Skipped"
    assert re.fullmatch(r"nothing new since 20\d\d-\d\d-\d\d", story.same.message)
    assert (story.tie_again.action, story.tie_again.champion, story.tie_again.version) == ("skipped", "3", None)
    assert story.taken_back.action == "skipped", "what was taken back does not come again by itself"
    assert story.taken_back.champion == "2"
    assert story.runs == 4, "and no run was made for any of them"


def test_row_that_either_has_learned_from_is_no_test_row_in_a_new_test_set(place: Place) -> None:
    test, train = (pd.read_csv(place.data / f"{name}.csv") for name in ("test", "train-01"))
    pd.concat([test[:100], train[:10]]).to_csv(place.data / "test.csv", index=False)
    test[100:].to_csv(place.data / "train-02.csv", index=False)
    result = place.retrain(refresh_test=True)
    assert result.gate and result.gate.rows == 100, "ten of the new rows were in training"
    own = [finding for finding in result.gate.findings if finding.rule == "champion's rows"]
    assert len(own) == 1 and "100 rows of the champion's own test" in own[0].told, "80 are training rows now"


def test_champion_that_changed_meanwhile_stays(story: Story, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import retrain as flow

    name = place.values["tracking"]["registered_model"]
    other = another_version(story, name)
    judge = flow.judge_challenger

    def slowly(*arguments: Any) -> Any:
        registry.promote(name, other, "somebody is faster", "a test")
        return judge(*arguments)

    monkeypatch.setattr(flow, "judge_challenger", slowly)
    grow(place, 2)
    result = place.retrain()
    assert (result.action, result.champion) == ("kept", other)
    assert "version 2" in result.reason and result.gate and result.gate.passed


def test_challenger_that_another_machine_has_trained_is_judged_by_what_mlflow_has(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import retrain as flow

    judge = flow.judge_challenger

    def elsewhere(config: Any, challenger: Any, result: Any, *others: Any) -> Any:
        shutil.rmtree(Path(result.adapter_path).parent)
        return judge(config, challenger, result, *others)

    monkeypatch.setattr(flow, "judge_challenger", elsewhere)
    grow(place, 2)
    result = place.retrain(gate={"max_memory_mb": 1e6})
    assert result.action == "promoted" and result.gate
    assert {finding.rule for finding in result.gate.findings} == {"gain", "slices", "memory"}


def test_model_without_a_name_is_refused_by_field() -> None:
    with pytest.raises(ValueError, match=r"tracking\.registered_model must name the model that is retrained"):
        checked(RetrainConfig, {"tracking": {"experiment": "x"}})


def test_ceilings_are_measured_in_a_fresh_process(place: Place) -> None:
    grow(place, 2)
    result = place.retrain(gate={"max_latency_ms": 0.001, "max_memory_mb": 1e6})
    assert result.action == "kept" and result.gate
    assert {finding.rule: finding.passed for finding in result.gate.findings} == {
        "gain": True, "slices": True, "latency": False, "memory": True,
    }  # fmt: skip
    assert "latency" in result.reason and "ceiling 0.0" in result.reason


def test_failed_search_for_data_is_a_failed_run(empty_place: Place) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        empty_place.retrain(data={"name": "nowhere/to-be-found"}, offline=True)
    assert only_run(Path.cwd()).info.status == "FAILED"


# other tasks


@pytest.mark.parametrize(
    ("task", "label", "metric"),
    [
        pytest.param(
            *("multi_label", {"bad": "complaint|film", "good": "praise"}, "micro-F1"), marks=pytest.mark.endurance
        ),
        ("regression", {"bad": 120.5, "good": 480.0}, "mean absolute error"),
    ],
)
def test_worse_challenger_of_another_task_is_not_promoted(
    task: str, label: dict[str, Any], metric: str, empty_place: Place
) -> None:
    """The first is made champion; the second has learned nothing. Its error is larger, which is worse."""
    place = empty_place
    for file in place.data.glob("*.csv"):
        frame = pd.read_csv(file)
        frame.assign(label=frame["label"].map(label)).to_csv(file, index=False)
    first = place.retrain(data={"task": task}, force=True)
    worse = place.retrain(data={"task": task}, **UNTRAINED)
    assert (first.action, first.champion) == ("promoted", "1")
    assert (worse.action, worse.version, worse.champion) == ("kept", "2", "1")
    assert worse.reason.startswith(f"significantly worse than the champion: {metric} "), worse.reason
    assert worse.gate and worse.gate.task == task and worse.gate.rows == 180
    found = history_of(NAME)
    assert found.champion == "1" and found.metric and found.metric.title == metric
    better, other = (found.scores[version].value for version in ("1", "2"))
    assert found.metric.sign * (better - other) > 0


def test_worse_labeller_is_not_promoted() -> None:
    """What the gate says of several labels; the rest of the flow is the same for every task."""
    labels = (np.random.default_rng(0).random((240, 3)) < 0.4).astype(int)
    good, bad = (made_up_labeller(labels, right, seed) for seed, right in enumerate((0.9, 0.6)))
    for champion, challenger, passed in ((good, bad, False), (bad, good, True)):
        trial = Trial("multi_label", labels, champion, challenger)
        gate = against_champion(GateConfig(), trial, None, None, 300, seed=0)
        assert (gate.passed, gate.task) == (passed, "multi_label")
        assert passed or gate.reason.startswith("significantly worse than the champion: micro-F1 "), gate.reason


# a year of made-up classifiers


SKILLS = (0.60, 0.68, 0.682, 0.75, 0.75, 0.30, 0.78, 0.84, 0.845, 0.86, 0.90, 0.90)
"""Of each month's challenger. The third has learned from a few rows more, the sixth from wrong labels."""

STEP_BACK = 8


def test_champions_of_a_year_only_get_better_but_for_a_step_back(workplace: Path) -> None:
    """Gate, decision and registry on twelve challengers whose true skill is known."""
    register(workplace, NAME, len(SKILLS))
    chance, champions, results = np.random.default_rng(0), [], []
    difficulty = chance.uniform(size=500)  # the same rows are hard for all
    tables = [answers(difficulty + 0.05 * chance.normal(size=500) < skill) for skill in SKILLS]
    for month, table in enumerate(tables, 1):
        config = checked(RetrainConfig, {"tracking": {"registered_model": NAME}, "force": month == 1})
        champion = find_champion(NAME)
        gate = against(tables[int(champion.version) - 1], table) if champion else NOTHING_SHOWN
        made = RunResult.model_construct(run_id=run_of(str(month)), version=str(month), model_uri="")
        results.append(decide.fn(config, made, champion, gate, None))
        if month == STEP_BACK:
            registry.rollback(NAME, "complaints about the newest", "a test")
        now = find_champion(NAME)
        assert now
        champions.append(int(now.version))
    assert champions == [1, 2, 2, 4, 4, 4, 7, 7, 9, 9, 11, 11]
    skills = [SKILLS[version - 1] for version in champions]
    assert skills == sorted(skills)
    assert [result.action for result in results].count("promoted") == 7
    assert results[STEP_BACK - 1].champion == "8"
    history = history_of(NAME)
    assert [int(change.version) for change in history.changes] == [1, 2, 4, 7, 8, 7, 9, 11]
    assert history.champion == str(champions[-1])
    assert [decision.by for decision in registry.decisions(NAME)].count("force") == 1


def answers(right: np.ndarray) -> np.ndarray:
    """Probabilities (rows, 2) where every row's class is the first."""
    return np.where(right[:, None], (0.9, 0.1), (0.1, 0.9))


def against(champion: np.ndarray, challenger: np.ndarray) -> Gate:
    labels = np.zeros(len(champion), dtype=int)
    return against_champion(GateConfig(), Trial("single_label", labels, champion, challenger), None, None, 300, seed=0)


NOTHING_SHOWN = Gate(
    findings=(Finding(rule="gain", passed=False, told="not shown to be better than TF-IDF"),),
    rows=500,
    champion=None,
    challenger=None,
    difference=None,
)


def run_of(version: str) -> str:
    return next(str(one.run_id) for one in registered_versions(NAME) if one.version == version)


# classes and columns that come and go


def rewritten(place: Place, columns: dict[str, str], classes: dict[str, str]) -> None:
    for file in place.data.glob("*.csv"):
        frame = pd.read_csv(file)
        frame["label"] = frame["label"].map(lambda name: classes.get(name, name))
        frame[frame["label"] != ""].rename(columns=columns).to_csv(file, index=False)


@pytest.mark.endurance
def test_renamed_columns_and_a_renamed_class_are_compared_on_what_both_know(empty_place: Place) -> None:
    place = empty_place
    third = {"train-01": 48, "validation": 60, "test": 240}
    for (name, stop), start in zip(third.items(), (0, 48, 60), strict=True):
        texts, labels = sentences(20)
        names = [("bad", "good", "odd")[label + (row % 3 == 0) * (2 - label)] for row, label in enumerate(labels)]
        frame = pd.DataFrame({"text": texts, "label": names})[start:stop]
        frame.to_csv(place.data / f"{name}.csv", index=False)
    place.retrain(**UNTRAINED, force=True)
    rewritten(place, {"text": "review", "label": "stars"}, {"odd": "strange"})
    columns = {"data": {"text_columns": ["review"], "label_column": "stars"}}
    frozen = place.retrain(**UNTRAINED, **columns)
    fresh = place.retrain(**UNTRAINED, **columns, refresh_test=True)
    told = (
        "the class strange came, which the champion does not know; the class odd went, which the challenger does not "
        "know; a new name for a class counts as both; compared on rows of bad, good alone: on 60 test rows of the "
        "others no comparison is possible; {}where that is meant: peft-flow promote reviews {} --reason TEXT"
    )
    for result, more in ((frozen, "--refresh_test draws test rows of all present classes; "), (fresh, "")):
        assert result.action != "promoted" and result.gate.rows == 120
        assert told.format(more, result.version) in result.reason
    assert [finding.rule for finding in frozen.gate.findings] == ["gain", "classes", "slices"]
    own = [finding for finding in fresh.gate.findings if finding.rule == "champion's rows"]
    assert len(own) == 1 and "120 rows of the champion's own test" in own[0].told
