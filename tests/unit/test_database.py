"""Are a database's troubles told apart: full, away, or our own fault?"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError

from inspectbus.errors import BadField, StorageAway, StorageFull
from inspectbus.stores.database import open_database, reading, writing


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'some.db'}", connect_args={"timeout": 0.05})
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE things (thing TEXT)"))
    yield engine
    engine.dispose()


def test_a_full_database_is_told_as_full(engine: Engine) -> None:
    def limit(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute("PRAGMA max_page_count=1")  # which SQLite takes as the present size

    event.listen(engine, "checkout", limit)
    with pytest.raises(StorageFull, match="full"), writing(engine) as connection:
        connection.execute(text("INSERT INTO things VALUES (:thing)"), {"thing": "x" * 10_000})


def test_a_locked_database_is_away(engine: Engine) -> None:
    with engine.connect() as other:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(StorageAway, match="locked"), writing(engine) as connection:
            connection.execute(text("INSERT INTO things VALUES ('a')"))


def test_a_wrong_statement_is_our_own_fault(engine: Engine) -> None:
    with pytest.raises(OperationalError, match="no such table"), reading(engine) as connection:
        connection.execute(text("SELECT * FROM missing"))


def test_a_folder_that_is_a_file_is_away(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'missing' / 'some.db'}")
    with pytest.raises(StorageAway), reading(engine):
        pass


def test_a_file_that_is_no_database_is_not_away(tmp_path: Path) -> None:
    (tmp_path / "some.db").write_text("not a database at all, but long enough to be read as one" * 20)
    engine = create_engine(f"sqlite:///{tmp_path / 'some.db'}")
    with pytest.raises(BadField, match="no SQLite database") as refused, reading(engine) as connection:
        connection.execute(text("SELECT * FROM things"))
    assert refused.value.field == "database_url"


@pytest.mark.parametrize(
    "url", ["nonsense", "mysql://plant:secret@host/db", "://plant:secret@", "postgresql://plant:secret@host:port/db"]
)
def test_an_unknown_database_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BadField) as refused:
        open_database(url, "results")
    assert refused.value.field == "database_url"
    assert "secret" not in str(refused.value)


def test_an_option_that_no_connection_has_is_refused_without_the_password() -> None:
    with pytest.raises(BadField, match="sslmod") as refused:
        open_database("postgresql://u:secret@127.0.0.1:1/plant?sslmod=require", "results", patience_s=0.0)
    assert refused.value.field == "database_url"
    assert "secret" not in refused.value.message
