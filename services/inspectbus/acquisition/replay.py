"""A replay: one run of a station's source, on a thread of its own.

    source ─ paced ─> frame ─> outlet ─> bus or disk ─ accepted ─> cursor ─> journal
                        ^                     │
                        └─── after a pause ───┘ refused

A refused frame is sent again until it is accepted; no new one is taken meanwhile. So the line's pressure reaches the
source, and nothing is dropped on the way.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice

import structlog

from inspectbus import spans
from inspectbus.acquisition.cursor import Cursor, Journal, Mark
from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.outlet import RESCUE_S, Outlet
from inspectbus.acquisition.pace import Pace
from inspectbus.acquisition.settings import AcquisitionSettings, StationSettings
from inspectbus.acquisition.sources import Capture, Source, Unreadable, open_source
from inspectbus.api.v1 import acquisition_pb2, frame_pb2
from inspectbus.domain.frame import frame_id
from inspectbus.errors import BadField, InspectBusError, NotPossibleNow

log = structlog.get_logger(__name__)

JOURNAL_PERIOD_S = 0.2
"""A crash costs at most the frames of this time, published again and counted once; shorter costs a disk flush each."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
"""Between two tries of a refused frame: the pause doubles from the first to the longest."""
MAX_UNREADABLE_IN_A_ROW = 100
"""So many bad files are no longer bad files: the disk is gone. The run must not rush to its end over them."""

RUNNING = acquisition_pb2.STATION_STATE_RUNNING
STOPPED = acquisition_pb2.STATION_STATE_STOPPED
FINISHED = acquisition_pb2.STATION_STATE_FINISHED
FAILED = acquisition_pb2.STATION_STATE_FAILED
LISTENING = acquisition_pb2.STATION_STATE_LISTENING
STATES = (STOPPED, RUNNING, FINISHED, FAILED, LISTENING)


class Replay:
    """Ends at the source's end, when told, or with the source's failure; its status says which."""

    def __init__(
        self,
        station: StationSettings,
        settings: AcquisitionSettings,
        outlet: Outlet,
        journal: Journal,
        metrics: AcquisitionMetrics,
    ) -> None:
        self._station = station
        self._settings = settings
        self._outlet = outlet
        self._journal = journal
        self._unreadable = metrics.unreadable.labels(outlet.line, outlet.station)
        self._back_pressure_seconds = metrics.back_pressure_seconds.labels(outlet.line, outlet.station)
        self._log = log.bind(line=outlet.line, station=outlet.station)
        # Guards what follows, and is never held while the bus, the source or the disk works.
        self._changed = threading.Condition()
        self._state: acquisition_pb2.StationState.ValueType = RUNNING
        self._cursor: Cursor | None = None
        self._run_id = ""
        self._under_way: dict[int, frame_pb2.Frame] = {}
        self._refused: deque[int] = deque()
        self._pause_s = 0.0
        self._again_at_s = 0.0
        self._troubles: dict[str, str] = {}
        self._stopping = False
        # The thread's own.
        self._journaled: Mark | None = None
        self._journaled_at_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"station-{outlet.line}-{outlet.station}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def opened(self, patience_s: float) -> None:
        """Waits until the source is open or has failed, at most patience_s."""
        with self._changed:
            self._changed.wait_for(lambda: self._cursor is not None or self._state != RUNNING, patience_s)

    def ask_to_stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def state(self) -> acquisition_pb2.StationState.ValueType:
        return self._state

    def ended(self, patience_s: float) -> bool:
        """Waits for the thread's end, at most patience_s; False when it still runs."""
        self._thread.join(patience_s)
        return not self._thread.is_alive()

    def describe(self, status: acquisition_pb2.Station) -> None:
        """Fills in the state, the run and its counts."""
        with self._changed:
            status.state = self._state
            status.run_id = self._run_id
            status.detail = "; ".join(self._troubles.values())
            if self._cursor is not None:
                status.accepted = self._cursor.accepted
                status.unreadable = self._cursor.unreadable

    def _run(self) -> None:
        end: acquisition_pb2.StationState.ValueType = STOPPED
        try:
            with self._journal.owned():
                source = open_source(self._station.source, self._settings.max_image_bytes)
                if self._begin(source):
                    try:
                        if self._take(source) and self._until(lambda: not self._under_way):
                            end = FINISHED
                    finally:
                        self._drain()
                        self._write(finished=end == FINISHED)
        except (InspectBusError, OSError) as error:
            end = FAILED
            self._trouble("source", error.message if isinstance(error, InspectBusError) else str(error))
        except Exception as error:  # whatever a source raises must show in the station's state, not on stderr alone
            self._log.exception("station failed")
            end = FAILED
            self._trouble("source", f"{type(error).__name__}: {error}")
        self._log.info("run ended", run_id=self._run_id, state=acquisition_pb2.StationState.Name(end))
        with self._changed:
            self._state = end
            self._changed.notify_all()

    def _begin(self, source: Source) -> bool:
        """Goes on with an unfinished run over the same plan and items, or begins a new one. False when told to stop
        while the disk does not take its cursor."""
        plan, items = self._station.plan, source.items
        try:
            mark = self._journal.read()
        except BadField as error:
            self._trouble("journal", f"{error.message}; began a new run")
            mark = None
        if mark is None or mark.finished or (mark.plan, mark.items) != (plan, items):
            mark = Mark(plan=plan, items=items, run_id=new_run_id())
        # Before the first frame: a crash after it must find the run it belongs to.
        while not self._journaled_is(mark):
            with self._changed:
                if self._changed.wait_for(lambda: self._stopping, LONGEST_PAUSE_S):
                    return False
        self._log.info("run begins", run_id=mark.run_id, position=mark.next)
        with self._changed:
            self._run_id = mark.run_id
            self._cursor = Cursor(mark)
            self._changed.notify_all()
        return True

    def _take(self, source: Source) -> bool:
        """Publishes the source to its end: True. False when told to stop first."""
        frames = self._station.frames
        position = self._marked.next
        items = source.read(position, again=frames != "once")
        if isinstance(frames, int):
            items = islice(items, max(0, frames - position))
        pace = Pace(self._station.fps)
        unreadable_in_a_row = 0
        while self._has_room(position) and self._is_due(pace):
            match next(items, None):
                case None:
                    return True
                case Unreadable() as item:
                    self._skip(position, item)
                    unreadable_in_a_row += 1
                    if unreadable_in_a_row == MAX_UNREADABLE_IN_A_ROW:
                        raise NotPossibleNow(f"{unreadable_in_a_row} unreadable images in a row, {item.item} the last")
                case Capture() as capture:
                    unreadable_in_a_row = 0
                    frame = self._frame(position, capture)
                    with self._changed:
                        self._under_way[position] = frame
                    with self._held_up():
                        self._publish(position)
            position += 1
            self._write_in_time()
        return False

    def _has_room(self, position: int) -> bool:
        """Waits until the position lies in the window. False when told to stop."""
        # Counted from the first position still under way: so both the frames held and the cursor's gaps are bounded.
        with self._held_up():
            return self._until(lambda: position < self._marked.next + self._settings.window)

    def _is_due(self, pace: Pace) -> bool:
        """Waits for the next step of the schedule. False when told to stop."""
        now_s = time.monotonic()
        due_s = now_s + pace.delay_s(now_s)
        while (left_s := due_s - time.monotonic()) > 0:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, min(left_s, JOURNAL_PERIOD_S))
                if self._stopping:
                    return False
            self._write_in_time()
        return True

    def _until(self, reached: Callable[[], bool]) -> bool:
        """True once it is reached and nothing waits to be sent again, which happens here. False when told to stop."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or (not self._refused and reached()), timeout=JOURNAL_PERIOD_S
                )
                if self._stopping:
                    return False
                if not self._refused and reached():
                    return True
                again = bool(self._refused) and time.monotonic() >= self._again_at_s
                position = self._refused.popleft() if again else None
            if position is not None:
                self._publish(position)
            self._write_in_time()

    def _frame(self, position: int, capture: Capture) -> frame_pb2.Frame:
        line, station = self._outlet.line, self._outlet.station
        frame = frame_pb2.Frame(
            frame_id=frame_id(line, station, self._run_id, capture.item, position),
            line=line,
            station=station,
            run_id=self._run_id,
            source_item=capture.item,
            sequence=position,
            recipe=self._station.recipe,
            image=capture.image,
            truth=capture.truth,
        )
        frame.captured_at.GetCurrentTime()
        return frame

    def _skip(self, position: int, item: Unreadable) -> None:
        self._unreadable.inc()
        self._trouble("source", f"{item.item}: {item.reason}; skipped")
        with self._changed:
            self._marked.settle(position, unreadable=True)

    def _publish(self, position: int) -> None:
        """Hands a frame under way to the bus, once."""
        try:
            future = self._outlet.publish(self._under_way[position])
        except InspectBusError as error:
            if not error.retryable:
                raise
            self._refuse(position, error)
        else:
            future.add_done_callback(lambda done: self._settle(position, done))

    def _settle(self, position: int, future: Future[None]) -> None:
        """On whichever thread the bus settles."""
        error = future.exception()
        if error is not None:
            self._refuse(position, error)
            return
        with self._changed:
            del self._under_way[position]
            self._marked.settle(position)
            self._pause_s = 0.0
            self._troubles.pop("bus", None)
            self._changed.notify_all()

    def _refuse(self, position: int, error: BaseException) -> None:
        """Keeps the frame for another try."""
        frame = self._under_way[position]
        with spans.InHand(frame.frame_id, frame.line, frame.station):
            self._trouble("bus", f"a frame was refused, trying again: {error}")
        with self._changed:
            self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            self._again_at_s = time.monotonic() + self._pause_s
            self._refused.append(position)
            self._changed.notify_all()

    def _drain(self) -> None:
        """Lets the bus accept what it has; what it leaves open goes to the disk of a station that spools. What is
        refused now stays unsettled for the next start."""
        if not self._nothing_open(self._settings.drain_s):
            self._outlet.rescue()
            self._nothing_open(RESCUE_S)
        with self._changed:
            left = len(self._under_way)
        if left:
            self._log.warning("stopped with frames not accepted; the next start publishes them again", frames=left)

    def _nothing_open(self, patience_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self._under_way) == len(self._refused), patience_s)

    def _write_in_time(self) -> None:
        if time.monotonic() - self._journaled_at_s >= JOURNAL_PERIOD_S:
            self._write(finished=False)

    def _write(self, *, finished: bool) -> None:
        self._journaled_at_s = time.monotonic()
        with self._changed:
            mark = self._marked.mark(finished=finished)
        # No reason to stop the line: an old cursor repeats frames after a crash, and they are counted once.
        self._journaled_is(mark)

    def _journaled_is(self, mark: Mark) -> bool:
        """Once the disk has it. What keeps it out is shown until then."""
        if mark == self._journaled:
            return True
        try:
            self._journal.write(mark)
        except OSError as error:
            self._trouble("disk", f"cannot write the cursor {self._journal.file}: {error.strerror}")
            return False
        self._journaled = mark
        with self._changed:
            self._troubles.pop("disk", None)
        return True

    def _trouble(self, about: str, text: str) -> None:
        """Shows it in the station's detail until it is over."""
        with self._changed:
            known = self._troubles.get(about) == text
            self._troubles[about] = text
        if not known:
            self._log.warning("station trouble", about=about, detail=text)

    @property
    def _marked(self) -> Cursor:
        assert self._cursor is not None, "the run has begun"
        return self._cursor

    @contextmanager
    def _held_up(self) -> Iterator[None]:
        """Counts the time inside as back-pressure."""
        begun_s = time.monotonic()
        try:
            yield
        finally:
            self._back_pressure_seconds.inc(time.monotonic() - begun_s)


def new_run_id() -> str:
    """Sorts by time: 20260131T120000Z-1f3a9c42."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
