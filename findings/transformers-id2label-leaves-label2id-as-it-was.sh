#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0, Python 3.11.
#
# from_pretrained(..., id2label={0: "bad", 1: "good"}) names the classes of a classifier, and its config.json is written
# with these names. The inverse table in the same configuration, label2id, keeps LABEL_0 and LABEL_1, without a warning:
# whoever turns names into numbers by it (as a script that prepares labels for training does) finds no "good".
#
# Seen: {0: 'bad', 1: 'good'} {'LABEL_0': 0, 'LABEL_1': 1}, also in the saved config.json.
# Expected: label2id as the inverse of id2label, or a warning that the two contradict each other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).save_pretrained("plain")
named = AutoModelForSequenceClassification.from_pretrained("plain", id2label={0: "bad", 1: "good"})
named.save_pretrained("named")
print(named.config.id2label, named.config.label2id)
assert named.config.id2label == {0: "bad", 1: "good"}
assert named.config.label2id == {"LABEL_0": 0, "LABEL_1": 1}, "label2id now follows id2label"
written = json.loads(Path("named/config.json").read_text())
assert written["id2label"] == {"0": "bad", "1": "good"}
assert written.get("label2id", {"LABEL_0": 0, "LABEL_1": 1}) == {"LABEL_0": 0, "LABEL_1": 1}, "config.json is right now"
PYTHON
