"""A publisher leaves a channel on which one way is refused, whatever the others say, and forgets no message by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByClient
from pika.frame import Method
from pika.spec import Basic

from inspectbus.bus.rabbitmq import refusals
from inspectbus.bus.rabbitmq.addresses import parse
from inspectbus.bus.rabbitmq.limits import Limits
from inspectbus.bus.rabbitmq.link import Link
from inspectbus.bus.rabbitmq.publisher import Publisher

FRAMES, GATES = "inspectbus.frames", "inspectbus.gates"
PATIENCE_S = 10.0


class Channel:
    """What a broker would see of a channel, and what it can say on it."""

    def __init__(self) -> None:
        self.is_open = True
        self.bodies: list[bytes] = []
        self._on_close: Callable[[Channel, BaseException], None]
        self._on_confirm: Callable[[Method[Any]], None]

    def add_on_close_callback(self, callback: Callable[[Channel, BaseException], None]) -> None:
        self._on_close = callback

    def add_on_return_callback(self, callback: object) -> None:
        pass

    def confirm_delivery(self, ack_nack_callback: Callable[[Method[Any]], None]) -> None:
        self._on_confirm = ack_nack_callback

    def basic_publish(self, exchange: str, routing_key: str, body: bytes, *_: object, mandatory: bool) -> None:
        self.bodies.append(body)

    def close(self) -> None:
        self.is_open = False
        self._on_close(self, ChannelClosedByClient(200, "closed"))

    def answer(self, body: bytes, kind: type[Basic.Ack] | type[Basic.Nack]) -> None:
        self._on_confirm(Method(1, kind(self.bodies.index(body) + 1)))


class Broker:
    """One connection to it, with a publisher at the other end. This thread is the loop's."""

    def __init__(self) -> None:
        self.channels: list[Channel] = []
        # Never started: it wakes nobody.
        self.publisher = Publisher(Link("publish", parse("amqp://nobody")), Limits())
        self.publisher.opened(self)  # type: ignore[arg-type]

    def channel(self, on_open_callback: Callable[[Channel], None]) -> None:
        self.channels.append(Channel())
        on_open_callback(self.channels[-1])

    def publish(self, exchange: str, body: bytes) -> Future[None]:
        future = self.publisher.publish(exchange, "live.line-1.top", pika.BasicProperties(), body)
        self.publisher.work()
        return future


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    monkeypatch.setattr(refusals, "FIRST_S", 0.0)
    broker = Broker()
    yield broker
    broker.publisher.close(0)


def test_a_way_that_is_only_refused_gets_another_channel_although_others_are_confirmed(broker: Broker) -> None:
    frames = [broker.publish(FRAMES, b"frame 1"), broker.publish(FRAMES, b"frame 2")]
    outcome = broker.publish(GATES, b"outcome")
    first = broker.channels[0]
    first.answer(b"frame 1", Basic.Nack)
    first.answer(b"outcome", Basic.Ack)
    first.answer(b"frame 2", Basic.Nack)
    broker.publisher.work()
    outcome.result(PATIENCE_S)

    first, second = broker.channels
    assert not first.is_open
    assert second.bodies == [b"frame 1", b"frame 2"]
    for body in second.bodies:
        second.answer(body, Basic.Ack)
    for frame in frames:
        frame.result(PATIENCE_S)


def test_a_way_that_is_confirmed_now_and_then_keeps_its_channel(broker: Broker) -> None:
    for number in range(3):
        bodies = [f"refused {number}".encode(), f"confirmed {number}".encode()]
        for body in bodies:
            broker.publish(FRAMES, body)
        broker.channels[0].answer(bodies[0], Basic.Nack)
        broker.channels[0].answer(bodies[1], Basic.Ack)
    broker.publisher.work()
    assert len(broker.channels) == 1
