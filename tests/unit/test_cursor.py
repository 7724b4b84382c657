"""A run's cursor: never ahead of what is settled, and whole on disk or refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from inspectbus.acquisition.cursor import Cursor, Journal, Mark
from inspectbus.errors import BadField, NotPossibleNow

MARK = Mark(plan="p" * 16, items="i" * 16, run_id="20260131T120000Z-1f3a9c42", next=137, unreadable=2)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "acquisition", "line-1", "top")
    with journal.owned():
        journal.write(MARK)
    return journal


def test_the_cursor_moves_over_the_gapless_part_only() -> None:
    cursor = Cursor(MARK.model_copy(update={"next": 0, "unreadable": 0}))

    cursor.settle(1)
    cursor.settle(3, unreadable=True)
    assert (cursor.next, cursor.accepted, cursor.unreadable) == (0, 1, 1)

    cursor.settle(0)
    assert cursor.mark().next == 2
    assert cursor.mark().unreadable == 0, "position 3 lies beyond the mark"

    cursor.settle(2)
    assert (cursor.next, cursor.accepted, cursor.unreadable) == (4, 3, 1)


def test_the_cursor_never_passes_what_is_not_settled_whatever_the_order() -> None:
    order = list(range(200))
    random.Random(7).shuffle(order)
    cursor = Cursor(MARK.model_copy(update={"next": 0, "unreadable": 0}))
    settled: set[int] = set()

    for position in order:
        cursor.settle(position)
        settled.add(position)
        assert set(range(cursor.next)) <= settled
        assert cursor.next not in settled

    assert cursor.mark(finished=True) == MARK.model_copy(update={"next": 200, "unreadable": 0, "finished": True})


def test_a_mark_is_read_as_it_was_written(journal: Journal) -> None:
    assert journal.read() == MARK


def test_a_station_without_a_journal_has_no_mark(tmp_path: Path) -> None:
    assert Journal(tmp_path / "nowhere", "line-1", "top").read() is None


def test_a_journal_cut_at_any_byte_is_refused(journal: Journal) -> None:
    whole = journal.file.read_bytes()
    for length in range(len(whole)):
        journal.file.write_bytes(whole[:length])
        with pytest.raises(BadField, match="is damaged"):
            journal.read()


def test_a_journal_with_any_byte_changed_is_refused(journal: Journal) -> None:
    whole = journal.file.read_bytes()
    for place in range(len(whole)):
        for flip in (0x01, 0x80):
            journal.file.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            with pytest.raises(BadField, match="is damaged"):
                journal.read()


def test_a_journal_that_cannot_be_read_is_refused_by_name(journal: Journal) -> None:
    journal.file.unlink()
    journal.file.mkdir()

    with pytest.raises(BadField, match=r"line-1\.top\.cursor"):
        journal.read()


def test_a_failed_write_leaves_the_mark_before(journal: Journal) -> None:
    journal.file.with_suffix(".part").mkdir()  # so the new mark has nowhere to go

    with pytest.raises(OSError, match="directory"):
        journal.write(MARK.model_copy(update={"next": 138}))

    assert journal.read() == MARK


def test_a_station_has_one_owner_at_a_time(journal: Journal, tmp_path: Path) -> None:
    other = Journal(tmp_path / "acquisition", "line-1", "top")

    with journal.owned(), pytest.raises(NotPossibleNow, match="another process"), other.owned():
        pass
    with other.owned():
        pass
