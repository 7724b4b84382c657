"""Recipes by name and version: written once, never changed.

YAML ── put ──> canonical text ─> same as the newest? keep it : version + 1
frame ── newest ──> memory, at most `fresh_s` old ─> database
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection, Engine, Row, func, select, tuple_
from sqlalchemy.exc import IntegrityError

from inspectbus.domain.names import checked_name
from inspectbus.domain.recipe import Recipe
from inspectbus.errors import NotFound, QueueFull, StorageAway
from inspectbus.preprocessing.tables import recipes
from inspectbus.stores.database import reading, writing

log = structlog.get_logger(__name__)

MAX_VERSION = 2**31 - 1
"""What the column takes; a request may ask for more, and gets the answer it would get for any version there is not."""
MAX_RACES = 20
"""How often a put may find its version taken by another replica before it gives up; each time somebody else got on."""


@dataclass(frozen=True)
class StoredRecipe:
    """One version of a recipe."""

    recipe: Recipe
    version: int
    yaml: str
    sha256: str
    created_at_us: int
    """Microseconds since the epoch."""


class Recipes:
    """Thread-safe; several replicas may share the database."""

    def __init__(self, database: Engine, fresh_s: float = 2.0) -> None:
        self._database = database
        self._fresh_s = fresh_s
        self._lock = threading.Lock()
        self._newest: dict[str, tuple[float, StoredRecipe]] = {}

    def put(self, yaml: str) -> tuple[StoredRecipe, bool]:
        """The stored version, and whether it is new: the newest version's content again makes none.

        Raises BadField naming the recipe's entry at fault, StorageFull or StorageAway when the database fails.
        """
        recipe = Recipe.from_yaml(yaml)
        for _ in range(MAX_RACES):
            try:
                stored, created = self._put(recipe)
            except IntegrityError:
                continue
            self._remember(stored)
            return stored, created
        raise QueueFull(f"recipe {recipe.name} is being stored by many at once; try again", field="yaml")

    def _put(self, recipe: Recipe) -> tuple[StoredRecipe, bool]:
        with writing(self._database) as connection:
            newest = _read(connection, recipe.name, 0)
            if newest is not None and newest.sha256 == recipe.sha256:
                return newest, False
            stored = StoredRecipe(
                recipe=recipe,
                version=newest.version + 1 if newest else 1,
                yaml=recipe.to_yaml(),
                sha256=recipe.sha256,
                created_at_us=time.time_ns() // 1000,
            )
            connection.execute(
                recipes.insert().values(
                    name=recipe.name,
                    version=stored.version,
                    yaml=stored.yaml,
                    sha256=stored.sha256,
                    created_at_us=stored.created_at_us,
                )
            )
            return stored, True

    def newest(self, name: str) -> StoredRecipe:
        """What a frame of this recipe is prepared by. While the database is away, the last known version.

        Raises BadField when it is no name, NotFound when there is no such recipe.
        """
        checked_name(name, "recipe")
        with self._lock:
            asked_at, known = self._newest.get(name, (float("-inf"), None))
        if known is not None and time.monotonic() - asked_at < self._fresh_s:
            return known
        if known is not None:
            # Whoever comes meanwhile takes the known one: a database that stands still must not hold up every worker.
            self._remember(known)
        try:
            stored = self.get(name)
        except StorageAway as error:
            if known is None:
                raise
            log.warning("database away, using the last known recipe", recipe=name, error=error.message)
            stored = known
        self._remember(stored)
        return stored

    def get(self, name: str, version: int = 0, field: str = "recipe") -> StoredRecipe:
        """One version, 0 for the newest. Raises BadField when it is no name, NotFound when there is none.

        `field` is what the caller's request calls the name.
        """
        checked_name(name, field)
        with reading(self._database) as connection:
            stored = _read(connection, name, version)
        if stored is None:
            which = f"version {version} of recipe {name!r}" if version else f"recipe {name!r}"
            raise NotFound(f"there is no {which}", field=field)
        return stored

    def all_newest(self) -> list[StoredRecipe]:
        """The newest version of every recipe, by name."""
        newest = select(recipes.c.name, func.max(recipes.c.version)).group_by(recipes.c.name)
        query = select(recipes).where(tuple_(recipes.c.name, recipes.c.version).in_(newest)).order_by(recipes.c.name)
        with reading(self._database) as connection:
            return [_stored(row) for row in connection.execute(query)]

    def _remember(self, stored: StoredRecipe) -> None:
        with self._lock:
            _, known = self._newest.get(stored.recipe.name, (0.0, stored))
            # A slow reader must not put an older version over the one just stored.
            newest = max(known, stored, key=lambda each: each.version)
            self._newest[stored.recipe.name] = (time.monotonic(), newest)


def _read(connection: Connection, name: str, version: int) -> StoredRecipe | None:
    query = select(recipes).where(recipes.c.name == name).order_by(recipes.c.version.desc()).limit(1)
    if version > MAX_VERSION:
        return None
    if version:
        query = query.where(recipes.c.version == version)
    row = connection.execute(query).one_or_none()
    return _stored(row) if row is not None else None


def _stored(row: Row[tuple[str, int, str, str, int]]) -> StoredRecipe:
    return StoredRecipe(Recipe.from_yaml(row.yaml), row.version, row.yaml, row.sha256, row.created_at_us)
