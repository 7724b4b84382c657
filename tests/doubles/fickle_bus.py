"""A bus that can go away and come back: everything goes to a real one behind it while it is there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal

from prometheus_client import CollectorRegistry

from inspectbus.bus import Bus, Lane, Message
from inspectbus.bus.contract import Epitaph, Handler, Subscription
from inspectbus.bus.topics import FRAMES, Topic
from inspectbus.errors import BusClosed, InspectBusError, QueueFull, TooLate

AWAY = "the broker went away"
Way = Literal["refuses", "is full", "loses", "swallows"]


class FickleBus:
    """Away, it does one of four things with a frame: refuses it at once, is full, takes it and fails its future, or
    takes it and says nothing, until `lose_swallowed` or its coming back fails the futures. Other topics go through."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lock = threading.Lock()
        self._way: Way | None = None
        self._failing: Callable[[Message], InspectBusError | None] = lambda _: None
        self._swallowed: list[Future[None]] = []
        self.trouble = ""
        self.tried: list[Message] = []
        """Every frame's message that was handed in, away or not."""
        self.patience_s: list[float | None] = []

    def go_away(self, way: Way, trouble: str = "") -> None:
        """`trouble` is what the bus says of itself; empty, it does not know yet."""
        with self._lock:
            self._way = way
        self.trouble = trouble

    def come_back(self) -> None:
        with self._lock:
            self._way = None
        self.trouble = ""
        self.lose_swallowed()

    def lose_swallowed(self) -> None:
        with self._lock:
            swallowed, self._swallowed = self._swallowed, []
        for future in swallowed:
            future.set_exception(TooLate("not confirmed in time"))

    def fail_where(self, failing: Callable[[Message], InspectBusError | None]) -> None:
        """Fails the futures of the messages for which this gives an error, whether it is away or not."""
        self._failing = failing

    def publish(self, topic: Topic, message: Message, *, patience_s: float | None = None) -> Future[None]:
        if topic is not FRAMES:
            return self._bus.publish(topic, message, patience_s=patience_s)
        with self._lock:
            self.tried.append(message)
            self.patience_s.append(patience_s)
            way = self._way
        if way == "refuses":
            raise BusClosed(AWAY)
        if way == "is full":
            raise QueueFull("inspectbus.frames is full")
        future: Future[None] = Future()
        error = TooLate(AWAY) if way == "loses" else self._failing(message)
        if error is not None:
            future.set_exception(error)
            return future
        if way == "swallows":
            with self._lock:
                self._swallowed.append(future)
            return future
        return self._bus.publish(topic, message, patience_s=patience_s)

    def subscribe(
        self, topic: Topic, group: str, handler: Handler, *, prefetch: int = 16, epitaph: Epitaph | None = None
    ) -> Subscription:
        return self._bus.subscribe(topic, group, handler, prefetch=prefetch, epitaph=epitaph)

    def follow(self, topic: Topic, handler: Callable[[Message], None], *, key: tuple[str, ...] = ()) -> Subscription:
        return self._bus.follow(topic, handler, key=key)

    def depth(self, topic: Topic, group: str, lane: Lane = Lane.LIVE) -> int:
        return self._bus.depth(topic, group, lane)

    def report_to(self, registry: CollectorRegistry) -> None:
        self._bus.report_to(registry)

    def __enter__(self) -> FickleBus:
        return self

    def __exit__(self, *_: object) -> None:
        """The bus behind it has its own owner."""
