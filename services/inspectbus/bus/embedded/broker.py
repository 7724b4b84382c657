"""The broker behind every handle of one name: its queues, its followers, and the keeper of what comes later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import structlog

from inspectbus.bus import topics
from inspectbus.bus.contract import Lane, Message
from inspectbus.bus.embedded.consumer import Consumer
from inspectbus.bus.embedded.follower import Follower
from inspectbus.bus.embedded.work_queue import Entry, Publication, WorkQueue
from inspectbus.bus.keeper import Keeper
from inspectbus.bus.topics import Topic
from inspectbus.errors import BusClosed, QueueFull

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Limits:
    """How much a broker holds, and how patient it is. The first bus opened under a name sets them."""

    queue_messages: int = 1024
    """Per work queue, both lanes together."""
    queue_bytes: int = 256 * 1024 * 1024
    """Per work queue; one larger message is still taken by an empty queue."""
    publish_patience_s: float = 30.0
    """How long publish waits for room before it raises QueueFull."""
    max_attempts: int = 5
    retry_delay_s: float = 0.1
    """Before the second attempt; doubles with each further one, up to five seconds."""
    news_limit: int = 1000
    """Messages waiting for one follower."""
    dead_limit: int = 1000
    """Dead letters kept; beyond it the oldest goes, and the log says so."""


class Broker:
    """All queues of one name. Its keeper brings retries back and buries what is parked."""

    _all: dict[str, Broker] = {}  # noqa: RUF012 - shared on purpose: the brokers of this process
    _all_lock = threading.Lock()

    @classmethod
    def join(cls, name: str, limits: Limits) -> Broker:
        with cls._all_lock:
            broker = cls._all.get(name)
            if broker is None:
                broker = cls._all[name] = cls(name, limits)
            broker._handles += 1
            return broker

    def __init__(self, name: str, limits: Limits) -> None:
        self._name = name
        self.limits = limits
        self.lock = threading.Lock()
        self._room = threading.Condition(self.lock)
        self._handles = 0
        self._closed = False
        self._queues: dict[tuple[str, str], WorkQueue] = {}
        self._followers: list[Follower] = []
        self._open: set[Future[None]] = set()
        self._keeper = Keeper(f"bus-{name}-keeper")

    def leave(self) -> None:
        with self._all_lock:
            self._handles -= 1
            if self._handles:
                return
            del self._all[self._name]
        with self.lock:
            self._closed = True
            # Who takes a future out of `_open` completes it, so none is completed twice.
            unsettled = list(self._open)
            self._open.clear()
            self._room.notify_all()
        for future in unsettled:
            future.set_exception(BusClosed("the bus was closed before this message was settled"))
        self._keeper.close()

    def queue(self, topic: Topic, group: str) -> WorkQueue:
        with self.lock:
            return self._queue(topic, group)

    def _queue(self, topic: Topic, group: str) -> WorkQueue:
        key = (topic.name, group)
        if key not in self._queues:
            self._queues[key] = WorkQueue(topic, group, self.lock)
        return self._queues[key]

    def publish(self, topic: Topic, message: Message, patience_s: float | None) -> Future[None]:
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # nobody can cancel what others already work on
        with self.lock:
            queues = [self._queue(topic, group) for group in topic.groups]
            roomy = self._room.wait_for(
                lambda: self._closed or all(queue.has_room(message, self.limits) for queue in queues),
                timeout=self.limits.publish_patience_s if patience_s is None else patience_s,
            )
            if self._closed:
                raise BusClosed("the bus has been closed")
            if not roomy:
                raise QueueFull(f"{topic.name} is full: its consumers are behind; send more slowly or later")
            if queues:
                publication = Publication(future, len(queues))
                self._open.add(future)
                for queue in queues:
                    queue.put(Entry(message, publication))
            followers = [follower for follower in self._followers if follower.wants(topic, message)]
            for follower in followers:
                follower.accept(message)
        if not queues:
            future.set_result(None)
        return future

    def settle(self, entry: Entry) -> None:
        """The entry's group is finished with it."""
        with self.lock:
            entry.publication.unsettled -= 1
            future = entry.publication.future
            finished = entry.publication.unsettled == 0 and future in self._open
            if finished:
                self._open.remove(future)
        if finished:
            future.set_result(None)

    def later(self, delay_s: float, chore: Callable[[], None]) -> None:
        self._keeper.later(delay_s, chore)

    def put_back(self, queue: WorkQueue, entry: Entry, *, first: bool = False) -> None:
        with self.lock:
            if not self._closed:
                queue.put(entry, first=first)

    def bury(self, queue: WorkQueue, entry: Entry, error: BaseException) -> None:
        """Keeps the message among the dead letters with the reason. Never waits for room: the oldest makes it."""
        headers = {
            "error": f"{type(error).__name__}: {error}",
            "attempts": str(entry.attempts),
            "topic": queue.topic.name,
            "group": queue.group,
        }
        letter = replace(entry.message, key=(queue.topic.name, queue.group), lane=Lane.LIVE, headers=headers)
        with self.lock:
            future: Future[None] = Future()
            for group in topics.DEAD.groups:
                dead = self._queue(topics.DEAD, group)
                dead.put(Entry(letter, Publication(future, len(topics.DEAD.groups))))
                dropped = dead.drop_oldest_beyond(self.limits.dead_limit)
                if dropped:
                    log.warning("dead letters dropped, the limit is reached", dropped=len(dropped))
            for follower in self._followers:
                if follower.wants(topics.DEAD, letter):
                    follower.accept(letter)

    def follow(self, follower: Follower) -> None:
        with self.lock:
            self._followers.append(follower)

    def unfollow(self, follower: Follower) -> None:
        with self.lock:
            if follower in self._followers:
                self._followers.remove(follower)

    def join_queue(self, queue: WorkQueue, consumer: Consumer) -> None:
        with self.lock:
            queue.join(consumer)
            self._room.notify_all()

    def freed(self, queue: WorkQueue) -> None:
        with self.lock:
            queue.hand_out()
            self._room.notify_all()
