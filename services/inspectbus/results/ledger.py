"""The ledger: every frame's first committed decision, for ever, and what became known of the part afterwards.

    decisions of a batch ─> fold repeats ─> one transaction: cursors, one upsert, replay labels ─> what became of each
    labels of people ─────> rows beside the decisions; the newest counts
    questions <──────────── records by frame, by page, after a cursor; scores

Delivering is at least once, so recording must be idempotent: the frame id is the primary key and the upsert never
touches what was said first. It only counts: the same decision again is a duplicate, a differing one a conflict.

The cursor rises in the order of commit, which a sequence would not promise: PostgreSQL hands out 7 and 8 to two open
transactions, commits 8 first, and a watcher that has read 8 never sees 7. Here every recording transaction first
updates the one row of `ledger_cursor` and so holds it until its commit is visible: whoever sees a record sees all with
smaller cursors. Recorders of several replicas take turns for the time of one batch, which also keeps them from
deadlocks over the frames they share. Repeats leave gaps.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, and_, case, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from inspectbus.api.v1.decision_pb2 import Decision, Hold, Verdict
from inspectbus.api.v1.frame_pb2 import Label
from inspectbus.api.v1.results_pb2 import Record
from inspectbus.domain.scores import Confusion
from inspectbus.errors import NotFound
from inspectbus.results.claims import note_claims
from inspectbus.results.tables import decisions, labels, ledger_cursor
from inspectbus.stores.database import reading, writing

REPLAY = "replay"
"""Who gave a label that came with the decision: the data set that was replayed."""

_NEWEST_LABEL = (
    select(labels.c.label)
    .where(labels.c.frame_id == decisions.c.frame_id)
    .order_by(labels.c.id.desc())
    .limit(1)
    .scalar_subquery()
    .label("truth")
)

Where = Sequence[ColumnElement[bool]]
"""Conditions on the columns of `decisions`, all of which must hold; see selection.py."""


class Outcome(Enum):
    """What became of one decision that was given to the ledger."""

    RECORDED = "recorded"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class Tally:
    """Scores of one group of decisions."""

    group: tuple[str, ...]
    """Values of the columns grouped by."""
    confusion: Confusion
    decisions: int
    """With and without known truth."""


class Ledger:
    """Thread-safe. Every method is one transaction, and raises StorageFull or StorageAway when the database fails."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        upsert: sqlite.Insert | postgresql.Insert
        upsert = sqlite.insert(decisions) if engine.dialect.name == "sqlite" else postgresql.insert(decisions)
        same = decisions.c.fingerprint == upsert.excluded.fingerprint
        # A row brings the repeats folded into it as `duplicates`; itself makes one more.
        came = upsert.excluded.duplicates + 1
        self._upsert = upsert.on_conflict_do_update(
            index_elements=[decisions.c.frame_id],
            set_={
                "duplicates": decisions.c.duplicates + case((same, came), else_=0),
                "conflicts": decisions.c.conflicts + case((same, 0), else_=came),
            },
        ).returning(decisions.c.frame_id, decisions.c.cursor, decisions.c.fingerprint)

    def record(self, batch: Sequence[Decision]) -> list[Outcome]:
        """Writes down a batch of valid decisions, all or none, and tells what became of each, in their order.

        The result is the same as of recording one by one, whatever comes twice, inside the batch or across replicas.
        """
        turns = _turns(batch)
        outcomes = [Outcome.DUPLICATE] * len(batch)
        if not turns:
            return outcomes
        now_us = time.time_ns() // 1000
        with writing(self._engine) as connection:
            cursors = itertools.count(self._reserve(connection, sum(map(len, turns))) + 1)
            for turn in turns:
                rows = [_row(saying, next(cursors), now_us) for saying in turn]
                standing = {
                    frame_id: (cursor, bytes(print_))
                    for frame_id, cursor, print_ in connection.execute(self._upsert, rows)
                }
                for saying, row in zip(turn, rows, strict=True):
                    cursor, print_ = standing[saying.decision.frame_id]
                    if cursor == row["cursor"]:
                        outcomes[saying.indices[0]] = Outcome.RECORDED
                    elif print_ != saying.fingerprint:
                        for index in saying.indices:
                            outcomes[index] = Outcome.CONFLICT
            truths = [
                {"frame_id": decision.frame_id, "label": decision.truth, "by": REPLAY, "at_us": now_us}
                for decision, outcome in zip(batch, outcomes, strict=True)
                if outcome is Outcome.RECORDED and decision.truth
            ]
            if truths:
                connection.execute(insert(labels), truths)
            note_claims(connection, batch, now_us)
        return outcomes

    def label(self, given: Sequence[tuple[str, Label.ValueType]], by: str) -> None:
        """Adds what parts really were, all or none. Raises NotFound naming every frame that was never recorded."""
        now_us = time.time_ns() // 1000
        with writing(self._engine) as connection:
            wanted = [frame_id for frame_id, _ in given]
            known = set(connection.scalars(select(decisions.c.frame_id).where(decisions.c.frame_id.in_(wanted))))
            unknown = [f"labels[{i}].frame_id" for i, frame_id in enumerate(wanted) if frame_id not in known]
            if unknown:
                raise NotFound(
                    f"no decision is recorded for {', '.join(unknown)}; no label was taken", field=unknown[0]
                )
            connection.execute(
                insert(labels),
                [{"frame_id": frame_id, "label": label, "by": by, "at_us": now_us} for frame_id, label in given],
            )

    def get(self, frame_id: str) -> Record:
        """Raises NotFound."""
        with reading(self._engine) as connection:
            row = connection.execute(_records([decisions.c.frame_id == frame_id])).one_or_none()
        if row is None:
            raise NotFound(f"no decision is recorded for frame {frame_id}", field="frame_id")
        return _record(row)

    def page(self, where: Where, after: int, limit: int) -> list[Record]:
        """At most `limit` records with a cursor above `after`, in the order of their cursors."""
        with reading(self._engine) as connection:
            return _page(connection, where, after, limit)

    def news(self, where: Where, after: int, limit: int) -> tuple[list[Record], int]:
        """Like `page`, with the cursor up to which everything has now been looked at, for the next call."""
        with reading(self._engine) as connection:
            # Before the page, so that nothing committed between the two statements is passed over.
            last = _last_cursor(connection)
            found = _page(connection, where, after, limit)
        seen = found[-1].cursor if found else after
        # A page that is not full saw all there was; `seen` may be beyond `last`, by commits in between.
        return found, seen if len(found) == limit else max(seen, last)

    def last_cursor(self) -> int:
        """The cursor up to which records are visible; 0 in an empty ledger."""
        with reading(self._engine) as connection:
            return _last_cursor(connection)

    def scores(self, where: Where, group_by: Sequence[ColumnElement[str]]) -> list[Tally]:
        """A tally per group, ordered by group, in one statement; at most one tally when not grouped."""
        names = [f"group_{i}" for i in range(len(group_by))]
        columns = [column.label(name) for name, column in zip(names, group_by, strict=True)]
        told = select(*columns, decisions.c.verdict, _NEWEST_LABEL).where(*where).subquery()
        groups = [told.c[name] for name in names]

        def count(verdict: Verdict.ValueType, truth: Label.ValueType) -> ColumnElement[int]:
            return func.count().filter(and_(told.c.verdict == verdict, told.c.truth == truth))

        query = (
            select(
                *groups,
                func.count(),
                count(Verdict.VERDICT_DEFECTIVE, Label.LABEL_DEFECTIVE),
                count(Verdict.VERDICT_DEFECTIVE, Label.LABEL_GOOD),
                count(Verdict.VERDICT_QUALIFIED, Label.LABEL_GOOD),
                count(Verdict.VERDICT_QUALIFIED, Label.LABEL_DEFECTIVE),
                count(Verdict.VERDICT_HOLD, Label.LABEL_DEFECTIVE),
                count(Verdict.VERDICT_HOLD, Label.LABEL_GOOD),
            )
            .select_from(told)
            .group_by(*groups)
            .order_by(*groups)
        )
        width = len(groups)
        with reading(self._engine) as connection:
            return [
                Tally(tuple(row[:width]), Confusion(*row[width + 1 :]), row[width]) for row in connection.execute(query)
            ]

    def _reserve(self, connection: Connection, count: int) -> int:
        """Takes the turn among all recorders, and the next `count` cursors. Gives the cursor before them."""
        grown = update(ledger_cursor).values(last=ledger_cursor.c.last + count).returning(ledger_cursor.c.last)
        return int(connection.execute(grown).scalar_one()) - count


def fingerprint(decision: Decision) -> bytes:
    """sha256 over what was decided, about which frame, by what. Equal for two decisions that say the same.

    A frame that is delivered twice is judged twice: at another time, perhaps on another machine and in another batch.
    So these may differ: timings; measured quality, and the words and figures of a hold (not its reason and measure);
    keys of evidence and claims; the score beyond its third decimal, where processors round differently. All else must
    be equal.
    """
    said = Decision()
    said.CopyFrom(decision)
    said.ClearField("timings")
    said.ClearField("quality")
    said.ClearField("evidence")
    said.ClearField("image_key")
    said.ClearField("pixels_key")
    if said.HasField("hold"):
        said.hold.CopyFrom(Hold(reason=said.hold.reason, measure=said.hold.measure))
    if said.HasField("score"):
        said.score = round(said.score, 3)
    return hashlib.sha256(said.SerializeToString(deterministic=True)).digest()


@dataclass(frozen=True)
class _Saying:
    """What a batch says of one frame, once or several times."""

    decision: Decision
    fingerprint: bytes
    indices: list[int]
    """Where in the batch."""


def _turns(batch: Sequence[Decision]) -> list[list[_Saying]]:
    """The batch as statements can take it: each turn has a frame once, a frame's next differing saying the next turn.

    Nearly always one turn: it takes a conflict inside one batch to make a second.
    """
    by_frame: dict[str, dict[bytes, _Saying]] = {}
    for index, decision in enumerate(batch):
        print_ = fingerprint(decision)
        sayings = by_frame.setdefault(decision.frame_id, {})
        sayings.setdefault(print_, _Saying(decision, print_, [])).indices.append(index)
    turns = itertools.zip_longest(*(sayings.values() for sayings in by_frame.values()))
    return [[saying for saying in turn if saying is not None] for turn in turns]


def _row(saying: _Saying, cursor: int, now_us: int) -> dict[str, object]:
    decision = saying.decision
    return {
        "frame_id": decision.frame_id,
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
        "fingerprint": saying.fingerprint,
        "duplicates": len(saying.indices) - 1,
        "conflicts": 0,
        "decision": decision.SerializeToString(),
    }


def _records(where: Where) -> Select[Any]:
    return select(
        decisions.c.cursor,
        decisions.c.recorded_at_us,
        decisions.c.duplicates,
        decisions.c.conflicts,
        decisions.c.decision,
        _NEWEST_LABEL,
    ).where(*where)


def _record(row: Row[Any]) -> Record:
    recorded_at = Timestamp()
    recorded_at.FromMicroseconds(row.recorded_at_us)
    return Record(
        cursor=row.cursor,
        decision=Decision.FromString(bytes(row.decision)),
        recorded_at=recorded_at,
        truth=row.truth or Label.LABEL_UNSPECIFIED,
        duplicates=row.duplicates,
        conflicts=row.conflicts,
    )


def _page(connection: Connection, where: Where, after: int, limit: int) -> list[Record]:
    query = _records([*where, decisions.c.cursor > after]).order_by(decisions.c.cursor).limit(limit)
    return [_record(row) for row in connection.execute(query)]


def _last_cursor(connection: Connection) -> int:
    return int(connection.execute(select(ledger_cursor.c.last)).scalar_one())
