"""What weights in 4 and 8 bits cost and save, beside float32.

    .venv/bin/python -m benchmarks.quantized [--parts decoder minilm] [--rounds 3] [--rows N]

`decoder`: a random decoder of 12 layers and width 768 (113M weights in its blocks), once with 8,000 words and once with
GPT-2's 50,257, whose embeddings are a quarter of it. A LoRA adapter is attached, stirred and saved; a second process
reads it back and must find the same logits. The sides take turns; each measurement is two processes. The peak is what
reading the model and the first passes add to the process; pages of the mapped weight file count, in all of them.

`minilm`: the whole `finetune` of configs/minilm-rotten-tomatoes.yaml in float32 and in nf4, for three seeds, compared
row by row on the same test rows. `--rows` trains on fewer. HF_ENDPOINT and HF_HOME say where model and data come from.
"""

from tasks.base import environment  # noqa: F401  isort: skip  (first: libraries read it when they are imported)

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from benchmarks.speed import ROOT

KINDS = ("none", "nf4", "int8")
VOCABULARIES = (8_000, 50_257)
BATCH, LENGTH, FORWARDS = 4, 64, 3
SEEDS = (0, 1, 2)

OUR_MODULES = os.environ | {"PYTHONPATH": str(ROOT)}


def write_decoder(folder: Path, words: int) -> Path:
    import torch
    import transformers

    from tests.conftest import write_tokenizer

    torch.manual_seed(0)
    write_tokenizer(folder, eos_token="<|endoftext|>")
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"model_max_length": 64', f'"model_max_length": {LENGTH}'))
    config = transformers.LlamaConfig(
        vocab_size=words,
        max_position_embeddings=LENGTH,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
    )
    transformers.LlamaModel(config).save_pretrained(folder)
    return folder


def rows_of(words: int) -> dict[str, list[list[int]]]:
    import torch

    ids = torch.randint(4, words, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1)).tolist()
    return {"input_ids": ids, "attention_mask": [[1] * LENGTH] * BATCH}


def train_side(folder: Path, kind: str, out: Path) -> dict[str, Any]:
    """Reads the model, and saves an adapter of it and what it says of the rows."""
    import peft  # noqa: F401  what is measured is no import
    import psutil
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401
    from safetensors.torch import save_file

    from tasks.base.device import peak_memory_mb
    from tasks.models import adapter as adapters
    from tasks.models import foundation as models
    from tasks.models import quantized, serving
    from tasks.settings.loading import validated
    from tasks.sources.hub import find
    from tests.conftest import bare_data

    config = validated({"model": {"name": str(folder), "quantization": kind}, "data": {"max_length": LENGTH}})
    source = find("model", str(folder), "main", offline=True)
    tokenizer = models.load_tokenizer(source, config.model)
    models.base_model_settings(source, config.model)
    before, began = psutil.Process().memory_info().rss / 2**20, time.perf_counter()
    model, fresh = models.load_foundation(source, config, ("bad", "good"), tokenizer)
    found: dict[str, Any] = {"load_seconds": time.perf_counter() - began}
    found["weights_mb"] = quantized.bytes_of(model.parameters()) / 2**20
    found["embeddings_mb"] = model.get_input_embeddings().weight.nbytes / 2**20
    model = adapters.attach_adapter(model, config, fresh, 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    rows, seconds = rows_of(model.config.vocab_size), []
    for _ in range(FORWARDS):
        began = time.perf_counter()
        logits = serving.classify(model.eval(), tokenizer, rows, BATCH)
        seconds.append(time.perf_counter() - began)
    save_file({"logits": logits}, out / "logits.safetensors")
    adapters.save_adapter(model, tokenizer, config, bare_data(source), out / "adapter", {"temperature": 1.0})
    found |= {"peak_mb": peak_memory_mb() - before, "forward_seconds": median(seconds)}
    return found | {"compute": quantized.rounding(model)}


def read_side(out: Path) -> dict[str, Any]:
    """The adapter, read back by a process that has not trained it."""
    from safetensors.torch import load_file

    from tasks.models import serving

    model, tokenizer = serving.load_adapter(out / "adapter", local_files_only=True)
    logits = serving.classify(model, tokenizer, rows_of(model.config.vocab_size), BATCH)
    expected = load_file(out / "logits.safetensors")["logits"]
    return {"read_back_difference": float((logits - expected).abs().max())}


def child(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.quantized", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=OUR_MODULES)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def decoder(rounds: int) -> bool:
    """Whether all was read back exactly, and nf4 takes at most 0.3 of float32 where embeddings are few."""
    right = True
    with tempfile.TemporaryDirectory() as place:
        for words in VOCABULARIES:
            folder = Path(child("--write", Path(place) / f"decoder-{words}", "--words", words)["folder"])
            sides: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
            for turn in range(rounds):
                for kind in KINDS[turn % 3 :] + KINDS[: turn % 3]:
                    with tempfile.TemporaryDirectory() as out:
                        found = child("--train", folder, "--kind", kind, "--out", out)
                        sides[kind].append(found | child("--read", out))
            right &= show_decoder(words, sides)
    return right


def show_decoder(words: int, sides: dict[str, list[dict[str, Any]]]) -> bool:
    whole = sides["none"][0]
    share = whole["embeddings_mb"] / whole["weights_mb"]
    print(
        f"\nDecoder with {words:,} words: embeddings are {share:.0%} of its {whole['weights_mb']:.0f} MiB in float32\n"
    )
    print(
        "| weights | MiB | of float32 | peak resident MiB | loading s | forward s | products | read-back difference |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for kind, found in sides.items():
        typical = {name: median(one[name] for one in found) for name in ("load_seconds", "peak_mb", "forward_seconds")}
        worst = max(one["read_back_difference"] for one in found)
        ratio = found[0]["weights_mb"] / whole["weights_mb"]
        print(
            f"| {kind.replace('none', 'float32')} | {found[0]['weights_mb']:.1f} | {ratio:.3f} | "
            f"{typical['peak_mb']:.0f} | {typical['load_seconds']:.1f} | {typical['forward_seconds']:.2f} | "
            f"{found[0]['compute']} | {worst:.1e} |",
            flush=True,
        )
    small = words != min(VOCABULARIES) or sides["nf4"][0]["weights_mb"] <= 0.3 * whole["weights_mb"]
    return small and all(one["read_back_difference"] == 0 for found in sides.values() for one in found)


# --- MiniLM -----------------------------------------------------------------------------------------------------------


def finetune(kind: str, seed: int, rows: int | None, place: str) -> dict[str, Any]:
    """The run's result as `--json` prints it."""
    asked = ["--model.quantization", kind, "--seed", str(seed), "--evaluation.references", "majority", "--json"]
    asked += ["--data.max_train_rows", str(rows)] if rows else []
    command = [sys.executable, "-m", "flows.cli", "finetune", str(ROOT / "configs/minilm-rotten-tomatoes.yaml"), *asked]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, env=OUR_MODULES)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def minilm(rows: int | None) -> None:
    from tasks.base.work import RunFolder
    from tasks.evaluation.predictions import paired_predictions
    from tasks.scores.statistics import mcnemar_p_value

    print("\n| seed | float32 | nf4 | nf4 minus float32 | rows fixed / broken | p | seconds float32 / nf4 |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    gains = []
    with tempfile.TemporaryDirectory() as place:
        for seed in SEEDS:
            sides = {kind: finetune(kind, seed, rows, place) for kind in ("none", "nf4")}
            files = {kind: str(RunFolder.around(one["adapter_path"]).predictions) for kind, one in sides.items()}
            paired = paired_predictions(files)
            right = {kind: table.argmax(1) == paired.labels for kind, table in paired.tables.items()}
            fixed, broken = int((right["nf4"] & ~right["none"]).sum()), int((right["none"] & ~right["nf4"]).sum())
            gains.append(right["nf4"].mean() - right["none"].mean())
            seconds = " / ".join(f"{one['seconds']['train']:.0f}" for one in sides.values())
            print(
                f"| {seed} | {right['none'].mean():.4f} | {right['nf4'].mean():.4f} | {gains[-1]:+.4f} | "
                f"{fixed} / {broken} | {mcnemar_p_value(fixed, broken):.3f} | {seconds} |",
                flush=True,
            )
    print(f"\nnf4 minus float32 over {len(gains)} seeds: {mean(gains):+.4f} ± {stdev(gains):.4f} (standard deviation)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["decoder", "minilm"], default=["decoder"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="training rows of minilm; default all")
    for name in ("--write", "--train", "--read", "--out"):  # what a child does
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--words", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        print(json.dumps({"folder": str(write_decoder(options.write, options.words))}))
    elif options.train:
        print(json.dumps(train_side(options.train, options.kind, options.out)))
    elif options.read:
        print(json.dumps(read_side(options.read)))
    else:
        if "minilm" in options.parts:
            minilm(options.rows)
        if "decoder" in options.parts and not decoder(options.rounds):
            raise SystemExit("FAILED: not read back exactly, or more than 0.3 of float32")


if __name__ == "__main__":
    main()
