"""The bus's door: a job that was asked for wakes a worker, and an alias that was changed is news.

StartTraining ─> row ─> inspectbus.training ─> one worker, if it is idle: claim, then acknowledged
alias changed ─> row ─> inspectbus.events ───> whoever follows

The rows are the truth. What is lost here costs time and nothing else: a worker also looks at every beat of its lease,
and whoever follows an alias also asks for it.
"""

from __future__ import annotations

import structlog
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.timestamp_pb2 import Timestamp

from inspectbus.api.v1 import model_pb2, training_pb2
from inspectbus.bus import Bus, Message, Subscription
from inspectbus.bus.topics import EVENTS, TRAINING, Topic
from inspectbus.errors import InspectBusError
from inspectbus.training.aliases import AliasChange
from inspectbus.training.jobs import Job
from inspectbus.training.worker import Worker

log = structlog.get_logger(__name__)

SOURCE = "training"
PATIENCE_S = 2.0
"""How long a caller waits for a bus that is full, and the bus for its broker: later than that everybody has looked."""


class Events:
    """What this service says on the bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def job_requested(self, job: Job) -> None:
        body = training_pb2.JobRequested(job_id=job.job_id)
        self._publish(TRAINING, ("job", "requested"), job.job_id, body)

    def alias_changed(self, change: AliasChange) -> None:
        self._publish(EVENTS, ("model", "alias-changed"), f"{change.name}@{change.alias}", alias_change(change))

    def _publish(self, topic: Topic, key: tuple[str, ...], subject: str, body: ProtoMessage) -> None:
        message = Message(body.SerializeToString(), key, SOURCE, subject)
        try:
            self._bus.publish(topic, message, patience_s=PATIENCE_S)
        except InspectBusError as error:
            log.warning("the bus took no event", topic=topic.name, subject=subject, error=error.message)


def waking(bus: Bus, worker: Worker) -> Subscription:
    """Wakes the worker for jobs that were asked for anywhere."""
    return bus.subscribe(TRAINING, "training", worker.wake, prefetch=1)


def alias_change(change: AliasChange) -> model_pb2.AliasChange:
    return model_pb2.AliasChange(
        name=change.name,
        alias=change.alias,
        version=change.version,
        previous=change.previous,
        changed_at=timestamp(change.changed_at),
        by=change.by,
        reason=change.reason,
        forced=change.forced,
        rollback=change.rollback,
    )


def timestamp(microseconds: int | None) -> Timestamp | None:
    if microseconds is None:
        return None
    moment = Timestamp()
    moment.FromMicroseconds(microseconds)
    return moment
