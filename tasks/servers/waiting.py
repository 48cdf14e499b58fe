"""The command `prefect`, for a server over SQLite in which whoever writes waits for whoever is writing.

Of itself Prefect begins a transaction as a reader. One that reads, and finds on writing that another has written since,
fails at once, however long it may wait, and the browser shows it: a schedule's switch fails while runs are busy.
No setting says otherwise.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from prefect.server.database.configurations import AioSqliteConfiguration

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

_writes = ContextVar("_writes", default=False)
"""Whether this is within a transaction: one begun there must not wait for that to end."""


class WaitingSqlite(AioSqliteConfiguration):
    """SQLite, where each transaction is a writer's from its beginning, and the writers of this process queue up.

    SQLite itself lets whoever waits look again after a tenth of a second, and whoever comes just then goes first: among
    many, one waited for 12 s (benchmarks/clicks.py).
    """

    @asynccontextmanager
    async def begin_transaction(
        self, session: "AsyncSession", with_for_update: bool = False
    ) -> "AsyncGenerator[AsyncSessionTransaction, None]":
        async with AsyncExitStack() as turn:
            if not _writes.get():
                await turn.enter_async_context(_queues.setdefault(asyncio.get_running_loop(), asyncio.Lock()))
            token = _writes.set(True)
            try:
                async with super().begin_transaction(session, with_for_update=True) as transaction:
                    yield transaction
            finally:
                _writes.reset(token)


def let_writers_wait() -> None:
    """From now on this process's Prefect server, where it is over SQLite, works so."""
    from prefect.server.database.dependencies import set_database_config
    from prefect.server.utilities.database import get_dialect
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    address = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if get_dialect(address).name == "sqlite":
        set_database_config(WaitingSqlite(connection_url=address))


def main() -> None:
    from prefect.cli import app

    let_writers_wait()
    app()


if __name__ == "__main__":
    del sys.argv[0]  # `python -m tasks.servers.waiting prefect server start`: what stands after it is Prefect's
    main()
