"""A drain: takes the frames from a station's disk back to the bus, and finds out that it is back.

spool ─ in order ─> backlog lane ─ confirmed ─> dropped from the disk
  ^                      │
  └── after a pause ─────┘ refused: one frame alone until the bus confirms it
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass

import structlog
from google.protobuf.message import DecodeError
from opentelemetry.trace import SpanKind

from inspectbus import spans
from inspectbus.acquisition.breaker import Breaker
from inspectbus.acquisition.claims import Claims
from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.segments import Position
from inspectbus.acquisition.spool import Spool
from inspectbus.api.v1 import frame_pb2
from inspectbus.bus import Bus, Lane
from inspectbus.bus.messages import frame_message
from inspectbus.bus.topics import FRAMES
from inspectbus.errors import BadField, InspectBusError, StorageAway

log = structlog.get_logger(__name__)

CONFIRM_S = 10.0
"""How long the bus may take for a frame from disk. Longer than for a live one: nobody waits for it, and each that is
given up too early is sent twice."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
"""Between two tries: the pause doubles from the first to the longest."""
GLANCE_S = 0.5
"""How often it looks for what nobody tells, as frames that grow too old."""
CLOSE_S = 2.0
"""How long leaving waits for frames under way; what is confirmed later is sent again by the next start."""

NEVER = "the bus will never take it: "


@dataclass(eq=False)
class _Sent:
    position: Position
    confirmed: Future[None]
    lost: str = ""
    """Why the frame never went and never will."""


class Drain:
    """A context with a thread of its own."""

    def __init__(
        self,
        spool: Spool,
        bus: Bus,
        breaker: Breaker,
        line: str,
        station: str,
        window: int,
        metrics: AcquisitionMetrics,
        claims: Claims,
    ) -> None:
        self._claims = claims
        self._spool = spool
        self._bus = bus
        self._breaker = breaker
        self._window = window
        self._drained_total = metrics.drained.labels(line, station)
        self._log = log.bind(line=line, station=station)
        # The spool's own, so that one wait hears of new frames, of confirmed ones and of the end.
        self._changed = spool.changed
        self._closing = False
        self._under_way: deque[_Sent] = deque()
        self._stragglers: list[Future[None]] = []
        """Behind a frame that failed, and therefore sent again with it, whatever becomes of them."""
        self._thread = threading.Thread(target=self._run, name=f"drain-{line}-{station}", daemon=True)

    def __enter__(self) -> Drain:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ask_to_stop()
        self._thread.join(CONFIRM_S + CLOSE_S)

    def ask_to_stop(self) -> None:
        """Sends no more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _run(self) -> None:
        pause_s = 0.0
        while self._wait(pause_s):
            try:
                self._spool.give_up_the_aged()
                # Whatever the bus says of itself: it may know that it is well again only by a frame that it confirms.
                pause_s = 0.0 if self._send_all() else min(max(2 * pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            except Exception as error:  # frames rest on the disk as long as this thread lives, so it must
                told = isinstance(error, StorageAway)
                self._log.warning("cannot read the spool", detail=str(error), exc_info=not told)
                pause_s = LONGEST_PAUSE_S
        self._settle(until_s=time.monotonic() + CLOSE_S)

    def _wait(self, pause_s: float) -> bool:
        """Until there are frames, and at least the pause. False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, pause_s)
            while not self._closing and not self._spool.frames:
                self._changed.wait(GLANCE_S)
            return not self._closing

    def _send_all(self) -> bool:
        """Sends from the oldest frame to the last; True when all are confirmed, False when the bus failed one."""
        last: Position | None = None
        failure: BaseException | None = None
        while failure is None and not self._closing:
            with closing(self._spool.read(last)) as frames:
                last, failure = self._send_these(frames, last)
            # Others may come while these are under way: they need not wait for them.
            failure = failure or self._drop_confirmed()
            if not self._under_way:
                break
            self._wait_for(self._under_way[0].confirmed)
        # Whatever is sent again had better be confirmed or failed by then.
        failure = self._settle() or failure
        if failure is not None and not self._closing:
            self._breaker.trip(failure)
        return failure is None

    def _send_these(
        self, frames: Iterable[tuple[Position, bytes]], last: Position | None
    ) -> tuple[Position | None, BaseException | None]:
        """The position of the last one sent, and what the bus failed with if it did."""
        for position, body in frames:
            if (failure := self._make_room()) is not None or self._closing:
                return last, failure
            try:
                self._send(position, body)
            except InspectBusError as error:
                return last, error
            last = position
        return last, None

    def _send(self, position: Position, body: bytes) -> None:
        """Raises what bus and frame store raise, but for a frame that will never go."""
        lost = ""
        try:
            frame = self._claims.claimed(frame_pb2.Frame.FromString(body))
            message = frame_message(frame, Lane.BACKLOG)
            step = spans.begin(
                "publish", frame.frame_id, kind=SpanKind.PRODUCER, attributes={"lane": Lane.BACKLOG.value}
            )
            confirmed = self._bus.publish(FRAMES, message, patience_s=CONFIRM_S)
            confirmed.add_done_callback(lambda done: spans.end(step, done.exception()))
        except (BadField, DecodeError) as error:
            lost = f"{NEVER}{error}"
            confirmed = Future()
            confirmed.set_result(None)
        self._under_way.append(_Sent(position, confirmed, lost))
        confirmed.add_done_callback(self._on_settled)

    def _on_settled(self, _: Future[None]) -> None:
        """On the bus's thread."""
        with self._changed:
            self._changed.notify_all()

    def _make_room(self) -> BaseException | None:
        """Waits for a place in the window, which is one while the bus is not known to be well; or gives the failure."""
        window = 1 if self._breaker.trouble else self._window
        while True:
            failure = self._drop_confirmed()
            if failure is not None or len(self._under_way) < window or self._closing:
                return failure
            self._wait_for(self._under_way[0].confirmed)

    def _settle(self, until_s: float | None = None) -> BaseException | None:
        """Waits until nothing is under way, and gives the last failure. Ends early when closing, or at until_s."""
        failure: BaseException | None = None
        while True:
            failure = self._drop_confirmed() or failure
            left = [sent.confirmed for sent in self._under_way]
            left += [future for future in self._stragglers if not future.done()]
            over = self._closing if until_s is None else time.monotonic() > until_s
            if not left or over:
                return failure
            self._wait_for(left[0])

    def _wait_for(self, future: Future[None]) -> None:
        with self._changed:
            if not future.done():
                self._changed.wait(GLANCE_S)

    def _drop_confirmed(self) -> BaseException | None:
        """Takes the confirmed head of the window from the disk. Gives the failure behind it, which ends the window."""
        head: list[_Sent] = []
        failure: BaseException | None = None
        while failure is None and self._under_way and self._under_way[0].confirmed.done():
            failure = self._under_way[0].confirmed.exception()
            if isinstance(failure, BadField):
                self._under_way[0].lost = f"{NEVER}{failure}"
                failure = None
            if failure is None:
                head.append(self._under_way.popleft())
        if failure is not None:
            self._stragglers = [sent.confirmed for sent in self._under_way]
            self._under_way.clear()
        if head:
            self._spool.drop_through(head[-1].position)
            for sent in head:
                if sent.lost:
                    self._spool.tell_dropped(1, sent.lost)
                else:
                    self._drained_total.inc()
                    self._breaker.close()
        return failure
