"""A year of monthly data on real sentences: what is promoted, what is not, and a step back in the middle."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from tasks.base.outcomes import RetrainResult
from tasks.registry import decisions as registry
from tasks.settings.config import RetrainConfig
from tasks.settings.fixed import SPLITS
from tasks.settings.loading import checked
from tasks.tracking.address import client
from tasks.tracking.decision import Decision
from tests.conftest import SHARED

pytestmark = [pytest.mark.endurance, pytest.mark.hub, pytest.mark.timeout(3000)]

NAME, TEST_ROWS = "year", 500

MONTHS = {1: 150, 2: 150, 3: 6, 4: 300, 5: 0, 6: 300, 7: 200, 8: 200, 9: 150, 10: 150, 11: 150, 12: 150}
"""New rows of each month: the third is tiny, the fifth brings none."""

MOST_WORDS = 15
"""Of a sentence: short ones are trained on twice as fast."""

TINY, UNCHANGED, MISLABELLED, STEP_BACK = 3, 5, 6, 8


class Month(NamedTuple):
    result: RetrainResult
    seconds: float


class Year(NamedTuple):
    months: dict[int, Month]
    champions: dict[int, str | None]
    """After each month."""
    rollback_seconds: float
    decisions: list[Decision]


def write(rows: pd.DataFrame, file: Path) -> None:
    rows.assign(label=rows["label"].map({0: "bad", 1: "good"})).to_csv(file, index=False)


@pytest.fixture(scope="module")
def year(hub_root: Path, tmp_path_factory: pytest.TempPathFactory, prefect_harness: None) -> Iterator[Year]:
    from flows.retrain import retrain
    from tasks.tracking.versions import find_champion

    folder, before = tmp_path_factory.mktemp("year"), Path.cwd()
    os.chdir(folder)
    (folder / "drops").mkdir()
    splits = {name: pd.read_parquet(SHARED / f"data/rotten_tomatoes/{name}.parquet") for name in SPLITS}
    held_out = pd.concat([splits["test"], splits["validation"]])
    short = (part[part["text"].str.count(" ") < MOST_WORDS] for part in (splits["train"], held_out))
    train, test = (part.sample(frac=1, random_state=0) for part in short)
    write(test[:TEST_ROWS], folder / "drops/test.csv")
    write(test[TEST_ROWS:], folder / "drops/validation.csv")
    months, champions, begin, rollback_seconds = {}, {}, 0, 0.0
    for month, count in MONTHS.items():
        drop = train[begin : begin + count]
        begin += count
        if count:
            labels = 1 - drop["label"] if month == MISLABELLED else drop["label"]
            write(drop.assign(label=labels), folder / f"drops/train-{month:02}.csv")
        config = checked(RetrainConfig, settings(hub_root, folder / "drops", force=month == 1))
        begun = time.monotonic()
        result = retrain(**{name: getattr(config, name) for name in RetrainConfig.model_fields})
        months[month] = Month(result, time.monotonic() - begun)
        if month == MISLABELLED:  # somebody looks into it, and has the rows labelled again
            write(drop, folder / f"drops/train-{month:02}.csv")
        if month == STEP_BACK:
            begun = time.monotonic()
            registry.rollback(NAME, "complaints about the newest", "a test")
            rollback_seconds = time.monotonic() - begun
        champion = find_champion(NAME)
        champions[month] = champion.version if champion else None
    yield Year(months, champions, rollback_seconds, registry.decisions(NAME))
    os.chdir(before)


def settings(hub_root: Path, data: Path, force: bool) -> dict[str, Any]:
    return {
        "model": {"name": str(hub_root / "models/sentence-transformers/all-MiniLM-L6-v2")},
        "data": {"name": str(data), "max_length": 32},
        "training": {"epochs": 3, "batch_size": 8, "learning_rate": 2e-3},
        "evaluation": {"bootstrap_samples": 500, "references": []},
        "tracking": {"registered_model": NAME},
        "force": force,
    }


def test_first_model_is_on_record_as_forced(year: Year) -> None:
    """From 100 rows nothing beats TF-IDF with any confidence."""
    assert year.champions[1] == "1"
    assert (year.decisions[0].action, year.decisions[0].by) == ("promoted", "force")


def test_mislabelled_month_is_never_promoted(year: Year) -> None:
    bad = year.months[MISLABELLED].result
    assert bad.action == "kept" and bad.version
    assert year.champions[MISLABELLED] == year.champions[MISLABELLED - 1]
    assert bad.version not in year.champions.values()


def test_month_without_anything_new_is_skipped_within_seconds(year: Year) -> None:
    unchanged = year.months[UNCHANGED]
    assert unchanged.result.action == "skipped" and unchanged.result.reason.startswith("nothing new since")
    assert unchanged.seconds < 5


def test_tiny_month_is_trained_and_judged_like_any(year: Year) -> None:
    result = year.months[TINY].result
    assert result.gate and result.gate.rows == TEST_ROWS and result.version
    more = train_rows(result) - train_rows(year.months[TINY - 1].result)
    assert 0 < more <= MONTHS[TINY]


def train_rows(result: RetrainResult) -> int:
    """Of a run, as its data sets in MLflow say."""
    for item in client().get_run(str(result.run_id)).inputs.dataset_inputs:
        if "train" in [tag.value for tag in item.tags]:
            return int(json.loads(item.dataset.profile)["num_rows"])
    raise AssertionError("no data set to train with is recorded")


def test_improvements_are_promoted(year: Year) -> None:
    """And each was shown on the same frozen rows."""
    promoted = [month.result for number, month in year.months.items() if month.result.action == "promoted"]
    assert len(promoted) >= 3
    for result in promoted[1:]:
        assert result.gate and result.gate.passed and result.gate.difference
        assert result.gate.rows == TEST_ROWS and result.gate.difference.primary.low > 0
    last = [month.result.gate.challenger for month in year.months.values() if month.result.gate][-1]
    assert last and last.value > 0.7


def test_step_back_in_the_middle_holds_until_something_better_comes(year: Year) -> None:
    (step,) = [decision for decision in year.decisions if decision.action == "rolled back"]
    assert year.champions[STEP_BACK] == step.version != step.previous
    assert year.rollback_seconds < 5


def test_history_of_the_alias_is_what_happened(year: Year) -> None:
    from tasks.registry.history import history_of

    champion, told, history = None, [], history_of(NAME)
    for decision in year.decisions:
        assert decision.previous == champion
        if decision.action in ("promoted", "rolled back"):
            champion = decision.version
        told.append(champion)
    happened = list(year.champions.values())
    assert champion == history.champion == happened[-1]
    assert [change.version for change in history.changes] == [
        version for i, version in enumerate(told) if i == 0 or version != told[i - 1]
    ]
    assert [version for version in happened if version in told] == happened
    decided = [month.result for month in year.months.values() if month.result.action != "skipped"]
    assert [decision.action for decision in year.decisions if decision.action != "rolled back"] == [
        result.action for result in decided
    ]
