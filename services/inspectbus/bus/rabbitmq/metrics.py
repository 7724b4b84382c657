"""The bus's operational numbers, read when somebody asks for them."""

from __future__ import annotations

import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from inspectbus.bus.contract import Lane
from inspectbus.bus.rabbitmq.consumer import Consumer
from inspectbus.bus.rabbitmq.link import Link
from inspectbus.bus.rabbitmq.publisher import Publisher
from inspectbus.bus.topics import Topic
from inspectbus.errors import BusAway, NotFound

ENDS = ("done", "retried", "parked", "quarantined")


class Depth(Protocol):
    def __call__(self, topic: Topic, group: str, lane: Lane = ...) -> int: ...


class BusMetrics:
    def __init__(
        self, publishing: Link, consuming: Link, publisher: Publisher, consumers: Callable[[], list[Consumer]]
    ) -> None:
        self.publishing = publishing
        self.consuming = consuming
        self.publisher = publisher
        self.consumers = consumers
        self._lock = threading.Lock()
        self._settled: Tally[tuple[str, str]] = Tally()

    def settled(self, queue: str, how: str) -> None:
        with self._lock:
            self._settled[queue, how] += 1

    def counts(self) -> dict[tuple[str, str], int]:
        with self._lock:
            return dict(self._settled)

    def report_to(self, registry: CollectorRegistry, depth: Depth) -> None:
        confirm_seconds = Histogram(
            "inspectbus_bus_confirm_seconds",
            "From sending a message to the broker's confirm.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=registry,
        )
        self.publisher.on_confirm = confirm_seconds.observe
        registry.register(_Reading(self, depth))


class _Reading(Collector):
    """Asks broker and links at each scrape, so that no thread of ours polls for nobody."""

    def __init__(self, metrics: BusMetrics, depth: Depth) -> None:
        self._metrics = metrics
        self._depth = depth

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask a broker that may be away."""
        return []

    def collect(self) -> Iterable[Metric]:
        metrics = self._metrics
        up = GaugeMetricFamily("inspectbus_bus_up", "1 while the broker can be used.", labels=["link"])
        connects = CounterMetricFamily("inspectbus_bus_connects", "Connections made.", labels=["link"])
        for name, link in (("publish", metrics.publishing), ("consume", metrics.consuming)):
            up.add_metric([name], 0.0 if link.trouble else 1.0)
            connects.add_metric([name], link.connects)
        yield up
        yield connects
        yield GaugeMetricFamily(
            "inspectbus_bus_unconfirmed", "Messages sent and not confirmed.", value=metrics.publisher.waiting
        )
        yield CounterMetricFamily(
            "inspectbus_bus_nacks", "Messages a full queue refused; each was sent again.", value=metrics.publisher.nacks
        )
        settled = CounterMetricFamily(
            "inspectbus_bus_settled",
            "Deliveries by how they ended: done, retried, parked, quarantined.",
            labels=["queue", "how"],
        )
        # From 0 on: a count that first shows as 1 is one that nobody sees rise, and the first dead letter matters.
        queues = [intake.queue for consumer in metrics.consumers() for intake in consumer.intakes.values()]
        zeros = {(queue, how): 0 for queue in queues for how in ENDS}
        for (queue, how), count in (zeros | metrics.counts()).items():
            settled.add_metric([queue, how], count)
        yield settled
        yield from self._queues()

    def _queues(self) -> Iterable[Metric]:
        depth = GaugeMetricFamily("inspectbus_bus_depth", "Messages waiting in a work queue.", labels=["queue"])
        oldest = GaugeMetricFamily(
            "inspectbus_bus_oldest_seconds",
            "Age of the last message taken from the queue; 0 when it is empty.",
            labels=["queue"],
        )
        redelivered = CounterMetricFamily(
            "inspectbus_bus_redeliveries", "Messages that had been delivered before.", labels=["queue"]
        )
        for consumer in self._metrics.consumers():
            for lane, intake in consumer.intakes.items():
                redelivered.add_metric([intake.queue], consumer.redelivered[lane])
                try:
                    waiting = self._depth(consumer.topic, consumer.group, lane)
                except (NotFound, BusAway):
                    continue  # `up` says it
                depth.add_metric([intake.queue], waiting)
                oldest.add_metric([intake.queue], consumer.age_s(lane) if waiting else 0.0)
        yield depth
        yield oldest
        yield redelivered
