"""The PostgreSQL database of `peft-flow up --database`: what its address says, and a schema in it for each program.

Prefect, MLflow and Optuna, which keeps the trials of sweeps, all have a table `alembic_version`, so that none may see
that of another. User and password go by environment variables, which nothing lists and nothing keeps.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tasks.base.records import Record
from tasks.base.trouble import first_line
from tasks.settings.fields import InputError
from tasks.settings.secrets import without_login

if TYPE_CHECKING:
    from sqlalchemy import URL

PREFECT_SCHEMA, MLFLOW_SCHEMA, SWEEPS_SCHEMA = "peft_flow_prefect", "peft_flow_mlflow", "peft_flow_sweeps"
SCHEMAS = (PREFECT_SCHEMA, MLFLOW_SCHEMA, SWEEPS_SCHEMA)

VARIABLES = {
    "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY",
}  # fmt: skip
"""What may stand after the `?` of an address, and the environment variable by which both drivers know it."""

CONNECT_SECONDS = 10


class Database(Record):
    host: str
    """With its port, where the address names one."""
    name: str
    environment: dict[str, str]
    """User, password and encryption, as PostgreSQL's own environment variables."""
    trigrams: str = PREFECT_SCHEMA
    """Schema of the extension that Prefect needs for its searches; see `prepare`."""

    @property
    def address(self) -> str:
        """With neither user nor password."""
        return f"postgresql://{self.host}/{self.name}"

    @property
    def studies(self) -> str | None:
        """Address for the trials of sweeps, on every machine: user and password are in its PGUSER and PGPASSWORD. None
        where other machines would look for the database on themselves."""
        if re.match(r"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?$", self.host):
            return None
        return f"{self.address}?options=-csearch_path%3D{SWEEPS_SCHEMA}"

    def for_prefect(self) -> dict[str, str]:
        """Environment of Prefect's server."""
        schemas = ",".join(dict.fromkeys((PREFECT_SCHEMA, self.trigrams)))
        return {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.address.replace("://", "+asyncpg://"),
            "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_SEARCH_PATH": schemas,
        }

    def for_mlflow(self) -> dict[str, str]:
        """Environment of MLflow's server."""
        return {"MLFLOW_BACKEND_STORE_URI": self.address, "PGOPTIONS": f"-c search_path={MLFLOW_SCHEMA}"}


def read_database(text: str) -> Database:
    """InputError for what is no address of a PostgreSQL database."""
    url = parsed(text)
    if url is None or url.drivername not in ("postgresql", "postgres") or not (url.host and url.database):
        raise InputError(
            f"--database: give an address like postgresql://USER@HOST/NAME, not {without_login(text)!r:.80}"
        )
    if not re.fullmatch(r"[\w.-]+", url.database):  # drivers differ in what they make of other letters
        raise InputError(f"--database: call the database by letters, digits, _, . and -, not {url.database!r:.80}")
    if unknown := sorted(url.query.keys() - VARIABLES):
        raise InputError(f"--database: {unknown[0]!r:.80} cannot stand in the address; {', '.join(VARIABLES)} can")
    check_driver()
    host = f"[{url.host}]" if ":" in url.host else url.host
    given = {"PGUSER": url.username, "PGPASSWORD": url.password}
    given |= {VARIABLES[name]: str(value) for name, value in url.query.items()}
    return Database(
        host=f"{host}:{url.port}" if url.port else host,
        name=url.database,
        environment={name: value for name, value in given.items() if value},
    )


def check_driver() -> None:
    if not find_spec("psycopg2"):
        raise InputError("--database: PostgreSQL needs one more package: pip install 'peft-flow[postgresql]'")


def hide_password(asked: str, database: Database) -> None:
    """Where the address was given with a password, begin this command anew with the password in the environment: what
    stands on a command line, every user of the machine can read."""
    if "PGPASSWORD" in database.environment and any(asked in word for word in sys.orig_argv):
        words = (word.replace(asked, database.address) for word in sys.orig_argv[1:])
        os.execve(sys.executable, (sys.executable, *words), os.environ | database.environment)


def parsed(text: str) -> "URL | None":
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        return None


def prepare(database: Database) -> Database:
    """The database, made with its schemas where they are missing.

    InputError where the server does not let this user in, whom the environment names, or where something is missing
    that this user may not make: then with the SQL for whoever may.
    """
    make_database(database)
    with connected(database.address) as connection:
        there = {name for (name,) in rows(connection, "SELECT nspname FROM pg_namespace")}
        for name in SCHEMAS:
            if name not in there:
                make(connection, f"CREATE SCHEMA {name}", " AUTHORIZATION ")
        found = rows(connection, TRIGRAMS)
        if not found:
            make(connection, f"CREATE EXTENSION pg_trgm SCHEMA {PREFECT_SCHEMA}")
        elif found[0][0] != PREFECT_SCHEMA:  # where another program's table of this name may be
            table = f"{PREFECT_SCHEMA}.alembic_version (version_num varchar(32) PRIMARY KEY)"
            make(connection, f"CREATE TABLE IF NOT EXISTS {table}")
    return database.model_copy(update={"trigrams": found[0][0]}) if found else database


TRIGRAMS = "SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'pg_trgm'"


def make_database(database: Database) -> None:
    """The database itself, where it is missing, from within the one that every PostgreSQL server has."""
    from psycopg2.extensions import quote_ident

    try:
        with connected(database.address):
            return
    except InputError as reason:
        with connected(f"postgresql://{database.host}/postgres", reason) as connection:
            if rows(connection, "SELECT 1 FROM pg_database WHERE datname = %s", database.name):
                raise
            make(connection, f"CREATE DATABASE {quote_ident(database.name, connection)}", " OWNER ")


@contextmanager
def connected(address: str, reason: InputError | None = None) -> Iterator[Any]:
    """A connection to the database; InputError where there is none, which is `reason` where that is known already."""
    import psycopg2

    try:
        connection = psycopg2.connect(address, connect_timeout=CONNECT_SECONDS)
    except psycopg2.OperationalError as error:
        raise reason or InputError(f"--database: {first_line(error)}") from None
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()


def rows(connection: Any, question: str, *values: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(question, values or None)
        return list(cursor.fetchall()) if cursor.description else []


def make(connection: Any, command: str, for_whom: str = "") -> None:
    """Do what the SQL says, or have somebody do it who may: InputError; `for_whom`, in SQL, goes before the user."""
    import psycopg2
    from psycopg2.extensions import quote_ident

    try:
        rows(connection, command)
    except psycopg2.Error as error:
        user = connection.info.user
        whole = f"{command}{for_whom}{quote_ident(user, connection)}" if for_whom else command
        where = f" in {connection.info.dbname}" if "DATABASE" not in command else ""
        raise InputError(
            f"--database: {first_line(error)}; have somebody who may give this command{where}: {whole};"
        ) from None


def forget_silence(database: Database, automation: str) -> None:
    """As deployments.forget_silence does in a SQLite file."""
    table = f"{PREFECT_SCHEMA}.automation"
    with connected(database.address) as connection:
        if rows(connection, f"SELECT to_regclass('{table}_bucket')")[0][0]:
            chosen = f"SELECT id FROM {table} WHERE name = %s"
            rows(connection, f"DELETE FROM {table}_bucket WHERE automation_id IN ({chosen})", automation)


def changes_of_prefect(database: Database) -> list[str]:
    """Ids of the changes that Prefect has made to its tables; none where it has none yet."""
    table = f"{PREFECT_SCHEMA}.alembic_version"
    with connected(database.address) as connection:
        if not rows(connection, f"SELECT to_regclass('{table}')")[0][0]:
            return []
        return [change for (change,) in rows(connection, f"SELECT version_num FROM {table}")]
