"""What comes from elsewhere runs no code, names stay in their folder, and secrets stay in the environment."""

import ast
import base64
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flows.cli import USER_MUST_CHANGE, main
from tasks.base import environment
from tasks.base.trouble import first_line
from tasks.settings.fields import InputError
from tasks.settings.loading import validated
from tasks.settings.secrets import HIDDEN, redact
from tests.chaos import prefect_server
from tests.conftest import ROOT, Trained

SOURCES = sorted([*ROOT.glob("flows/*.py"), *ROOT.glob("tasks/**/*.py")])

PICKLES = (
    *("pytorch_model.bin", "adapter_model.bin", "tokenizer.pkl", "vocab.pkl", "spiece.pkl", "optimizer.pt"),
    *("scheduler.pt", "rng_state.pth", "training_args.bin", "python_model.pkl", "model.pkl", "train.pkl"),
    *("state.pickle", "cache.joblib"),
)
"""Files that one library or another would unpickle."""

PLANTED = {
    "HF_TOKEN": "hf_PLANTEDfaceTokenOfNobody0001",
    "MLFLOW_TRACKING_PASSWORD": "planted-tracking-0002",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "planted-flask-0003",
    "PREFECT_API_KEY": "pnu_PLANTEDprefectKeyOfNobody0004",
    "PREFECT_API_AUTH_STRING": "admin:planted-auth-0005",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-0006",
}
"""Values of environment variables that are to be found nowhere after a run."""


class Evil:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return os.makedirs, (self.marker, 0o777, True)


def plant(folder: Path, marker: Path) -> None:
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps(Evil(marker), 2))


def test_planted_pickle_would_work(tmp_path: Path) -> None:
    plant(tmp_path, tmp_path / "marker")
    pickle.loads((tmp_path / PICKLES[0]).read_bytes())
    assert (tmp_path / "marker").is_dir()


# our own sources


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, with its name as it is written: `torch.load`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_source_unpickles() -> None:
    modules = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    harmless = "from joblib import cpu_count"
    seen = 0
    for file in SOURCES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found = modules.intersection(name.split(".")[0] for name in names)
            assert not found or ast.unparse(node) == harmless, file.name
        for name, call in calls(file):
            seen += 1
            assert name not in ("torch.load", "np.load", "numpy.load", "pd.read_pickle", "eval", "exec"), file.name
            assert "allow_pickle" not in [keyword.arg for keyword in call.keywords], file.name
    assert seen > 1_000


def test_every_reading_of_weights_is_of_safetensors() -> None:
    readers = []
    for file in SOURCES:
        source = ast.parse(file.read_text(encoding="utf-8"))
        for function in [node for node in ast.walk(source) if isinstance(node, ast.FunctionDef)]:
            text = ast.unparse(function)
            for node in ast.walk(function):
                name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if name.startswith("AutoModel") and name.endswith(".from_pretrained"):
                    assert "use_safetensors=True" in ast.unparse(node), file.name
                    readers.append(name)
                if name in ("PeftModel.from_pretrained", "model.load_adapter"):  # which know no such argument
                    assert "adapter_model.safetensors" in text, file.name
                    readers.append(name)
    assert len(readers) == 4  # foundation model, its shape alone, adapter, and what export has written


def test_no_python_that_is_started_takes_modules_from_the_current_folder() -> None:
    lists = [
        [ast.unparse(element) for element in node.elts]
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.List)
    ]
    starts = [elements for elements in lists if elements[:1] == ["sys.executable"]]
    assert len(starts) > 3 and all(elements[1] == "'-P'" for elements in starts)
    assert environment.DEFAULTS["PYTHONSAFEPATH"] == "1"  # for what libraries start


# models


def finetune(*arguments: str) -> int:
    return main(["finetune", *arguments])


@pytest.fixture
def model(foundation: Any, workplace: Path) -> Path:
    shutil.copytree(foundation("gpt2"), workplace / "model")
    plant(workplace / "model", workplace / "marker")
    return workplace / "model"


@pytest.fixture
def options(model: Path, reviews: Path) -> list[str]:
    return ["--model.name", str(model), "--data.name", str(reviews), "--data.max_length", "32"]


def test_weights_as_pickle_alone_are_refused(
    model: Path, options: list[str], capfd: pytest.CaptureFixture[str], workplace: Path
) -> None:
    (model / "model.safetensors").unlink()
    assert finetune(*options) == USER_MUST_CHANGE
    assert "weights are there as pytorch_model.bin only, which can hide code" in capfd.readouterr().err
    assert not (workplace / "marker").exists()


def test_index_of_pickles_is_refused(
    model: Path, options: list[str], capfd: pytest.CaptureFixture[str], workplace: Path
) -> None:
    (model / "model.safetensors").rename(model / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "pytorch_model.bin"}}
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        (model / name).write_text(json.dumps(index))
    assert finetune(*options) == USER_MUST_CHANGE
    assert capfd.readouterr().err.count("\n") == 1
    assert not (workplace / "marker").exists()


def test_adapter_of_a_model_folder_is_not_unpickled(model: Path, options: list[str], workplace: Path) -> None:
    settings = {"peft_type": "LORA", "r": 8, "target_modules": ["c_attn"], "base_model_name_or_path": str(model)}
    (model / "adapter_config.json").write_text(json.dumps(settings))
    assert finetune(*options) == USER_MUST_CHANGE
    assert not (workplace / "marker").exists()


def test_adapter_as_pickle_is_refused(trained: Trained, tmp_path: Path) -> None:
    from tasks.models import serving

    adapter = tmp_path / "adapter"
    shutil.copytree(trained.adapter.folder, adapter)
    (adapter / "adapter_model.safetensors").unlink()
    plant(adapter, tmp_path / "marker")
    with pytest.raises(FileNotFoundError, match="other formats can hide code"):
        serving.load_adapter(adapter)
    assert not (tmp_path / "marker").exists()


def test_adapter_beside_pickles_is_read(trained: Trained, tmp_path: Path) -> None:
    from tasks.models import serving

    adapter = tmp_path / "adapter"
    shutil.copytree(trained.adapter.folder, adapter)
    plant(adapter, tmp_path / "marker")
    assert serving.load_adapter(adapter, local_files_only=True)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["AutoConfig", "AutoModelForSequenceClassification", "AutoTokenizer"])
def test_code_of_a_model_runs_only_if_told(
    name: str, model: Path, options: list[str], capfd: pytest.CaptureFixture[str], workplace: Path
) -> None:
    (model / "own.py").write_text(f"import os\nos.makedirs({str(workplace / 'marker')!r})\n")
    settings = json.loads((model / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", name: "own.Own"}}
    (model / "config.json").write_text(json.dumps(settings))
    assert finetune(*options) == USER_MUST_CHANGE
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1 and "model.trust_remote_code" in errors
    assert not (workplace / "marker").exists()
    assert finetune(*options, "--model.trust_remote_code") == USER_MUST_CHANGE  # there is no class Own
    assert (workplace / "marker").exists()  # so the test can fail


@pytest.mark.parametrize(
    "options_of_adapter",
    ["{megatron_config: {a: 1}, megatron_core: own}", "{megatron_core: own}"],
)
def test_adapter_options_import_nothing(
    options_of_adapter: str,
    options: list[str],
    workplace: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (workplace / "own.py").write_text(f"import os\nos.makedirs({str(workplace / 'marker')!r})\n")
    monkeypatch.syspath_prepend(str(workplace))
    assert finetune(*options, "--adapter.options", options_of_adapter) == USER_MUST_CHANGE
    assert "could run code" in capfd.readouterr().err
    assert not (workplace / "marker").exists()


# data


def test_data_folder_runs_no_code(options: list[str], workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workplace / "data").mkdir()
    plant(workplace / "data", workplace / "marker")
    (workplace / "data/data.py").write_text(f"import os\nos.makedirs({str(workplace / 'marker')!r})\n")
    assert finetune(*options, "--data.name", "./data") == USER_MUST_CHANGE
    (workplace / "data/train.json").write_text("[]")
    assert finetune(*options, "--data.name", "./data") == USER_MUST_CHANGE
    assert not (workplace / "marker").exists()


# secrets


def test_secrets_are_hidden_by_their_look_and_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-some-key")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert redact("1 key: planted-some-key") == f"1 key: {HIDDEN}"
    assert redact(f"token {PLANTED['HF_TOKEN']}!") == f"token {HIDDEN}!"
    assert redact("at http://me:p:w@host:5000/x") == f"at http://{HIDDEN}@host:5000/x"
    assert redact("https://host/@user and me@host") == "https://host/@user and me@host"
    assert redact("the tokenizer of hf_model, sk-learn") == "the tokenizer of hf_model, sk-learn"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://me:plan@ted@host:5000/x", f"at https://{HIDDEN}@host:5000/x"),
        ("at https://me:plan/ted@host/x", f"at https://{HIDDEN}@host/x"),
        ("at https://planted-token@host/x", f"at https://{HIDDEN}@host/x"),
        ("https://host/x?a=1&access_token=planted&b=2", f"https://host/x?a=1&access_token={HIDDEN}&b=2"),
        ("https://host/x?X-Amz-Signature=planted", f"https://host/x?X-Amz-Signature={HIDDEN}"),
        ("postgresql://host/db?user=me&password=planted", f"postgresql://host/db?user=me&password={HIDDEN}"),
        ("https://host:5000/a@b?page=2&tokenizer=gpt2", "https://host:5000/a@b?page=2&tokenizer=gpt2"),
    ],
)
def test_secrets_in_addresses_are_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "ENCRYPTED ", "OPENSSH "])
@pytest.mark.parametrize("end", ["\n", "\\n", "\r\n", "\\r\\n"])
def test_private_key_is_hidden_with_its_body(kind: str, end: str) -> None:
    lines = [f"MIIE{'planted+' * 7}Pa/0", *[f"{'planted/' * 8}"] * 3, "planted="]
    key = end.join((f"-----BEGIN {kind}PRIVATE KEY-----", *lines, f"-----END {kind}PRIVATE KEY-----"))
    assert redact(f"a {key} b") == f"a {HIDDEN} b"
    for part in (key[:100], key[-200:], key[60:]):  # cut off anywhere
        shown = redact(f"a {part}")
        assert "planted" not in shown and shown.startswith("a "), part


def test_key_of_the_environment_is_hidden_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    body = ["planted-line-number-one", "planted-line-number-two"]
    monkeypatch.setenv("DEPLOY_KEY", "\n".join(body))
    assert redact(f"1 {body[1]} 2") == f"1 {HIDDEN} 2"
    assert redact(json.dumps("\n".join(body))) == f'"{HIDDEN}"'


@pytest.mark.parametrize(
    "text", ["planted@word", "planted%40word", "FATAL: planted@word for me", "at me:planted@word@host:5432"]
)
def test_password_in_an_address_of_the_environment_is_hidden_wherever_it_stands(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:planted%40word@host/db")
    assert "planted" not in redact(text) and "word" not in redact(text)


@pytest.mark.parametrize("name", ["DB_PASS", "PGPASSWORD", "MYSQL_PWD", "SSH_PASSPHRASE", "LDAP_PASSWD"])
def test_secret_variable_is_known_by_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "planted-secret")
    assert redact("planted-secret") == HIDDEN


def test_current_folder_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/planted")
    monkeypatch.setenv("OLDPWD", "/home/planted/before")
    assert redact("/home/planted/before") == "/home/planted/before"


def test_half_of_a_secret_is_not_left_where_a_message_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "planted-" + "x" * 300)
    assert first_line(f"refused planted-{'x' * 300}") == f"refused {HIDDEN}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.name", "https://me:planted@host/gpt2"),
        ("data.name", "https://host/a.csv?token=planted"),
        ("data.name", "s3://me:planted@bucket/a.csv"),
        ("model.name", PLANTED["HF_TOKEN"]),
        ("data.revision", PLANTED["AWS_SECRET_ACCESS_KEY"]),
        ("data.label_column", PLANTED["PREFECT_API_KEY"]),
        ("tracking.run_name", f"run of {PLANTED['MLFLOW_TRACKING_PASSWORD']}"),
        ("tracking.experiment", "ghp_" + "a1" * 18),
        ("tracking.tags", ["team=search", "token=abc"]),
        ("tracking.tags", {"db_password": "abc"}),
        ("tracking.tags", ["note=" + PLANTED["HF_TOKEN"]]),
        ("adapter.options", {"init_lora_weights": PLANTED["HF_TOKEN"]}),
        ("adapter.options", {"a": {"b": [{"secret": "abc"}]}}),
        ("adapter.target_modules", [PLANTED["HF_TOKEN"]]),
    ],
)
def test_secret_in_a_configuration_is_refused_and_not_repeated(
    field: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, secret in PLANTED.items():
        monkeypatch.setenv(name, secret)
    section, name = field.split(".")
    with pytest.raises(InputError) as refused:
        validated({section: {name: value}})
    assert str(refused.value).startswith(f"{field}: holds what looks like a password or token")
    assert "environment" in str(refused.value)
    assert not any(secret in str(refused.value) for secret in (*PLANTED.values(), "planted", "abc", "a1a1"))


@pytest.mark.parametrize("tag", ["team=search", "tokens=128", "key=value", "note=https://host/a@b"])
def test_harmless_tag_is_kept(tag: str) -> None:
    assert validated({"tracking": {"tags": [tag]}}).tracking.tags == (tag,)


def test_no_logger_says_a_secret(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SOME_TOKEN", "planted-some-token")
    try:
        raise ValueError("at http://me:planted-some-token@host")
    except ValueError:
        logging.getLogger("any.library").exception("failed with %s", "planted-some-token")
    assert "planted" not in caplog.text
    assert f"failed with {HIDDEN}" in caplog.text and "ValueError" in caplog.text


@pytest.mark.parametrize("kind", [InputError, ValueError])
def test_story_of_a_run_says_no_secret(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "planted-some-token")
    error = kind("broken by planted-some-token")
    record = logging.getLogRecordFactory()("prefect.flow_runs", logging.ERROR, "f", 1, "x", (), (kind, error, None))
    assert environment.Story().filter(record)
    assert "planted" not in logging.Formatter().format(record)


# a whole run


class Run(NamedTuple):
    folder: Path
    output: str


RUNS = """
import os
import sys

from flows.cli import DONE, FAILED, main
from tasks.tracking import run

run.PATIENCE_SECONDS = 0  # for an MLflow that is not there
os.environ["MLFLOW_TRACKING_URI"] = "http://me:planted-uri-0007@127.0.0.1:9"
assert main(sys.argv[1:]) == FAILED
print("FIRST DONE", flush=True)
input()
del os.environ["MLFLOW_TRACKING_URI"]
assert main(sys.argv[1:]) == DONE
"""


@pytest.fixture(scope="module")
def run(foundation: Any, reviews: Path, empty_prefect: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A process with a run among pickles, secrets and names that are paths, which fails at its end at a server whose
    address holds a password; then another, after more pickles were put into its caches, with a store of its own."""
    folder = tmp_path_factory.mktemp("run")
    place = folder / "place"
    shutil.copytree(foundation("gpt2"), place / "model")
    shutil.copytree(reviews, place / "reviews")
    plant(place / "model", folder / "marker")
    plant(place / "reviews", folder / "marker")
    variables = os.environ | PLANTED | {"HOME": str(folder / "home"), "PREFECT_HOME": str(folder / "prefect")}
    variables |= {"HF_HOME": str(folder / "hf"), "PYTHONPATH": str(ROOT)}
    for name in ("home", "prefect"):
        (folder / name).mkdir()
    shutil.copy(empty_prefect, folder / "prefect/prefect.db")
    arguments = [
        *("finetune", "--model.name", "./model", "--data.name", "./reviews", "--data.max_length", "32"),
        *("--training.epochs", "1", "--evaluation.bootstrap_samples", "200", "--evaluation.references", "majority"),
        *("--tracking.experiment", "../../escaped", "--tracking.run_name", "../../../escaped"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        server, address = prefect_server(folder)  # else each of the two starts one of its own, which takes 15 s
        server.start()
    variables["PREFECT_API_URL"] = address
    with ExitStack() as stack:
        stack.callback(server.kill)
        errors = stack.enter_context((folder.parent / "run.err").open("w+"))
        process = subprocess.Popen(
            [sys.executable, "-c", RUNS, *arguments],
            cwd=place,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout
        first = list(takewhile(lambda line: line != "FIRST DONE\n", process.stdout))
        if process.poll() is None:
            for work in [path for path in (place / "mlruns").rglob("*") if path.is_dir()]:
                plant(work, folder / "marker")
            poison(folder / "prefect/storage", folder / "marker")
        then, _ = process.communicate("\n")
        errors.seek(0)
        output = "".join(first) + then + errors.read() + (folder / "prefect.log").read_text()
    (folder / "prefect.log").unlink()
    assert process.returncode == 0, output
    return Run(folder, output)


def poison(storage: Path, marker: Path) -> None:
    """Turn every result that Prefect has kept into a pickle, which the file itself says it is."""
    evil = base64.encodebytes(pickle.dumps(Evil(marker), 2)).decode()
    results = [file for file in storage.rglob("*") if file.is_file()]
    assert results
    for file in results:
        if not file.read_text().startswith("{"):  # the error of a run that failed is one already
            file.write_text(evil)
            continue
        kept = json.loads(file.read_text())
        kept["metadata"]["serializer"] = {"type": "pickle"}
        kept["result"] = evil
        file.write_text(json.dumps(kept))


def test_run_among_pickles_loads_none(run: Run) -> None:
    assert not (run.folder / "marker").exists()


def test_run_leaves_no_secret_behind(run: Run) -> None:
    """Not on the terminal, in MLflow, in Prefect, or in any other file."""
    secrets = [*PLANTED.values(), "planted-auth-0005", "planted-uri-0007"]
    secrets += [base64.b64encode(secret.encode()).decode().rstrip("=") for secret in secrets]
    for secret in secrets:
        assert secret not in run.output, secret
    assert "127.0.0.1:9" in run.output  # the failure at that address was said
    files = [file for file in run.folder.rglob("*") if file.is_file()]
    assert any(file.name == "mlflow.db" for file in files) and any(file.name == "prefect.db" for file in files)
    assert len(files) > 100
    for file in files:
        content = file.read_bytes()
        for secret in secrets:
            assert secret.encode() not in content, (file, secret)


def test_names_that_are_paths_stay_names(run: Run) -> None:
    assert sorted(path.name for path in run.folder.iterdir()) == ["hf", "home", "place", "prefect"]
    assert sorted(path.name for path in (run.folder / "place").iterdir()) == ["mlruns", "model", "reviews"]
    assert not [path for path in run.folder.rglob("*") if "escaped" in path.name]
    assert not (run.folder.parent / "escaped").exists()


def test_served_model_loads_no_pickle(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    import pandas as pd

    monkeypatch.chdir(run.folder / "place")
    logged = next((run.folder / "place/mlruns/artifacts").rglob("MLmodel")).parent
    for folder in [logged, *(path for path in logged.rglob("*") if path.is_dir())]:
        plant(folder, run.folder / "marker")
    model = mlflow.pyfunc.load_model(str(logged))
    assert len(model.predict(pd.DataFrame({"text": ["a film to remember"]}))) == 1
    assert not (run.folder / "marker").exists()


# known holes in packages


@pytest.mark.parametrize(
    ("said", "code", "ends", "words"),
    [
        ("No known vulnerabilities found", 0, 0, "no known vulnerabilities"),
        ("Found 2 known vulnerabilities in 1 package\ntorch 2.13.0 PYSEC-1", 1, 2, "PYSEC-1"),
        ("No known vulnerabilities found\n" + "x could not be audited\n" * 200, 0, 0, "SKIPPED"),
        ("Found 1 known vulnerability in 1 package\n" + "x could not be audited\n" * 200, 1, 2, "Found 1"),
        ("requests.exceptions.ConnectionError: Max retries exceeded", 1, 0, "SKIPPED"),
        ("", 124, 0, "SKIPPED"),
        ("ERROR: constraints.txt: no version", 1, 2, "no version"),
    ],
    ids=["clean", "hole", "nothing known", "hole beside unknown", "offline", "slow", "broken"],
)
def test_lint_fails_on_known_holes_and_only_on_those(
    said: str, code: int, ends: int, words: str, tmp_path: Path
) -> None:
    """With a stand-in for pip-audit and the other linters: what make lint makes of what it says."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / "said.txt").write_text(said)
    for name in ("pip-audit", "ruff", "mypy", "lint-imports", "pip", "python"):
        lines = f"cat said.txt\nexit {code}\n" if name == "pip-audit" else ""
        (tmp_path / f".venv/bin/{name}").write_text(f"#!/bin/sh\n{lines}")
        (tmp_path / f".venv/bin/{name}").chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    done = subprocess.run(["make", "lint"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == ends, done.stderr
    assert words in done.stdout
