"""An intake: one queue read over one channel, and what was settled acknowledged in as few words as possible.

broker ─> on_delivery(tag, properties, body), on_delivery ... ─> on_read()
settle(tag) from any thread ─> loop ─> ack (many at once)

Acknowledgements belong to the channel that delivered. Each channel has a generation; a tag of an older one is dropped,
because the broker has given that message to somebody again.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable

import pika
import structlog
from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker
from pika.spec import Basic

from inspectbus.bus.rabbitmq import naming, wire
from inspectbus.bus.rabbitmq.link import Link
from inspectbus.bus.topics import DEAD

log = structlog.get_logger(__name__)

REOPEN_S = 1.0
"""Before a channel is opened again that the broker has closed."""

Tag = tuple[int, int]
"""Channel generation and delivery tag."""

OnDelivery = Callable[["Intake", Tag, str, pika.BasicProperties, bytes], None]
"""Called on the loop's thread with intake, tag, routing key, properties and body."""

_generations = itertools.count(1)


class Intake:
    """Reads one queue from `start` on. `settle` may be called from any thread, the rest of the public names too."""

    def __init__(
        self,
        link: Link,
        queue: str,
        prefetch: int,
        on_delivery: OnDelivery,
        *,
        prepare: Callable[[Channel, Callable[[], None]], None] | None = None,
        on_read: Callable[[], None] = lambda: None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """`prepare(channel, go_on)` may declare the queue first; `on_read` says that a burst of deliveries has ended,
        `on_lost` that all tags have become void.
        """
        self.queue = queue
        self._link = link
        self._prefetch = prefetch
        self._on_delivery = on_delivery
        self._prepare = prepare
        self._on_read = on_read
        self._on_lost = on_lost
        self._settled: deque[Tag] = deque()
        self._closing = threading.Event()
        self._cancelled = threading.Event()
        self._consuming = threading.Event()
        self.trouble = ""
        """Why nothing can be read from the queue; empty while it can."""
        # The loop's own.
        self._connection: pika.SelectConnection | None = None
        self._channel: Channel | None = None
        self._generation = 0
        self._unacked: dict[int, None] = {}
        self._read_due = False
        self._consumer_tag = ""
        self._reopen_at_s = math.inf

    def start(self) -> None:
        self._link.add(self)

    def consuming(self, patience_s: float) -> bool:
        """Waits until the broker has said that it will deliver; not at all while it is away."""
        return self._consuming.wait(0 if self._link.trouble else patience_s)

    def settle(self, tag: Tag) -> None:
        """The message is finished with. Does nothing for a tag of a channel that has gone."""
        self._settled.append(tag)
        self._link.wake()

    def stop_taking(self, patience_s: float) -> None:
        """No more deliveries from now on; those made can still be settled."""
        self._closing.set()
        self._link.wake()
        if not self._link.trouble:
            self._cancelled.wait(patience_s)

    def close(self, patience_s: float) -> None:
        """Gives back to the broker what is unsettled."""
        self._closing.set()
        done = threading.Event()
        self._closed = done
        self._link.wake()
        if not self._link.trouble:
            done.wait(patience_s)
        self._link.remove(self)

    _closed: threading.Event | None = None

    # The loop's thread.

    def opened(self, connection: pika.SelectConnection) -> None:
        self._connection = connection
        self._reopen_at_s = math.inf
        if not self._closing.is_set():
            connection.channel(on_open_callback=self._on_channel)

    def lost(self) -> None:
        self._connection = None
        self._forget_channel()

    def work(self) -> None:
        if time.monotonic() >= self._reopen_at_s and self._connection is not None:
            self.opened(self._connection)
        channel = self._channel
        if channel is None or not channel.is_open:
            if self._closing.is_set():
                self._cancelled.set()
                if self._closed is not None:
                    self._closed.set()
            return
        if self._settled:
            self._acknowledge(channel)
        if self._closing.is_set():
            if self._consumer_tag:
                tag, self._consumer_tag = self._consumer_tag, ""
                channel.basic_cancel(tag, callback=lambda _: self._cancelled.set())
            if self._closed is not None:
                closed, self._closed = self._closed, None
                channel.add_on_close_callback(lambda *_: closed.set())
                channel.close()

    def _on_channel(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_cancel_callback(lambda _: self._on_cancelled(channel))
        self._channel = channel
        self._generation = next(_generations)
        self._unacked = {}

        def consume(_: object = None) -> None:
            if not channel.is_open or self._closing.is_set():
                return
            self._consumer_tag = channel.basic_consume(
                self.queue,
                lambda _, method, properties, body: self._deliver(method, properties, body),
                callback=lambda _: self._on_consuming(),
            )

        def ready() -> None:
            channel.basic_qos(prefetch_count=self._prefetch, callback=consume)

        if self._prepare is None:
            ready()
        else:
            self._prepare(channel, ready)

    def _on_consuming(self) -> None:
        if self.trouble:
            log.info("reading again", queue=self.queue)
        self.trouble = ""
        self._consuming.set()

    def _deliver(self, method: Basic.Deliver, properties: pika.BasicProperties, body: bytes) -> None:
        tag = int(method.delivery_tag or 0)
        self._unacked[tag] = None
        routing_key = str(method.routing_key)
        if method.exchange not in ("", DEAD.name) and naming.is_queue(routing_key):
            # Only the default exchange and the dead letters' know queues by name: this is somebody's key, and no mark.
            routing_key = f"{method.exchange}/{routing_key}"
        properties = wire.believed(properties, routing_key, bool(method.redelivered))
        self._on_delivery(self, (self._generation, tag), routing_key, properties, body)
        if not self._read_due:
            self._read_due = True
            self._link.later(0, self._all_read)

    def _all_read(self) -> None:
        self._read_due = False
        self._on_read()

    def _acknowledge(self, channel: Channel) -> None:
        """One word for all up to the first that is still in hand, and one for each beyond it."""
        settled = set()
        while self._settled:
            generation, tag = self._settled.popleft()
            if generation == self._generation and tag in self._unacked:
                settled.add(tag)
        last = 0
        while self._unacked and (first := next(iter(self._unacked))) in settled:
            settled.remove(first)
            del self._unacked[first]
            last = first
        if last:
            channel.basic_ack(last, multiple=True)
        for tag in sorted(settled):
            del self._unacked[tag]
            channel.basic_ack(tag)

    def _on_cancelled(self, channel: Channel) -> None:
        """The broker ended the subscription: the queue was deleted, or its leader moved."""
        self._complain(f"the broker ended the subscription to {self.queue}: was the queue deleted?")
        if channel.is_open:
            channel.close()

    def _on_channel_closed(self, channel: Channel, reason: BaseException) -> None:
        if channel is not self._channel:
            return
        self._forget_channel()
        if isinstance(reason, ChannelClosedByBroker):
            text = reason.reply_text
            if reason.reply_code == 404:
                text += "; run `inspectbus bus declare`"
            self._complain(f"cannot read {self.queue}: {text}")
        # Also when we closed it ourselves, unless we are leaving.
        if not self._closing.is_set():
            self._reopen_at_s = time.monotonic() + REOPEN_S

    def _forget_channel(self) -> None:
        self._channel = None
        self._consumer_tag = ""
        self._consuming.clear()
        self._unacked = {}
        self._read_due = False  # it may have gone with the connection's loop
        self._settled.clear()
        self._on_lost()

    def _complain(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.error("queue trouble", queue=self.queue, trouble=trouble)
        self.trouble = trouble
