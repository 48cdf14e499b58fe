import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.servers import database as databases
from tasks.servers.database import Database, prepare, read_database
from tasks.servers.up import Options, make_programs
from tasks.settings.fields import InputError
from tests.conftest import free_port
from tests.machines import Database as Server
from tests.machines import postgresql


@pytest.mark.parametrize(
    ("given", "address", "environment"),
    [
        ("postgresql://h/n", "postgresql://h/n", {}),
        ("postgres://u@h:5433/n", "postgresql://h:5433/n", {"PGUSER": "u"}),
        ("postgresql://u:p%40ss@h/n", "postgresql://h/n", {"PGUSER": "u", "PGPASSWORD": "p@ss"}),
        ("postgresql://u@[::1]:5433/n", "postgresql://[::1]:5433/n", {"PGUSER": "u"}),
        ("postgresql://u@h/n?sslmode=require", "postgresql://h/n", {"PGUSER": "u", "PGSSLMODE": "require"}),
    ],
)
def test_user_and_password_of_an_address_go_into_the_environment(
    given: str, address: str, environment: dict[str, str]
) -> None:
    database = read_database(given)
    assert (database.address, database.environment) == (address, environment)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("nonsense", "give an address like postgresql://USER@HOST/NAME, not 'nonsense'"),
        ("mysql://u:secret@h/n", "not 'mysql://h/n'"),
        ("postgresql://u:secret@h", "not 'postgresql://h'"),
        ("postgresql:///n", "give an address like"),
        ("postgresql://h/a%20b", "call the database by letters"),
        ("postgresql://u:secret@h:port/n", "give an address like"),
        ("postgresql://h/n?options=-csearch_path=x", "'options' cannot stand in the address; sslmode"),
    ],
)
def test_what_is_no_address_of_postgresql_is_refused_without_its_password(given: str, says: str) -> None:
    with pytest.raises(InputError, match="--database: ") as refused:
        read_database(given)
    assert says in str(refused.value) and "secret" not in str(refused.value)


def test_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'peft-flow\[postgresql\]'"):
        read_database("postgresql://h/n")


def test_server_that_does_not_answer_is_refused_in_a_line() -> None:
    with pytest.raises(InputError, match=r"--database: connection to server at .* failed: Connection refused"):
        prepare(read_database(f"postgresql://u@127.0.0.1:{free_port()}/n"))


def test_each_program_has_a_schema_of_its_own_and_no_command_line_shows_user_or_password(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MLFLOW_UI_URL": "http://h:5000", "MLFLOW_TRACKING_URI": "http://h:5000"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "a-good-password")
    Path("mlruns").mkdir()
    database = read_database("postgresql://somebody:their-password@h/n")
    programs = list(make_programs(Options("127.0.0.1", 4200, 5000, database)))
    paths = [
        program.environment.get("PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_SEARCH_PATH")
        or program.environment["PGOPTIONS"].removeprefix("-c search_path=")
        for program in programs
    ]
    assert len({*paths, (database.studies or "").rpartition("%3D")[2]}) == 3
    told = [" ".join(program.command) for program in programs]
    told += [value for program in programs for name, value in program.environment.items() if "_URL" in name]
    told += [value for program in programs for name, value in program.environment.items() if "_URI" in name]
    told += [Path("mlruns/auth.ini").read_text(), str(database.studies)]
    assert not [text for text in told if "their-password" in text or "somebody" in text]
    assert "database_uri = postgresql://h/n\n" in Path("mlruns/auth.ini").read_text()


def test_without_a_database_both_servers_use_files_of_this_machine(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MLFLOW_UI_URL": "http://h:5000", "MLFLOW_TRACKING_URI": "http://h:5000"}.items():
        monkeypatch.setenv(name, value)
    prefect, mlflow = make_programs(Options("127.0.0.1", 4200, 5000))
    assert mlflow.environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{workplace}/mlruns/mlflow.db"
    assert not [name for name in prefect.environment if name.startswith("PREFECT_SERVER_DATABASE_")]


@pytest.mark.parametrize("host", ["localhost", "localhost:5433", "127.0.0.1", "[::1]:5433"])
def test_database_that_other_machines_would_look_for_on_themselves_is_not_for_their_trials(host: str) -> None:
    assert read_database(f"postgresql://{host}/n").studies is None
    assert read_database("postgresql://localhost.example/n").studies is not None


@pytest.mark.parametrize("option", ["--database={}", "{}"])
def test_password_on_the_command_line_is_hidden_from_other_users(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: begun.append(arguments))
    asked = "postgresql://u:their-password@h/n"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "flows.cli", "up", option.format(asked)])
    databases.hide_password(asked, read_database(asked))
    ((program, words, environment),) = begun
    assert words == (program, "-m", "flows.cli", "up", option.format("postgresql://h/n"))
    assert program == sys.executable
    assert (environment["PGUSER"], environment["PGPASSWORD"]) == ("u", "their-password")
    databases.hide_password("postgresql://h/n", read_database("postgresql://h/n"))
    assert len(begun) == 1


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql() as started:
        order(started, "CREATE ROLE someone LOGIN")
        yield started


def order(server: Server, command: str, name: str = "postgres") -> list[Any]:
    with databases.connected(f"postgresql://postgres@{server.place}/{name}") as connection:
        return databases.rows(connection, command)


def prepared(server: Server, user: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Database:
    database = read_database(f"postgresql://{user}@{server.place}/{name}")
    for variable, value in database.environment.items():
        monkeypatch.setenv(variable, value)
    return prepare(database)


def schemas(server: Server, name: str) -> set[str]:
    return {found for (found,) in order(server, "SELECT nspname FROM pg_namespace", name)}


def test_database_and_schemas_are_made_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        database = prepared(server, "postgres", "new-one", monkeypatch)
        assert database.trigrams == databases.PREFECT_SCHEMA
    assert schemas(server, "new-one") >= set(databases.SCHEMAS)
    assert databases.changes_of_prefect(database) == []
    databases.forget_silence(database, "an automation")  # there is none yet


def test_user_who_may_make_neither_is_told_what_to_have_made(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r'give this command: CREATE DATABASE "missing" OWNER "someone";'):
        prepared(server, "someone", "missing", monkeypatch)
    order(server, "CREATE DATABASE theirs")
    with pytest.raises(
        InputError, match=r'give this command in theirs: CREATE SCHEMA peft_flow_prefect AUTHORIZATION "someone";'
    ):
        prepared(server, "someone", "theirs", monkeypatch)
    assert not schemas(server, "theirs") & set(databases.SCHEMAS)


def test_user_who_owns_the_database_needs_nobody(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    order(server, "CREATE DATABASE owned OWNER someone")
    prepared(server, "someone", "owned", monkeypatch)
    assert schemas(server, "owned") >= set(databases.SCHEMAS)


def test_table_of_another_program_is_not_taken_for_prefects(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what Prefect needs is in the schema `public` already, with somebody's tables."""
    order(server, "CREATE DATABASE shared")
    order(server, "CREATE EXTENSION pg_trgm", "shared")
    order(server, "CREATE TABLE alembic_version AS SELECT 'somebody''s' AS version_num", "shared")
    database = prepared(server, "postgres", "shared", monkeypatch)
    path = database.for_prefect()["PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_SEARCH_PATH"]
    assert path == "peft_flow_prefect,public" and databases.changes_of_prefect(database) == []
    assert order(server, f"SET search_path TO {path}; SELECT version_num FROM alembic_version", "shared") == []


def test_database_of_a_newer_prefect_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tasks.servers import up

    database = prepared(server, "postgres", "newer", monkeypatch)
    with databases.connected(database.address) as connection:
        databases.rows(
            connection, "CREATE TABLE peft_flow_prefect.alembic_version AS SELECT 'ffffffffffff' AS version_num"
        )
    with pytest.raises(InputError, match=r"postgresql://.*/newer was changed by a newer Prefect .* or give another"):
        up.with_database(Options("127.0.0.1", 4200, 5000, database), tmp_path / "prefect.db")
