"""An outlet: where the frames of one station leave for the bus, counted and timed, or for the station's disk.

frame ─ publish ─> bus ─ confirmed ─────────────────────> accepted
          │         └─ refused, withdrawn, failed ─┐
          └─ the bus is known to be away ──────────┴─> spool ─ synced ─> accepted
                                                         └─ drain ─> bus, on the backlog lane
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field

from opentelemetry.trace import INVALID_SPAN, Span, SpanKind

from inspectbus import spans
from inspectbus.acquisition.breaker import Breaker
from inspectbus.acquisition.claims import Claims
from inspectbus.acquisition.drain import Drain
from inspectbus.acquisition.gate import Gate
from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.settings import AcquisitionSettings, StationSettings
from inspectbus.acquisition.spool import Bounds, Spool, spool_folder
from inspectbus.api.v1 import frame_pb2
from inspectbus.bus import Bus, Message, handling
from inspectbus.bus.messages import frame_message
from inspectbus.bus.topics import FRAMES
from inspectbus.errors import BusClosed, InspectBusError, QueueFull, StorageAway, StorageFull, TooLate

BUS_FAILS = (QueueFull, BusClosed, TooLate)
"""What a bus raises that may take the same frame later."""
RESCUE_S = 3.0
"""How long writing to disk what the bus did not confirm may take when a station stops."""


@dataclass(eq=False)
class _Passage:
    """One frame on its way out."""

    message: Message
    spools: bool
    begun_s: float = field(default_factory=time.monotonic)
    accepted: Future[None] = field(default_factory=Future)
    spooling: bool = False
    """It goes to disk, whatever the bus still says of it."""
    settled: bool = False
    step: Span = INVALID_SPAN


class Outlet:
    """Thread-safe, and a context: entering opens the spool and sends what the last life left there."""

    def __init__(
        self,
        bus: Bus,
        line: str,
        station: StationSettings,
        settings: AcquisitionSettings,
        metrics: AcquisitionMetrics,
        gate: Gate,
        claims: Claims,
    ) -> None:
        self.line = line
        self.station = station.name
        self._bus = bus
        self._gate = gate
        self._claims = claims
        self._spool_after_s = settings.spool_after_s
        self._accepted_total = metrics.accepted.labels(line, station.name)
        self._repeated = metrics.repeated.labels(line, station.name)
        self._failures = metrics.failures.labels(line, station.name)
        self._in_flight_gauge = metrics.in_flight.labels(line, station.name)
        self._publish_seconds = metrics.publish_seconds.labels(line, station.name)
        self._changed = threading.Condition()
        self._under_way: set[_Passage] = set()
        self._accepted = 0
        self._last_frame_s = 0.0
        self._last_image = (b"", "")
        """And its frame: one that is sent again is not a repeat."""
        self._breaker = Breaker(bus, line, station.name)
        self._spools = station.spools
        self._spool: Spool | None = None
        self._drain: Drain | None = None
        self._stack = ExitStack()
        folder = spool_folder(settings.state_dir, line, station.name)
        # A station that spools no more may have frames of the time when it did.
        if station.spools or folder.exists():
            drop_oldest = station.when_spool_full == "drop-oldest"
            bounds = Bounds(settings.spool_max_bytes, settings.spool_max_age_s, drop_oldest)
            self._spool = Spool(folder, line, station.name, bounds, metrics)
            self._drain = Drain(self._spool, bus, self._breaker, line, station.name, settings.window, metrics, claims)

    def __enter__(self) -> Outlet:
        if self._spool is not None and self._drain is not None:
            self._stack.enter_context(self._spool)
            self._stack.enter_context(self._drain)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def spool(self) -> Spool | None:
        return self._spool

    @property
    def in_flight(self) -> int:
        return len(self._under_way)

    @property
    def accepted(self) -> int:
        return self._accepted

    @property
    def last_frame_s(self) -> float:
        """When the last frame was published, seconds since the epoch; 0 before the first."""
        return self._last_frame_s

    @property
    def trouble(self) -> str:
        """Why frames go to disk, or cannot, in words; empty when all is well."""
        if self._spool is None:
            return ""
        away = self._breaker.trouble if self._spools else ""
        return "; ".join(words for words in (away and f"the bus is away: {away}", self._spool.trouble) if words)

    def publish(self, frame: frame_pb2.Frame, *, may_spool: bool = True) -> Future[None]:
        """Done when the frame is accepted: confirmed by the bus, or on the disk of a station that spools.

        Blocks while the bus is full: for `spool_after_s` where the frame may go to disk then, for the bus's own
        patience where not. Raises, now or in the future, QueueFull, BusClosed, StorageFull, StorageAway, TooLate: the
        frame was not accepted. `may_spool` False: whoever waits for the decision has no use for a later one.
        The frame's part waits at the gate from the first moment on; raises as `Gate.expect`, too.
        """
        with spans.InHand(frame.frame_id, frame.line, frame.station):
            return self._publish(frame, may_spool)

    def _publish(self, frame: frame_pb2.Frame, may_spool: bool) -> Future[None]:
        self._compare(frame)
        try:
            self._gate.expect(frame)
        except StorageFull:
            # The journal lies on the spool's disk: where the newest frames count, the oldest make room for it too.
            if self._spool is None or not self._spool.make_room():
                raise
            self._gate.expect(frame)
        try:
            return self._send(frame, may_spool)
        except InspectBusError:
            # It certainly did not go. One whose future fails may have arrived all the same, so its part still waits.
            self._gate.forget(frame.frame_id)
            raise

    def _send(self, frame: frame_pb2.Frame, may_spool: bool) -> Future[None]:
        step = spans.begin("publish", frame.frame_id, kind=SpanKind.PRODUCER)
        spools = self._spools and may_spool and self._spool is not None
        away = spools and self._knows_the_bus_away
        store_fails: InspectBusError | None = None
        if not away:
            try:
                frame = self._claims.claimed(frame)
            except (StorageFull, StorageAway) as error:
                # The station's own disk takes the image as well, and the drain claims it later.
                store_fails, away = error, spools
        passage = _Passage(frame_message(frame), spools, step=step)
        passage.accepted.set_running_or_notify_cancel()  # nobody can cancel what others already work on
        try:
            if away:
                self._to_spool(passage, patience_s=self._spool_after_s)
            elif store_fails is not None:
                self._failures.inc()
                raise store_fails
            else:
                self._to_bus(passage)
        except InspectBusError as error:
            self._settled(passage, error)
            raise
        self._last_frame_s = time.time()
        return passage.accepted

    def _compare(self, frame: frame_pb2.Frame) -> None:
        """No two pictures of a living camera are alike to the last bit: its noise sees to that."""
        before, frame_id = self._last_image
        if frame.frame_id == frame_id:
            return
        image = frame.image
        if before and image == before:
            self._repeated.inc()
        self._last_image = (image, frame.frame_id)

    def stop_draining(self) -> None:
        """What is on disk stays there for the next start."""
        if self._drain is not None:
            self._drain.ask_to_stop()

    def rescue(self) -> None:
        """Puts on disk what the bus has not confirmed. It may take the same frames all the same: under their ids."""
        with self._changed:
            unconfirmed = [passage for passage in self._under_way if passage.spools and not passage.spooling]
        for passage in unconfirmed:
            self._bus_failed(passage)

    def drain(self, patience_s: float) -> bool:
        """Waits until nothing is in flight; False when it still is after patience_s."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._under_way, patience_s)

    @property
    def _knows_the_bus_away(self) -> bool:
        """And has frames on disk, or can, by which it will hear that the bus is back."""
        assert self._spool is not None
        return bool(self._breaker.trouble) and (not self._spool.trouble or self._spool.frames > 0)

    def _to_bus(self, passage: _Passage) -> None:
        try:
            if passage.spools:
                confirmed = self._bus.publish(FRAMES, passage.message, patience_s=self._spool_after_s)
            else:
                confirmed = self._bus.publish(FRAMES, passage.message)
        except BUS_FAILS as error:
            self._failures.inc()
            if not passage.spools:
                raise
            self._breaker.trip(error)
            self._to_spool(passage)
        else:
            self._set_out(passage)
            confirmed.add_done_callback(lambda done: self._on_bus(passage, done))

    def _on_bus(self, passage: _Passage, confirmed: Future[None]) -> None:
        """On the bus's thread, so nothing here may block."""
        with handling.in_hand(passage.message):
            self._on_bus_in_hand(passage, confirmed)

    def _on_bus_in_hand(self, passage: _Passage, confirmed: Future[None]) -> None:
        error = confirmed.exception()
        if error is None:
            self._breaker.close()
            self._settled(passage, None)
            return
        self._failures.inc()
        if passage.spools and isinstance(error, BUS_FAILS):
            self._breaker.trip(error)
            self._bus_failed(passage)
        else:
            self._settled(passage, error)

    def _bus_failed(self, passage: _Passage) -> None:
        try:
            self._to_spool(passage)
        except InspectBusError as error:
            self._settled(passage, error)

    def _to_spool(self, passage: _Passage, patience_s: float | None = None) -> None:
        assert self._spool is not None
        with self._changed:
            if passage.spooling or passage.settled:
                return
            passage.spooling = True
        try:
            synced = self._spool.append(passage.message.body, patience_s)
        except StorageFull as full:
            raise StorageFull(self._with_trouble(full)) from None
        except StorageAway as away:
            raise StorageAway(self._with_trouble(away)) from None
        self._set_out(passage)
        synced.add_done_callback(lambda done: self._on_disk(passage, done))

    def _on_disk(self, passage: _Passage, synced: Future[None]) -> None:
        """On the spool's thread."""
        self._settled(passage, synced.exception())

    def _set_out(self, passage: _Passage) -> None:
        """Bus or disk has it in hand."""
        with self._changed:
            if not passage.settled and passage not in self._under_way:
                self._under_way.add(passage)
                self._in_flight_gauge.inc()

    def _settled(self, passage: _Passage, error: BaseException | None) -> None:
        """Bus or disk has it for good; with an error neither took it, and its sender hears why."""
        with self._changed:
            if passage.settled:
                return  # the bus and the disk may both have it
            passage.settled = True
            if passage in self._under_way:
                self._under_way.remove(passage)
                self._in_flight_gauge.dec()
            self._accepted += error is None
            self._changed.notify_all()
        if passage.spooling:
            passage.step.set_attribute("inspectbus.spooled", True)
        spans.end(passage.step, error)
        if error is None:
            self._accepted_total.inc()
            self._publish_seconds.observe(time.monotonic() - passage.begun_s)
            passage.accepted.set_result(None)
        else:
            passage.accepted.set_exception(error)

    def _with_trouble(self, error: InspectBusError) -> str:
        trouble = self._breaker.trouble
        return f"{error.message}; the bus is away: {trouble}" if trouble else error.message
