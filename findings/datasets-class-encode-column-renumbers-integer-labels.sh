#!/usr/bin/env bash
# datasets 5.2.0, pyarrow 25.0.1, Python 3.11.
#
# Dataset.class_encode_column on a column of integers that are class ids already, 0 to 11, gives other ids: the integers
# are turned into text and sorted as text, so "10" and "11" come before "2". Label 2 becomes 4, label 10 becomes 2. Up
# to ten classes nothing moves, so the call that was harmless with ten classes renumbers ten of twelve; a model whose
# head or id2label counts in the old order is then scored against the wrong classes. No warning says so.
#
# Seen: 10 classes [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]   12 classes [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]
# Expected: integers in the order of integers, as both lists would then count up.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==25.0.1
cd "$folder"
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import datasets

datasets.disable_progress_bars()


def encoded(classes: int) -> list[int]:
    rows = datasets.Dataset.from_dict({"label": list(range(classes))}).class_encode_column("label")
    print(classes, "classes", rows["label"][:], rows.features["label"].names)
    return rows["label"][:]


assert encoded(10) == list(range(10)), "even ten classes are renumbered now"
assert encoded(12) == [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3], "integer labels keep their numbers now"
PYTHON
