#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, bitsandbytes 0.50.2, accelerate 1.15.0, torch 2.13.0, Python 3.11.
#
# PEANuT makes its update from the layer's weight. Of a layer in int8 it takes the bytes (-127 to 127) for that weight,
# without their scales: no error, and an update some thousand times as large. HRA does so too. (On 4-bit weights both
# fail, because of their shape.)
#
# Seen: the same adapter moves the logits by 1.6e-05 on floats and by 0.04 on int8
# Expected: about the same, or an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0 bitsandbytes==0.50.2 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python -W ignore - <<'PYTHON'
import torch
from peft import PeanutConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, LlamaConfig, LlamaForSequenceClassification

size = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
torch.manual_seed(0)
LlamaForSequenceClassification(LlamaConfig(**size, pad_token_id=0)).save_pretrained("llama")
ids = torch.tensor([[3, 4, 5]])


def moved(**options: object) -> float:
    base = AutoModelForSequenceClassification.from_pretrained("llama", dtype=torch.float32, **options).eval()
    plain = base(ids).logits
    model = get_peft_model(base, PeanutConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=4)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "peanut" in name:
                weight.normal_(std=0.02)
    return float((model(ids).logits - plain).detach().abs().max())


floats = moved()
bytes_ = moved(quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0))
print(f"floats {floats:.2g}, int8 {bytes_:.2g}")
assert bytes_ > 100 * floats, "on int8 it does about the same now"
PYTHON
