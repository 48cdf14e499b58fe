"""`python -m tests.support`: every family of classifiers that transformers has, and every method, tried; the result is
docs/support.md. `--only bert,llama` tries those again, `--only methods` the methods, and keeps the other rows.

Each is a random model of two layers and width 64, taken through the product's own functions: check, baseline, probe,
three steps, read back, merged.
"""

import argparse
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, sentences, write_tokenizer

PAGE = ROOT / "docs/support.md"
SECONDS = 180
METHOD_FAMILIES = ("bert", "llama", "gpt2")
WORKS = "works"

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
    "axk1": LATENT, "axk2": LATENT, "deepseek_v2": LATENT, "deepseek_v3": LATENT,
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


Row = dict[str, str]


def try_one(family: str, method: str = "lora") -> Row:
    """What happened at each step; nothing after one that did not work."""
    row: Row = {}
    with tempfile.TemporaryDirectory() as place, chdir(place):
        here = Path(place)
        try:
            model = build(family, here / "model")
        except Exception as error:  # transformers needs another package for it, say
            return {"trains": f"not tried: {line(error)}"}
        try:
            take_through(here, model, method, row)
        except Exception as error:
            from tasks.settings.fields import InputError

            row[next_step(row)] = f"{'refused' if isinstance(error, InputError) else 'FAILS'}: {line(error)}"
    return row


STEPS = ("trains", "read back", "merged")


def next_step(row: Row) -> str:
    return next(step for step in STEPS if step not in row)


def line(error: Exception) -> str:
    text = re.sub(r"/tmp/\S*?/model\b", "MODEL", " ".join(f"{error}".split()) or type(error).__name__)
    return text.replace("|", "/")[:300]


def take_through(here: Path, model: Path, method: str, row: Row) -> None:
    import torch
    from safetensors.torch import load_file

    from tasks.data.prepare import prepare
    from tasks.evaluation import references
    from tasks.inference import portable
    from tasks.models import serving
    from tasks.models.adapter import PROBE_TOLERANCE
    from tasks.settings.loading import validated
    from tasks.training.fit import fit_adapter
    from tasks.training.watching import Watcher

    config = validated(
        {
            "model": {"name": str(model)},
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
    row["trains"], row["adapted"] = WORKS, ", ".join(trained.target_modules)
    torch.manual_seed(1)
    again, tokenizer = serving.load_adapter(Path(trained.folder), local_files_only=True)
    rows = serving.model_rows(load_rows(data.folder), tokenizer)
    logits, tolerance = serving.classify(again, tokenizer, rows, 8), PROBE_TOLERANCE["float32"]
    row["read back"] = verdict(float((logits - load_file(trained.probe)["logits"]).abs().max()), tolerance)
    plain = portable.merge(again, method)
    row["merged"] = verdict(float((serving.classify(plain, tokenizer, rows, 8) - logits).abs().max()), tolerance)
    if row["merged"] != WORKS:
        row["merged"] = "refused: merging this adapter into the model's weights changes its predictions"


def load_rows(folder: str) -> Any:
    from datasets import load_from_disk

    return load_from_disk(folder)["validation"]


def verdict(difference: float, tolerance: float) -> str:
    return WORKS if difference <= tolerance else f"FAILS: logits differ by {difference:.2g}"


def apart(work: Callable[[], Row]) -> Row:
    """In a process of its own, with a time limit."""
    context = multiprocessing.get_context("fork")  # this one has imported what each needs
    results = context.SimpleQueue()

    def run() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        results.put(work())

    process = context.Process(target=run)
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        return {"trains": f"not tried: no answer in {SECONDS} s"}
    return results.get() if not results.empty() else {"trains": f"FAILS: its process ended with {process.exitcode}"}


def families() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES

    return sorted(NAMES)


def try_all(only: Collection[str]) -> dict[str, dict[str, Row]]:
    """By table, by name, a row by column; what is not among `only`, where it names any, is taken from the page."""
    from tasks.settings.methods import METHODS

    kept = read_page() if only else {}
    tried: dict[str, dict[str, Row]] = {"family": {}, "method": {}}
    for family in families():
        if not only or family in only:
            tried["family"][family] = said(family, apart(partial(try_one, family)))
        else:
            tried["family"][family] = kept["family"][family]
    for method in METHODS:
        if not only or {"methods", method} & set(only) or method not in kept["method"]:
            rows = {family: apart(partial(try_one, family, method)) for family in METHOD_FAMILIES}
            tried["method"][method] = said(method, {family: summary(row) for family, row in rows.items()})
        else:
            tried["method"][method] = kept["method"][method]
    return tried


def said(name: str, row: Row) -> Row:
    print(name, row, file=sys.stderr, flush=True)
    return row


def summary(row: Row) -> str:
    """`works`, or the first step that did not."""
    return next((f"{step}: {row[step]}" for step in STEPS if row.get(step) != WORKS), WORKS).removeprefix("trains: ")


COLUMNS = {"family": ("trains", "adapted", "read back", "merged"), "method": METHOD_FAMILIES}


def read_page() -> dict[str, dict[str, Row]]:
    tables: dict[str, dict[str, Row]] = {kind: {} for kind in COLUMNS}
    kind = ""
    for text in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in text.strip("|").split("|")]
        if cells[0] in COLUMNS:
            kind = cells[0]
        elif text.startswith("| `"):
            named = zip(COLUMNS[kind], cells[1:], strict=True)
            tables[kind][cells[0].strip("`")] = {column: cell for column, cell in named if cell}
    return tables


def write_page(tried: Mapping[str, Mapping[str, Row]]) -> None:
    from importlib.metadata import version

    packages = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "torch"))
    tables = {kind: table(kind, rows) for kind, rows in tried.items()}
    PAGE.write_text(INTRODUCTION.format(packages=packages, **tables), encoding="utf-8")


def table(kind: str, rows: Mapping[str, Row]) -> str:
    columns = COLUMNS[kind]
    head = [f"| {kind} | {' | '.join(columns)} |", "| - " * (len(columns) + 1) + "|"]
    body = [f"| `{name}` | {' | '.join(row.get(column, '') for column in columns)} |" for name, row in rows.items()]
    return "\n".join([*head, *body])


INTRODUCTION = """# What was tried

Made by `python -m tests.support` on a CPU, with {packages}.
Each family of classifiers that transformers has, and each method, as a random model of two layers and width 64:
checked, measured, probed (families only), trained for three steps, read back and merged in memory by peft-flow's own
functions. `works`: the logits read back, and merged, are those of the trained model. `refused`: before training
(merging: before anything is written), in the line that stands there, with exit code 2.

Every model is tried before each training, known here or not: two texts must get the same logits alone and side by
side, and the adapter must have a say in them.

## Families, with LoRA on the layers that are adapted where none are named

{family}

## Methods, on the layers that are adapted where none are named

{method}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="NAMES", help="families, methods, or `methods` for all of these")
    only = [name for name in parser.parse_args().only.split(",") if name]

    import datasets  # noqa: F401  what every process needs is imported once
    import peft  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import torch
    import transformers

    from tasks.data import prepare as data  # noqa: F401

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # else a forked process may wait for threads that it does not have
    write_page(try_all(only))


if __name__ == "__main__":
    main()
