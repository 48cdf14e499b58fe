"""A dry run: what it says before anything is trained, how it counts up, and that it changes nothing for the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.cli import DONE, USER_MUST_CHANGE, main
from tasks.base.work import WORK
from tasks.evaluation import rehearsal
from tasks.evaluation.rehearsal import Timed, lengths_of, padded_tokens, some_rows, step_rows, training_seconds
from tasks.training.fit import planned_steps
from tests.conftest import Trained


def test_dry_run_says_what_the_run_will_take_and_leaves_it_as_it_is(
    small_config: Any,
    workplace: Path,
    prefect_harness: None,
    no_pictures: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rehearsal, "trunk_bytes", lambda *_: 7_000_000)
    config = small_config({"evaluation": {"references": ["majority", "tfidf"]}, "adapter": {"layers": 1}})
    (workplace / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert main(["finetune", "run.yaml", "--dry-run", "--json"]) == DONE
    said = json.loads(capsys.readouterr().out)
    assert said["row_counts"] == {"train": 48, "validation": 12, "test": 12}
    assert said["steps"] == planned_steps(config, 48) == 12
    assert list(said["scores"]) == ["foundation", "majority", "TF-IDF"]
    assert said["seconds"]["total"] == pytest.approx(sum(said["seconds"].values()) / 2, abs=0.2)
    assert min(said["seconds"].values()) > 0 and said["disk_mb"] >= said["kept_mb"] >= 2 + 7
    assert said["memory_mb"] > 100 and said["reload_memory_mb"] > 100
    before = sorted(file.name for file in WORK.iterdir())
    assert not [name for name in before if name.startswith("dry-run-")]
    assert main(["finetune", "run.yaml", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["seconds"]["baseline"] < 1  # it was measured before
    assert len([name for name in WORK.iterdir() if name.name.startswith("baseline-")]) == 1


def test_dry_run_of_several_seeds_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--dry-run", "--seeds", "3"]) == USER_MUST_CHANGE
    assert "leave --seeds out" in capsys.readouterr().err


def test_rows_of_the_rehearsal_hold_the_longest_and_are_other_data(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "STEPS", 3)
    config, data = trained.config, trained.data
    sample = some_rows(config, data, tmp_path / "data")
    assert sample.rows("train") == 3 * step_rows(config) == 24
    longest = sorted(lengths_of(data, "train"))[-step_rows(config) :]
    assert sorted(lengths_of(sample, "train"))[-step_rows(config) :] == longest
    assert sample.fingerprint != data.fingerprint  # else what is cached by it would be taken for the run's
    assert sample.rows("validation") == data.rows("validation")


def test_training_is_counted_up_by_tokens(trained: Trained) -> None:
    config, data = trained.config, trained.data
    train, validation = (lengths_of(data, split) for split in ("train", "validation"))
    halves = Timed(
        trained.adapter,
        step=2.0,
        validation=0.5,
        around=3.0,
        reload_memory_mb=0.0,
        tokens_per_step=padded_tokens(train, config, 0).mean() / 2,  # the steps timed were half as long as the others
        validation_tokens=int(validation.sum()) // 2,
        tokens=1,
    )
    steps = planned_steps(config, data.rows("train"))
    epochs = config.training.epochs
    expected = steps * 2.0 * 2 + epochs * 0.5 * validation.sum() / (validation.sum() // 2) + 3.0
    assert training_seconds(config, data, halves, steps) == pytest.approx(expected, rel=1e-6)


def test_padding_is_that_of_a_training_whose_rows_come_by_length(trained: Trained) -> None:
    lengths = lengths_of(trained.data, "train")
    shares = [1 - lengths.sum() / padded_tokens(lengths, trained.config, draw).sum() for draw in range(20)]
    assert min(shares) - 0.01 < trained.adapter.padding < max(shares) + 0.01
    accumulating = trained.config.training.model_copy(update={"gradient_accumulation_steps": 4, "batch_size": 2})
    halves = padded_tokens(lengths, trained.config.model_copy(update={"training": accumulating}), 0)
    assert len(halves) == len(padded_tokens(lengths, trained.config, 0)) and halves.sum() >= lengths.sum()
