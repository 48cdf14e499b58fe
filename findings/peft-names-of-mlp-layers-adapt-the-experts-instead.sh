#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0, Python 3.11.
#
# DeepSeek-V2, Qwen 3 Next, Hunyuan and others have experts, whose joint weights are parameters, and beside them plain
# layers called gate_proj, up_proj and down_proj: the shared experts, and the blocks without experts. LoRA with these
# names, or with full names of such layers, adapts the experts in their place, at twice the rank, without a word; the
# layers that were named get no adapter. peft reads the names as those of transformers 4, where each expert had such
# layers.
#
# Seen: adapted ['model.layers.1.mlp.experts.down_proj', 'model.layers.1.mlp.experts.gate_up_proj'], none of the six
#       layers that are named
# Expected: an adapter in the layers that have these names (besides the experts, or in place of them), or an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import DeepseekV2Config, DeepseekV2ForSequenceClassification

config = DeepseekV2Config(
    vocab_size=50, hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1,
    qk_rope_head_dim=16,
)  # fmt: skip
model = DeepseekV2ForSequenceClassification(config)
named = sorted(
    name
    for name, module in model.named_modules()
    if isinstance(module, torch.nn.Linear) and name.endswith(("gate_proj", "up_proj", "down_proj"))
)
wrapped = get_peft_model(model, LoraConfig(target_modules=named))
adapted = sorted(
    f"{name.replace('.base_layer', '')}.{getattr(module, 'parameter_name', '')}".removeprefix("base_model.model.")
    for name, module in wrapped.named_modules()
    if hasattr(module, "lora_A")
)
print("named", named)
print("adapted", adapted)
assert len(named) == 6 and adapted and not set(named).intersection(name.rstrip(".") for name in adapted)
PYTHON
