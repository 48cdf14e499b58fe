#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0, Python 3.11.
#
# With LoraConfig(target_parameters=...) each forward pass puts a parametrization on the layer and takes it away at its
# end. Where two threads call a model at once, as in a web server, one of them may find the adapter added twice or not
# at all: the logits are others, with no error, or an error that varies. Nothing in the documentation says so; adapters on
# layers (target_modules) have no such limit.
#
# Seen: layers []
#       parameters ['other logits'], and at times AttributeError: property of 'ParametrizedMixtralExperts' object has no
#       deleter
# Expected: the answers of one call after the other, or a word about it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
from concurrent.futures import ThreadPoolExecutor

import torch
from peft import LoraConfig, get_peft_model
from transformers import MixtralConfig, MixtralForSequenceClassification

torch.manual_seed(0)
config = MixtralConfig(
    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, num_local_experts=4, pad_token_id=0,
)  # fmt: skip
ids = torch.arange(1, 21)[None]


def trouble(**targets: object) -> list[str]:
    """What 200 calls from four threads end with."""
    model = MixtralForSequenceClassification(config)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, **targets)).eval()
    with torch.no_grad():
        expected = model(input_ids=ids).logits

    def call(_: int) -> str:
        try:
            with torch.no_grad():
                return "" if torch.equal(model(input_ids=ids).logits, expected) else "other logits"
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(4) as pool:
        return sorted({found for found in pool.map(call, range(200)) if found})


print("layers", trouble(target_modules=["q_proj", "v_proj"]))
print("parameters", found := trouble(target_modules=[], target_parameters=["experts.down_proj"]))
assert found, "calls at once give the answers of calls one after the other now"
PYTHON
