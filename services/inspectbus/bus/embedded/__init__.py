"""The bus inside one process: a small real broker that queues, redelivers, dead-letters and is bounded.

    publish ─> [work queue: live | backlog] ─> consumer's inbox (at most `prefetch` unsettled) ─> handler, own thread
                   ^                                                        │
                   └── after a delay <── keeper thread <── retry ───────────┤
                                              └── park: epitaph, dead letter┘   done: the publisher's future, once
                                                                                every group has settled

The process's memory is all there is, so being responsible for a message can only mean having finished with it: a
publish is confirmed when the work it caused is settled, which chains through `done(after=...)` to the very end.

One lock guards a broker; no callback, handler or future ever runs under it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from prometheus_client import CollectorRegistry

from inspectbus.bus.contract import Epitaph, Handler, Lane, Message
from inspectbus.bus.embedded.broker import Broker, Limits
from inspectbus.bus.embedded.consumer import Consumer
from inspectbus.bus.embedded.follower import Follower
from inspectbus.bus.topics import Topic
from inspectbus.errors import BadField, BusClosed

__all__ = ["EmbeddedBus", "Limits"]


class EmbeddedBus:
    """A handle on the broker of this name. The broker lives as long as any handle is open."""

    def __init__(self, name: str, limits: Limits | None = None) -> None:
        self._broker = Broker.join(name, limits or Limits())
        self._subscriptions: list[Consumer | Follower] = []
        self._closed = False

    def __enter__(self) -> EmbeddedBus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends this handle's subscriptions. With the last handle, whatever was not settled fails with BusClosed."""
        if self._closed:
            return
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close(patience_s=0)
        self._broker.leave()

    def publish(self, topic: Topic, message: Message, *, patience_s: float | None = None) -> Future[None]:
        self._check_open()
        return self._broker.publish(topic, message, patience_s)

    def subscribe(
        self, topic: Topic, group: str, handler: Handler, *, prefetch: int = 16, epitaph: Epitaph | None = None
    ) -> Consumer:
        self._check_open()
        if group not in topic.groups:
            raise BadField(f"{topic.name} has no group {group!r}; it has {', '.join(topic.groups) or 'none'}")
        consumer = Consumer(self._broker, self._broker.queue(topic, group), handler, prefetch, epitaph)
        self._subscriptions.append(consumer)
        consumer.start()
        return consumer

    def follow(self, topic: Topic, handler: Callable[[Message], None], *, key: tuple[str, ...] = ()) -> Follower:
        self._check_open()
        follower = Follower(self._broker, topic, key, handler)
        self._subscriptions.append(follower)
        follower.start()
        return follower

    def depth(self, topic: Topic, group: str, lane: Lane = Lane.LIVE) -> int:
        return self._broker.queue(topic, group).depth(lane)

    @property
    def trouble(self) -> str:
        """Never any: it lives where its users do."""
        return ""

    def report_to(self, registry: CollectorRegistry) -> None:
        """Nothing that a service's own metrics do not say."""

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosed("this bus has been closed")
