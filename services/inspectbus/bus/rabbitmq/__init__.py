"""The bus on RabbitMQ, for services in separate processes and pods.

    publish ─> publisher ─> link ─> exchange ─> quorum queue ─> link ─> consumer ─> handler
                                            └─> news queue ───> link ─> follower ─> handler

A publish is confirmed when a quorum of the broker's nodes has the message on disk. Exchanges, queues and users are not
made here but once, by `inspectbus bus declare`: a service's user may not make any.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from prometheus_client import CollectorRegistry

from inspectbus.bus.contract import Epitaph, Handler, Lane, Message, StartChild
from inspectbus.bus.keeper import Keeper
from inspectbus.bus.rabbitmq import naming, wire
from inspectbus.bus.rabbitmq.addresses import parse
from inspectbus.bus.rabbitmq.consumer import Consumer
from inspectbus.bus.rabbitmq.depths import Depths
from inspectbus.bus.rabbitmq.follower import Follower
from inspectbus.bus.rabbitmq.link import Link
from inspectbus.bus.rabbitmq.metrics import BusMetrics
from inspectbus.bus.rabbitmq.publisher import Publisher
from inspectbus.bus.rabbitmq.quarantine import Quarantine
from inspectbus.bus.rabbitmq.ward import Ward
from inspectbus.bus.topics import Topic
from inspectbus.errors import BadField, BusClosed, NotAllowed

FIRST_TRY_S = 10.0
"""How long opening waits to learn whether the broker refuses us; one that is only away is waited for later."""
FLUSH_S = 5.0
"""How long closing waits for confirms still out."""


class RabbitMQBus:
    """A process's bus. A broker that is away is waited for; one that refuses our user is told at once."""

    def __init__(self, url: str, name: str = "inspectbus", start_child: StartChild | None = None) -> None:
        """`name` shows in the broker's list of connections. `start_child` starts this process's service again for what
        is worked on alone; without it nothing is, and the delivery limit is the net. Raises BadField, NotAllowed.
        """
        addresses = parse(url, name)
        self._limits = addresses.limits
        self._user = addresses.user
        self._publishing = Link("publish", addresses)
        self._consuming = Link("consume", addresses)
        self._keeper = Keeper("bus-keeper")
        self._publisher = Publisher(self._publishing, self._limits)
        self._depths = Depths(self._consuming)
        self._lock = threading.Lock()
        self._subscriptions: list[Consumer | Follower] = []
        self._quarantines: list[Quarantine] = []
        self._ward = Ward(start_child, self.publish, self._limits.quarantine_s) if start_child else None
        self._metrics = BusMetrics(self._publishing, self._consuming, self._publisher, self.consumers)
        self._closed = False
        for link in (self._publishing, self._consuming):
            link.start()
        for link in (self._publishing, self._consuming):
            link.tried(FIRST_TRY_S)
            if link.refused:
                trouble = link.trouble
                self.close()
                raise NotAllowed(trouble, field="bus_url")

    def __enter__(self) -> RabbitMQBus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._ward is not None:
            self._ward.close()
        for quarantine in self._quarantines:
            quarantine.close()
        for subscription in self.subscriptions():
            subscription.close(patience_s=0)
        self._publisher.close(FLUSH_S if not self._publishing.trouble else 0.0)
        self._keeper.close()
        self._consuming.close(2.0)
        self._publishing.close(2.0)

    def publish(self, topic: Topic, message: Message, *, patience_s: float | None = None) -> Future[None]:
        return self._publisher.publish(
            topic.name,
            naming.routing_key(topic, message.key, message.lane),
            wire.properties(topic, message, self._user),
            message.body,
            # A topic that is news alone may have nobody to listen.
            mandatory=bool(topic.groups),
            patience_s=patience_s,
        )

    def subscribe(
        self, topic: Topic, group: str, handler: Handler, *, prefetch: int = 16, epitaph: Epitaph | None = None
    ) -> Consumer:
        self._check_open()
        if group not in topic.groups:
            raise BadField(f"{topic.name} has no group {group!r}; it has {', '.join(topic.groups) or 'none'}")
        consumer = Consumer(
            topic,
            group,
            handler,
            prefetch,
            epitaph,
            link=self._consuming,
            publisher=self._publisher,
            keeper=self._keeper,
            limits=self._limits,
            on_settled=self._metrics.settled,
            quarantine=self._ward is not None,
        )
        with self._lock:
            self._subscriptions.append(consumer)
        consumer.start()
        if self._ward is not None:
            quarantine = Quarantine(consumer, self._ward, self._consuming)
            self._quarantines.append(quarantine)
            quarantine.start()
        return consumer

    def follow(self, topic: Topic, handler: Callable[[Message], None], *, key: tuple[str, ...] = ()) -> Follower:
        self._check_open()
        follower = Follower(topic, key, handler, link=self._consuming, limits=self._limits)
        with self._lock:
            self._subscriptions.append(follower)
        follower.start()
        return follower

    def depth(self, topic: Topic, group: str, lane: Lane = Lane.LIVE) -> int:
        own = sum(
            consumer.buffered(lane)
            for consumer in self.consumers()
            if (consumer.topic, consumer.group) == (topic, group)
        )
        return self._depths.of(naming.work_queue(topic, group, lane)) + own

    @property
    def trouble(self) -> str:
        return self._publishing.trouble or self._consuming.trouble or self._publisher.trouble

    def report_to(self, registry: CollectorRegistry) -> None:
        self._metrics.report_to(registry, self.depth)

    def subscriptions(self) -> list[Consumer | Follower]:
        with self._lock:
            return list(self._subscriptions)

    def consumers(self) -> list[Consumer]:
        return [subscription for subscription in self.subscriptions() if isinstance(subscription, Consumer)]

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosed("this bus has been closed")
