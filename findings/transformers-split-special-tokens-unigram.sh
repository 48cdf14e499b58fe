#!/usr/bin/env bash
# transformers 5.24.0, tokenizers 0.23.3 (fast tokenizer over a Unigram model, as T5, XLM-R and ALBERT have), Python 3.11.
#
# split_special_tokens=True asks that the text of a special token inside a user's text be read as ordinary text. A
# fast tokenizer over a BPE model does that. Over a Unigram model whose vocabulary holds the special token, as that of
# every SentencePiece model does, it has no effect: "</s>" in a text still becomes the id of the end-of-text token, and
# no warning says so.
#
# Seen: bpe True   unigram False   (whether the id of </s> is absent from "a film </s>")
# Expected: True for both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

letters = sorted(set("a film</s>"))


def stays_text(tokenizer: Tokenizer) -> bool:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    ids = fast("a film </s>", split_special_tokens=True, add_special_tokens=False)["input_ids"]
    assert fast("a film </s>", add_special_tokens=False)["input_ids"][-1] == fast.eos_token_id
    return fast.eos_token_id not in ids


bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(["<unk>", "</s>", *letters])}, [], unk_token="<unk>"))
scores = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in letters)]
unigram = Tokenizer(models.Unigram(scores, unk_id=0))
found = stays_text(bpe), stays_text(unigram)
print("bpe", found[0], "unigram", found[1])
assert found == (True, False), "split_special_tokens now does the same for both"
PYTHON
