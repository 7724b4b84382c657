"""The registry: which model versions exist, and which aliases point at them now; aliases.py says who set one when.

finished folder ─> publish: bytes into the model store ─> record: a row, in the transaction that ends the job

The row comes last, so a version that can be asked for has all its bytes. Bytes without a row are nobody's version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import InspectBusError, NotFound, NotPossibleNow
from inspectbus.stores.database import reading
from inspectbus.stores.models import ModelStore
from inspectbus.training.tables import model_aliases, model_versions, now_us
from inspectbus.training.validation import MAX_FILE_BYTES, VALIDATION_FILE, Validation, read_validation


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

    def record(self, connection: Connection, card: ModelCard) -> None:
        """Within the caller's transaction: writes a published version down. One that is known keeps its row."""
        # Two trainings that end together both find no row: only the database can say who was first.
        connection.execute(
            upserting(connection, model_versions)
            .values(name=card.name, version=card.version, card=card.model_dump_json(), registered_at=now_us())
            .on_conflict_do_nothing(index_elements=["name", "version"])
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

    def validation(self, found: RegisteredModel) -> Validation:
        """What it said of its validation images.

        Raises NotPossibleNow for a version made before that was kept, CorruptModel, or ModelNotReady when the store is
        away.
        """
        card = ModelCard.model_validate_json(found.card_json)
        if VALIDATION_FILE not in card.files:
            raise NotPossibleNow(
                f"model version {found.version} was made before validation scores were kept; train it again",
                field="version",
            )
        with told_of(found.version, "version"):
            return read_validation(self._store.read(card, VALIDATION_FILE, MAX_FILE_BYTES))

    @staticmethod
    def _get(connection: Connection, name: str, version: str) -> RegisteredModel:
        row = connection.execute(select(model_versions).filter_by(name=name, version=version)).first()
        if row is None:
            raise NotFound(f"no version {version[:40]} of model {name}", field="version")
        pointing = connection.execute(
            select(model_aliases).filter_by(name=name, version=version).order_by(model_aliases.c.alias)
        ).all()
        return _model(row, pointing)


@contextmanager
def told_of(version: str, field: str) -> Iterator[None]:
    """What the store raises within, told of the version and of the caller's own field, which no file is; the file at
    fault stands in the message."""
    try:
        yield
    except InspectBusError as error:
        raise type(error)(f"version {version}: {error.message}", field=field, retry_s=error.retry_s) from error


def upserting(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
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
