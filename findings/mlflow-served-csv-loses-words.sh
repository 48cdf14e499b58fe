#!/usr/bin/env bash
# MLflow 3.17.2, pandas 3.1.1 (its scoring server's text/csv), Python 3.11.
#
# A row that is sent to /invocations as text/csv and whose text is the word NA, null, None or nan reaches the model
# as a missing value, although the signature says that the column is a required string; the same row sent as
# dataframe_records reaches it as the word. The CSV is parsed by pandas' defaults before the signature is looked at,
# and no setting of the server or the model changes that.
#
# Seen: csv [True, True, True, True]   records [False, False, False, False]
# Expected by a sender: the same rows give the same answers in both formats, as the schema is string in both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mlflow==3.17.2 pandas==3.1.1
cd "$folder"
MLFLOW_DISABLE_TELEMETRY=true venv/bin/python - <<'PYTHON'
import io
import json

from mlflow.pyfunc.scoring_server import infer_and_parse_data, parse_csv_input
from mlflow.types.schema import ColSpec, Schema

words = ["NA", "null", "None", "nan"]
schema = Schema([ColSpec("string", "text")])
csv = parse_csv_input(io.StringIO("text\n" + "".join(f"{word}\n" for word in words)), schema)
records = infer_and_parse_data(json.loads(json.dumps({"dataframe_records": [{"text": word} for word in words]})), schema)
lost = [list(frame["text"].isna()) for frame in (csv, records)]
print("csv", lost[0], "records", lost[1])
assert lost == [[True] * 4, [False] * 4], "words that look like missing values are kept, or lost in both, now"
PYTHON
