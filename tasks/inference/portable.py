"""A classifier that runs without peft: an adapter merged into a transformers model, or that as ONNX.

`python -m tasks.inference.portable`, with a request as JSON on standard input, is the fresh process that reads such a
folder as a user would, and says what it makes of some texts.
"""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base.trouble import first_line
from tasks.models import serving
from tasks.settings.fields import InputError

if TYPE_CHECKING:
    from torch import Tensor


TRANSFORMERS_FILE, ONNX_FILE = "model.safetensors", "model.onnx"

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

MOST_BYTES = 2_000_000_000
"""Weights in one ONNX file, which is a protocol buffer; more lie beside it in model.onnx.data."""

BATCH_SIZE = 8

ADVICE = "serve it as it is, with mlflow models serve"


def merge(model: Any, name: str) -> Any:
    """The foundation model with the adapter in its own weights; InputError where the method cannot do that."""
    from peft.utils.other import ModulesToSaveWrapper

    method = model.peft_config["default"].peft_type.value.lower()
    try:
        plain = model.merge_and_unload()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{name}: an adapter of the kind {method} cannot be merged into a model's weights ({first_line(error)}); "
            f"{ADVICE}"
        ) from error
    for place, module in list(plain.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):  # ln_tuning's merge leaves the head in it
            plain.set_submodule(place, module.modules_to_save["default"])
    plain.config.use_cache = False
    return plain.eval()


def write_onnx(model: Any, tokenizer: Any, rows: Any, folder: Path, expected: "Tensor", tolerance: float) -> None:
    """`model.onnx`: token columns of any number and length of rows in, logits (rows, classes) out."""
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of packages that are not installed and not asked for
    names = [name for name in tokenizer.model_input_names if name in rows]
    example = tokenizer.pad({name: rows[name][2:4] for name in names}, return_tensors="pt")
    rows_axis, tokens_axis = torch.export.Dim("rows", min=1), torch.export.Dim("tokens", min=1)

    class Logits(torch.nn.Module):
        """The model with its columns in the order of `names`, and nothing but the logits."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *columns: "Tensor") -> "Tensor":
            logits: Tensor = self.model(**dict(zip(names, columns, strict=True))).logits
            return logits

    model.set_experts_implementation("batched_mm")  # of the others, ONNX has no operation for one
    try:
        torch.onnx.export(
            Logits().eval(),
            tuple(example[name] for name in names),
            folder / ONNX_FILE,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes={"columns": tuple({0: rows_axis, 1: tokens_axis} for _ in names)},
            dynamo=True,
            verbose=False,
            external_data=sum(weight.nbytes for weight in model.parameters()) > MOST_BYTES,
        )
        found = ask_onnx(folder, tokenizer, rows, {})  # it may take texts of one length only
    except Exception as error:  # of two libraries, each with many kinds
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        if isinstance(cause, OSError | MemoryError):
            raise
        raise InputError(
            f"--onnx: this model cannot be written as ONNX ({first_line(cause)}); write it with --merged"
        ) from error
    off = float((found - expected).abs().max())
    if not off <= tolerance:
        raise InputError(f"--onnx: this model says something else as ONNX (logits differ by {off:.2g}); use --merged")


def main() -> None:
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    request = json.load(sys.stdin)
    folder, settings = Path(request["folder"]), request["settings"]
    texts = json.loads(Path(request["texts"]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rows = serving.tokenize(texts, tokenizer, settings["max_length"])
    readers = {TRANSFORMERS_FILE: ask_transformers, ONNX_FILE: ask_onnx}
    logits = {
        name: ask(folder, tokenizer, rows, settings)
        for name, ask in readers.items()
        if (folder / name).exists() or (folder / f"{name}.index.json").exists()
    }
    save_file(logits, request["out"])


def ask_transformers(folder: Path, tokenizer: Any, rows: Any, settings: dict[str, Any]) -> "Tensor":
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=settings["base_model"]["trust_remote_code"],
    )
    return serving.classify(model.eval(), tokenizer, rows, BATCH_SIZE)


def ask_onnx(folder: Path, tokenizer: Any, rows: Any, settings: dict[str, Any]) -> "Tensor":
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])

    def compute(inputs: Any) -> Any:
        (logits,) = session.run(None, {name: column.numpy() for name, column in inputs.items()})
        return torch.from_numpy(logits)

    return serving.run_in_batches(compute, "cpu", tokenizer, rows, BATCH_SIZE)


def usage(settings: dict[str, Any], merged: bool, onnx: bool) -> list[str]:
    """How to get answers, as snippets of markdown."""
    activation = settings.get("activation", "softmax")
    return [
        text.format(**settings, imports=ONNX_IMPORTS[activation], answers=answers[activation].format(**settings))
        for text, answers, given in (
            (TRANSFORMERS_USAGE, TRANSFORMERS_ANSWERS, merged),
            (ONNX_USAGE, ONNX_ANSWERS, onnx),
        )
        if given
    ]


TRANSFORMERS_ANSWERS = {
    "softmax": "probabilities = (model(**inputs).logits / {temperature!r}).softmax(-1)",
    "sigmoid": """probabilities = model(**inputs).logits.sigmoid()
given = probabilities >= torch.tensor({thresholds!r})""",
    "scale": "numbers = model(**inputs).logits[:, 0] * {std!r} + {mean!r}",
}

ONNX_ANSWERS = {
    "softmax": "probabilities = softmax(logits / {temperature!r}, axis=-1)",
    "sigmoid": "probabilities = expit(logits)\ngiven = probabilities >= {thresholds!r}",
    "scale": "numbers = logits[:, 0] * {std!r} + {mean!r}",
}

ONNX_IMPORTS = {
    "softmax": "from scipy.special import softmax\n",
    "sigmoid": "from scipy.special import expit\n",
    "scale": "",
}


TRANSFORMERS_USAGE = """```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("THIS_FOLDER").eval()
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
inputs = tokenizer(["a text"], truncation=True, max_length={max_length}, padding=True, return_tensors="pt")
{answers}
```"""

ONNX_USAGE = """```python
import onnxruntime
{imports}from transformers import AutoTokenizer

session = onnxruntime.InferenceSession("THIS_FOLDER/model.onnx")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
inputs = tokenizer(["a text"], truncation=True, max_length={max_length}, padding=True, return_tensors="np")
(logits,) = session.run(None, dict(inputs))
{answers}
```"""


if __name__ == "__main__":
    main()
