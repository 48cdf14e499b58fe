#!/usr/bin/env bash
# Prefect 3.9.1, Python 3.11.
#
# A program that sends its log to a file with logging.basicConfig(filename=..., filemode="w") and loads Prefect later
# (from prefect import flow), as one does to keep a command's start quick, gets an empty file. Loading Prefect sets up
# logging anew, which closes every handler that exists. The closed handler stays on the root logger, so all looks well,
# but a file opened with "w" is not opened again, and each later line is dropped without an error. With filemode="a" the
# same program loses nothing. The other order is no way out: Prefect puts a handler of its own on the root logger, which
# makes basicConfig do nothing, so there is no file at all.
#
# Seen: w []   a ['line']   w, Prefect first None
# Expected: ['line'] in all three.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check prefect==3.9.1
cd "$folder"
PREFECT_HOME="$folder" venv/bin/python - <<'PYTHON'
import subprocess
import sys
from pathlib import Path


load = "from prefect import flow"


def kept(mode: str, first: bool) -> list[str] | None:
    early, late = (load, "") if first else ("", load)
    setup = f"logging.basicConfig(filename='run.log', filemode='{mode}', format='%(message)s')"
    lines = ["import logging", early, setup, late, "logging.warning('line')"]
    Path("run.log").unlink(missing_ok=True)
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
    return Path("run.log").read_text().splitlines() if Path("run.log").exists() else None


found = {"w": kept("w", False), "a": kept("a", False), "w, Prefect first": kept("w", True)}
print(found)
assert found == {"w": [], "a": ["line"], "w, Prefect first": None}, "Prefect leaves the log file alone now"
PYTHON
