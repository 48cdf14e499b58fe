#!/usr/bin/env bash
# Prefect 3.9.1, Python 3.11.
#
# A task with cache_policy=INPUTS and a set of words among its arguments runs again in every new process, though the
# arguments are equal: the set goes into the cache key in the order in which this process happens to hold it, and Python
# shuffles that anew for each process. The keys of a dict are sorted first, and a list has its order, so both are found
# again. Within one process the set is found too, so a test that calls the task twice passes.
#
# Seen: list: one key, dict: one key, set: 4 keys in 4 processes
# Expected: one key each, for equal arguments.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check prefect==3.9.1
cd "$folder"
PREFECT_HOME="$folder" venv/bin/python - <<'PYTHON'
import json
import os
import subprocess
import sys

words = ["bad", "dull", "fine", "good", "great", "poor"]
inputs = {"list": f"{words}", "dict": "{word: 1 for word in words}", "set": "set(words)"}
code = f"""
import json
from prefect.cache_policies import INPUTS
words = {words}
keys = lambda value: INPUTS.compute_key(task_ctx=None, inputs={{"value": value}}, flow_parameters={{}})
print(json.dumps({{name: [keys(eval(text)), keys(eval(text))] for name, text in {inputs}.items()}}))
"""
found: dict[str, set[str]] = {name: set() for name in inputs}
for seed in "1234":  # what Python draws at random where PYTHONHASHSEED is not set
    environment = os.environ | {"PYTHONHASHSEED": seed}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    for name, (first, second) in json.loads(answer.stdout.splitlines()[-1]).items():
        assert first == second, "two equal arguments have two keys within one process"
        found[name].add(first)
count = {name: len(keys) for name, keys in found.items()}
print(count)
assert count["list"] == count["dict"] == 1
assert count["set"] > 1, "a set has one key in all processes now"
PYTHON
