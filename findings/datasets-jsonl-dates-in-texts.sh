#!/usr/bin/env bash
# datasets 5.2.0, pyarrow 25.0.1 (the "json" builder), Python 3.11.
#
# A jsonl column whose values are all strings of the form YYYY-MM-DD is not read as text: it becomes timestamp[s], and
# the rows hold datetime objects with a time of day that the file does not have. The same strings with one other
# word among them stay text. So the kind of a column of labels or texts depends on rows that somebody adds later.
#
# Seen: timestamp[s] datetime.datetime(2026, 1, 2, 0, 0)   and, with one more word,   string 2026-01-02
# Expected by a reader of the file: JSON has no dates, so a string is a string in both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==25.0.1
cd "$folder"
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import datetime
import json
from pathlib import Path

import datasets

datasets.disable_progress_bars()


def read(name: str, days: list[str]) -> tuple[str, object]:
    Path(name).write_text("".join(json.dumps({"day": day}) + "\n" for day in days))
    split = datasets.load_dataset("json", data_files=name, split="train")
    print(split.features["day"].dtype, repr(split[0]["day"]))
    return split.features["day"].dtype, split[0]["day"]


assert read("days.jsonl", ["2026-01-02", "2026-01-03"]) == ("timestamp[s]", datetime.datetime(2026, 1, 2))
assert read("words.jsonl", ["2026-01-02", "unknown"]) == ("string", "2026-01-02")
PYTHON
