#!/usr/bin/env bash
# PEFT 0.21.2, transformers 5.24.0, torch 2.13.0, Python 3.11.
#
# The same adapter, with the same seed, saved by two processes: its weights are the same bytes, its adapter_config.json is
# not. target_modules is a set in memory and is written in the order that the set has, which Python's hash seed decides.
# Who compares adapter folders by a checksum, or stores them by content, takes each for another one.
#
# Seen: weights same - settings differ (24 target_modules, two hash seeds)
# Expected: the same file, as for the other lists in it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0
cd "$folder"
cat >save.py <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 6}
model = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))
names = [f"layer.{block}.attention.self.{part}" for block in range(6) for part in ("query", "key", "value")]
names += [f"layer.{block}.intermediate.dense" for block in range(6)]
get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=names)).save_pretrained(sys.argv[1])
PYTHON
for seed in 1 2; do
    HF_HUB_OFFLINE=1 PYTHONHASHSEED=$seed venv/bin/python -W ignore save.py "adapter-$seed"
done
venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

folders = [Path(f"adapter-{seed}") for seed in (1, 2)]
weights = {(folder / "adapter_model.safetensors").read_bytes() for folder in folders}
texts = [(folder / "adapter_config.json").read_text() for folder in folders]
first, second = (json.loads(text)["target_modules"] for text in texts)
print("weights", "same" if len(weights) == 1 else "differ", "- settings", "same" if texts[0] == texts[1] else "differ")
assert len(weights) == 1 and first != second and sorted(first) == sorted(second), "the settings are written in order now"
PYTHON
