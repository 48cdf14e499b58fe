#!/usr/bin/env bash
# datasets 5.2.0, pyarrow 25.0.1, Python 3.11.
#
# A column read as ClassLabel(names=["1", "3", "5"]) refuses a label that is not among the names, such as "two". The
# label "2" is not among them either, but it is taken for the position 2 in the list, so the row gets the class of
# grade 5, the other end of the scale. It happens to text only by way of its digits, from a csv file as from
# cast_column, and neither says a word; the wrong row then counts as an ordinary example.
#
# Seen: ['1', '3', '5', '2'] becomes [0, 1, 2, 2], by csv and by cast_column; 'two' is a ValueError
# Expected: a ValueError for "2" as for "two".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==25.0.1
cd "$folder"
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
from pathlib import Path

import datasets

datasets.disable_progress_bars()
grade = datasets.ClassLabel(names=["1", "3", "5"])
labels = ["1", "3", "5", "2"]
Path("grades.csv").write_text("\n".join(["label", *labels]))
features = datasets.Features({"label": grade})
csv = datasets.load_dataset("csv", data_files="grades.csv", features=features, split="train")["label"][:]
cast = datasets.Dataset.from_dict({"label": labels}).cast_column("label", grade)["label"][:]
try:
    datasets.Dataset.from_dict({"label": ["two"]}).cast_column("label", grade)
    refused = False
except ValueError as error:
    refused = True
    print("two:", error)
print("csv", csv, "cast_column", cast)
assert refused, "a word that is no name is taken now"
assert csv == cast == [0, 1, 2, 2], "a number that is no name is refused now, or read otherwise"
PYTHON
