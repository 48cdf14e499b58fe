"""The database of the store."""

from tasks.base.files import whole
from tasks.settings.fixed import STORE
from tasks.tracking.address import default_store, tracking_uri

DATABASE_BYTES = 1_000_000
"""An empty one has about 600 kB."""


def make_database() -> None:
    """`mlruns/mlflow.db`, whole or not at all: MLflow makes one table after the other, and can never use a database
    whose making was killed or did not fit on the disk."""
    database = STORE / "mlflow.db"
    if tracking_uri() != default_store() or database.exists():
        return
    from filelock import FileLock
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    with FileLock(STORE / ".mlflow.lock"):  # two first runs at once would both create it
        if database.exists():
            return
        for leftover in STORE.glob(".mlflow.db.*"):  # SQLite's own files beside it too
            leftover.unlink()
        with whole(database, DATABASE_BYTES) as staged:
            engine = create_engine(f"sqlite:///{staged}")
            try:
                _initialize_tables(engine)
            finally:
                engine.dispose()
