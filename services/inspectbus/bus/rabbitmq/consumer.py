"""A subscription to work: the lanes of a group's queue, one thread that calls the handler, and what is in hand.

    live queue ────> intake ─┐
                             ├─> inbox ─> handler, at most `prefetch` in hand
    backlog queue ─> intake ─┘               │
                                             ├─ done:  its outputs' confirms, ack
                                             ├─ retry: copy to .retry, confirm, ack
                                             └─ park:  epitaph, dead letter, confirm, ack

A failure the handler catches is told by a copy with its own count of attempts. A message that came back because its
worker died is not worked on here again: it goes to `.quarantine`, where it can hurt nobody but itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

import pika
import structlog

from inspectbus.bus import handling
from inspectbus.bus.contract import BACKLOG_SHARE, Epitaph, Handler, Lane, Message
from inspectbus.bus.keeper import Keeper, when_all
from inspectbus.bus.lanes import Lanes
from inspectbus.bus.rabbitmq import naming, wire
from inspectbus.bus.rabbitmq.intake import Intake, Tag
from inspectbus.bus.rabbitmq.limits import Limits
from inspectbus.bus.rabbitmq.link import Link
from inspectbus.bus.rabbitmq.publisher import Publisher
from inspectbus.bus.topics import DEAD, Topic
from inspectbus.errors import BadField, BusClosed, InspectBusError, NotAllowed, QueueFull

log = structlog.get_logger(__name__)

SPARE = 8
"""Live deliveries fetched beyond what the handler may hold, so that it finds the next one here: with less, a fast
handler would empty the live lane between two packets and turn to the backlog."""
LONGEST_RETRY_S = 30.0
READING_PATIENCE_S = 2.0
"""How long `subscribe` waits for the broker to deliver; with the broker away that begins when it is back."""
AGAIN_S = 1.0
"""Before a detour is tried again that the bus did not take."""


class Consumer:
    """One subscription. Closing takes no more, waits for what is in hand, and gives the rest back to the broker."""

    def __init__(
        self,
        topic: Topic,
        group: str,
        handler: Handler,
        prefetch: int,
        epitaph: Epitaph | None,
        *,
        link: Link,
        publisher: Publisher,
        keeper: Keeper,
        limits: Limits,
        on_settled: Callable[[str, str], None] = lambda *_: None,
        quarantine: bool = True,
    ) -> None:
        self.topic = topic
        self.group = group
        self.limits = limits
        self._handler = handling.followed(topic, group, handler)
        self._prefetch = prefetch
        self._epitaph = epitaph
        self._publisher = publisher
        self._keeper = keeper
        self._on_settled = on_settled
        self._quarantine = quarantine
        self._changed = threading.Condition()
        self._inbox: Lanes[Delivery] = Lanes()
        self._in_hand: set[Delivery] = set()
        self._resting: set[Delivery] = set()
        """Met an outage, and wait here for its end: fetched, so that nobody fetches more."""
        self._alone: set[Delivery] = set()
        """Came by the quarantine. They take no place of those that the handler may hold."""
        self._closed = False
        self._last_made_s: dict[Lane, float] = {}
        self.redelivered: dict[Lane, int] = dict.fromkeys(Lane, 0)
        lanes = Lane if topic.laned else (Lane.LIVE,)
        self.intakes = {lane: self._intake(link, lane) for lane in lanes}
        self._thread = threading.Thread(target=self._consume, name=f"{topic.name}-{group}", daemon=True)

    def start(self) -> None:
        self._thread.start()
        for intake in self.intakes.values():
            intake.start()
        for intake in self.intakes.values():
            intake.consuming(READING_PATIENCE_S)

    def buffered(self, lane: Lane) -> int:
        """Fetched from the queue and not yet seen by the handler."""
        return len(self._inbox[lane])

    def age_s(self, lane: Lane) -> float:
        """Of the message last taken from the lane's queue, which is first in, first out: about that of the oldest."""
        return max(0.0, time.time() - self._last_made_s.get(lane, time.time()))

    def close(self, patience_s: float = 10.0) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        for intake in self.intakes.values():
            intake.stop_taking(1.0)
        with self._changed:
            self._changed.wait_for(lambda: not self._in_hand, timeout=patience_s)
            # A verb that comes after all does nothing: somebody else gets the message.
            for delivery in self._in_hand:
                delivery.claimed = True
            self._in_hand.clear()
        for intake in self.intakes.values():
            intake.close(2.0)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=max(patience_s, 1.0))

    def _intake(self, link: Link, lane: Lane) -> Intake:
        # The backlog gets only its share of the places, so that a live frame never waits behind a handful of others.
        places = self._prefetch + SPARE if lane is Lane.LIVE else -(-self._prefetch // BACKLOG_SHARE)
        queue = naming.work_queue(self.topic, self.group, lane)
        return Intake(link, queue, places, self._on_delivery, on_read=self._on_read, on_lost=lambda: self._forget(lane))

    # The loop's thread.

    def _on_delivery(
        self, intake: Intake, tag: Tag, routing_key: str, properties: pika.BasicProperties, body: bytes
    ) -> None:
        lane = next(lane for lane, mine in self.intakes.items() if mine is intake)
        with self._changed:
            self._inbox.put(Delivery(self, intake, tag, routing_key, properties, body), lane)

    def _on_read(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _forget(self, lane: Lane) -> None:
        with self._changed:
            self._inbox[lane].clear()
        self.forget(naming.work_queue(self.topic, self.group, lane))

    def forget(self, queue: str) -> None:
        """The queue's channel has gone: what it delivered comes again, to us or to another."""
        with self._changed:
            for held in (self._in_hand, self._resting, self._alone):
                for delivery in [delivery for delivery in held if delivery.queue == queue]:
                    delivery.void = True
                    held.discard(delivery)
            self._changed.notify_all()

    # The subscription's thread.

    def _consume(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._may_take())
                if self._closed:
                    return
                delivery = self._inbox.next()
                self._in_hand.add(delivery)
            try:
                self._look_at(delivery)
            except Exception as error:  # whatever a handler raises decides about its message, never about this thread
                if isinstance(error, InspectBusError) and not error.retryable:
                    delivery.park(error)
                else:
                    delivery.retry(error)

    def _look_at(self, delivery: Delivery) -> None:
        # First: what goes on from here under a queue's name is believed by whoever takes it there.
        self.check(delivery)
        _, lost = wire.attempts(delivery.properties)
        self.redelivered[delivery.message.lane] += lost > 0
        self._last_made_s[delivery.message.lane] = delivery.message.time_s
        if self._quarantine and lost >= self.limits.quarantine_after:
            delivery.claimed = True
            self._detour(delivery, naming.quarantine_queue(delivery.queue), "quarantined")
            return
        self._handler(delivery)

    def check(self, delivery: Delivery) -> None:
        """Raises BadField for what is no message of this topic. A dead letter may be anything."""
        if self.topic is DEAD:
            return
        limits = self.limits
        wire.check(
            self.topic,
            delivery.routing_key,
            delivery.properties,
            delivery.body,
            body_bytes=limits.body_bytes,
            ahead_s=limits.ahead_s,
        )

    def _may_take(self) -> bool:
        return len(self._in_hand) + len(self._resting) < self._prefetch and len(self._inbox) > 0

    # Any thread.

    def claim(self, delivery: Delivery) -> bool:
        """True once per delivery: the first verb wins."""
        with self._changed:
            if delivery.claimed:
                return False
            delivery.claimed = True
            return True

    def settle(self, delivery: Delivery, how: str) -> None:
        """What had to be confirmed is: the broker may let the message go."""
        with self._changed:
            ours = not delivery.void and delivery in self._in_hand | self._alone
            self._in_hand.discard(delivery)
            self._alone.discard(delivery)
            self._changed.notify_all()
        if ours:
            self._on_settled(delivery.queue, how)
            delivery.intake.settle(delivery.tag)

    def take_alone(self, delivery: Delivery) -> bool:
        """A delivery that came by the quarantine, and is settled like our own. False when its channel has gone."""
        with self._changed:
            if not delivery.void:
                self._alone.add(delivery)
            return not delivery.void

    def again_alone(self, delivery: Delivery, error: BaseException) -> None:
        """Back into quarantine, counted; past the limit it is parked."""
        failures = wire.attempts(delivery.properties)[0] + 1
        if not self.claim(delivery):
            return
        if failures >= self.limits.max_attempts and not _is_outage(error):
            self.park(delivery, error)
            return
        counted = None if _is_outage(error) else error
        properties = wire.again(delivery.properties, delivery.routing_key, error=counted)
        pause_s = min(self.limits.retry_delay_s * 2 ** min(failures - 1, 10), LONGEST_RETRY_S)
        self._keeper.later(pause_s, lambda: self._detour(delivery, delivery.queue, "retried", properties))

    def retry(self, delivery: Delivery, error: BaseException) -> None:
        if _is_outage(error):
            self._rest(delivery, error)
            return
        failures = wire.attempts(delivery.properties)[0] + 1
        if failures >= self.limits.max_attempts:
            self.park(delivery, error)
            return
        words = handling.words(delivery.message)
        log.warning("retrying", queue=delivery.queue, attempt=failures, error=repr(error), **words)
        delay_s = min(self.limits.retry_delay_s * 2 ** (failures - 1), LONGEST_RETRY_S)
        properties = wire.again(delivery.properties, delivery.routing_key, error=error, delay_s=delay_s)
        queue = naming.retry_queue(delivery.queue)
        self._keeper.later(0, lambda: self._detour(delivery, queue, "retried", properties))

    def _rest(self, delivery: Delivery, error: BaseException) -> None:
        """Handed to the handler again after a pause, without the broker, who may be what is full.

        One that has waited long goes to the end of its queue: an outage of hours must not count as its workers' death.
        """
        if not self._resting:  # once for all that it holds, and again only when it was over
            words = handling.words(delivery.message)
            log.warning("held by an outage", queue=delivery.queue, error=repr(error), **words)
        if time.monotonic() - delivery.since_s > self.limits.held_s:
            properties = wire.again(delivery.properties, delivery.routing_key, delay_s=self.limits.retry_delay_s)
            queue = naming.retry_queue(delivery.queue)
            self._keeper.later(0, lambda: self._detour(delivery, queue, "set aside", properties))
            return
        with self._changed:
            if delivery not in self._in_hand:
                return
            self._in_hand.discard(delivery)
            self._resting.add(delivery)
            self._changed.notify_all()

        def again() -> None:
            with self._changed:
                if delivery not in self._resting:
                    return  # its channel has gone, and the broker has given it to somebody
                self._resting.discard(delivery)
                delivery.claimed = False
                self._inbox.put(delivery, delivery.message.lane, first=True)
                self._changed.notify_all()

        self._keeper.later(self.limits.retry_delay_s, again)

    def park(self, delivery: Delivery, error: BaseException) -> None:
        # By the keeper: the epitaph may wait for room, and whoever settles may be the thread that makes it.
        self._keeper.later(0, lambda: self._bury(delivery, error))

    def _bury(self, delivery: Delivery, error: BaseException) -> None:
        with handling.in_hand(delivery.message):
            self._bury_in_hand(delivery, error)

    def _bury_in_hand(self, delivery: Delivery, error: BaseException) -> None:
        if delivery.void:
            return
        log.error("parked", queue=delivery.queue, subject=delivery.message.subject, error=repr(error))
        try:
            futures = list(self._epitaph(delivery.message, error)) if self._epitaph else []
        except (QueueFull, BusClosed) as full:
            log.warning("the epitaph must wait", error=repr(full))
            self._keeper.later(AGAIN_S, lambda: self._bury(delivery, error))
            return
        except Exception:  # a message nobody can read has no epitaph; it is kept all the same
            log.exception("the epitaph failed", subject=delivery.message.subject)
            futures = []
        properties = wire.again(delivery.properties, delivery.routing_key, error=error)

        def told(failure: BaseException | None) -> None:
            if failure is None:
                queue = naming.home_queue(delivery.queue)
                self._keeper.later(0, lambda: self._send(delivery, DEAD.name, queue, "parked", properties))
            else:
                self._keeper.later(AGAIN_S, lambda: self._bury(delivery, error))

        when_all(futures, told)

    def _detour(self, delivery: Delivery, queue: str, how: str, properties: pika.BasicProperties | None = None) -> None:
        """Publish, confirm, acknowledge: into another queue, by the default exchange."""
        if properties is None:
            properties = wire.again(delivery.properties, delivery.routing_key)
        self._send(delivery, "", queue, how, properties)

    def _send(
        self, delivery: Delivery, exchange: str, routing_key: str, how: str, properties: pika.BasicProperties
    ) -> None:
        if delivery.void:
            return

        def again(pause_s: float = AGAIN_S) -> None:
            self._keeper.later(pause_s, lambda: self._send(delivery, exchange, routing_key, how, properties))

        def sent(future: Future[None]) -> None:
            error = future.exception()
            if error is None:
                self.settle(delivery, how)
            elif isinstance(error, NotAllowed | BadField):
                log.error("a message cannot go its way", queue=delivery.queue, to=routing_key, error=error.message)
                again(LONGEST_RETRY_S)
            elif not isinstance(error, BusClosed):
                again()

        try:
            self._publisher.publish(exchange, routing_key, properties, delivery.body).add_done_callback(sent)
        except QueueFull:
            again()
        except (BusClosed, BadField) as error:
            # Unsettled, it goes back to the queue with this channel; one that is too large came from elsewhere.
            log.error("a message could not go its way", queue=delivery.queue, to=routing_key, error=error.message)
            if isinstance(error, BadField):
                self.settle(delivery, "dropped")


def _is_outage(error: BaseException) -> bool:
    return isinstance(error, InspectBusError) and error.outage


class Delivery:
    """One hand-over of a message to a handler."""

    def __init__(
        self,
        consumer: Consumer,
        intake: Intake,
        tag: Tag,
        routing_key: str,
        properties: pika.BasicProperties,
        body: bytes,
    ) -> None:
        self._consumer = consumer
        self.intake = intake
        self.tag = tag
        self.routing_key = routing_key
        self.properties = properties
        self.body = body
        self.since_s = time.monotonic()
        self.claimed = False
        self.void = False
        """Its channel has gone: the broker has given the message to somebody again."""
        self._message: Message | None = None

    @property
    def queue(self) -> str:
        return self.intake.queue

    @property
    def message(self) -> Message:
        if self._message is None:
            self._message = wire.message_of(self._consumer.topic, self.routing_key, self.properties, self.body)
        return self._message

    @property
    def attempts(self) -> int:
        return 1 + sum(wire.attempts(self.properties))

    def done(self, after: Iterable[Future[None]] = ()) -> None:
        if self._consumer.claim(self):
            when_all(list(after), self._outputs_confirmed)

    def retry(self, error: BaseException) -> None:
        if self._consumer.claim(self):
            self._consumer.retry(self, error)

    def park(self, error: BaseException) -> None:
        if self._consumer.claim(self):
            self._consumer.park(self, error)

    def _outputs_confirmed(self, failure: BaseException | None) -> None:
        if failure is None:
            self._consumer.settle(self, "done")
        else:
            self._consumer.retry(self, failure)
