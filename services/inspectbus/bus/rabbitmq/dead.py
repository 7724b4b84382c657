"""The dead queue, for people: looked through without losing or reordering anything, sent again, dropped.

    inspectbus.dead ─ get, unacknowledged ─> Letter ─┬─ nothing:  given back in order when the look is over
                                                     ├─ replay:   publish ─> confirm ─> acknowledge
                                                     └─ drop:     acknowledge

Whoever dies in between gives everything back by dying. What was sent again and not acknowledged any more is sent twice,
which whoever works on it expects; nothing is lost.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack, contextmanager

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from inspectbus.bus.rabbitmq import naming, wire
from inspectbus.bus.rabbitmq.addresses import Addresses
from inspectbus.bus.rabbitmq.letter import Letter, read
from inspectbus.bus.rabbitmq.link import Link
from inspectbus.bus.rabbitmq.publisher import Publisher
from inspectbus.bus.rabbitmq.topology import connected, explained
from inspectbus.bus.topics import DEAD
from inspectbus.errors import NotPossibleNow

QUEUE = naming.work_queue(DEAD, "dead")
PATIENCE_S = 10.0
"""For one message sent again until its confirm."""
WINDOW = 32
"""Messages sent again whose confirms are still out."""
GIVEN_BACK_AT_ONCE = 32
"""A quorum queue keeps the order of so many that come back together, and shuffles more."""
SETTLE_S = 5.0

Chosen = Callable[[Letter], bool]
Told = Callable[[Letter, NotPossibleNow | None], None]
"""What became of a letter: sent again, or why it could not be."""


class DeadLetters:
    """The dead queue, by a connection for one task. Use as a context. Raises NotAllowed, NotFound, BusAway."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._house = ExitStack()

    def __enter__(self) -> DeadLetters:
        connection = connected(self._addresses)
        self._house.callback(_close, connection)
        self._connection = connection
        return self

    def __exit__(self, *_: object) -> None:
        self._house.close()

    @property
    def total(self) -> int:
        """Letters that rest there, those aside that somebody is looking at."""
        with explained(self._connection) as channel:
            return _depth(channel)

    def browse(self, limit: int, chosen: Chosen = lambda _: True) -> list[Letter]:
        """The oldest that are chosen, at most `limit` of them, bodies and all."""
        found: list[Letter] = []
        if limit > 0:
            with self._look() as look:
                for letter, _ in look:
                    if chosen(letter):
                        found.append(letter)
                        if len(found) >= limit:
                            break
        return found

    def drop(self, chosen: Chosen) -> list[Letter]:
        """Those are gone for ever."""
        dropped: list[Letter] = []
        with self._look() as look:
            for letter, tag in look:
                if chosen(letter):
                    look.let_go(tag)
                    dropped.append(letter)
        return dropped

    def replay(self, chosen: Chosen, told: Told, *, unchanged: bool = False) -> None:
        """Sends the chosen letters again, each to its topic, and lets a letter go when its message is confirmed.

        Raises TooLate when the bus did not take one, QueueFull, NotAllowed: those told of before have gone, the rest
        stays.
        """
        with self._look() as look, self._publisher() as publisher:
            out: deque[tuple[Letter, int, Future[None]]] = deque()

            def confirm(leave: int) -> None:
                while len(out) > leave:
                    letter, tag, future = out.popleft()
                    self._wait(future)
                    look.let_go(tag)
                    told(letter, None)

            for letter, tag in look:
                if not chosen(letter):
                    continue
                try:
                    topic, message = letter.replayed(unchanged=unchanged)
                except NotPossibleNow as error:
                    told(letter, error)
                    continue
                future = publisher.publish(
                    topic.name,
                    naming.routing_key(topic, message.key, message.lane),
                    wire.properties(topic, message, self._addresses.user),
                    message.body,
                    patience_s=PATIENCE_S,
                )
                out.append((letter, tag, future))
                confirm(WINDOW)
            confirm(0)

    def _wait(self, future: Future[None]) -> None:
        while True:
            try:
                return future.result(1.0)
            except FutureTimeout:
                # The connection that holds the letters must answer its heartbeats meanwhile. On Python 3.11 a failure
                # of the future itself may be of this kind too.
                if future.done():
                    raise
                self._connection.process_data_events(0)

    @contextmanager
    def _publisher(self) -> Iterator[Publisher]:
        link = Link("replay", self._addresses)
        publisher = Publisher(link, self._addresses.limits)
        link.start()
        try:
            yield publisher
        finally:
            publisher.close(0.0)
            link.close(2.0)

    @contextmanager
    def _look(self) -> Iterator[_Look]:
        with explained(self._connection) as channel:
            look = _Look(channel)
            try:
                yield look
            finally:
                if channel.is_open:
                    look.end()
                    channel.close()


class _Look:
    """One way through the queue, from its head to what was its end when it began."""

    def __init__(self, channel: BlockingChannel) -> None:
        self._channel = channel
        self._left = _depth(channel)
        self._held: dict[int, None] = {}
        self._seen_before = False

    def __iter__(self) -> Iterator[tuple[Letter, int]]:
        while (taken := self._take()) is not None:
            tag, routing_key, properties, body = taken
            yield read(routing_key, properties, body), tag

    def let_go(self, tag: int) -> None:
        self._channel.basic_ack(tag)
        del self._held[tag]

    def end(self) -> None:
        """Gives everything back, in order."""
        # What comes back stands behind whatever came back before: so all of that must be taken too.
        while self._seen_before and self._take() is not None:
            pass
        held = list(self._held)
        for begin in range(0, len(held), GIVEN_BACK_AT_ONCE):
            portion = held[begin : begin + GIVEN_BACK_AT_ONCE]
            expected = _depth(self._channel) + len(portion)
            self._channel.basic_nack(portion[-1], multiple=True, requeue=True)
            until_s = time.monotonic() + SETTLE_S
            while _depth(self._channel) < expected and time.monotonic() < until_s:
                self._channel.connection.process_data_events(0)

    def _take(self) -> tuple[int, str, pika.BasicProperties, bytes] | None:
        if self._left <= 0:
            return None
        self._left -= 1
        method, properties, body = self._channel.basic_get(QUEUE)
        if method is None or properties is None or method.delivery_tag is None:
            return None
        self._held[method.delivery_tag] = None
        _, returns = wire.attempts(properties)
        self._seen_before = returns > 0
        return method.delivery_tag, method.routing_key or "", properties, body or b""


def _depth(channel: BlockingChannel) -> int:
    return int(channel.queue_declare(QUEUE, passive=True).method.message_count)


def _close(connection: pika.BlockingConnection) -> None:
    if connection.is_open:
        try:
            connection.close()
        except AMQPError:
            return
