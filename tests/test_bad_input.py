"""What a user can get wrong: exit code 2 and one line that says what and what would do, before anything is trained."""

import gzip
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from flows.cli import USER_MUST_CHANGE, main
from tasks.base import fresh_process
from tests.conftest import ROOT, rarely
from tests.stacks import until

LINES = [f"a film number {row},{('bad', 'good')[row % 2]}" for row in range(60)]
CSV = "\n".join(["text,label", *LINES]) + "\n"
THREE = CSV + "a,so-so\nb,so-so\nc,so-so\n"
FREE = "text,label\n" + "".join(f"a film,it has number {row}\n" for row in range(60))
NUMBERED = CSV.replace(",bad", ",0").replace(",good", ",1")
TEXTS = [f"a film number {row}" for row in range(60)]
JSON = json.dumps([{"text": text, "label": row % 2} for row, text in enumerate(TEXTS)])
LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30))
SCRIPT = "open('made', 'w')\n"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n"
PICKLE = b"cos\nmkdir\n(S'made'\ntR."
GHOST = "---\nconfigs:\n- config_name: default\n  data_files: nowhere.csv\n---\n"
JSONL = "".join(json.dumps({"text": f"a film number {row}", "label": row % 2}) + "\n" for row in range(60))


class Case(NamedTuple):
    name: str
    says: tuple[str, ...]
    options: str = ""
    files: dict[str, str | bytes] = {}  # noqa: RUF012  (never changed)


def of_file(name: str, content: str | bytes, *says: str, options: str = "") -> Case:
    """A case whose data set is one file."""
    return Case(name, says, f"--data.name {name} {options}", {name: content})


def of_test_file(name: str, content: str | bytes, *says: str, options: str = "") -> Case:
    """A case whose test rows are those of a file."""
    return Case(f"test file {name}", says, f"--data.test_file {name} {options}", {name: content})


def of_corrections(name: str, content: str | bytes, *says: str) -> Case:
    return Case(f"corrections {name}", ("data.corrections", *says), f"--data.corrections {name}", {name: content})


def of_folder(name: str, files: dict[str, str | bytes], *says: str, options: str = "") -> Case:
    return Case(name, says, f"--data.name ./{name} {options}", {f"{name}/{file}": text for file, text in files.items()})


def of_config(name: str, content: str | bytes, *says: str) -> Case:
    return Case(f"configuration {name}", says, "b.yaml", {"b.yaml": content})


def parquet(columns: dict[str, Any]) -> bytes:
    import pyarrow.parquet

    with io.BytesIO() as file:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
        return file.getvalue()


def parquet_twice() -> bytes:
    import pyarrow.parquet

    with io.BytesIO() as file:
        columns = [pyarrow.array(values) for values in (TEXTS, [0, 1] * 30, TEXTS)]
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, ["text", "label", "text"]), file)
        return file.getvalue()


def parquet_latin() -> bytes:
    import pyarrow

    texts = pyarrow.array([text.replace("film", "café").encode("latin-1") for text in TEXTS])
    return parquet({"text": texts.view(pyarrow.string()), "label": [0, 1] * 30})


def flipped(content: bytes) -> bytes:
    """With every bit of its footer turned over; the marks at both ends stay."""
    return content[:-80] + bytes(255 - byte for byte in content[-80:-8]) + content[-8:]


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
    of_file("reviews.txt", "text,label\n", "data.name", "reviews.txt", ".csv, .tsv, .json", "folders named by class"),
    of_file("empty.csv", "", "data.name", "empty.csv is empty"),
    of_file("header.csv", "text,label\n", "data.name", "header.csv", "no rows"),
    of_file("blank.jsonl", "\n\n", "data.name", "blank.jsonl", "no rows"),
    of_file("nothing.json", "[]", "data.name", "nothing.json", "no rows"),
    of_file("ragged.csv", CSV + "a,b,c,d\n", "data.name", "ragged.csv", "line 62"),
    of_file("quote.csv", CSV + '"never closed,good\n', "data.name", "quote.csv", "row 60 (line 62)", "never closed"),
    of_file("latin.csv", CSV.encode() + "café,good\n".encode("latin-1"), "latin.csv", "row 60", "UTF-8", "Latin-1"),
    of_file("binary.csv", bytes(range(256)) * 20, "data.name", "binary.csv", "cannot be read"),
    of_file("broken.json", '[{"text": "a", "label": 1},', "data.name", "broken.json", "row 1", "not valid JSON"),
    of_file("number.json", "3", "data.name", "number.json", "a number, not a JSON object"),
    of_file("broken.jsonl", JSONL + '{"text": broken\n', "data.name", "broken.jsonl", "row 60"),
    of_file("csv.parquet", CSV, "data.name", "csv.parquet", "parquet"),
    of_file("garbage.parquet", b"PAR1" + bytes(500), "data.name", "garbage.parquet", "cannot be read"),
    of_file("named.csv", CSV, "data.config", "named.csv", options="--data.config small"),
    # folders
    of_folder("bare", {"notes.md": "nothing here"}, "data.name", "bare", ".csv, .tsv, .json"),
    of_folder("empty-file", {"train.csv": CSV, "test.csv": ""}, "data.name", "test.csv is empty"),
    of_folder("empty-split", {"train.csv": CSV, "test.csv": "text,label\n"}, "data.test_split", "'test'", "no rows"),
    of_folder("no-train", {"test.csv": CSV}, "data.train_split", "'train'", "test"),
    of_folder("broken-test", {"train.csv": CSV, "test.csv": CSV + "a,b,c\n"}, "data.name", "test.csv", "line 62"),
    of_folder("two-shapes", {"train.csv": CSV, "test.csv": "a,b\n1,2\n"}, "test.csv has no column 'text'", "a, b"),
    of_folder("two-kinds", {"train.csv": NUMBERED, "test.csv": CSV}, "data.label_column", "bad", "not one of 0, 1"),
    of_folder("two-formats", {"train.csv": CSV, "test.jsonl": JSONL}, "data.label_column", "not one of bad, good"),
    # columns and splits
    Case("no such text column", ("data.text_columns", "'body'", "text, label"), "--data.text_columns body"),
    Case("no such label column", ("data.label_column", "'stars'", "text, label"), "--data.label_column stars"),
    Case("text is label", ("text_columns", "label_column", "different"), "--data.text_columns label"),
    Case("text twice", ("text_columns", "different", "text, text"), "--data.text_columns text,text"),
    Case("three texts", ("data.text_columns", "at most 2"), "--data.text_columns a,b,c"),
    Case("no text column", ("data.text_columns", "at least 1"), "--data.text_columns []"),
    Case("reserved column", ("text_columns", "'length'", "rename"), "--data.text_columns length"),
    Case("no such split", ("data.test_split", "'dev'", "test, train, validation"), "--data.test_split dev"),
    # a test set of its own
    Case("no such test file", ("data.test_file", "there is no file no.csv", "path"), "--data.test_file no.csv"),
    Case("test folder", ("data.test_file", "there is no file tests"), "--data.test_file tests", {"tests/a.csv": CSV}),
    of_test_file("test.txt", CSV, "data.test_file", "test.txt is not a data file", ".csv, .tsv, .json"),
    of_test_file("no-bytes.csv", "", "data.test_file", "no-bytes.csv is empty"),
    of_test_file("no-rows.csv", "text,label\n", "data.test_file", "no-rows.csv", "no rows"),
    of_test_file("no-rows.json", "[]", "data.test_file", "no-rows.json", "no rows"),
    of_test_file("broken.parquet", b"PAR1" + bytes(500), "data.test_file", "broken.parquet", "cannot be read"),
    of_test_file("latin-1.csv", CSV.encode() + b"caf\xe9,good\n", "data.test_file", "latin-1.csv", "row 60", "UTF-8"),
    of_test_file("no-text.csv", CSV.replace("text", "body"), "no-text.csv has no column 'text'", "body", "add it"),
    of_test_file("no-labels.csv", CSV.replace("label", "stars"), "no-labels.csv has no column 'label'", "label"),
    of_test_file("unknown.csv", CSV + "a play,so-so\n", "data.label_column", "'so-so'", "bad, good", "test row 60"),
    of_test_file("no-class.csv", CSV + "a play,\n", "data.label_column", "no label", "test row 60"),
    of_test_file("no-words.csv", CSV + " ,good\n", "data.text_columns", "empty text", "test row 60"),
    of_test_file("rows.csv", CSV.replace("\n", ",1\n").replace("l,1", "l,row", 1), "data.test_file", "'row'", "rename"),
    of_test_file("all.csv", CSV, "data.test_file", "all 60 train rows", options="--data.name all.csv"),
    # labels that people have corrected
    Case("no such corrections", ("data.corrections", "there is no file no.csv"), "--data.corrections no.csv"),
    of_corrections("no-column.csv", "id,label\nsha256:1,good\n", "no column 'corrected_label'", "peft-flow review"),
    of_corrections("no-id.csv", "corrected_label\ngood\n", "no column 'id'", "peft-flow review"),
    of_corrections("open.csv", "id,corrected_label\nsha256:1,\n", "no row of open.csv has a corrected_label"),
    of_corrections("word.csv", "id,corrected_label\nsha256:1,godo\n", "row 0 of word.csv", "'godo'", "mean good?"),
    of_corrections("others.csv", "id;corrected_label\nsha256:1;good\n", "none of its 1 correction", "these data"),
    of_corrections("latin.csv", b"id,text,corrected_label\n1,caf\xe9,good\n", "row 0 is not UTF-8", "Latin-1"),
    of_corrections("two.csv", "id,corrected_label\n1,good\n1,bad\n", "rows 0 and 1 of two.csv", "'good' and 'bad'"),
    Case("label is row", ("label_column", "'row'", "rename"), "--data.label_column row"),
    # labels
    of_file("one-class.csv", CSV.replace(",bad", ",good"), "data.label_column", "one class", "'good'"),
    of_file("no-label.csv", CSV + "a film,\n", "data.label_column", "train row 60"),
    of_file("null-label.jsonl", JSONL + '{"text": "a film"}\n', "1 row has no label (train row 60)"),
    of_file("unlabelled.csv", NUMBERED.replace(",0", ",-1").replace(",1", ",-1"), "label_column", "not labelled", "-1"),
    of_file("float.csv", NUMBERED.replace(",1", ",0.5"), "looks like a number to predict", "0.5", "rows 1, 3, 5"),
    of_folder(
        "unlabelled",
        {"train.csv": CSV, "test.csv": CSV.replace(",bad", ",-1").replace(",good", ",-1")},
        "the test rows are not labelled: 60 rows with", "--data.test_split train",
    ),
    of_file("list.jsonl", JSONL.replace(": 0}", ": [0]}"), "data.label_column", "[0]", "train rows 0, 2, 4"),
    of_file("free.csv", FREE, "data.label_column", "60 different values", "regression"),
    of_folder("new-label", {"train.csv": CSV, "test.csv": CSV + "a film,so-so\n"}, "label_column", "'so-so'", "row 60"),
    of_folder("new-number", {"train.csv": NUMBERED, "test.csv": NUMBERED + "a,2\n"}, "label '2'", "0, 1", "row 60"),
    # texts
    of_file("no-text.csv", CSV + ",good\n", "data.text_columns", "1 empty text", "'text'", "train row 60"),
    of_file("spaces.csv", "text,label\n  ,bad\n" + CSV[11:] + " ,good\n", "2 empty texts", "train rows 0, 61"),
    of_file("numbers.jsonl", re.sub('"a film number (.+?)"', r"\1", JSONL), "text_columns", "holds int64, not text"),
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
            ("training.processes", "0", "whole number from 1 to 1,024, or auto"),
            ("training.processes", "many", "whole number from 1 to 1,024, or auto"),
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
    Case("batch for no number of processes", ("32", "3 processes", "try 33"), "--training.processes 3"),
    Case("machines without an address", ("rendezvous", "10.0.0.1:29400"), "--training.machines 2"),
    Case(
        "processes for no number of machines",
        ("processes 1", "2 machines", "try 2"),
        "--training.machines 2 --training.rendezvous 10.0.0.1:29400",
    ),
    Case(
        "address without a port",
        ("training.rendezvous", "HOST:PORT", "10.0.0.1"),
        "--training.machines 2 --training.processes 2 --training.rendezvous 10.0.0.1",
    ),
    Case("address for one machine", ("rendezvous", "machines"), "--training.rendezvous 10.0.0.1:29400"),
    Case(
        "more processes than cores",
        ("training.processes", "1024 processes need a core each", "auto"),
        "--training.processes 1024 --training.batch_size 1024",
    ),
    # choices
    Case("unknown method", ("adapter.method", "'lora'", "'lara'"), "--adapter.method lara"),
    Case("unknown option", ("adapter.options", "use_dorra", "use_dora"), "--adapter.options '{use_dorra: 1}'"),
    Case("option that is ours", ("adapter.options", "task_type"), "--adapter.options '{task_type: CAUSAL_LM}'"),
    Case("option with a field", ("adapter.options", "adapter.r"), "--adapter.options '{r: 4}'"),
    Case("bad option value", ("adapter.options", "lora", "init"), "--adapter.options '{init_lora_weights: x}'"),
    Case("options are no mapping", ("adapter.options", "dictionary", "'r'"), "--adapter.options r"),
    Case("options never end", ("adapter.options", "{a: 1}"), "--adapter.options '{r: 1'"),
    Case("no such layer", ("adapter.target_modules", "'q_proj'", "c_attn"), "--adapter.target_modules q_proj"),
    Case("no experts", ("adapter.target_parameters", "'up'", "layer"), "--adapter.target_parameters up"),
    Case(
        "dropout of experts", ("adapter.dropout", "adapter.target_parameters"),
        "--adapter.target_parameters up --adapter.dropout 0.1",
    ),
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
    # configurations
    of_config("broken", "model: {name: x\n", "not valid YAML", "line 2"),
    of_config("tab", "model:\n\tname: x\n", "not valid YAML", "line 2"),
    of_config("a list", "- model\n- data\n", "sections such as 'model:'", "not a list"),
    of_config("a word", "hello\n", "sections such as 'model:'", "not a str"),
    of_config("two documents", "seed: 1\n---\nseed: 2\n", "not valid YAML", "line 2"),
    of_config("section is a word", "training: fast\n", "training", "'fast'"),
    of_config("section is a list", "training:\n- epochs: 3\n", "training", "[{'epochs': 3}]"),
    of_config("no word as a name", "1: {name: x}\n", "1"),
    of_config("list as a name", "? [a, b]\n: 1\n", "not valid YAML", "word", "line 1"),
    of_config("field twice", "training:\n  epochs: 1\n  epochs: 2\n", "'epochs' is there twice", "line 3"),
    of_config("section twice", "seed: 1\nmodel: {name: x}\nseed: 2\n", "'seed' is there twice", "line 3"),
    of_config("laughs", LAUGHS, "not valid YAML", "references", "line 2"),
    of_config("itself", "adapter:\n  options: &a {x: *a}\n", "not valid YAML", "references", "line 2"),
    of_config("python", "seed: !!python/object/apply:os.mkdir [made]\n", "not valid YAML", "python/object", "line 1"),
    of_config("own tag", "seed: !secret x\n", "not valid YAML", "!secret", "line 1"),
    of_config("binary", bytes(range(256)), "b.yaml", "cannot read", "utf-8"),
    of_config("latin", "tracking: {run_name: café}".encode("latin-1"), "cannot read", "utf-8"),
    of_config("utf-16", "seed: 1\n".encode("utf-16"), "cannot read", "utf-8"),
    of_config("zero byte", "seed: 1\0\n", "not valid YAML", "#x0000"),
    of_config("escape in a file", "tracking: {run_name: \x1b[2J}\n", "not valid YAML", "#x001b"),
    of_config("deep", "a: " + "[" * 50_000, "not valid YAML", "nested"),
    of_config("deep options", "adapter: {options: {a: " + "[" * 20 + "]" * 20 + "}}\n", "adapter.options", "nested"),
    of_config("no number of options", "adapter: {options: {a: .nan}}\n", "adapter.options", "finite"),
    of_config(
        "date in options", "adapter: {options: {target_modules: 2024-01-01}}\n", "adapter.options", "words", "date",
    ),
    of_config("no date", "seed: 2024-13-45\n", "not valid YAML", "month"),
    of_config("endless number", "seed: " + "9" * 5000 + "\n", "not valid YAML", "digits"),
    of_config("large number", "seed: " + "9" * 400 + "\n", "seed", "too large"),
    of_config("large file", "# " + "x" * 1_100_000, "cannot read", "1,000,000 bytes"),
    of_config("yes as a number", "training: {epochs: yes}\n", "training.epochs", "number", "True"),
    of_config("yes as a rate", "training: {learning_rate: no}\n", "training.learning_rate", "number", "False"),
    of_config("yes as a seed", "seed: on\n", "seed", "number", "True"),
    of_config("number as a name", "model: {revision: 1234567}\n", "model.revision", "string", "1234567"),
    of_config("list as an experiment", "tracking: {experiment: [a]}\n", "tracking.experiment", "string", "['a']"),
    of_config("mapping as a column", "data: {label_column: {a: b}}\n", "data.label_column", "string"),
    of_config("null in a list", "data: {text_columns: [text, null]}\n", "data.text_columns.1", "string", "None"),
    of_config("number in a list", "adapter: {target_modules: [1]}\n", "adapter.target_modules.0", "string", "1"),
    of_config("null as a number", "training: {epochs: null}\n", "training.epochs", "integer", "None"),
    of_config("infinity", "training: {learning_rate: .inf}\n", "training.learning_rate", "finite"),
    of_config("binary value", "tracking: {run_name: !!binary aGVsbG8=}\n", "tracking.run_name", "words", "bytes"),
    of_config("set", "adapter: {options: {a: !!set {b, c}}}\n", "adapter.options", "words", "set"),
    Case("configuration is a folder", ("folder: it is a folder, not a file",), "./folder", {"folder/notes.txt": ""}),
    Case("configuration is a device", ("/dev/zero", "device, not a file"), "/dev/zero"),
    Case("configuration of a long name", ("cannot read", "too long"), "x" * 300 + ".yaml"),
    Case(
        "field in no section",
        ("b.yaml", "'training'", "section", "'fast'"),
        "b.yaml --training.epochs 1",
        {"b.yaml": "training: fast"},
    ),
    # the command
    Case("option of nothing", ("unknown field 'fast'", "--help"), "--fast"),
    Case("option of half a name", ("training.epoch", "training.epochs"), "--training.epoch 3"),
    Case("no seeds", ("--seeds", "1 to 100", "'0'"), "--seeds 0"),
    Case("too many seeds", ("--seeds", "1 to 100", "'101'"), "--seeds 101"),
    Case("seeds are words", ("--seeds", "1 to 100", "'many'"), "--seeds many"),
    Case("seeds are a fraction", ("--seeds", "1 to 100", "'1.5'"), "--seeds 1.5"),
    Case("seeds are negative", ("--seeds",), "--seeds -1"),
    Case("seeds are endless", ("--seeds", "1 to 100"), f"--seeds {'9' * 5000}"),
    Case("seeds in other digits", ("--seeds", "1 to 100"), "--seeds ٣"),
    Case("value of a switch", ("--json", "--help"), "--json=yes"),
    # names
    Case("path as a revision", ("model.revision", "'../../x'"), "--model.revision ../../x"),
    Case("root as a revision", ("data.revision", "'/etc/passwd'"), "--data.revision /etc/passwd"),
    Case("dots as a revision", ("model.revision", "'..'"), "--model.name gpt2 --offline --model.revision .."),
    Case("model above", ("model.name", "config.json"), "--model.name .."),
    Case("model at the root", ("model.name", "config.json"), "--model.name /"),
    Case("model in a far folder", ("model.name", "../../etc", "check the path"), "--model.name ../../etc"),
    Case("model around a corner", ("model.name", "a/../../b", "check the path"), "--model.name a/../../b"),
    Case("data in a far file", ("data.name", "/etc/passwd", ".csv, .tsv, .json"), "--data.name /etc/passwd"),
    Case("home of nobody", ("data.name", "~nobody-here"), "--data.name ~nobody-here/reviews.csv"),
    Case("long model name", ("model.name", "too long"), f"--model.name ./{'x' * 300}"),
    Case("run name", ("tracking.run_name", "at most 250"), f"--tracking.run_name {'x' * 251}"),
    Case("experiment", ("tracking.experiment", "at most 250"), f"--tracking.experiment {'x' * 251}"),
    Case("empty experiment", ("tracking.experiment", "string"), "--tracking.experiment="),
    Case("registered dots", ("tracking.registered_model", "'..'"), "--tracking.registered_model .."),
    Case("registered path", ("tracking.registered_model", "'../x'"), "--tracking.registered_model ../x"),
    Case("registered version", ("tracking.registered_model", "'a:1'"), "--tracking.registered_model a:1"),
    Case("escape in a name", ("tracking.run_name", r"'\x1b'"), "--tracking.run_name '\x1b]0;owned\x07'"),
    Case("line break in a name", ("tracking.experiment", r"'\n'"), "--tracking.experiment 'a\nb'"),
    Case("carriage return in a name", ("data.label_column", r"'\r'"), "--data.label_column 'a\rb'"),
    Case("escape in a path", (r"no-\x1b[2Jmodel.yaml", "configs/"), "./no-\x1b[2Jmodel.yaml"),
    Case("escape in an option", (r"\x1b[31m",), "'--tr\x1b[31mred' 1"),
    Case("half a letter", ("tracking.run_name", r"\udcff"), "--tracking.run_name caf\udcff"),
    Case("zero byte in a model", ("model.name", r"'\x00'"), "--model.name 'a\0b'"),
    Case("tag without value", ("tracking.tags", "name=value", "'team'"), "--tracking.tags team"),
    Case("tag without name", ("tracking.tags", "''", "name"), "--tracking.tags =search"),
    Case("tag as a path", ("tracking.tags", "'../x'"), "--tracking.tags ../x=1"),
    Case("tag at the root", ("tracking.tags", "'/x'"), "--tracking.tags /x=1"),
    Case("tag with a sign", ("tracking.tags", "'a?b'", "letters"), "--tracking.tags a?b=1"),
    Case("long tag", ("tracking.tags", "letters"), f"--tracking.tags {'x' * 251}=1"),
    Case("too many tags", ("tracking.tags", "1,001 entries"), f"--tracking.tags {'a=1,' * 1001}"),
    of_config("tag of a path", "tracking: {tags: {../x: 1}}\n", "tracking.tags", "'../x'"),
    # secrets, which are never said back
    Case("token as a name", ("tracking.run_name", "HF_TOKEN"), f"--tracking.run_name hf_{'PLANTED' * 5}"),
    Case("password in a model", ("model.name", "password"), "--model.name https://me:PLANTED@hub.example/gpt2"),
    Case("password in data", ("data.name", "password"), "--data.name https://me:PLANTED@hub.example/a.csv"),
    Case("token in a tag", ("tracking.tags", "token"), "--tracking.tags token=PLANTED"),
    Case("password in options", ("adapter.options", "password"), "--adapter.options '{api_key: PLANTED}'"),
    of_config("secret", "tracking: {tags: {team: search, db_password: PLANTED}}\n", "tracking.tags", "password"),
    of_config("secret in a broken file", "data:\n  name: [https://me:PLANTED@x\n", "not valid YAML", "line 3"),
    # more files
    of_file("cells.csv", "text,label,text\n" + CSV[11:].replace("\n", ",x\n"), "cells.csv", "'text'", "twice"),
    of_file("shifted.csv", "text,label\n" + CSV[11:].replace("\n", ",x\n"), "shifted.csv", "line 2", "3"),
    of_file("unnamed.csv", CSV[11:], "data.text_columns", "no column 'text'", "first row", "text,label"),
    of_file("stars.csv", CSV.replace("text,label", "review,stars"), "text_columns review --data.label_column stars"),
    of_file("spaced.csv", CSV.replace("text,label", "text ,label "), "data.text_columns", "rename 'text ' to text"),
    of_file("case.csv", CSV.replace("text,label", "Text,Label"), "data.text_columns", "no column 'text'", "Text"),
    of_file("short.csv", CSV + "a film without label\n", "short.csv", "row 60 has 1 field", "line 62"),
    of_file("utf-16.csv", CSV.encode("utf-16"), "utf-16.csv", "UTF-16", "save it as UTF-8"),
    of_file("all-zeros.csv", bytes(5000), "data.name", "all-zeros.csv"),
    of_file("gzip.csv", gzip.compress(CSV.encode()), "data.name", "gzip.csv"),
    of_file("escape-label.csv", CSV.replace("good", "\x1b[2Jgood"), r"'\x1b[2Jgood'", "not a name"),
    of_file("mixed.csv", NUMBERED + "a film,7.5\n", "number to predict: 7.5 in train row 60"),
    of_file("nan.csv", NUMBERED + "a film,nan\n", "data.label_column", "'nan'", "0, 1", "remove"),
    of_file("inf.csv", NUMBERED.replace(",1", ",inf"), "data.label_column", "inf", "rows 1, 3, 5"),
    of_file("huge-label.csv", CSV.replace("good", "x" * 3_000_000, 2), "data.label_column", "200 letters"),
    of_file("one-row.csv", "text,label\na film,good\n", "data"),
    of_file("comma.json", '[{"text": "a", "label": 1}, {"text": "b", "label": 0},]', "comma.json"),
    of_file("nested.json", '{"data": ' + JSON + "}", "data.name", "nested.json holds its rows under 'data'"),
    of_file("word.json", '"hello"', "data.name", "word.json", "a text, not a JSON object"),
    of_file("null.json", "null", "data.name", "null.json"),
    of_file("numbers.json", "[1, 2, 3]", "numbers.json", "row 0 is a number, not a JSON object"),
    of_file("deep.json", "[" * 100_000, "data.name", "deep.json", "nested too deeply"),
    of_file("deep.jsonl", '{"a":' * 100_000 + "1" + "}" * 100_000, "data.name", "deep.jsonl", "nested too deeply"),
    of_file("null.jsonl", "\nnull\n" + JSONL, "data.name", "null.jsonl", "null", "line 2"),
    of_file("nan.jsonl", JSONL + '{"text": NaN, "label": 0}\n', "data.text_columns", "1 empty text", "train row 60"),
    of_file(
        "latin.jsonl", (JSONL + '{"text": "café", "label": 0}').encode("latin-1"), "latin.jsonl", "UTF-8", "row 60"
    ),
    of_file("surrogate.jsonl", JSONL + '{"text": "a\\ud800b", "label": 0}\n', "surrogate.jsonl"),
    of_file("null-text.jsonl", JSONL + '{"text": null, "label": 0}\n', "data.text_columns", "train row 60"),
    of_file("no-texts.jsonl", JSONL.replace('"text": "', '"body": "'), "data.text_columns", "no column 'text'", "body"),
    of_file("objects.jsonl", JSONL.replace('"text": ', '"text": {"en": ').replace(', "l', '}, "l'), "text_columns"),
    of_file("label-object.jsonl", JSONL.replace('"label": ', '"label": {"is": ').replace("}", "}}"), "label_column"),
    of_file("key-twice.jsonl", JSONL.replace("}", ', "label": 1}'), "key-twice.jsonl"),
    of_file("bytes.parquet", parquet({"text": [b"a film"] * 60, "label": [0, 1] * 30}), "data.text_columns", "binary"),
    of_file("null.parquet", parquet({"text": [None] * 60, "label": [0, 1] * 30}), "data.text_columns", "60 empty"),
    of_file("bytes-label.parquet", parquet({"text": TEXTS, "label": [b"a", b"b"] * 30}), "b'a' is not", "words"),
    of_file("lists.parquet", parquet({"text": TEXTS, "label": [["a"], [None]] * 30}), "data.label_column", "[None]"),
    of_file("nan.parquet", parquet({"text": TEXTS, "label": [0.0, 1.0, float("nan")] * 20}), "no label but nan"),
    of_file("empty.parquet", parquet({"text": [], "label": []}), "data.name", "no rows"),
    of_file("latin.parquet", parquet_latin(), "latin.parquet", "UTF8", "save it as UTF-8"),
    of_file("no-columns.parquet", parquet({}), "data"),
    of_file("twice.parquet", parquet_twice(), "twice.parquet", "'text' twice"),
    of_file("tail.parquet", parquet({"text": TEXTS, "label": [0, 1] * 30})[:-8], "tail.parquet", "cannot be read"),
    of_file("flipped.parquet", flipped(parquet({"text": TEXTS, "label": [0, 1] * 30})), "flipped.parquet"),
    of_folder("pickles", {"train.pkl": PICKLE}, "data.name", "pickles", ".csv, .tsv, .json"),
    of_folder("script", {"script.py": SCRIPT}, "data.name", "script", ".csv, .tsv, .json"),
    of_folder("zipped", {"train.zip": b"PK"}, "data.name", "train.zip cannot be read"),
    of_folder(
        "config", {"train.csv": CSV, "test.csv": CSV}, "data.name", "'../x' not found", options="--data.config ../x",
    ),
    of_folder(
        "readme", {"train.csv": CSV, "README.md": "---\nconfigs: [\n---\n"}, "data.name", "readme", "README.md", "YAML",
    ),
    of_folder("ghost", {"train.csv": CSV, "README.md": GHOST}, "data.name", "ghost"),
    of_folder(
        "no-shared-class", {"train.csv": CSV, "test.csv": CSV.replace("d\n", "x\n")}, "label_column", "'bax', 'goox'",
    ),
]  # fmt: skip


class Started(Exception):
    """The flow was reached: nobody refused the input."""


MOST_SECONDS = 10


def everything(folder: Path) -> list[tuple[str, int, int]]:
    """Every file of the current folder and of the user's own: nothing may come, go or change."""
    files = [*folder.rglob("*"), *Path.home().rglob("*")]
    return sorted((str(file), file.lstat().st_size, file.lstat().st_mtime_ns) for file in files)


@pytest.fixture
def refused(
    workplace: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """`refused("--seed", "-1")`: the line that the command says, after checking what holds for every refusal."""
    import flows.predict
    import flows.seeds  # before the flow is replaced: the module keeps, for the tests after this one, what it imports

    def start(**sections: object) -> None:
        raise Started

    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    fresh_process.command(fresh_process.RELOAD)  # begins the server of the tests' fresh processes, which stays

    def run(*arguments: str, command: str = "finetune", most_letters: int = 500) -> str:
        monkeypatch.setattr(flows.finetune, "finetune", start)
        monkeypatch.setattr(flows.predict, "predict", start)
        capfd.readouterr()
        before, children, began = everything(workplace), psutil.Process().children(recursive=True), time.monotonic()
        code = main([command, *arguments] if command else arguments)
        output, errors = capfd.readouterr()
        assert code == USER_MUST_CHANGE, errors
        assert output == ""
        assert errors.count("\n") == 1 and errors.startswith("peft-flow: "), errors
        assert errors[:-1].isprintable() and "Traceback" not in errors and "PLANTED" not in errors, errors
        assert len(errors) < most_letters
        assert everything(workplace) == before
        until(lambda: not {*psutil.Process().children(recursive=True)} - {*children}, 5, "end of what was started")
        assert time.monotonic() - began < MOST_SECONDS
        return errors

    return run


@pytest.fixture
def valid(foundation: Any, reviews: Path) -> list[str]:
    """Options that are accepted; options after them replace them."""
    return ["--data.name", str(reviews), "--model.name", str(foundation("gpt2")), "--data.max_length", "32"]


def test_valid_options_reach_the_flow(
    valid: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import flows.seeds  # before the flow is replaced: the module keeps, for the tests after this one, what it imports

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
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    line = refused(*valid, *shlex.split(case.options))
    for words in case.says:
        assert words in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), ("COMMAND", "--help")),
        (("dance",), ("'dance'", "--help")),
        (("up", "--prefect-port", "0"), ("--prefect-port", "1 to 65535", "'0'")),
        (("up", "--prefect-port", "65536"), ("--prefect-port", "1 to 65535", "'65536'")),
        (("up", "--mlflow-port", "http"), ("--mlflow-port", "1 to 65535", "'http'")),
        (("up", "--mlflow-port=-1"), ("--mlflow-port", "1 to 65535", "'-1'")),
        (("up", "--mlflow-port", "9" * 5000), ("--mlflow-port", "1 to 65535")),
        (("up", "--host"), ("--host", "--help")),
        (("up", "now"), ("unexpected argument 'now'",)),
        (("compare",), ("RUN", "--help")),
        (("compare", "a"), ("RUN", "--help")),
        (("compare", "a", "b", "c"), ("unexpected argument 'c'",)),
        (("review", "a"), ("FILE.csv", "--help")),
        (("review", "a", "b.csv"), ("no runs", "go to the folder")),
        (("compare", "a", "b"), ("no runs", "go to the folder")),
    ],
    ids=lambda value: "-".join(value)[:30] if isinstance(value, tuple) else None,
)
def test_bad_command_is_refused(arguments: tuple[str, ...], says: tuple[str, ...], refused: Callable[..., str]) -> None:
    line = refused(*arguments, command="")
    for words in says:
        assert words in line


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an MLflow store in which nothing has run; leave it as it is."""
    import mlflow

    folder = tmp_path_factory.mktemp("store")
    (folder / "mlruns").mkdir()
    mlflow.MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db").search_experiments()
    return folder


@pytest.mark.parametrize(
    "run_id",
    ["0" * 32, "../x", "../../../../etc/passwd", "/etc/passwd", "a/b", "..", "x' OR '1'='1", "é", "\x1b[2J", ""],
)
def test_bad_run_id_is_refused(
    run_id: str, store: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store)
    assert "there is no run" in refused("compare", "--", run_id, "0" * 32, command="")


@pytest.mark.parametrize(
    "name", ["a/b", "/etc/passwd", "..", "a:b", "x' OR '1'='1", "'\"", "é", "\x1b[2J", "", "x" * 10**6]
)
@pytest.mark.parametrize("command", ["promote", "rollback", "history"])
def test_bad_name_of_a_registered_model_is_refused(
    command: str, name: str, store: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store)
    reason, version = ([] if command == "history" else ["--reason=x"]), (["1"] if command == "promote" else [])
    line = refused(*reason, "--", name, *version, command=command)
    assert "there is no registered model" in line or "a name without '/' and ':'" in line


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("", "must say why"),
        (" ", "must say why"),
        ("two\nlines", r"'\n'"),
        ("\x1b[2J", r"'\x1b'"),
        ("x" * 1_001, "1,001 characters"),
        (f"the token is hf_{'PLANTED' * 5}", "looks like a password or token"),
    ],
)
def test_bad_reason_is_refused(reason: str, says: str, refused: Callable[..., str]) -> None:
    for command in (("promote", "reviews", "1"), ("rollback", "reviews")):
        line = refused(*command[1:], f"--reason={reason}", command=command[0])
        assert "--reason" in line and says in line


def test_registered_model_where_there_is_no_store_is_refused(refused: Callable[..., str]) -> None:
    for more in ("promote reviews 1 --reason better", "rollback reviews --reason worse", "history reviews"):
        assert "go to the folder of your runs" in refused(*more.split(), command="")


@pytest.mark.parametrize("option", ["model.name", "data.revision", "adapter.target_modules", "tracking.run_name"])
def test_value_of_a_megabyte_is_refused(option: str, valid: list[str], refused: Callable[..., str]) -> None:
    assert f"{option}: has 1,000,000 characters" in refused(*valid, f"--{option}", "x" * 1_000_000)


def test_option_of_a_megabyte_is_refused(refused: Callable[..., str]) -> None:
    assert "unknown field 'xxx" in refused("--" + "x" * 1_000_000)


def test_endless_run_id_is_refused(store: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store)
    line = refused("compare", "x" * 1_000_000, "0" * 32, command="", most_letters=1_000)
    assert "there is no run" in line and "peft-flow runs shows them" in line


@pytest.mark.parametrize(
    "name", ["pipe", "pipe.csv", "pipe.json", "/dev/zero", "/dev/stdin", "loop.csv", "loop", "gone.csv"]
)
def test_data_that_would_never_end_is_refused(name: str, valid: list[str], refused: Callable[..., str]) -> None:
    if "pipe" in name:
        os.mkfifo(name)
    elif "loop" in name:
        Path(name).symlink_to(name)
    elif name == "gone.csv":
        Path(name).symlink_to("nowhere.csv")
    assert "data.name" in refused(*valid, "--data.name", f"./{name}" if name[0] != "/" else name)


def test_pipe_for_a_configuration_is_refused(refused: Callable[..., str]) -> None:
    os.mkfifo("pipe.yaml")
    assert "pipe.yaml: it is a pipe or device" in refused("pipe.yaml")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_pipe_in_a_model_is_refused(name: str, foundation: Any, valid: list[str], refused: Callable[..., str]) -> None:
    shutil.copytree(foundation("gpt2"), "piped")
    Path("piped", name).unlink()
    os.mkfifo(f"piped/{name}")
    assert "piped" in refused(*valid, "--model.name", "./piped")


def test_pipe_and_loop_in_a_data_folder_are_not_waited_for(valid: list[str], refused: Callable[..., str]) -> None:
    Path("mixed").mkdir()
    os.mkfifo("mixed/train.csv")
    Path("mixed/test.csv").symlink_to("test.csv")
    Path("mixed/deeper").symlink_to("../mixed")
    assert "mixed/train.csv is a pipe" in refused(*valid, "--data.name", "./mixed")


def test_folder_of_too_many_files_is_refused(
    valid: list[str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.sources import local

    monkeypatch.setattr(local, "MOST_FILES", 20)
    Path("home").mkdir()
    for number in range(21):
        Path(f"home/{number}.csv").write_text(CSV)
    assert "home holds more than 20 files" in refused(*valid, "--data.name", "./home")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["secret.csv", "b.yaml", "folder"])
def test_file_without_permission_is_refused(name: str, valid: list[str], refused: Callable[..., str]) -> None:
    path = Path(name)
    path.mkdir() if name == "folder" else path.write_text(CSV)
    path.chmod(0)
    try:
        arguments = [name, *valid] if name == "b.yaml" else [*valid, "--data.name", f"./{name}"]
        line = refused(*arguments)
    finally:
        path.chmod(0o700)
    assert name in line


def test_huge_cell_is_refused_by_its_row(valid: list[str], refused: Callable[..., str]) -> None:
    Path("huge.csv").write_text(CSV + "x" * 50_000_000 + ",\n")
    assert "characters in line 62" in refused(*valid, "--data.name", "huge.csv")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), ("COMMAND",)),
        rarely(("finetune", "--data.name", "/dev/zero"), ("data.name", "neither a file nor a folder")),
        rarely(("finetune", "b.yaml"), ("b.yaml", "references")),
        (("finetune", "--tracking.run_name", b"caf\xe9"), ("tracking.run_name", "control character")),
        (("finetune", "--data.name", "null.jsonl"), ("null.jsonl", "line 2")),
        rarely(("compare", "../x", "y"), ("no runs",)),
    ],
    ids=["nothing", "device", "laughs", "latin", "null", "compare"],
)
def test_process_says_one_line_and_ends(
    arguments: tuple[str | bytes, ...],
    says: tuple[str, ...],
    valid: list[str],
    workplace: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    (workplace / "b.yaml").write_text(LAUGHS)
    (workplace / "null.jsonl").write_text("\nnull\n" + JSONL)
    before = everything(workplace)
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments, *(valid[2:] if "--data.name" in arguments else ())],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    output, errors = process.communicate(timeout=60)
    assert process.returncode == USER_MUST_CHANGE, errors
    assert output == "" and errors.count("\n") == 1 and errors[:-1].isprintable()
    for words in says:
        assert words in errors
    assert everything(workplace) == before
    assert not [p for p in psutil.process_iter() if p.status() != "zombie" and os.getpgid(p.pid) == process.pid]


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
    return lambda folder: (folder / name).write_text(content, errors="surrogateescape") and None


def with_settings(**settings: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))

    return edit


def cut(name: str, share: float) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, int(share * (folder / name).stat().st_size))


def turned(name: str, start: int, end: int) -> Callable[[Path], None]:
    """Every bit from byte `start` to `end` turned over."""

    def edit(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[start:end] = (255 - byte for byte in content[start:end])
        (folder / name).write_bytes(content)

    return edit


def moved(name: str, other: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).rename(folder / other) and None


def indexed(places: dict[str, str]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "first.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return edit


def broken_index(folder: Path) -> None:
    indexed({})(folder)
    (folder / "model.safetensors.index.json").write_text("{")


def other_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"layer.weight": torch.zeros(4, 4)}, folder / "model.safetensors", {"format": "pt"})


def own_tokenizer(folder: Path) -> None:
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "code.py").write_text(SCRIPT)
    (folder / "tokenizer.json").unlink()


def of_few_words(folder: Path) -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=20, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def adapter_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))


def into_itself(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "deeper").symlink_to(folder.resolve(), target_is_directory=True)
    (folder / "config.json").symlink_to("config.json")


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
        pytest.param(replaced("config.json", "[]"), ("configuration",), id="configuration-is-a-list"),
        pytest.param(replaced("config.json", '{"model_type": ["gpt2"]}'), ("configuration",), id="type-is-a-list"),
        pytest.param(replaced("config.json", "\udcff"), ("config.json",), id="configuration-not-utf-8"),
        pytest.param(with_settings(n_layer=-1), ("config.json", "-1 layers"), id="no-layers"),
        pytest.param(
            with_settings(n_layer=10**9), ("config.json", "1000000000 layers", "1 to 1000"), id="endless-layers"
        ),
        pytest.param(with_settings(n_embd="wide"), ("broken-model", "n_embd"), id="width-is-a-word"),
        pytest.param(with_settings(n_embd=64), ("another shape", "config.json"), id="weights-of-another-width"),
        pytest.param(with_settings(n_layer=4), ("weights are not in its files",), id="weights-of-fewer-layers"),
        pytest.param(with_settings(vocab_size=100), ("tokenizer", "100"), id="fewer-words-than-the-tokenizer"),
        pytest.param(with_settings(n_positions=16), ("data.max_length", "16 positions"), id="fewer-positions"),
        pytest.param(with_settings(dtype="float9"), ("configuration", "float9"), id="unknown-numbers"),
        pytest.param(with_settings(quantization_config={"quant_method": "gptq", "bits": 4}), ("gptq",), id="quantized"),
        pytest.param(
            with_settings(attn_implementation="some/kernel"),
            ("cannot classify", "kernels"),
            id="attention-from-the-hub",
        ),
        pytest.param(with_settings(architectures=7, n_head="two"), ("configuration", "n_head"), id="heads-are-a-word"),
        pytest.param(
            cut("model.safetensors", 0.5), ("model.safetensors", "damaged", "copy it again"), id="weights-cut-short"
        ),
        pytest.param(cut("model.safetensors", 0), ("model.safetensors", "damaged"), id="weights-empty"),
        pytest.param(turned("model.safetensors", 8, 40), ("model.safetensors", "damaged"), id="header-turned-over"),
        pytest.param(
            turned("model.safetensors", 0, 8), ("model.safetensors", "damaged"), id="header-length-turned-over"
        ),
        pytest.param(replaced("model.safetensors", LFS), ("model.safetensors", "damaged"), id="weights-are-a-pointer"),
        pytest.param(
            moved("model.safetensors", "other.safetensors"),
            ("no file named model.safetensors",),
            id="weights-under-another-name",
        ),
        pytest.param(
            indexed({"a": "gone.safetensors"}), ("broken-model", "gone.safetensors"), id="part-of-weights-missing"
        ),
        pytest.param(broken_index, ("broken-model", "weights"), id="broken-index"),
        pytest.param(other_weights, ("weights are not in its files",), id="weights-of-another-model"),
        pytest.param(of_few_words, ("tokenizer", "20"), id="weights-of-fewer-words"),
        pytest.param(replaced("tokenizer.json", "[]"), ("tokenizer",), id="tokenizer-is-a-list"),
        pytest.param(replaced("tokenizer.json", ""), ("tokenizer",), id="empty-tokenizer"),
        pytest.param(replaced("tokenizer_config.json", "7"), ("tokenizer",), id="tokenizer-settings-are-a-number"),
        pytest.param(own_tokenizer, ("tokenizer", "backend"), id="own-tokenizer-code"),
        pytest.param(adapter_folder, ("config.json",), id="adapter-in-place-of-a-model"),
        pytest.param(into_itself, ("holds no config.json",), id="folder-within-itself"),
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


ROWS = "text,stars\na film,1\n"

PREDICTIONS = [
    Case("no argument", ("MODEL, INPUT, OUTPUT",), ""),
    Case("no output", ("OUTPUT",), "ADAPTER a.csv"),
    Case("one argument too many", ("'c.csv'",), "ADAPTER a.csv b.csv c.csv"),
    Case("argument as an option", ("'model'", "without a name"), "--model ADAPTER a.csv b.csv"),
    Case("unknown option", ("'batch'", "batch_size"), "ADAPTER a.csv b.csv --batch 3"),
    Case("section of a run", ("unknown field 'data.name'", "--help"), "ADAPTER a.csv b.csv --data.name x"),
    # the model
    Case("model without a store", ("there are no runs in",), "reviews@champion a.csv b.csv"),
    Case("no such folder", ("model: ", "nowhere", "check the path"), "./nowhere a.csv b.csv"),
    Case("foundation model", ("model: ", "peft_flow.json", "adapter"), "FOUNDATION a.csv b.csv"),
    Case("model is a file", ("model: ", "a.csv"), "a.csv a.csv b.csv"),
    # the input
    Case("no such file", ("input: ", "no.csv", "check the path"), "ADAPTER no.csv b.csv"),
    Case("no such kind", ("input: ", "a.txt", ".csv, .tsv, .json"), "ADAPTER a.txt b.csv", {"a.txt": "text\na film\n"}),
    Case("no such column", ("text_columns", "'text'", "body, n"), "ADAPTER c.csv b.csv", {"c.csv": "body,n\na,1"}),
    Case("other column", ("text_columns", "'body'", "text, stars"), "ADAPTER a.csv b.csv --text_columns body"),
    Case("two columns", ("text_columns", "text", "as many"), "ADAPTER a.csv b.csv --text_columns text,stars"),
    Case("column of ours", ("text_columns", "'label'", "rename"), "ADAPTER a.csv b.csv --text_columns label"),
    Case("no rows", ("input: ", "c.csv has no rows"), "ADAPTER c.csv b.csv", {"c.csv": "text\n"}),
    Case("empty", ("input: ", "c.json is empty"), "ADAPTER c.json b.csv", {"c.json": ""}),
    Case("split of a file", ("split", "a.csv"), "ADAPTER a.csv b.csv --split test"),
    Case("broken json", ("input: ", "c.json", "row 0"), "ADAPTER c.json b.csv", {"c.json": '[{"text"'}),
    Case("no parquet", ("input: ", "c.parquet", "cannot be read"), "ADAPTER c.parquet b.csv", {"c.parquet": ROWS}),
    Case("data set offline", ("input: ", "cache", "offline"), "ADAPTER rotten_tomatoes b.csv --offline"),
    Case("device", ("input: ", "/dev/zero"), "ADAPTER /dev/zero b.csv"),
    # the output
    Case("output of no kind", ("output: ", "b.xlsx", ".csv, .jsonl or .parquet"), "ADAPTER a.csv b.xlsx"),
    Case("output in no folder", ("output: ", "no folder"), "ADAPTER a.csv nowhere/b.csv"),
    Case("output is a folder", ("output: ", "a folder"), "ADAPTER a.csv c.csv", {"c.csv/x": ""}),
    Case("output is the input", ("output: ", "the input itself"), "ADAPTER a.csv ./a.csv"),
    Case("output is there", ("b.csv is there already", "--overwrite"), "ADAPTER a.csv b.csv", {"b.csv": "x"}),
    Case("aside is there", ("rejected", "--overwrite"), "ADAPTER a.csv b.csv", {"b.csv.rejected.jsonl": ""}),
    Case("skip into nothing", ("on_error", "give a file"), "ADAPTER a.csv - --on_error skip"),
    # settings
    Case("no probability", ("abstain_below", "equal to 1", "1.5"), "ADAPTER a.csv b.csv --abstain_below 1.5"),
    Case("no batch", ("batch_size", "0"), "ADAPTER a.csv b.csv --batch_size 0"),
    Case("no way out", ("on_error", "'stop'", "'ignore'"), "ADAPTER a.csv b.csv --on_error ignore"),
    Case("secret", ("input", "password"), "ADAPTER https://me:PLANTED@x/a.csv b.csv"),
]  # fmt: skip


@pytest.mark.parametrize("case", PREDICTIONS, ids=lambda case: case.name)
def test_bad_prediction_is_refused_in_one_line(
    case: Case, trained: Any, foundation: Any, workplace: Path, refused: Callable[..., str]
) -> None:
    for name, content in {"a.csv": ROWS, **case.files}.items():
        (workplace / name).parent.mkdir(exist_ok=True)
        (workplace / name).write_text(str(content))
    places = {"ADAPTER": trained.adapter.folder, "FOUNDATION": str(foundation("gpt2"))}
    line = refused(*(places.get(word, word) for word in shlex.split(case.options)), command="predict")
    for words in case.says:
        assert words in line
