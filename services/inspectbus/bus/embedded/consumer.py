"""A subscription to work, and the deliveries it hands to its handler."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import structlog

from inspectbus.bus import handling
from inspectbus.bus.contract import Epitaph, Handler, Message
from inspectbus.bus.embedded.work_queue import Entry, WorkQueue
from inspectbus.bus.keeper import when_all
from inspectbus.errors import BusClosed, InspectBusError, QueueFull

if TYPE_CHECKING:
    from inspectbus.bus.embedded.broker import Broker

log = structlog.get_logger(__name__)


class Consumer:
    """A subscription: an inbox the queue fills, a thread that calls the handler, and what is still unsettled."""

    def __init__(
        self, broker: Broker, queue: WorkQueue, handler: Handler, prefetch: int, epitaph: Epitaph | None
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._handler = handling.followed(queue.topic, queue.group, handler)
        self._prefetch = prefetch
        self._epitaph = epitaph
        self._inbox: deque[Entry] = deque()
        self._unsettled: set[Delivery] = set()
        self._closed = False
        self._changed = threading.Condition(broker.lock)
        self._thread = threading.Thread(target=self._consume, name=f"{queue.topic.name}-{queue.group}", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._broker.join_queue(self._queue, self)

    def has_room(self) -> bool:
        return not self._closed and len(self._inbox) + len(self._unsettled) < self._prefetch

    def accept(self, entry: Entry) -> None:
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
                delivery = Delivery(self, entry)
                self._unsettled.add(delivery)
            try:
                self._handler(delivery)
            except Exception as error:  # whatever a handler raises decides about its message, never about this thread
                if isinstance(error, InspectBusError) and not error.retryable:
                    delivery.park(error)
                else:
                    delivery.retry(error)

    def claim(self, delivery: Delivery) -> bool:
        """True once per delivery: the first verb wins."""
        with self._broker.lock:
            if delivery.claimed:
                return False
            delivery.claimed = True
            return True

    def finish(self, delivery: Delivery) -> bool:
        """Frees the delivery's place. False when it was given back meanwhile and is no longer ours to settle."""
        with self._broker.lock:
            ours = delivery in self._unsettled
            self._unsettled.discard(delivery)
            self._changed.notify_all()
        self._broker.freed(self._queue)
        return ours

    def settle(self, delivery: Delivery) -> None:
        if self.finish(delivery):
            self._broker.settle(delivery.entry)

    def give_back(self, delivery: Delivery) -> None:
        if self.finish(delivery):
            self._broker.put_back(self._queue, delivery.entry, first=True)

    def retry(self, delivery: Delivery, error: BaseException) -> None:
        limits = self._broker.limits
        entry = delivery.entry
        outage = isinstance(error, InspectBusError) and error.outage
        if entry.attempts >= limits.max_attempts and not outage:
            self.park(delivery, error)
            return
        words = handling.words(entry.message)
        log.warning("retrying", topic=self._queue.topic.name, attempt=entry.attempts, error=repr(error), **words)
        delay_s = min(limits.retry_delay_s * 2 ** (entry.attempts - 1), 5.0)
        # Handing it out counts it; what everybody suffers from is not counted.
        entry.attempts -= outage
        if self.finish(delivery):
            self._broker.later(delay_s, lambda: self._broker.put_back(self._queue, entry))

    def park(self, delivery: Delivery, error: BaseException) -> None:
        # By the keeper: the epitaph may wait for room in a queue that the settling thread itself must empty.
        self._broker.later(0, lambda: self._bury(delivery, error))

    def _bury(self, delivery: Delivery, error: BaseException) -> None:
        with handling.in_hand(delivery.message):
            self._bury_in_hand(delivery, error)

    def _bury_in_hand(self, delivery: Delivery, error: BaseException) -> None:
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

        when_all(futures, buried)


class Delivery:
    """One hand-over of an entry to a handler."""

    def __init__(self, consumer: Consumer, entry: Entry) -> None:
        self._consumer = consumer
        self.entry = entry
        self.attempts = entry.attempts
        self.claimed = False

    @property
    def message(self) -> Message:
        return self.entry.message

    def done(self, after: Iterable[Future[None]] = ()) -> None:
        if self._consumer.claim(self):
            when_all(list(after), self._outputs_settled)

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
