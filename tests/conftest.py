"""What the tests share: small real models, a dozen sentences, the Hub stand-in, one Prefect harness."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# before any library reads it: nothing of the tests may come from, or stay in, the user's own caches
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="peft-flow-hf-")
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="peft-flow-prefect-")
os.environ.pop("HF_ENDPOINT", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("PREFECT_API_URL", None)

from tasks import environment  # noqa: F401  isort: skip

import pytest

from tasks.config import RunConfig, validated
from tasks.records import Evaluation, PreparedData, TrainedAdapter

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not SHARED.is_dir():
        for item in items:
            if item.get_closest_marker("hub"):
                item.add_marker(pytest.mark.skip(reason="../shared (Hub stand-in and real data) is not here"))


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


def write_model(folder: Path, family: str) -> Path:
    """A random two-layer model of width 32 as a foundation model lies on disk: no classification head."""
    import torch
    import transformers

    torch.manual_seed(0)
    if family in ("gpt2", "llama"):
        write_tokenizer(folder, eos_token="<|endoftext|>")
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


class Trained(NamedTuple):
    config: RunConfig
    data: PreparedData
    adapter: TrainedAdapter


@pytest.fixture(scope="session")
def trained(foundation: Any, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """GPT-2 with LoRA, trained once a session on the reviews; leave its files as they are."""
    from tasks.data import prepare
    from tasks.training import fit_adapter

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
    return Trained(config, data, fit_adapter(config, data, work / "run", lambda progress: None))


@pytest.fixture(scope="session")
def measured(trained: Trained) -> Evaluation:
    """`trained` on the test rows, read back in a fresh process."""
    from tasks.evaluation import measure_adapter

    return measure_adapter(*trained)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that `mlruns/` is this test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # mlflow itself sets it, for its child processes
    return tmp_path


@pytest.fixture(scope="session")
def prefect_harness() -> Iterator[None]:
    """A Prefect API with a database of its own, started once: it takes about 14 s."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def only_run(folder: Path, experiment: str = "peft-flow") -> Any:
    """The one MLflow run in the store of a workplace."""
    from mlflow import MlflowClient

    api = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    found = api.get_experiment_by_name(experiment)
    assert found
    (run,) = api.search_runs([found.experiment_id])
    return run


class Hub:
    """A running Hub stand-in: address, folder, and how to start another with faults."""

    def __init__(self, root: Path, *faults: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
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
    """The stand-in's repositories: GPT-2 in real shape and tiny, the real Rotten Tomatoes; MiniLM where installed."""
    root = tmp_path_factory.mktemp("hub")
    subprocess.run(
        [sys.executable, str(SHARED / "hub/serve.py"), "--root", str(root), "--make-only"],
        check=True,
        capture_output=True,
    )
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


def reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False
