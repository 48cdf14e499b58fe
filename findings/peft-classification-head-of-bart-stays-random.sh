#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0, Python 3.11.
#
# With task_type="SEQ_CLS" peft trains and saves the new head of a classifier beside the adapter, but only where the
# head is called classifier or score, as BERT's is. BART calls it classification_head (so do mBART, PLBART, MVP and T5):
# there it stays at its random start, no matter how long one trains, and is not in the adapter's folder. The adapter
# read back onto the same pretrained model meets another random head and predicts something else. peft gives neither an
# error nor a warning, and transformers says of both heads alike that they are new.
#
# Seen: bert head trained True saved True, reload differs by 0.0   bart head trained False saved False, differs by 0.04
# Expected: the same for both, or a warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BartConfig, BartModel, BertConfig, BertModel

shared = {"vocab_size": 50, "pad_token_id": 1}
layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
width = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
torch.manual_seed(0)
bodies = {"bert": BertModel(BertConfig(**shared, **small)), "bart": BartModel(BartConfig(**shared, **layers, **width))}
heads = {"bert": "classifier", "bart": "classification_head"}
batch = {"input_ids": torch.tensor([[5, 6, 7, 2], [8, 9, 10, 2]]), "labels": torch.tensor([0, 1])}


def pretrained(name: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)


def tried(name: str) -> tuple[bool, bool, float]:
    bodies[name].save_pretrained(name)
    model = get_peft_model(pretrained(name, 1), LoraConfig(task_type="SEQ_CLS"))
    head = [weight for key, weight in model.named_parameters() if heads[name] in key]
    start = [weight.detach().clone() for weight in head]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(5):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = any(not torch.equal(old, new) for old, new in zip(start, head, strict=True))
    model.eval().save_pretrained(f"{name}-adapter")
    saved = any(heads[name] in key for key in load_file(f"{name}-adapter/adapter_model.safetensors"))
    again = PeftModel.from_pretrained(pretrained(name, 2), f"{name}-adapter").eval()
    with torch.no_grad():
        return trained, saved, float((model(**batch).logits - again(**batch).logits).abs().max())


found = {name: tried(name) for name in bodies}
print("trained, saved, reload differs by", found)
assert found["bert"] == (True, True, 0.0)
assert found["bart"][:2] == (False, False) and found["bart"][2] > 0.001, "BART's head is trained or saved now"
PYTHON
