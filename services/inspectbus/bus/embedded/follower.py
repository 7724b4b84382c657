"""A subscription to news: the newest messages, as far as its reader keeps up."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from inspectbus.bus import handling
from inspectbus.bus.contract import Message
from inspectbus.bus.topics import Topic

if TYPE_CHECKING:
    from inspectbus.bus.embedded.broker import Broker

log = structlog.get_logger(__name__)


class Follower:
    """A news subscription: a bounded inbox whose oldest message gives way, and a thread that reads it."""

    def __init__(self, broker: Broker, topic: Topic, key: tuple[str, ...], handler: Callable[[Message], None]) -> None:
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
                log.exception("a news follower failed", topic=self._topic.name, **handling.words(message))
