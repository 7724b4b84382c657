"""A place of its own on a test's broker, with the bus's exchanges and queues in it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from inspectbus.bus.rabbitmq import topology
from inspectbus.bus.rabbitmq.addresses import parse
from tests.doubles.rabbitmq import Broker


class Vhost:
    def __init__(self, broker: Broker, name: str) -> None:
        self.broker = broker
        self.name = name
        self.url = broker.url(name)
        topology.declare(parse(self.url))

    def limit(self, definition: Mapping[str, int], queues: str = ".*") -> None:
        """A policy over its queues of this pattern, stronger than any other."""
        self.broker.ctl(
            *("set_policy", "-p", self.name, "--priority", "10", "--apply-to", "queues"),
            *("limits", queues, json.dumps(dict(definition))),
        )
