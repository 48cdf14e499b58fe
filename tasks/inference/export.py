"""An adapter written into a folder that needs no peft, which appears once it has proved to be the adapter."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tasks.base.disk import writing
from tasks.base.environment import hide_short_bars
from tasks.base.files import whole, write_text
from tasks.base.fresh_process import run_offline
from tasks.base.records import Record
from tasks.base.words import counted
from tasks.inference.job import adapter_named
from tasks.inference.portable import ADVICE, BATCH_SIZE, ONNX_PACKAGES, merge, usage, write_onnx
from tasks.models import serving
from tasks.models.adapter import PROBE_ROWS, PROBE_TOLERANCE
from tasks.models.trial import TOLERANCE as ROUNDING
from tasks.settings.fields import InputError
from tasks.tracking.adapters import find_test_table

if TYPE_CHECKING:
    from torch import Tensor


TEXTS = (
    "",
    "good",
    "a warm and funny film",
    "Dull from start to end; I hated every minute of it!",
    "映画は最高 🎬",
    "so " * 999,
)
"""What an adapter is asked whose run is not at hand."""


class Exported(Record):
    folder: str
    largest_difference: float
    """Of a logit from the adapter's."""
    texts: int
    answers: str
    """What makes answers of its logits, in a sentence."""
    quantised: str
    """How far they are from what the adapter says on quantised weights; empty where there are none."""


class ExportMismatch(RuntimeError):
    """What was written does not compute what the adapter computes."""


def export(name: str, folder: Path, merged: bool, onnx: bool, trust_remote_code: bool = False) -> Exported:
    """Write the adapter that a user calls `name` into the new `folder`, as a transformers model, as ONNX, or both.

    A fresh process without network must find the adapter's logits in it before the folder appears. Raises InputError,
    ExportMismatch and DiskFull.
    """
    check_folder(folder)
    if onnx and (missing := [package for package in ONNX_PACKAGES if not find_spec(package)]):
        raise InputError(f"--onnx needs {', '.join(missing)}; install them: pip install 'peft-flow[onnx]'")
    hide_short_bars()
    with TemporaryDirectory() as place:
        adapter, table = locate(name, Path(place))
        settings = serving.read_settings(adapter)
        check_settings(name, settings, onnx, trust_remote_code)
        texts = some_texts(table, settings["text_columns"])
        try:
            model, tokenizer = serving.load_adapter(adapter)
        except (serving.OtherWeights, serving.NeedsPackage) as error:
            raise InputError(f"{name}: {error}") from None
        rows = serving.tokenize(texts, tokenizer, settings["max_length"])
        expected, off = serving.classify(model.cpu(), tokenizer, rows, BATCH_SIZE), None
        if quantization := settings["base_model"].get("quantization"):
            # merged into quantised weights it would be rounded with them, and become another adapter
            model, _ = serving.load_adapter(adapter, dequantized=True)
            quantised, expected = expected, serving.classify(model.cpu(), tokenizer, rows, BATCH_SIZE)
            off = check_arithmetic(name, quantised, expected, quantization)
        plain = merge(model, name)
        if not difference(serving.classify(plain, tokenizer, rows, BATCH_SIZE), expected) <= tolerance(settings):
            raise InputError(f"{name}: merging this adapter into the model's weights changes its predictions; {ADVICE}")
        size = sum(weight.nbytes for weight in plain.parameters())
        with unfinished(folder, size * (merged + onnx)) as partial:
            tokenizer.save_pretrained(partial)
            if merged:
                plain.save_pretrained(partial, safe_serialization=True)
            if onnx:
                write_onnx(plain, tokenizer, rows, partial, expected, tolerance(settings))
            worst = check(partial, texts, expected, settings)
            write_text(partial / "README.md", readme(name, settings, merged, onnx, worst, len(texts[0]), off))
    return Exported(
        folder=str(folder.resolve()),
        largest_difference=worst,
        texts=len(texts[0]),
        answers=answers_sentence(settings),
        quantised=quantised_sentence(settings, off),
    )


def check_arithmetic(name: str, quantised: "Tensor", expected: "Tensor", quantization: dict[str, Any]) -> float:
    """How far the adapter's logits on the quantised weights are from those on the weights written out as float32: the
    same numbers, multiplied in another format. Raises InputError where rounding does not explain it."""
    off = difference(quantised, expected)
    if not off <= ROUNDING[quantization["compute"]] * float(expected.abs().max()):
        raise InputError(
            f"{name}: without quantisation this adapter says something else (logits differ by {off:.2g}); {ADVICE}"
        )
    return off


def check_folder(folder: Path) -> None:
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"OUTPUT_FOLDER: {folder} is there already; name a new folder")
        place = folder if folder.exists() else folder.absolute().parent
        if not place.is_dir():
            raise InputError(f"OUTPUT_FOLDER: there is no folder {place} to make it in")
        if not os.access(place, os.W_OK):
            raise InputError(f"OUTPUT_FOLDER: {place} is not yours to write to; name another folder")
    except OSError as error:  # a name longer than names can be
        raise InputError(f"OUTPUT_FOLDER: {folder} cannot be written: {error.strerror}") from None


def check_settings(name: str, settings: dict[str, Any], onnx: bool, trust_remote_code: bool) -> None:
    base = settings["base_model"]
    if base["trust_remote_code"] and not trust_remote_code:
        raise InputError(
            f"{name} needs Python code that comes with {base['name']}; give --trust_remote_code only if you trust it"
        )
    if onnx and base["dtype"] != "float32":
        raise InputError(f"--onnx: ONNX Runtime does not compute in {base['dtype']}; write it with --merged")


def locate(name: str, place: Path) -> tuple[Path, Path | None]:
    """The adapter folder, and the table of its run's test rows where there is one."""
    adapter, _, uri = adapter_named(name, "RUN", place / "model")
    if uri:
        return adapter, find_test_table(uri, place)
    # beside it, in the folder of a run and among a run's artifacts
    tables = (adapter.parent / part / "predictions.json" for part in ("staged", "comparison"))
    return adapter, next((table for table in tables if table.is_file()), None)


def some_texts(table: Path | None, columns: Sequence[str]) -> list[list[str]]:
    """Text columns of test rows from the whole of the table, and a few odd ones."""
    odd = [list(TEXTS) for _ in columns]
    if not table:
        return odd
    content = json.loads(table.read_text(encoding="utf-8"))
    rows = content["data"][:: max(1, len(content["data"]) // PROBE_ROWS)][:PROBE_ROWS]
    places = [content["columns"].index(column) for column in columns]
    return [[*extra, *(row[place] for row in rows)] for extra, place in zip(odd, places, strict=True)]


@contextmanager
def unfinished(folder: Path, bytes_needed: int) -> Iterator[Path]:
    """A folder beside `folder` that takes its name when all has gone well, and is gone otherwise.

    Where `folder` is there already, empty, it gets the files instead: it may be a disk of its own, or the current one.
    """
    if not folder.is_dir():
        with whole(folder, bytes_needed) as staged:
            staged.mkdir()
            yield staged
        return
    with writing(folder, bytes_needed), TemporaryDirectory(prefix=".", suffix=".partial", dir=folder) as place:
        yield Path(place)
        for file in Path(place).iterdir():
            file.rename(folder / file.name)


def check(folder: Path, texts: Sequence[Sequence[str]], expected: "Tensor", settings: dict[str, Any]) -> float:
    """Largest difference between the logits of what lies in `folder`, read by a fresh process, and those expected."""
    from safetensors.torch import load_file

    with TemporaryDirectory() as place:
        out, file = Path(place) / "logits.safetensors", Path(place) / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        request = {"folder": str(folder.resolve()), "texts": str(file), "out": str(out), "settings": settings}
        run_offline("tasks.inference.portable", request)
        found = load_file(out)
    worst = max(difference(logits, expected) for logits in found.values())
    if not worst <= tolerance(settings):
        raise ExportMismatch(f"what was written differs from the adapter by {worst:.3g} in its logits; it was removed")
    return worst


def difference(logits: "Tensor", expected: "Tensor") -> float:
    return float((logits - expected).abs().max())


def tolerance(settings: dict[str, Any]) -> float:
    return PROBE_TOLERANCE[settings["base_model"]["dtype"]]


def purpose(settings: dict[str, Any]) -> str:
    texts, names = " and ".join(settings["text_columns"]), ", ".join(settings["label_names"])
    activation = settings.get("activation", "softmax")
    told = {"softmax": f"Classifies {texts} into {names}", "sigmoid": f"Says which of {names} {texts} has"}
    return told.get(activation, f"Predicts the number {names} of {texts}")


def answers_sentence(settings: dict[str, Any]) -> str:
    """What makes answers of the logits."""
    activation = settings.get("activation", "softmax")
    if activation == "softmax":
        return (
            f"For calibrated probabilities divide the logits by the temperature {settings['temperature']!r}, which was "
            "fitted on validation, before the softmax; the labels are the same without it."
        )
    if activation == "sigmoid":
        thresholds = zip(settings["label_names"], settings["thresholds"], strict=True)
        named = ", ".join(f"{name} {threshold:.4g}" for name, threshold in thresholds)
        return f"The sigmoid of each logit is the probability of its label, which is given from this on: {named}."
    return f"The number is the logit times {settings['std']!r} plus {settings['mean']!r}."


def quantised_sentence(settings: dict[str, Any], off: float | None) -> str:
    if off is None:
        return ""
    quantization = settings["base_model"]["quantization"]
    return (
        f"The adapter was trained on weights in {quantization['kind']}, written out as float32 here. On those "
        f"themselves, multiplied in {quantization['compute']}, its logits differ from these by up to {off:.1e}."
    )


def readme(
    name: str, settings: dict[str, Any], merged: bool, onnx: bool, worst: float, texts: int, off: float | None
) -> str:
    base = settings["base_model"]
    revision = f" at revision {base['revision']}" if base["revision"] else ""
    parts = (
        f"# {Path(name).name}",
        f"{purpose(settings)}. Made by "
        f"peft-flow from {name}, an adapter on `{base['name']}`{revision}, merged into its weights. On "
        f"{counted(texts, 'text')} a fresh process found the adapter's logits again within {worst:.1e}.",
        *filter(None, [quantised_sentence(settings, off)]),
        answers_sentence(settings),
        f"Texts are cut to {settings['max_length']} tokens, as in training.",
        *usage(settings, merged, onnx),
    )
    return "\n\n".join(parts) + "\n"


def describe_export(exported: Exported) -> str:
    found = (
        f"Wrote {exported.folder}: a fresh process found the adapter's logits within "
        f"{exported.largest_difference:.1e} on {counted(exported.texts, 'text')}."
    )
    return " ".join(filter(None, [found, exported.quantised, exported.answers]))
