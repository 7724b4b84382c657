"""What the inspection bus promises, whatever carries it.

    publisher ── publish ──> topic ──> work queue of each group ──> one of the group's subscribers, settled
                                  └──> news followers: a copy each while they keep up

Work is at least once and in no promised order: a delivery that is not settled comes back, to anybody of the group,
with its attempts counted. News is a convenience and never the record: a follower that falls behind loses the oldest.
"""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from prometheus_client import CollectorRegistry

from inspectbus.bus.topics import Topic


class Lane(StrEnum):
    """Live work is served first; backlog (spooled, replayed, already late) keeps a guaranteed minimum share."""

    LIVE = "live"
    BACKLOG = "backlog"


BACKLOG_SHARE = 8
"""Every so many deliveries the backlog goes first, when it waits: a draining spool neither stalls nor delays."""


@dataclass(frozen=True)
class Message:
    """One protobuf message on its way, with the CloudEvents attributes that travel as headers."""

    body: bytes
    """A serialised protobuf message of the topic's type."""
    key: tuple[str, ...]
    """Words of the routing key without the lane: ("line-1", "top")."""
    source: str
    """Who publishes: "acquisition/line-1/top"."""
    subject: str = ""
    """What it is about: the frame id."""
    lane: Lane = Lane.LIVE
    """Only meaningful on laned topics."""
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    """Deterministic where the sender can make it so; the receiver's idempotency does not rest on it."""
    time_s: float = field(default_factory=time.time)
    """When it was made, seconds since the epoch."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Extra words for whoever reads it; a dead letter carries "error", "attempts", "topic" and "group"."""


class Delivery(Protocol):
    """One message handed to a subscriber. One of the three verbs, once, from any thread; later ones do nothing."""

    @property
    def message(self) -> Message: ...

    @property
    def attempts(self) -> int:
        """1 the first time. Counts every way of coming back."""

    def done(self, after: Iterable[Future[None]] = ()) -> None:
        """Done once every future is: then, and only then, the message is gone. A future that fails retries it."""

    def retry(self, error: BaseException) -> None:
        """Deliver again after a growing delay; past the bus's limit of attempts it is parked instead.

        An outage (InspectBusError.outage) is not the message's failure: it waits, uncounted, until that is over.
        """

    def park(self, error: BaseException) -> None:
        """Trying again cannot help: move it to the dead letters with the reason."""


Handler = Callable[[Delivery], None]
"""May settle at once or keep the delivery and settle later. Raising an InspectBusError that is not retryable parks the
delivery; raising anything else retries it."""

Epitaph = Callable[[Message, BaseException], Sequence["Future[None]"]]
"""Called before a message is parked, whoever parks it. Publishes what the world must hear (a HOLD decision) and gives
the futures the bus must wait for before it lets the message go."""


StartChild = Callable[[int], "subprocess.Popen[bytes]"]
"""Starts this process's service again on the bus solo://FD, with the file descriptor passed on."""


class Subscription(Protocol):
    """A running consumer. Closing takes no more, waits for what is in hand to be settled, and gives back the rest."""

    def close(self, patience_s: float = 10.0) -> None: ...


class Bus(AbstractContextManager["Bus"], Protocol):
    """Carries messages between services."""

    def publish(self, topic: Topic, message: Message, *, patience_s: float | None = None) -> Future[None]:
        """Done when the bus has taken responsibility for the message.

        On RabbitMQ: when a quorum has confirmed it. On the embedded bus, which dies with the process: when every work
        group has settled it with all that `after` named, so that a confirmed frame is a recorded decision there too.
        Blocks only while the window or a work queue is full, and not for ever: raises QueueFull after `patience_s`
        (None: the bus's own), BusClosed when the bus has been closed, BadField when the body is larger than the bus
        takes. A future still open when the bus closes fails with BusClosed.

        With `patience_s`, a bus that can be away also withdraws a message it could not deliver in that time: the future
        fails with TooLate, and the message may have arrived or not. Without, it is sent until it is confirmed.
        """

    def subscribe(
        self, topic: Topic, group: str, handler: Handler, *, prefetch: int = 16, epitaph: Epitaph | None = None
    ) -> Subscription:
        """Call the handler per delivery, at most `prefetch` unsettled at a time. A group's subscribers share its work.

        Raises BadField when the topic has no such group.
        """

    def follow(self, topic: Topic, handler: Callable[[Message], None], *, key: tuple[str, ...] = ()) -> Subscription:
        """News: call the handler with every message whose key matches from now on.

        `key` is matched word by word, "*" standing for any word, and missing words at its end for anything; () matches
        all. At most `news_limit` messages wait for a slow follower; then the oldest is dropped and counted.
        """

    def depth(self, topic: Topic, group: str, lane: Lane = Lane.LIVE) -> int:
        """Messages waiting in a work queue, not counting those delivered and unsettled. Raises BusAway."""

    @property
    def trouble(self) -> str:
        """Why the bus cannot be used now, in words; empty while it can."""

    def report_to(self, registry: CollectorRegistry) -> None:
        """Adds the bus's operational numbers to a service's metrics."""
