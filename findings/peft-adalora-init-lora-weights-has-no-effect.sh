#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0, Python 3.11.
#
# AdaLoraConfig has LoRA's field init_lora_weights and takes every value of it, "pissa", "gaussian", "olora" and any
# other word, without an error or a warning. None of them does anything: the adapter starts from the very bits of
# the default. With LoraConfig the same words choose another start, and an unknown one is an error.
#
# Seen: adalora {'pissa': True, 'gaussian': True, 'no such start': True}   (whether all weights are those of the default)
#       lora gaussian False, and ValueError for 'no such start'
# Expected: an error, or another start.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

size = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def weights(kind: type, **options: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**size))
    torch.manual_seed(1)
    return get_peft_model(model, kind(target_modules=["query"], **options)).state_dict()


def is_default(kind: type, word: str, **options: object) -> bool:
    usual, other = weights(kind, **options), weights(kind, init_lora_weights=word, **options)
    return all(torch.equal(usual[name], other[name]) for name in usual)


found = {word: is_default(AdaLoraConfig, word, total_step=100) for word in ("pissa", "gaussian", "no such start")}
lora = is_default(LoraConfig, "gaussian")
print("adalora", found, "lora gaussian", lora)
try:
    is_default(LoraConfig, "no such start")
    refused = False
except ValueError as error:
    refused = True
    print("lora:", type(error).__name__)
assert all(found.values()) and not lora and refused, "adalora now heeds init_lora_weights, or refuses it"
PYTHON
