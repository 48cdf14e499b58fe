"""What a user can get wrong: exit code 2 and one line that says what and what would do, before anything is trained."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flows.cli import USER_MUST_CHANGE, main

LINES = [f"a film number {row},{('bad', 'good')[row % 2]}" for row in range(60)]
CSV = "\n".join(["text,label", *LINES]) + "\n"
THREE = CSV + "a,so-so\nb,so-so\nc,so-so\n"
FREE = "text,label\n" + "".join(f"a film,it has number {row}\n" for row in range(60))
NUMBERED = CSV.replace(",bad", ",0").replace(",good", ",1")
JSONL = "".join(json.dumps({"text": f"a film number {row}", "label": row % 2}) + "\n" for row in range(60))


class Case(NamedTuple):
    name: str
    says: tuple[str, ...]
    options: str = ""
    files: dict[str, str | bytes] = {}  # noqa: RUF012  (never changed)


def of_file(name: str, content: str | bytes, *says: str, options: str = "") -> Case:
    """A case whose data set is one file."""
    return Case(name, says, f"--data.name {name} {options}", {name: content})


def of_folder(name: str, files: dict[str, str | bytes], *says: str, options: str = "") -> Case:
    return Case(name, says, f"--data.name ./{name} {options}", {f"{name}/{file}": text for file, text in files.items()})


CASES = [
    # what is asked for is not there
    Case("no such model", ("model.name", "no-model", "check the path"), "--model.name ./no-model"),
    Case("model is a file", ("model.name", "notes.txt", "folder"), "--model.name notes.txt", {"notes.txt": "hello"}),
    Case("model name is no name", ("model.name", "'a:b'", "owner/name"), "--model.name a:b"),
    Case("no such data set", ("data.name", "no-data", "check the path"), "--data.name ./no-data"),
    Case("no such file", ("data.name", "reviews.parquet", "check the path"), "--data.name reviews.parquet"),
    Case("model offline", ("model.name", "gpt2", "cache", "offline"), "--model.name gpt2 --offline"),
    Case("data offline", ("data.name", "rotten_tomatoes", "cache", "offline"), "--data.name rotten_tomatoes --offline"),
    Case("no such configuration file", ("nope.yaml", "configs/"), "nope.yaml"),
    # files
    of_file("reviews.txt", "text,label\n", "data.name", "reviews.txt", ".csv, .json, .jsonl or .parquet"),
    of_file("empty.csv", "", "data.name", "empty.csv is empty"),
    of_file("header.csv", "text,label\n", "data.name", "header.csv", "no rows"),
    of_file("blank.jsonl", "\n\n", "data.name", "blank.jsonl", "no rows"),
    of_file("nothing.json", "[]", "data.name", "nothing.json", "no rows"),
    of_file("ragged.csv", CSV + "a,b,c,d\n", "data.name", "ragged.csv", "line 62"),
    of_file("quote.csv", CSV + '"never closed,good\n', "data.name", "quote.csv", "row 61"),
    of_file("latin.csv", CSV.encode() + "café,good\n".encode("latin-1"), "data.name", "latin.csv", "utf-8"),
    of_file("binary.csv", bytes(range(256)) * 20, "data.name", "binary.csv", "cannot be read"),
    of_file("broken.json", '[{"text": "a", "label": 1},', "data.name", "broken.json", "cannot be read"),
    of_file("number.json", "3", "data.name", "number.json", "cannot be read"),
    of_file("broken.jsonl", JSONL + '{"text": broken\n', "data.name", "broken.jsonl", "row 60"),
    of_file("csv.parquet", CSV, "data.name", "csv.parquet", "parquet"),
    of_file("garbage.parquet", b"PAR1" + bytes(500), "data.name", "garbage.parquet", "cannot be read"),
    of_file("named.csv", CSV, "data.config", "named.csv", options="--data.config small"),
    # folders
    of_folder("bare", {"notes.md": "nothing here"}, "data.name", "bare", ".csv, .json, .jsonl or .parquet"),
    of_folder("empty-file", {"train.csv": CSV, "test.csv": ""}, "data.name", "test.csv is empty"),
    of_folder("empty-split", {"train.csv": CSV, "test.csv": "text,label\n"}, "data.name", "'test'", "no rows"),
    of_folder("no-train", {"test.csv": CSV}, "data.train_split", "'train'", "test"),
    of_folder("broken-test", {"train.csv": CSV, "test.csv": CSV + "a,b,c\n"}, "data.name", "test.csv", "line 62"),
    of_folder("two-shapes", {"train.csv": CSV, "test.csv": "a,b\n1,2\n"}, "data.name", "two-shapes", "same columns"),
    of_folder("two-kinds", {"train.csv": NUMBERED, "test.csv": CSV}, "data.name", "two-kinds", "same kind of value"),
    of_folder("two-formats", {"train.csv": CSV, "test.jsonl": JSONL}, "data.name", "two-formats", "csv", "json"),
    # columns and splits
    Case("no such text column", ("data.text_columns", "'body'", "text, label"), "--data.text_columns body"),
    Case("no such label column", ("data.label_column", "'stars'", "text, label"), "--data.label_column stars"),
    Case("text is label", ("text_columns", "label_column", "different"), "--data.text_columns label"),
    Case("text twice", ("text_columns", "different", "text, text"), "--data.text_columns text,text"),
    Case("three texts", ("data.text_columns", "at most 2"), "--data.text_columns a,b,c"),
    Case("no text column", ("data.text_columns", "at least 1"), "--data.text_columns []"),
    Case("reserved column", ("text_columns", "'length'", "rename"), "--data.text_columns length"),
    Case("no such split", ("data.test_split", "'dev'", "test, train, validation"), "--data.test_split dev"),
    Case("train is test", ("train_split", "test_split", "different"), "--data.test_split train"),
    # labels
    of_file("one-class.csv", CSV.replace(",bad", ",good"), "data.label_column", "one class", "'good'"),
    of_file("no-label.csv", CSV + "a film,\n", "data.label_column", "train row 60"),
    of_file("null-label.jsonl", JSONL + '{"text": "a film"}\n', "data.label_column", "None", "train row 60"),
    of_file("negative.csv", NUMBERED.replace(",1", ",-1"), "label_column", "-1", "rows 1, 3", "20 more", "remove"),
    of_file("float.csv", NUMBERED.replace(",1", ",0.5"), "data.label_column", "0.5", "rows 1, 3, 5", "whole number"),
    of_file("list.jsonl", JSONL.replace(": 0}", ": [0]}"), "data.label_column", "[0]", "train rows 0, 2, 4"),
    of_file("free.csv", FREE, "data.label_column", "60 different values", "regression"),
    of_folder("new-label", {"train.csv": CSV, "test.csv": CSV + "a film,so-so\n"}, "label_column", "'so-so'", "row 60"),
    of_folder("new-number", {"train.csv": NUMBERED, "test.csv": NUMBERED + "a,2\n"}, "label 2", "0, 1", "test row 60"),
    # texts
    of_file("no-text.csv", CSV + ",good\n", "data.text_columns", "1 empty text", "'text'", "train row 60"),
    of_file("spaces.csv", "text,label\n  ,bad\n" + CSV[11:] + " ,good\n", "2 empty texts", "train rows 0, 61"),
    of_file("numbers.csv", CSV.replace("a film number ", ""), "data.text_columns", "'text'", "int64", "not text"),
    of_file("lists.jsonl", JSONL.replace('"a film', '["a film').replace('", "l', '"], "l'), "text_columns", "not text"),
    of_file("mixed.jsonl", JSONL + '{"text": 5, "label": 0}\n', "data.text_columns", "'text'", "not text"),
    # too few rows
    of_file("two-rows.csv", "text,label\na,0\nb,1\n", "2 training rows", "too few", "test split"),
    of_file("train-2.csv", THREE, "data.max_train_rows", "3 classes", options="--data.max_train_rows 2"),
    of_file("test-2.csv", THREE, "data.max_test_rows", "3 classes", options="--data.max_test_rows 2"),
    # numbers that cannot be
    *(
        Case(f"{field} {value}", (field, says, value), f"--{field} {value}")
        for field, value, says in [
            ("training.batch_size", "0", "greater than or equal to 1"),
            ("training.batch_size", "1.5", "valid integer"),
            ("evaluation.batch_size", "0", "greater than or equal to 1"),
            ("training.learning_rate", "-1", "greater than or equal to 0"),
            ("training.learning_rate", "nan", "finite"),
            ("training.learning_rate", "inf", "finite"),
            ("training.learning_rate", "fast", "valid number"),
            ("training.epochs", "0", "greater than or equal to 1"),
            ("training.max_steps", "0", "greater than or equal to 1"),
            ("training.warmup_fraction", "1.1", "less than or equal to 1"),
            ("adapter.r", "0", "greater than or equal to 1"),
            ("adapter.alpha", "0", "greater than 0"),
            ("adapter.dropout", "1", "less than 1"),
            ("evaluation.confidence", "1", "less than 1"),
            ("evaluation.bootstrap_samples", "10", "greater than or equal to 200"),
            ("data.max_length", "0", "greater than or equal to 4"),
            ("data.max_length", "65", "64 positions"),
            ("data.max_train_rows", "1", "greater than or equal to 2"),
            ("seed", "-1", "greater than or equal to 0"),
            ("seed", str(2**32), "less than"),
        ]
    ),
    # choices
    Case("unknown method", ("adapter.method", "'lora'", "'lara'"), "--adapter.method lara"),
    Case("unknown option", ("adapter.options", "use_dorra", "use_dora"), "--adapter.options '{use_dorra: 1}'"),
    Case("option that is ours", ("adapter.options", "task_type"), "--adapter.options '{task_type: CAUSAL_LM}'"),
    Case("option with a field", ("adapter.options", "adapter.r"), "--adapter.options '{r: 4}'"),
    Case("bad option value", ("adapter", "lora", "'x'"), "--adapter.options '{init_lora_weights: x}'"),
    Case("options are no mapping", ("adapter.options", "dictionary", "'r'"), "--adapter.options r"),
    Case("options never end", ("adapter.options", "{a: 1}"), "--adapter.options '{r: 1'"),
    Case("no such layer", ("adapter.target_modules", "'q_proj'", "c_attn"), "--adapter.target_modules q_proj"),
    Case("method against Conv1D", ("adapter.method", "hra", "Conv1D"), "--adapter.method hra"),
    Case("prompt before last token", ("adapter.method", "prompt_tuning", "lora"), "--adapter.method prompt_tuning"),
    Case("rank of ia3", ("adapter.r", "ia3", "adapter.options"), "--adapter.method ia3 --adapter.r 4"),
    Case("unknown scheduler", ("training.scheduler", "'cosine'", "'cosin'"), "--training.scheduler cosin"),
    Case("unknown reference", ("evaluation.references", "'majority'", "'guess'"), "--evaluation.references guess"),
    Case("registered name", ("tracking.registered_model", "'a/b'"), "--tracking.registered_model a/b"),
    Case("no boolean", ("offline", "boolean", "'perhaps'"), "--offline perhaps"),
    Case("empty name", ("data.name", "string"), "--data.name="),
    Case("unknown field", ("training.lr", "training.learning_rate"), "--training.lr 1"),
    Case("section without field", ("'training'", "training.epochs"), "--training 1"),
    Case("no value", ("--seed", "--help"), "--seed"),
    Case("one argument too many", ("'b.yaml'",), "a.yaml b.yaml"),
    Case("unknown field in a file", ("a.yaml", "modle", "mean model?"), "a.yaml", {"a.yaml": "modle: {name: x}"}),
]  # fmt: skip


class Started(Exception):
    """The flow was reached: nobody refused the input."""


@pytest.fixture
def refused(workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused("--seed", "-1")`: the line that the command says, after checking what holds for every refusal."""
    import flows.finetune

    def start(**sections: object) -> None:
        raise Started

    def run(*arguments: str) -> str:
        monkeypatch.setattr(flows.finetune, "finetune", start)
        capfd.readouterr()
        code = main(["finetune", *arguments])
        output, errors = capfd.readouterr()
        assert code == USER_MUST_CHANGE, errors
        assert output == ""
        assert errors.count("\n") == 1 and errors.startswith("peft-flow: "), errors
        assert len(errors) < 500
        assert not (workplace / "mlruns").exists()
        return errors

    return run


@pytest.fixture
def valid(foundation: Any, reviews: Path) -> list[str]:
    """Options that are accepted; options after them replace them."""
    return ["--model.name", str(foundation("gpt2")), "--data.name", str(reviews), "--data.max_length", "32"]


def test_valid_options_reach_the_flow(
    valid: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import flows.finetune

    def start(**sections: object) -> None:
        raise Started

    monkeypatch.setattr(flows.finetune, "finetune", start)
    assert main(["finetune", *valid]) == 1
    assert "Started" in capfd.readouterr().err


def test_names_are_different() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_bad_input_is_refused_in_one_line(case: Case, valid: list[str], refused: Callable[..., str]) -> None:
    for name, content in case.files.items():
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    line = refused(*valid, *shlex.split(case.options))
    for words in case.says:
        assert words in line


def test_truncated_parquet_is_refused(valid: list[str], refused: Callable[..., str]) -> None:
    import pandas as pd

    whole = Path("whole.parquet")
    pd.DataFrame({"text": ["a", "b"] * 30, "label": [0, 1] * 30}).to_parquet(whole)
    Path("cut.parquet").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert "cut.parquet cannot be read" in refused(*valid, "--data.name", "cut.parquet")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--adapter.target_modules q_proj", ("adapter.target_modules", "'q_proj'", "query", "value")),
        ("--adapter.method prompt_tuning --adapter.target_modules query", ("adapter.target_modules", "leave it empty")),
        ("--data.max_length 67", ("data.max_length", "67", "64")),
    ],
)
def test_what_an_encoder_cannot_do_is_refused(
    options: str, says: tuple[str, ...], foundation: Any, valid: list[str], refused: Callable[..., str]
) -> None:
    line = refused(*valid, "--model.name", str(foundation("bert")), *options.split())
    for words in says:
        assert words in line


def without(*names: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return edit


def replaced(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def with_settings(**settings: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))

    return edit


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        pytest.param(pickled, ("safetensors",), id="weights-as-pickle"),
        pytest.param(without("model.safetensors"), ("safetensors",), id="no-weights"),
        pytest.param(without("config.json"), ("config.json",), id="no-configuration"),
        pytest.param(replaced("config.json", "{"), ("config.json", "JSON"), id="broken-configuration"),
        pytest.param(replaced("config.json", "{}"), ("model_type", "config.json"), id="empty-configuration"),
        pytest.param(without("tokenizer.json", "tokenizer_config.json"), ("tokenizer",), id="no-tokenizer"),
        pytest.param(replaced("tokenizer.json", "{"), ("tokenizer", "line 1"), id="broken-tokenizer"),
        pytest.param(with_settings(model_type="newest"), ("newest",), id="unknown-architecture"),
        pytest.param(with_settings(n_head=3), ("num_heads",), id="impossible-architecture"),
        pytest.param(
            with_settings(model_type="own", auto_map={"AutoConfig": "code.Own"}),
            ("model.trust_remote_code",),
            id="own-code",
        ),
        pytest.param(replaced("config.json", '{"model_type": "vit"}'), ("cannot classify",), id="vision-model"),
        pytest.param(replaced("config.json", '{"model_type": "whisper"}'), ("cannot classify",), id="speech-model"),
    ],
)
def test_unusable_model_folder_is_refused(
    edit: Callable[[Path], None], says: tuple[str, ...], foundation: Any, valid: list[str], refused: Callable[..., str]
) -> None:
    shutil.copytree(foundation("gpt2"), "broken-model")
    edit(Path("broken-model"))
    line = refused(*valid, "--model.name", "./broken-model")
    for words in ("broken-model", *says):
        assert words in line
