#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0, Python 3.11.
#
# T5GemmaForSequenceClassification gives a text other logits when it is alone, or the longest of its batch, than beside
# a longer one. Its decoder gets the text shifted one place to the right, without the last token, and the logits are
# read one place after the last token, where the decoder has that token as its input. The longest text has no such
# place: there they are read one place early. One token of padding changes the answer; a second and a third change
# nothing more.
#
# Seen: alone against one token of padding: 0.0053; one against three: 1.9e-08
# Expected: the same logits with and without padding, as for other classifiers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch
from transformers import T5GemmaConfig, T5GemmaForSequenceClassification, T5GemmaModuleConfig

torch.manual_seed(0)
size = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
encoder, decoder = (T5GemmaModuleConfig(**size, **heads, pad_token_id=0, bos_token_id=1) for _ in range(2))
dropout = {"classifier_dropout_rate": 0.0, "dropout_rate": 0.0, "attention_dropout": 0.0}
config = T5GemmaConfig(encoder=encoder, decoder=decoder, num_labels=2, pad_token_id=0, **dropout)
model = T5GemmaForSequenceClassification(config).eval()


@torch.no_grad()
def logits(padding: int) -> torch.Tensor:
    ids = torch.tensor([[5, 17, 23, 42, 8] + [0] * padding])
    return model(input_ids=ids, attention_mask=(ids != 0).long()).logits[0]


alone, one, three = (logits(padding) for padding in (0, 1, 3))
print(f"alone against one token of padding: {(alone - one).abs().max():.4f}")
print(f"one against three tokens of padding: {(one - three).abs().max():.1e}")
assert (one - three).abs().max() < 1e-6, "padding matters in another way"
assert (alone - one).abs().max() > 1e-3, "a text has the same logits with and without padding now"
PYTHON
