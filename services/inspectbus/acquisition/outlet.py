"""An outlet: where the frames of one station leave for the bus, counted and timed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

from inspectbus.acquisition.claims import Claims
from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.api.v1 import frame_pb2
from inspectbus.bus import Bus, Message
from inspectbus.bus.topics import FRAMES
from inspectbus.errors import BusClosed, QueueFull, StorageAway, StorageFull


class Outlet:
    def __init__(self, bus: Bus, line: str, station: str, claims: Claims, metrics: AcquisitionMetrics) -> None:
        self.line = line
        self.station = station
        self._bus = bus
        self._claims = claims
        self._accepted_total = metrics.accepted.labels(line, station)
        self._failures = metrics.failures.labels(line, station)
        self._in_flight_gauge = metrics.in_flight.labels(line, station)
        self._publish_seconds = metrics.publish_seconds.labels(line, station)
        self._changed = threading.Condition()
        self._in_flight = 0
        self._accepted = 0
        self._last_frame_s = 0.0

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def accepted(self) -> int:
        return self._accepted

    @property
    def last_frame_s(self) -> float:
        """When the last frame was published, seconds since the epoch; 0 before the first."""
        return self._last_frame_s

    def publish(self, frame: frame_pb2.Frame) -> Future[None]:
        """Done when the frame is accepted. Blocks while the bus is full.

        Raises QueueFull, BusClosed, and StorageFull or StorageAway when its image is large and the frame store fails.
        """
        try:
            frame = self._claims.claimed(frame)
        except (StorageFull, StorageAway):
            self._failures.inc()
            raise
        message = Message(
            body=frame.SerializeToString(),
            key=(self.line, self.station),
            source=f"acquisition/{self.line}/{self.station}",
            subject=frame.frame_id,
            id=frame.frame_id,
        )
        begun_s = time.monotonic()
        try:
            future = self._bus.publish(FRAMES, message)
        except (QueueFull, BusClosed):
            self._failures.inc()
            raise
        with self._changed:
            self._in_flight += 1
            self._last_frame_s = time.time()
        self._in_flight_gauge.inc()
        future.add_done_callback(lambda done: self._settled(done, begun_s))
        return future

    def drain(self, patience_s: float) -> bool:
        """Waits until nothing is in flight; False when it still is after patience_s."""
        with self._changed:
            return self._changed.wait_for(lambda: self._in_flight == 0, patience_s)

    def _settled(self, future: Future[None], begun_s: float) -> None:
        self._in_flight_gauge.dec()
        if future.exception() is None:
            self._accepted_total.inc()
            self._publish_seconds.observe(time.monotonic() - begun_s)
        else:
            self._failures.inc()
        with self._changed:
            self._accepted += future.exception() is None
            self._in_flight -= 1
            self._changed.notify_all()
