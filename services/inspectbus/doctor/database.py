"""Is the database there, as new as this program, and does its clock agree? Looked at only: nothing is migrated."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from inspectbus.doctor.clock import judged
from inspectbus.doctor.finding import Finding, State
from inspectbus.errors import BadField
from inspectbus.stores.database import translated

CONNECT_S = 4
STATEMENT_S = 4


def look_at_database(url: str, owners: Sequence[str]) -> list[Finding]:
    """Raises BadField, StorageAway, StorageFull."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise BadField("not a database URL such as sqlite:////var/lib/plant.db", field="database_url") from None
    if parsed.get_backend_name() == "sqlite":
        file = Path(parsed.database or "")
        if not file.exists():
            return [Finding("database", State.WARN, f"{file} is not there yet: the first start of a service makes it")]
        # Opened as it is: SQLite would make an empty one.
        source = f"file:{quote(str(file))}?mode=rw"
        engine = create_engine(
            "sqlite://", creator=lambda: sqlite3.connect(source, uri=True, timeout=STATEMENT_S), poolclass=NullPool
        )
    else:
        options = f"-c statement_timeout={STATEMENT_S * 1000}"
        engine = create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            connect_args={"connect_timeout": CONNECT_S, "options": options},
            poolclass=NullPool,
            hide_parameters=True,
        )
    return _look(engine, owners)


def _look(engine: Engine, owners: Sequence[str]) -> list[Finding]:
    with translated(), engine.connect() as connection:
        found = [Finding("database", State.OK, f"{engine.dialect.name} answers")]
        found += [_migrations(connection, owner) for owner in owners]
        if engine.dialect.name == "postgresql":
            before_s = time.time()
            theirs_s = float(connection.execute(text("select extract(epoch from clock_timestamp())")).scalar_one())
            after_s = time.time()
            found.append(judged("database", theirs_s - (before_s + after_s) / 2, (after_s - before_s) / 2))
    return found


def _migrations(connection: Connection, owner: str) -> Finding:
    about = f"tables of {owner}"
    config = Config()
    config.set_main_option("script_location", str(files(f"inspectbus.{owner}") / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    here = set(MigrationContext.configure(connection, opts={"version_table": f"alembic_{owner}"}).get_current_heads())
    newest = set(scripts.get_heads())
    if here == newest:
        return Finding(about, State.OK, f"at {', '.join(sorted(newest))}, the newest this program knows")
    if not here:
        return Finding(about, State.WARN, f"are not made yet: the first start of {owner} makes them")
    known = {script.revision for script in scripts.walk_revisions()}
    if here <= known:
        return Finding(about, State.WARN, f"are older than this program: the next start of {owner} brings them up")
    return Finding(about, State.FAIL, "were made by a newer InspectBus: update this program, or use its own database")
