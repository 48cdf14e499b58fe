#!/usr/bin/env bash
# transformers 5.24.0, tokenizers as it asks for, Python 3.11.
#
# tokenizer.padding_side = "left" holds for the tokenizer in memory. save_pretrained writes what it was made with, and not
# what it was set to: read back, it pads on the right again. The same value given to the constructor (or to
# from_pretrained) is saved. Scores of a decoder that were computed with one side are then served with the other.
#
# Seen: set left, saved as None, read back right; given left, saved as left, read back left
# Expected: the tokenizer that was saved.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python -W ignore - <<'PYTHON'
import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

words = WordLevel({"<pad>": 0, "<unk>": 1, "good": 2}, unk_token="<unk>")


def back(folder, tokenizer):
    tokenizer.save_pretrained(folder)
    saved = json.loads(Path(folder, "tokenizer_config.json").read_text()).get("padding_side")
    return saved, AutoTokenizer.from_pretrained(folder).padding_side


def made(**more):
    tokenizer = Tokenizer(words)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", **more)


was_set = made()
was_set.padding_side = "left"
seen = back("set", was_set), back("given", made(padding_side="left"))
print("set left: saved as {}, read back {}; given left: saved as {}, read back {}".format(*seen[0], *seen[1]))
assert seen == ((None, "right"), ("left", "left")), "what is set is saved now"
PYTHON
