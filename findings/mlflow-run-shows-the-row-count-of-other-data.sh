#!/usr/bin/env bash
# MLflow 3.17.2 with datasets 5.2.0, Python 3.11.
#
# A data set that has grown from 10,000 rows to 30,000 and keeps its name is, to mlflow.data.from_huggingface, the one
# it was: the digest is made of the first 10,000 rows, and not even of how many there are. The second run's log_input
# then links the data set of the first run, profile and all, so the run that was trained on 30,000 rows shows 10,000
# for good, though the object that was logged says 30,000. The same data as a pandas frame get a digest of their own.
#
# Seen: digests equal True, run of 10000 rows shows 10000, run of 30000 rows shows 10000   with pandas: equal False
# Expected: each run shows the rows that were logged with it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mlflow==3.17.2 datasets==5.2.0
cd "$folder"
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 MLFLOW_DISABLE_TELEMETRY=true venv/bin/python - <<'PYTHON'
import json

import datasets
import mlflow

mlflow.set_tracking_uri("sqlite:///runs.db")


def reviews(rows: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [f"review {number}" for number in range(rows)]})


def shown(data: mlflow.data.dataset.Dataset) -> int:
    with mlflow.start_run() as run:
        mlflow.log_input(data, context="training")
    (entry,) = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    return json.loads(entry.dataset.profile)["num_rows"]


small, grown = (mlflow.data.from_huggingface(reviews(rows), name="reviews") for rows in (10_000, 30_000))
frames = [mlflow.data.from_pandas(reviews(rows).to_pandas(), name="reviews").digest for rows in (10_000, 30_000)]
logged = [data.profile["num_rows"] for data in (small, grown)]
seen = [shown(data) for data in (small, grown)]
print("digests equal", small.digest == grown.digest, "logged", logged, "shown", seen, "pandas", frames[0] == frames[1])
assert logged == [10_000, 30_000]
assert frames[0] != frames[1], "pandas frames of other lengths have one digest now"
assert small.digest == grown.digest and seen == [10_000, 10_000], "the run shows its own rows now"
PYTHON
