"""Aliases: which version one names, named before or named at some moment; who pointed it there, and why.

SetAlias ──────────> verified in the store ─> not worse than production's? ─┐
Rollback ──────────> verified in the store ─────────────────────────────────┼─> one transaction ─> told
end of a training ─> not worse than production's? ──────────────────────────┘   alias, history

Comparing reads two versions from the store, so it is done before the transaction, which then asks whether the alias
still names what was compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, Row, and_, insert, select

from inspectbus.domain.model_version import PRODUCTION, ModelCard
from inspectbus.errors import BadField, InspectBusError, NotFound, NotPossibleNow, WorseModel
from inspectbus.stores.database import reading, take_turn, writing
from inspectbus.stores.models import ModelStore
from inspectbus.training.registry import told_of, upserting
from inspectbus.training.tables import MAX_REASON_CHARS, model_aliases, model_versions, now_us
from inspectbus.training.tables import model_alias_history as history
from inspectbus.training.validation import MAX_FILE_BYTES, VALIDATION_FILE, Comparison, compare, read_validation

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class AliasChange:
    number: int
    """Rises with every change of any alias."""
    name: str
    alias: str
    version: str
    previous: str
    """What it named before; empty when it was new."""
    changed_at: int
    """Microseconds since the epoch; never before the change before."""
    by: str
    reason: str
    forced: bool
    rollback: bool


@dataclass(frozen=True)
class Standing:
    """A version beside the one that production names."""

    card: ModelCard
    against: str
    """The version in production; empty when there is none."""
    objection: InspectBusError | None
    """Why it may not take that one's place unless forced."""
    words: str = ""
    """Both scores and how sure their difference is, or that too few images tell; empty where there is none yet."""


class Moved(Exception):
    """The alias names another version than the one that was looked at: look again."""


class Aliases:
    """Thread-safe; several processes may share one database and store."""

    def __init__(
        self, engine: Engine, store: ModelStore, on_change: Callable[[AliasChange], None] = lambda change: None
    ) -> None:
        self._engine = engine
        self._store = store
        self._on_change = on_change

    def set(
        self, name: str, alias: str, version: str, by: str, *, reason: str = "", force: bool = False
    ) -> AliasChange | None:
        """Points the alias at the version; None when it named that already.

        Raises BadField for a forced change without a reason, NotFound, CorruptModel naming the file that the store has
        not as it was made, ModelNotReady when the store cannot be reached, and WorseModel, or NotPossibleNow where the
        versions cannot be compared, unless forced.
        """
        _check_reason(reason, needed=force)
        card = self._card(name, version)
        with told_of(version, "version"):
            self._store.verify(name, version)
        while True:
            against = self.current(name, alias)
            if alias == PRODUCTION and not force and (objection := self._standing(card, against).objection):
                raise objection
            try:
                with writing(self._engine) as connection:
                    change = self._point(connection, name, alias, version, by, reason, against, forced=force)
            except Moved:
                continue
            return self.tell(change)

    def rollback(self, name: str, alias: str, by: str, reason: str = "") -> AliasChange:
        """Points the alias back at the version it named before the present one was set.

        Raises NotFound when it was never set, NotPossibleNow when there is nothing before, and what `ModelStore.verify`
        raises for the version to go back to.
        """
        _check_reason(reason)
        while True:
            with reading(self._engine) as connection:
                present = _newest(connection, _of(name, alias))
                if present is None:
                    raise NotFound(f"no version of model {name[:80]} carries the alias {alias}", field="alias")
                # What was rolled back to stands where it stood when it was first set, with its own past behind it.
                begun = present.restored or present.number
                others = and_(history.c.number < begun, history.c.version != present.version)
                before = _newest(connection, and_(_of(name, alias), others))
            if before is None:
                raise NotPossibleNow(
                    f"{alias} of model {name} named no version before {present.version}, so nothing to go back to",
                    field="alias",
                )
            with told_of(before.version, "alias"):
                self._store.verify(name, before.version)
            try:
                with writing(self._engine) as connection:
                    change = self._point(
                        connection,
                        name,
                        alias,
                        before.version,
                        by,
                        reason,
                        present.version,
                        restored=before.restored or before.number,
                    )
            except Moved:
                continue
            assert change is not None, "it goes back to another version than the present one"
            self.tell(change)
            return change

    def standing(self, card: ModelCard) -> Standing:
        """How a version that was just made compares with the one in production; its objection says why it must wait."""
        return self._standing(card, self.current(card.name, PRODUCTION))

    def promote(self, connection: Connection, standing: Standing, by: str, reason: str) -> AliasChange | None:
        """Within the caller's transaction: points production at the version where nothing stands against it.

        None when it stays. Raises Moved when production names another version than the one compared with. After the
        commit the caller owes the change to `tell`.
        """
        if standing.objection is not None:
            return None
        name, version = standing.card.name, standing.card.version
        reason = f"{reason}: {standing.words}" if standing.words else reason
        return self._point(connection, name, PRODUCTION, version, by, reason[:MAX_REASON_CHARS], standing.against)

    def tell(self, change: AliasChange | None) -> AliasChange | None:
        """Tells of a change that has been committed."""
        if change is not None:
            log.info("alias changed", model=change.name, alias=change.alias, version=change.version, by=change.by)
            self._on_change(change)
        return change

    def current(self, name: str, alias: str) -> str:
        """The version that the alias names; empty when it names none."""
        with reading(self._engine) as connection:
            return connection.scalar(select(model_aliases.c.version).filter_by(name=name, alias=alias)) or ""

    def named_at(self, name: str, alias: str, moment_us: int) -> str:
        """The version that the alias named at a moment. Raises NotFound."""
        with reading(self._engine) as connection:
            found = _newest(connection, and_(_of(name, alias), history.c.set_at <= moment_us))
        if found is None:
            raise NotFound(f"at that moment no version of model {name} carried the alias {alias}", field="at")
        return str(found.version)

    def page(self, name: str, alias: str, size: int, before: int | None = None) -> list[AliasChange]:
        """At most `size` changes, newest first, of those older than number `before`; of all aliases when it is empty.

        Raises NotFound when there is no such model.
        """
        wanted = select(history).where(history.c.name == name).order_by(history.c.number.desc()).limit(size)
        if alias:
            wanted = wanted.where(history.c.alias == alias)
        if before is not None:
            wanted = wanted.where(history.c.number < before)
        with reading(self._engine) as connection:
            if connection.execute(select(model_versions.c.number).filter_by(name=name).limit(1)).first() is None:
                raise NotFound(f"there is no model {name}", field="name")
            return [_change(row) for row in connection.execute(wanted)]

    def _card(self, name: str, version: str) -> ModelCard:
        """As it was registered; what the store gives of the version must fit it. Raises NotFound."""
        with reading(self._engine) as connection:
            card = connection.scalar(select(model_versions.c.card).filter_by(name=name, version=version))
        if card is None:
            raise NotFound(f"no version {version[:40]!r} of model {name}", field="version")
        return ModelCard.model_validate_json(card)

    def _standing(self, card: ModelCard, against: str) -> Standing:
        if against in ("", card.version):
            return Standing(card, against, None)
        present = self._card(card.name, against)
        try:
            found, on = self._compared(card, present)
        except (InspectBusError, OSError) as error:
            why = f"{card.version} cannot be compared with {against} in production: {error}"
            return Standing(card, against, NotPossibleNow(f"{why}; {_FORCE}", field="version"))
        scores = "; ".join(map(str, found.differences)) or "too few validation images to compare the two"
        if not found.worse:
            return Standing(card, against, None, f"{scores}; {on}")
        worse = f"{card.version} is worse than {against}, which is in production: {'; '.join(map(str, found.worse))}"
        return Standing(card, against, WorseModel(f"{worse}; {on}; {_FORCE}", field="version"), f"{scores}; {on}")

    def _compared(self, new: ModelCard, old: ModelCard) -> tuple[Comparison, str]:
        """And on which images, in words."""
        ours, theirs = (read_validation(self._store.read(card, VALIDATION_FILE, MAX_FILE_BYTES)) for card in (new, old))
        found = compare(ours, new.threshold, theirs, old.threshold)
        on = f"both judged the same {len(ours.images)} validation images"
        if not found.paired:
            on = (
                f"on different validation images, {len(ours.images)} of {_data(new)} against {len(theirs.images)} of "
                f"{_data(old)}"
            )
        return found, on

    @staticmethod
    def _point(
        connection: Connection,
        name: str,
        alias: str,
        version: str,
        by: str,
        reason: str,
        expected: str,
        *,
        forced: bool = False,
        restored: int | None = None,
    ) -> AliasChange | None:
        take_turn(connection, f"alias {name}@{alias}")
        last = _newest(connection, _of(name, alias))
        previous = "" if last is None else last.version
        if previous != expected:
            raise Moved
        if previous == version:
            return None
        pointing = {"name": name, "alias": alias, "version": version}
        connection.execute(
            upserting(connection, model_aliases)
            .values(**pointing)
            .on_conflict_do_update(index_elements=["name", "alias"], set_={"version": version})
        )
        # Not before the last one, though another machine's clock may be ahead: time and number tell the same order.
        set_at = max(now_us(), 0 if last is None else last.set_at)
        connection.execute(
            insert(history).values(
                **pointing, previous=previous, set_at=set_at, by=by, reason=reason, forced=forced, restored=restored
            )
        )
        return _change(_newest(connection, _of(name, alias)))


_FORCE = "force it with a reason to set it all the same"


def _check_reason(reason: str, *, needed: bool = False) -> None:
    if needed and not reason.strip():
        raise BadField("a change that is forced needs a reason", field="reason")
    if len(reason) > MAX_REASON_CHARS or "\0" in reason:
        raise BadField(f"a reason has at most {MAX_REASON_CHARS} characters, and no NUL", field="reason")


def _data(card: ModelCard) -> str:
    return f"{card.data.name} (data {card.data.sha256[:12]})"


def _of(name: str, alias: str) -> ColumnElement[bool]:
    return and_(history.c.name == name, history.c.alias == alias)


def _newest(connection: Connection, which: ColumnElement[bool]) -> Row[Any] | None:
    return connection.execute(select(history).where(which).order_by(history.c.number.desc()).limit(1)).first()


def _change(row: Row[Any] | None) -> AliasChange:
    assert row is not None
    return AliasChange(
        number=row.number,
        name=row.name,
        alias=row.alias,
        version=row.version,
        previous=row.previous,
        changed_at=row.set_at,
        by=row.by,
        reason=row.reason,
        forced=row.forced,
        rollback=row.restored is not None,
    )
