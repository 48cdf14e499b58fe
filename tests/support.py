"""`python -m tests.support`: every family of classifiers that transformers has, and every method, tried; the result is
docs/support.md. `--parts methods` tries one part again, `--only bert,lora` these families or methods alone; all else
stays as it is on the page, which is written after each row.

Each is a random model of two layers and width 64, taken through the product's own functions: check, baseline, probe,
three steps, read back, merged, written as a merged folder and as ONNX.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any

from tests.conftest import sentences, write_tokenizer
from tests.support_page import METHOD_FAMILIES, NF4_STEPS, STEPS, WORKS, Row, read_page, write_page

PARTS = ("families", "methods", "nf4")

SECONDS = 240
"""For each row; what has not answered by then is not waited for."""

SMALL = {
    "vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "head_dim": 16, "max_position_embeddings": 128, "embedding_size": 64,
    "type_vocab_size": 2, "d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4,
    "num_decoder_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "ffn_dim": 128,
    "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 128, "emb_dim": 64, "n_layers": 2,
    "n_heads": 4, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "n_routed_experts": 4,
    "moe_topk": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "n_group": 1, "topk_group": 1,
    "initializer_range": 0.1, "image_size": 32, "patch_size": 8, "depth": 2, "out_hidden_size": 64,
    "num_position_embeddings": 16, "mm_tokens_per_image": 16, "layer_types": None,
}  # fmt: skip
"""Of a configuration's fields, those that it has."""

IDS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2, "sep_token_id": 3}
LATENT = {"num_key_value_heads": 4, "qk_rope_head_dim": 16}
TWICE_SHARED = {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]}
LINEAR_AND_FULL = {"layer_types": ["linear_attention", "full_attention"]}

OWN: dict[str, dict[str, Any]] = {
    "axk1": LATENT, "axk2": LATENT, "deepseek_v2": LATENT,
    "deepseek_v3": LATENT | {"first_k_dense_replace": 1},
    "minicpm3": LATENT,
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": None},
    },
    "distilbert": {"dim": 64, "hidden_dim": 128},
    "esmc": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "layoutlmv3": {"coordinate_size": 8, "shape_size": 16},
    "lilt": {"hidden_size": 96},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 64},
    "mistral4": {"num_key_value_heads": 4, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
    "perceiver": {
        "d_latents": 64, "num_latents": 16, "num_blocks": 1, "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4, "num_cross_attention_heads": 4,
    },
    "qwen3_5": {"text_config": LINEAR_AND_FULL},
    "qwen3_5_text": LINEAR_AND_FULL,
    "qwen3_next": LINEAR_AND_FULL,
    "reformer": {
        "attn_layers": ["local", "lsh"], "axial_pos_embds_dim": [32, 32], "axial_pos_shape": [8, 16],
        "feed_forward_size": 128, "attention_head_size": 16, "num_buckets": 4,
    },
    "roc_bert": {"shape_vocab_size": 50, "pronunciation_vocab_size": 50},
    "xmod": {"languages": ["en_XX"]},
    "zamba": TWICE_SHARED, "zamba2": TWICE_SHARED,
}  # fmt: skip
"""What a family needs besides."""


def small(config: Any) -> dict[str, Any]:
    values = {name: value for name, value in (SMALL | IDS).items() if name in config.to_dict()}
    parts = {name: part for name in config.sub_configs if (part := getattr(config, name)) is not None}
    return values | {name: small(part) | {"model_type": part.model_type} for name, part in parts.items()}


def merged(values: dict[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    deeper = {name: merged(values.get(name, {}), other) for name, other in others.items() if isinstance(other, dict)}
    return {**values, **others, **deeper}


def small_configuration(family: str, **values: Any) -> Any:
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    values = merged(small(kind()), OWN.get(family, {})) | values
    return kind(**values | IDS, num_labels=5)


def build(family: str, folder: Path, **values: Any) -> Path:
    """A random model of this family as it lies on disk; its head is for other classes than ours, and so of no use."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(small_configuration(family, **values))
    model.save_pretrained(folder)
    reads_last_token = hasattr(model, "score")
    if reads_last_token:
        write_tokenizer(folder, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]")
    else:
        write_tokenizer(folder, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    return folder


def reviews(folder: Path) -> Path:
    import pandas as pd

    texts, labels = sentences(4)
    frame = pd.DataFrame({"text": texts, "label": [("bad", "good")[label] for label in labels]})
    folder.mkdir()
    for name, part in (("train", frame[:24]), ("validation", frame[24:36]), ("test", frame[36:])):
        part.to_csv(folder / f"{name}.csv", index=False)
    return folder


def try_one(family: str, method: str = "lora", note: Callable[[Row], None] = lambda row: None, **model: str) -> Row:
    """What happened at each step, told to `note` as it goes; nothing after one that did not work. `model` is more of
    that section."""
    row: Row = {}
    with tempfile.TemporaryDirectory() as place, chdir(place):
        here = Path(place)
        try:
            folder = build(family, here / "model")
        except Exception as error:  # transformers needs another package for it, say
            return {"trains": f"not tried: {line(error)}"}
        try:
            for column, cell in take_through(here, {"name": str(folder), **model}, method):
                row[column] = cell
                note(row)
        except Exception as error:
            row[next_step(row)] = failure(error)
    return row


def next_step(row: Row) -> str:
    return next(step for step in STEPS if step not in row)


def failure(error: Exception) -> str:
    from tasks.settings.fields import InputError

    return f"{'refused' if isinstance(error, InputError) else 'FAILS'}: {line(error)}"


def line(error: Exception) -> str:
    text = re.sub(r"/tmp/\S*?/model\b", "MODEL", " ".join(f"{error}".split()) or type(error).__name__)
    return text.replace("|", "/")[:300]


def take_through(here: Path, model: dict[str, str], method: str) -> Iterator[tuple[str, str]]:
    """Columns and cells, as they become known."""
    import torch
    from safetensors.torch import load_file

    from tasks.data.prepare import prepare
    from tasks.evaluation import references
    from tasks.inference import portable
    from tasks.inference.export import check_arithmetic
    from tasks.models import serving
    from tasks.models.adapter import PROBE_TOLERANCE
    from tasks.settings.loading import validated
    from tasks.training.fit import fit_adapter
    from tasks.training.watching import Watcher

    config = validated(
        {
            "model": model,
            "data": {"name": str(reviews(here / "reviews")), "max_length": 32},
            "adapter": {"method": method},
            "training": {"max_steps": 3, "batch_size": 8, "learning_rate": 0.01},
            "evaluation": {"batch_size": 8},
        }
    )
    data = prepare(config, here / "work")
    if method == "lora":
        references.ask_foundation(config, data)
        references.ask_probe(config, data)
    trained = fit_adapter(config, data, here / "run", Watcher(lambda progress: None))
    yield "trains", WORKS
    yield "adapted", ", ".join(trained.target_modules)
    torch.manual_seed(1)
    again, tokenizer = serving.load_adapter(Path(trained.folder), local_files_only=True)
    rows = serving.model_rows(load_rows(data.folder), tokenizer)
    logits, tolerance = serving.classify(again, tokenizer, rows, 8), PROBE_TOLERANCE["float32"]

    def verdict(found: Any, expected: Any) -> str:
        difference = float((found - expected).abs().max())
        return WORKS if difference <= tolerance else f"FAILS: logits differ by {difference:.2g}"

    yield "read back", verdict(logits, load_file(trained.probe)["logits"])
    settings = serving.read_settings(Path(trained.folder))
    if quantization := settings["base_model"].get("quantization"):  # an export is of the weights written out
        again, _ = serving.load_adapter(Path(trained.folder), local_files_only=True, dequantized=True)
        quantised, logits = logits, serving.classify(again, tokenizer, rows, 8)
        check_arithmetic(method, quantised, logits, quantization)
    plain = portable.merge(again, method)
    if verdict(serving.classify(plain, tokenizer, rows, 8), logits) != WORKS:
        yield "merged", "refused: merging this adapter into the model's weights changes its predictions"
        return
    yield "merged", WORKS
    if quantization:
        return
    tokenizer.save_pretrained(here / "plain")
    plain.save_pretrained(here / "plain")
    yield "merged folder", verdict(portable.ask_transformers(here / "plain", tokenizer, rows, settings), logits)
    portable.write_onnx(plain, tokenizer, rows, here / "plain", logits, tolerance)
    yield "ONNX", verdict(portable.ask_onnx(here / "plain", tokenizer, rows, settings), logits)


def load_rows(folder: str) -> Any:
    from datasets import load_from_disk

    return load_from_disk(folder)["validation"]


def apart(work: Callable[..., Row]) -> Row:
    """In a process of its own, with a time limit."""
    context = multiprocessing.get_context("fork")  # this one has imported what each needs
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "row.json"

        def note(row: Row) -> None:
            file.write_text(json.dumps(row), encoding="utf-8")

        def run() -> None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            note(work(note=note) | {"": ""})

        process = context.Process(target=run)
        process.start()
        process.join(SECONDS)
        hangs = process.is_alive()
        process.kill()
        process.join()
        row: Row = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if "" in row:
            return {column: cell for column, cell in row.items() if column}
        ended = f"not tried: no answer in {SECONDS} s" if hangs else f"FAILS: its process ended: {process.exitcode}"
        return row | {next_step(row): ended}


def families() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES

    return sorted(NAMES)


def try_all(parts: Collection[str], only: Collection[str]) -> None:
    """Writes the page after each row; what is not among `parts`, or `only` where that names any, stays as it is."""
    from tasks.settings.methods import METHODS

    tables, names = read_page(), families()
    tables["family"] = {family: tables["family"].get(family, {}) for family in names}
    for table in METHOD_FAMILIES:
        tables[table] = {method: tables[table].get(method, {}) for method in METHODS}

    def keep(table: str, name: str, row: Row) -> None:
        print(table, name, row, file=sys.stderr, flush=True)
        tables[table][name] = row
        write_page(tables)

    def wanted(part: str, table: str, name: str) -> bool:
        return part in parts and (not only or name in only or table in only)

    for table in METHOD_FAMILIES:
        for method in METHODS:
            before = tables[table][method]
            if wanted("methods", table, method):
                row = apart(partial(try_one, table, method))
                before = of_steps(NF4_STEPS, before) | of_steps(STEPS, row)
                keep(table, method, before)
            if wanted("nf4", table, method):
                row = apart(partial(try_one, table, method, quantization="nf4"))
                named = {column: row[step] for column, step in NF4_STEPS.items() if step in row}
                keep(table, method, of_steps(STEPS, before) | named)
    for family in names:
        if wanted("families", "family", family):
            keep("family", family, apart(partial(try_one, family)))


def of_steps(columns: Collection[str], row: Mapping[str, str]) -> Row:
    return {column: row[column] for column in columns if column in row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), metavar="PARTS", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--only", default="", metavar="NAMES", help="families and methods; none: all")
    given = parser.parse_args()

    import datasets  # noqa: F401  what every process needs is imported once
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import peft  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import torch
    import torch.onnx
    import transformers

    from tasks.data import prepare as data  # noqa: F401

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # else a forked process may wait for threads that it does not have
    try_all(given.parts.split(","), [name for name in given.only.split(",") if name])


if __name__ == "__main__":
    main()
