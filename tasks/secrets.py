"""Passwords and tokens: known by their look and by the environment, hidden in what is said, refused in configurations.

A configuration is kept in MLflow, in Prefect and in the adapter's card for everybody to read. Secrets belong into
environment variables (HF_TOKEN, MLFLOW_TRACKING_PASSWORD, PREFECT_API_AUTH_STRING), which nothing keeps.
"""

import os
import re

HIDDEN = "***"

SECRET_VARIABLE = re.compile(r"(TOKEN|PASSWORD|SECRET|KEY|AUTH_STRING)$", re.IGNORECASE)
"""Names of environment variables whose values are secret."""

SHORTEST_VALUE = 6
"""Characters. Shorter values of such variables, `1` or `true`, are switches: hiding them would garble every text."""

SECRET_NAME = re.compile(r"(^|[_.\- ])(token|password|passwd|secret|api_?key|auth_string|credentials?)$", re.IGNORECASE)
"""Names of a tag or an option whose value is secret; `num_virtual_tokens` and `tokenizer` are none."""

SHAPES = re.compile(
    r"(?<=//)[^/\s]+@"  # user and password in an address
    r"|\bhf_[A-Za-z0-9]{20,}"
    r"|\bpn[ub]_[A-Za-z0-9]{20,}"  # Prefect Cloud
    r"|\bgh[opsu]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}"
    r"|\bsk-[\w-]{20,}"  # OpenAI and others
    r"|\bAKIA[0-9A-Z]{16}\b"  # Amazon
    r"|\bxox[abp]-[\w-]{20,}"  # Slack
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+"  # JSON Web Token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""How tokens look that are known by their look."""


def redact(text: str) -> str:
    """`text` without the secrets in it."""
    for value in secret_values():
        text = text.replace(value, HIDDEN)
    return SHAPES.sub(lambda found: HIDDEN + "@" if found[0].endswith("@") else HIDDEN, text)


def holds_secret(text: str) -> bool:
    return bool(SHAPES.search(text)) or any(value in text for value in secret_values())


def names_secret(name: str) -> bool:
    """Whether what stands under this name is a secret, whatever it looks like."""
    return bool(SECRET_NAME.search(name))


def secret_values() -> list[str]:
    """What the environment keeps secret, longest first: one may be part of another."""
    values = {value for name, value in os.environ.items() if SECRET_VARIABLE.search(name)}
    return sorted((value for value in values if len(value) >= SHORTEST_VALUE), key=len, reverse=True)
