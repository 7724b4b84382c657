"""Quarantine: what went down with its workers is worked on alone, and decided whatever happens.

    <queue>.quarantine ─> one at a time ─> ward ─┬─ done ──────────────────> ack
                                                 ├─ failed, may succeed ───> again, counted, after a pause
                                                 └─ died, hung, cannot ────> epitaph, dead letter, ack

An innocent that was merely prefetched beside a culprit takes this way too, and loses nothing but a moment.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import partial

import pika
import structlog

from inspectbus.bus import handling
from inspectbus.bus.rabbitmq import naming
from inspectbus.bus.rabbitmq.consumer import Consumer, Delivery
from inspectbus.bus.rabbitmq.intake import Intake, Tag
from inspectbus.bus.rabbitmq.link import Link
from inspectbus.bus.rabbitmq.ward import Ward
from inspectbus.errors import InspectBusError

log = structlog.get_logger(__name__)

LOOK_S = 5.0
"""How often an idle quarantine looks whether its child is still needed."""


class Quarantine:
    """Beside a subscription, on all its lanes' quarantine queues."""

    def __init__(self, consumer: Consumer, ward: Ward, link: Link) -> None:
        self._consumer = consumer
        self._ward = ward
        self._changed = threading.Condition()
        self._waiting: deque[Delivery] = deque()
        self._working: Delivery | None = None
        self._closed = False
        self._intakes = [
            Intake(link, queue, 1, self._on_delivery, on_lost=partial(self._forget, queue))
            for queue in map(naming.quarantine_queue, naming.work_queues(consumer.topic, consumer.group))
        ]
        self._thread = threading.Thread(target=self._work, name=f"{consumer.topic.name}-quarantine", daemon=True)

    def start(self) -> None:
        self._thread.start()
        for intake in self._intakes:
            intake.start()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for intake in self._intakes:
            intake.close(2.0)
        self._thread.join(timeout=5)

    def _on_delivery(
        self, intake: Intake, tag: Tag, routing_key: str, properties: pika.BasicProperties, body: bytes
    ) -> None:
        with self._changed:
            self._waiting.append(Delivery(self._consumer, intake, tag, routing_key, properties, body))
            self._changed.notify_all()

    def _forget(self, queue: str) -> None:
        """Its channel has gone: what it delivered comes again."""
        with self._changed:
            gone = [delivery for delivery in (*self._waiting, self._working) if delivery and delivery.queue == queue]
            for delivery in gone:
                delivery.void = True
            self._waiting = deque(delivery for delivery in self._waiting if not delivery.void)
        self._consumer.forget(queue)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._closed or self._waiting, LOOK_S):
                    delivery = None
                elif self._closed:
                    return
                else:
                    delivery = self._working = self._waiting.popleft()
            try:
                if delivery is None:
                    self._ward.look()
                else:
                    self._try_alone(delivery)
            except Exception:  # whatever is wrong with one message, others wait for this thread
                log.exception("the quarantine failed")
            self._working = None

    def _try_alone(self, delivery: Delivery) -> None:
        consumer = self._consumer
        if not consumer.take_alone(delivery):
            return
        log.info("working alone", queue=delivery.queue, **handling.words(delivery.message))
        try:
            consumer.check(delivery)
            self._ward.work(consumer.topic, consumer.group, delivery.message, delivery.attempts)
        except InspectBusError as error:
            if self._closed:
                return
            if error.retryable:
                consumer.again_alone(delivery, error)
            else:
                delivery.park(error)
        except Exception as error:  # a fault of ours must not be taken for the message's
            log.exception("the quarantine failed", queue=delivery.queue)
            consumer.again_alone(delivery, error)
        else:
            delivery.done()
