"""What a link promises its tenants: a connection that is made again, and words for why it went."""

from __future__ import annotations

import socket
from queue import Queue

import pika
import pytest
from structlog.testing import capture_logs

from inspectbus.bus.rabbitmq.addresses import parse
from inspectbus.bus.rabbitmq.link import Link
from tests.doubles.vhost import Vhost

pytestmark = pytest.mark.rabbitmq

PATIENCE_S = 20.0


class Leaver:
    """Has its first connection dropped, and notes what it is told."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._left = False
        self.opens: Queue[None] = Queue()
        self.losses: Queue[str] = Queue()
        link.add(self)

    def opened(self, connection: pika.SelectConnection) -> None:
        self.opens.put(None)

    def lost(self) -> None:
        self.losses.put(self._link.trouble)

    def work(self) -> None:
        if not self._left:
            self._left = True
            self._link.drop("it leads nowhere")


def test_a_connection_that_is_dropped_says_why_and_is_made_again(rabbitmq_vhost: Vhost) -> None:
    link = Link("publish", parse(f"{rabbitmq_vhost.url}?reconnect_s=0.2"))
    tenant = Leaver(link)
    link.start()
    try:
        tenant.opens.get(timeout=PATIENCE_S)
        words = tenant.losses.get(timeout=PATIENCE_S)
        tenant.opens.get(timeout=PATIENCE_S)
    finally:
        link.close(PATIENCE_S)
    assert words.endswith("was dropped: it leads nowhere")


def test_leaving_while_a_frozen_broker_is_asked_is_quick_and_quiet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen, capture_logs() as logs:
        link = Link("publish", parse(f"amqp://guest:guest@127.0.0.1:{frozen.getsockname()[1]}/"))
        link.start()
        asking, _ = frozen.accept()
        with asking:
            assert asking.recv(4) == b"AMQP"
            link.close(1.0)
    assert link.trouble == "the bus has been closed"
    assert not [line for line in logs if line["log_level"] == "error"]
