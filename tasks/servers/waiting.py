"""The command `prefect`, for a server over SQLite in which whoever writes waits for whoever is writing.

Of itself Prefect begins a transaction as a reader. One that reads, and finds on writing that another has written since,
fails at once, however long it may wait, and the browser shows it: a schedule's switch fails while runs are busy.
No setting says otherwise.
"""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prefect.server.database.configurations import AioSqliteConfiguration

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


class WaitingSqlite(AioSqliteConfiguration):
    """SQLite, where each transaction is a writer's from its beginning, which can wait its turn."""

    @asynccontextmanager
    async def begin_transaction(
        self, session: "AsyncSession", with_for_update: bool = False
    ) -> "AsyncGenerator[AsyncSessionTransaction, None]":
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


def main() -> None:
    from prefect.cli import app
    from prefect.server.database.dependencies import set_database_config
    from prefect.server.utilities.database import get_dialect
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    address = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if get_dialect(address).name == "sqlite":
        set_database_config(WaitingSqlite(connection_url=address))
    app()


if __name__ == "__main__":
    del sys.argv[0]  # `python -m tasks.servers.waiting prefect server start`: what stands after it is Prefect's
    main()
