"""One group's queue of work: two lanes, bounded by the broker, handed out to consumers in turn."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inspectbus.bus.contract import BACKLOG_SHARE, Lane, Message
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
        self._lanes: dict[Lane, deque[Entry]] = {lane: deque() for lane in Lane}
        self._bytes = 0
        self._handed_out = 0
        self._consumers: deque[Consumer] = deque()

    def depth(self, lane: Lane) -> int:
        with self._lock:
            return len(self._lanes[lane])

    def has_room(self, message: Message, limits: Limits) -> bool:
        count = sum(len(lane) for lane in self._lanes.values())
        fits = self._bytes + len(message.body) <= limits.queue_bytes
        return count == 0 or (count < limits.queue_messages and fits)

    def put(self, entry: Entry, *, first: bool = False) -> None:
        lane = self._lanes[self._lane_of(entry)]
        if first:
            lane.appendleft(entry)
        else:
            lane.append(entry)
        self._bytes += len(entry.message.body)
        self.hand_out()

    def drop_oldest_beyond(self, limit: int) -> list[Entry]:
        lane = self._lanes[Lane.LIVE]
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
        entries = [entry for lane in self._lanes.values() for entry in lane]
        for lane in self._lanes.values():
            lane.clear()
        return entries

    def _lane_of(self, entry: Entry) -> Lane:
        return entry.message.lane if self.topic.laned else Lane.LIVE

    def hand_out(self) -> None:
        """Gives consumers with a free place what waits."""
        while any(self._lanes.values()) and (consumer := self._next_consumer()):
            entry = self._next_entry()
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

    def _next_entry(self) -> Entry:
        live, backlog = self._lanes[Lane.LIVE], self._lanes[Lane.BACKLOG]
        self._handed_out += 1
        backlog_turn = backlog and self._handed_out % BACKLOG_SHARE == 0
        return backlog.popleft() if backlog_turn or not live else live.popleft()
