"""Prediction in shards: the bytes of one process, whoever is killed, on one machine and on several."""

import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tasks.inference import prediction, shard, shards
from tasks.inference.job import find_job
from tasks.inference.prediction import predict_rows
from tasks.inference.shard import Shard, label_shard
from tasks.inference.shards import label_in_shards
from tasks.settings.config import PredictionConfig
from tasks.settings.fields import InputError
from tasks.tracking import exchange
from tasks.tracking.address import client
from tasks.tracking.opening import make_store
from tests.conftest import Trained
from tests.test_predict import REVIEWS, PowerCut, chunks_labelled, power_cut


class Runners:
    """Processes for shards, played by this one: each begins when it is looked after, and ends at once."""

    def __init__(self, elsewhere: bool = False) -> None:
        self.places, self.elsewhere = 2, elsewhere
        self.shards: dict[str, dict[str, Any]] = {}
        self.keys: list[str] = []
        self.ended: dict[str, str] = {}
        self.stopped = False

    def start(self, key: str, shard: dict[str, Any]) -> str:
        name = str(len(self.shards))
        self.shards[name] = shard
        self.keys.append(key)
        return name

    def alive(self, known: Sequence[str]) -> list[str]:
        assert len(known) <= self.places
        for name in known:
            try:
                self.run(name)
                self.ended[name] = "exit code 0"
            except PowerCut:
                self.ended[name] = "exit code -9"
            except Exception as error:
                self.ended[name] = f"exit code 1, {type(error).__name__}: {error}"
        return []

    def run(self, name: str) -> None:
        label_shard(Shard.model_validate(self.shards[name]))

    def was_killed(self, name: str) -> bool:
        return self.ended[name] == "exit code -9"

    def last_words(self, name: str) -> str:
        return self.ended[name]

    def stop(self) -> None:
        self.stopped = True


class Machines(Runners):
    """The same, where no other machine sees this disk: a thread stands for each."""

    def __init__(self) -> None:
        super().__init__(elsewhere=True)
        self.threads: dict[str, threading.Thread] = {}

    def start(self, key: str, shard: dict[str, Any]) -> str:
        name = super().start(key, shard)
        self.shards[name]["job"]["work"] = "/nowhere/on/this/machine"
        self.threads[name] = threading.Thread(target=super().alive, args=([name],))
        self.threads[name].start()
        return name

    def alive(self, known: Sequence[str]) -> list[str]:
        return [name for name in known if self.threads[name].is_alive()]


@pytest.fixture
def ask(trained: Trained, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`ask("out.csv", 3)`: rows.csv, 36 rows of which two cannot be used, in chunks of eight, by three shards."""
    for module in (prediction, shards):
        monkeypatch.setattr(module, "CHUNK_ROWS", 8)
    monkeypatch.setattr(shards, "LOOK_SECONDS", 0.05)
    pd.DataFrame({"id": [f"r{row}" for row in range(36)], "text": REVIEWS}).to_csv("rows.csv", index=False)
    lines = Path("rows.csv").read_text().splitlines()
    lines[4] += ",more"
    lines[21] = "r20,"
    Path("rows.csv").write_text("\n".join(lines) + "\n")

    def predict(output: str, number: int, runners: Any = None, given: str = "rows.csv", **fields: Any) -> list[int]:
        """First rows of the chunks that the step after the shards had to label."""
        fields = {"model": trained.adapter.folder, "batch_size": 5, "on_error": "skip", **fields}
        config = PredictionConfig(input=given, output=output, shards=number, offline=True, **fields)
        job = find_job(config, workplace / "copied")
        if number > 1:
            label_in_shards.fn(config, job, lambda folder, places: runners)
        with monkeypatch.context() as patch:
            seen = chunks_labelled(patch)
            predict_rows.fn(config, job)
            return seen

    return predict


@pytest.fixture
def whole(ask: Any) -> Iterator[list[bytes]]:
    ask("whole.csv", 1)
    yield bytes_of("whole.csv")


def bytes_of(output: str) -> list[bytes]:
    return [Path(f"{output}{part}").read_bytes() for part in ("", ".rejected.jsonl")]


def forget() -> None:
    """The work of this prediction, which is known by its content, whatever its output is called."""
    shutil.rmtree("mlruns", ignore_errors=True)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_bytes_are_those_of_one_process_for_any_number_of_shards(kind: str, ask: Any) -> None:
    columns = {"abstain_below": 0.6, "threshold": ("good=0.55",)}
    assert ask(f"one.{kind}", 1, **columns) == [0, 8, 16, 24, 32]
    for number in (2, 3, 99):
        forget()
        runners = Runners()
        assert ask(f"{number}.{kind}", number, runners, **columns) == []
        assert len(runners.shards) == min(number, 5) and runners.stopped
        assert bytes_of(f"{number}.{kind}") == bytes_of(f"one.{kind}")
        assert not list(Path("mlruns/work").glob("predict-*/parts"))


def test_shards_have_ranges_of_the_chunks_that_are_all_of_them(ask: Any, whole: list[bytes]) -> None:
    forget()
    runners = Runners()
    ask("out.csv", 3, runners)
    assert [(one["start"], one["stop"]) for one in runners.shards.values()] == [(0, 1), (1, 3), (3, 5)]
    assert str(Shard.model_validate(runners.shards["1"])) == "shard 2 of 3 (rows 8 to 23)"


def test_shard_that_is_killed_goes_on_and_labels_no_chunk_twice(
    ask: Any, whole: list[bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forget()
    cut_at(2, monkeypatch)
    seen = chunks_labelled(monkeypatch)
    runners = Runners()
    assert ask("out.csv", 2, runners) == []
    assert seen == [0, 8, 16, 24, 32, 8] and bytes_of("out.csv") == whole  # 8 was not written
    assert "shard 1 of 2 (rows 0 to 15) was killed (exit code -9); another process goes on" in caplog.text
    assert runners.keys[0] == runners.keys[2] != runners.keys[1]


def cut_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power is cut before the n-th part is written."""
    calls, write = [0], prediction.write_chunk

    def cut(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            raise PowerCut
        return write(*arguments)

    monkeypatch.setattr(prediction, "write_chunk", cut)


def test_driver_that_is_killed_finds_what_its_shards_have_done_under_the_same_keys(
    ask: Any, whole: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget()
    first, second = Runners(), Runners()
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(shards.Driver, "tell", power_cut)
        ask("out.csv", 3, first)
    assert first.stopped
    seen = chunks_labelled(monkeypatch)
    assert ask("out.csv", 3, second) == []
    assert seen == [24, 32] and bytes_of("out.csv") == whole
    assert len(first.keys) == 2 and second.keys == [first.keys[0].replace("-1-of", "-3-of")]


def test_another_number_of_shards_takes_what_is_there(
    ask: Any, whole: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget()
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        cut_at(4, patch)
        ask("out.csv", 1)
    seen = chunks_labelled(monkeypatch)
    ask("out.csv", 2, Runners())
    assert seen == [24, 32] and bytes_of("out.csv") == whole


def test_shard_that_is_killed_again_and_again_is_given_up(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "write_chunk", power_cut)
    runners = Runners()
    with pytest.raises(RuntimeError, match=r"shard \d of 2 \(rows .*\) failed: exit code -9"):
        ask("out.csv", 2, runners)
    assert max(map(runners.keys.count, runners.keys)) == shards.MOST_STARTS and runners.stopped


@pytest.mark.parametrize("error", [InputError, RuntimeError])
def test_shard_that_fails_says_why_in_the_driver(
    error: type[Exception], ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error("model: the head is missing")

    monkeypatch.setattr(prediction, "load_classifier", fail)
    runners = Runners()
    with pytest.raises(error, match="model: the head is missing") as failed:
        ask("out.csv", 3, runners)
    assert "shard " in str(failed.value) and len(runners.shards) == 2 and runners.stopped
    assert str(failed.value).startswith("model: ") == (error is InputError)


def test_row_that_cannot_be_used_is_named_before_a_shard_begins(ask: Any) -> None:
    runners = Runners()
    with pytest.raises(InputError, match=r"rows\.csv row 3 has 3 fields"):
        ask("out.csv", 3, runners, on_error="stop")
    assert not runners.shards


def test_input_that_changes_meanwhile_is_refused(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Changing(Runners):
        def run(self, name: str) -> None:
            Path("rows.csv").write_text("text\na film\n")
            super().run(name)

    with pytest.raises(InputError, match="has changed since the prediction began"):
        ask("out.csv", 2, Changing())


def test_without_runners_this_process_labels_all(ask: Any, whole: list[bytes]) -> None:
    forget()
    assert ask("out.csv", 3, None) == [0, 8, 16, 24, 32] and bytes_of("out.csv") == whole


def test_result_that_is_there_is_not_counted_again(
    ask: Any, whole: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "count_rows", power_cut)
    assert ask("whole.csv", 3, Runners()) == []


@pytest.mark.parametrize("place", ["input", "output"])
def test_standard_streams_have_no_shards(place: str, ask: Any) -> None:
    with pytest.raises(InputError, match="shards: one process reads standard input or writes standard output"):
        ask(*(("-", 2) if place == "output" else ("out.csv", 2, None, "-")), on_error="stop")


def test_rows_of_another_kind_of_machine_are_told(
    ask: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = iter(["other"])

    class Other(Runners):
        def run(self, name: str) -> None:
            with monkeypatch.context() as patch:
                if next(other, None):
                    patch.setattr(prediction, "environment_key", lambda: "other")
                super().run(name)

    ask("out.csv", 5, Other())
    assert "7 rows were labelled by a machine with another device" in caplog.text


# --- on machines that do not see this disk ---------------------------------------------------------------------------


@pytest.fixture
def shared(empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store in a file stands for a server that all reach."""
    make_store()
    monkeypatch.setattr(exchange, "is_shared", lambda: True)
    monkeypatch.setattr(exchange, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(shards, "EXCHANGE_SECONDS", 0.1)


def remake_store() -> None:
    forget()
    make_store()


@pytest.mark.parametrize("given", ["rows.csv", "folder"])
def test_machine_that_does_not_see_the_disk_gets_the_input_and_gives_the_parts_back(
    given: str, ask: Any, shared: None
) -> None:
    if given == "folder":
        for place, text in enumerate(REVIEWS):
            Path(f"folder/{'good' if place % 2 else 'bad'}/ü {place:02}.txt").parent.mkdir(parents=True, exist_ok=True)
            Path(f"folder/{'good' if place % 2 else 'bad'}/ü {place:02}.txt").write_text(text)
    ask("whole.csv", 1, given=given)
    remake_store()
    runners = Machines()
    assert ask("out.csv", 3, runners, given=given) == []
    assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()
    (run_id,) = {one["ticket"]["exchange"] for one in runners.shards.values()}
    assert client().get_run(run_id).info.lifecycle_stage == "deleted"
    assert not [file for file in Path("mlruns/artifacts").rglob("*") if file.is_file()]


def test_machine_that_dies_leaves_the_parts_that_it_handed_over(
    ask: Any, whole: list[bytes], shared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    remake_store()
    cut_at(2, monkeypatch)
    seen = chunks_labelled(monkeypatch)
    runners = Machines()
    runners.places = 1
    assert ask("out.csv", 2, runners) == []
    assert seen == [0, 8, 16, 24, 32, 8] and bytes_of("out.csv") == whole


def test_what_is_on_this_disk_already_is_not_labelled_elsewhere(
    ask: Any, whole: list[bytes], shared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    remake_store()
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        cut_at(4, patch)
        ask("out.csv", 1)
    seen = chunks_labelled(monkeypatch)
    ask("out.csv", 2, Machines())
    assert sorted(seen) == [24, 32] and bytes_of("out.csv") == whole


def test_part_that_was_damaged_on_its_way_is_not_taken(ask: Any, shared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    attach = exchange.attach

    def damage(run_id: str, to: str, *files: Path) -> None:
        files[0].write_bytes(b"damaged")
        attach(run_id, to, *files)

    monkeypatch.setattr(exchange, "attach", damage)
    with pytest.raises(RuntimeError, match="is not the file that its record tells of"):
        ask("out.csv", 2, Machines())


def test_files_that_cannot_be_deleted_in_the_end_stop_nobody(
    ask: Any, whole: list[bytes], shared: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(run_id: str) -> None:
        raise ConnectionError("refused")

    remake_store()
    monkeypatch.setattr(exchange, "close_exchange", refused)
    assert ask("out.csv", 2, Machines()) == [] and bytes_of("out.csv") == whole
    assert "copies of input and output stay in MLflow run" in caplog.text


def test_mlflow_that_is_gone_for_a_while_is_asked_again(
    ask: Any, whole: list[bytes], shared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, names = iter(range(4)), exchange.names

    def sometimes(run_id: str, folder: str) -> list[str]:
        if threading.current_thread() is threading.main_thread() and next(answers, None) is not None:
            raise ConnectionError("refused")
        return names(run_id, folder)

    remake_store()
    monkeypatch.setattr(exchange, "names", sometimes)
    runners = Machines()
    assert ask("out.csv", 2, runners) == [] and bytes_of("out.csv") == whole
    assert len(runners.shards) == 2


def test_without_a_server_for_files_a_machine_that_does_not_see_the_disk_says_so(ask: Any) -> None:
    with pytest.raises(InputError, match=r"this machine does not see /nowhere.*set MLFLOW_TRACKING_URI"):
        ask("out.csv", 2, Machines())


def test_demo_model_is_found_where_this_machine_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.sources.demo import demo_folder

    (tmp_path / "peft_flow.json").write_text(
        f'{{"base_model": {{"name": "/home/somebody/.cache/peft-flow/{demo_folder().name}/model"}}}}'
    )
    monkeypatch.setattr(shard, "demo_model", lambda: tmp_path / "here")
    assert shard.base_model_here(tmp_path) == str(tmp_path / "here")
    (tmp_path / "peft_flow.json").write_text('{"base_model": {"name": "org/model"}}')
    assert shard.base_model_here(tmp_path) is None
