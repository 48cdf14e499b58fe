#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0, Python 3.11.
#
# from_pretrained switches the tying of weights off for the whole process while it reads a model, and then puts back what
# it found. Of two threads that read a model at once, the second finds the empty function of the first, and puts that
# back last: from then on no model ties its weights. GPT-2 read afterwards, alone, has an output layer that is not its
# word embeddings, and reports it as missing from its files; T5 and BART lack their embeddings. Nothing is raised.
#
# Seen: before: tied True, missing 0   after two threads: tied False, missing 1
# Expected: tied True, missing 0 both times.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
from concurrent.futures import ThreadPoolExecutor

import transformers
from transformers import GPT2Config, GPT2LMHeadModel

transformers.logging.set_verbosity_error()
GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).save_pretrained("model")


def read(_=None):
    model, info = GPT2LMHeadModel.from_pretrained("model", output_loading_info=True)
    return model.lm_head.weight is model.transformer.wte.weight, len(info["missing_keys"])


before, after = read(), None
for _ in range(200):  # until the second thread comes while the first is reading, and ends after it
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, range(2)))
    if (after := read()) != before:
        break
print(f"before: tied {before[0]}, missing {before[1]}   after two threads: tied {after[0]}, missing {after[1]}")
assert before == (True, 0) and after == (False, 1), "models can now be read in several threads"
PYTHON
