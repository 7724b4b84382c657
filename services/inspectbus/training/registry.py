"""The registry: which model versions exist, which one an alias names, and who said so when.

finished folder ─> publish: bytes into the model store ─> record: row, alias and history in one transaction

The row comes last, so a version that can be asked for has all its bytes. Bytes without a row are nobody's version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from inspectbus.domain.model_version import PRODUCTION, ModelCard
from inspectbus.errors import NotFound
from inspectbus.stores.database import reading
from inspectbus.stores.models import ModelStore
from inspectbus.training.tables import model_alias_history, model_aliases, model_versions, now_us


@dataclass(frozen=True)
class RegisteredModel:
    name: str
    version: str
    aliases: tuple[str, ...]
    """Those that point here now, sorted."""
    card_json: str
    registered_at: int
    """Microseconds since the epoch."""


class Registry:
    """Thread-safe; several processes may share one database and store."""

    def __init__(self, engine: Engine, store: ModelStore) -> None:
        self._engine = engine
        self._store = store

    def publish(self, folder: Path) -> ModelCard:
        """Puts a finished version folder into the store. Raises CorruptModel, or OSError when the storage fails."""
        return self._store.publish(folder)

    def record(self, connection: Connection, card: ModelCard, by: str, reason: str, alias: str = PRODUCTION) -> None:
        """Within the caller's transaction: writes a published version down and points the alias at it.

        A version that is known already keeps its row; its alias is set all the same.
        """
        # Two trainings that end together both find no row: only the database can say who was first.
        version = {"name": card.name, "version": card.version}
        connection.execute(
            _insert(connection, model_versions)
            .values(**version, card=card.model_dump_json(), registered_at=now_us())
            .on_conflict_do_nothing(index_elements=["name", "version"])
        )
        pointing = {**version, "alias": alias}
        connection.execute(
            _insert(connection, model_aliases)
            .values(**pointing)
            .on_conflict_do_update(index_elements=["name", "alias"], set_={"version": card.version})
        )
        connection.execute(
            _insert(connection, model_alias_history).values(**pointing, set_at=now_us(), by=by, reason=reason)
        )

    def list_models(self, name: str = "") -> list[RegisteredModel]:
        """Every version, of one name where given, newest first."""
        wanted = select(model_versions).order_by(model_versions.c.number.desc())
        if name:
            wanted = wanted.where(model_versions.c.name == name)
        with reading(self._engine) as connection:
            rows = connection.execute(wanted).all()
            pointing = connection.execute(select(model_aliases).order_by(model_aliases.c.alias)).all()
        return [_model(row, pointing) for row in rows]

    def get_version(self, name: str, version: str) -> RegisteredModel:
        """Raises NotFound."""
        with reading(self._engine) as connection:
            return self._get(connection, name, version)

    def get_alias(self, name: str, alias: str) -> RegisteredModel:
        """Raises NotFound."""
        with reading(self._engine) as connection:
            version = connection.scalar(select(model_aliases.c.version).filter_by(name=name, alias=alias))
            if version is None:
                raise NotFound(f"no version of model {name} carries the alias {alias}", field="alias")
            return self._get(connection, name, version)

    def folder(self, found: RegisteredModel) -> Path:
        """Its verified bytes on this machine. Raises CorruptModel, or ModelNotReady when the store is away."""
        return self._store.fetch(found.name, found.version)

    @staticmethod
    def _get(connection: Connection, name: str, version: str) -> RegisteredModel:
        row = connection.execute(select(model_versions).filter_by(name=name, version=version)).first()
        if row is None:
            raise NotFound(f"no version {version[:40]} of model {name}", field="version")
        pointing = connection.execute(
            select(model_aliases).filter_by(name=name, version=version).order_by(model_aliases.c.alias)
        ).all()
        return _model(row, pointing)


def _insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """The dialect's own insert, which knows conflicts."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _model(row: Row[Any], pointing: Sequence[Row[Any]]) -> RegisteredModel:
    return RegisteredModel(
        name=row.name,
        version=row.version,
        aliases=tuple(each.alias for each in pointing if (each.name, each.version) == (row.name, row.version)),
        card_json=row.card,
        registered_at=row.registered_at,
    )
