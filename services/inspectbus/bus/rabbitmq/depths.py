"""How much waits in a queue: asked of the broker over the consuming link."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress

import pika
from pika.channel import Channel
from pika.frame import Method
from pika.spec import Queue

from inspectbus.bus.rabbitmq.link import Link
from inspectbus.errors import BusAway, NotFound

PATIENCE_S = 3.0


class Depths:
    """Thread-safe. One question at a time is on its way, because a wrong one costs the channel."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._asked: deque[tuple[str, Future[int]]] = deque()
        # The loop's own.
        self._connection: pika.SelectConnection | None = None
        self._channel: Channel | None = None
        self._open: tuple[str, Future[int]] | None = None
        link.add(self)

    def of(self, queue: str) -> int:
        """Messages ready in the queue. Raises NotFound, BusAway."""
        if self._link.trouble:
            raise BusAway(f"the broker does not tell the depth of {queue}: {self._link.trouble}")
        answer: Future[int] = Future()
        with self._lock:
            self._asked.append((queue, answer))
        self._link.wake()
        try:
            return answer.result(PATIENCE_S)
        except FutureTimeout:
            answer.cancel()
            with self._lock, suppress(ValueError):
                self._asked.remove((queue, answer))
            raise BusAway(f"the broker does not tell the depth of {queue}: {self._link.trouble}") from None

    def opened(self, connection: pika.SelectConnection) -> None:
        self._connection = connection
        connection.channel(on_open_callback=self._on_channel)

    def lost(self) -> None:
        self._channel = self._connection = self._open = None

    def work(self) -> None:
        if self._open is not None or self._channel is None or not self._asked:
            return
        with self._lock:
            while self._asked and self._asked[0][1].cancelled():
                self._asked.popleft()
            if not self._asked:
                return
            queue, _ = self._open = self._asked.popleft()
        self._channel.queue_declare(queue, passive=True, callback=self._on_answer)

    def _on_channel(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._on_closed)
        self._channel = channel
        self.work()

    def _on_answer(self, frame: Method[Queue.DeclareOk]) -> None:
        if self._open is not None:
            _, answer = self._open
            self._open = None
            # It may have been given up this very moment.
            with suppress(Exception):
                answer.set_result(int(frame.method.message_count))
        self.work()

    def _on_closed(self, channel: Channel, reason: BaseException) -> None:
        if channel is not self._channel:
            return
        self._channel = None
        if self._open is not None:
            queue, answer = self._open
            self._open = None
            with suppress(Exception):
                answer.set_exception(NotFound(f"there is no queue {queue}: run `inspectbus bus declare`", field=queue))
        if self._connection is not None and self._connection.is_open:
            self._connection.channel(on_open_callback=self._on_channel)
