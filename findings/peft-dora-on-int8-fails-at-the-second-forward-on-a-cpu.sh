#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, bitsandbytes 0.50.2, accelerate 1.15.0, torch 2.13.0, Python 3.11, on a CPU.
#
# DoRA asks for the floats of its layer's weight. On a CPU peft then puts `weight.to("cpu")` in the weight's place, a new
# Int8Params. After the first forward the scales are in the layer's state alone, so the new weight has none; but it has
# its bytes, which Linear8bitLt takes for a weight that is new, and it overwrites the state's scales with None.
#
# Seen: first forward works; second: AttributeError 'NoneType' object has no attribute 'dtype'
# Expected: the same logits again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0 bitsandbytes==0.50.2 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python -W ignore - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, LlamaConfig, LlamaForSequenceClassification

size = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
LlamaForSequenceClassification(LlamaConfig(**size, pad_token_id=0)).save_pretrained("llama")
how = BitsAndBytesConfig(load_in_8bit=True)
base = AutoModelForSequenceClassification.from_pretrained("llama", quantization_config=how, dtype=torch.float32)
model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", use_dora=True, target_modules=["q_proj"])).eval()
ids = torch.tensor([[3, 4, 5]])
model(ids)
print("first forward works")
try:
    model(ids)
except AttributeError as error:
    print("second:", type(error).__name__, error)
else:
    raise AssertionError("the second forward works, too")
PYTHON
