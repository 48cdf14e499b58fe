"""A model in use is watched, a two-layer one: what is said of its own rows, of others, of labels that came back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from flows.cli import DONE, USER_MUST_CHANGE, main
from tasks.base.outcomes import MonitorResult
from tasks.monitoring import examine
from tasks.registry.decisions import promote
from tasks.settings.config import MonitorConfig, RunConfig
from tasks.settings.loading import checked
from tasks.tracking.asking import stored_run
from tests.conftest import sentences, without_pictures

NAME = "reviews"

QUESTIONS = [
    f"{start} {thing} {end}?"
    for start in ("when will", "how do i cancel", "who can help me with", "why was")
    for thing in ("my order", "the parcel", "a refund", "the invoice", "your shop")
    for end in ("today", "in the north", "again", "for my firm")
]


class InUse(NamedTuple):
    """A folder with a champion."""

    folder: Path
    api: Any
    run_id: str
    events: list[dict[str, Any]]

    def monitor(self, inputs: Path | str, **fields: Any) -> MonitorResult:
        from flows.monitor import monitor

        result: MonitorResult = monitor(name=NAME, inputs=str(inputs), **fields)
        return result


@pytest.fixture(scope="module")
def in_use(foundation: Any, tmp_path_factory: pytest.TempPathFactory, prefect_harness: None) -> Iterator[InUse]:
    """48 rows trained on, 180 tested with; the power is found from fewer draws than usual."""
    from mlflow import MlflowClient

    from flows.finetune import finetune

    folder = tmp_path_factory.mktemp("in use")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, few in (("POOL_ROWS", 60), ("NULL_DRAWS", 300), ("DRIFT_DRAWS", 60)):
            patch.setattr(f"tasks.scores.drift.{name}", few)
        events: list[dict[str, Any]] = []
        patch.setattr("prefect.events.emit_event", lambda **event: events.append(event))
        texts, labels = sentences(20)
        frame = pd.DataFrame({"text": texts, "label": [("bad", "good")[label] for label in labels]})
        frame = frame.sample(frac=1, random_state=0)
        (folder / "data").mkdir()
        for name, part in (("train", frame[:48]), ("validation", frame[48:60]), ("test", frame[60:])):
            part.to_csv(folder / f"data/{name}.csv", index=False)
        values = {
            "model": {"name": str(foundation("bert"))},
            "data": {"name": str(folder / "data"), "max_length": 16},
            "training": {"epochs": 6, "batch_size": 8, "learning_rate": 0.01},
            "evaluation": {"bootstrap_samples": 300, "references": []},
            "tracking": {"registered_model": NAME},
        }
        with without_pictures():
            result = finetune(**dict(checked(RunConfig, values)))
        promote(NAME, "1", "the first", "a test")
        frame[60:150].to_csv(folder / "own.csv", index=False)
        pd.DataFrame({"text": QUESTIONS}).to_json(folder / "questions.jsonl", orient="records", lines=True)
        yield InUse(folder, MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db"), result.run_id, events)


@pytest.fixture(autouse=True)
def here(in_use: InUse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(in_use.folder)


@pytest.fixture(scope="module")
def own(in_use: InUse) -> MonitorResult:
    """Of rows of the model's own making, with labels."""
    return in_use.monitor("own.csv")


@pytest.fixture(scope="module")
def questions(in_use: InUse) -> MonitorResult:
    return in_use.monitor("questions.jsonl")


def test_rows_of_its_own_show_no_drift_and_their_labels_give_its_accuracy(in_use: InUse, own: MonitorResult) -> None:
    assert own.verdict == "no drift found" and own.drifted == ()
    assert (own.rows, own.examined, own.copies, own.learned, own.labelled) == (90, 90, 0, 0, 90)
    assert [test.name for test in own.tests][:4] == ["features", "lengths", "labels", "confidence"]
    assert own.tests[-1].name == "accuracy" and own.tests[0].known_rows == 48 + 180
    measured = in_use.api.get_run(in_use.run_id).data.metrics
    assert own.test_score.value == pytest.approx(measured["tuned/accuracy"])
    assert own.score and own.score.low < own.test_score.value < own.score.high
    assert not any(event["event"] == "peft-flow.drift.found" for event in in_use.events)


def test_questions_are_another_kind_of_texts_and_automations_hear_of_it(
    in_use: InUse, questions: MonitorResult
) -> None:
    assert "features" in questions.drifted and questions.verdict.startswith("drift: features")
    assert set(questions.strangest) <= set(QUESTIONS) and len(questions.strangest) == 5
    assert questions.labelled == 0 and questions.score is None
    (event,) = [event for event in in_use.events if event["event"] == "peft-flow.drift.found"]
    assert event["resource"]["prefect.resource.id"] == f"peft-flow.model.{NAME}"
    assert event["resource"]["peft-flow.version"] == "1" and event["payload"]["name"] == NAME
    assert event["payload"]["run_id"] == questions.run_id and questions.run_id in event["payload"]["url"]
    assert event["payload"]["drifted"].split(", ") == list(questions.drifted)
    assert event["resource"]["peft-flow.features"] == "drift"
    assert event["payload"]["p_values"]["features"] <= 0.05


def test_run_in_mlflow_has_page_pictures_and_figures_and_is_no_training(
    in_use: InUse, questions: MonitorResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = in_use.api.get_run(questions.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "monitor reviews · questions.jsonl"
    assert run.data.tags["verdict"] == questions.verdict and run.data.tags["peft_flow.monitored"] == "reviews/1"
    assert run.data.metrics["drift/features_p_value"] == questions.tests[0].adjusted_p_value
    assert run.data.metrics["drift/found"] == len(questions.drifted) and run.data.params["inputs"] == "questions.jsonl"
    files = {
        file.path for folder in ("plots", "monitoring") for file in in_use.api.list_artifacts(run.info.run_id, folder)
    }
    assert files == {
        *("plots/texts.png", "plots/answers.png", "monitoring/monitoring.md", "monitoring/monitoring.json"),
    }
    page = Path(in_use.api.download_artifacts(run.info.run_id, "monitoring/monitoring.md", str(tmp_path))).read_text()
    assert page.startswith(f"# D{questions.verdict[1:]}: reviews version 1 on questions.jsonl")
    assert "80 % of cases" in page and questions.strangest[0][:20] in page
    assert main(["runs", "--filter", "kind=monitoring", "--json"]) == DONE
    assert questions.run_id in [one["run_id"] for one in json.loads(capsys.readouterr().out)]
    with pytest.raises(ValueError, match="has watched a model"):
        stored_run(questions.run_id, tmp_path)


def test_answers_that_predict_wrote_are_taken_and_give_the_same_numbers(in_use: InUse, own: MonitorResult) -> None:
    assert main(["predict", NAME, "own.csv", "answered.csv"]) == DONE
    answered = in_use.monitor("answered.csv")
    assert answered.predicted == answered.examined == 90 and own.predicted == 0
    assert answered.labelled == 0  # its column `label` is what predict said
    assert [(test.name, test.recent, test.distance) for test in answered.tests] == [
        (test.name, test.recent, test.distance) for test in own.tests[:-1]
    ]
    truth = pd.read_csv("answered.csv").assign(truth=pd.read_csv("own.csv")["label"])
    truth.loc[5:, "model_version"] = "reviews/7"  # which is not the champion
    truth.to_parquet("truth.parquet")
    again = in_use.monitor("truth.parquet", label_columns=("truth",))
    assert again.score == own.score and again.predicted == 5 and again.tests == own.tests


def test_the_same_twice_gives_the_same_numbers(in_use: InUse, own: MonitorResult) -> None:
    again = in_use.monitor("own.csv")
    differ = {"run_id", "seconds"}
    assert again.model_dump(exclude=differ) == own.model_dump(exclude=differ) and again.run_id != own.run_id


def test_rows_it_has_learned_from_and_copies_are_said(in_use: InUse) -> None:
    train = pd.read_csv("data/train.csv")
    pd.concat([train, train[:20]]).to_csv("known.csv", index=False)
    result = in_use.monitor("known.csv")
    assert (result.rows, result.examined, result.copies, result.learned) == (68, 48, 20, 48)
    assert [test.name for test in result.tests] == ["features", "lengths"] and result.labelled == 0
    told = " ".join(result.notes)
    assert "20 of 68 rows have the text of an earlier one; each text counts once" in told
    assert "48 of the 48 rows have a text that the model has learned from" in told


def test_too_few_rows_are_no_failure_and_more_than_the_most_are_drawn(in_use: InUse) -> None:
    pd.read_csv("own.csv")[:12].to_csv("few.csv", index=False)
    few = in_use.monitor("few.csv")
    assert few.tests == () and few.verdict == "nothing can be said: 12 rows, and 30 are needed"
    some = in_use.monitor("own.csv", max_rows=40)
    assert some.examined == 40 and "40 of 90 rows are examined, drawn at random with seed 0." in some.notes


def test_labels_that_are_none_of_the_models_are_left_out(in_use: InUse) -> None:
    rows = pd.read_csv("own.csv")
    rows["grade"] = rows["label"].replace({"bad": "0", "good": "1"})
    rows.loc[:9, "grade"] = "7"
    rows.loc[10:19, "grade"] = None
    rows.to_csv("graded.csv", index=False)
    result = in_use.monitor("graded.csv", label_columns=("grade",))
    assert result.labelled == 0  # with a 7 among them, 0 and 1 may mean anything
    assert "80 true labels of the inputs are none of the model's: left out." in result.notes
    rows["grade"] = rows["grade"].replace({"7": None})
    rows.to_csv("graded.csv", index=False)
    assert in_use.monitor("graded.csv", label_columns=("grade",)).labelled == 70


def test_training_data_that_have_changed_are_not_compared_with(in_use: InUse) -> None:
    file = in_use.folder / "data/train.csv"
    before = file.read_text()
    try:
        file.write_text(before + "another film,good\n")
        result = in_use.monitor("own.csv")
    finally:
        file.write_text(before)
    assert result.tests[0].known_rows == 180
    assert any("have changed since; only the test rows are known" in note for note in result.notes)


def test_command_prints_the_verdict_and_json_alone_on_its_last_line(
    in_use: InUse, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.in_use.prefect_starting", without_pictures)
    assert main(["monitor", NAME, "--inputs", "questions.jsonl", "--json"]) == DONE
    out, err = capsys.readouterr()
    assert MonitorResult.model_validate_json(out.splitlines()[-1]).drifted
    assert "DRIFT: FEATURES" in err and "80 % of cases" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("films", "--inputs", "own.csv"), "name: there is no run, registered model, version or alias 'models:/films'"),
        ((NAME, "--inputs", "no.csv"), "inputs:"),
        ((NAME, "--inputs", "-"), "inputs: standard input cannot be watched"),
        (
            (NAME, "--inputs", "own.csv", "--label_columns", "a,b"),
            "label_columns: the model's labels lie in one column",
        ),
        ((NAME, "--inputs", "own.csv", "--max_rows", "5"), "max_rows"),
        ((NAME, "--inputs", "own.csv", "--text_columns", "review"), "text_columns: there is no column 'review'"),
        ((NAME,), "inputs"),
    ],
)
def test_what_the_user_must_change_is_said_in_one_line(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["monitor", *arguments]) == USER_MUST_CHANGE
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told in line


def test_a_run_that_is_not_registered_is_not_watched(in_use: InUse, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["monitor", in_use.run_id, "--inputs", "own.csv"]) == USER_MUST_CHANGE
    assert "is not a registered model" in capsys.readouterr().err


@pytest.mark.endurance
@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_models_of_several_labels_and_of_numbers_are_watched(task: str, in_use: InUse, foundation: Any) -> None:
    from flows.finetune import finetune
    from flows.monitor import monitor

    texts, labels = sentences(20)
    told = {
        "multi_label": [
            ["|".join(("film", "good")[: 1 + label]), "film"][place % 7 == 0] for place, label in enumerate(labels)
        ],
        "regression": [1.25 + 3 * label + place % 10 / 10 for place, label in enumerate(labels)],
    }
    frame = pd.DataFrame({"text": texts, "label": told[task]}).sample(frac=1, random_state=0)
    folder = in_use.folder / task  # called as the model is
    folder.mkdir()
    for name, part in (("train", frame[:48]), ("validation", frame[48:60]), ("test", frame[60:])):
        part.to_csv(folder / f"{name}.csv", index=False)
    values = {
        "model": {"name": str(foundation("bert"))},
        "data": {"name": str(folder), "max_length": 16, "task": task},
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
        "evaluation": {"bootstrap_samples": 300, "references": []},
        "tracking": {"registered_model": task},
    }
    with without_pictures():
        finetune(**dict(checked(RunConfig, values)))
    promote(task, "1", "the first", "a test")
    frame[60:150].to_csv(f"{task}.csv", index=False)
    result: MonitorResult = monitor(name=task, inputs=f"{task}.csv")
    assert result.verdict == "no drift found" and result.labelled == 90 and result.task == task
    assert result.score and result.score.low <= result.test_score.value <= result.score.high
    answers = ["labels", "confidence", "abstentions"] if task == "multi_label" else ["predictions"]
    assert [test.name for test in result.tests][2:-1] == answers
    assert main(["predict", f"{task}@champion", f"{task}.csv", f"{task}-answered.csv"]) == DONE
    again: MonitorResult = monitor(name=task, inputs=f"{task}-answered.csv")
    assert again.predicted == 90 and again.tests[2].recent == result.tests[2].recent
    assert again.tests[2].distance == pytest.approx(result.tests[2].distance)


def test_copies_count_where_the_models_own_rows_hold_them(in_use: InUse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "MOST_COPIES", -1.0)  # as if more than 5 % of its rows were copies
    rows = pd.read_csv("own.csv")
    pd.concat([rows, rows[:30]]).to_csv("again.csv", index=False)
    result = in_use.monitor("again.csv")
    assert result.examined == 120 and any("they count as rows of their own" in note for note in result.notes)


def test_configuration_says_what_predict_would_be_told() -> None:
    config = checked(MonitorConfig, {"name": "reviews", "inputs": "a.csv", "split": "test", "batch_size": 8})
    assert (config.prediction.model, config.prediction.input, config.prediction.output) == (
        "models:/reviews",
        "a.csv",
        "-",
    )
    assert config.prediction.split == "test" and config.prediction.batch_size == 8
