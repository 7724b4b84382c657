"""The SQL database by URL. Each service owns its tables, its Alembic migrations and its version table.

sqlite:///file              one machine: a file, one writer at a time
postgresql://user:pw@host   the plant: see postgresql.py for its connections
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

# Not used here, but MLflow does: an import of it beside working threads breaks their statements half-way, because
# SQLAlchemy asks the ORM, where it is known, about every value it binds.
import sqlalchemy.orm  # noqa: F401
import structlog
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from inspectbus.errors import BadField, NotPossibleNow, StorageAway, StorageFull

log = structlog.get_logger(__name__)

START_PATIENCE_S = 60.0
"""A plant that is switched on starts everything at once, and after a power cut PostgreSQL first reads its journal."""
_MIGRATION_S = 600.0
"""For one statement: an index over a large ledger takes minutes."""

migrating = threading.Lock()
"""Alembic keeps the migration under way in a module, so a process runs one at a time."""


def default_url(state_dir: Path) -> str:
    """The SQLite file of a machine that was told no database."""
    return f"sqlite:///{(state_dir / 'inspectbus.db').absolute()}"


def open_database(
    url: str, owner: str, patience_s: float = START_PATIENCE_S, *, stop: threading.Event | None = None
) -> Engine:
    """An engine on the database, with the owner's tables brought up to date.

    `owner` is a service's package: its `migrations` folder holds env.py and versions/, its tables are versioned in
    `alembic_<owner>`. Several services and processes may open the same database at once. A PostgreSQL that does not
    answer is waited for, `patience_s` at most and only until `stop` is set.

    Raises BadField when the URL names no SQLite or PostgreSQL, NotPossibleNow without the driver, StorageFull or
    StorageAway when the database fails.
    """
    parsed = _parsed(url)
    deadline = time.monotonic() + patience_s
    stop = stop or threading.Event()
    told = ""
    while True:
        try:
            _migrate(parsed, owner)
            return _engine(parsed, owner)
        except StorageAway as error:
            if parsed.get_backend_name() == "sqlite" or time.monotonic() > deadline:
                raise
            if error.message != told:
                log.warning("waiting for the database", host=parsed.host, owner=owner, error=error.message)
            told = error.message
            if stop.wait(0.5):
                raise


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Without the error's own text, which holds the URL and with it a password.
        raise BadField("not a database URL such as sqlite:////var/lib/plant.db", field="database_url") from None
    if parsed.drivername not in ("sqlite", "postgresql", "postgresql+psycopg"):
        raise BadField(f"no database {parsed.drivername!r}: use sqlite or postgresql", field="database_url")
    return parsed


def _engine(url: URL, owner: str, **limits: float) -> Engine:
    if url.get_backend_name() == "postgresql":
        try:
            from inspectbus.stores.postgresql import postgresql_engine
        except ImportError as error:
            raise NotPossibleNow(f"PostgreSQL needs a driver: pip install 'inspectbus[postgresql]' ({error})") from None
        return postgresql_engine(url, f"inspectbus-{owner}", **limits)
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    # Errors end in logs, and parameters may be whole messages.
    engine = create_engine(url, pool_pre_ping=True, hide_parameters=True)
    event.listen(engine, "connect", _sqlite_pragmas)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


def _migrate(url: URL, owner: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(files(f"inspectbus.{owner}") / "migrations"))
    config.attributes["version_table"] = f"alembic_{owner}"
    engine = _engine(url, owner, **({} if url.get_backend_name() == "sqlite" else {"statement_s": _MIGRATION_S}))
    try:
        with migrating, writing(engine) as connection:
            take_turn(connection, f"inspectbus migrations of {owner}")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def take_turn(connection: Connection, name: str) -> None:
    """Waits until no other process is inside a transaction that took this turn; it is ours until the transaction ends.

    For what must look before it writes. On SQLite every writing transaction has its turn already.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Looks without keeping any writer waiting, also while the disk is full. On SQLite all statements see one state."""
    with translated(), engine.connect().execution_options(inspectbus_reads_only=True) as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed when the block ends well, rolled back when it raises."""
    with translated(), engine.begin() as connection:
        yield connection


@contextmanager
def translated() -> Iterator[None]:
    """A full disk, a lock or a lost database is the operator's matter, so it is told apart from our own faults.

    Raises StorageFull, StorageAway, or BadField for a file that is no database and for a value that no column takes;
    any other exception passes.
    """
    try:
        yield
    except DBAPIError as error:
        # PostgreSQL adds hints on further lines.
        words = str(error.orig).partition("\n")[0]
        if _is_full(error.orig):
            raise StorageFull(f"the database takes no more: {words}; free space or raise its limit") from error
        if isinstance(error.orig, sqlite3.Error) and _primary_code(error.orig) == sqlite3.SQLITE_NOTADB:
            raise BadField("the file of the database URL is no SQLite database", field="database_url") from error
        if _is_away(error.orig):
            raise StorageAway(f"the database does not answer: {words}") from error
        if isinstance(error, DataError):
            # The same value is refused for ever: a NUL in a text, a number beyond its column.
            raise BadField(f"the database takes no such value: {words}") from error
        raise
    except PoolTimeout as error:
        raise StorageAway(f"no free connection to the database: {error}") from error


def _is_full(error: object) -> bool:
    if isinstance(error, sqlite3.Error):
        return _primary_code(error) == sqlite3.SQLITE_FULL
    return getattr(error, "sqlstate", None) == "53100"  # disk_full, as PostgreSQL numbers it


def _is_away(error: object) -> bool:
    if isinstance(error, sqlite3.Error):
        # SQLite calls a wrong statement an OperationalError too, so only the code tells.
        return _primary_code(error) in _SQLITE_AWAY
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"OperationalError", "InterfaceError"}) or getattr(error, "sqlstate", None) in _POSTGRESQL_AWAY


def _primary_code(error: sqlite3.Error) -> int | None:
    # The low byte; the rest says where in SQLite it happened. Errors of Python's module itself have no code.
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


# What psycopg does not call operational and an operator mends all the same: a standby after a fail-over, a missing
# grant.
_POSTGRESQL_AWAY = {"25006", "42501"}
_SQLITE_AWAY = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PROTOCOL,
}


def _sqlite_pragmas(connection: object, _entry: ConnectionPoolEntry) -> None:
    # Autocommit mode of the driver: SQLAlchemy's own BEGIN (below) decides where a transaction starts.
    connection.isolation_level = None  # type: ignore[attr-defined]
    cursor = connection.cursor()  # type: ignore[attr-defined]
    # First, because whoever opens the file beside us may hold the lock that the switch to WAL wants.
    cursor.execute("PRAGMA busy_timeout=15000")
    cursor.execute("PRAGMA journal_mode=WAL")
    # FULL: a decision that was acknowledged survives a power cut.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    # IMMEDIATE takes the write lock at once; a transaction that reads first and writes later could not wait for it.
    reads_only = connection.get_execution_options().get("inspectbus_reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
