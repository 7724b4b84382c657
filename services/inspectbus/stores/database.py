"""The SQL database by URL. Each service owns its tables, its Alembic migrations and its version table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from inspectbus.errors import StorageFull


def default_url(state_dir: Path) -> str:
    """The SQLite file of a machine that was told no database."""
    return f"sqlite:///{(state_dir / 'inspectbus.db').absolute()}"


def open_database(url: str, owner: str) -> Engine:
    """An engine on the database, with the owner's tables brought up to date.

    `owner` is a service's package: its `migrations` folder holds env.py and versions/, its tables are versioned in
    `alembic_<owner>`. Several services and processes may open the same database at once.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _sqlite_pragmas)
        event.listen(engine, "begin", _sqlite_begin)
    config = Config()
    config.set_main_option("script_location", str(files(f"inspectbus.{owner}") / "migrations"))
    config.attributes["version_table"] = f"alembic_{owner}"
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return engine


@contextmanager
def translated() -> Iterator[None]:
    """A full disk or database is the operator's to mend, so it is told apart from our own faults."""
    try:
        yield
    except OperationalError as error:
        text = str(error.orig).lower()
        if "full" in text or "no space" in text:
            raise StorageFull(f"the database takes no more: {error.orig}; free space or raise its limit") from error
        raise


def _sqlite_pragmas(connection: object, _entry: ConnectionPoolEntry) -> None:
    # Autocommit mode of the driver: SQLAlchemy's own BEGIN (below) decides where a transaction starts.
    connection.isolation_level = None  # type: ignore[attr-defined]
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("PRAGMA journal_mode=WAL")
    # FULL: a decision that was acknowledged survives a power cut.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=15000")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _sqlite_begin(connection: object) -> None:
    # IMMEDIATE takes the write lock at once; a transaction that reads first and writes later could not wait for it.
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # type: ignore[attr-defined]
