"""Shadows: what a second version said of a frame, and how often it was what was decided.

ShadowDecisions of a batch ─> shadows, first of a frame and version ─┐
                                                                     ├─ both judged the frame ─> agreement, differences
decisions, as the ledger has them ───────────────────────────────────┘

A table of its own: nothing of it enters the ledger, its cursors or its scores. Rows are kept for `shadows_kept_s`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, and_, delete, func, select, tuple_

from inspectbus.api.v1.decision_pb2 import Decision
from inspectbus.api.v1.results_pb2 import Agreement, Disagreement, VerdictPair
from inspectbus.api.v1.shadow_pb2 import ShadowDecision
from inspectbus.results.first_wins import Fate, FirstWins, Saying
from inspectbus.results.rows import NEWEST_LABEL, Where
from inspectbus.results.tables import decisions, shadows
from inspectbus.stores.database import reading, take_turn, writing


@dataclass(frozen=True)
class Place:
    """Where a page ends: the key of a row, in the order of pages."""

    recorded_at_us: int = -1
    """Before all others."""
    frame_id: str = ""
    model_version: str = ""


class ShadowBook:
    """Thread-safe. Every method is one transaction, and raises StorageFull or StorageAway when the database fails."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rows = FirstWins(engine, shadows)

    def record(self, batch: Sequence[ShadowDecision]) -> list[Fate]:
        """Writes down a batch, all or none, and tells what became of each, in their order."""
        if not batch:
            return []
        now_us = time.time_ns() // 1000
        with writing(self._engine) as connection:
            take_turn(connection, "shadows")
            return self._rows.write(connection, [_saying(said, now_us) for said in batch])

    def agreement(self, where: Where) -> list[Agreement]:
        """By line, station and pair of versions, in that order. A frame that is not decided (yet) does not count."""
        groups = (decisions.c.line, decisions.c.station, decisions.c.model_version, shadows.c.model_version)
        verdicts = (decisions.c.verdict, shadows.c.verdict)
        query = _both(*groups, *verdicts, func.count(), where=where).group_by(*groups, *verdicts)
        found: dict[tuple[str, ...], Agreement] = {}
        with reading(self._engine) as connection:
            for *group, decided, shadow, count in connection.execute(query.order_by(*groups, *verdicts)):
                line, station, version, shadow_version = group
                row = found.setdefault(
                    tuple(group),
                    Agreement(line=line, station=station, model_version=version, shadow_version=shadow_version),
                )
                row.frames += count
                row.agreeing += count if decided == shadow else 0
                row.pairs.append(VerdictPair(decided=decided, shadow=shadow, frames=count))
        return list(found.values())

    def differences(self, where: Where, after: Place, limit: int) -> list[tuple[Place, Disagreement]]:
        """At most so many frames on which the verdicts differ, behind a place, in the order of their recording."""
        order = (shadows.c.recorded_at_us, shadows.c.frame_id, shadows.c.model_version)
        behind = tuple_(*order) > tuple_(after.recorded_at_us, after.frame_id, after.model_version)
        differ = decisions.c.verdict != shadows.c.verdict
        columns = (*order, shadows.c.shadow, decisions.c.decision, NEWEST_LABEL)
        query = _both(*columns, where=[*where, differ, behind]).order_by(*order).limit(limit)
        with reading(self._engine) as connection:
            return [(Place(*row[:3]), _disagreement(row)) for row in connection.execute(query)]

    def forget(self, until_us: int, limit: int) -> Iterator[int]:
        """Deletes rows recorded before then, so many at a time, and gives how many each time."""
        while True:
            with writing(self._engine) as connection:
                gone = _forgotten(connection, until_us, limit)
            yield gone
            if gone < limit:
                return


def _both(*columns: Any, where: Where) -> Select[Any]:
    """Frames that both judged. One that is held because nothing judged it says nothing of a version."""
    judged = and_(decisions.c.frame_id == shadows.c.frame_id, decisions.c.model == shadows.c.model)
    return select(*columns).select_from(shadows.join(decisions, judged)).where(decisions.c.model_version != "", *where)


def _forgotten(connection: Connection, until_us: int, limit: int) -> int:
    due = select(shadows.c.frame_id, shadows.c.model_version).where(shadows.c.recorded_at_us < until_us)
    keys = [tuple(row) for row in connection.execute(due.order_by(shadows.c.recorded_at_us).limit(limit))]
    if keys:
        connection.execute(delete(shadows).where(tuple_(shadows.c.frame_id, shadows.c.model_version).in_(keys)))
    return len(keys)


def _saying(said: ShadowDecision, now_us: int) -> Saying:
    row = {
        "recorded_at_us": now_us,
        "line": said.line,
        "station": said.station,
        "model": said.model,
        "verdict": said.verdict,
        "shadow": said.SerializeToString(),
    }
    return Saying((said.frame_id, said.model_version), _fingerprint(said), row)


def _fingerprint(said: ShadowDecision) -> bytes:
    """As of a decision: a frame that comes twice is judged twice, at another time and perhaps in another batch."""
    same = ShadowDecision()
    same.CopyFrom(said)
    same.ClearField("inferred_at")
    same.score = round(said.score, 3)
    return hashlib.sha256(same.SerializeToString(deterministic=True)).digest()


def _disagreement(row: Row[Any]) -> Disagreement:
    said = ShadowDecision.FromString(bytes(row.shadow))
    decision = Decision.FromString(bytes(row.decision))
    found = Disagreement(
        frame_id=said.frame_id,
        line=said.line,
        station=said.station,
        model_version=decision.model_version,
        shadow_version=said.model_version,
        decided=decision.verdict,
        shadow=said.verdict,
        decided_score=decision.score if decision.HasField("score") else None,
        shadow_score=said.score,
        truth=row.truth,
    )
    found.recorded_at.FromMicroseconds(row.recorded_at_us)
    return found
