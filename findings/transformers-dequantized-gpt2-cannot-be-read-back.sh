#!/usr/bin/env bash
# transformers 5.24.0, bitsandbytes 0.50.2, accelerate 1.15.0, torch 2.13.0, Python 3.11.
#
# GPT-2's layers are Conv1D, whose weights are (in, out). Quantised they become Linear4bit, (out, in), and dequantize()
# makes torch.nn.Linear of these. Saved, that is a GPT-2 checkpoint with transposed weights: those that are not square do
# not fit, and those that are (attn.c_proj) are read as they lie, without a word, and mean the transposed matrix.
#
# Seen: mismatched: c_attn, c_fc, c_proj of mlp; attn.c_proj read back as the transposed matrix
# Expected: Conv1D again, as before quantisation.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 bitsandbytes==0.50.2 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python -W ignore - <<'PYTHON'
import torch
import transformers
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, GPT2Config, GPT2ForSequenceClassification

transformers.logging.set_verbosity_error()
config = GPT2Config(vocab_size=50, n_positions=16, n_embd=64, n_layer=1, n_head=2, pad_token_id=0)
plain = GPT2ForSequenceClassification(config)
plain.save_pretrained("gpt2")
how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["score"])
model = AutoModelForSequenceClassification.from_pretrained("gpt2", quantization_config=how, dtype=torch.float32)
model.dequantize()
model.save_pretrained("floats")
again, info = AutoModelForSequenceClassification.from_pretrained(
    "floats", ignore_mismatched_sizes=True, output_loading_info=True
)
mismatched = sorted(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
meant, read = (one.transformer.h[0].attn.c_proj.weight for one in (plain, again))
near, transposed = (float((read - other).abs().mean()) for other in (meant, meant.T))
print("mismatched", mismatched, f"attn.c_proj: off by {near:.4f}, from its transposed by {transposed:.4f}")
assert len(mismatched) == 3 and transposed < near / 3, "a dequantized GPT-2 can be read back"
PYTHON
