#!/usr/bin/env bash
# Prefect 3.9.1 (3.8.8 too), pydantic 2.14, Python 3.11.
#
# A flow parameter that is described with Annotated[int, Field(description="...")] = 1, which is how pydantic and
# FastAPI recommend it, has no description in the parameter schema, so the run form shows none. The same text given as
# the default, m: int = Field(1, description="..."), is shown; and pydantic itself keeps both. Prefect takes the
# description from the docstring only, and hands pydantic a description of None, which wins over the annotation's.
#
# Seen: annotated None   default 'How many.'   pydantic 'How many.'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check prefect==3.9.1 pydantic==2.14.4
cd "$folder"
PREFECT_HOME="$folder" venv/bin/python - <<'PYTHON'
from typing import Annotated

from prefect.utilities.callables import parameter_schema
from pydantic import Field, create_model


def flow(annotated: Annotated[int, Field(description="How many.")] = 1, default: int = Field(1, description="How many.")):
    """A flow."""


shown = {name: field.get("description") for name, field in parameter_schema(flow).properties.items()}
of_pydantic = create_model("Form", annotated=(Annotated[int, Field(description="How many.")], 1)).model_json_schema()
print(shown, "pydantic", of_pydantic["properties"]["annotated"]["description"])
assert shown == {"annotated": None, "default": "How many."}, "Prefect shows both descriptions, or none, now"
assert of_pydantic["properties"]["annotated"]["description"] == "How many."
PYTHON
