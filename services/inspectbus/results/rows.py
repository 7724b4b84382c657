"""Messages as rows and rows as records: what the ledger's tables make of decisions and gate outcomes.

Decision, first ──> decisions ─┐
Decision, revised ─> revisions ├─> Record
GateOutcome ───────> outcomes ─┘
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import ColumnElement, Connection, Row, Select, exists, select

from inspectbus.api.v1.decision_pb2 import Decision, Hold
from inspectbus.api.v1.frame_pb2 import Label
from inspectbus.api.v1.gate_pb2 import GateOutcome
from inspectbus.api.v1.results_pb2 import Record
from inspectbus.domain.gate import is_late
from inspectbus.results.first_wins import Saying
from inspectbus.results.tables import decisions, labels, outcomes, revisions

Where = Sequence[ColumnElement[bool]]
"""Conditions on the columns of `decisions`, all of which must hold; see selection.py."""

NEWEST_LABEL = (
    select(labels.c.label)
    .where(labels.c.frame_id == decisions.c.frame_id)
    .order_by(labels.c.id.desc())
    .limit(1)
    .scalar_subquery()
    .label("truth")
)


def decision_saying(decision: Decision, cursor: int, now_us: int) -> Saying:
    """The first decision on a frame, for `decisions`."""
    row = {
        "cursor": cursor,
        "recorded_at_us": now_us,
        "line": decision.line,
        "station": decision.station,
        "run_id": decision.run_id,
        "part_id": decision.part_id,
        "lot_id": decision.lot_id,
        "model": decision.model,
        "model_version": decision.model_version,
        "verdict": decision.verdict,
        "decision": decision.SerializeToString(),
    }
    return Saying((decision.frame_id,), fingerprint(decision), row)


def revision_saying(decision: Decision, now_us: int) -> Saying:
    """A later decision on a replayed frame, for `revisions`."""
    row = {"recorded_at_us": now_us, "decision": decision.SerializeToString()}
    return Saying((decision.frame_id, decision.revision), fingerprint(decision), row)


def outcome_saying(outcome: GateOutcome, now_us: int) -> Saying:
    """What the station did with the part, for `outcomes`."""
    body = outcome.SerializeToString(deterministic=True)
    row = {
        "recorded_at_us": now_us,
        "at_us": outcome.at.ToMicroseconds(),
        "line": outcome.line,
        "station": outcome.station,
        "action": outcome.action,
        "reason": outcome.reason,
        "outcome": body,
    }
    # A station journals its outcome and repeats it word for word.
    return Saying((outcome.frame_id,), hashlib.sha256(body).digest(), row)


def fingerprint(decision: Decision) -> bytes:
    """sha256 over what was decided, about which frame, by what. Equal for two decisions that say the same.

    A frame that is delivered twice is judged twice: at another time, perhaps on another machine and in another batch.
    So these may differ: timings; measured quality, and the words and figures of a hold (not its reason and measure);
    keys of what rests in the frame store; the alias that named the version; the score beyond its third decimal, where
    processors round differently. All else must be equal.
    """
    said = Decision()
    said.CopyFrom(decision)
    said.ClearField("timings")
    said.ClearField("quality")
    said.ClearField("evidence")
    said.ClearField("image_key")
    said.ClearField("pixels_key")
    said.ClearField("model_alias")
    if said.HasField("hold"):
        said.hold.CopyFrom(Hold(reason=said.hold.reason, measure=said.hold.measure))
    if said.HasField("score"):
        said.score = round(said.score, 3)
    return hashlib.sha256(said.SerializeToString(deterministic=True)).digest()


def records_page(connection: Connection, where: Where, after: int, limit: int) -> list[Record]:
    """At most `limit` records with a cursor above `after`, in the order of their cursors."""
    return _records(connection, _query([*where, decisions.c.cursor > after]).order_by(decisions.c.cursor).limit(limit))


def one_record(connection: Connection, frame_id: str) -> Record | None:
    return next(iter(_records(connection, _query([decisions.c.frame_id == frame_id]))), None)


def _query(where: Where) -> Select[Any]:
    return (
        select(
            decisions.c.frame_id,
            decisions.c.cursor,
            decisions.c.recorded_at_us,
            decisions.c.duplicates,
            decisions.c.conflicts,
            decisions.c.decision,
            outcomes.c.outcome,
            # Nearly no frame has revisions, so only whether there are any is asked here.
            exists().where(revisions.c.frame_id == decisions.c.frame_id).label("revised"),
            NEWEST_LABEL,
        )
        .select_from(decisions.outerjoin(outcomes, outcomes.c.frame_id == decisions.c.frame_id))
        .where(*where)
    )


def _records(connection: Connection, query: Select[Any]) -> list[Record]:
    rows = connection.execute(query).all()
    revised = _revisions(connection, [row.frame_id for row in rows if row.revised])
    return [_record(row, revised) for row in rows]


def _revisions(connection: Connection, frame_ids: Sequence[str]) -> dict[str, list[Decision]]:
    if not frame_ids:
        return {}
    found: dict[str, list[Decision]] = {}
    wanted = (
        select(revisions.c.frame_id, revisions.c.decision)
        .where(revisions.c.frame_id.in_(frame_ids))
        .order_by(revisions.c.frame_id, revisions.c.revision)
    )
    for frame_id, body in connection.execute(wanted):
        found.setdefault(frame_id, []).append(Decision.FromString(bytes(body)))
    return found


def _record(row: Row[Any], revised: Mapping[str, Sequence[Decision]]) -> Record:
    recorded_at = Timestamp()
    recorded_at.FromMicroseconds(row.recorded_at_us)
    gate = GateOutcome.FromString(bytes(row.outcome)) if row.outcome is not None else None
    return Record(
        cursor=row.cursor,
        decision=Decision.FromString(bytes(row.decision)),
        recorded_at=recorded_at,
        truth=row.truth or Label.LABEL_UNSPECIFIED,
        duplicates=row.duplicates,
        conflicts=row.conflicts,
        gate=gate,
        late=gate is not None and is_late(gate),
        revisions=revised.get(row.frame_id, ()),
    )
