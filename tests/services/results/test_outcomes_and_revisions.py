"""Do a part's gate outcome and a frame's later decisions stand beside its first decision, whichever comes first?"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Engine, event, func, select

from inspectbus.api.v1.decision_pb2 import Decision, Hold, HoldReason, Timings, Verdict
from inspectbus.api.v1.frame_pb2 import Label
from inspectbus.api.v1.gate_pb2 import GateAction, GateOutcome, GateReason
from inspectbus.errors import BadField, NotFound
from inspectbus.results.events import read_decision, read_outcome
from inspectbus.results.first_wins import Fate
from inspectbus.results.ledger import Ledger
from inspectbus.results.tables import outcomes, revisions

Decide = Callable[..., Decision]
Act = Callable[..., GateOutcome]

RECORDED, DUPLICATE, CONFLICT = Fate.RECORDED, Fate.DUPLICATE, Fate.CONFLICT
LATE: dict[str, Any] = {
    "action": GateAction.GATE_ACTION_REJECT,
    "reason": GateReason.GATE_REASON_DEADLINE,
    "verdict": Verdict.VERDICT_UNSPECIFIED,
}


# Outcomes


@pytest.mark.parametrize("gate_first", [False, True])
def test_an_outcome_stands_beside_its_decision_whichever_comes_first(
    ledger: Ledger, decide: Decide, act: Act, gate_first: bool
) -> None:
    decision = decide()
    outcome = act(decision)
    entries: list[Decision | GateOutcome] = [outcome, decision] if gate_first else [decision, outcome]

    assert [ledger.record([entry]) for entry in entries] == [[RECORDED], [RECORDED]]

    record = ledger.get(decision.frame_id)
    assert (record.decision, record.gate, record.late) == (decision, outcome, False)
    assert record.cursor == ledger.last_cursor() == 1


def test_an_outcome_without_a_decision_is_no_record(ledger: Ledger, decide: Decide, act: Act) -> None:
    alone = act(decide())
    ledger.record([alone])

    assert ledger.page([], 0, 10) == []
    with pytest.raises(NotFound):
        ledger.get(alone.frame_id)


@pytest.mark.parametrize("reason", [GateReason.GATE_REASON_DEADLINE, GateReason.GATE_REASON_RESTART])
def test_a_part_that_no_decision_came_for_in_time_is_late(
    ledger: Ledger, decide: Decide, act: Act, reason: GateReason.ValueType
) -> None:
    decision = decide()
    ledger.record([act(decision, **{**LATE, "reason": reason}), decision])
    assert ledger.get(decision.frame_id).late


def test_the_first_outcome_stays_and_others_are_counted(
    ledger: Ledger, engine: Engine, decide: Decide, act: Act
) -> None:
    decision = decide()
    first, other = act(decision), act(decision, **LATE)

    fates = ledger.record([decision, first, first, other, first])
    fates += ledger.record([other, first])

    assert fates == [RECORDED, RECORDED, DUPLICATE, CONFLICT, DUPLICATE, CONFLICT, DUPLICATE]
    record = ledger.get(decision.frame_id)
    assert (record.gate, record.late) == (first, False)
    assert (record.duplicates, record.conflicts) == (0, 0)
    with engine.connect() as connection:
        counted = connection.execute(select(outcomes.c.duplicates, outcomes.c.conflicts)).one()
    assert tuple(counted) == (3, 2)


def test_pages_tell_the_outcomes_too(ledger: Ledger, decide: Decide, act: Act) -> None:
    told = [decide() for _ in range(6)]
    ledger.record([*told, *(act(decision) for decision in told[::2])])
    assert [record.HasField("gate") for record in ledger.page([], 0, 10)] == [True, False] * 3


def test_a_batch_of_both_takes_one_statement_a_table(ledger: Ledger, engine: Engine, decide: Decide, act: Act) -> None:
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2].split("(")[0].strip()))
    told = [decide() for _ in range(128)]

    ledger.record([entry for decision in told for entry in (decision, act(decision))])

    assert [words for words in statements if words != "BEGIN IMMEDIATE"][1:] == [
        "INSERT INTO decisions",
        "INSERT INTO outcomes",
    ]


def test_two_replicas_given_the_same_entries_at_once_record_each_once(
    opened: Callable[[], Engine], decide: Decide, act: Act
) -> None:
    replicas = [Ledger(opened()), Ledger(opened())]
    told = [decide() for _ in range(60)]
    entries = [entry for decision in told for entry in (act(decision), decision)]
    barrier = threading.Barrier(2, timeout=20)

    def record(replica: Ledger, mine: list[Decision | GateOutcome]) -> list[Fate]:
        barrier.wait()
        return [fate for i in range(0, len(mine), 9) for fate in replica.record(mine[i : i + 9])]

    with ThreadPoolExecutor(2) as pool:
        fates = [fate for part in pool.map(record, replicas, (entries, entries[::-1])) for fate in part]

    assert fates.count(RECORDED) == fates.count(DUPLICATE) == len(entries)
    with opened().connect() as connection:
        assert connection.scalar(select(func.count()).select_from(outcomes)) == len(told)


# Revisions


def held(decision: Decision, revision: int = 0) -> Decision:
    said = Decision(verdict=Verdict.VERDICT_HOLD, hold=Hold(reason=HoldReason.HOLD_REASON_ERROR), revision=revision)
    for field in ("frame_id", "line", "station"):
        setattr(said, field, getattr(decision, field))
    return said


def revised(decision: Decision, revision: int) -> Decision:
    copy = Decision()
    copy.CopyFrom(decision)
    copy.revision = revision
    return copy


def test_decisions_on_replays_stand_beside_the_first_by_rising_revision(ledger: Ledger, decide: Decide) -> None:
    judged = decide(truth=Label.LABEL_GOOD)
    first = held(judged)
    ledger.record([first])

    assert ledger.record([revised(judged, 2), held(judged, 1)]) == [RECORDED, RECORDED]

    record = ledger.get(first.frame_id)
    assert record.decision == first
    assert list(record.revisions) == [held(judged, 1), revised(judged, 2)]
    assert (record.duplicates, record.conflicts, record.cursor) == (0, 0, 1)
    # A replay brings no truth that the first decision did not.
    assert record.truth == Label.LABEL_UNSPECIFIED
    assert len(ledger.page([], 0, 10)) == 1


def test_a_revision_before_the_first_decision_is_shown_when_that_comes(ledger: Ledger, decide: Decide) -> None:
    judged = decide()
    assert ledger.record([revised(judged, 1)]) == [RECORDED]
    with pytest.raises(NotFound):
        ledger.get(judged.frame_id)

    assert ledger.record([held(judged)]) == [RECORDED]

    assert list(ledger.get(judged.frame_id).revisions) == [revised(judged, 1)]


def test_a_revision_again_is_a_duplicate_and_a_differing_one_a_conflict(
    ledger: Ledger, engine: Engine, decide: Decide
) -> None:
    judged = decide()
    again = revised(judged, 1)
    again.timings.CopyFrom(Timings(decided_at=Timestamp(seconds=5)))

    assert ledger.record([revised(judged, 1), again, held(judged, 1)]) == [RECORDED, DUPLICATE, CONFLICT]
    assert ledger.record([held(judged, 1)]) == [CONFLICT]

    with engine.connect() as connection:
        counted = connection.execute(select(revisions.c.duplicates, revisions.c.conflicts)).one()
    assert tuple(counted) == (1, 2)


# What is refused at the door


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"frame_id": "17"}, "frame_id"),
        ({"line": "Line 1"}, "line"),
        ({"station": ""}, "station"),
        ({"part_id": "a\0b"}, "part_id"),
        ({"run_id": "x" * 501}, "run_id"),
        ({"action": 0}, "action"),
        ({"action": 99}, "action"),
        ({"reason": 0}, "reason"),
        ({"verdict": 99}, "verdict"),
        ({"verdict": 0}, "verdict"),
        ({"at": None}, "at"),
        ({"at": Timestamp(seconds=1 << 50)}, "at"),
        ({"waited_s": float("nan")}, "waited_s"),
        ({"waited_s": -1.0}, "waited_s"),
    ],
)
def test_what_is_no_outcome_is_refused_by_its_field(
    decide: Decide, act: Act, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(BadField) as refused:
        read_outcome(act(decide(), **fields).SerializeToString())
    assert refused.value.field == field


def test_an_outcome_is_read_with_its_frame_id_in_canonical_form(decide: Decide, act: Act) -> None:
    outcome = act(decide(), frame_id=str(uuid.uuid4()).upper())
    assert read_outcome(outcome.SerializeToString()).frame_id == outcome.frame_id.lower()
    with pytest.raises(BadField, match="not a GateOutcome"):
        read_outcome(b"\xff\xff")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"revision": 1001}, "revision"),
        ({"timings": Timings(captured_at=Timestamp(seconds=1 << 50))}, "timings.captured_at"),
        ({"timings": Timings(decided_at=Timestamp(nanos=-5))}, "timings.decided_at"),
        ({"part_id": "a\0b"}, "part_id"),
    ],
)
def test_what_no_database_takes_is_no_decision(decide: Decide, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as refused:
        read_decision(decide(**fields).SerializeToString())
    assert refused.value.field == field
