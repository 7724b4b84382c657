"""What a gate's journal still knows when it is opened again, and that it does not grow for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspectbus.acquisition import gate_journal
from inspectbus.acquisition.gate_journal import GateJournal
from inspectbus.api.v1.gate_pb2 import GATE_ACTION_PASS, GATE_REASON_DECISION, GateOutcome


def pending(name: str) -> GateOutcome:
    return GateOutcome(frame_id=name, line="line-1", station="top", part_id=f"part {name}")


def settled(name: str) -> GateOutcome:
    outcome = pending(name)
    outcome.action, outcome.reason = GATE_ACTION_PASS, GATE_REASON_DECISION
    return outcome


def unconfirmed(journal: GateJournal) -> list[str]:
    return [outcome.frame_id for _, outcome in journal.outcomes(journal.confirmed)]


def test_it_knows_after_reopening_what_is_pending_given_and_unconfirmed(tmp_path: Path) -> None:
    journal = GateJournal(tmp_path, fsync=True)
    for name in ("first", "second", "third", "refused", "left"):
        journal.expect(pending(name))
    journal.settle([settled("first"), settled("second")])
    journal.settle([settled("third")])
    journal.forget("refused")
    [first, *_] = journal.outcomes(journal.confirmed)
    journal.confirm(first[0])
    journal.close()

    again = GateJournal(tmp_path, fsync=True)

    assert again.left == [pending("left")]
    assert again.given == ["first", "second", "third"]
    assert unconfirmed(again) == ["second", "third"]
    assert again.damage == ""
    again.close()


def test_what_is_settled_confirmed_and_long_ago_leaves_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_journal, "SEGMENT_BYTES", 2000)
    journal = GateJournal(tmp_path, fsync=False, remembered=10)
    journal.expect(pending("unlucky"))
    grown = []
    for number in range(500):
        if number == 250:
            journal.settle([settled("unlucky")])
        journal.expect(pending(str(number)))
        journal.settle([settled(str(number))])
        [*_, (position, _)] = journal.outcomes(journal.confirmed)
        journal.confirm(position)
        grown.append(sum(path.stat().st_size for path in tmp_path.glob("*.log")))

    assert grown[249] > 20_000, "nothing behind a pending frame goes"
    assert max(grown[300:]) < 8000
    journal.close()
    again = GateJournal(tmp_path, fsync=False, remembered=10)
    assert again.given == [str(number) for number in range(490, 500)]
    assert (again.left, unconfirmed(again)) == ([], [])
    again.close()


def test_a_torn_end_costs_only_what_was_being_written(tmp_path: Path) -> None:
    journal = GateJournal(tmp_path, fsync=False)
    journal.expect(pending("whole"))
    journal.expect(pending("torn"))
    journal.close()
    [segment] = tmp_path.glob("*.log")
    segment.write_bytes(segment.read_bytes()[:-3])

    again = GateJournal(tmp_path, fsync=False)

    assert again.left == [pending("whole")]
    assert "damaged or torn" in again.damage
    again.close()


@settings(max_examples=40, deadline=None)
@given(verbs=st.lists(st.sampled_from(["expect", "settle", "forget", "confirm", "reopen"]), max_size=60))
def test_it_never_forgets_what_is_pending_or_unconfirmed(
    verbs: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    small = gate_journal.SEGMENT_BYTES
    gate_journal.SEGMENT_BYTES = 300
    try:
        journal = GateJournal(folder, fsync=False, remembered=3)
        waiting: list[str] = []
        owed: list[str] = []
        given_ids: list[str] = []
        for number, verb in enumerate([*verbs, "reopen"]):
            if verb == "expect":
                journal.expect(pending(str(number)))
                waiting.append(str(number))
            elif verb == "settle" and waiting:
                name = waiting.pop(number % len(waiting))
                journal.settle([settled(name)])
                owed.append(name)
                given_ids.append(name)
            elif verb == "forget" and waiting:
                journal.forget(waiting.pop(0))
            elif verb == "confirm" and owed:
                positions = {outcome.frame_id: at for at, outcome in journal.outcomes(journal.confirmed)}
                journal.confirm(positions[owed[len(owed) // 2]])
                owed = owed[len(owed) // 2 + 1 :]
            elif verb == "reopen":
                journal.close()
                journal = GateJournal(folder, fsync=False, remembered=3)
                assert [outcome.frame_id for outcome in journal.left] == waiting
                assert journal.given[-3:] == given_ids[-3:]
            assert unconfirmed(journal) == owed
        journal.close()
    finally:
        gate_journal.SEGMENT_BYTES = small
