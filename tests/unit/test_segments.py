"""The segment log: what was appended is read in order, survives damage behind it, and is dropped once."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from inspectbus.acquisition.segments import MAX_RECORD_BYTES, Position, SegmentLog
from inspectbus.errors import NotPossibleNow, StorageAway, StorageFull

RECORDS = [b"", b"a", b"record two", b"\0" * 20, bytes(range(40)), b"the last"]


def open_log(folder: Path, segment_bytes: int = 1000) -> SegmentLog:
    return SegmentLog(folder, segment_bytes=segment_bytes, fsync=False)


def bodies(log: SegmentLog, after: Position | None = None) -> list[bytes]:
    return [record for _, record in log.read(after)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def test_records_are_read_in_order_also_by_the_next_process(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        first = log.append(RECORDS[:2])
        last = log.append(RECORDS[2:])
        assert bodies(log) == RECORDS
        assert bodies(log, first) == RECORDS[2:]
        assert bodies(log, last) == []
        assert log.records == len(RECORDS)
        assert log.bytes == sum(len(record) + 8 for record in RECORDS)

    with open_log(tmp_path) as log:
        assert bodies(log) == RECORDS
        assert log.append([b"new"]) > last
        assert bodies(log, last) == [b"new"]
        assert (log.damages, log.damage) == (0, "")


def test_an_iteration_goes_on_with_what_is_appended_meanwhile(tmp_path: Path) -> None:
    with open_log(tmp_path, segment_bytes=20) as log:
        log.append([b"one"])
        reading = log.read()
        assert next(reading)[1] == b"one"
        log.append([b"two, in another file"])
        assert next(reading)[1] == b"two, in another file"
        assert next(reading, None) is None


def test_segments_are_bounded_and_go_when_all_in_them_is_dropped(tmp_path: Path) -> None:
    with open_log(tmp_path, segment_bytes=50) as log:
        positions = [log.append([b"%032d" % number]) for number in range(6)]
        assert [file.stat().st_size for file in files(tmp_path)] == [40] * 6

        log.drop_through(positions[2])

        assert len(files(tmp_path)) == 3
        assert (log.records, log.bytes) == (3, 120)
        log.drop_through(positions[0])
        assert log.records == 3, "a mark never goes back"
        log.drop_through(positions[5])
        assert (log.records, log.bytes, bodies(log)) == (0, 0, [])
    assert files(tmp_path) == []


def test_a_log_of_which_all_is_dropped_leaves_its_disk_to_others(tmp_path: Path) -> None:
    with open_log(tmp_path, segment_bytes=1000) as log:
        log.append([b"one"])
        second = log.append([b"two"])

        log.drop_through(second)

        assert files(tmp_path) == []
        assert log.append([b"three"]) > second
        assert bodies(log) == [b"three"]


def test_what_was_dropped_is_not_given_again_after_a_restart(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        third = log.append(RECORDS[:3])
        log.append(RECORDS[3:])
        log.drop_through(third)
        assert bodies(log) == bodies(log, Position(0, 0)) == RECORDS[3:]

    with open_log(tmp_path) as log:
        assert bodies(log) == RECORDS[3:]
        assert (log.records, log.bytes) == (3, sum(len(record) + 8 for record in RECORDS[3:]))


def test_all_dropped_and_opened_again_new_records_have_new_positions(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        position = log.append([b"old"])
        log.drop_through(position)
    with open_log(tmp_path) as log:
        assert log.append([b"new"]) > position
        assert bodies(log) == [b"new"]


@pytest.mark.parametrize("content", [b"", b"1 9999 1\n", b"one two three", b"\xff" * 300])
def test_a_damaged_mark_repeats_records_and_skips_none(tmp_path: Path, content: bytes) -> None:
    with open_log(tmp_path) as log:
        first = log.append([b"dropped"])
        log.append([b"kept"])
        log.drop_through(first)
    (tmp_path / "mark").write_bytes(content)

    with open_log(tmp_path) as log:
        assert bodies(log) == [b"dropped", b"kept"]


def truncated(content: bytes, at: int) -> bytes:
    return content[:at]


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def lowest_bit_flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def zeroed(content: bytes, at: int) -> bytes:
    return content[:at] + b"\0" * (len(content) - at)


@pytest.mark.parametrize("damaged", [truncated, flipped, lowest_bit_flipped, zeroed])
def test_damage_at_any_byte_of_the_last_segment_spares_every_record_before_it(
    tmp_path: Path, damaged: Callable[[bytes, int], bytes]
) -> None:
    whole = tmp_path / "whole"
    older = [b"an older segment", b"with two records"]
    with open_log(whole) as log:
        log.append(older)
    with open_log(whole) as log:
        ends = [log.append([record]).end for record in RECORDS]
    _, last = files(whole)
    content = last.read_bytes()

    for at in range(len(content)):
        folder = tmp_path / "damaged"
        shutil.copytree(whole, folder)
        changed = damaged(content, at)
        (folder / last.name).write_bytes(changed)
        with open_log(folder) as log:
            survivors = bodies(log)
            sure = older + [record for record, end in zip(RECORDS, ends, strict=True) if end <= at]
            assert survivors[: len(sure)] == sure, f"damage at byte {at}"
            assert survivors == [*older, *RECORDS][: len(survivors)]
            log.append([b"after the damage"])
        with open_log(folder) as log:
            assert bodies(log) == [*survivors, b"after the damage"]
            assert log.damages == 0, "a torn tail is cut off once"
        shutil.rmtree(folder)


def test_a_mark_beyond_a_cut_does_not_swallow_what_is_written_next(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append([b"first"])
        log.drop_through(log.append([b"second", b"third"]))
        log.append([b"fourth"])
    (segment,) = files(tmp_path)
    segment.write_bytes(segment.read_bytes()[:5])

    with open_log(tmp_path) as log:
        log.append([b"new"])
        assert bodies(log) == [b"new"]


def test_a_damaged_older_segment_is_left_at_the_damage_and_told(tmp_path: Path) -> None:
    with open_log(tmp_path, segment_bytes=30) as log:
        log.append([b"one", b"two"])
        log.append([b"three", b"four"])
    older = files(tmp_path)[0]
    older.write_bytes(flipped(older.read_bytes(), 12))

    with open_log(tmp_path) as log:
        assert bodies(log) == [b"one", b"three", b"four"]
        assert log.damages == 1
        assert str(older) in log.damage
        assert "damaged or torn at byte 11: its last 11 bytes are lost" in log.damage


def test_damage_that_comes_while_the_log_is_open_is_skipped_and_told(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append([b"one", b"two", b"three"])
        (segment,) = files(tmp_path)
        segment.write_bytes(flipped(segment.read_bytes(), 20))

        assert bodies(log) == [b"one"]
        assert (log.records, log.damages) == (1, 1)
        log.append([b"four"])
        assert bodies(log) == [b"one", b"four"]


def test_a_damaged_length_allocates_nothing(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append([b"one"])
    (segment,) = files(tmp_path)
    segment.write_bytes(b"\0\0\0\0" + (MAX_RECORD_BYTES - 1).to_bytes(4, "little") + b"few")

    with open_log(tmp_path) as log:
        assert bodies(log) == []
        assert log.damages == 1


def test_two_owners_of_one_folder_are_refused(tmp_path: Path) -> None:
    with open_log(tmp_path), pytest.raises(NotPossibleNow, match="another process has"):
        open_log(tmp_path)
    open_log(tmp_path).close()


def test_a_full_disk_refuses_an_append_whole_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with SegmentLog(tmp_path, segment_bytes=1000, fsync=True) as log:
        log.append([b"before"])
        monkeypatch.setattr(os, "fdatasync", full)
        with pytest.raises(StorageFull, match="is full"):
            log.append([b"refused", b"refused too"])
        monkeypatch.undo()
        assert bodies(log) == [b"before"]
        log.append([b"after"])
        assert bodies(log) == [b"before", b"after"]
    with open_log(tmp_path) as log:
        assert bodies(log) == [b"before", b"after"]
        assert log.damages == 0


def test_a_folder_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageAway, match="file/spool"):
        open_log(tmp_path / "file" / "spool")
