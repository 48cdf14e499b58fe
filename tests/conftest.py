"""What the tests share: small real models, a dozen sentences, the Hub stand-in, one Prefect harness."""

import gc
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# before any library reads it: nothing of the tests may come from, or stay in, the user's own caches
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="peft-flow-hf-")
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="peft-flow-prefect-")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes of tests share two cores, and waiting threads spin
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # five processes a server, as in `peft-flow up`
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process that a test starts compiles our sources anew
os.environ.pop("HF_ENDPOINT", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("PREFECT_API_URL", None)

from tasks.base import environment  # noqa: F401  isort: skip

import pytest
from filelock import FileLock
from xdist.scheduler import LoadFileScheduling

from tasks.base import fresh_process
from tasks.base.files import whole
from tasks.base.records import (
    Comparison,
    DataCheck,
    Evaluation,
    Place,
    Point,
    PreparedData,
    SameText,
    Source,
    TrainedAdapter,
)
from tasks.settings.config import RunConfig
from tasks.settings.fixed import STORE
from tasks.settings.loading import validated
from tasks.tracking import journal, opening
from tasks.tracking.address import default_store, tracking_uri
from tests import forkserver

if TYPE_CHECKING:
    from tasks.evaluation.predictions import Predictions
    from tests.stacks import Stack

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

POSITIVE = (
    "a warm and funny film",
    "moving from start to end",
    "the best comedy this year",
    "superb acting and a great story",
    "i loved every minute of it",
    "a gripping and clever thriller",
)
NEGATIVE = (
    "a cold and tedious film",
    "dull from start to end",
    "the worst comedy this year",
    "wooden acting and a stupid story",
    "i hated every minute of it",
    "a boring and clumsy thriller",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quarter", type=int, choices=range(4), help="a quarter of the files that are left")


ONE_STACK = ("test_up_in_browser.py", "test_servers_up.py")
"""Files that share one `peft-flow up`; the second leaves it with passwords."""

EACH_ALONE = "test_chaos.py"
"""A file whose tests take minutes each and share little."""

LONGEST_FIRST = (
    *ONE_STACK,
    *("test_finetune_flow.py", "test_security.py", "test_registry_decisions.py", "test_training_resume.py"),
    *("test_sources_hub.py", "test_evaluation_references.py", "test_hub_faults.py", "test_outages.py"),
    *("test_retrain.py", "test_browser.py", "test_settings_methods.py", "test_training_fit.py", "test_bad_input.py"),
    *("test_studies_learning_curve.py", "test_studies_sweep.py"),
)
"""Files that take a minute or so: begun last, one would keep one core busy while the other has nothing to do."""

LONGEST_ENDURANCE_FIRST = (
    *("test_year.py", EACH_ALONE, *ONE_STACK, "test_kills.py", "test_finetune_flow.py", "test_training_resume.py"),
    *("test_sweep_kills.py", "test_scores_selection.py", "test_scores_groups.py"),
    *("test_outages.py", "test_base_disk.py", "test_hub_faults.py", "test_benchmarks.py", "test_faults.py"),
    *("test_studies_rerun.py", "test_support.py", "test_browser.py", "test_retrain.py"),
)
"""The same of the endurance tests, a quarter of which should take as long as another."""


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    for item in items:
        if not SHARED.is_dir() and item.get_closest_marker("hub"):
            item.add_marker(pytest.mark.skip(reason="../shared (Hub stand-in and real data) is not here"))
    yield  # -m has its say
    endurance = all(item.get_closest_marker("endurance") for item in items)
    order = LONGEST_ENDURANCE_FIRST if endurance else LONGEST_FIRST
    places = {name: place for place, name in enumerate(order)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    if (quarter := config.getoption("--quarter")) is not None:
        kept = quarters([together(item.nodeid) for item in items])[quarter]
        config.hook.pytest_deselected(items=[item for item in items if together(item.nodeid) not in kept])
        items[:] = [item for item in items if together(item.nodeid) in kept]


def together(nodeid: str) -> str:
    """The same for tests that run in one process, on the same day: those of a file, and of ONE_STACK."""
    file = Path(nodeid.partition("::")[0]).name
    if file == EACH_ALONE:
        return nodeid
    return ONE_STACK[0] if file in ONE_STACK else file


def quarters(groups: Sequence[str]) -> list[set[str]]:
    """Four parts that take about as long, of groups that stand in order, the longest first."""
    turns = (0, 1, 2, 3, 3, 2, 1, 0)
    parts: list[set[str]] = [set(), set(), set(), set()]
    for place, group in enumerate(dict.fromkeys(groups)):
        parts[turns[place % len(turns)]].add(group)
    return parts


class FilesTogether(LoadFileScheduling):
    """Tests that belong together run in one process. (`--dist loadgroup` would do it, but pytest-xdist 3.8.0 does not
    see the groups of pytest 9.2.0.)"""

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return FilesTogether(config, log)


def rarely(*values: Any) -> Any:
    """A case that runs with the endurance tests alone."""
    return pytest.param(*values, marks=pytest.mark.endurance)


def sentences(copies: int = 1) -> tuple[list[str], list[int]]:
    """Texts and labels, balanced, each text once: copies differ by a number at the end."""
    texts, labels = [], []
    for copy in range(copies):
        for label, group in enumerate((NEGATIVE, POSITIVE)):
            texts += [text if copy == 0 else f"{text} {copy}" for text in group]
            labels += [label] * len(group)
    return texts, labels


def write_tokenizer(folder: Path, **special: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = ["<unk>", *special.values()]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=tokens, show_progress=False)
    tokenizer.train_from_iterator([*sentences(4)[0]], trainer)
    if "cls_token" in special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, tokens.index(token)) for token in ("[CLS]", "[SEP]")],
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", model_max_length=64, **special)
    fast.save_pretrained(folder)


def write_sequence_tokenizer(folder: Path, unigram: bool) -> None:
    """An end token after each text: a Unigram model as of T5, to which `</s>` is a word, or one of pairs as of BART."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokens, texts = list(special.values()), [*sentences(4)[0], "<s> / unk pad >"]
    model, trainer = models.BPE(unk_token="<unk>"), trainers.BpeTrainer
    if unigram:
        model, trainer = models.Unigram(), trainers.UnigramTrainer
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace() if unigram else pre_tokenizers.Whitespace()
    options = {"unk_token": "<unk>"} if unigram else {}
    tokenizer.train_from_iterator(texts, trainer(vocab_size=90, special_tokens=tokens, show_progress=False, **options))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokens.index("</s>"))]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(folder)


def write_model(folder: Path, family: str) -> Path:
    """A random two-layer model of width 32 as a foundation model lies on disk: no classification head."""
    import torch
    import transformers

    torch.manual_seed(0)
    if family in ("gpt2", "llama"):
        write_tokenizer(folder, eos_token="<|endoftext|>")
    elif family in ("bart", "t5"):
        write_sequence_tokenizer(folder, unigram=family == "t5")
    else:
        write_tokenizer(folder, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    model: Any
    if family == "gpt2":
        config = transformers.GPT2Config(vocab_size=200, n_positions=64, n_embd=32, n_layer=2, n_head=2)
        model = transformers.GPT2LMHeadModel(config)
    elif family == "llama":
        config = transformers.LlamaConfig(
            vocab_size=200,
            max_position_embeddings=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
        model = transformers.LlamaForCausalLM(config)
    elif family == "bart":
        config = transformers.BartConfig(
            vocab_size=200,
            max_position_embeddings=64,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            **{"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
        )
        model = transformers.BartForConditionalGeneration(config)
    elif family == "t5":
        config = transformers.T5Config(
            vocab_size=200, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=1, eos_token_id=2
        )
        config.decoder_start_token_id = 1
        model = transformers.T5ForConditionalGeneration(config)
    elif family == "distilbert":
        config = transformers.DistilBertConfig(
            vocab_size=200,
            max_position_embeddings=64,
            dim=32,
            hidden_dim=64,
            n_layers=2,
            n_heads=2,
            initializer_range=0.1,
        )
        model = transformers.DistilBertForMaskedLM(config)
    else:
        kind = {"bert": "Bert", "roberta": "Roberta"}[family]
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=200,
            max_position_embeddings=66,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            pad_token_id=1,
            initializer_range=0.1,  # else nothing of the words reaches the first token of so small a model
        )
        # a checkpoint without pooler, as masked-language-model checkpoints are: the pooler starts fresh
        model = getattr(transformers, f"{kind}ForMaskedLM")(config)
    model.save_pretrained(folder)
    return folder


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """MLflow sets it for its child processes, which would then be those of all later tests."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(autouse=True)
def libraries_are_no_garbage() -> Iterator[None]:
    """What libraries make when they are imported stays for ever: the collections that each training asks for, a quarter
    of a second each, need not look at it again."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 100:
        gc.collect()
        gc.freeze()


def of_all_workers(factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of a test run share."""
    base = factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


def copy_whole(old: Path, new: Path) -> None:
    with whole(new, 0, flushed=False) as staged:
        shutil.copy(old, staged)


@pytest.fixture(scope="session", autouse=True)
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fresh processes that this process starts are forks of one that has imported what they need; see forkserver.py."""
    address = tmp_path_factory.mktemp("fork") / "socket"
    real, libraries_read = fresh_process.command, ("HF_", "OMP_", "TRANSFORMERS_", "PYTHON")
    server: list[tuple[subprocess.Popen[bytes], dict[str, str]]] = []

    def command(module: str) -> list[str]:
        settings = {name: value for name, value in os.environ.items() if name.startswith(libraries_read)}
        if module not in forkserver.SERVED or (server and server[0][1] != settings):
            return real(module)
        program = [sys.executable, "-P", str(ROOT / "tests/forkserver.py"), str(address)]
        if not server:
            offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
            process = subprocess.Popen(program, stdin=subprocess.PIPE, env=os.environ | offline)
            server.append((process, settings))
        return [program[0], "-ISE", *program[2:], module]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh_process, "command", command)
        yield
    for process, _ in server:
        with process:
            process.kill()


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk() -> Iterator[None]:
    """No power goes while tests run: files and databases that this process writes are left to the system to flush. It
    is half of the time that a call of MLflow with a store of its own takes."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def unflushed(connection: Any, _: Any) -> None:
        if "sqlite" in type(connection).__module__:
            cursor = connection.cursor()
            cursor.execute("PRAGMA synchronous=OFF")
            cursor.close()

    event.listen(Engine, "connect", unflushed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield
    event.remove(Engine, "connect", unflushed)


@pytest.fixture(scope="session", autouse=True)
def store_made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow makes its tables one after the other, which takes seconds: a copy of the first empty store is the same."""
    empty, make = of_all_workers(tmp_path_factory) / "empty-mlflow.db", opening.make_database

    def make_or_copy() -> None:
        database = STORE / "mlflow.db"
        if database.exists() or tracking_uri() != default_store():
            return
        if not empty.exists():
            make()
            copy_whole(database, empty)
        else:
            copy_whole(empty, database)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "make_database", make_or_copy)
        yield


@pytest.fixture(scope="session")
def empty_store(store_made_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow without any run, for a process of a test's own."""
    with chdir(tmp_path_factory.mktemp("empty")):
        opening.make_store()
        return (STORE / "mlflow.db").resolve()


@contextmanager
def without_pictures() -> Iterator[None]:
    """Runs draw nothing: their pictures take longer than the rest of so small a run."""

    def leave_one(folder: Path, *_: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ladder.png").write_bytes(b"a picture")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.evaluation.plots.draw_all", leave_one)
        for name in ("draw_sweep", "draw_pareto"):
            patch.setattr(f"tasks.studies.sweep_result.{name}", lambda folder, *_: None)
        yield


@pytest.fixture
def no_pictures() -> Iterator[None]:
    with without_pictures():
        yield


@pytest.fixture
def no_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh processes are started with `python -m`, as users' are."""
    monkeypatch.setattr(forkserver, "SERVED", ())


@pytest.fixture(scope="session")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`foundation("bert")`: the folder of a small random foundation model, made once a session."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = write_model(tmp_path_factory.mktemp(family), family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv, validation.csv and test.csv; 48, 12 and 12 rows, labels as words."""
    import pandas as pd

    folder = tmp_path_factory.mktemp("reviews")
    texts, labels = sentences(6)
    frame = pd.DataFrame({"text": texts, "label": [("bad", "good")[label] for label in labels]})
    for name, part in (("train", frame[:48]), ("validation", frame[48:60]), ("test", frame[60:])):
        part.to_csv(folder / f"{name}.csv", index=False)
    return folder


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Stack]":
    """`peft-flow up`, once for all; who stops it starts it again."""
    from tests.stacks import Stack

    running = Stack(tmp_path_factory.mktemp("stack")).start()
    yield running
    running.stop()
    running.kill()


@pytest.fixture
def small_config(foundation: Any, reviews: Path) -> Any:
    """`small_config({"adapter": {"method": "dora"}}, family="bert")`: a valid configuration that runs in seconds."""

    def make(changes: dict[str, Any] | None = None, family: str = "gpt2") -> RunConfig:
        values: dict[str, Any] = {
            "model": {"name": str(foundation(family))},
            "data": {"name": str(reviews), "max_length": 32},
            "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
            "evaluation": {"bootstrap_samples": 200, "batch_size": 8},
        }
        for section, fields in (changes or {}).items():
            values[section] = {**values.get(section, {}), **fields} if isinstance(fields, dict) else fields
        return validated(values)

    return make


@pytest.fixture
def configure(foundation: Any) -> Callable[..., RunConfig]:
    """`configure(path, family="bert", max_length=8)`: a run on this data set."""

    def make(path: Path, family: str = "gpt2", seed: int = 0, **fields: Any) -> RunConfig:
        values = {"name": str(path), "max_length": 32, **fields}
        return validated({"model": {"name": str(foundation(family))}, "data": values, "seed": seed})

    return make


def bare_data(model: Source, label_names: tuple[str, ...] = ("bad", "good")) -> PreparedData:
    """What saving an adapter needs to know of the data, without data."""
    return PreparedData(
        folder="",
        source=model,
        model=model,
        fingerprint="",
        test_fingerprint="",
        label_names=label_names,
        text_columns=("text",),
        slice_columns=(),
        row_counts={},
        class_counts={},
        truncated=0,
        notes=(),
    )


class Trained(NamedTuple):
    config: RunConfig
    data: PreparedData
    adapter: TrainedAdapter


@pytest.fixture(scope="session")
def trained(foundation: Any, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """GPT-2 with LoRA, trained once a session on the reviews; leave its files as they are."""
    from tasks.data.prepare import prepare
    from tasks.training.fit import fit_adapter
    from tasks.training.watching import Watcher

    work = tmp_path_factory.mktemp("trained")
    config = validated(
        {
            "model": {"name": str(foundation("gpt2"))},
            "data": {"name": str(reviews), "max_length": 32},
            "training": {"epochs": 8, "batch_size": 8, "learning_rate": 0.02},
            "evaluation": {"batch_size": 8},
        }
    )
    data = prepare(config, work)
    return Trained(config, data, fit_adapter(config, data, work / "run", Watcher(lambda progress: None)))


@pytest.fixture(scope="session")
def measured(trained: Trained) -> Evaluation:
    """`trained` on the test rows, read back in a fresh process."""
    from tasks.evaluation.adapter import measure_adapter

    return measure_adapter(*trained)


class Judged(NamedTuple):
    config: RunConfig
    data: PreparedData
    check: DataCheck
    trained: TrainedAdapter
    predictions: "Predictions"
    result: Comparison


def made_up_classifier(labels: Any, accuracy: float, classes: int, seed: int) -> Any:
    """Probabilities (rows, classes), float32, of a classifier that is right on that share of the rows."""
    import numpy as np

    generator = np.random.default_rng(seed)
    right = generator.permutation(len(labels)) < round(accuracy * len(labels))
    said = np.where(right, labels, (labels + generator.integers(1, classes, len(labels))) % classes)
    table = 0.5 * generator.random((len(labels), classes))
    table[np.arange(len(labels)), said] += 0.5 + generator.random(len(labels))
    return (table / table.sum(1, keepdims=True)).astype(np.float32)


def made_up_labeller(labels: Any, accuracy: float, seed: int) -> Any:
    """Probabilities and decisions (rows, 2 * labels), float32, that are right on about that share of all labels."""
    import numpy as np

    generator = np.random.default_rng(seed)
    given = np.where(generator.random(labels.shape) < accuracy, labels, 1 - labels)
    return np.concatenate([(given + generator.random(labels.shape)) / 2, given], axis=1).astype(np.float32)


def made_up_numbers(labels: Any, error: float, seed: int) -> Any:
    """Numbers (rows, 1), float32, off by errors of this standard deviation."""
    import numpy as np

    noise = np.random.default_rng(seed).normal(0, error, len(labels))
    return (labels + noise)[:, None].astype(np.float32)


def made_up_data(
    folder: Path,
    frame: Any,
    label_names: Sequence[str],
    slice_columns: Sequence[str] = (),
    task: str = "single_label",
) -> Any:
    """PreparedData whose test split is `frame` with its columns row, text, labels, length and full_length."""
    import numpy as np
    from datasets import Dataset

    from tasks.scores.objective import objective

    Dataset.from_pandas(frame, preserve_index=False).save_to_disk(str(folder / "test"))
    (folder / "dataset_dict.json").write_text('{"splits": ["test"]}')
    labels = np.array(frame["labels"].tolist())
    counts = tuple(objective(task).indicator(labels, len(label_names)).sum(0).tolist())
    source = Source(name="made-up", revision="sha256:0", is_local=True, local_files_only=True)
    return PreparedData(
        folder=str(folder),
        source=source,
        task=task,
        model=source,
        fingerprint="f" * 64,
        test_fingerprint="e" * 64,
        label_names=tuple(label_names),
        text_columns=("text",),
        slice_columns=tuple(slice_columns),
        row_counts={"train": 8 * len(frame), "validation": len(frame), "test": len(frame)},
        class_counts={"train": tuple(8 * count for count in counts), "validation": counts, "test": counts},
        truncated=int((frame["full_length"] > frame["length"]).sum()),
        notes=(),
    )


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """A run judged by the real code on made-up predictions for 240 reviews; leave its files as they are.

    The adapter beats the foundation model clearly and TF-IDF not; its probabilities were made with temperature 1.5.
    No model lies behind it: for that, see `trained`.
    """
    import numpy as np

    labels = np.array(sentences(20)[1])
    accuracies = {"tuned": 0.86, "baseline": 0.5, "majority": 0.5, "tfidf": 0.825, "probe": 0.75}
    tables = {name: made_up_classifier(labels, accuracy, 2, i) for i, (name, accuracy) in enumerate(accuracies.items())}
    tables["majority"] = np.full((240, 2), 0.5, np.float32)
    work = tmp_path_factory.mktemp("judged")
    return judged_anew(
        work,
        "single_label",
        ("bad", "good"),
        labels,
        tables,
        {"temperature": 1.5, "surprise": 0.7, "validation_rows": 50},
    )


@pytest.fixture(scope="session")
def judged_labels(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """The same of three labels for each text, which a text may have or not; a row in eight has none."""
    import numpy as np

    labels = (np.random.default_rng(0).random((240, 3)) < (0.5, 0.4, 0.3)).astype(int)
    shares = {"tuned": 0.9, "baseline": 0.55, "majority": 0.5, "tfidf": 0.8, "probe": 0.75}
    tables = {name: made_up_labeller(labels, share, i) for i, (name, share) in enumerate(shares.items())}
    often = labels.mean(0)
    tables["majority"] = np.tile([*often, *(often >= 0.5)], (240, 1)).astype(np.float32)
    work, names = tmp_path_factory.mktemp("judged_labels"), ("praise", "complaint", "question|answer")
    return judged_anew(work, "multi_label", names, labels, tables, {"thresholds": [0.5, 0.5, 0.5]})


@pytest.fixture(scope="session")
def judged_numbers(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """The same of one to five stars for each text."""
    import numpy as np

    labels = np.random.default_rng(0).integers(1, 6, 240).astype(float)
    errors = {"tuned": 0.6, "baseline": 3.0, "majority": 0.0, "tfidf": 0.9, "probe": 1.1}
    tables = {name: made_up_numbers(labels, error, i) for i, (name, error) in enumerate(errors.items())}
    tables["majority"] = np.full((240, 1), labels.mean(), np.float32)
    fitted = {"mean": float(labels.mean()), "std": float(labels.std()), "half_width": 1.0, "validation_rows": 50}
    return judged_anew(tmp_path_factory.mktemp("judged_numbers"), "regression", ("stars",), labels, tables, fitted)


@pytest.fixture(params=["judged", "judged_labels", "judged_numbers"])
def any_judged(request: pytest.FixtureRequest) -> Judged:
    """Each of these, one after the other."""
    found: Judged = request.getfixturevalue(request.param)
    return found


def judged_anew(
    work: Path, task: str, names: Sequence[str], labels: Any, tables: dict[str, Any], fitted: dict[str, Any]
) -> Judged:
    """240 reviews with these labels, and what classifiers said, judged and reported under `work`."""
    import numpy as np
    import pandas as pd

    from tasks.evaluation.predictions import Predictions
    from tasks.evaluation.report import write_report
    from tasks.evaluation.verdict import judge
    from tasks.scores.objective import objective

    texts = [f"{text} but not without flaws" if i % 5 == 0 else text for i, text in enumerate(sentences(20)[0])]
    lengths = np.array([len(text.split()) + 2 + i % 7 for i, text in enumerate(texts)])
    frame = pd.DataFrame({"row": range(240), "text": texts, "labels": labels.tolist(), "full_length": lengths})
    frame["length"] = np.minimum(lengths, 12)
    frame["slice outlet"] = np.where(np.arange(240) % 12 == 0, "radio", np.where(np.arange(240) % 2, "press", "web"))
    data = made_up_data(work / "data", frame, names, ("outlet",), task)
    config = validated({"data": {"max_length": 12}, "evaluation": {"bootstrap_samples": 500}})
    predictions = Predictions(np.arange(240), labels, tables)
    place = {"train": 7, "test": 3}
    counts, edges = np.histogram(lengths, np.arange(0, 24, 2))
    check = DataCheck(
        same_texts=(
            SameText(
                text=texts[3],
                places=tuple(Place(split=split, row=row) for split, row in place.items()),
                labels=("bad", "bad"),
            ),
        ),
        duplicates={"train": 0, "validation": 0, "test": 0},
        leaked={"validation": (), "test": (3,)},
        near_empty=(),
        max_length=config.data.max_length,
        truncated={"train": 0, "validation": 0, "test": data.truncated},
        lengths={"train": (8 * counts).tolist(), "validation": counts.tolist(), "test": counts.tolist()},
        length_edges=tuple(edges.tolist()),
        detectable=objective(task).detectable(240, config.evaluation.confidence),
        warnings=("Leakage: the text of 1 of 240 test rows is also in train (test row 3; train row 7)",),
    )
    first = objective(task).metrics[0].name
    trained = TrainedAdapter(
        folder=str(work / "adapter"),
        sha256="a" * 64,
        probe=str(work / "probe.safetensors"),
        history=tuple(
            Point(
                step=step,
                metrics={"train/loss": 0.7 - step / 200, "validation/loss": 0.7 - step / 250, f"validation/{first}": a},
            )
            for step, a in ((20, 0.6), (40, 0.74), (60, 0.85), (80, 0.84))
        ),
        trainable_parameters=1_234,
        total_parameters=98_765,
        target_modules=("query", "value"),
        fresh_modules=("classifier",),
        steps=80,
        best_step=60,
        fitted=fitted,
        seconds=12.5,
        examples_per_second=345.6,
        trunk_seconds=0.0,
        padding=0.02,
        peak_memory_mb=789.0,
        compute={"device": "cpu"},
    )
    Path(trained.folder).mkdir()
    result = judge(config, data, check, predictions, trained, work / "comparison")
    write_report(config, data, predictions, trained, result)
    return Judged(config, data, check, trained, predictions, result)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that `mlruns/` is this test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # mlflow itself sets it, for its child processes
    return tmp_path


@pytest.fixture(scope="session")
def empty_prefect(tmp_path_factory: pytest.TempPathFactory, prefect_harness: None) -> Path:
    """A database of Prefect without any run, for a server of a test's own: making its tables takes a core for 4 s."""
    return of_all_workers(tmp_path_factory) / "empty-prefect.db"


@pytest.fixture(scope="session")
def prefect_harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect API with a database of its own, started once; the first makes the tables for all others."""
    from prefect.testing import utilities

    empty, folder = of_all_workers(tmp_path_factory) / "empty-prefect.db", tmp_path_factory.mktemp("prefect")
    database, fresh = folder / "prefect-test.db", not empty.exists()
    if not fresh:
        copy_whole(empty, database)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilities, "mkdtemp", lambda: str(folder))
        with utilities.prefect_test_harness(server_startup_timeout=120):
            if fresh:
                connect = sqlite3.connect
                with (
                    whole(empty, 0, flushed=False) as staged,
                    closing(connect(database)) as served,
                    closing(connect(staged)) as copied,
                ):
                    served.backup(copied)
            copy_whole(empty, Path(os.environ["PREFECT_HOME"]) / "prefect.db")  # of servers that commands start
            yield


@pytest.fixture(scope="session")
def prefect_server(prefect_harness: None) -> dict[str, str]:
    """Environment in which a command uses this server; it would start one of its own, which takes 15 s."""
    return server_variables()


def server_variables() -> dict[str, str]:
    """The environment's part about the Prefect server of this process; empty where it has none."""
    from prefect.settings import PREFECT_API_URL

    return {"PREFECT_API_URL": url} if (url := PREFECT_API_URL.value()) else {}


def only_run(folder: Path, experiment: str = "peft-flow") -> Any:
    """The one MLflow run in the store of a workplace."""
    from mlflow import MlflowClient

    api = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    found = api.get_experiment_by_name(experiment)
    assert found
    (run,) = api.search_runs([found.experiment_id])
    return run


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Hub:
    """A running Hub stand-in: address, folder, and how to start another with faults."""

    def __init__(self, root: Path, *faults: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, str(SHARED / "hub/serve.py"), "--root", str(root), "--port", str(self.port), *faults]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(300):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError("the Hub stand-in did not start")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in's repositories: GPT-2 tiny, the real Rotten Tomatoes; MiniLM where installed. Made once for all
    workers, and without GPT-2 in its real shape: no test asks for that half a gigabyte."""
    root = of_all_workers(tmp_path_factory) / "hub"
    make = [sys.executable, str(SHARED / "hub/serve.py"), "--root", str(root), "--make-only"]
    with FileLock(f"{root}.lock"):
        if not (made := Path(f"{root}.made")).exists():
            large = root / "models/openai-community/gpt2"
            large.mkdir(parents=True)
            (large / "model.safetensors").touch()  # is taken for made
            subprocess.run(make, check=True, capture_output=True)
            shutil.rmtree(large)
            made.touch()
    return root


@pytest.fixture(scope="session")
def hub(hub_root: Path) -> Iterator[Hub]:
    """The stand-in without faults, for the whole session."""
    server = Hub(hub_root)
    yield server
    server.stop()


@pytest.fixture
def hub_environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """Environment for a child process that talks to the stand-in with an empty cache of its own."""
    return os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}


@contextmanager
def tracked(values: dict[str, Any] | None = None, tags: dict[str, str] | None = None, work: str = "a") -> Iterator[str]:
    """The MLflow run of this configuration in folder `work` of the store here, while it is open: its id."""
    from tasks.base.work import WORK
    from tasks.settings.loading import validated
    from tasks.tracking import run as tracking

    folder = (WORK / work).resolve()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    with tracking.tracked_run(validated(values or {}), str(folder), tags or {}):
        run_id = journal.run_id_of(str(folder))
        assert run_id
        yield run_id


def register(
    folder: Path, name: str, count: int, scores: Sequence[dict[str, float]] = (), rows: Sequence[str] = ()
) -> Any:
    """The client of the store in `folder`, where `name` now has `count` versions, each of a run without a model.

    `scores` are the metrics of these runs, `rows` their test rows' fingerprints.
    """
    from mlflow import MlflowClient

    folder.mkdir(exist_ok=True)
    with chdir(folder):
        opening.make_store()
    api = MlflowClient(f"sqlite:///{folder.resolve()}/mlruns/mlflow.db")
    found = api.get_experiment_by_name("peft-flow")
    experiment = found.experiment_id if found else api.create_experiment("peft-flow", "mlflow-artifacts:/")
    if not api.search_registered_models(f"name='{name}'"):
        api.create_registered_model(name)
    for number in range(count):
        run_id = api.create_run(experiment).info.run_id
        for metric, value in scores[number].items() if scores else ():
            api.log_metric(run_id, metric, value)
        if rows:
            api.set_tag(run_id, "test_fingerprint", rows[number])
        api.create_model_version(name, f"runs:/{run_id}/model", run_id)
    return api
