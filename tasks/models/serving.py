"""Text in, answers out: the one way an adapter is read and run, in evaluation and in the served MLflow model.

MLflow keeps a copy of this file inside each logged model and executes it wherever that model is loaded, so it
imports nothing of this project. What was measured and what is served are therefore the same code.
"""

import hashlib
import json
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor


SETTINGS = "peft_flow.json"
"""File in the adapter folder with what the weights do not say: base model, label names, text columns, max_length, and
what makes answers of logits."""

VALIDATION = "validation.safetensors"
"""File beside it with `logits` and `labels` of the validation rows."""

SINGLE_LABEL = "single_label_classification"

CPU_TOKENS = 1024
"""Batches of so many evaluate MiniLM a quarter faster than 64 rows at a time: what they compute stays in the caches."""


def load_adapter(
    folder: Path, base_model: str | None = None, local_files_only: bool = False, dequantized: bool = False
) -> tuple[Any, Any]:
    """Classifier with its adapter and head, in evaluation mode, and the tokenizer, read from `folder`.

    `base_model` replaces the recorded foundation model, for machines where it lies elsewhere. The Hub is asked only
    for what the cache does not hold. Raises OtherWeights where the foundation model is not the one trained on. With
    `dequantized` quantised weights are written out as the float32 that they stand for.
    """
    with without_code_of_the_hub():
        from peft import PeftConfig, PeftModel
    from transformers import AutoTokenizer

    settings = read_settings(folder)
    if not (folder / "adapter_model.safetensors").is_file():
        raise FileNotFoundError(f"{folder} has no adapter_model.safetensors; other formats can hide code")
    tokenizer = read_as_text(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    recorded = settings["base_model"]
    if base_model and base_model != recorded["name"]:
        recorded = {**recorded, "name": base_model, "revision": None}
    arguments = (recorded, settings["label_names"], tokenizer.pad_token_id)
    kind = settings.get("problem_type", SINGLE_LABEL)  # adapters of before there were others do not say
    try:
        base, _ = load_classifier(*arguments, local_files_only=True, problem_type=kind)
    except OSError:  # not in the cache
        if local_files_only:
            raise
        base, _ = load_classifier(*arguments, local_files_only=False, problem_type=kind)
    fresh = PeftConfig.from_pretrained(folder, local_files_only=True).modules_to_save or ()
    check_weights(base, fresh, recorded, settings["base_model"])
    if dequantized:
        dequantize(base)
    model = PeftModel.from_pretrained(base, folder, local_files_only=True)
    if getattr(model.peft_config["default"], "target_parameters", None):
        answer_one_at_a_time(model)
    return on_best_device(model).eval(), tokenizer


def answer_one_at_a_time(model: Any) -> None:
    """peft adds such an adapter to the weights and takes it away again in each call: two calls at once, as MLflow's
    server makes them, would find it there twice, or not at all."""
    lock, forward = Lock(), model.forward

    def locked(*arguments: Any, **named: Any) -> Any:
        with lock:
            return forward(*arguments, **named)

    model.forward = locked


class OtherWeights(ValueError):
    """The foundation model at hand is not the one that the adapter was trained on: its answers would mean nothing."""


def check_weights(base: Any, fresh: Sequence[str], at_hand: dict[str, Any], trained_on: dict[str, Any]) -> None:
    expected = trained_on.get("weights")  # adapters of before this was recorded have none
    if expected and expected != weights_sha256(base, fresh):
        revision = f" at revision {trained_on['revision']}" if trained_on["revision"] else ", as it was then"
        raise OtherWeights(
            f"the foundation model at {at_hand['name']} has other weights than the one this adapter was trained on; "
            f"it needs {trained_on['name']}{revision}"
        )


def weights_sha256(model: Any, fresh: Sequence[str]) -> str:
    """Of the pretrained weights, wherever and in whatever files they lie: the head and `fresh` modules are left out.

    500 MB take a third of a second on one core. Of quantised weights it is that of their scales, which are exact: how a
    weight between two steps is rounded differs from device to device.
    """
    import torch

    def sha256(name: str) -> bytes:
        weight = weights[name].detach() if scales(weights[name]) is None else scales(weights[name])
        data = weight.cpu().contiguous().flatten().view(torch.uint8).numpy()
        return hashlib.sha256(data).digest() + str(tuple(weights[name].shape)).encode()

    body = f"{model.base_model_prefix}."
    heads = tuple(f"{name}." for name in fresh)
    weights = {
        name: weight
        for name, weight in model.named_parameters()
        if name.startswith(body) and not name.startswith(heads)
    }
    with ThreadPoolExecutor() as pool:
        return hashlib.sha256(b"".join(sorted(pool.map(sha256, weights)))).hexdigest()


def read_settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    return settings


def load_classifier(
    base_model: dict[str, Any],
    label_names: Sequence[str],
    pad_token_id: int,
    local_files_only: bool,
    problem_type: str = SINGLE_LABEL,
) -> tuple[Any, dict[str, Any]]:
    """Foundation model with a classification head, and what `from_pretrained` said about its weights.

    The head is drawn from torch's generator: seed it first. Weights come from safetensors only, never from pickle.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    where = {
        "revision": base_model["revision"] or "main",
        "trust_remote_code": base_model["trust_remote_code"],
        "local_files_only": local_files_only,
    }
    head = {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: label for label, name in enumerate(label_names)},
        "problem_type": problem_type,
    }
    quantization = base_model.get("quantization")
    if quantization:
        head = quantized_arguments(quantization, head, base_model["name"], where)
    with READING:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            base_model["name"],
            **where,
            **head,
            dtype=getattr(torch, base_model["dtype"]),
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            adapter_kwargs={"local_files_only": local_files_only},  # else it looks on the Hub for an adapter
            output_loading_info=True,
        )
    if quantization:
        compute_alike(model, getattr(torch, quantization["compute"]))
        halve_embeddings(model)
    for config in (model.config, model.config.get_text_config()):  # of a model that reads pictures too, another
        config.pad_token_id = pad_token_id
    model.config.use_cache = False  # nothing is generated: the keys and values of a text would be kept for nothing
    fuse_activations(model)
    attend_to_all(model)
    return model, info


READING = Lock()
"""While transformers reads a model it ties no weights, in any thread; after two at once it never would again."""


class NeedsPackage(ImportError):
    """A package is missing, without which this foundation model cannot be read."""


def check_packages(base_model: dict[str, Any]) -> None:
    if base_model.get("quantization") and not find_spec("bitsandbytes"):
        kind = base_model["quantization"]["kind"]
        raise NeedsPackage(f"the foundation model is quantised ({kind}), which needs: pip install '{BITSANDBYTES}'")


BITSANDBYTES = "bitsandbytes>=0.50.2,<0.51"


@contextmanager
def without_code_of_the_hub() -> Iterator[None]:
    """Within, the import of bitsandbytes, which peft imports where it is installed, does not fetch compiled code from
    the Hub and run it, and does not say that it failed to."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    before = {name: sys.modules[name] for name in ("kernels",) if name in sys.modules}
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["kernels"]
        sys.modules.update(before)


def quantized_arguments(
    quantization: dict[str, Any], head: dict[str, Any], name: str, where: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a classifier whose linear layers, without `skip`, are quantised, or are so in
    their files (`stored`)."""
    from transformers import AutoConfig

    check_packages({"quantization": quantization})
    if not quantization["stored"]:
        return {**head, "quantization_config": bitsandbytes_config(quantization["kind"], quantization["skip"])}
    config = AutoConfig.from_pretrained(name, **where, **head)
    stored = config.quantization_config
    stored["llm_int8_skip_modules"] = [*(stored.get("llm_int8_skip_modules") or ()), *patterns(quantization["skip"])]
    return {"config": config}


def patterns(modules: Sequence[str]) -> list[str]:
    """Of whole names: transformers takes a plain name for the end of one, too."""
    return [f"^{re.escape(name)}" for name in modules]


def bitsandbytes_config(kind: str, skip: Sequence[str] | None) -> Any:
    """Scales are not quantised once more: each is then the largest of its weights, on any device. Without `skip` the
    output embeddings are left out."""
    with without_code_of_the_hub():
        import bitsandbytes  # noqa: F401
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=kind != "int8",
        load_in_8bit=kind == "int8",
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=None if skip is None else patterns(skip),
    )


def compute_alike(model: Any, dtype: Any) -> None:
    """Quantised layers multiply in `dtype` by the weights written out, in training as in evaluation.

    Left alone, in evaluation those of 4 bits repack themselves on some CPUs, with rounded scales, and let no gradient
    through from then on; those of 8 bits round what comes in, and the batch decides how.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.compute_dtype, layer.compute_type_is_set = dtype, True
            layer.support_avx512bf16_for_cpu = False
        elif isinstance(layer, Linear8bitLt):
            layer.compute_dtype = dtype
            layer.forward = partial(multiply_8bit, layer)  # type: ignore[method-assign]


def halve_embeddings(model: Any) -> None:
    """Word embeddings are kept in bfloat16, in which most checkpoints have them, and give float32: they are a third of
    GPT-2, and would take more memory than all that is quantised. Those that a language head multiplies by stay."""
    import torch

    weight = getattr(word_embeddings(model), "weight", None)
    sharing = [module for module in model.modules() if getattr(module, "weight", None) is weight]
    if weight is not None and all(isinstance(module, torch.nn.Embedding) for module in sharing):
        weight.data = weight.data.bfloat16()
        for module in sharing:
            module.register_forward_hook(give_float32)


def give_float32(module: Any, inputs: Any, output: "Tensor") -> "Tensor":
    return output.float()


def word_embeddings(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except NotImplementedError:  # it reads letters, or no text
        return None


def multiply_8bit(layer: Any, values: "Tensor") -> "Tensor":
    from bitsandbytes.autograd._functions import MatMul8bitFp

    # not as it does that itself: peft would then lose the scales on a CPU
    layer.state.CB, layer.state.SCB = layer.weight.data, layer.weight.SCB
    dtype, bias = layer.compute_dtype, layer.bias
    product: Tensor = MatMul8bitFp.apply(
        values.to(dtype), layer.weight, None, None if bias is None else bias.to(dtype), layer.state
    )
    return product.to(values.dtype)


def scales(weight: Any) -> Any:
    """Those of a quantised weight, each the largest of its block or row; None of any other."""
    if type(weight).__name__ == "Params4bit":
        return weight.quant_state.absmax
    return weight.SCB if type(weight).__name__ == "Int8Params" else None


def dequantize(model: Any) -> None:
    """Quantised layers become what they were made of: torch's, or GPT-2's, whose weights lie the other way round."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if not getattr(model, "is_quantized", False):
        return
    turned = [name for name, layer in model.named_modules() if getattr(layer, "source_cls", None) is Conv1D]
    model.dequantize(dtype=torch.float32)
    if (weight := getattr(word_embeddings(model), "weight", None)) is not None:
        weight.data = weight.data.float()
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False  # else peft refuses to merge IA3
    for name in turned:
        linear = model.get_submodule(name)
        layer = Conv1D(linear.out_features, linear.in_features)
        layer.weight, layer.bias = torch.nn.Parameter(linear.weight.T.contiguous()), linear.bias
        model.set_submodule(name, layer)


def attend_to_all(model: Any) -> None:
    """BigBird leaves sparse attention at the first batch of short texts, and for good: what it says of a long text
    would depend on what it was asked before."""
    for module in model.modules():
        if getattr(module, "attention_type", None) == "block_sparse" and hasattr(module, "set_attention_type"):
            module.set_attention_type("original_full")
    if getattr(model.config, "attention_type", None) == "block_sparse":
        model.config.attention_type = "original_full"


def fuse_activations(model: Any) -> None:
    """transformers writes GPT-2's activation as seven operations; torch has it as one, equal but for rounding."""
    import torch
    from transformers import activations

    spelled_out = (activations.NewGELUActivation, activations.FastGELUActivation)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, spelled_out):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))


def on_best_device(model: Any) -> Any:
    import torch

    if torch.cuda.is_available():
        return torch.nn.Module.to(model, "cuda")  # a quantised model itself refuses
    if getattr(model, "is_quantized", False):
        return model
    return model.to("mps") if torch.backends.mps.is_available() else model


def read_as_text(tokenizer: Any) -> Any:
    """The tokenizer, which from now on reads `</s>` or `[SEP]` in a text as characters, also where it is saved and
    read back. BART and T5 end at a text with an end token of its own; other models see two texts, or an early end.
    """
    if getattr(tokenizer, "is_fast", False):  # one written in Python would then know no added word at all
        tokenizer.split_special_tokens = True
        tokenizer.init_kwargs["split_special_tokens"] = True
    return tokenizer


def without_special_tokens(columns: Sequence[Sequence[str]], tokenizer: Any) -> Sequence[Sequence[str]]:
    """The columns, with a space inside of each special token that the tokenizer would still take for one."""
    taken = still_taken(tokenizer)
    if not taken:
        return columns

    def broken(text: str) -> str:
        for form in (text, unicodedata.normalize("NFKC", text)):  # Unigram tokenizers read the second
            if taken.search(form):
                return taken.sub(lambda found: f"{found[0][0]} {found[0][1:]}", form)
        return text

    return [[broken(text) for text in column] for column in columns]


@lru_cache(maxsize=4)
def still_taken(tokenizer: Any) -> re.Pattern[str] | None:
    """The special tokens that a text can still hold: tokenizers in Python split at them, and to a Unigram model (T5,
    XLM-R, ALBERT) `</s>` is a word like any other. The unknown word may be one.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    tokens = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    tokens = {token for token in tokens if len(token) > 1 and token != tokenizer.unk_token}
    if not tokens:
        return None
    ids = tokenizer(list(tokens), add_special_tokens=False)["input_ids"]
    taken = [token for token, own in zip(tokens, ids, strict=True) if tokenizer.convert_tokens_to_ids(token) in own]
    return re.compile("|".join(map(re.escape, sorted(taken, key=len, reverse=True)))) if taken else None


def model_texts(columns: Sequence[Sequence[str]], tokenizer: Any) -> Sequence[Sequence[str]]:
    """Text columns as the tokenizer takes them. A tokenizer without a separator would glue a pair together."""
    columns = without_special_tokens(columns, tokenizer)
    separates = tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False)
    if len(columns) == 2 and not separates:
        return [[f"{first}\n{second}" for first, second in zip(*columns, strict=True)]]
    return columns


def model_rows(split: Any, tokenizer: Any) -> dict[str, list[list[int]]]:
    """The columns of `split` that the model reads, in memory; its texts are as large again and stay on disk."""
    columns = [name for name in tokenizer.model_input_names if name in split.column_names]
    rows: dict[str, list[list[int]]] = split.select_columns(columns)[:]
    return rows


def classify(model: Any, tokenizer: Any, rows: Any, batch_size: int) -> "Tensor":
    """Logits (rows, classes), float32, in the order of `rows`, a mapping of the tokenizer's columns to lists."""
    return run_in_batches(lambda inputs: model(**inputs).logits, model.device, tokenizer, rows, batch_size)


def run_in_batches(
    compute: Callable[[Any], "Tensor"], device: Any, tokenizer: Any, rows: Any, batch_size: int
) -> "Tensor":
    """What `compute` says of each row, (rows, ...), float32 in memory, in the order of `rows`.

    Rows run sorted by length, so that a batch holds little padding.
    """
    import torch

    columns = [name for name in tokenizer.model_input_names if name in rows]
    order: list[int] = []
    results = []
    with torch.inference_mode():
        for batch in batches([len(ids) for ids in rows["input_ids"]], batch_size, str(device)):
            inputs = {name: [rows[name][row] for row in batch] for name in columns}
            padded = tokenizer.pad(inputs, return_tensors="pt").to(device)
            results.append(compute(padded).float().cpu())
            order += batch
    return torch.cat(results)[torch.tensor(order).argsort()]


def batches(lengths: Sequence[int], most_rows: int, device: str) -> Iterator[list[int]]:
    """Places of the rows, the longest first; on a CPU, a batch also has no more than CPU_TOKENS, padding included."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    start = 0
    while start < len(order):
        fitting = CPU_TOKENS // lengths[order[start]] if device == "cpu" else most_rows
        end = start + max(1, min(most_rows, fitting))
        yield order[start:end]
        start = end


def answers(logits: "Tensor", settings: dict[str, Any]) -> "np.ndarray":
    """What logits (rows, outputs) say, a table (rows, columns); see `decided`."""
    activation = settings.get("activation", "softmax")
    if activation == "softmax":  # a temperature fitted on validation makes the probabilities calibrated
        outputs = (logits / settings.get("temperature", 1.0)).softmax(-1)
    elif activation == "sigmoid":
        outputs = logits.sigmoid()
    else:
        outputs = logits * settings["std"] + settings["mean"]
    return decided(outputs.numpy(), settings)


def decided(outputs: "np.ndarray", settings: dict[str, Any]) -> "np.ndarray":
    """Outputs (rows, outputs) as a table (rows, columns): probabilities of classes, or a number, as they are; where
    each label has a threshold, the probabilities, and behind them whether the label is given."""
    import numpy as np

    if "thresholds" not in settings:
        return outputs
    return np.hstack([outputs, outputs >= np.asarray(settings["thresholds"])]).astype(outputs.dtype)


def answer_columns(settings: dict[str, Any]) -> dict[str, str]:
    """The columns of what `predict` gives: `text`, `texts` (a list) or `number`."""
    if settings.get("activation") == "scale":
        return dict.fromkeys(("prediction", "low", "high"), "number")
    label = {"labels": "texts"} if "thresholds" in settings else {"label": "text", "probability": "number"}
    return label | {f"probability_{name}": "number" for name in settings["label_names"]}


def as_columns(table: "np.ndarray", settings: dict[str, Any]) -> dict[str, Any]:
    """A table of answers (rows, columns) as the columns of `answer_columns`."""
    names = settings["label_names"]
    if settings.get("activation") == "scale":
        number, half = table[:, 0].astype(float), settings["half_width"]  # None: validation had too few rows
        low, high = (number - half, number + half) if half is not None else [[None] * len(number)] * 2
        return {"prediction": number, "low": low, "high": high}
    if "thresholds" in settings:
        given = [
            [name for name, is_given in zip(names, row, strict=True) if is_given] for row in table[:, len(names) :]
        ]
        first = {"labels": given}
    else:
        first = {"label": [names[i] for i in table.argmax(1)], "probability": table.max(1)}
    return first | {f"probability_{name}": table[:, i] for i, name in enumerate(names)}


def tokenize(columns: Sequence[Sequence[str]], tokenizer: Any, max_length: int) -> Any:
    """What `classify` takes, for text columns: rows of at most `max_length` tokens."""
    rows = tokenizer(*model_texts(columns, tokenizer), truncation=True, max_length=max_length)
    for ids, mask in zip(rows["input_ids"], rows["attention_mask"], strict=True):
        if not ids:  # an empty text, without special tokens around it
            ids.append(tokenizer.pad_token_id)
            mask.append(1)
    return rows


def ask(model: Any, tokenizer: Any, settings: dict[str, Any], frame: "pd.DataFrame") -> "np.ndarray":
    """The table of answers, (rows, columns), for the texts of `frame`, which has at least one row."""
    texts = [frame[column].astype(str).tolist() for column in settings["text_columns"]]
    rows = tokenize(texts, tokenizer, settings["max_length"])
    return answers(classify(model, tokenizer, rows, settings["batch_size"]), settings)


def predict(model: Any, tokenizer: Any, settings: dict[str, Any], frame: "pd.DataFrame") -> "pd.DataFrame":
    """A row for each row of `frame`: `label`, its `probability`, and one `probability_NAME` for each class; of several
    labels `labels` and one `probability_NAME` each; of a number `prediction`, `low` and `high`."""
    import pandas as pd

    columns = settings["text_columns"]
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"the input needs the column{'s'[: len(columns) > 1]} {', '.join(columns)}")
    for column in columns:
        if frame[column].isna().any():
            raise ValueError(f"column {column} has no text in row {int(frame[column].isna().to_numpy().argmax())}")
    if not len(frame):
        return pd.DataFrame(columns=list(answer_columns(settings)))
    table = ask(model, tokenizer, settings, frame)
    return pd.DataFrame(as_columns(table, settings), index=frame.index)


MOST_ROWS, MOST_CHARACTERS = 10_000, 1_000_000
"""Of one request to a server, which answers in a minute or not at all; of one text."""


def check_request(frame: "pd.DataFrame", columns: Sequence[str]) -> None:
    """Raises ValueError, with the row from 0, for what the model would have to guess about."""
    if is_server() and not 1 <= len(frame) <= MOST_ROWS:
        raise ValueError(f"the request has {len(frame):,} rows; send at least one and at most {MOST_ROWS:,}")
    for column in columns:
        for row, text in enumerate(frame[column]):
            if problem := why_no_text(text):
                raise ValueError(f"column {column}, row {row}: {problem}")


def is_server() -> bool:
    """Whether this process is MLflow's server; in other programs a table may have any number of rows."""
    return os.environ.get("_MLFLOW_IS_IN_SERVING_ENVIRONMENT") == "true"


def keep_words_of_csv() -> None:
    """In MLflow's server, a text/csv request with the texts NA, null, None or nan is read as it was written.

    The server itself has pandas take these words for nothing, before the model is asked: what they were is lost.
    """
    import pandas as pd
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST
    from mlflow.pyfunc import scoring_server

    def parse_csv_input(csv_input: Any, schema: Any = None) -> pd.DataFrame:
        try:
            return pd.read_csv(csv_input, dtype=str, keep_default_na=False, na_values=[""])
        except Exception as error:
            raise MlflowException(f"the request is not valid csv: {error}", error_code=BAD_REQUEST) from error

    scoring_server.parse_csv_input = parse_csv_input


def why_no_text(value: object) -> str:
    if value is None or (isinstance(value, float) and value != value):  # NaN, which pandas makes of nothing
        return "there is no text; leave the row out"
    if not isinstance(value, str):
        return f"must be text in quotes, not a {type(value).__name__}"
    if len(value) > MOST_CHARACTERS:
        return f"the text has {len(value):,} characters; {MOST_CHARACTERS:,} are the most"
    return ""


def define_served_model() -> None:
    """Tell MLflow what this file serves; runs only where MLflow executes its own copy of the file."""
    import mlflow
    import pandas as pd
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    class AdapterClassifier(mlflow.pyfunc.PythonModel):
        """Adapter on its foundation model; `model_config={"base_model": PATH}` says where that lies."""

        def load_context(self, context: Any) -> None:
            folder = Path(context.artifacts["adapter"])
            base_model = (context.model_config or {}).get("base_model")
            self.settings = read_settings(folder)
            self.model, self.tokenizer = load_adapter(folder, base_model)

        # a table, as the signature says; from other type hints MLflow would derive a signature of its own
        def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
            try:
                check_request(model_input, self.settings["text_columns"])
            except (
                ValueError
            ) as error:  # of anything else than this class MLflow's server says nothing but "unexpected"
                raise MlflowException(str(error), error_code=BAD_REQUEST) from error
            return predict(self.model, self.tokenizer, self.settings, model_input)

    mlflow.models.set_model(AdapterClassifier())
    # the server loads its model before it says that it is one
    if is_server() or "mlflow.pyfunc.scoring_server.app" in sys.modules:
        keep_words_of_csv()


if __name__ != "tasks.models.serving":
    define_served_model()
