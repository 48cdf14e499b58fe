#!/usr/bin/env bash
# datasets 5.2.0 and pyarrow (JSON Lines), Python 3.11.
#
# A JSON Lines file may hold whole numbers of any length, and ids of messages or hashes often have more than 19 digits.
# load_dataset("json") reads a column with one such number as float64, without a warning: every id in the column loses
# its last digits, also those that would have fitted into 64 bits, and different ids become equal.
#
# Seen: float64, 2 different ids of 4
# Expected: an error, or text: 4 different ids of 4.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/hf" venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

from datasets import load_dataset

ids = [9007199254740992, 9007199254740993, 18446744073709551617, 18446744073709551618]
Path("rows.jsonl").write_text("".join(json.dumps({"id": one, "text": "a film"}) + "\n" for one in ids))
rows = load_dataset("json", data_files="rows.jsonl", split="train")
kind, different = rows.features["id"].dtype, len(set(rows["id"][:]))
print(f"{kind}, {different} different ids of {len(ids)}")
assert (kind, different) == ("float64", 2), "long whole numbers are now read otherwise"
PYTHON
