#!/usr/bin/env bash
# MLflow 3.17.2 with its basic authentication, Python 3.11.
#
# Users and permissions may lie in PostgreSQL: database_uri in the file that MLFLOW_AUTH_CONFIG_PATH names. A password
# with @, : or / in it must be percent-encoded in such an address, as everywhere else in MLflow (--backend-store-uri).
# Here the percent sign ends the start of the server: the file is read by ConfigParser with interpolation. It has to be
# written as %%, which is wrong in every other place.
#
# Seen: p%40ss -> InterpolationSyntaxError; p%%40ss -> read as p%40ss
# Expected: the address as SQLAlchemy takes it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'mlflow[auth]==3.17.2'
cd "$folder"
cat >read.py <<'PYTHON'
import sys
from configparser import InterpolationSyntaxError

try:
    from mlflow.server.auth.config import read_auth_config

    print("read", read_auth_config().database_uri)
except InterpolationSyntaxError:
    print("InterpolationSyntaxError")
PYTHON
seen=""
for sign in % %%; do
    cat >auth.ini <<INI
[mlflow]
default_permission = READ
database_uri = sqlite:///users-p${sign}40ss.db
admin_username = admin
admin_password = only-for-this-test
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI
    seen="$seen$(MLFLOW_AUTH_CONFIG_PATH=auth.ini MLFLOW_DISABLE_TELEMETRY=true MLFLOW_FLASK_SERVER_SECRET_KEY=test \
        venv/bin/python -W ignore read.py | tail -1); "
done
echo "$seen"
[ "$seen" = "InterpolationSyntaxError; read sqlite:///users-p%40ss.db; " ] || { echo "it is read as it is now"; exit 1; }
