"""A station's spool and its drain: what is on disk is bounded, told, and goes back to the bus in order."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from inspectbus.acquisition.breaker import Breaker
from inspectbus.acquisition.claims import Claims
from inspectbus.acquisition.drain import Drain
from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.settings import AcquisitionSettings
from inspectbus.acquisition.spool import Bounds, Spool
from inspectbus.api.v1 import frame_pb2
from inspectbus.bus import Bus, Lane, Message, connect
from inspectbus.errors import BadField, BusClosed, InspectBusError, StorageAway, StorageFull, TooLate
from tests.doubles.fickle_bus import FickleBus
from tests.doubles.small_disk import small_disk
from tests.doubles.small_line import SmallLine, small_line

PATIENCE_S = 10.0
FRAME_BYTES = 100
RECORD_BYTES = FRAME_BYTES + 8


def spool(
    folder: Path,
    frames: int = 1000,
    *,
    drop_oldest: bool = False,
    max_age_s: float = 3600.0,
    registry: CollectorRegistry | None = None,
) -> Spool:
    """With room for so many frames of FRAME_BYTES."""
    # The log adds eight bytes to each record.
    bounds = Bounds(frames * (RECORD_BYTES + 8), max_age_s, drop_oldest)
    return Spool(folder, "line-1", "top", bounds, AcquisitionMetrics(registry or CollectorRegistry()))


def body(number: int) -> bytes:
    return b"%0100d" % number


def put(spool: Spool, *numbers: int) -> None:
    for number in numbers:
        spool.append(body(number)).result(PATIENCE_S)


def held(spool: Spool) -> list[int]:
    return [int(frame) for _, frame in spool.read()]


def wait_until(reached: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.01)):
        if reached():
            return
        pause.wait(0.01)
    raise AssertionError("not in time")


def test_frames_rest_in_order_and_outlive_the_process(tmp_path: Path) -> None:
    with spool(tmp_path) as first:
        put(first, *range(5))
        assert (first.frames, held(first), first.trouble) == (5, [0, 1, 2, 3, 4], "")
        assert first.behind_s is not None

    with spool(tmp_path) as second:
        assert held(second) == [0, 1, 2, 3, 4]
        positions = [position for position, _ in second.read()]
        second.drop_through(positions[2])
        assert held(second) == [3, 4]
        second.drop_through(positions[4])
        assert (second.frames, second.held_bytes, second.behind_s) == (0, 0, None)


def test_frames_that_come_during_a_sync_share_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fdatasync
    begun, may_end = threading.Event(), threading.Event()
    syncs = []

    def slow(handle: int) -> None:
        begun.set()
        assert may_end.wait(PATIENCE_S)
        syncs.append(handle)
        sync(handle)

    with spool(tmp_path) as it:
        monkeypatch.setattr(os, "fdatasync", slow)
        first = it.append(body(0))
        assert begun.wait(PATIENCE_S)
        others = [it.append(body(number)) for number in range(1, 50)]
        assert not first.done()
        may_end.set()
        for future in [first, *others]:
            future.result(PATIENCE_S)
        assert len(syncs) == 2
        assert held(it) == list(range(50))


def test_a_full_spool_that_stops_refuses_new_frames_and_keeps_the_old(tmp_path: Path) -> None:
    with spool(tmp_path, frames=3) as it:
        put(it, 0, 1, 2)

        with pytest.raises(StorageFull, match="the spool of station line-1/top is full: 3 frames, 348 of 348 bytes"):
            it.append(body(3))

        it.drop_through(next(it.read())[0])
        put(it, 4)
        assert held(it) == [1, 2, 4]
        assert it.dropped == 0


def test_a_full_spool_that_drops_gives_up_the_oldest_and_counts_them(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    with spool(tmp_path, frames=3, drop_oldest=True, registry=registry) as it:
        put(it, *range(8))

        assert held(it) == [5, 6, 7]
        assert it.dropped == 5
        station = {"line": "line-1", "station": "top"}
        assert registry.get_sample_value("inspectbus_frames_dropped_total", station) == 5
        assert registry.get_sample_value("inspectbus_frames_spooled_total", station) == 8
        assert registry.get_sample_value("inspectbus_spool_frames", station) == 3
        assert registry.get_sample_value("inspectbus_spool_bytes", station) == 3 * (RECORD_BYTES + 8)
        assert registry.get_sample_value("inspectbus_spool_limit_bytes", station) == 3 * (RECORD_BYTES + 8)
        age_s = registry.get_sample_value("inspectbus_spool_oldest_seconds", station)
        assert age_s is not None
        assert 0 <= age_s < PATIENCE_S
    assert sum(file.stat().st_size for file in tmp_path.glob("*.log")) <= 4 * (RECORD_BYTES + 8)


@pytest.mark.parametrize("drop_oldest", [False, True])
def test_a_frame_larger_than_the_spool_is_refused_by_either_policy(tmp_path: Path, drop_oldest: bool) -> None:
    with spool(tmp_path, frames=2, drop_oldest=drop_oldest) as it:
        put(it, 0)
        with pytest.raises(StorageFull, match="holds 232 bytes, and this frame alone has 1008"):
            it.append(b"x" * 1000)
        assert held(it) == [0]


def test_a_spool_with_frames_too_old_counts_as_full_when_it_stops(tmp_path: Path) -> None:
    with spool(tmp_path, max_age_s=1e-6) as it:
        put(it, 0)
        with pytest.raises(StorageFull, match="counts as full: its oldest frame waits"):
            it.append(body(1), patience_s=1.0)
        assert held(it) == [0], "it is sent all the same"


def test_frames_too_old_are_given_up_when_it_drops(tmp_path: Path) -> None:
    with spool(tmp_path, max_age_s=1e-6, drop_oldest=True) as it:
        put(it, 0, 1)
        it.give_up_the_aged()
        assert (held(it), it.dropped) == ([], 2)


@pytest.mark.parametrize("drop_oldest", [False, True])
def test_a_full_disk_is_like_a_full_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drop_oldest: bool) -> None:
    sync = os.fdatasync
    refusals = iter([True, False] if drop_oldest else [True])

    def full(handle: int) -> None:
        if next(refusals, False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with spool(tmp_path, frames=16, drop_oldest=drop_oldest) as it:
        put(it, *range(4))
        monkeypatch.setattr(os, "fdatasync", full)

        if drop_oldest:
            put(it, 4)
            assert it.dropped > 0
        else:
            with pytest.raises(StorageFull, match="is full"):
                put(it, 4)
            put(it, 5)
            assert it.dropped == 0
        assert held(it)[-1] == (4 if drop_oldest else 5)
        assert it.frames + it.dropped == 5


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 64 * 1024) as folder:
        yield folder


@pytest.mark.parametrize("drop_oldest", [False, True])
def test_a_really_full_disk_keeps_what_was_synced_and_takes_frames_again_later(
    tiny_disk: Path, drop_oldest: bool
) -> None:
    synced: list[int] = []
    with spool(tiny_disk / "spool", frames=2000, drop_oldest=drop_oldest) as it:
        for number in range(1500):
            try:
                put(it, number)
            except StorageFull:
                break
            synced.append(number)

        if drop_oldest:
            assert len(synced) == 1500
            assert it.dropped > 0
            assert held(it) == synced[it.dropped :]
        else:
            assert 100 < len(synced) < 1500
            assert held(it) == synced
            assert it.dropped == 0
            it.drop_through([position for position, _ in it.read()][-1])
            put(it, 9999)
            assert held(it) == [9999]


def test_a_folder_another_process_has_is_told_and_taken_once_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inspectbus.acquisition.spool.REOPEN_PERIOD_S", 0.02)
    with spool(tmp_path) as first:
        second = spool(tmp_path)
        with second:
            assert "another process has" in second.trouble
            with pytest.raises(StorageAway, match="another process has"):
                second.append(body(0))
            put(first, 1)
            first.__exit__()
            wait_until(lambda: not second.trouble)
            put(second, 2)
            assert held(second) == [1, 2]


def test_a_closed_spool_takes_nothing_and_leaves_nobody_waiting(tmp_path: Path) -> None:
    with spool(tmp_path) as it:
        waiting = [it.append(body(number)) for number in range(20)]
    for future in waiting:
        future.result(0)
    with pytest.raises(BusClosed):
        it.append(body(21))


# The drain


@pytest.fixture
def bus() -> Iterator[FickleBus]:
    with connect(f"embedded://spool-{uuid.uuid4()}") as behind:
        yield FickleBus(behind)


@pytest.fixture
def line(bus: FickleBus) -> Iterator[SmallLine]:
    with small_line(bus) as line:
        yield line


@contextmanager
def draining(spool: Spool, bus: Bus, window: int = 8) -> Iterator[Breaker]:
    breaker = Breaker(bus, "line-1", "top")
    metrics = AcquisitionMetrics(CollectorRegistry())
    with Drain(spool, bus, breaker, "line-1", "top", window, metrics, Claims(AcquisitionSettings(), metrics)):
        yield breaker


def put_frames(spool: Spool, *sequence: int) -> None:
    for number in sequence:
        frame = frame_pb2.Frame(frame_id=str(uuid.uuid4()), line="line-1", station="top", sequence=number, image=b"x")
        spool.append(frame.SerializeToString()).result(PATIENCE_S)


def sequence(line: SmallLine) -> list[int]:
    return [frame.sequence for frame in line.frames]


def test_spooled_frames_go_in_order_on_the_backlog_lane(tmp_path: Path, bus: FickleBus, line: SmallLine) -> None:
    with spool(tmp_path) as it:
        put_frames(it, *range(40))
        with draining(it, bus):
            wait_until(lambda: it.frames == 0)
            put_frames(it, *range(40, 45))
            wait_until(lambda: it.frames == 0)

    assert sequence(line) == list(range(45))
    assert {message.lane for message in bus.tried} == {Lane.BACKLOG}
    assert all(patience_s is not None for patience_s in bus.patience_s)


def test_the_window_bounds_what_the_drain_has_under_way(tmp_path: Path, bus: FickleBus, line: SmallLine) -> None:
    line.hold()
    with spool(tmp_path) as it:
        put_frames(it, *range(10))
        with draining(it, bus, window=3):
            line.wait_for_frames(3)
            with pytest.raises(AssertionError, match="3 came"):
                line.wait_for_frames(4, patience_s=0.3)
            line.let_go()
            wait_until(lambda: it.frames == 0)


def test_a_frame_that_fails_is_sent_again_with_those_behind_it(tmp_path: Path, bus: FickleBus, line: SmallLine) -> None:
    failures = iter([False, False, False, True])

    def once(_: object) -> InspectBusError | None:
        return TooLate("not confirmed in time") if next(failures, False) else None

    bus.fail_where(once)
    with spool(tmp_path) as it:
        put_frames(it, *range(10))
        with draining(it, bus):
            wait_until(lambda: it.frames == 0)

    assert sorted(set(sequence(line))) == list(range(10))
    again = sequence(line)[sequence(line).index(3) :]
    assert again == list(range(3, 10)), "in order from the one that failed"


def test_one_frame_alone_finds_out_that_the_bus_is_back(tmp_path: Path, bus: FickleBus, line: SmallLine) -> None:
    bus.go_away("loses")
    with spool(tmp_path) as it:
        put_frames(it, *range(10))
        with draining(it, bus) as breaker:
            wait_until(lambda: bool(breaker.trouble))
            # The first try was made before anybody knew.
            begun = len(bus.tried)
            wait_until(lambda: len(bus.tried) >= begun + 2)
            assert {message.id for message in bus.tried[begun:]} == {bus.tried[0].id}
            bus.come_back()
            wait_until(lambda: it.frames == 0)
            assert breaker.trouble == ""


def test_a_bus_that_knows_itself_well_only_by_a_confirm_is_tried_all_the_same(
    tmp_path: Path, bus: FickleBus, line: SmallLine
) -> None:
    bus.trouble = "the queue behind inspectbus.frames is full"
    with spool(tmp_path) as it:
        put_frames(it, 0, 1)
        with draining(it, bus):
            wait_until(lambda: it.frames == 0)

    assert sequence(line) == [0, 1]


def test_what_the_bus_will_never_take_is_given_up_and_holds_nobody_up(
    tmp_path: Path, bus: FickleBus, line: SmallLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = bus.publish

    def narrow(topic, message, *, patience_s=None):  # type: ignore[no-untyped-def]
        if len(message.body) > 500 and message.subject:
            raise BadField("larger than the bus takes")
        return publish(topic, message, patience_s=patience_s)

    def third(message: Message) -> bool:
        return frame_pb2.Frame.FromString(message.body).sequence == 2

    monkeypatch.setattr(bus, "publish", narrow)
    with spool(tmp_path) as it:
        put_frames(it, 0)
        it.append(b"\xff\xff no frame").result(PATIENCE_S)
        it.append(frame_pb2.Frame(frame_id="large", image=b"x" * 600).SerializeToString()).result(PATIENCE_S)
        put_frames(it, 1, 2, 3)
        bus.fail_where(lambda message: BadField("refused") if third(message) else None)
        with draining(it, bus):
            wait_until(lambda: it.frames == 0)
        assert it.dropped == 3

    assert sequence(line) == [0, 1, 3]


def test_what_is_not_confirmed_when_the_drain_ends_stays_on_disk(
    tmp_path: Path, bus: FickleBus, line: SmallLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inspectbus.acquisition.drain.CLOSE_S", 0.05)
    line.hold()
    with spool(tmp_path) as it, draining(it, bus):
        put_frames(it, 0, 1)
        line.wait_for_frames(2)
    line.let_go()

    with spool(tmp_path) as it:
        assert it.frames == 2
        with draining(it, bus):
            wait_until(lambda: it.frames == 0)
    assert sequence(line) == [0, 1, 0, 1]
    assert len(line.ledger) == 2
