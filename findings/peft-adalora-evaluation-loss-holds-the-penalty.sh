#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0, Python 3.11.
#
# The loss of an AdaLoRA model is not the loss of its predictions: peft adds a penalty that keeps the adapter's matrices
# orthogonal, and does so in evaluation too, with model.eval() and without gradients. An untouched adapter, whose
# logits are bit for bit those of the base model, so shows an eval_loss of 2.4 where LoRA and the base show 0.70. So
# eval_loss cannot be compared between methods, and choosing the best checkpoint by it chooses by the penalty as well.
#
# Seen: lora loss 0.697, cross entropy 0.697   adalora loss 2.408, cross entropy 0.697
# Expected: in evaluation the cross entropy for both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

size = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
batch = {"input_ids": torch.tensor([[2, 5, 6, 3], [4, 5, 7, 8]]), "labels": torch.tensor([0, 1])}


def base() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**size)).eval()


def losses(config: PeftConfig) -> tuple[float, float]:
    torch.manual_seed(1)
    model = get_peft_model(base(), config).eval()
    with torch.no_grad():
        output, plain = model(**batch), base()(**batch)
    assert torch.equal(output.logits, plain.logits)
    return output.loss.item(), torch.nn.functional.cross_entropy(output.logits, batch["labels"]).item()


shared = {"task_type": "SEQ_CLS", "target_modules": ["query"]}
lora, adalora = losses(LoraConfig(**shared)), losses(AdaLoraConfig(total_step=100, **shared))
print("loss, cross entropy: lora", lora, "adalora", adalora)
assert abs(lora[0] - lora[1]) < 1e-6
assert adalora[0] - adalora[1] > 1, "AdaLoRA's loss in evaluation is that of its predictions now"
PYTHON
