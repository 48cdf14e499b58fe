#!/usr/bin/env bash
# prefect 3.9.1 (3.8.8 too), uvicorn 0.54.0, Python 3.11.
#
# Without a server, a flow starts one of its own. Where that ends with exit code 3, Prefect takes another port and starts
# it again, and does not count that time: startup_timeout_seconds never comes. But uvicorn ends with 3 for whatever goes
# wrong at the start: a damaged database, one of a newer Prefect, a full disk. The flow neither begins nor fails.
#
# Seen: exit code 124 (still at it after 90 s, with a limit of 10 s), and a traceback for each of several starts
# Expected: an error after the first, or after 10 s.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check prefect==3.9.1 uvicorn==0.54.0
cd "$folder"
mkdir home
printf 'no database %.0s' {1..100} >home/prefect.db
cat >hello.py <<'PYTHON'
from prefect import flow


@flow
def hello() -> None: ...


hello()
PYTHON
code=0
PREFECT_HOME=$folder/home PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=10 DO_NOT_TRACK=1 \
	timeout 90 venv/bin/python hello.py >log 2>&1 || code=$?
echo "exit code $code, $(grep -c 'Application startup failed' log) starts"
