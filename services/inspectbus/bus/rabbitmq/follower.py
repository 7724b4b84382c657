"""A subscription to news: a queue of its own, classic, expiring, bounded, whose oldest message gives way.

It is no record and costs nobody else anything: a reader that is gone for a minute loses its queue, and catches up from
whoever keeps the record.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable

import pika
import structlog
from pika.channel import Channel

from inspectbus.bus.contract import Message
from inspectbus.bus.rabbitmq import naming, wire
from inspectbus.bus.rabbitmq.intake import Intake, Tag
from inspectbus.bus.rabbitmq.limits import Limits
from inspectbus.bus.rabbitmq.link import Link
from inspectbus.bus.topics import Topic

log = structlog.get_logger(__name__)

EXPIRES_S = 60
"""A queue nobody reads is gone after this: long enough for a reconnect, short for a forgotten watcher."""
BOUND_PATIENCE_S = 5.0
"""How long `follow` waits until news is collected; with the broker away it begins when that is back."""


class Follower:
    """Thread-safe. News is handed to the handler one by one on a thread of its own."""

    def __init__(
        self, topic: Topic, key: tuple[str, ...], handler: Callable[[Message], None], *, link: Link, limits: Limits
    ) -> None:
        self._topic = topic
        self._key = key
        self._handler = handler
        self._limits = limits
        self._changed = threading.Condition()
        self._inbox: deque[tuple[Tag, str, pika.BasicProperties, bytes]] = deque()
        self._closed = False
        self._intake = Intake(
            link,
            f"{naming.NEWS_PREFIX}{topic.name.removeprefix('inspectbus.')}.{uuid.uuid4()}",
            max(1, min(100, limits.news_limit // 10)),
            self._on_delivery,
            prepare=self._declare,
            on_lost=self._forget,
        )
        self._thread = threading.Thread(target=self._read, name=f"{topic.name}-news", daemon=True)

    def start(self) -> None:
        """Returns when news is being collected, or the broker could not be asked for it in time."""
        self._thread.start()
        self._intake.start()
        self._intake.consuming(BOUND_PATIENCE_S)

    def close(self, patience_s: float = 10.0) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._intake.close(1.0)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=max(patience_s, 1.0))

    def _declare(self, channel: Channel, go_on: Callable[[], None]) -> None:
        """On the loop's thread. A queue that survived a short break is found again, with what it has collected."""
        arguments = {
            "x-queue-type": "classic",
            "x-expires": EXPIRES_S * 1000,
            "x-max-length": self._limits.news_limit,
            "x-max-length-bytes": self._limits.news_bytes,
            "x-overflow": "drop-head",
        }
        words = ("*", *self._key) if self._topic.laned else self._key

        def bind(_: object) -> None:
            channel.queue_bind(
                self._intake.queue, self._topic.name, ".".join((*words, "#")), callback=lambda _: go_on()
            )

        channel.queue_declare(self._intake.queue, durable=False, arguments=arguments, callback=bind)

    def _on_delivery(
        self, intake: Intake, tag: Tag, routing_key: str, properties: pika.BasicProperties, body: bytes
    ) -> None:
        with self._changed:
            self._inbox.append((tag, routing_key, properties, body))
            self._changed.notify_all()

    def _forget(self) -> None:
        with self._changed:
            self._inbox.clear()

    def _read(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._inbox)
                if self._closed:
                    return
                tag, routing_key, properties, body = self._inbox.popleft()
            try:
                self._handler(wire.message_of(self._topic, routing_key, properties, body))
            except Exception:  # one reader's fault must not end its news
                log.exception("a news follower failed", topic=self._topic.name)
            self._intake.settle(tag)
