"""Do recipes keep their versions when many store at once, and their table its shape?"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from inspectbus.errors import NotFound, StorageFull
from inspectbus.preprocessing.recipes import Recipes, StoredRecipe
from inspectbus.preprocessing.tables import metadata
from inspectbus.stores.database import open_database


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    engine = open_database(database_url, "preprocessing")
    yield engine
    engine.dispose()


def yaml(threshold: float, name: str = "cells") -> str:
    return f"name: {name}\nmodel: elpv\nthreshold: {threshold}\n"


def test_concurrent_puts_of_different_content_get_distinct_versions(database: Engine) -> None:
    replicas = [Recipes(database) for _ in range(4)]

    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda n: replicas[n % 4].put(yaml(n / 100)), range(24)))

    assert sorted(each.version for each, _ in stored) == list(range(1, 25))
    assert all(created for _, created in stored)


def test_concurrent_puts_of_the_same_content_make_one_version(database: Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda _: Recipes(database).put(yaml(0.5)), range(8)))

    assert {each.version for each, _ in stored} == {1}
    assert sum(created for _, created in stored) == 1


def test_a_version_taken_by_another_replica_meanwhile_is_counted_past(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a database whose writers do not wait for each other: this one still sees version 0 when 1 is there
    Recipes(database).put(yaml(0.1))
    from inspectbus.preprocessing import recipes as module

    read = module._read
    looks: list[str] = []

    def blind_at_first(connection: object, name: str, version: int) -> object:
        looks.append(name)
        return None if len(looks) == 1 else read(connection, name, version)  # type: ignore[arg-type] # as given

    monkeypatch.setattr(module, "_read", blind_at_first)

    stored, created = Recipes(database).put(yaml(0.2))

    assert (stored.version, created) == (2, True)


def test_what_one_replica_stored_another_uses_once_its_memory_is_old(database: Engine) -> None:
    here, patient, prompt = Recipes(database), Recipes(database, fresh_s=3600), Recipes(database, fresh_s=0)
    here.put(yaml(0.1))
    assert patient.newest("cells").version == prompt.newest("cells").version == 1

    here.put(yaml(0.2))

    assert here.newest("cells").version == 2
    assert patient.newest("cells").version == 1
    assert prompt.newest("cells").version == 2


def test_a_database_that_stands_still_holds_up_one_asker_and_not_all(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = Recipes(database, fresh_s=3600)
    stored, _ = recipes.put(yaml(0.1))
    asked, answer = threading.Event(), threading.Event()
    read = recipes.get

    def stand_still(name: str) -> StoredRecipe:
        asked.set()
        assert answer.wait(20)
        return read(name)

    monkeypatch.setattr(recipes, "get", stand_still)
    recipes._newest["cells"] = (float("-inf"), stored)  # an hour later
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(recipes.newest, "cells")
        assert asked.wait(20)
        asked.clear()

        assert recipes.newest("cells") == stored
        assert not asked.is_set()

        answer.set()
        assert first.result(20) == stored


def test_recipes_survive_the_process(database: Engine, database_url: str) -> None:
    stored, _ = Recipes(database).put(yaml(0.3))
    database.dispose()

    again = open_database(database_url, "preprocessing")

    assert Recipes(again).newest("cells") == stored
    again.dispose()


def test_an_unknown_recipe_is_not_found_until_it_is_stored(database: Engine) -> None:
    recipes = Recipes(database)
    with pytest.raises(NotFound):
        recipes.newest("cells")

    recipes.put(yaml(0.5))

    assert recipes.newest("cells").version == 1
    with pytest.raises(NotFound):
        recipes.get("cells", 2**32 - 1)


def test_a_full_database_takes_no_recipe_and_still_gives_those_it_has(database: Engine) -> None:
    if database.dialect.name != "sqlite":
        pytest.skip("only SQLite has max_page_count")
    recipes = Recipes(database, fresh_s=0)
    recipes.put(yaml(0.5))
    with database.connect() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
        connection.execute(text(f"PRAGMA max_page_count={pages}"))

    def put_for_ever() -> None:
        for n in range(200):
            recipes.put(f"name: cells\nmodel: elpv\ndescription: {n}{'x' * 490}\n")

    with pytest.raises(StorageFull):
        put_for_ever()

    assert recipes.newest("cells").version >= 1


def test_the_migrations_make_the_tables(database: Engine) -> None:
    with database.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_object": lambda _, name, kind, *__: kind != "table" or "alembic" not in name}
        )
        assert compare_metadata(context, metadata) == []
