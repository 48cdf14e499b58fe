#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0, Python 3.11.
#
# PeftModel.unload() is described as giving back the base model, with all adapter modules removed and nothing merged. For
# a classifier (task_type SEQ_CLS, whose head peft trains as a module to save) it gives back the base model's layers
# under the adapter's trained head: neither the model that was there before nor the one that was trained. Within
# disable_adapter() the original head answers, so that the two ways to leave the adapter out disagree.
#
# Seen: disabled: original head; unloaded: trained head
# Expected: the original head for both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 peft==0.21.2
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
base = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).eval()
text = {"input_ids": torch.tensor([[2, 7, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


@torch.no_grad()
def answer(model):
    return model(**text).logits


before = answer(base)
model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])).eval()
with torch.no_grad():  # stands for training: only the head has changed
    model.base_model.model.classifier.modules_to_save["default"].weight.add_(1.0)
trained = answer(model)
with model.disable_adapter():
    disabled = answer(model)
unloaded = answer(model.unload())
heads = [(name, one) for name, one in (("original", before), ("trained", trained))]
said = [next(name for name, one in heads if torch.equal(one, found)) for found in (disabled, unloaded)]
print(f"disabled: {said[0]} head; unloaded: {said[1]} head")
assert said == ["original", "trained"], "unload() now gives the head back too"
PYTHON
