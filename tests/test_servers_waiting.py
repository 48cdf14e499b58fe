"""Two writers at once in Prefect's database."""

import asyncio
from pathlib import Path

import pytest
import sqlalchemy
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from tasks.servers.waiting import WaitingSqlite


async def switched_while_busy(config: AioSqliteConfiguration) -> int:
    """As the browser switches a schedule: read, then written, while another has written in between."""
    engine = await config.engine()
    async with engine.begin() as connection:
        await connection.execute(sqlalchemy.text("CREATE TABLE schedule (active INTEGER)"))
        await connection.execute(sqlalchemy.text("INSERT INTO schedule VALUES (0)"))
    begun = asyncio.Event()

    async def other() -> None:
        async with AsyncSession(engine) as session:
            await begun.wait()
            async with config.begin_transaction(session):
                await session.execute(sqlalchemy.text("UPDATE schedule SET active = active + 10"))

    async def switch() -> None:
        async with AsyncSession(engine) as session, config.begin_transaction(session):
            await session.execute(sqlalchemy.text("SELECT active FROM schedule"))
            begun.set()
            await asyncio.wait([writer], timeout=0.5)  # it has written, or waits for its turn
            await session.execute(sqlalchemy.text("UPDATE schedule SET active = active + 1"))

    writer = asyncio.create_task(other())
    try:
        await switch()
    finally:
        await writer
    async with engine.connect() as connection:
        found = (await connection.execute(sqlalchemy.text("SELECT active FROM schedule"))).scalar_one()
    await engine.dispose()
    return int(found)


def test_writer_waits_for_the_other_where_prefect_of_itself_fails(tmp_path: Path) -> None:
    with pytest.raises(OperationalError, match="database is locked"):
        asyncio.run(switched_while_busy(AioSqliteConfiguration(connection_url=f"sqlite+aiosqlite:///{tmp_path}/a.db")))
    config = WaitingSqlite(connection_url=f"sqlite+aiosqlite:///{tmp_path}/b.db")
    assert asyncio.run(switched_while_busy(config)) == 11


async def order_of_writers(config: AioSqliteConfiguration, count: int) -> list[int]:
    """Numbers of writers that come one after another while the first is at it, in the order in which they write."""
    engine = await config.engine()
    async with engine.begin() as connection:
        await connection.execute(sqlalchemy.text("CREATE TABLE writes (number INTEGER)"))
    at_it, others_wait = asyncio.Event(), asyncio.Event()

    async def write(number: int) -> None:
        async with AsyncSession(engine) as session, config.begin_transaction(session):
            await session.execute(sqlalchemy.text(f"INSERT INTO writes VALUES ({number})"))
            at_it.set()
            await others_wait.wait()

    first = asyncio.create_task(write(0))
    await at_it.wait()
    others = [asyncio.create_task(write(number)) for number in range(1, count)]
    await asyncio.sleep(0.2)  # each has asked, and none was let in
    others_wait.set()
    await asyncio.gather(first, *others)
    async with engine.connect() as connection:
        found = list((await connection.execute(sqlalchemy.text("SELECT number FROM writes ORDER BY rowid"))).scalars())
    await engine.dispose()
    return found


def test_writers_go_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    config = WaitingSqlite(connection_url=f"sqlite+aiosqlite:///{tmp_path}/a.db")
    assert asyncio.run(order_of_writers(config, 20)) == list(range(20))


async def within_another(config: AioSqliteConfiguration) -> bool:
    engine = await config.engine()
    async with (
        AsyncSession(engine) as outer,
        AsyncSession(engine) as inner,
        config.begin_transaction(outer),
        config.begin_transaction(inner),
    ):
        return True


def test_transaction_within_another_does_not_wait_for_itself(tmp_path: Path) -> None:
    config = WaitingSqlite(connection_url=f"sqlite+aiosqlite:///{tmp_path}/a.db")
    assert asyncio.run(asyncio.wait_for(within_another(config), 20))
