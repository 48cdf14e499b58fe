"""Who may come in: the addresses under which the servers of `peft-flow up` answer, and their password."""

import base64
import ipaddress
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tasks.settings.fields import InputError
from tasks.settings.fixed import STORE

if TYPE_CHECKING:
    from tasks.servers.up import Options


def refuse_open_doors(options: "Options") -> None:
    """InputError where others can reach the servers and nothing asks them who they are."""
    missing = [name for name in CREDENTIALS if not os.environ.get(name)]
    if missing and not is_at_home(options):
        raise InputError(
            f"--host {options.host} lets other machines in: set {' and '.join(missing)} first, see docs/operations.md"
        )
    if ":" not in os.environ.get(CREDENTIALS[0], ":"):
        raise InputError(f"{CREDENTIALS[0]} must be USER:PASSWORD")
    if os.environ.get(CREDENTIALS[1]) and 0 < len(os.environ.get(CREDENTIALS[2], "")) < 12:
        raise InputError(f"{CREDENTIALS[2]} must have at least 12 characters: MLflow takes no shorter one")


def is_at_home(options: "Options") -> bool:
    """Whether only this machine can reach the servers."""
    try:
        return options.host == "localhost" or ipaddress.ip_address(options.host).is_loopback
    except ValueError:
        raise InputError(f"--host: {options.host!r} is not an IP address of this machine; try 127.0.0.1") from None


CREDENTIALS = ("PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""Environment variables of Prefect and MLflow themselves; clients read the last two under the same names."""


def clients_environment(options: "Options") -> dict[str, str]:
    """What makes every run started from here, by this process or by the worker, use these two servers."""
    environment = {
        "PREFECT_API_URL": f"{options.prefect}/api",
        "PREFECT_UI_URL": options.page("PREFECT_UI_URL", options.prefect_port),
        "MLFLOW_TRACKING_URI": options.mlflow,
        "MLFLOW_UI_URL": options.page("MLFLOW_UI_URL", options.mlflow_port),
        "PWD": str(Path.cwd()),  # prefect.yaml has runs start there; only a shell keeps it true
    }
    if password := os.environ.get(CREDENTIALS[0]):
        environment["PREFECT_API_AUTH_STRING"] = password
    return environment


def patterns(start: str, letters: str, shortest: int, longest: int) -> list[str]:
    """For MLflow: `start` and so many letters of `letters`, which with a plain * could be any name (10.evil.com)."""
    one = f"[{letters}*]"  # MLflow takes only what holds a * for a pattern
    return [start + one * count for count in range(shortest, longest + 1)]


THIS_MACHINE = [
    pattern
    for name in ("localhost", "127.0.0.1", "[[]::1]")
    for pattern in (name.replace("[[]", "["), *patterns(f"{name}:", "0-9", 1, 5))
]
"""At any port: a tunnel has one of its own."""

PRIVATE = [
    *patterns("10.", "0-9.:", len("0.0.0"), len("255.255.255:65535")),
    *(
        pattern
        for start in ("192.168.", "172.1[6-9].", "172.2[0-9].", "172.3[01].")
        for pattern in patterns(start, "0-9.:", len("0.0"), len("255.255:65535"))
    ),
]

PORTS = {"http": 80, "https": 443}
"""That browsers leave out."""


def host_of(page: str) -> str:
    """The name in an address as browsers send it; ValueError where there is none."""
    name = (urlsplit(page).hostname or "").encode("idna").decode()
    if not name:
        raise ValueError(page)
    return f"[{name}]" if ":" in name else name


def names_of(page: str) -> set[str]:
    """As what browsers and proxies ask for the server of this address: with its port and without, and as it stands."""
    parts, host = urlsplit(page), host_of(page)
    return {parts.netloc.rpartition("@")[2], host, f"{host}:{parts.port or PORTS[parts.scheme]}"}


def origin_of(page: str) -> str:
    """The address as browsers write it into the header Origin."""
    parts = urlsplit(page)
    port = f":{parts.port}" if parts.port not in (None, PORTS[parts.scheme]) else ""
    return f"{parts.scheme}://{host_of(page)}{port}"


def doors(options: "Options") -> dict[str, str]:
    """Under which names MLflow lets browsers in: its own page, this machine, and, with an open door, private networks.

    Of itself it takes no name but localhost, and no page but localhost's may change anything, not even search.
    """
    page, private = os.environ["MLFLOW_UI_URL"], [] if is_at_home(options) else PRIVATE
    names = names_of(page) | names_of(options.mlflow)
    return {
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join((*sorted(names), *THIS_MACHINE, *private)),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(
            (origin_of(page), options.mlflow, *(f"http://{name}" for name in private))
        ),
    }


def write_auth_config(database: str | None = None) -> Path:
    """MLflow's settings for logins, whose users are in `database` or in a file; the password is not among them."""
    path = STORE / "auth.ini"
    lines = (
        "[mlflow]",
        "default_permission = READ",
        f"database_uri = {database or f'sqlite:///{STORE.resolve()}/auth.db'}",
        f"admin_username = {os.environ[CREDENTIALS[1]]}",
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
        "grant_default_workspace_access = false",
        "auth_cache_ttl_seconds = 60",  # else every request costs a slow hash
    )
    path.write_text("\n".join(lines).replace("%", "%%") + "\n", encoding="utf-8")  # % alone would name another line
    return path.resolve()


def refuse_other_password(options: "Options") -> None:
    """InputError where MLflow knows the user with another password, from an earlier start."""
    user, password = (os.environ.get(name) for name in CREDENTIALS[1:])
    if not user or not password:
        return
    users = f"the table users in {options.database.address}" if options.database else STORE / "auth.db"
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(
        f"{options.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Authorization": f"Basic {login}"}
    )
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise InputError(
                f"MLflow does not let {CREDENTIALS[1]} in with {CREDENTIALS[2]}: an earlier start stored another "
                f"password; use that one, or remove {users} with all users in it"
            ) from None
        raise
