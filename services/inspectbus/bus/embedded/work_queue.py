"""One group's queue of work: two lanes, bounded by the broker, handed out to consumers in turn."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inspectbus.bus.contract import Lane, Message
from inspectbus.bus.lanes import Lanes
from inspectbus.bus.topics import Topic

if TYPE_CHECKING:
    from inspectbus.bus.embedded.broker import Limits
    from inspectbus.bus.embedded.consumer import Consumer


@dataclass
class Publication:
    """One published message: its future is done when every group has settled its copy."""

    future: Future[None]
    unsettled: int


@dataclass
class Entry:
    """A message in one group's queue."""

    message: Message
    publication: Publication
    attempts: int = 0


class WorkQueue:
    """One group's queue. Every method but `depth` wants the broker's lock held."""

    def __init__(self, topic: Topic, group: str, lock: threading.Lock) -> None:
        self.topic = topic
        self.group = group
        self._lock = lock
        self._waiting: Lanes[Entry] = Lanes()
        self._bytes = 0
        self._consumers: deque[Consumer] = deque()

    def depth(self, lane: Lane) -> int:
        with self._lock:
            return len(self._waiting[lane])

    def has_room(self, message: Message, limits: Limits) -> bool:
        count = len(self._waiting)
        fits = self._bytes + len(message.body) <= limits.queue_bytes
        return count == 0 or (count < limits.queue_messages and fits)

    def put(self, entry: Entry, *, first: bool = False) -> None:
        self._waiting.put(entry, entry.message.lane if self.topic.laned else Lane.LIVE, first=first)
        self._bytes += len(entry.message.body)
        self.hand_out()

    def drop_oldest_beyond(self, limit: int) -> list[Entry]:
        lane = self._waiting[Lane.LIVE]
        dropped = [lane.popleft() for _ in range(len(lane) - limit)]
        self._bytes -= sum(len(entry.message.body) for entry in dropped)
        return dropped

    def join(self, consumer: Consumer) -> None:
        self._consumers.append(consumer)
        self.hand_out()

    def part(self, consumer: Consumer) -> None:
        if consumer in self._consumers:
            self._consumers.remove(consumer)

    def drain(self) -> list[Entry]:
        return self._waiting.clear()

    def hand_out(self) -> None:
        """Gives consumers with a free place what waits."""
        while len(self._waiting) and (consumer := self._next_consumer()):
            entry = self._waiting.next()
            self._bytes -= len(entry.message.body)
            consumer.accept(entry)

    def _next_consumer(self) -> Consumer | None:
        # Round and round, so that a consumer with a large prefetch cannot starve one with a small.
        for _ in range(len(self._consumers)):
            consumer = self._consumers[0]
            self._consumers.rotate(-1)
            if consumer.has_room():
                return consumer
        return None
