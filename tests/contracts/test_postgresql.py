"""Does a service notice within seconds what became of its PostgreSQL, and go on when it is back?"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, make_url, text

from inspectbus.errors import BadField, NotPossibleNow, StorageAway, StorageFull
from inspectbus.stores import postgresql
from inspectbus.stores.database import open_database, reading, take_turn, writing
from tests.doubles.postgres import PASSWORD, Postgres

pytestmark = pytest.mark.postgresql


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.new_database()


@pytest.fixture
def server(postgres: Postgres) -> Iterator[Postgres]:
    """For tests that end it."""
    yield postgres
    postgres.restart()


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_database(url, "results")
    yield engine
    engine.dispose()


def look(engine: Engine) -> object:
    with reading(engine) as connection:
        return connection.scalar(text("SELECT 1"))


def test_a_killed_server_is_away_and_used_again_once_it_is_back(server: Postgres, engine: Engine) -> None:
    assert look(engine) == 1
    server.kill()
    with pytest.raises(StorageAway):
        look(engine)

    server.start()

    assert look(engine) == 1


def test_a_server_killed_inside_a_transaction_is_away(server: Postgres, engine: Engine) -> None:
    def write() -> None:
        with writing(engine) as connection:
            connection.execute(text("SELECT 1"))
            server.kill()
            connection.execute(text("SELECT 1"))

    with pytest.raises(StorageAway):
        write()


def test_a_paused_server_is_noticed_although_its_kernel_still_answers(
    postgres: Postgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "GRACE_S", 0.2)
    monkeypatch.setattr(postgresql, "CONNECT_S", 2)
    engine = postgresql.postgresql_engine(make_url(url), "test", statement_s=1.0)
    assert look(engine) == 1

    with postgres.paused():
        begun = time.monotonic()
        with pytest.raises(StorageAway):
            look(engine)
        assert time.monotonic() - begun < 8

    assert look(engine) == 1
    engine.dispose()


def test_a_statement_beyond_its_time_is_ended_by_the_server(url: str) -> None:
    engine = postgresql.postgresql_engine(make_url(url), "test", statement_s=0.2)
    with pytest.raises(StorageAway, match="statement timeout"), reading(engine) as connection:
        connection.execute(text("SELECT pg_sleep(30)"))
    engine.dispose()


def test_a_server_that_starts_is_waited_for(server: Postgres, url: str) -> None:
    server.kill()
    starting = threading.Timer(1.0, server.start)
    starting.start()

    engine = open_database(url, "results")

    assert look(engine) == 1
    engine.dispose()
    starting.join()


def test_a_server_that_never_comes_is_given_up_without_telling_the_password(server: Postgres, url: str) -> None:
    server.kill()
    with pytest.raises(StorageAway) as gone:
        open_database(url, "results", patience_s=0.2)
    assert PASSWORD not in str(gone.value)


def test_a_wrong_password_is_told_in_the_servers_words_and_not_repeated(url: str) -> None:
    with pytest.raises(StorageAway, match="password authentication failed") as refused:
        open_database(url.replace(PASSWORD, "wrong-secret"), "results", patience_s=0)
    assert "wrong-secret" not in str(refused.value)


def test_a_service_is_told_apart_in_the_servers_views(engine: Engine) -> None:
    with reading(engine) as connection:
        assert connection.scalar(text("SELECT current_setting('application_name')")) == "inspectbus-results"


def test_the_url_wins_over_our_own_ideas_of_a_connection(url: str) -> None:
    options = "application_name=mine&options=-c%20statement_timeout%3D77s"
    engine = open_database(f"{url}?{options}", "results")
    with reading(engine) as connection:
        assert connection.scalar(text("SELECT current_setting('application_name')")) == "mine"
        assert connection.scalar(text("SELECT current_setting('statement_timeout')")) == "77s"
    engine.dispose()


def test_a_value_that_no_column_takes_is_refused_and_not_tried_again(engine: Engine) -> None:
    with pytest.raises(BadField, match="NUL"), reading(engine) as connection:
        connection.execute(text("SELECT :word"), {"word": "a\0b"})
    with pytest.raises(BadField), reading(engine) as connection:
        connection.execute(text("SELECT CAST(:number AS smallint)"), {"number": 70_000})


def test_a_full_disk_is_told_apart_from_a_lost_server(engine: Engine) -> None:
    raising = "DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
    with pytest.raises(StorageFull), writing(engine) as connection:
        connection.execute(text(raising))


def test_turns_are_taken_one_after_another(engine: Engine) -> None:
    inside: list[int] = []
    most: list[int] = []

    def enter(number: int) -> None:
        with writing(engine) as connection:
            take_turn(connection, "the test's")
            inside.append(number)
            most.append(len(inside))
            connection.execute(text("SELECT pg_sleep(0.05)"))
            inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))

    assert most == [1, 1, 1, 1]


def test_many_services_open_a_new_database_at_once(url: str) -> None:
    owners = ["results", "preprocessing", "training"] * 2

    def open_one(owner: str) -> None:
        open_database(url, owner).dispose()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(open_one, owners))


def test_without_the_driver_its_extra_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "inspectbus.stores.postgresql")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(NotPossibleNow, match=r"inspectbus\[postgresql\]"):
        open_database(url, "results")
