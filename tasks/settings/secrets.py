"""Passwords and tokens: known by their look and by the environment, hidden in what is said, refused in configurations.

A configuration is kept in MLflow, in Prefect and in the adapter's card for everybody to read. Secrets belong into
environment variables (HF_TOKEN, MLFLOW_TRACKING_PASSWORD, PREFECT_API_AUTH_STRING), which nothing keeps.
"""

import json
import os
import re
from urllib.parse import quote, unquote

HIDDEN = "***"

SECRET_VARIABLE = re.compile(
    r"(TOKEN|PASSWORD|PASSWD|PASSPHRASE|_PASS|_PWD|SECRET|KEY|AUTH_STRING)$",  # PWD alone is the current folder
    re.IGNORECASE,
)
"""Names of environment variables whose values are secret."""

SHORTEST_VALUE = 6
"""Characters. Shorter values of such variables, `1` or `true`, are switches: hiding them would garble every text."""

SECRET_NAME = re.compile(
    r"(^|[_.\- ])(token|password|passwd|passphrase|secret|(api|secret|access|private)_?key|auth_string|credentials?)$",
    re.IGNORECASE,
)
"""Names of a tag or an option whose value is secret; `num_virtual_tokens` and `tokenizer` are none."""

BASE64, BREAK = "[A-Za-z0-9+/]", r"(\s|\\[rn])"
"""Letters in the body of a key, and what ends its lines, in JSON too."""

KEY = "[A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----"

SHAPES = re.compile(
    r"(?<=//)[^/\s]+@"  # user and password in an address
    r"|(?<=//)[^/:@\s]*:(?!\d+[/?#])[^@\s]{1,200}@"  # a password with a slash in it; 5000/ is a port
    r"|(?P<name>[?&](?i:([\w.%-]*[_.-])?(token|password|passwd|pwd|secret|(api|access)?_?key|sig|signature|auth))=)"
    r"[^\s&#\"']+"
    r"|\bhf_[A-Za-z0-9]{20,}"
    r"|\bpn[ub]_[A-Za-z0-9]{20,}"  # Prefect Cloud
    r"|\bgh[opsu]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}"
    r"|\bsk-[\w-]{20,}"  # OpenAI and others
    r"|\bA[KS]IA[0-9A-Z]{16}\b"  # Amazon
    r"|\bAIza[\w-]{30,}"  # Google
    r"|\bdapi[0-9a-f]{32}"  # Databricks
    r"|\bxox[abp]-[\w-]{20,}"  # Slack
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+"  # JSON Web Token
    # a key whole, to the end where its last line is missing, and of one that is told line by line what can be known
    rf"|-----BEGIN {KEY}(?s:.*?-----END {KEY}|.*)"
    rf"|(?<!{BASE64})({BASE64}{{8,}}{BREAK}+)?({BASE64}{{40,}}={{0,2}}{BREAK}+){{0,100}}+"
    rf"({BASE64}+={{0,2}}{BREAK}+)?-----END {KEY}"
    rf"|\b(MII|b3BlbnNzaC1rZXktdjE){BASE64}{{40,}}={{0,2}}"
)
"""How tokens look that are known by their look."""


def redact(text: str) -> str:
    """`text` without the secrets in it."""
    for value in secret_values():
        text = text.replace(value, HIDDEN)
    return SHAPES.sub(lambda found: f"{found['name'] or ''}{HIDDEN}{'@' if found[0].endswith('@') else ''}", text)


def holds_secret(text: str) -> bool:
    return bool(SHAPES.search(text)) or any(value in text for value in secret_values())


def names_secret(name: str) -> bool:
    """Whether what stands under this name is a secret, whatever it looks like."""
    return bool(SECRET_NAME.search(name))


def secret_values() -> list[str]:
    """What the environment keeps secret, longest first: one may be part of another."""
    values = {value for name, value in os.environ.items() if SECRET_VARIABLE.search(name)}
    values |= {password for value in os.environ.values() for password in passwords(value)}
    values |= {line for value in values for line in value.splitlines() if len(line) >= 2 * SHORTEST_VALUE}
    values |= {form for value in values for form in (quote(value, safe=""), unquote(value), json.dumps(value)[1:-1])}
    return sorted((value for value in values if len(value) >= SHORTEST_VALUE), key=len, reverse=True)


def passwords(address: str) -> list[str]:
    """What may be the password in an address: it can hold an @ itself. Without a password, a user may be a token."""
    login = address.partition("://")[2]
    user, colon, rest = login.partition(":")
    token, at, _ = user.partition("@")
    if at:
        return [token] if len(token) >= 3 * SHORTEST_VALUE else []
    if not colon or re.match(r"\d+[/?#]", rest):  # a port, and an @ in the path
        return []
    return [rest[: place.start()] for place in re.finditer("@", rest)]


def without_login(address: str) -> str:
    """An address without user and password, whatever they hold, and without a query, where passwords stand too."""
    scheme, slashes, rest = address.partition("://") if "://" in address else ("", "", address)
    if scheme in ("sqlite", "file"):
        return address
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    begins, last = 0, rest.rfind("@", 0, query_of(rest, rest.find("@") + 1))
    if "@" in authority or re.search(r":(?!\d*$)[^\]]*$", authority):  # what is not a port is a password
        begins = last + 1
    return f"{scheme}{slashes}{rest[begins : query_of(rest, begins)]}"


def query_of(rest: str, after: int) -> int:
    """Where the query of an address begins: a password may hold a question mark."""
    found = QUERY.search(rest, after)
    return found.start() if found else len(rest)


QUERY = re.compile(r"\?[\w.-]+=")
