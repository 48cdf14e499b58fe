"""What an export holds is the adapter: read by a program that knows neither peft nor peft-flow."""

import json
import os
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.cli import DONE, USER_MUST_CHANGE, main
from tasks.inference import portable
from tasks.inference.export import ExportMismatch, check_folder, check_settings, export, some_texts, unfinished
from tasks.inference.portable import ask_onnx, usage, write_onnx
from tasks.models import serving
from tasks.settings.fields import InputError
from tasks.settings.loading import validated
from tasks.training.watching import Watcher
from tests.conftest import Trained
from tests.support import build

TEXTS = ["i loved every minute of it", "dull", "a warm and funny film and " * 20]


def logits_of(folder: Path, texts: list[str] = TEXTS) -> Any:
    """As a user of transformers gets them: no peft, nothing of ours."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert "peft" not in type(model).__module__
    with torch.no_grad():
        inputs = tokenizer(texts, truncation=True, max_length=32, padding=True, return_tensors="pt")
        return model(**inputs).logits


def adapter_logits(folder: Path, texts: list[str] = TEXTS) -> Any:
    model, tokenizer = serving.load_adapter(folder)
    return serving.classify(model.cpu(), tokenizer, serving.tokenize([texts], tokenizer, 32), 8)


@pytest.fixture
def fitted(foundation: Any, reviews: Path, tmp_path: Path) -> Callable[..., Path]:
    """`fitted("dora", "bert")`: the folder of an adapter of that method, trained for two steps."""

    def make(method: str, family: str = "bert") -> Path:
        from tasks.data.prepare import prepare
        from tasks.training.fit import fit_adapter

        config = validated(
            {
                "model": {"name": str(foundation(family))},
                "data": {"name": str(reviews), "max_length": 32},
                "adapter": {"method": method},
                "training": {"max_steps": 2, "batch_size": 8, "learning_rate": 0.05},
            }
        )
        data = prepare(config, tmp_path / "work")
        trained = fit_adapter(config, data, tmp_path / f"work/{method}", Watcher(lambda progress: None))
        return Path(trained.folder)

    return make


def test_merged_model_gives_the_adapters_logits_without_peft(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    exported = export(trained.adapter.folder, folder, merged=True, onnx=False)
    assert Path(exported.folder) == folder and exported.largest_difference <= 1e-4
    assert logits_of(folder).numpy() == pytest.approx(adapter_logits(Path(trained.adapter.folder)).numpy(), abs=1e-4)
    names = {file.name for file in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if "adapter" in name or name.endswith((".bin", ".pt", ".pkl"))]
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"} and config["label2id"] == {"bad": 0, "good": 1}
    assert os.listdir(tmp_path) == ["merged"]


def test_readme_gives_the_temperature_and_a_snippet_that_gives_the_served_probabilities(
    trained: Trained, tmp_path: Path
) -> None:
    folder = tmp_path / "merged"
    exported = export(trained.adapter.folder, folder, merged=True, onnx=False)
    text = (folder / "README.md").read_text()
    assert f"temperature {trained.adapter.fitted['temperature']!r}" in text and exported.answers in text
    assert trained.adapter.fitted["temperature"] != 1
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet.replace("THIS_FOLDER", str(folder)).replace("a text", TEXTS[0]), names)
    adapter = Path(trained.adapter.folder)
    frame = pd.DataFrame({"text": TEXTS[:1]})
    served = serving.predict(*serving.load_adapter(adapter), serving.read_settings(adapter), frame)
    expected = served[["probability_bad", "probability_good"]].to_numpy()
    assert names["probabilities"].detach().numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", ["dora", "ia3", "oft"])
def test_other_methods_are_merged_too(method: str, fitted: Callable[..., Path], tmp_path: Path) -> None:
    adapter = fitted(method)
    export(str(adapter), tmp_path / "merged", merged=True, onnx=False)
    assert logits_of(tmp_path / "merged").numpy() == pytest.approx(adapter_logits(adapter).numpy(), abs=1e-4)


def test_method_that_cannot_be_merged_is_refused_and_leaves_nothing(
    fitted: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = fitted("prompt_tuning"), tmp_path / "out"
    out.mkdir()
    capsys.readouterr()  # training had a bar
    assert main(["export", str(adapter), str(out / "merged"), "--merged"]) == USER_MUST_CHANGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "prompt_tuning cannot be merged" in line and "mlflow models serve" in line
    assert list(out.iterdir()) == []


def test_model_that_merging_changes_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tasks.inference.export.merge", lambda model, name: model.unload().eval()
    )  # without the adapter
    with pytest.raises(InputError, match="changes its predictions"):
        export(trained.adapter.folder, tmp_path / "merged", merged=True, onnx=False)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_does_not_give_the_logits_back_does_not_appear(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained

    def save_wrongly(self: Any, *arguments: Any, **named: Any) -> None:
        self.score.weight.data *= 1.5
        save(self, *arguments, **named)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_wrongly)
    with pytest.raises(ExportMismatch, match="was removed"):
        export(trained.adapter.folder, tmp_path / "merged", merged=True, onnx=False)
    assert list(tmp_path.iterdir()) == []


def test_texts_of_the_runs_test_rows_are_compared(tmp_path: Path) -> None:
    rows = [[row, f"text {row}", f"other {row}", "good"] for row in range(1_000)]
    table = tmp_path / "predictions.json"
    table.write_text(json.dumps({"columns": ["row", "a", "b", "true_label"], "data": rows}))
    first, second = some_texts(table, ["a", "b"])
    assert len(first) == len(second) and sum(text.startswith("text ") for text in first) == 64
    assert "text 0" in first and "text 900" in first and "other 0" in second


@pytest.mark.skipif(
    not find_spec("onnxruntime") or not find_spec("onnxscript"), reason="peft-flow[onnx] is not installed"
)
def test_onnx_gives_the_adapters_logits_for_any_number_and_length_of_texts(trained: Trained, tmp_path: Path) -> None:
    import onnxruntime
    from transformers import AutoTokenizer

    folder = tmp_path / "onnx"
    assert export(trained.adapter.folder, folder, merged=False, onnx=True).largest_difference <= 1e-4
    assert not (folder / "model.safetensors").exists()
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for texts in (TEXTS, TEXTS[:1], TEXTS[1:2], TEXTS * 5):
        inputs = tokenizer(texts, truncation=True, max_length=32, padding=True, return_tensors="np")
        (logits,) = session.run(None, dict(inputs))
        assert logits == pytest.approx(adapter_logits(Path(trained.adapter.folder), texts).numpy(), abs=1e-4)
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    exec(snippet.replace("THIS_FOLDER", str(folder)), {})


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["export", *arguments]) == USER_MUST_CHANGE
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1
    return errors


@pytest.mark.skipif(
    not find_spec("onnxruntime") or not find_spec("onnxscript"), reason="peft-flow[onnx] is not installed"
)
def test_a_mixture_of_experts_is_written_as_onnx(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = build("mixtral", tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.use_cache = False
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = serving.tokenize([[*TEXTS, "so", "so so"]], tokenizer, 32)
    expected = serving.classify(model, tokenizer, rows, 4)
    write_onnx(model, tokenizer, rows, tmp_path, expected, 1e-4)
    assert ask_onnx(tmp_path, tokenizer, rows, {}).numpy() == pytest.approx(expected.numpy(), abs=1e-4)


def test_a_model_that_cannot_be_onnx_is_refused_with_the_reason(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def fail(*arguments: Any, **named: Any) -> None:
        raise torch.onnx.OnnxExporterError("Step 3 of 3\nfailed") from RuntimeError("no complex numbers")

    monkeypatch.setattr(torch.onnx, "export", fail)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"--onnx: .* cannot be written as ONNX \(no complex numbers\); .* --merged$"):
        export(trained.adapter.folder, out, merged=False, onnx=True)
    assert not out.exists()

    def fail_later(*arguments: Any) -> None:
        raise RuntimeError("Got invalid dimensions for input: input_ids")

    monkeypatch.setattr(torch.onnx, "export", lambda *arguments, **named: None)
    monkeypatch.setattr(portable, "ask_onnx", fail_later)
    with pytest.raises(InputError, match=r"cannot be written as ONNX \(Got invalid dimensions for input: input_ids\)"):
        export(trained.adapter.folder, out, merged=False, onnx=True)
    monkeypatch.setattr(portable, "ask_onnx", lambda *arguments: torch.tensor(float("nan")))
    with pytest.raises(InputError, match=r"--onnx: this model says something else as ONNX \(logits differ by nan\)"):
        export(trained.adapter.folder, out, merged=False, onnx=True)


def test_onnx_without_its_packages_says_what_to_install(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tasks.inference.export.find_spec", lambda name: None)
    says = refused(capsys, trained.adapter.folder, str(tmp_path / "out"), "--onnx")
    assert "pip install 'peft-flow[onnx]'" in says


def test_what_cannot_be_exported_is_refused_with_the_reason(
    trained: Trained, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = trained.adapter.folder
    assert "say what to write" in refused(capsys, adapter, "out")
    (workplace / "full").mkdir()
    (workplace / "full/file").touch()
    assert "full is there already" in refused(capsys, adapter, "full", "--merged")
    assert "there is no folder" in refused(capsys, adapter, "nowhere/out", "--merged")
    assert "holds no peft_flow.json" in refused(capsys, "full", "out", "--merged")
    assert "no adapter folder" in refused(capsys, "./gone", "out", "--merged")
    assert "there are no runs in" in refused(capsys, "reviewer@champion", "out", "--merged")
    settings = serving.read_settings(Path(adapter))
    settings["base_model"]["dtype"] = "bfloat16"
    with pytest.raises(InputError, match="ONNX Runtime does not compute in bfloat16"):
        check_settings("a", settings, onnx=True, trust_remote_code=False)
    assert sorted(os.listdir(workplace)) == ["full"]


def test_code_that_comes_with_a_model_is_run_only_when_told_to(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained.adapter.folder, tmp_path / "adapter")
    settings = serving.read_settings(folder)
    settings["base_model"]["trust_remote_code"] = True
    (folder / serving.SETTINGS).write_text(json.dumps(settings))
    assert "--trust_remote_code only if you trust it" in refused(capsys, str(folder), str(tmp_path / "out"), "--merged")


def test_foundation_model_with_other_weights_is_refused(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained.adapter.folder, tmp_path / "adapter")
    settings = serving.read_settings(folder)
    settings["base_model"]["weights"] = "0" * 64
    (folder / serving.SETTINGS).write_text(json.dumps(settings))
    assert "has other weights than" in refused(capsys, str(folder), str(tmp_path / "out"), "--merged")


def test_command_says_what_it_wrote(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_forks: None
) -> None:
    assert main(["export", trained.adapter.folder, str(tmp_path / "out"), "--merged"]) == DONE
    output, errors = capsys.readouterr()
    assert str(tmp_path / "out") in output and repr(trained.adapter.fitted["temperature"]) in output and errors == ""


@pytest.mark.parametrize("name", ["new", "there", ".", "there/../new", "link", "x" * 250])
def test_folder_of_any_kind_gets_the_files_and_nothing_else(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("there", "disk", "here"):
        (workplace / folder).mkdir()
    (workplace / "link").symlink_to("disk")
    if name == ".":
        monkeypatch.chdir("here")
    folder = Path(name)
    before = folder.stat().st_ino if folder.exists() else None
    check_folder(folder)
    with unfinished(folder, 0) as partial:
        (partial / "sub").mkdir()
        (partial / "sub/model").touch()
        assert not (folder / "sub").exists()
    assert [str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))] == ["sub", "sub/model"]
    assert before in (None, folder.stat().st_ino), "it may be a disk of its own, or somebody's current folder"
    assert not list(workplace.rglob("*.partial"))


def test_export_that_fails_leaves_the_folder_as_it_was(workplace: Path) -> None:
    (workplace / "there").mkdir()
    (workplace / ".new.partial").mkdir()  # somebody's own
    for folder in (Path("there"), Path("new")):
        with pytest.raises(RuntimeError), unfinished(folder, 0) as partial:
            (partial / "model").touch()
            raise RuntimeError
    assert sorted(path.name for path in workplace.rglob("*")) == [".new.partial", "there"]


@pytest.mark.parametrize(
    ("activation", "imported"), [("softmax", {"softmax"}), ("sigmoid", {"expit"}), ("scale", set())]
)
def test_onnx_snippet_imports_what_it_uses(activation: str, imported: set[str]) -> None:
    import ast

    settings = {"temperature": 1.5, "thresholds": [0.5, 0.4], "mean": 3.0, "std": 1.0, "max_length": 32}
    (snippet,) = usage(settings | {"activation": activation}, merged=False, onnx=True)
    tree = ast.parse(snippet.strip("`").removeprefix("python"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    found = {
        one.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "scipy.special"
        for one in node.names
    }
    assert found == imported and imported <= names
