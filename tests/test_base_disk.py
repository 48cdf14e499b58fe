"""A full disk is said in one line, nothing half-written is left, and a run goes on once there is space."""

import errno
import os
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows import actions, cli
from tasks.base import disk
from tasks.base.disk import DiskFull, check_space, describe, is_disk_full, size, writing
from tasks.base.files import write_text
from tasks.settings.fields import InputError
from tests.conftest import ROOT, server_variables
from tests.faults import SmallDisk, fail_write, full_disk

LINE = r"/\S+: the disk is full: \d+\.\d .B needed, \d+\.\d .B free; make space and run the same command again"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SmallDisk]:
    with full_disk(tmp_path, 0.25) as small:
        yield small


# what libraries say when the disk is full


def by_safetensors(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weights": torch.zeros(500_000)}, folder / "a.safetensors")


def by_torch(folder: Path) -> None:
    import torch

    torch.save({"weights": torch.zeros(500_000)}, folder / "a.pt")


def by_sqlite(folder: Path) -> None:
    connection = sqlite3.connect(folder / "a.db")
    connection.execute("create table rows (text)")
    connection.executemany("insert into rows values (?)", [("x" * 1000,) for _ in range(1000)])
    connection.commit()


def by_sqlalchemy(folder: Path) -> None:
    from sqlalchemy import create_engine, text

    with create_engine(f"sqlite:///{folder / 'a.db'}").begin() as connection:
        connection.execute(text("create table rows (text)"))
        connection.execute(text("insert into rows values (:text)"), [{"text": "x" * 1000} for _ in range(1000)])


def by_datasets(folder: Path) -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"text": ["x" * 1000] * 1000})
    rows.map(lambda row: row, cache_file_name=str(folder / "a.arrow"))


def by_tokenizers(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f"word{i}": i for i in range(50_000)}, "word0")).save(str(folder / "tokenizer.json"))


WAYS: list[Callable[[Path], Any]] = [
    by_safetensors,
    by_torch,
    by_sqlite,
    by_sqlalchemy,
    by_datasets,
    by_tokenizers,
    lambda folder: pd.DataFrame({"a": np.random.rand(100_000)}).to_parquet(folder / "a.parquet"),
    lambda folder: np.save(folder / "a.npy", np.zeros(100_000)),
    lambda folder: (folder / "a.txt").write_text("x" * 1_000_000),
]
NAMES = ("safetensors", "torch", "sqlite", "sqlalchemy", "datasets", "tokenizers", "parquet", "numpy", "text")


@pytest.mark.parametrize("write", WAYS, ids=NAMES)
def test_full_disk_is_recognized_whoever_writes(write: Callable[[Path], Any], small: SmallDisk) -> None:
    with pytest.raises(DiskFull, match=LINE) as full, writing(small.folder / "a", 1_000_000):
        write(small.folder)
    assert "/disk/a: the disk is full: 1.0 MB needed" in str(full.value)


@pytest.mark.parametrize(
    ("words", "full"),
    [
        ("I/O error: No space left on device (os error 28)", True),
        (f"quota (os error {errno.EDQUOT})", True),
        ("Disc quota exceeded", True),  # macOS
        ("I/O error: file not found (os error 2)", False),
        ("something else (os error 282)", False),
    ],
)
def test_full_disk_is_known_by_what_libraries_without_error_numbers_say(words: str, full: bool) -> None:
    assert is_disk_full(RuntimeError(words)) is full


def test_full_disk_is_recognized_behind_other_errors() -> None:
    hidden = InputError("data.name: reviews.csv cannot be read")
    hidden.__context__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    hidden.__suppress_context__ = True
    assert is_disk_full(hidden)
    circle = ValueError("one")
    circle.__cause__ = RuntimeError("two")
    circle.__cause__.__cause__ = circle
    assert not is_disk_full(circle)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "none", "x"), RuntimeError("the disk"), OSError()])
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert not is_disk_full(error)
    with pytest.raises(type(error)) as raised, writing(Path("x"), 1):
        raise error
    assert raised.value is error


def test_line_survives_what_prefect_does_with_errors() -> None:
    error = DiskFull("/x: the disk is full")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "/x: the disk is full"


def test_innermost_line_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DiskFull) as full, writing(tmp_path / "folder", 10), writing(tmp_path / "file", 5):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(full.value).startswith(f"{tmp_path}/file: ")
    outer = RuntimeError("and then the run could not be closed")
    outer.__context__ = full.value
    assert describe(outer) == str(full.value)


def test_path_that_the_system_names_is_reported(tmp_path: Path) -> None:
    line = describe(OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "new/folder")))
    assert line.startswith(f"{tmp_path}/new/folder: the disk is full: ")


def test_unknown_path_is_where_least_is_free(
    small: SmallDisk, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(small.folder / "hf"))
    small.fill(left=8192)
    assert describe(sqlite3.OperationalError("database or disk is full")).startswith(
        f"{small.folder}/hf: the disk is full: 8.2 kB free; make space"
    )


def test_space_is_asked_for_before_long_work(small: SmallDisk) -> None:
    check_space(small.folder / "not/there/yet", 100_000)
    with pytest.raises(DiskFull, match=r"not/there/yet: the disk is full: 300.0 kB needed, \d+\.\d kB free"):
        check_space(small.folder / "not/there/yet", 300_000)


def test_sizes_are_reported_in_a_fitting_unit() -> None:
    assert [size(count) for count in (0, 1_234, 12_345_678, 5_000_000_000)] == ["0.0 kB", "1.2 kB", "12.3 MB", "5.0 GB"]


# our own files


def test_text_that_does_not_fit_leaves_the_old_one_and_nothing_else(small: SmallDisk) -> None:
    write_text(small.folder / "note", "old")
    with pytest.raises(DiskFull, match=r"disk/note: the disk is full: 400.0 kB needed, 2\d\d\.\d kB free"):
        write_text(small.folder / "note", "x" * 400_000)
    assert [path.name for path in small.folder.iterdir()] == ["note"]
    assert (small.folder / "note").read_text() == "old"


@pytest.mark.parametrize("number", [1, 2])
def test_text_fails_whole_at_its_write_and_at_its_rename(number: int, tmp_path: Path) -> None:
    write_text(tmp_path / "note", "old")
    with fail_write(number, glob=f"{tmp_path}/*") as fault, pytest.raises(DiskFull):
        write_text(tmp_path / "note", "new")
    assert fault.happened
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    assert (tmp_path / "note").read_text() == "old"


def test_data_that_do_not_fit_leave_nothing_and_fit_later(small: SmallDisk, small_config: Any) -> None:
    from tasks.data.prepare import prepare

    small.fill(left=30_000)
    with pytest.raises(DiskFull, match=LINE):
        prepare(small_config(), small.folder / "work")
    assert [path.name for path in small.folder.rglob("*") if path != small.filler] == ["work"]
    small.make_space()
    assert prepare(small_config(), small.folder / "work").rows("train") == 48


def test_predictions_that_do_not_fit_leave_nothing(small: SmallDisk) -> None:
    from tasks.evaluation.predictions import write_evaluation

    table = np.random.default_rng(0).dirichlet([1, 1], 40_000).astype(np.float32)
    split = {"labels": np.zeros(40_000, int), "row": np.arange(40_000)}
    with pytest.raises(DiskFull, match=r"disk/p.parquet: the disk is full: 960.0 kB needed"):
        write_evaluation("single_label", table, split, small.folder / "p.parquet", 1.0)
    assert not list(small.folder.iterdir())


def test_demo_is_not_begun_where_it_does_not_fit(small: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.sources import demo

    monkeypatch.setenv("XDG_CACHE_HOME", str(small.folder))
    monkeypatch.setattr(demo, "pretrain_model", lambda folder: pytest.fail("minutes for nothing"))
    with pytest.raises(DiskFull, match=r"model: the disk is full: 4.0 MB needed"):
        demo.demo_model()
    small.fill(left=50_000)
    with pytest.raises(DiskFull, match=r"reviews: the disk is full: 250.0 kB needed"):
        demo.demo_reviews()
    assert not list(demo.demo_folder().glob("*reviews*"))


def test_database_appears_whole(small: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.tracking import opening, store

    monkeypatch.setattr(opening, "make_database", store.make_database)  # and no copy, as other tests have it
    monkeypatch.chdir(small.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(Exception, match="full") as full:
        opening.make_store()
    assert is_disk_full(full.value)
    assert not (small.folder / "mlruns/mlflow.db").exists()


# the command


def test_command_says_it_whatever_the_error_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise InputError("it cannot be read") from OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a"))

    monkeypatch.setattr(actions, "load_config", full)
    assert cli.main(["finetune"]) == cli.FAILED
    said = capsys.readouterr().err
    assert said.startswith(f"peft-flow: {tmp_path}/a: the disk is full: ")
    assert said.count("\n") == 1 and disk.ADVICE in said


def finetune(folder: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "finetune", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | server_variables() | environment,
        capture_output=True,
        text=True,
        timeout=180,
    )


def assert_full(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("peft-flow: ")]
    assert len(said) == 1 and "the disk is full: " in said[0] and " free; make space" in said[0], done.stderr


SIZES = (50_000, 300_000, 800_000)
"""Bytes left: a run stops at its first files, while the database is made, and, mostly, further on; what it wrote stays,
and the next one needs less."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("sizes", [SIZES[1:2], pytest.param(SIZES, marks=pytest.mark.endurance)], ids=["one", "three"])
def test_run_on_a_disk_that_fills_up_says_so_and_succeeds_once_there_is_space(
    sizes: tuple[int, ...],
    tmp_path: Path,
    foundation: Any,
    reviews: Path,
    prefect_harness: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = ["--model.name", str(foundation("gpt2")), "--data.name", str(reviews), "--data.max_length=32"]
    options += ["--training.max_steps=2", "--evaluation.references=[]", "--evaluation.bootstrap_samples=200"]
    with full_disk(tmp_path, 30) as small:
        failed = 0
        for left in sizes:
            small.fill(left)
            done = finetune(small.folder / "run", {}, *options)
            if done.returncode:
                assert_full(done)
                failed += 1
        assert failed >= min(2, len(sizes))
        small.make_space()
        monkeypatch.chdir(small.folder / "run")
        assert cli.main(["finetune", *options]) == cli.DONE, capfd.readouterr().err


def test_cache_that_is_full_is_reported_before_the_run_starts(tmp_path: Path, foundation: Any, reviews: Path) -> None:
    options = ["--model.name", str(foundation("gpt2")), "--data.name", str(reviews), "--data.max_length=32"]
    with full_disk(tmp_path, 1) as small:
        small.fill(left=8192)
        assert_full(finetune(tmp_path / "run", {"HF_HOME": str(small.folder / "hf")}, *options))
