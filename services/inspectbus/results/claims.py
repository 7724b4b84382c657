"""Objects that travelled by claim: noted with the decision on their frame, due when nothing can need them any more.

decisions of a batch ─ note ─> claims ─┬─ pinned: evidence, or of a frame among the dead letters; kept
                                       └─ not named for claim_grace_s ─ due ─> sweeper ─> forgotten

Every decision counts here, a repeat and one on a replayed frame too: it shows that a message was still under way, and
its evidence pins as well as the first one's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, not_, or_, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from inspectbus.api.v1.decision_pb2 import HOLD_REASON_ERROR, Decision
from inspectbus.results.tables import claims
from inspectbus.stores.frames import is_key_of


class Due(NamedTuple):
    """An object that may go. Sorts by age."""

    named_at_us: int
    key: str


FIRST = Due(-1, "")
"""Before all others."""


def note_claims(connection: Connection, batch: Iterable[Decision], now_us: int) -> None:
    """Within the transaction that records the batch: an object is known exactly when its decision is."""
    found: dict[str, bool] = {}
    for decision in batch:
        for key in (decision.image_key, decision.pixels_key):
            # A decision may only offer its own frame's objects for deletion.
            if key and is_key_of(key, decision.line, decision.station, decision.frame_id):
                found[key] = found.get(key, False) or _pins(decision, key)
    if not found:
        return
    insert = _insert(connection)
    noted = insert.on_conflict_do_update(
        index_elements=[claims.c.key],
        set_={
            "named_at_us": insert.excluded.named_at_us,
            "pinned": or_(claims.c.pinned, insert.excluded.pinned),
        },
    )
    rows = [{"key": key, "named_at_us": now_us, "pinned": pinned} for key, pinned in sorted(found.items())]
    connection.execute(noted, rows)


def due_claims(connection: Connection, until_us: int, after: Due, limit: int) -> list[Due]:
    """At most so many that were last named until then, the oldest first, beginning behind `after`."""
    age = tuple_(claims.c.named_at_us, claims.c.key)
    query = (
        select(claims.c.named_at_us, claims.c.key)
        .where(_may_go(until_us), age > tuple_(*after))
        .order_by(claims.c.named_at_us, claims.c.key)
        .limit(limit)
    )
    return [Due(*row) for row in connection.execute(query)]


def forget_claims(connection: Connection, keys: Sequence[str], until_us: int) -> None:
    """Those that are gone. One that was named again meanwhile stays noted."""
    connection.execute(delete(claims).where(claims.c.key.in_(keys), _may_go(until_us)))


def _pins(decision: Decision, key: str) -> bool:
    # The message behind a HOLD(ERROR) may rest among the dead letters, and its replay will need the object.
    in_error = decision.hold.reason == HOLD_REASON_ERROR
    evidence = decision.evidence
    return in_error or key in (evidence.original_key, evidence.prepared_key, evidence.heatmap_key)


def _may_go(until_us: int) -> Any:
    return not_(claims.c.pinned) & (claims.c.named_at_us <= until_us)


def _insert(connection: Connection) -> sqlite.Insert | postgresql.Insert:
    return sqlite.insert(claims) if connection.dialect.name == "sqlite" else postgresql.insert(claims)
