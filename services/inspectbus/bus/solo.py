"""A bus of one message at a time, over a socket to the process that has the real one: solo://FD.

    parent ── deliver ──> handler ── publish ──> parent ── its bus ── confirmed ──> future
                             └────── done, retry, park ──> parent

This is what a service stands on that works a suspicious message alone: the same code, the same doors to everything
else, and nothing to lose when the message kills it. News is not heard here, and a closed socket ends the process.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from inspectbus.bus.contract import Epitaph, Handler, Lane, Message
from inspectbus.bus.handling import followed
from inspectbus.bus.keeper import when_all
from inspectbus.bus.topics import ALL, Topic
from inspectbus.errors import BusClosed, InspectBusError

log = structlog.get_logger(__name__)

_LENGTHS = struct.Struct(">II")
MAX_WORDS_BYTES = 1024 * 1024
MAX_BODY_BYTES = 128 * 1024 * 1024
"""RabbitMQ's own limit of a message."""

Words = dict[str, Any]


class Wire:
    """Frames on a socket: lengths, words as JSON, body. Sending is thread-safe; one thread receives."""

    def __init__(self, connection: socket.socket) -> None:
        # Two handles on one socket: a timeout set for sending must not cut short a wait to receive.
        self._incoming = connection
        self._outgoing = connection.dup()
        self._lock = threading.Lock()

    def send(self, words: Words, body: bytes = b"") -> None:
        """Raises OSError when the other end has gone."""
        head = json.dumps(words).encode()
        with self._lock:
            self._outgoing.sendall(_LENGTHS.pack(len(head), len(body)) + head)
            self._outgoing.sendall(body)

    def receive(self) -> tuple[Words, bytes] | None:
        """None when the other end has gone, or talks nonsense. Raises TimeoutError after the socket's timeout."""
        lengths = self._exactly(_LENGTHS.size)
        if lengths is None:
            return None
        words, body = _LENGTHS.unpack(lengths)
        if words > MAX_WORDS_BYTES or body > MAX_BODY_BYTES:
            return None
        head, rest = self._exactly(words), self._exactly(body)
        return None if head is None or rest is None else (json.loads(head), rest)

    def be_patient(self, *, receiving_s: float, sending_s: float) -> None:
        """Waits of either kind end with TimeoutError from now on."""
        self._incoming.settimeout(receiving_s)
        self._outgoing.settimeout(sending_s)

    def close(self) -> None:
        self._incoming.close()
        self._outgoing.close()

    def _exactly(self, count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._incoming.recv(min(count - len(parts), 1 << 20))
            except TimeoutError:
                raise
            except OSError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)


def words_of(message: Message) -> Words:
    return {
        "key": list(message.key),
        "source": message.source,
        "subject": message.subject,
        "lane": message.lane,
        "id": message.id,
        "time_s": message.time_s,
        "headers": dict(message.headers),
    }


def message_of(words: Words, body: bytes) -> Message:
    return Message(
        body=body,
        key=tuple(words["key"]),
        source=words["source"],
        subject=words["subject"],
        lane=Lane(words["lane"]),
        id=words["id"],
        time_s=words["time_s"],
        headers=words["headers"],
    )


def topic_named(name: str) -> Topic:
    return next(topic for topic in ALL if topic.name == name)


class SoloBus:
    """The child's end."""

    def __init__(self, fd: int) -> None:
        self._wire = Wire(socket.socket(fileno=fd))
        self._handlers: dict[tuple[str, str], Handler] = {}
        self._publishing: dict[int, Future[None]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._receive, name="bus-solo", daemon=True)
        self._thread.start()

    def __enter__(self) -> SoloBus:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True

    def publish(self, topic: Topic, message: Message, *, patience_s: float | None = None) -> Future[None]:
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            number = next(self._numbers)
            self._publishing[number] = future
        try:
            words = {"verb": "publish", "number": number, "topic": topic.name, **words_of(message)}
            self._wire.send(words, message.body)
        except OSError:
            raise BusClosed("the process this one works for has gone") from None
        return future

    def subscribe(
        self, topic: Topic, group: str, handler: Handler, *, prefetch: int = 16, epitaph: Epitaph | None = None
    ) -> SoloSubscription:
        """The epitaph is spoken by the parent, who survives what happens here."""
        self._handlers[topic.name, group] = followed(topic, group, handler)
        self._wire.send({"verb": "ready", "topic": topic.name, "group": group})
        return SoloSubscription()

    def follow(
        self, topic: Topic, handler: Callable[[Message], None], *, key: tuple[str, ...] = ()
    ) -> SoloSubscription:
        return SoloSubscription()

    def depth(self, topic: Topic, group: str, lane: Lane = Lane.LIVE) -> int:
        return 0

    @property
    def trouble(self) -> str:
        return ""

    def report_to(self, registry: CollectorRegistry) -> None:
        """The parent counts."""

    def say(self, words: Words) -> None:
        try:
            self._wire.send(words)
        except OSError:
            self._end()

    def _receive(self) -> None:
        while (received := self._wire.receive()) is not None:
            words, body = received
            if words["verb"] == "confirmed":
                with self._lock:
                    future = self._publishing.pop(words["number"])
                if words["error"]:
                    future.set_exception(BusClosed(words["error"]))
                else:
                    future.set_result(None)
            else:
                threading.Thread(target=self._handle, args=(words, body), name="bus-solo-handler", daemon=True).start()
        self._end()

    def _handle(self, words: Words, body: bytes) -> None:
        delivery = SoloDelivery(self, message_of(words, body), words["attempts"])
        try:
            self._handlers[words["topic"], words["group"]](delivery)
        except Exception as error:  # as on every form: it decides about the message
            if isinstance(error, InspectBusError) and not error.retryable:
                delivery.park(error)
            else:
                delivery.retry(error)

    def _end(self) -> None:
        """The parent has gone, or wants us no more. Nothing of ours is worth a drain."""
        if not self._closed:
            self._closed = True
            os.kill(os.getpid(), signal.SIGTERM)


class SoloSubscription:
    def close(self, patience_s: float = 10.0) -> None:
        """Nothing to give back: the parent has it."""


class SoloDelivery:
    def __init__(self, bus: SoloBus, message: Message, attempts: int) -> None:
        self.message = message
        self.attempts = attempts
        self._bus = bus
        self._lock = threading.Lock()
        self._claimed = False

    def done(self, after: Iterable[Future[None]] = ()) -> None:
        def confirmed(failure: BaseException | None) -> None:
            self._bus.say({"verb": "done"} if failure is None else _failed("retry", failure))

        if self._claim():
            when_all(list(after), confirmed)

    def retry(self, error: BaseException) -> None:
        if self._claim():
            self._bus.say(_failed("retry", error))

    def park(self, error: BaseException) -> None:
        if self._claim():
            self._bus.say(_failed("park", error))

    def _claim(self) -> bool:
        with self._lock:
            first = not self._claimed
            self._claimed = True
        return first


def _failed(verb: str, error: BaseException) -> Words:
    text = error.message if isinstance(error, InspectBusError) else str(error)
    return {"verb": verb, "kind": type(error).__name__, "error": text[:1000]}
