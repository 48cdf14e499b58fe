"""What a finished run tells MLflow."""

from pathlib import Path

import pytest

from tasks.base.records import (
    Comparison,
    DataCheck,
    Difference,
    Evaluation,
    Interval,
    Place,
    Rung,
    SameText,
    TrainedAdapter,
)
from tasks.base.work import WORK
from tasks.evaluation.recording import TABLES, data_metrics, final_metrics, log_comparison
from tasks.tracking import address
from tasks.tracking import run as tracking
from tests.conftest import tracked


def around(value: float) -> Interval:
    return Interval(value=value, low=value - 0.05, high=value + 0.05)


def rung(name: str, accuracy: float, best: float) -> Rung:
    gain = Difference(
        verdict="improved",
        scores={
            "accuracy": around(best - accuracy),
            "macro_f1": around(best - accuracy),
            "log_loss": around(accuracy - best),
        },
        p_value=0.01,
        fixed=9,
        broken=1,
    )
    return Rung(
        name=name,
        scores={"accuracy": around(accuracy), "macro_f1": around(accuracy - 0.01), "log_loss": around(1 - accuracy)},
        adapter_gain=None if name == "tuned" else gain,
    )


def a_comparison(folder: Path, leaked: int = 0, **references: float) -> Comparison:
    accuracies = {"tuned": 0.85, "baseline": 0.5, **references}
    best_first = sorted(accuracies.items(), key=lambda pair: -pair[1])
    return Comparison(
        folder=str(folder),
        rows=100,
        confidence=0.95,
        detectable=0.12,
        ladder=tuple(rung(name, accuracy, accuracies["tuned"]) for name, accuracy in best_first),
        leaked=leaked,
        score_without_leaked=dict.fromkeys(accuracies, 0.84) if leaked else {},
        calibration={"temperature": 1.5, "error_before": 0.08, "error_after": 0.02},
        slices=(),
    )


def an_adapter(folder: Path) -> TrainedAdapter:
    (folder / "adapter_model.safetensors").write_bytes(bytes(2**20))
    return TrainedAdapter(
        folder=str(folder),
        sha256="",
        probe="",
        history=(),
        trainable_parameters=1,
        total_parameters=2,
        target_modules=(),
        fresh_modules=(),
        steps=30,
        best_step=20,
        fitted={"temperature": 1.5},
        seconds=3,
        examples_per_second=100,
        trunk_seconds=0.0,
        padding=0.1,
        peak_memory_mb=400,
        compute={"threads": "2"},
    )


def evaluations_for(result: Comparison, folder: Path) -> dict[str, Evaluation]:
    """Prediction files whose own names say nothing."""
    found = {}
    for i, rung in enumerate(result.ladder):
        (folder / f"file{i}.parquet").write_text(rung.name)
        found[rung.name] = Evaluation(
            predictions=str(folder / f"file{i}.parquet"), sha256="", scores=rung.values, seconds=i
        )
    return found


def test_every_classifier_has_its_metrics_and_nothing_else(tmp_path: Path) -> None:
    result = a_comparison(tmp_path, tfidf=0.79, majority=0.5)
    metrics = final_metrics(evaluations_for(result, tmp_path), an_adapter(tmp_path), result)
    assert {name: value for name, value in metrics.items() if name.startswith("reference/tfidf")} == pytest.approx(
        {
            "reference/tfidf/accuracy": 0.79,
            "reference/tfidf/macro_f1": 0.78,
            "reference/tfidf/log_loss": 0.21,
            "reference/tfidf/gain": 0.06,
            "reference/tfidf/gain_low": 0.01,
            "reference/tfidf/gain_high": 0.11,
            "reference/tfidf/gain_p_value": 0.01,
        }
    )
    assert metrics["tuned/accuracy"] == 0.85
    assert (metrics["tuned/accuracy_low"], metrics["tuned/accuracy_high"]) == pytest.approx((0.80, 0.90))
    assert metrics["delta/accuracy"] == pytest.approx(0.35)
    assert metrics["delta/fixed"] == 9
    strongest = {name: value for name, value in metrics.items() if name.startswith("reference/strongest")}
    assert strongest == {name.replace("tfidf", "strongest"): metrics[name] for name in metrics if "tfidf/gain" in name}
    assert metrics["calibration/temperature"] == 1.5
    assert metrics["cost/adapter_mb"] == 1
    assert {name.split("/")[0] for name in metrics} == {
        "baseline", "tuned", "reference", "delta", "calibration", "cost", "train"
    }  # fmt: skip
    assert len(metrics) < 50  # more is a page that nobody reads


def test_leaked_rows_add_the_accuracy_without_them(tmp_path: Path) -> None:
    clean, leaky = a_comparison(tmp_path), a_comparison(tmp_path, leaked=3)
    evaluations = evaluations_for(clean, tmp_path)
    before, after = (final_metrics(evaluations, an_adapter(tmp_path), result) for result in (clean, leaky))
    assert after == before | {"test/accuracy_without_leaked": 0.84}


def test_tables_are_logged_once_however_often_the_task_is_tried(workplace: Path) -> None:
    import mlflow
    import pandas as pd
    from mlflow import MlflowClient

    folder = workplace / "work/comparison"
    (folder / "tables").mkdir(parents=True)
    (workplace / "work/plots").mkdir()
    (workplace / "work/plots/ladder.png").write_bytes(b"a picture")
    for name in ("comparison.json", "comparison.md"):
        (folder / name).write_text("{}")
    for name in set(TABLES) - {"predictions"}:
        frame = pd.DataFrame({"classifier": ["adapter", "é"], "accuracy": [0.85, 0.5]})
        frame.to_json(folder / f"tables/{name}.json", orient="split", index=False)
    result = a_comparison(folder, probe=0.7)
    table = pd.DataFrame({"row": [0, 1, 2]})
    test = pd.DataFrame({"row": [0, 1, 2], "text": ["a", "b", "c"], "label": ["x", "y", "x"]})
    with tracked() as run_id:
        for _ in range(2):
            log_comparison(str((WORK / "a").resolve()), evaluations_for(result, workplace), result, table, test)
    mlflow.set_experiment("peft-flow")
    tables = {name: mlflow.load_table(f"comparison/{name}.json", run_ids=[run_id]) for name in TABLES}
    assert [len(tables[name]) for name in TABLES] == [2, 2, 2, 2, 2, 3]
    assert list(tables["ladder"]["classifier"]) == ["adapter", "é"]
    api = MlflowClient(address.tracking_uri())
    logged = {Path(file.path).name for file in api.list_artifacts(run_id, "comparison")}
    assert logged == {
        "comparison.json", "comparison.md", "test.parquet", "tuned.parquet", "baseline.parquet", "probe.parquet",
        *(f"{name}.json" for name in TABLES),
    }  # fmt: skip
    place = api.download_artifacts(run_id, "comparison/probe.parquet", str(workplace))
    assert Path(place).read_text() == "probe"
    # the compare page of several runs shows only what lies at the top
    assert {"comparison.md", "ladder.png"} <= {file.path for file in api.list_artifacts(run_id)}


def test_data_check_is_in_the_run_before_its_figures_are(workplace: Path) -> None:
    from mlflow import MlflowClient

    places = (Place(split="train", row=1), Place(split="test", row=4))
    check = DataCheck(
        same_texts=(
            SameText(text="good", places=places, labels=("good", "bad")),
            SameText(text="bad", places=places, labels=("bad", "bad")),
        ),
        duplicates={"train": 5, "validation": 0, "test": 1},
        leaked={"validation": (), "test": (4, 7)},
        kept_out={"train": 2, "validation": 1},
        near_empty=(),
        max_length=32,
        truncated={},
        lengths={},
        length_edges=(),
        detectable=0.04,
        warnings=(),
    )
    folder = workplace / "check"
    folder.mkdir()
    check.write(folder / "data_check.json")
    (folder / "data_check.md").write_text("# Data check\n")
    with tracked() as run_id:
        tracking.log_files(str((WORK / "a").resolve()), "data_check", folder)
        tracking.send_all(str((WORK / "a").resolve()))
        api = MlflowClient(address.tracking_uri())
        logged = {file.path for file in api.list_artifacts(run_id, "data_check")}
        assert logged == {"data_check/data_check.json", "data_check/data_check.md"}
        assert not api.get_run(run_id).data.metrics
        assert data_metrics(check) == {
            "data/leaked_test_rows": 2,
            "data/conflicting_texts": 1,
            "data/duplicate_rows": 6,
            "data/kept_out_rows": 3,
            "test/detectable_difference": 0.04,
        }
