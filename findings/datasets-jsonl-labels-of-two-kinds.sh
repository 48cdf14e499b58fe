#!/usr/bin/env bash
# datasets 5.2.0, pyarrow 25.0.1 (the "json" builder), Python 3.11.
#
# A jsonl file whose label column holds a number in one row and a word in another is read without an error, and a
# label that is a quoted number changes its kind: the string "1" comes back as the integer 1, in the same class as the
# bare 1 of another row. The column's feature is then Json(decode=True), not a string and not a number.
#
# Seen: Json(decode=True) [1, 1, 'a', 2.5]   for   1, "1", "a", 2.5
# Expected by a reader of the file: an error, or 1 and "1" as two different labels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==25.0.1
cd "$folder"
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

import datasets

datasets.disable_progress_bars()
rows = [{"label": label} for label in (1, "1", "a", 2.5)]
Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
split = datasets.load_dataset("json", data_files="rows.jsonl", split="train")
print(split.features["label"], split["label"][:])
assert str(split.features["label"]) == "Json(decode=True)", "the feature is another one now"
assert split["label"][:] == [1, 1, "a", 2.5], "the labels are read otherwise now"
assert isinstance(split["label"][1], int), "the quoted number stays text now"
PYTHON
