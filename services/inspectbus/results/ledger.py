"""The ledger: every frame's first committed decision, for ever, and what became known of the part afterwards.

    a batch of decisions ──┐
    and of gate outcomes ──┴─> one transaction: cursors, one upsert a table, replay labels ─> what became of each
    labels of people ────────> rows beside the decisions; the newest counts
    questions <─────────────── records by frame, by page, after a cursor; scores

The frame id is the primary key, and the first stays: see first_wins.py. Decisions on later replays of a frame (its
revisions) and what the station did (its outcome) stand beside, in tables of their own, and may come before it.

The cursor rises in the order of commit, which a sequence would not promise: PostgreSQL hands out 7 and 8 to two open
transactions, commits 8 first, and a watcher that has read 8 never sees 7. Here every recording transaction first
updates the one row of `ledger_cursor` and so holds it until its commit is visible: whoever sees a record sees all with
smaller cursors. Recorders of several replicas take turns for the time of one batch, which also keeps them from
deadlocks over the frames they share. Repeats leave gaps.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, insert, select, update

from inspectbus.api.v1.decision_pb2 import Decision, Verdict
from inspectbus.api.v1.frame_pb2 import Label
from inspectbus.api.v1.gate_pb2 import GateOutcome
from inspectbus.api.v1.results_pb2 import Record
from inspectbus.domain.scores import Confusion
from inspectbus.errors import NotFound
from inspectbus.results.claims import note_claims
from inspectbus.results.first_wins import Fate, FirstWins, Saying
from inspectbus.results.rows import (
    NEWEST_LABEL,
    Where,
    decision_saying,
    one_record,
    outcome_saying,
    records_page,
    revision_saying,
)
from inspectbus.results.tables import decisions, labels, ledger_cursor, outcomes, revisions
from inspectbus.stores.database import reading, writing

REPLAY = "replay"
"""Who gave a label that came with the decision: the data set that was replayed."""

Entry = Decision | GateOutcome
"""What is recorded. A decision with a revision is one on a replayed frame."""


@dataclass(frozen=True)
class Tally:
    """Scores of one group of decisions."""

    group: tuple[str, ...]
    """Values of the columns grouped by."""
    confusion: Confusion
    decisions: int
    """With and without known truth."""
    held: int
    """Decisions that are HOLD, with and without known truth."""


@dataclass(frozen=True)
class Labelled:
    """A decided frame, and what its part really was."""

    line: str
    station: str
    verdict: Verdict.ValueType
    label: Label.ValueType


class Ledger:
    """Thread-safe. Every method is one transaction, and raises StorageFull or StorageAway when the database fails."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._books = {table.name: FirstWins(engine, table) for table in (decisions, revisions, outcomes)}

    def record(self, batch: Sequence[Entry]) -> list[Fate]:
        """Writes down a batch of valid entries, all or none, and tells what became of each, in their order.

        The result is the same as of recording one by one, whatever comes twice, inside the batch or across replicas.
        """
        fates = [Fate.DUPLICATE] * len(batch)
        if not batch:
            return fates
        now_us = time.time_ns() // 1000
        with writing(self._engine) as connection:
            cursors = itertools.count(self._reserve(connection, sum(map(is_first, batch))) + 1)
            pages: dict[str, dict[int, Saying]] = {}
            for index, entry in enumerate(batch):
                book, saying = _said(entry, cursors, now_us)
                pages.setdefault(book, {})[index] = saying
            for book, page in pages.items():
                for index, fate in zip(page, self._books[book].write(connection, list(page.values())), strict=True):
                    fates[index] = fate
            truths = [
                {"frame_id": entry.frame_id, "label": entry.truth, "by": REPLAY, "at_us": now_us}
                for entry, fate in zip(batch, fates, strict=True)
                if fate is Fate.RECORDED and is_first(entry) and entry.truth
            ]
            if truths:
                connection.execute(insert(labels), truths)
            note_claims(connection, [entry for entry in batch if isinstance(entry, Decision)], now_us)
        return fates

    def label(self, given: Sequence[tuple[str, Label.ValueType]], by: str) -> list[Labelled]:
        """Adds what parts really were, all or none, and tells what had been decided on them, in the order given.

        Raises NotFound naming every frame that was never recorded.
        """
        now_us = time.time_ns() // 1000
        with writing(self._engine) as connection:
            wanted = [frame_id for frame_id, _ in given]
            asked = select(decisions.c.frame_id, decisions.c.line, decisions.c.station, decisions.c.verdict)
            known = {row.frame_id: row for row in connection.execute(asked.where(decisions.c.frame_id.in_(wanted)))}
            unknown = [f"labels[{i}].frame_id" for i, frame_id in enumerate(wanted) if frame_id not in known]
            if unknown:
                raise NotFound(
                    f"no decision is recorded for {', '.join(unknown)}; no label was taken", field=unknown[0]
                )
            connection.execute(
                insert(labels),
                [{"frame_id": frame_id, "label": label, "by": by, "at_us": now_us} for frame_id, label in given],
            )
        decided = [(known[frame_id], label) for frame_id, label in given]
        return [Labelled(row.line, row.station, row.verdict, label) for row, label in decided]

    def get(self, frame_id: str) -> Record:
        """Raises NotFound."""
        with reading(self._engine) as connection:
            record = one_record(connection, frame_id)
        if record is None:
            raise NotFound(f"no decision is recorded for frame {frame_id}", field="frame_id")
        return record

    def page(self, where: Where, after: int, limit: int) -> list[Record]:
        """At most `limit` records with a cursor above `after`, in the order of their cursors."""
        with reading(self._engine) as connection:
            return records_page(connection, where, after, limit)

    def news(self, where: Where, after: int, limit: int) -> tuple[list[Record], int]:
        """Like `page`, with the cursor up to which everything has now been looked at, for the next call."""
        with reading(self._engine) as connection:
            # Before the page, so that nothing committed between the two statements is passed over.
            last = _last_cursor(connection)
            found = records_page(connection, where, after, limit)
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
        told = select(*columns, decisions.c.verdict, NEWEST_LABEL).where(*where).subquery()
        groups = [told.c[name] for name in names]

        def count(verdict: Verdict.ValueType, truth: Label.ValueType) -> ColumnElement[int]:
            return func.count().filter(and_(told.c.verdict == verdict, told.c.truth == truth))

        query = (
            select(
                *groups,
                func.count(),
                func.count().filter(told.c.verdict == Verdict.VERDICT_HOLD),
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
                Tally(tuple(row[:width]), Confusion(*row[width + 2 :]), row[width], row[width + 1])
                for row in connection.execute(query)
            ]

    def _reserve(self, connection: Connection, count: int) -> int:
        """Takes the turn among all recorders, and the next `count` cursors. Gives the cursor before them."""
        grown = update(ledger_cursor).values(last=ledger_cursor.c.last + count).returning(ledger_cursor.c.last)
        return int(connection.execute(grown).scalar_one()) - count


def is_first(entry: object) -> TypeGuard[Decision]:
    """True for what becomes a record of its own: a decision that is no revision of another."""
    return isinstance(entry, Decision) and not entry.revision


def _said(entry: Entry, cursors: Iterator[int], now_us: int) -> tuple[str, Saying]:
    """The table an entry belongs to, and its row there."""
    if isinstance(entry, GateOutcome):
        return outcomes.name, outcome_saying(entry, now_us)
    if entry.revision:
        return revisions.name, revision_saying(entry, now_us)
    return decisions.name, decision_saying(entry, next(cursors), now_us)


def _last_cursor(connection: Connection) -> int:
    return int(connection.execute(select(ledger_cursor.c.last)).scalar_one())
