"""The bus inside one process: a small real broker that queues, redelivers, dead-letters and is bounded.

    publish ─> [work queue: live | backlog] ─> consumer's inbox (at most `prefetch` unsettled) ─> handler, own thread
                   ^                                                        │
                   └── after a delay <── keeper thread <── retry ───────────┤
                                              └── park: epitaph, dead letter┘   done: the publisher's future, once
                                                                                every group has settled

The process's memory is all there is, so being responsible for a message can only mean having finished with it: a
publish is confirmed when the work it caused is settled, which chains through `done(after=...)` to the very end.

One lock guards a broker; no callback, handler or future ever runs under it.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import structlog

from inspectbus.bus import topics
from inspectbus.bus.contract import Epitaph, Handler, Lane, Message
from inspectbus.bus.topics import Topic
from inspectbus.errors import BadField, BusClosed, InspectBusError, QueueFull

log = structlog.get_logger(__name__)

BACKLOG_SHARE = 8
"""Every so many deliveries the backlog goes first, when it waits: a draining spool neither stalls nor delays."""


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


class EmbeddedBus:
    """A handle on the broker of this name. The broker lives as long as any handle is open."""

    def __init__(self, name: str, limits: Limits | None = None) -> None:
        self._broker = _Broker.join(name, limits or Limits())
        self._subscriptions: list[_Consumer | _Follower] = []
        self._closed = False

    def __enter__(self) -> EmbeddedBus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends this handle's subscriptions. With the last handle, whatever was not settled fails with BusClosed."""
        if self._closed:
            return
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close(patience_s=0)
        self._broker.leave()

    def publish(self, topic: Topic, message: Message) -> Future[None]:
        self._check_open()
        return self._broker.publish(topic, message)

    def subscribe(
        self, topic: Topic, group: str, handler: Handler, *, prefetch: int = 16, epitaph: Epitaph | None = None
    ) -> _Consumer:
        self._check_open()
        if group not in topic.groups:
            raise BadField(f"{topic.name} has no group {group!r}; it has {', '.join(topic.groups) or 'none'}")
        consumer = _Consumer(self._broker, self._broker.queue(topic, group), handler, prefetch, epitaph)
        self._subscriptions.append(consumer)
        consumer.start()
        return consumer

    def follow(self, topic: Topic, handler: Callable[[Message], None], *, key: tuple[str, ...] = ()) -> _Follower:
        self._check_open()
        follower = _Follower(self._broker, topic, key, handler)
        self._subscriptions.append(follower)
        follower.start()
        return follower

    def depth(self, topic: Topic, group: str, lane: Lane = Lane.LIVE) -> int:
        return self._broker.queue(topic, group).depth(lane)

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosed("this bus has been closed")


@dataclass
class _Publication:
    """One published message: its future is done when every group has settled its copy."""

    future: Future[None]
    unsettled: int


@dataclass
class _Entry:
    """A message in one group's queue."""

    message: Message
    publication: _Publication
    attempts: int = 0


class _WorkQueue:
    """One group's queue. Every method but `depth` wants the broker's lock held."""

    def __init__(self, topic: Topic, group: str, lock: threading.Lock) -> None:
        self.topic = topic
        self.group = group
        self._lock = lock
        self._lanes: dict[Lane, deque[_Entry]] = {lane: deque() for lane in Lane}
        self._bytes = 0
        self._handed_out = 0
        self._consumers: deque[_Consumer] = deque()

    def depth(self, lane: Lane) -> int:
        with self._lock:
            return len(self._lanes[lane])

    def has_room(self, message: Message, limits: Limits) -> bool:
        count = sum(len(lane) for lane in self._lanes.values())
        fits = self._bytes + len(message.body) <= limits.queue_bytes
        return count == 0 or (count < limits.queue_messages and fits)

    def put(self, entry: _Entry, *, first: bool = False) -> None:
        lane = self._lanes[self._lane_of(entry)]
        if first:
            lane.appendleft(entry)
        else:
            lane.append(entry)
        self._bytes += len(entry.message.body)
        self.hand_out()

    def drop_oldest_beyond(self, limit: int) -> list[_Entry]:
        lane = self._lanes[Lane.LIVE]
        dropped = [lane.popleft() for _ in range(len(lane) - limit)]
        self._bytes -= sum(len(entry.message.body) for entry in dropped)
        return dropped

    def join(self, consumer: _Consumer) -> None:
        self._consumers.append(consumer)
        self.hand_out()

    def part(self, consumer: _Consumer) -> None:
        if consumer in self._consumers:
            self._consumers.remove(consumer)

    def drain(self) -> list[_Entry]:
        entries = [entry for lane in self._lanes.values() for entry in lane]
        for lane in self._lanes.values():
            lane.clear()
        return entries

    def _lane_of(self, entry: _Entry) -> Lane:
        return entry.message.lane if self.topic.laned else Lane.LIVE

    def hand_out(self) -> None:
        """Gives consumers with a free place what waits."""
        while any(self._lanes.values()) and (consumer := self._next_consumer()):
            entry = self._next_entry()
            self._bytes -= len(entry.message.body)
            consumer.accept(entry)

    def _next_consumer(self) -> _Consumer | None:
        # Round and round, so that a consumer with a large prefetch cannot starve one with a small.
        for _ in range(len(self._consumers)):
            consumer = self._consumers[0]
            self._consumers.rotate(-1)
            if consumer.has_room():
                return consumer
        return None

    def _next_entry(self) -> _Entry:
        live, backlog = self._lanes[Lane.LIVE], self._lanes[Lane.BACKLOG]
        self._handed_out += 1
        backlog_turn = backlog and self._handed_out % BACKLOG_SHARE == 0
        return backlog.popleft() if backlog_turn or not live else live.popleft()


class _Broker:
    """All queues of one name. `keeper` is its one thread: it brings retries back and buries what is parked."""

    _all: dict[str, _Broker] = {}  # noqa: RUF012 - shared on purpose: the brokers of this process
    _all_lock = threading.Lock()

    @classmethod
    def join(cls, name: str, limits: Limits) -> _Broker:
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
        self._chores_changed = threading.Condition(self.lock)
        self._handles = 0
        self._closed = False
        self._queues: dict[tuple[str, str], _WorkQueue] = {}
        self._followers: list[_Follower] = []
        self._chores: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._open: set[Future[None]] = set()
        self._keeper = threading.Thread(target=self._keep, name=f"bus-{name}-keeper", daemon=True)
        self._keeper.start()

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
            self._chores_changed.notify_all()
        for future in unsettled:
            future.set_exception(BusClosed("the bus was closed before this message was settled"))
        if threading.current_thread() is not self._keeper:
            self._keeper.join(timeout=5)

    def queue(self, topic: Topic, group: str) -> _WorkQueue:
        with self.lock:
            return self._queue(topic, group)

    def _queue(self, topic: Topic, group: str) -> _WorkQueue:
        key = (topic.name, group)
        if key not in self._queues:
            self._queues[key] = _WorkQueue(topic, group, self.lock)
        return self._queues[key]

    def publish(self, topic: Topic, message: Message) -> Future[None]:
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # nobody can cancel what others already work on
        with self.lock:
            queues = [self._queue(topic, group) for group in topic.groups]
            roomy = self._room.wait_for(
                lambda: self._closed or all(queue.has_room(message, self.limits) for queue in queues),
                timeout=self.limits.publish_patience_s,
            )
            if self._closed:
                raise BusClosed("the bus has been closed")
            if not roomy:
                raise QueueFull(f"{topic.name} is full: its consumers are behind; send more slowly or later")
            if queues:
                publication = _Publication(future, len(queues))
                self._open.add(future)
                for queue in queues:
                    queue.put(_Entry(message, publication))
            followers = [follower for follower in self._followers if follower.wants(topic, message)]
            for follower in followers:
                follower.accept(message)
        if not queues:
            future.set_result(None)
        return future

    def settle(self, entry: _Entry) -> None:
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
        with self.lock:
            heapq.heappush(self._chores, (time.monotonic() + delay_s, next(self._order), chore))
            self._chores_changed.notify()

    def put_back(self, queue: _WorkQueue, entry: _Entry, *, first: bool = False) -> None:
        with self.lock:
            if not self._closed:
                queue.put(entry, first=first)

    def bury(self, queue: _WorkQueue, entry: _Entry, error: BaseException) -> None:
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
                dead.put(_Entry(letter, _Publication(future, len(topics.DEAD.groups))))
                dropped = dead.drop_oldest_beyond(self.limits.dead_limit)
                if dropped:
                    log.warning("dead letters dropped, the limit is reached", dropped=len(dropped))
            for follower in self._followers:
                if follower.wants(topics.DEAD, letter):
                    follower.accept(letter)

    def follow(self, follower: _Follower) -> None:
        with self.lock:
            self._followers.append(follower)

    def unfollow(self, follower: _Follower) -> None:
        with self.lock:
            if follower in self._followers:
                self._followers.remove(follower)

    def join_queue(self, queue: _WorkQueue, consumer: _Consumer) -> None:
        with self.lock:
            queue.join(consumer)
            self._room.notify_all()

    def freed(self, queue: _WorkQueue) -> None:
        with self.lock:
            queue.hand_out()
            self._room.notify_all()

    def _keep(self) -> None:
        while True:
            with self.lock:
                while not self._closed and (not self._chores or self._chores[0][0] > time.monotonic()):
                    wait_s = self._chores[0][0] - time.monotonic() if self._chores else None
                    self._chores_changed.wait(wait_s)
                if self._closed:
                    return
                chore = heapq.heappop(self._chores)[2]
            chore()


class _Consumer:
    """A subscription: an inbox the queue fills, a thread that calls the handler, and what is still unsettled."""

    def __init__(
        self, broker: _Broker, queue: _WorkQueue, handler: Handler, prefetch: int, epitaph: Epitaph | None
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._handler = handler
        self._prefetch = prefetch
        self._epitaph = epitaph
        self._inbox: deque[_Entry] = deque()
        self._unsettled: set[_Delivery] = set()
        self._closed = False
        self._changed = threading.Condition(broker.lock)
        self._thread = threading.Thread(target=self._consume, name=f"{queue.topic.name}-{queue.group}", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._broker.join_queue(self._queue, self)

    def has_room(self) -> bool:
        return not self._closed and len(self._inbox) + len(self._unsettled) < self._prefetch

    def accept(self, entry: _Entry) -> None:
        self._inbox.append(entry)
        self._changed.notify_all()

    def close(self, patience_s: float = 10.0) -> None:
        with self._broker.lock:
            if self._closed:
                return
            self._closed = True
            self._queue.part(self)
            # Not yet seen by the handler, so giving them back costs them no attempt.
            while self._inbox:
                self._queue.put(self._inbox.pop(), first=True)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._unsettled, timeout=patience_s)
            abandoned = list(self._unsettled)
        for delivery in abandoned:
            delivery.abandon()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=max(patience_s, 1.0))

    def _consume(self) -> None:
        while True:
            with self._broker.lock:
                self._changed.wait_for(lambda: self._closed or self._inbox)
                if self._closed:
                    return
                entry = self._inbox.popleft()
                entry.attempts += 1
                delivery = _Delivery(self, entry)
                self._unsettled.add(delivery)
            try:
                self._handler(delivery)
            except Exception as error:  # whatever a handler raises decides about its message, never about this thread
                if isinstance(error, InspectBusError) and not error.retryable:
                    delivery.park(error)
                else:
                    delivery.retry(error)

    def claim(self, delivery: _Delivery) -> bool:
        """True once per delivery: the first verb wins."""
        with self._broker.lock:
            if delivery.claimed:
                return False
            delivery.claimed = True
            return True

    def finish(self, delivery: _Delivery) -> bool:
        """Frees the delivery's place. False when it was given back meanwhile and is no longer ours to settle."""
        with self._broker.lock:
            ours = delivery in self._unsettled
            self._unsettled.discard(delivery)
            self._changed.notify_all()
        self._broker.freed(self._queue)
        return ours

    def settle(self, delivery: _Delivery) -> None:
        if self.finish(delivery):
            self._broker.settle(delivery.entry)

    def give_back(self, delivery: _Delivery) -> None:
        if self.finish(delivery):
            self._broker.put_back(self._queue, delivery.entry, first=True)

    def retry(self, delivery: _Delivery, error: BaseException) -> None:
        limits = self._broker.limits
        entry = delivery.entry
        if entry.attempts >= limits.max_attempts:
            self.park(delivery, error)
            return
        log.warning("retrying", topic=self._queue.topic.name, attempt=entry.attempts, error=repr(error))
        delay_s = min(limits.retry_delay_s * 2 ** (entry.attempts - 1), 5.0)
        if self.finish(delivery):
            self._broker.later(delay_s, lambda: self._broker.put_back(self._queue, entry))

    def park(self, delivery: _Delivery, error: BaseException) -> None:
        # By the keeper: the epitaph may wait for room in a queue that the settling thread itself must empty.
        self._broker.later(0, lambda: self._bury(delivery, error))

    def _bury(self, delivery: _Delivery, error: BaseException) -> None:
        log.error(
            "parked",
            topic=self._queue.topic.name,
            subject=delivery.message.subject,
            attempts=delivery.attempts,
            error=repr(error),
        )
        try:
            futures = list(self._epitaph(delivery.message, error)) if self._epitaph else []
        except (QueueFull, BusClosed) as full:
            log.warning("the epitaph must wait", error=repr(full))
            self._broker.later(1.0, lambda: self._bury(delivery, error))
            return
        except Exception:  # a message nobody can read has no epitaph; it is kept all the same
            log.exception("the epitaph failed", subject=delivery.message.subject)
            futures = []

        def buried(failure: BaseException | None) -> None:
            if failure is not None:
                self._broker.later(1.0, lambda: self._bury(delivery, error))
            elif self.finish(delivery):
                self._broker.bury(self._queue, delivery.entry, error)
                self._broker.settle(delivery.entry)

        _when_all(futures, buried)


class _Delivery:
    """One hand-over of an entry to a handler."""

    def __init__(self, consumer: _Consumer, entry: _Entry) -> None:
        self._consumer = consumer
        self.entry = entry
        self.attempts = entry.attempts
        self.claimed = False

    @property
    def message(self) -> Message:
        return self.entry.message

    def done(self, after: Iterable[Future[None]] = ()) -> None:
        if self._consumer.claim(self):
            _when_all(list(after), self._outputs_settled)

    def retry(self, error: BaseException) -> None:
        if self._consumer.claim(self):
            self._consumer.retry(self, error)

    def park(self, error: BaseException) -> None:
        if self._consumer.claim(self):
            self._consumer.park(self, error)

    def abandon(self) -> None:
        """The subscription ends: somebody else gets the message, and a verb that comes after all does nothing."""
        self._consumer.give_back(self)

    def _outputs_settled(self, failure: BaseException | None) -> None:
        if failure is None:
            self._consumer.settle(self)
        else:
            self._consumer.retry(self, failure)


class _Follower:
    """A news subscription: a bounded inbox whose oldest message gives way, and a thread that reads it."""

    def __init__(self, broker: _Broker, topic: Topic, key: tuple[str, ...], handler: Callable[[Message], None]) -> None:
        self._broker = broker
        self._topic = topic
        self._key = key
        self._handler = handler
        self._inbox: deque[Message] = deque(maxlen=broker.limits.news_limit)
        self._closed = False
        self._changed = threading.Condition(broker.lock)
        self._thread = threading.Thread(target=self._read, name=f"{topic.name}-news", daemon=True)
        self.dropped = 0

    def start(self) -> None:
        self._thread.start()
        self._broker.follow(self)

    def wants(self, topic: Topic, message: Message) -> bool:
        if topic.name != self._topic.name or len(message.key) < len(self._key):
            return False
        return all(mine in ("*", word) for mine, word in zip(self._key, message.key, strict=False))

    def accept(self, message: Message) -> None:
        self.dropped += len(self._inbox) == self._inbox.maxlen
        self._inbox.append(message)
        self._changed.notify()

    def close(self, patience_s: float = 10.0) -> None:
        self._broker.unfollow(self)
        with self._broker.lock:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=max(patience_s, 1.0))

    def _read(self) -> None:
        while True:
            with self._broker.lock:
                self._changed.wait_for(lambda: self._closed or self._inbox)
                if self._closed:
                    return
                message = self._inbox.popleft()
            try:
                self._handler(message)
            except Exception:  # one reader's fault must not end its news
                log.exception("a news follower failed", topic=self._topic.name, subject=message.subject)


def _when_all(futures: list[Future[None]], then: Callable[[BaseException | None], None]) -> None:
    """Calls `then` once, when the last future is done, with the first failure found or None."""
    if not futures:
        then(None)
        return
    left = len(futures)
    lock = threading.Lock()

    def one_done(_: Future[None]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            then(next((failure for future in futures if (failure := future.exception()) is not None), None))

    for future in futures:
        future.add_done_callback(one_done)
