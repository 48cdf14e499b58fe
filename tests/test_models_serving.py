"""Text in, probabilities out: the same code and the same numbers in evaluation and in the served model."""

import ast
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from tasks.base.records import Evaluation
from tasks.evaluation.predictions import read_predictions
from tasks.models import serving
from tasks.tracking import asking
from tasks.tracking.address import tracking_uri
from tests.conftest import Trained, free_port, tracked


@pytest.fixture(scope="module")
def served(trained: Trained) -> tuple[Any, Any, dict[str, Any]]:
    folder = Path(trained.adapter.folder)
    return *serving.load_adapter(folder), serving.read_settings(folder)


@pytest.fixture(scope="module")
def test_rows(trained: Trained) -> pd.DataFrame:
    return pd.read_csv(Path(trained.config.data.name) / "test.csv")


def numbers(table: pd.DataFrame) -> np.ndarray:
    return table[["probability_bad", "probability_good"]].to_numpy()


# --- what is served is what was measured -----------------------------------------------------------------------------


def test_predictions_on_the_test_texts_are_those_of_the_prediction_file_to_the_bit(
    served: Any, test_rows: pd.DataFrame, measured: Evaluation
) -> None:
    _, _, probabilities = read_predictions(measured.predictions)
    table = serving.predict(*served, test_rows)
    assert (numbers(table) == probabilities).all() and numbers(table).dtype == probabilities.dtype
    assert table["label"].tolist() == [("bad", "good")[i] for i in probabilities.argmax(1)]
    assert (table["probability"] == probabilities.max(1)).all()
    assert probabilities.std() > 0.01


def test_the_file_imports_nothing_of_the_project() -> None:
    tree = ast.parse(Path(serving.__file__).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import is one of the project"
            imported.add(str(node.module).split(".")[0])
    assert {"torch", "peft", "transformers", "mlflow"} <= imported
    needed = {"mlflow", "numpy", "pandas", "peft", "torch", "transformers"}
    assert imported <= {*sys.stdlib_module_names, *needed, "bitsandbytes"}


# --- any frame a caller may send -------------------------------------------------------------------------------------


def test_the_answer_has_a_label_its_probability_and_one_column_for_each_class(
    served: Any, test_rows: pd.DataFrame
) -> None:
    table = serving.predict(*served, test_rows)
    assert list(table) == ["label", "probability", "probability_bad", "probability_good"]
    assert numbers(table).sum(1) == pytest.approx(1)
    for _, row in table.iterrows():
        assert row["probability"] == row[f"probability_{row['label']}"] >= 0.5


def test_a_missing_column_is_named(served: Any) -> None:
    with pytest.raises(ValueError, match=r"the input needs the column text$"):
        serving.predict(*served, pd.DataFrame({"review": ["fine"]}))


@pytest.mark.parametrize("nothing", [None, float("nan"), pd.NA])
def test_a_missing_text_is_refused_with_its_row(served: Any, nothing: object) -> None:
    with pytest.raises(ValueError, match="column text has no text in row 1"):
        serving.predict(*served, pd.DataFrame({"text": ["fine", nothing, "dull"]}, index=[7, 8, 9]))


def test_no_rows_give_no_rows_with_the_same_columns(served: Any, test_rows: pd.DataFrame) -> None:
    table = serving.predict(*served, test_rows[:0])
    assert len(table) == 0 and list(table) == list(serving.predict(*served, test_rows[:1]))


def test_a_single_row_is_predicted_as_among_others(served: Any, test_rows: pd.DataFrame) -> None:
    together = serving.predict(*served, test_rows)
    for i in range(3):
        alone = serving.predict(*served, test_rows[i : i + 1])
        assert numbers(alone)[0] == pytest.approx(numbers(together)[i], abs=1e-6)
        assert alone.index.tolist() == [i]


def test_rows_keep_their_order_and_index(served: Any, test_rows: pd.DataFrame) -> None:
    shuffled = test_rows.assign(extra=1).sample(frac=1, random_state=3)
    assert shuffled.index.tolist() != test_rows.index.tolist()
    there, back = serving.predict(*served, shuffled), serving.predict(*served, test_rows)
    assert there.index.tolist() == shuffled.index.tolist()
    assert numbers(there.sort_index()) == pytest.approx(numbers(back), abs=1e-6)


@pytest.mark.parametrize("text", ["", "   ", "映画は最高 🎬", "Größe\u0000ß", "\ud800", "a" * 10_000, "x\ny\tz", 42])
def test_any_text_gets_an_answer_alone_and_among_others(served: Any, text: object) -> None:
    if text == "\ud800":  # half a surrogate pair is no text: tokenizers refuse it, and so do we, loudly
        with pytest.raises((TypeError, UnicodeError, ValueError)):
            serving.predict(*served, pd.DataFrame({"text": [text]}))
        return
    alone = serving.predict(*served, pd.DataFrame({"text": [text]}))
    among = serving.predict(*served, pd.DataFrame({"text": ["a warm and funny film", text, "dull"]}))
    assert np.isfinite(numbers(alone)).all() and np.isfinite(numbers(among)).all()
    assert numbers(among)[1] == pytest.approx(numbers(alone)[0], abs=1e-6)


def test_batches_hold_rows_of_like_length_and_on_a_cpu_no_more_tokens_than_fit_its_caches() -> None:
    lengths = [5, 400, 3, 2000, 300, 7]
    assert list(serving.batches(lengths, 64, "cpu")) == [[3], [1, 4], [5, 0, 2]]
    assert list(serving.batches(lengths, 64, "cuda:0")) == [[3, 1, 4, 5, 0, 2]]
    assert list(serving.batches(lengths, 2, "cpu")) == [[3], [1, 4], [5, 0], [2]]


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_logits_do_not_depend_on_the_batch_size(served: Any, test_rows: pd.DataFrame, batch_size: int) -> None:
    model, tokenizer, _ = served
    rows = tokenizer(test_rows["text"].tolist())
    by_eight = serving.classify(model, tokenizer, rows, 8)
    assert serving.classify(model, tokenizer, rows, batch_size).numpy() == pytest.approx(by_eight.numpy(), abs=1e-5)


def test_a_pair_of_texts_is_kept_apart_with_and_without_a_separator(foundation: Any) -> None:
    from transformers import AutoTokenizer

    pair = [["a film", "dull"], ["one year", "two"]]
    bert, gpt = (AutoTokenizer.from_pretrained(foundation(family)) for family in ("bert", "gpt2"))
    assert serving.model_texts(pair, bert) == pair
    assert serving.model_texts(pair, gpt) == [["a film\none year", "dull\ntwo"]]
    assert serving.model_texts(pair[:1], gpt) == pair[:1]


# --- reading it ------------------------------------------------------------------------------------------------------


def test_the_foundation_model_may_lie_elsewhere(trained: Trained, served: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.adapter.folder, tmp_path / "adapter")
    moved = shutil.copytree(trained.config.model.name, tmp_path / "moved")
    settings = serving.read_settings(folder)
    settings["base_model"]["name"] = str(tmp_path / "gone")
    (folder / serving.SETTINGS).write_text(json.dumps(settings))
    frame = pd.DataFrame({"text": ["a warm and funny film", "dull"]})
    model, tokenizer = serving.load_adapter(folder, base_model=str(moved))
    assert serving.predict(model, tokenizer, settings, frame).equals(serving.predict(*served, frame))
    with pytest.raises(OSError, match="gone"):
        serving.load_adapter(folder, local_files_only=True)


def other_weights(folder: Path, to: Path) -> Path:
    """A copy of the model in `folder` with one weight changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"][3, 5] += 1e-3
    save_file(weights, to / "model.safetensors", {"format": "pt"})
    return to


def test_adapter_is_refused_on_another_foundation_model(trained: Trained, tmp_path: Path) -> None:
    folder = Path(trained.adapter.folder)
    other = other_weights(Path(trained.config.model.name), tmp_path / "other")
    with pytest.raises(serving.OtherWeights, match=r"other has other weights .* it needs .*gpt2"):
        serving.load_adapter(folder, base_model=str(other))
    from transformers import GPT2Config, GPT2LMHeadModel

    larger = GPT2Config(vocab_size=200, n_positions=64, n_embd=48, n_layer=2, n_head=2)
    GPT2LMHeadModel(larger).save_pretrained(tmp_path / "larger")
    with pytest.raises(serving.OtherWeights):
        serving.load_adapter(folder, base_model=str(tmp_path / "larger"))


def test_foundation_model_overwritten_in_place_is_noticed(trained: Trained, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.adapter.folder, tmp_path / "adapter")
    base = other_weights(Path(trained.config.model.name), tmp_path / "base")
    settings = serving.read_settings(folder)
    settings["base_model"]["name"] = str(base)
    (folder / serving.SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(serving.OtherWeights, match="as it was then"):
        serving.load_adapter(folder)
    del settings["base_model"]["weights"]  # an adapter of before this was recorded
    (folder / serving.SETTINGS).write_text(json.dumps(settings))
    assert serving.load_adapter(folder)


def test_same_weights_in_other_files_are_the_same_foundation_model(trained: Trained, tmp_path: Path) -> None:
    from transformers import GPT2Model

    body = GPT2Model.from_pretrained(trained.config.model.name)
    body.save_pretrained(tmp_path / "saved again", max_shard_size="10KB")
    assert len(list((tmp_path / "saved again").glob("*.safetensors"))) > 1
    shutil.copy(Path(trained.config.model.name) / "tokenizer.json", tmp_path / "saved again")
    assert serving.load_adapter(Path(trained.adapter.folder), base_model=str(tmp_path / "saved again"))


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_two_adapters_read_at_once_leave_weights_tied_ever_after(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    reading, most = [0], [0]
    read = transformers.AutoModelForSequenceClassification.from_pretrained

    def from_pretrained(*arguments: Any, **named: Any) -> Any:
        reading[0] += 1
        most.append(reading[0])
        time.sleep(0.05)  # for the other to come in
        try:
            return read(*arguments, **named)
        finally:
            reading[0] -= 1

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", from_pretrained)
    tie = transformers.PreTrainedModel.tie_weights
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(serving.load_adapter, [Path(trained.adapter.folder)] * 2))
    assert max(most) == 1 and transformers.PreTrainedModel.tie_weights is tie


def test_a_pickled_adapter_is_refused_and_not_executed(trained: Trained, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.adapter.folder, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Malicious(tmp_path / "executed")))
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors"):
        serving.load_adapter(folder)
    assert not (tmp_path / "executed").exists()


def test_reading_does_not_depend_on_the_random_state(trained: Trained, served: Any, test_rows: pd.DataFrame) -> None:
    import torch

    torch.manual_seed(31337)
    folder = Path(trained.adapter.folder)
    again = serving.predict(*serving.load_adapter(folder), serving.read_settings(folder), test_rows)
    assert again.equals(serving.predict(*served, test_rows))


# --- over HTTP -------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def log_champion(trained: Trained, measured: Evaluation, folder: Path) -> Path:
    """A run of this workplace with its predictions, whose model is the champion of `reviewer`; a Hub cache that holds
    the foundation model."""
    from mlflow import MlflowClient

    from tasks.base.work import WORK
    from tasks.evaluation.recording import model_values
    from tasks.settings.loading import validated
    from tasks.tracking import run as tracking

    cached = folder / "hf/hub/models--tiny--reader"
    shutil.copytree(trained.config.model.name, cached / "snapshots" / COMMIT)
    adapter = WORK.resolve() / "a/adapter"
    shutil.copytree(trained.adapter.folder, adapter)
    settings = serving.read_settings(adapter)
    settings["base_model"] |= {"name": "tiny/reader", "revision": COMMIT}
    (adapter / serving.SETTINGS).write_text(json.dumps(settings))
    config = trained.config.model_dump() | {"tracking": {"registered_model": "reviewer"}}
    table = pd.DataFrame({"text": ["a warm film", "a cold film"]})
    with tracked(config) as run_id:
        work = str(adapter.parent)
        moved = trained.adapter.model_copy(update={"folder": str(adapter)})
        values = model_values(work, validated(config), trained.data, moved, table)
        tracking.log(work, "model", values | {"base_model": "tiny/reader"})
        shutil.copyfile(measured.predictions, f"{work}/tuned.parquet")
        tracking.log_files(work, "comparison", Path(work) / "tuned.parquet")
        version = tracking.send_all(work).version
    MlflowClient(tracking_uri()).set_registered_model_alias("reviewer", "champion", version)
    return asking.fetched(run_id, asking.PREDICTIONS, folder)


class Server(NamedTuple):
    address: str
    table: Path
    """What the run said about its test rows."""

    def ask(self, body: bytes | Any, kind: str = "application/json") -> tuple[int, Any]:
        """Status and answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/invocations", data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())["predictions"]
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def server(trained: Trained, measured: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`mlflow models serve` of the champion as a user starts it, with no Hub and the foundation model in the cache."""
    folder, before = tmp_path_factory.mktemp("served"), Path.cwd()
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    table = log_champion(trained, measured, folder)
    os.chdir(before)
    port = free_port()
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlruns/mlflow.db",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
    }
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/reviewer@champion", "--env-manager", "local",
        "-h", "127.0.0.1", "-p", str(port),
    ]  # fmt: skip
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process, log)
        yield Server(f"http://127.0.0.1:{port}", table)
        assert process.poll() is None, log.read_text()  # whatever it was asked
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(address, timeout=30).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
    raise TimeoutError(log.read_text())


def test_champion_answers_with_the_probabilities_of_its_run(server: Server, test_rows: pd.DataFrame) -> None:
    _, _, table = read_predictions(str(server.table))
    texts = test_rows["text"].tolist()
    split = {"columns": ["text"], "data": [[text] for text in texts]}
    for body in ({"dataframe_split": split}, {"dataframe_records": [{"text": text} for text in texts]}):
        status, answers = server.ask(body)
        assert status == 200
        assert [answer["label"] for answer in answers] == [("bad", "good")[i] for i in table.argmax(1)]
        got = [[answer["probability_bad"], answer["probability_good"]] for answer in answers]
        assert np.array(got) == pytest.approx(table, abs=1e-6)
        assert [answer["probability"] for answer in answers] == pytest.approx(table.max(1), abs=1e-6)


RECORDS = "dataframe_records"

WORDS = ("NA", "null", "None", "nan", "N/A", "42", "007", "1e5", "2026-01-02", "true", "two\nlines", "a warm film")


def test_csv_is_answered_word_for_word(server: Server) -> None:
    body = pd.DataFrame({"text": WORDS}).to_csv(index=False).encode()
    status, answers = server.ask(body, "text/csv")
    assert status == 200, answers
    assert answers == server.ask({RECORDS: [{"text": word} for word in WORDS]})[1]
    status, answer = server.ask(b'text\na film\n""\n', "text/csv")
    assert status == 400 and "column text, row 1: there is no text" in answer
    status, answer = server.ask(b'text\n"a film\n', "text/csv")
    assert status == 400 and "the request is not valid csv: " in answer


def test_words_of_csv_are_kept_by_mlflows_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.pyfunc import scoring_server

    monkeypatch.setattr(scoring_server, "parse_csv_input", scoring_server.parse_csv_input)
    before = scoring_server.parse_csv_input(io.StringIO("text\nNA\n"))
    assert before["text"].isna().all(), "what this is for"
    serving.keep_words_of_csv()
    frame = pd.DataFrame({"text": WORDS})
    assert scoring_server.parse_csv_input(io.StringIO(frame.to_csv(index=False)))["text"].tolist() == list(WORDS)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "valid JSON"),
        (b"a warm and funny film", "valid JSON"),
        (b'{"dataframe_records": [{"text": "a', "valid JSON"),
        (b"\xff\xfe", "valid JSON"),
        ([], "Received a list"),
        (42, "unexpected input type"),
        ({}, "input fields: []"),
        ({"text": "a film"}, "input fields"),
        ({RECORDS: []}, "missing inputs ['text']"),
        ({"dataframe_split": {"columns": ["text"], "data": []}}, "has 0 rows; send at least one"),
        ({"inputs": {"text": []}}, "has 0 rows"),
        ({RECORDS: {"text": "a film"}}, "must be a list of records"),
        ({RECORDS: [{"txt": "a film"}]}, "missing inputs ['text']. Note that there were extra inputs: ['txt']"),
        ({RECORDS: [{"text": "a film"}, {"txt": "a film"}]}, "column text, row 1: there is no text"),
        ({RECORDS: [{"text": None}]}, "column text, row 0: there is no text; leave the row out"),
        ({RECORDS: [{"text": "a film"}, {"text": None}]}, "column text, row 1: there is no text"),
        ({RECORDS: [{"text": 42}]}, "column text, row 0: must be text in quotes, not a int"),
        ({RECORDS: [{"text": "a film"}, {"text": 4.5}]}, "column text, row 1: must be text in quotes, not a float"),
        ({RECORDS: [{"text": True}]}, "must be text in quotes, not a bool"),
        ({RECORDS: [{"text": ["a", "film"]}]}, "must be text in quotes, not a list"),
        ({RECORDS: [{"text": {"a": "film"}}]}, "must be text in quotes, not a dict"),
        ({RECORDS: [{"text": "half \ud800"}]}, "surrogates not allowed"),
        ({RECORDS: [{"text": "a" * 1_000_001}]}, "column text, row 0: the text has 1,000,001 characters"),
        ({RECORDS: [{"text": "a"}] * 10_001}, "has 10,001 rows; send at least one and at most 10,000"),
        ({"dataframe_split": {"columns": ["text", "text"], "data": [["a", "b"]]}}, "Failed to convert column text"),
        ({"dataframe_split": {"columns": ["text"], "data": [["a", "b"]]}}, "not a valid dataframe"),
    ],
    ids=lambda value: str(value)[:40] or "nothing",
)
def test_malformed_request_is_refused_with_the_reason(server: Server, body: Any, says: str) -> None:
    status, answer = server.ask(body)
    assert status == 400
    assert says in json.loads(answer)["message"]


def test_wrong_kind_of_content_is_refused(server: Server) -> None:
    assert server.ask(b"<text>a film</text>", "application/xml")[0] == 415
    assert server.ask(b"text=a+film", "application/x-www-form-urlencoded")[0] == 415
    status, answer = server.ask(b"text\na film\n\n,\n", "text/csv")
    assert status == 400 and answer


def test_requests_at_the_same_time_are_all_answered_alike(server: Server, test_rows: pd.DataFrame) -> None:
    bodies = [{RECORDS: [{"text": text}]} for text in test_rows["text"].tolist()]
    one_by_one = [server.ask(body) for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(server.ask, [*bodies, *bodies]))
    assert {status for status, _ in together} == {200}
    for (_, (alone,)), (_, (among,)) in zip([*one_by_one, *one_by_one], together, strict=True):
        assert among["probability_good"] == pytest.approx(alone["probability_good"], abs=1e-6)


def test_table_of_a_program_may_have_any_number_of_rows(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    many = pd.DataFrame({"text": ["a"] * (serving.MOST_ROWS + 1)})
    monkeypatch.delenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", raising=False)
    serving.check_request(many, ["text"])
    serving.check_request(many[:0], ["text"])
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    with pytest.raises(ValueError, match="at most 10,000"):
        serving.check_request(many, ["text"])
