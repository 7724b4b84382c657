"""Gates: what a station does with its parts, for whoever moves them.

    stream ─ reader thread ─> [events] ─> next: an outcome, or an error within heartbeat_s of the last sign of life

Unlike a watch of decisions this one never opens itself again: what the gate did meanwhile would be missing, and whoever
moves the parts must know. An error means: take the fail-safe position, then begin anew.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import cached_property
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Any, Self

import grpc

from inspectbus.api.v1 import acquisition_pb2, acquisition_pb2_grpc
from inspectbus.errors import InspectBusError, TooLate, Unreachable
from inspectbus_client.failures import failure_of
from inspectbus_client.values import GateOutcome, read
from inspectbus_client.wire import Stream, Wire

UNREAD_LIMIT = 100
"""Events read ahead of the caller; beyond, the service keeps them, and ends the stream of one who stays behind."""
LOOK_UP_S = 0.2
"""How often a reader thread that has no room looks whether the watch is over."""


class Gates:
    """The part of the client that follows gates."""

    _wire: Wire

    def gate(self, line: str, station: str) -> GateWatch:
        """Every outcome of the station's gate from now on, until you leave. Use it with `with`, or `close` it.

        Iterating raises TooLate when no heartbeat came for as long as the gate promises one, Unreachable when the
        stream broke, or what the service refused the watch with: take the fail-safe position then. Raises
        NotPossibleNow when this client has been closed.
        """
        return GateWatch(self._wire, self._gates, acquisition_pb2.WatchGateRequest(line=line, station=station))

    @cached_property
    def _gates(self) -> acquisition_pb2_grpc.AcquisitionServiceStub:
        return acquisition_pb2_grpc.AcquisitionServiceStub(self._wire.channel("acquisition"))


class GateWatch:
    """An iterator of outcomes and a context manager. `close` from any thread ends it without an error."""

    def __init__(
        self,
        wire: Wire,
        stub: acquisition_pb2_grpc.AcquisitionServiceStub,
        request: acquisition_pb2.WatchGateRequest,
    ) -> None:
        wire.check_open()
        self._wire = wire
        self._closed = threading.Event()
        self._events: Queue[acquisition_pb2.WatchGateResponse | InspectBusError] = Queue(UNREAD_LIMIT)
        self._where = wire.where("acquisition")
        # Until the first sign of life tells how often they come.
        self._heartbeat_s = wire.timeout_s
        # No deadline: heartbeats tell a silent gate from a dead connection.
        self._call: Stream[Any] = stub.WatchGate(request)
        self._reader = threading.Thread(target=self._read, name="gate-watch", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._closed.set()
        self._call.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GateOutcome:
        while not self._over:
            try:
                event = self._events.get(timeout=self._heartbeat_s)
            except Empty:
                if self._over:
                    break
                self.close()
                message = f"{self._where} gave no heartbeat of the gate for {self._heartbeat_s:g} s"
                raise TooLate(f"{message}: take the fail-safe position") from None
            if isinstance(event, InspectBusError):
                if self._over:
                    break
                self.close()
                raise event
            self._heartbeat_s = event.heartbeat_s
            if event.HasField("outcome"):
                return read(GateOutcome, event.outcome)
        raise StopIteration

    @property
    def _over(self) -> bool:
        return self._closed.is_set() or self._wire.closed.is_set()

    def _read(self) -> None:
        end: InspectBusError = Unreachable(f"{self._where} ended the stream")
        try:
            for event in self._call:
                if not self._put(event):
                    break
        except grpc.RpcError as error:
            end = self._wire.last_word("acquisition", failure_of(error, self._where))
        if not self._put(end):
            with suppress(Full):  # then nobody waits
                self._events.put_nowait(end)

    def _put(self, event: acquisition_pb2.WatchGateResponse | InspectBusError) -> bool:
        """False when the watch is over."""
        while not self._over:
            try:
                self._events.put(event, timeout=LOOK_UP_S)
            except Full:
                continue
            return True
        return False
