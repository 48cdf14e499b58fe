#!/usr/bin/env bash
# transformers 5.24.0, tokenizers 0.23.3, torch 2.13.0, Python 3.11.
#
# A model with one output (num_labels=1) whose config names no problem_type answers a text-classification pipeline with
# a score between 0 and 1, a sigmoid. After one forward pass with labels, in evaluation and without gradients, the same
# pipeline gives the raw number for the same text: to compute a loss writes problem_type="regression" into the model's
# config, and the pipeline reads it there. save_pretrained keeps it, so whether somebody once asked for the loss
# decides what the saved model answers. No weight has changed.
#
# Seen: before score 0.508, problem_type None   after score 0.032, problem_type 'regression'
# Expected: the same score, as the model is the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import math

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, pipeline

words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "film": 3}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
size = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
torch.manual_seed(0)
model = BertForSequenceClassification(BertConfig(num_labels=1, **size)).eval()
classify = pipeline("text-classification", model=model, tokenizer=tokenizer)

(before,) = classify("good film")
was = model.config.problem_type
with torch.no_grad():
    model(**tokenizer("good film", return_tensors="pt"), labels=torch.tensor([1.0]))
(after,) = classify("good film")
print("before", before, was, "after", after, model.config.problem_type)
sigmoid = 1 / (1 + math.exp(-after["score"]))
assert (was, model.config.problem_type) == (None, "regression"), "a loss leaves the config alone now"
assert abs(before["score"] - sigmoid) < 1e-6 < abs(before["score"] - after["score"]), "the scores are the same now"
PYTHON
