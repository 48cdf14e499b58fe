"""Several labels and numbers through the whole product: trained, recorded, read back, predicted, exported, compared."""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from flows.actions import DONE, USER_MUST_CHANGE
from flows.cli import main
from tasks.base.records import RunResult
from tasks.evaluation.predictions import read_predictions
from tasks.models import serving
from tasks.settings.loading import validated
from tests.test_finetune_flow import run_flow

NAMES = ("battery", "price", "screen")

SAYS = {"battery": "the battery lasts", "price": "the price is high", "screen": "the screen is bright"}


def tickets(rows: int, seed: int) -> pd.DataFrame:
    """Sentences that say something of each of their labels, in any order."""
    generator = np.random.default_rng(seed)
    texts, labels = [], []
    for row in range(rows):
        given = [name for name in NAMES if generator.random() < 0.5]
        parts = [SAYS[name] for name in generator.permutation(given)] or ["nothing to report"]
        texts.append(f"{' and '.join(parts)} ({seed} {row})")
        labels.append(given)
    return pd.DataFrame({"text": texts, "label": labels})


def grades(rows: int, seed: int) -> pd.DataFrame:
    """A word for each tenth of a grade between 1 and 5."""
    generator = np.random.default_rng(seed)
    words = ["awful", "poor", "fair", "good", "great"]
    values = generator.integers(0, 5, rows)
    texts = [f"a {words[value]} {words[value]} film ({seed} {row})" for row, value in enumerate(values)]
    return pd.DataFrame({"text": texts, "label": (values + 1) + generator.normal(0, 0.05, rows).round(3)})


READERS: dict[str, Any] = {"csv": pd.read_csv, "jsonl": partial(pd.read_json, lines=True), "parquet": pd.read_parquet}


class Run(NamedTuple):
    task: str
    result: RunResult
    folder: Path
    rows: pd.DataFrame


@pytest.fixture(scope="module", params=["multi_label", "regression"])
def run(
    request: pytest.FixtureRequest,
    foundation: Any,
    tmp_path_factory: pytest.TempPathFactory,
    prefect_harness: None,
) -> Iterator[Run]:
    """A run of each task in an empty folder, which stays the current one."""
    folder, before = tmp_path_factory.mktemp("place"), Path.cwd()
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    rows = {"multi_label": tickets, "regression": grades}[request.param]
    for split, count, seed in (("train", 160, 0), ("validation", 60, 1), ("test", 60, 2)):
        rows(count, seed).to_json(folder / f"{split}.jsonl", orient="records", lines=True)
    config = validated(
        {
            "model": {"name": str(foundation("bert"))},
            "data": {"name": str(folder), "max_length": 32},
            "training": {"epochs": 8, "batch_size": 8, "learning_rate": 0.01},
            "evaluation": {"bootstrap_samples": 200, "batch_size": 8},
            "tracking": {"registered_model": "tickets"},
        }
    )
    yield Run(request.param, run_flow(config), folder, rows(20, 3))
    os.chdir(before)


def artifact(run: Run, name: str) -> Path:
    return next(path for path in sorted(run.folder.rglob(name)) if run.result.run_id in path.parts)


def test_adapter_learns_and_is_better_than_the_foundation_model(run: Run) -> None:
    assert run.result.status == "finished"
    if run.task == "multi_label":
        assert run.result.tuned["micro_f1"] > 0.9 > run.result.baseline["micro_f1"]
    else:
        assert run.result.tuned["mae"] < 0.5 < run.result.baseline["mae"]
    assert set(run.result.references) == {"majority", "tfidf", "probe"}


def test_scores_are_those_of_the_predictions(run: Run) -> None:
    from sklearn.metrics import f1_score, mean_absolute_error

    rows, labels, table = read_predictions(str(artifact(run, "tuned.parquet")))
    assert len(rows) == 60
    if run.task == "multi_label":
        expected = f1_score(labels, table[:, 3:], average="micro")
    else:
        expected = mean_absolute_error(labels, table[:, 0])
    assert next(iter(run.result.tuned.values())) == pytest.approx(expected)


def test_page_and_card_speak_of_the_task(run: Run) -> None:
    page = artifact(run, "comparison.md").read_text()
    card = (Path(run.result.adapter_path) / "README.md").read_text()
    word = {"multi_label": "micro-F1", "regression": "mean absolute error"}[run.task]
    assert word in page.lower() or word in page
    assert "accuracy" not in page.lower() and "accuracy" not in card.lower()
    note = {"multi_label": "holds lists", "regression": "is a number to predict"}[run.task]
    assert note in page and f"data.task {run.task}".replace("_", "") in page.replace("\\_", "").replace("_", "")


def test_predict_gives_answers_of_the_task_in_every_format(run: Run, tmp_path: Path) -> None:
    run.rows[["text"]].to_csv(tmp_path / "new.csv", index=False)
    frames = {}
    for kind in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"out.{kind}"
        assert main(["predict", run.result.adapter_path, str(tmp_path / "new.csv"), str(out)]) == DONE
        frames[kind] = {"csv": pd.read_csv, "parquet": pd.read_parquet}.get(kind, partial(pd.read_json, lines=True))(
            out
        )
    if run.task == "multi_label":
        given = [list(labels) for labels in frames["parquet"]["labels"]]
        assert [list(labels) for labels in frames["jsonl"]["labels"]] == given
        assert [cell.split("|") if isinstance(cell, str) else [] for cell in frames["csv"]["labels"]] == given
        right = [set(one) == set(other) for one, other in zip(given, run.rows["label"], strict=True)]
        assert np.mean(right) > 0.7
        assert {f"probability_{name}" for name in NAMES} <= set(frames["csv"])
    else:
        for frame in frames.values():
            assert (frame["low"] < frame["prediction"]).all() and (frame["prediction"] < frame["high"]).all()
            assert np.abs(frame["prediction"] - run.rows["label"]).mean() < 0.6


def test_what_a_task_does_not_have_is_refused_before_anything_is_loaded(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.rows[["text"]].to_csv(tmp_path / "new.csv", index=False)
    for option, says in (("--abstain_below 0.8", "abstain_below: "), ("--coverage 0.9", "coverage: ")):
        asked = ["predict", run.result.adapter_path, str(tmp_path / "new.csv"), str(tmp_path / "out.csv")]
        assert main([*asked, *option.split()]) == USER_MUST_CHANGE
        assert says in capsys.readouterr().err


def test_served_model_answers_as_predict_does(run: Run) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{run.folder}/mlruns/mlflow.db")
    served = mlflow.pyfunc.load_model(run.result.model_uri).predict(run.rows[["text"]])
    settings = serving.read_settings(Path(run.result.adapter_path))
    expected = serving.predict(*serving.load_adapter(Path(run.result.adapter_path)), settings, run.rows[["text"]])
    assert list(served) == list(serving.answer_columns(settings))
    for name in served:
        assert served[name].tolist() == expected[name].tolist()


def test_exported_model_gives_the_same_answers_by_its_own_snippet(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    assert main(["export", run.result.adapter_path, str(out), "--merged"]) == DONE
    text = (out / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet.replace("THIS_FOLDER", str(out)).replace("a text", run.rows["text"][0]), names)
    adapter = Path(run.result.adapter_path)
    table = serving.ask(*serving.load_adapter(adapter), serving.read_settings(adapter), run.rows[:1])
    if run.task == "multi_label":
        assert names["probabilities"].detach().numpy()[0] == pytest.approx(table[0, :3], abs=1e-4)
        assert names["given"].numpy()[0].tolist() == table[0, 3:].astype(bool).tolist()
    else:
        assert names["numbers"].detach().numpy()[0] == pytest.approx(table[0, 0], abs=1e-3)
