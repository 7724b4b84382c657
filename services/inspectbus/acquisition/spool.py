"""A spool: the frames of one station that rest on its disk while the bus is away.

    append ─> queue ─> writer thread: one write, one sync for all that wait ─> accepted
                          │ full: refused, or the oldest dropped
                       segments ─> read ─> drain ─> bus ─ confirmed ─> drop_through

A frame in here is accepted: it leaves by the bus, or by the station's own policy, and then it is counted and told.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.segments import Position, SegmentLog
from inspectbus.errors import BusClosed, InspectBusError, QueueFull, StorageAway, StorageFull

log = structlog.get_logger(__name__)

SEGMENTS = 8
"""A spool's files are so many when it is full: what has been sent frees the disk in such steps."""
LARGEST_SEGMENT_BYTES = 64 * 1024 * 1024
BATCH_BYTES = 8 * 1024 * 1024
"""Of one write. Frames that came during a sync share the next one."""
QUEUE_BYTES = 64 * 1024 * 1024
"""New frames wait at the door while so much is still to be written: the disk is slower than the camera."""
REOPEN_PERIOD_S = 5.0
"""Between two tries to open a folder that another process has or the disk does not give."""
FLUSH_S = 10.0

_SPOOLED_AT = struct.Struct("<d")
"""Stands before each frame: seconds since the epoch."""


def spool_folder(state_dir: Path, line: str, station: str) -> Path:
    # Neither name can hold a dot or a slash, so two stations never share a folder.
    return state_dir / "acquisition" / "spool" / f"{line}.{station}"


@dataclass(frozen=True)
class Bounds:
    """How much a spool may hold, and what it does then."""

    max_bytes: int
    max_age_s: float
    drop_oldest: bool
    """False: new frames are refused, and none is given up."""


@dataclass(eq=False)
class _Waiting:
    record: bytes
    synced: Future[None]


class Spool:
    """Thread-safe, and a context: entering opens the log of the last life, leaving writes what waits.

    A folder that cannot be opened is tried again every few seconds and told in `trouble`; until then appends fail.
    """

    def __init__(self, folder: Path, line: str, station: str, bounds: Bounds, metrics: AcquisitionMetrics) -> None:
        self._folder = folder
        self._name = f"the spool of station {line}/{station}"
        self._bounds = bounds
        self._log = log.bind(line=line, station=station)
        self._spooled_total = metrics.spooled.labels(line, station)
        self._dropped_total = metrics.dropped.labels(line, station)
        metrics.spool_frames.labels(line, station).set_function(lambda: self.frames)
        metrics.spool_bytes.labels(line, station).set_function(lambda: self.held_bytes)
        metrics.spool_limit_bytes.labels(line, station).set(bounds.max_bytes)
        metrics.spool_oldest_seconds.labels(line, station).set_function(lambda: self.behind_s or 0.0)
        # Ages are counted on a clock of its own, which the machine's clock sets once: a clock that is put forward while
        # we run would make every frame too old.
        self._clock_s = time.time() - time.monotonic()
        self.changed = threading.Condition()
        """Notified when frames were written, and when the spool closes."""
        self._queue: deque[_Waiting] = deque()
        self._queued_bytes = 0
        self._closing = False
        self._dropped = 0
        self._trouble = ""
        self._oldest: tuple[Position, float] | None = None
        # Frames are given up by one thread at a time, so that each is counted once.
        self._dropping = threading.Lock()
        self._segments: SegmentLog | None = None
        self._thread = threading.Thread(target=self._keep, name=f"spool-{line}-{station}", daemon=True)

    def __enter__(self) -> Spool:
        self._open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self._closing = True
            self.changed.notify_all()
        self._thread.join(FLUSH_S)
        if self._segments is not None:
            self._segments.close()

    @property
    def frames(self) -> int:
        return self._segments.records if self._segments is not None else 0

    @property
    def held_bytes(self) -> int:
        return self._segments.bytes if self._segments is not None else 0

    @property
    def dropped(self) -> int:
        """Accepted frames given up by this process."""
        return self._dropped

    @property
    def trouble(self) -> str:
        """Why nothing can be written, in words; empty when it can, or when there is only no room."""
        return self._trouble

    @property
    def behind_s(self) -> float | None:
        """Age of the oldest frame; None when there is none."""
        segments = self._segments
        if segments is None:
            return None
        mark, oldest = segments.mark, self._oldest
        if oldest is None or oldest[0] != mark:
            with suppress(StorageAway), closing(segments.read()) as reading:
                found = next(reading, None)
                oldest = (mark, _SPOOLED_AT.unpack_from(found[1])[0]) if found is not None else None
                self._oldest = oldest
        return max(0.0, self._now_s() - oldest[1]) if oldest is not None else None

    def append(self, frame: bytes, patience_s: float | None = None) -> Future[None]:
        """Done when the serialised frame is on the disk. Its errors, raised or in the future: StorageFull when the
        policy is to stop or the frame is larger than the spool, StorageAway, BusClosed.

        With patience_s a new frame waits so long while the disk is behind, and then is refused with QueueFull. Without,
        the call never blocks: for frames that are in memory already, on the bus's own thread.
        """
        waiting = _Waiting(_SPOOLED_AT.pack(self._now_s()) + frame, Future())
        waiting.synced.set_running_or_notify_cancel()  # nobody can cancel what is written together with others
        # Looking for the oldest may read the disk.
        behind_s = self.behind_s if patience_s is not None else None
        with self.changed:
            if patience_s is not None and not self.changed.wait_for(
                lambda: self._closing or self._queued_bytes < QUEUE_BYTES, patience_s
            ):
                raise QueueFull(f"{self._name} is written more slowly than frames come: send more slowly or later")
            if self._closing:
                raise BusClosed("the service is stopping; send again what was not accepted")
            if self._segments is None:
                raise StorageAway(f"{self._name}: {self._trouble}")
            self._check_room(len(waiting.record), behind_s or 0.0)
            self._queue.append(waiting)
            self._queued_bytes += len(waiting.record)
            self.changed.notify_all()
        return waiting.synced

    def read(self, after: Position | None = None) -> Generator[tuple[Position, bytes], None, None]:
        """The serialised frames in the order they came. Raises StorageAway."""
        if self._segments is not None:
            for position, record in self._segments.read(after):
                yield position, record[_SPOOLED_AT.size :]

    def drop_through(self, position: Position) -> None:
        """The bus has confirmed everything up to here."""
        if self._segments is not None:
            try:
                self._segments.drop_through(position)
            except (StorageAway, StorageFull) as error:
                # A restart gives them again, under the same ids.
                self._log.warning("cannot note how far the spool has been sent", detail=error.message)

    def give_up_the_aged(self) -> None:
        """By the policy to drop the oldest, those older than they may grow."""
        if not self._bounds.drop_oldest or (self.behind_s or 0.0) <= self._bounds.max_age_s or self._segments is None:
            return
        last, count = None, 0
        with self._dropping, closing(self._segments.read()) as reading:
            for position, record in reading:
                if self._now_s() - _SPOOLED_AT.unpack_from(record)[0] <= self._bounds.max_age_s:
                    break
                last, count = position, count + 1
            if last is not None:
                self.drop_through(last)
        if count:
            self.tell_dropped(count, f"older than {self._bounds.max_age_s:g} s")

    def make_room(self) -> bool:
        """By the policy to drop the oldest, some of them, for others who need the same disk. False when none went."""
        return (
            self._bounds.drop_oldest
            and self._segments is not None
            and self._drop_oldest(self._segment_bytes, "the disk is full")
        )

    def tell_dropped(self, count: int, reason: str) -> None:
        """Accepted frames have been given up."""
        self._dropped += count
        self._dropped_total.inc(count)
        self._log.error("accepted frames dropped", frames=count, reason=reason, dropped=self._dropped)

    def _check_room(self, size: int, behind_s: float) -> None:
        """Raises StorageFull."""
        bounds = self._bounds
        if size > bounds.max_bytes:
            raise StorageFull(f"{self._name} holds {bounds.max_bytes} bytes, and this frame alone has {size}")
        if bounds.drop_oldest:
            return
        held = self.held_bytes + self._queued_bytes
        if held + size > bounds.max_bytes:
            raise StorageFull(f"{self._name} is full: {self.frames} frames, {held} of {bounds.max_bytes} bytes")
        if behind_s > bounds.max_age_s:
            raise StorageFull(
                f"{self._name} counts as full: its oldest frame waits for {behind_s:.0f} s, "
                f"more than {bounds.max_age_s:g} s"
            )

    def _keep(self) -> None:
        """The writer."""
        while True:
            with self.changed:
                pause_s = None if self._segments is not None else REOPEN_PERIOD_S
                self.changed.wait_for(lambda: self._closing or self._queue, pause_s)
                batch = self._batch()
                if not batch and self._closing:
                    return
            if self._segments is None:
                self._open()
            if batch:
                self._write(batch)

    def _batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].record) <= BATCH_BYTES):
            batch.append(self._queue.popleft())
            size += len(batch[-1].record)
        return batch

    def _write(self, batch: list[_Waiting]) -> None:
        records = [waiting.record for waiting in batch]
        size = sum(len(record) for record in records)
        failure: BaseException | None = None
        try:
            self._append(records, size)
        except InspectBusError as error:
            failure = error
        except Exception as error:  # the writer must live, and those who wait must hear of it
            self._log.exception("spool failed")
            failure = error
        self._trouble = failure.message if isinstance(failure, StorageAway) else ""
        with self.changed:
            self._queued_bytes -= size
            self.changed.notify_all()
        for waiting in batch:
            if failure is None:
                self._spooled_total.inc()
                waiting.synced.set_result(None)
            else:
                waiting.synced.set_exception(failure)

    def _append(self, records: list[bytes], size: int) -> None:
        if self._segments is None:
            raise StorageAway(f"{self._name}: {self._trouble}")
        beyond = self.held_bytes + size - self._bounds.max_bytes
        if self._bounds.drop_oldest and beyond > 0:
            self._drop_oldest(beyond, "the spool is full")
        while True:
            try:
                self._segments.append(records)
                return
            except StorageFull as error:
                # The disk gives room by whole files.
                if not self._bounds.drop_oldest or not self._drop_oldest(self._segment_bytes, error.message):
                    raise

    def _drop_oldest(self, size: int, reason: str) -> bool:
        """At least so many bytes of the oldest frames; False when there is none."""
        last, count = None, 0
        assert self._segments is not None
        with self._dropping, closing(self._segments.read()) as reading:
            for position, record in reading:
                last, count, size = position, count + 1, size - len(record)
                if size <= 0:
                    break
            if last is not None:
                self.drop_through(last)
        if count:
            self.tell_dropped(count, reason)
        return count > 0

    @property
    def _segment_bytes(self) -> int:
        return min(self._bounds.max_bytes // SEGMENTS + 1, LARGEST_SEGMENT_BYTES)

    def _open(self) -> None:
        try:
            segments = SegmentLog(self._folder, segment_bytes=self._segment_bytes, fsync=True)
        except InspectBusError as error:
            if error.message != self._trouble:
                self._log.warning("cannot spool", detail=error.message)
            self._trouble = error.message
            return
        if segments.records:
            self._log.info("frames of the last life wait on disk", frames=segments.records, bytes=segments.bytes)
        with self.changed:
            self._segments, self._trouble = segments, ""
            self.changed.notify_all()

    def _now_s(self) -> float:
        return self._clock_s + time.monotonic()
