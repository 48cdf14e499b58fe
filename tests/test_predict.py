"""Prediction: the numbers of the run, in every format, whole or not there, the same bytes whatever was killed."""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from flows.cli import DONE, USER_MUST_CHANGE, main
from tasks.base import files
from tasks.base.outcomes import PredictionResult
from tasks.base.records import Evaluation
from tasks.evaluation.predictions import read_predictions
from tasks.inference import parts as storing
from tasks.inference import prediction
from tasks.inference.job import Job, find_job
from tasks.inference.prediction import describe_result, predict_rows
from tasks.settings.config import PredictionConfig, RunConfig
from tasks.settings.fields import InputError
from tasks.tracking import address
from tests.conftest import ROOT, Trained, rarely, sentences

REVIEWS = sentences(3)[0]
"""36 texts."""


class PowerCut(BaseException):
    """Nothing is done on the way out that a kill would not do too."""


def power_cut(*_: Any) -> None:
    raise PowerCut


@pytest.fixture
def file(workplace: Path) -> Path:
    pd.DataFrame({"id": [f"r{row}" for row in range(36)], "text": REVIEWS}).to_csv("reviews.csv", index=False)
    return workplace / "reviews.csv"


@pytest.fixture
def ask(trained: Trained, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`ask("reviews.csv", "out.csv", abstain_below=0.9)`: a prediction in chunks of eight rows."""
    monkeypatch.setattr(prediction, "CHUNK_ROWS", 8)

    def predict(given: Path | str, output: str = "out.csv", **fields: Any) -> PredictionResult:
        fields = {"model": trained.adapter.folder, "batch_size": 4, "offline": True} | fields
        config = PredictionConfig(input=str(given), output=output, **fields)
        result: PredictionResult = predict_rows.fn(config, find_job(config, workplace / "copied"))
        return result

    return predict


def refusal(*arguments: Any, ask: Any, **fields: Any) -> str:
    with pytest.raises(InputError) as error:
        ask(*arguments, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- what is written -------------------------------------------------------------------------------------------------


def test_test_rows_get_the_probabilities_of_the_runs_table(ask: Any, trained: Trained, measured: Evaluation) -> None:
    _, _, wanted = read_predictions(measured.predictions)
    ask(trained.config.data.name, "out.parquet", split="test")
    table = pd.read_parquet("out.parquet")
    assert table[["probability_bad", "probability_good"]].to_numpy() == pytest.approx(wanted, abs=2e-6)
    assert table["label"].tolist() == [("bad", "good")[i] for i in wanted.argmax(1)]
    assert wanted.std() > 0.01


def test_every_format_holds_the_same_rows_in_the_order_of_the_input(ask: Any, file: Path) -> None:
    results = [ask(file, name) for name in ("out.csv", "out.jsonl", "out.parquet")]
    tables = [
        pd.read_csv("out.csv", dtype={"id": str}),
        pd.read_json("out.jsonl", lines=True),
        pd.read_parquet("out.parquet"),
    ]
    assert list(tables[0]) == [
        *("row", "id", "text", "label", "probability", "probability_bad", "probability_good"),
        *("abstained", "model_version"),
    ]
    for table, result in zip(tables, results, strict=True):
        assert table["row"].tolist() == list(range(36))
        assert table["text"].tolist() == REVIEWS and table["id"].tolist() == [f"r{row}" for row in range(36)]
        assert table["model_version"].unique().tolist() == [result.model_version]
        assert table["label"].value_counts().to_dict() == {name: n for name, n in result.labels.items() if n}
        pd.testing.assert_frame_equal(table, tables[0], check_dtype=False)
    assert results[0].model_version.startswith("sha256:") and results[0].rows == 36


def test_texts_come_back_as_they_were(ask: Any) -> None:
    texts = ['a "quoted", text', "two\nlines", "carriage\rreturn", " blanks ", "Größe 映画 🎬", "null", "1.0"]
    Path("odd.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        ask("odd.jsonl", name)
    with Path("out.csv").open(newline="", encoding="utf-8") as opened:
        assert [row["text"] for row in csv.DictReader(opened)] == texts
    with Path("out.jsonl").open(encoding="utf-8") as opened:
        assert [json.loads(line)["text"] for line in opened] == texts
    assert pd.read_parquet("out.parquet")["text"].tolist() == texts


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        ([None] * 9 + [7], "int64"),
        ([7, None] * 5, "int64"),
        ([1.5, None, 2], "float64"),
        ([1, "a", None], "string"),
        ([2**70], "string"),
        ([True], "string"),
        ([None] * 3, "string"),
    ],
    ids=str,
)
def test_ids_stay_what_they_were(ids: list[Any], kind: str, ask: Any, workplace: Path) -> None:
    import pyarrow.parquet

    rows = [{"text": "a film", **({} if id is None else {"id": id})} for id in ids]
    rows[-1] |= {"id": ids[-1]}  # that the last row alone may have one
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        ask("a.jsonl", name)
    shown = [None if id is None else str(id) for id in ids]
    lines = Path("out.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [str(i) if i is True else i for i in ids]
    assert pd.read_csv("out.csv", dtype=str)["id"].tolist() == [
        pytest.approx(np.nan, nan_ok=True) if i is None else i for i in shown
    ]
    table = pyarrow.parquet.read_table("out.parquet")
    assert str(table.schema.field("id").type) == kind.replace("float64", "double")
    assert table["id"].to_pylist() == (shown if kind == "string" else ids)


def test_numbers_as_ids_of_a_parquet_file_stay_numbers(ask: Any, workplace: Path) -> None:
    pd.DataFrame({"text": ["a film"] * 20, "id": range(20)}).to_parquet("a.parquet")
    ask("a.parquet", "out.parquet")
    assert pd.read_parquet("out.parquet")["id"].tolist() == list(range(20))
    assert pd.read_parquet("out.parquet")["id"].dtype == np.int64


@pytest.mark.parametrize("name", ["the\ntext", "the\rtext", "\n"])
def test_name_of_a_column_may_have_a_line_break(name: str, tmp_path: Path) -> None:
    parts = storing.Parts(tmp_path / "work", tmp_path / "out.csv", again=False, answers={})
    for number in range(3):
        parts.write(number, {"row": [number], name: ["a film"]}, [], storing.Part(labels={}))
    with parts.joined(parts.output, sorted(parts.folder.glob("*.csv"))):
        pass
    with parts.output.open(newline="") as opened:
        assert list(csv.reader(opened)) == [["row", name], *([str(number), "a film"] for number in range(3))]


@pytest.mark.parametrize("name", ["a.tsv", "a.csv.gz", "a.xlsx", "a.feather", "folder"])
def test_other_formats_are_labelled_too(name: str, ask: Any, file: Path) -> None:
    rows = pd.read_csv(file)
    match name:
        case "a.xlsx":
            rows.to_excel(name, index=False)
        case "a.feather":
            rows.to_feather(name)
        case "folder":
            for place, text in enumerate(rows["text"]):
                path = Path(f"folder/{place:02}.txt")
                path.parent.mkdir(exist_ok=True)
                path.write_text(text + "\n")
        case _:
            rows.to_csv(name, index=False, sep="\t" if name == "a.tsv" else ",")
    ask(file, "expected.parquet")
    ask(name, "out.parquet")
    expected, found = (pd.read_parquet(f"{which}.parquet").drop(columns="id") for which in ("expected", "out"))
    pd.testing.assert_frame_equal(expected, found)


def test_a_row_below_the_threshold_gets_no_label(ask: Any, file: Path) -> None:
    ask(file, "all.parquet")
    best = pd.read_parquet("all.parquet")["probability"]
    threshold = float(best.median())
    result = ask(file, "some.parquet", abstain_below=threshold)
    table = pd.read_parquet("some.parquet")
    assert table["abstained"].tolist() == (best < threshold).tolist()
    assert table["label"].isna().tolist() == table["abstained"].tolist()
    assert 0 < result.abstained == table["abstained"].sum() < 36
    assert sum(result.labels.values()) + result.abstained == 36
    ask(file, "some.csv", abstain_below=threshold)
    shown = pd.read_csv("some.csv", keep_default_na=False)
    assert (shown["label"] == "").tolist() == table["abstained"].tolist()


def test_columns_may_be_called_otherwise(ask: Any, file: Path) -> None:
    ask(file, "as_trained.parquet")
    pd.read_csv(file).rename(columns={"text": "review"}).to_csv("renamed.csv", index=False)
    assert "no column 'text'" in refusal("renamed.csv", ask=ask)
    ask("renamed.csv", "renamed.parquet", text_columns=("review",))
    left, right = pd.read_parquet("as_trained.parquet"), pd.read_parquet("renamed.parquet")
    pd.testing.assert_frame_equal(left.rename(columns={"text": "review"}), right)


def test_result_says_what_was_done_in_one_line() -> None:
    result = PredictionResult(
        output="/tmp/out.csv",
        rows=1066,
        rejected=2,
        rejected_path="/tmp/out.csv.rejected.jsonl",
        abstained=6,
        labels={"bad": 530, "good": 530},
        model_version="reviews/3",
        sha256="0",
    )
    assert describe_result(result) == (
        "1,066 rows labelled by reviews/3: bad 530, good 530, 6 without a label; "
        "2 set aside in /tmp/out.csv.rejected.jsonl; written to /tmp/out.csv"
    )


def test_time_left_counts_only_what_this_process_has_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three quarters were there; then an eighth took 50 s."""
    clock, shown = [0.0], []
    monkeypatch.setattr(prediction.time, "monotonic", lambda: clock[0])
    progress = prediction.Progress(lambda percent, text: shown.append((percent, text)))
    for now, rows, share, worked in ((1, 500, 0.5, False), (2, 750, 0.75, False), (52, 875, 0.875, True)):
        clock[0] = now
        progress.tick(rows, share, worked)
    assert shown == [(50, "500 rows"), (75, "750 rows"), (87.5, "875 rows (88 %), about 50 s left")]
    progress.tick(4096, None, True)
    assert shown[-1] == (0, "4,096 rows")


# --- bad rows --------------------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(file: Path) -> Path:
    """Row 3 has a field too many, row 20 no text."""
    lines = file.read_text().splitlines()
    lines[4] += ",more"
    lines[21] = "r20,"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_bad_row_stops_with_its_number_and_the_way_round(ask: Any, spoilt: Path) -> None:
    line = refusal(spoilt, ask=ask)
    assert "reviews.csv row 3 has 3 fields, and the header 2" in line and "--on_error skip" in line
    assert not Path("out.csv").exists()


def test_skipped_rows_are_set_aside_and_counted_and_the_others_keep_their_numbers(ask: Any, spoilt: Path) -> None:
    result = ask(spoilt, on_error="skip")
    assert (result.rows, result.rejected) == (34, 2)
    aside = [json.loads(line) for line in Path("out.csv.rejected.jsonl").read_text().splitlines()]
    assert [row["row"] for row in aside] == [3, 20]
    assert aside[0]["given"].startswith("r3,") and aside[1]["given"] == {"id": "r20", "text": None}
    assert result.rejected_path == str(Path("out.csv.rejected.jsonl").resolve())
    table = pd.read_csv("out.csv")
    assert table["row"].tolist() == [row for row in range(36) if row not in (3, 20)]


def test_what_was_done_before_a_bad_row_is_not_done_again(
    ask: Any, spoilt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = spoilt.read_text().splitlines()
    spoilt.write_text("\n".join([*lines[:4], *lines[5:]]) + "\n")  # leaves the one without text, in the third chunk
    refusal(spoilt, ask=ask)
    seen = chunks_labelled(monkeypatch)
    assert ask(spoilt, on_error="skip").rejected == 1
    assert seen == [16, 24, 32]


def test_rows_that_were_skipped_once_stop_whoever_wants_to_stop(ask: Any, spoilt: Path) -> None:
    ask(spoilt, on_error="skip")
    assert "row 3 has 3 fields" in refusal(spoilt, ask=ask)
    assert len(pd.read_csv("out.csv")) == 34


def test_all_rows_may_be_set_aside(ask: Any, workplace: Path) -> None:
    Path("blank.csv").write_text('text,n\n" ",1\n')
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        result = ask("blank.csv", name, on_error="skip")
        assert (result.rows, result.rejected) == (0, 1)
    assert pd.read_parquet("out.parquet").empty and pd.read_csv("out.csv").empty


# --- killed, and asked again -----------------------------------------------------------------------------------------


def chunks_labelled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First rows of the chunks that are labelled from now on."""
    seen: list[int] = []
    label = prediction.label

    def spy(job: Job, classifier: Any, chunk: Any, *settings: Any) -> Any:
        seen.append(chunk[0].number)
        return label(job, classifier, chunk, *settings)

    monkeypatch.setattr(prediction, "label", spy)
    return seen


POINTS = [
    (prediction, "label", 2),
    (storing, "write_bytes", 4),
    (files, "flush", 3),
    (storing, "join_lines", 1),
    (storing.Part, "write", 2),
    (storing.Published, "write", 1),
]

MORE_POINTS = [
    *((prediction, "label", number) for number in (1, 5)),
    *((storing, "write_bytes", number) for number in (1, 2)),
    *((storing, "file_sha256", number) for number in (3, 8, 9)),
    *((files, "flush", number) for number in (1, 2, 4)),
    (storing, "join_lines", 2),
]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("module", "name", "number"), [*POINTS, *(rarely(*point) for point in MORE_POINTS)])
def test_killed_anywhere_the_output_is_the_same_byte_for_byte(
    module: Any, name: str, number: int, after: bool, ask: Any, spoilt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(spoilt, "whole.csv", on_error="skip", batch_size=5)
    whole = [Path(f"whole.csv{part}").read_bytes() for part in ("", ".rejected.jsonl")]
    shutil.rmtree("mlruns")
    calls, function = [0], getattr(module, name)

    def cut(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and not after:
            raise PowerCut
        answer = function(*arguments, **named)
        if calls[0] == number:
            raise PowerCut
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(module, name, cut)
        with pytest.raises(PowerCut):
            ask(spoilt, "cut.csv", on_error="skip", batch_size=5)
    result = ask(spoilt, "cut.csv", on_error="skip", batch_size=5)
    assert [Path(f"cut.csv{part}").read_bytes() for part in ("", ".rejected.jsonl")] == whole
    assert (result.rows, result.rejected) == (34, 2)
    assert not list(Path().glob(".*.partial")) and not list(Path("mlruns/work").glob("predict-*/parts"))


def test_a_part_that_was_damaged_is_made_again(ask: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(file, "whole.jsonl")
    shutil.rmtree("mlruns")
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(storing.Parts, "publish", power_cut)
        ask(file, "cut.jsonl")
    (parts,) = Path("mlruns/work").glob("predict-*/parts")
    (parts / "000001.jsonl").write_text("half a")
    (parts / "000002.json").unlink()
    seen = chunks_labelled(monkeypatch)
    ask(file, "cut.jsonl")
    assert seen == [8, 16]
    assert Path("cut.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


@pytest.mark.parametrize("change", ["input", "settings"])
def test_parts_of_something_else_are_not_taken(
    change: str, ask: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(storing.Parts, "publish", power_cut)
        ask(file)
    if change == "input":
        file.write_text(file.read_text().replace("a warm and funny film", "a stale and stupid film", 1))
    seen = chunks_labelled(monkeypatch)
    ask(file, **({"abstain_below": 0.7} if change == "settings" else {}))
    assert seen == [0, 8, 16, 24, 32]


def test_same_prediction_gives_its_output_again_at_once(ask: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask(file)
    seen, before = chunks_labelled(monkeypatch), Path("out.csv").stat()
    assert ask(file) == first and seen == []
    assert (Path("out.csv").stat().st_ino, Path("out.csv").stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    Path("out.csv").unlink()
    assert ask(file) == first and len(seen) == 5


@pytest.mark.parametrize("name", ["out.csv", "out.csv.rejected.jsonl"])
def test_other_file_in_the_place_of_the_output_is_kept_unless_told_otherwise(name: str, ask: Any, file: Path) -> None:
    Path(name).write_text("somebody's work")
    line = refusal(file, ask=ask)
    assert f"{name} is there already" in line and "--overwrite" in line
    assert Path(name).read_text() == "somebody's work"
    result = ask(file, overwrite=True)
    assert len(pd.read_csv("out.csv")) == 36 and not Path("out.csv.rejected.jsonl").exists()
    assert ask(file) == result


def test_output_that_somebody_changed_is_not_replaced(ask: Any, file: Path) -> None:
    ask(file)
    with Path("out.csv").open("a") as opened:
        opened.write("a note\n")
    assert "--overwrite" in refusal(file, ask=ask)


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", ["rename", "own code", "cut", "weights", "foundation"])
def test_unusable_adapter_is_refused(changed: str, ask: Any, file: Path, trained: Trained) -> None:
    folder = Path(shutil.copytree(trained.adapter.folder, "adapter"))
    settings = json.loads((folder / "peft_flow.json").read_text())
    match changed:
        case "rename":
            (folder / "peft_flow.json").rename(folder / "other.json")
        case "own code":
            settings["base_model"]["trust_remote_code"] = True
            (folder / "peft_flow.json").write_text(json.dumps(settings))
        case "cut":
            (folder / "peft_flow.json").write_text("{")
        case "weights":
            os.truncate(folder / "adapter_model.safetensors", 100)
        case "foundation":
            settings["base_model"]["weights"] = "0" * 64
            (folder / "peft_flow.json").write_text(json.dumps(settings))
    says = {
        "rename": "holds no peft_flow.json",
        "own code": "trust_remote_code",
        "cut": "peft_flow.json cannot be read",
        "foundation": "has other weights than",
    }
    assert says.get(changed, "model: adapter cannot be read") in refusal(file, ask=ask, model="adapter")


@pytest.fixture(scope="module")
def registered(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store has the adapter as version 1, champion, of `reviews`, and in the artifacts of its run."""
    from mlflow import MlflowClient

    from tasks.base.work import WORK
    from tasks.evaluation.recording import model_values
    from tasks.tracking import run as tracking
    from tests.conftest import tracked

    store = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as place:
        place.chdir(store)
        place.delenv("MLFLOW_TRACKING_URI", raising=False)
        config = trained.config.model_dump() | {"tracking": {"registered_model": "reviews"}}
        with tracked(config):
            work = str((WORK / "a").resolve())
            table = pd.DataFrame({"text": ["a warm film", "a cold film"]})
            values = model_values(work, RunConfig(**config), trained.data, trained.adapter, table)
            tracking.log(work, "model", values)
            tracking.log_files(work, "adapter", Path(trained.adapter.folder))
            tracking.send_all(work)
        MlflowClient(address.tracking_uri()).set_registered_model_alias("reviews", "champion", "1")
    return store


def test_model_goes_by_alias_version_and_run(
    registered: Path, trained: Trained, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.conftest import only_run

    monkeypatch.chdir(registered)
    Path("reviews").mkdir()  # of data, which may well be called like the model
    pd.DataFrame({"text": REVIEWS}).to_csv("reviews.csv", index=False)
    run_id = only_run(registered).info.run_id
    ask("reviews.csv", "folder.csv")
    wanted = pd.read_csv("folder.csv")
    for number, name in enumerate(
        ("reviews", "reviews@champion", "models:/reviews@champion", "reviews/1", "models:/reviews/1", run_id)
    ):
        result = ask("reviews.csv", f"{number}.csv", model=name)
        assert result.model_version == (run_id if name == run_id else "reviews/1")
        table = pd.read_csv(f"{number}.csv")
        assert np.abs(table["probability_bad"] - wanted["probability_bad"]).max() <= 1e-6
    for name in ("nobody", "reviews@previous", "reviews/7", "models:/reviews/7", "0" * 32, "a b", "m-0"):
        assert "model: " in refusal("reviews.csv", "none.csv", model=name, ask=ask)


def test_model_without_a_champion_is_refused_with_the_command_that_makes_one(
    registered: Path, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    store = shutil.copytree(registered, tmp_path / "store")
    monkeypatch.chdir(store)
    MlflowClient(address.tracking_uri()).delete_registered_model_alias("reviews", "champion")
    pd.DataFrame({"text": REVIEWS}).to_csv("reviews.csv", index=False)
    for name in ("reviews", "models:/reviews@champion"):
        says = refusal("reviews.csv", "none.csv", model=name, ask=ask)
        assert "reviews has no champion" in says and "peft-flow promote reviews 1 --reason" in says
        assert "reviews/1" in says
    assert "there is no run, registered model" in refusal("reviews.csv", "none.csv", model="reviews@best", ask=ask)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def many(workplace: Path) -> Path:
    """Three chunks of rows."""
    texts = [f"{REVIEWS[row % 36]} {row}" for row in range(2 * 4096 + 100)]
    pd.DataFrame({"text": texts}).to_csv("many.csv", index=False)
    return workplace / "many.csv"


def kill(point: str, *arguments: str) -> None:
    """The command in a process of its own, all of it killed at this point by kill -9."""
    from prefect.settings import PREFECT_API_URL

    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--kill", point, "--", "predict", *arguments, "--offline"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PREFECT_API_URL": PREFECT_API_URL.value()},
        capture_output=True,
        start_new_session=True,
    )
    assert done.returncode == -9, done.stderr.decode()


@pytest.mark.parametrize(
    "points",
    [
        ["tasks.inference.prediction:write_chunk:1:after"],  # between two parts
        rarely(["tasks.inference.prediction:label:2:after", "tasks.inference.parts:Published.write"]),
    ],
    ids=["once", "twice"],
)
def test_command_that_was_killed_goes_on_and_gives_the_same_bytes(
    points: list[str], trained: Trained, many: Path, capfd: pytest.CaptureFixture[str], prefect_harness: None
) -> None:
    arguments = ("predict", trained.adapter.folder, "many.csv")
    assert main([*arguments, "whole.csv", "--json", "--offline"]) == DONE
    output, errors = capfd.readouterr()
    assert json.loads(output)["rows"] == 8292 and "8,292 rows labelled" in errors
    assert not list(Path("mlruns/work").glob("predict-*/parts"))
    Path("whole.csv").rename("kept.csv")
    before = 0
    for point in points:
        kill(point, *arguments[1:], "out.csv")
        parts = len(list(Path("mlruns/work").glob("predict-*/parts/*.json")))
        assert before < parts <= 3 and not Path("out.csv").exists()
        before = parts
    assert main([*arguments, "out.csv", "--offline"]) == DONE
    assert "written to" in capfd.readouterr().out
    assert Path("out.csv").read_bytes() == Path("kept.csv").read_bytes()


@pytest.mark.endurance
def test_shards_in_processes_of_this_machine_of_which_one_is_killed_give_the_same_bytes(
    trained: Trained,
    many: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    prefect_harness: None,
) -> None:
    """Without a server; the first process is killed as soon as there is one."""
    from tasks.servers.shards import MODULE

    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    assert main(["predict", trained.adapter.folder, "many.csv", "whole.csv", "--offline"]) == DONE
    shutil.rmtree("mlruns")
    killed: list[int] = []

    def kill_one() -> None:
        while not killed:
            for process in psutil.Process().children():
                if MODULE in process.cmdline():
                    process.kill()
                    killed.append(process.pid)
                    return
            time.sleep(0.05)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    assert main(["predict", trained.adapter.folder, "many.csv", "out.csv", "--shards", "2", "--offline"]) == DONE
    thread.join(1)
    assert "was killed (exit code -9" in caplog.text and killed
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_lines_go_in_and_the_rows_of_a_file_come_out(
    trained: Trained,
    ask: Any,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    prefect_harness: None,
) -> None:
    Path("lines").write_text("\n".join(REVIEWS[:8]))
    with Path("lines").open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        assert main(["predict", trained.adapter.folder, "-", "-", "--offline"]) == DONE
    output, errors = capfd.readouterr()
    assert "8 rows labelled" in errors
    pd.DataFrame({"text": REVIEWS[:8]}).to_csv("reviews.csv", index=False)
    ask("reviews.csv", "out.jsonl", batch_size=64)
    assert output == Path("out.jsonl").read_text()


def test_bad_row_ends_the_command_with_code_2_and_one_line(
    trained: Trained, spoilt: Path, capfd: pytest.CaptureFixture[str], prefect_harness: None
) -> None:
    assert main(["predict", trained.adapter.folder, str(spoilt), "out.csv", "--offline"]) == USER_MUST_CHANGE
    output, errors = capfd.readouterr()
    assert output == "" and errors.splitlines()[-1].startswith("peft-flow: input: ") and "row 3 has 3 fields" in errors
    assert "Traceback" not in errors
