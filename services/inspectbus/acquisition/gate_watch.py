"""Watching a gate: every watcher gets each outcome and heartbeat from now on, in order, through a queue of its own.

    gate ── act, heartbeat ──> [watcher's queue] ──> its stream

A watcher that falls behind is ended with an error: it must take its fail-safe position, and must know that it missed
something.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from inspectbus.api.v1.acquisition_pb2 import WatchGateResponse
from inspectbus.api.v1.gate_pb2 import GateOutcome
from inspectbus.errors import BusClosed, QueueFull

WATCHER_LIMIT = 1000
"""Events that wait for one watcher; who is further behind acts on parts that have long passed."""


class Watcher:
    """One watcher's queue, and a context manager."""

    def __init__(self, leave: Callable[[Watcher], None]) -> None:
        self._leave = leave
        self._changed = threading.Condition()
        self._events: deque[WatchGateResponse] = deque()
        self._behind = False
        self._closed = False

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave(self)

    def put(self, event: WatchGateResponse) -> None:
        with self._changed:
            if len(self._events) < WATCHER_LIMIT:
                self._events.append(event)
            else:
                self._behind = True
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def next(self, patience_s: float) -> WatchGateResponse | None:
        """The next event; None when none has come in time. Raises QueueFull when some were missed, BusClosed at the
        gate's end."""
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._behind or self._closed, patience_s)
            if self._behind:
                raise QueueFull(f"more than {WATCHER_LIMIT} events waited for this watcher; outcomes were missed")
            if self._events:
                return self._events.popleft()
            if self._closed:
                raise BusClosed("the gate is closing")
            return None


class Watchers:
    """Those who watch one gate. An Output that never waits."""

    def __init__(self, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._lock = threading.Lock()
        self._watchers: list[Watcher] = []

    def watch(self) -> Watcher:
        """A watcher of everything from now on. Leave it with `with`."""
        watcher = Watcher(self._leave)
        with self._lock:
            self._watchers.append(watcher)
        return watcher

    def act(self, outcome: GateOutcome) -> None:
        self._tell(WatchGateResponse(outcome=outcome, heartbeat_s=self._heartbeat_s))

    def heartbeat(self) -> None:
        event = WatchGateResponse(heartbeat_s=self._heartbeat_s)
        event.heartbeat.FromNanoseconds(time.time_ns())
        self._tell(event)

    def close(self) -> None:
        with self._lock:
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.close()

    def _leave(self, watcher: Watcher) -> None:
        with self._lock:
            self._watchers.remove(watcher)

    def _tell(self, event: WatchGateResponse) -> None:
        with self._lock:
            for watcher in self._watchers:
                watcher.put(event)
