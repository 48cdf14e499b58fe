#!/usr/bin/env bash
# datasets 5.2.0 with pandas 3.1.1, Python 3.11.
#
# A column of a csv file that is declared as text (features=...Value("string")) keeps the label 0100 where the separator
# is one letter. Where it is two (sep="::", as in MovieLens), which needs pandas' engine "python", the same column reads
# as 100: datasets asks pandas for dtype object, which that engine takes as leave to guess numbers, and then turns the
# numbers into text. Two different labels, 0100 and 100, become one without a word.
#
# Seen: , ['0100', '0200']   :: ['100', '200']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pandas==3.1.1
cd "$folder"
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
from pathlib import Path

import datasets

text = datasets.Value("string")
read = {}
for sep, engine in ((",", "c"), ("::", "python")):
    file = Path(f"{len(sep)}.csv")
    file.write_text("\n".join(sep.join(row) for row in (("text", "label"), ("fine", "0100"), ("dull", "0200"))))
    features = datasets.Features({"text": text, "label": text})
    rows = datasets.load_dataset("csv", data_files=str(file), sep=sep, engine=engine, features=features, split="train")
    read[sep] = rows["label"][:]
print(read)
assert read == {",": ["0100", "0200"], "::": ["100", "200"]}, "a text column reads the same by any separator now"
PYTHON
