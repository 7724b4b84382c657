"""What there is on a broker, beside what should be: looked at, never made.

topology ─> passive declare ─> how much waits, who reads ─> the same with arguments: any differences?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pika
from pika.adapters.blocking_connection import BlockingChannel

from inspectbus.bus.contract import Lane
from inspectbus.bus.rabbitmq.topology import explained, queues
from inspectbus.bus.topics import ALL, DEAD
from inspectbus.errors import NotAllowed, NotFound, NotPossibleNow


@dataclass(frozen=True)
class Standing:
    """One queue as it stands."""

    queue: str
    kind: str
    """work, retry, quarantine or dead."""
    lane: str
    """Empty where there is only one."""
    messages: int | None
    """Ready; those in somebody's hand are not counted. None when there is no such queue."""
    consumers: int


def standings(connection: pika.BlockingConnection) -> list[Standing]:
    """Every queue of the topology. Raises NotAllowed, BusAway."""
    found = []
    for queue in queues():
        kind = "dead" if queue.name == DEAD.name else "work"
        kind = next((aside for aside in ("retry", "quarantine") if queue.name.endswith(f".{aside}")), kind)
        lane = next((str(lane) for lane in Lane if lane in queue.name.split(".")), "")
        try:
            with explained(connection) as channel:
                answer = channel.queue_declare(queue.name, passive=True).method
                channel.close()
            found.append(Standing(queue.name, kind, lane, int(answer.message_count), int(answer.consumer_count)))
        except NotFound:
            found.append(Standing(queue.name, kind, lane, None, 0))
    return found


def missing(connection: pika.BlockingConnection) -> list[str]:
    """Names of the topology's exchanges and queues that are not there; anybody may ask. Raises BusAway."""
    questions = [(topic.name, partial(BlockingChannel.exchange_declare, exchange=topic.name)) for topic in ALL] + [
        (queue.name, partial(BlockingChannel.queue_declare, queue=queue.name)) for queue in queues()
    ]
    gone = []
    for name, question in questions:
        try:
            with explained(connection) as channel:
                question(channel, passive=True)
                channel.close()
        except NotFound:
            gone.append(name)
        except NotAllowed:
            continue
    return gone


def told_missing(gone: list[str], vhost: str) -> str:
    """How many are missing where, and what to do."""
    return (
        f"{len(gone)} of {len(ALL) + len(queues())} exchanges and queues are missing in vhost {vhost}: import the "
        "output of `inspectbus bus definitions`, or run `inspectbus bus declare` as a user who may configure"
    )


def faults(connection: pika.BlockingConnection) -> list[str]:
    """What is there with other arguments than it should have, a sentence each; of what is missing see `missing`.

    Arguments are compared as far as the user may: the broker tells differences only to one who might have made it.
    Raises BusAway.
    """
    found = []
    for topic in ALL:
        found += _fault(
            connection,
            partial(BlockingChannel.exchange_declare, exchange=topic.name, passive=True),
            partial(BlockingChannel.exchange_declare, exchange=topic.name, exchange_type="topic", durable=True),
        )
    for queue in queues():
        found += _fault(
            connection,
            partial(BlockingChannel.queue_declare, queue=queue.name, passive=True),
            partial(BlockingChannel.queue_declare, queue=queue.name, durable=True, arguments=queue.arguments),
        )
    return found


def _fault(connection: pika.BlockingConnection, *questions: Callable[[BlockingChannel], object]) -> list[str]:
    """Is it there, and is it the same? In this order: what is not there must not be made by asking."""
    try:
        for question in questions:
            with explained(connection) as channel:
                question(channel)
                channel.close()
    except NotPossibleNow as error:
        return [error.message]
    except (NotFound, NotAllowed):
        return []
    return []
