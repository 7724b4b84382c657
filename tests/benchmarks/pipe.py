"""One end of a pipe through the bus, as a process of its own that sends or takes when it is told.

    stdin: COUNT SIZE ──> publisher (FORM) ──> broker ──> consumer (FORM) <── stdin: COUNT SIZE
    stdout: one JSON line each: when the first and the last message passed, and the CPU it took

Every form sends persistent messages with confirms, WINDOW of them unconfirmed, and takes with PREFETCH unacknowledged.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any, Protocol

WINDOW = 32
PREFETCH = 64
STATION = ("line-1", "top")
PATIENCE_S = 120.0

ROUTES = {
    "ours": ("inspectbus.frames", "live.line-1.top", "inspectbus.preprocessing.live"),
    "claim": ("inspectbus.prepared", "live.line-1.top", "inspectbus.inference.live"),
    "pika": ("inspectbus.decisions", "line-1.top.qualified", "inspectbus.results"),
    "pika-reads": ("inspectbus.dead", "bench", "inspectbus.dead"),
    "aio-pika": ("inspectbus.gates", "line-1.top", "inspectbus.outcomes"),
}
"""Exchange, routing key and queue of each form: alike for the broker, and nobody reads another's messages."""


class Publishing(Protocol):
    def send(self, count: int, size: int) -> None:
        """Returns when all are confirmed."""


class Consuming(Protocol):
    def take(self, count: int) -> None:
        """Returns when the last one is settled."""


class OurPublisher:
    """`store_url` makes it a claim check: the body rests in the frame store, and its key travels."""

    def __init__(self, url: str, store_url: str | None = None) -> None:
        from inspectbus.bus.rabbitmq import RabbitMQBus
        from inspectbus.bus.topics import FRAMES, PREPARED
        from inspectbus.stores.frames import FrameStore

        self._bus = RabbitMQBus(f"{url}?window_messages={WINDOW}")
        self._store = FrameStore(store_url) if store_url else None
        self._topic = PREPARED if store_url else FRAMES

    def send(self, count: int, size: int) -> None:
        from inspectbus.bus.contract import Message
        from inspectbus.stores.frames import evidence_key

        body = os.urandom(size)
        futures = []
        for _ in range(count):
            frame_id = str(uuid.uuid4())
            if self._store is not None:
                claim = self._store.claim(evidence_key(*STATION, frame_id, "original", "png"), body)
                message = Message(claim.SerializeToString(), STATION, "bench", frame_id)
            else:
                message = Message(body, STATION, "bench", frame_id)
            futures.append(self._bus.publish(self._topic, message))
        _, open_ones = wait(futures, PATIENCE_S)
        assert not open_ones, f"{len(open_ones)} messages without their confirm"
        assert all(future.exception() is None for future in futures)


class OurConsumer:
    def __init__(self, url: str, store_url: str | None = None) -> None:
        from inspectbus.api.v1.frame_pb2 import Claim
        from inspectbus.bus.rabbitmq import RabbitMQBus
        from inspectbus.bus.topics import FRAMES, PREPARED
        from inspectbus.stores.frames import FrameStore

        self._store = FrameStore(store_url) if store_url else None
        self._claim = Claim
        self._left = 0
        self._all = threading.Event()
        self._bus = RabbitMQBus(url)
        topic = PREPARED if store_url else FRAMES
        self._bus.subscribe(topic, topic.groups[0], self._handle, prefetch=PREFETCH)

    def take(self, count: int) -> None:
        self._all.clear()
        self._left = count
        told()
        assert self._all.wait(PATIENCE_S), f"{self._left} messages did not come"

    def _handle(self, delivery: Any) -> None:
        if self._store is not None:
            self._store.fetch(self._claim.FromString(delivery.message.body))
        delivery.done()
        self._left -= 1
        if self._left == 0:
            self._all.set()


class PikaPublisher:
    """As little Python as pika allows: everything happens in the loop's callbacks, one body for all."""

    def __init__(self, form: str, url: str) -> None:
        self._exchange, self._key, _ = ROUTES[form]
        self._connection, self._channel = _pika_channel(url)
        self._loop: Any = self._connection.ioloop
        self._channel.confirm_delivery(ack_nack_callback=self._on_confirm, callback=lambda _: self._loop.stop())
        self._loop.start()
        self._properties = _pika().BasicProperties(delivery_mode=2)
        self._tag = self._confirmed = self._end = 0
        self._unconfirmed: set[int] = set()

    def send(self, count: int, size: int) -> None:
        self._body = os.urandom(size)
        self._end = self._tag + count
        self._fill()
        self._loop.start()

    def _fill(self) -> None:
        while len(self._unconfirmed) < WINDOW and self._tag < self._end:
            self._tag += 1
            self._unconfirmed.add(self._tag)
            self._channel.basic_publish(self._exchange, self._key, self._body, self._properties)

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        assert method.NAME == "Basic.Ack", "the queue is full"
        if method.multiple:
            self._unconfirmed = {tag for tag in self._unconfirmed if tag > method.delivery_tag}
        else:
            self._unconfirmed.remove(method.delivery_tag)
        self._fill()
        if not self._unconfirmed:
            self._loop.stop()


class PikaConsumer:
    """`pika-reads` also reads as much at a time as we do: against it one sees what our own code costs."""

    def __init__(self, form: str, url: str) -> None:
        if form == "pika-reads":
            import inspectbus.bus.rabbitmq.link  # noqa: F401  which sets it for its process
        self._connection, self._channel = _pika_channel(url)
        self._loop = self._connection.ioloop
        self._left = 0
        self._channel.basic_qos(prefetch_count=PREFETCH)
        self._channel.basic_consume(ROUTES[form][2], self._on_message, callback=lambda _: self._loop.stop())
        self._loop.start()

    def take(self, count: int) -> None:
        self._left = count
        told()
        self._loop.start()

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        channel.basic_ack(method.delivery_tag)
        self._left -= 1
        if self._left == 0:
            self._loop.stop()


class AioPikaPublisher:
    """WINDOW tasks, each waiting for the confirm of its own message."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._exchange = self._runner.run(self._open(url))

    def send(self, count: int, size: int) -> None:
        self._runner.run(self._send(count, os.urandom(size)))

    async def _open(self, url: str) -> Any:
        import aio_pika

        connection = await aio_pika.connect(f"{url}?heartbeat=0")
        channel = await connection.channel(publisher_confirms=True)
        return await channel.get_exchange(ROUTES["aio-pika"][0])

    async def _send(self, count: int, body: bytes) -> None:
        import aio_pika

        numbers = iter(range(count))

        async def work() -> None:
            for _ in numbers:
                message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
                await self._exchange.publish(message, ROUTES["aio-pika"][1])

        await asyncio.gather(*(work() for _ in range(WINDOW)))


class AioPikaConsumer:
    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._left = 0
        self._all = asyncio.Event()
        self._runner.run(self._open(url))

    def take(self, count: int) -> None:
        self._left = count
        self._all.clear()
        told()
        self._runner.run(asyncio.wait_for(self._all.wait(), PATIENCE_S))

    async def _open(self, url: str) -> None:
        import aio_pika

        self._connection = await aio_pika.connect(f"{url}?heartbeat=0")
        channel = await self._connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.get_queue(ROUTES["aio-pika"][2])
        await queue.consume(self._on_message)

    async def _on_message(self, message: Any) -> None:
        await message.ack()
        self._left -= 1
        if self._left == 0:
            self._all.set()


def _pika() -> Any:
    import pika

    return pika


def _pika_channel(url: str) -> tuple[Any, Any]:
    opened: list[Any] = []

    def on_channel(channel: Any) -> None:
        opened.append(channel)
        connection.ioloop.stop()

    connection = _pika().SelectConnection(
        # Between two runs nobody turns the loop, which a heartbeat would not survive.
        _pika().URLParameters(f"{url}?heartbeat=0"),
        on_open_callback=lambda connection: connection.channel(on_open_callback=on_channel),
    )
    connection.ioloop.start()
    return connection, opened[0]


def told(**words: float) -> None:
    """One line to whoever started us."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def publisher(form: str, url: str, store_url: str) -> Publishing:
    forms: dict[str, Callable[[], Publishing]] = {
        "ours": lambda: OurPublisher(url),
        "claim": lambda: OurPublisher(url, store_url),
        "pika": lambda: PikaPublisher(form, url),
        "pika-reads": lambda: PikaPublisher(form, url),
        "aio-pika": lambda: AioPikaPublisher(url),
    }
    return forms[form]()


def consumer(form: str, url: str, store_url: str) -> Consuming:
    forms: dict[str, Callable[[], Consuming]] = {
        "ours": lambda: OurConsumer(url),
        "claim": lambda: OurConsumer(url, store_url),
        "pika": lambda: PikaConsumer(form, url),
        "pika-reads": lambda: PikaConsumer(form, url),
        "aio-pika": lambda: AioPikaConsumer(url),
    }
    return forms[form]()


def main(side: str, form: str, url: str, store_url: str) -> None:
    """Ends when nobody tells it anything any more."""
    sender = publisher(form, url, store_url) if side == "publish" else None
    taker = consumer(form, url, store_url) if side == "consume" else None
    told()
    for line in sys.stdin:
        count, size = map(int, line.split())
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        if sender is not None:
            sender.send(count, size)
        if taker is not None:
            taker.take(count)
        told(began_s=began_s, ended_s=time.monotonic(), cpu_s=time.process_time() - began_cpu_s)
    os._exit(0)  # threads and loops of four libraries: none holds anything that must be kept


if __name__ == "__main__":
    main(*sys.argv[1:])
