"""How the broker's queues are called. The one place that spells their names."""

from __future__ import annotations

from inspectbus.bus.contract import Lane
from inspectbus.bus.topics import ALL, DEAD, Topic

NEWS_PREFIX = "inspectbus.news."
"""Of every news queue; a user may create these and no others."""


def work_queue(topic: Topic, group: str, lane: Lane = Lane.LIVE) -> str:
    """inspectbus.preprocessing.live, inspectbus.results"""
    return f"inspectbus.{group}.{lane}" if topic.laned else f"inspectbus.{group}"


def work_queues(topic: Topic, group: str) -> list[str]:
    """All lanes of a group."""
    return [work_queue(topic, group, lane) for lane in (Lane if topic.laned else (Lane.LIVE,))]


def retry_queue(queue: str) -> str:
    """Where a message waits for its next attempt; it returns to its work queue by itself."""
    return f"{queue}.retry"


def quarantine_queue(queue: str) -> str:
    """Where a message waits that went down with its workers."""
    return f"{queue}.quarantine"


def is_queue(routing_key: str) -> bool:
    """True when a message came by the default exchange, or by the broker's own dead-lettering."""
    return home_queue(routing_key) in _ORIGINS


def home_queue(queue: str) -> str:
    """The work queue whose quarantine this may be."""
    return queue.removesuffix(".quarantine")


def routing_key(topic: Topic, key: tuple[str, ...], lane: Lane) -> str:
    """<lane>.<line>.<station> on laned topics; a dead letter's is the queue it died in."""
    if topic is DEAD:
        return next((queue for queue, origin in _ORIGINS.items() if origin == key), ".".join(key))
    return ".".join((lane, *key) if topic.laned else key)


def letter_queues() -> list[str]:
    """Work queues, in which messages may die."""
    return list(_ORIGINS)


def origin(queue: str) -> tuple[str, ...]:
    """Topic and group of a work queue's name; the name alone when it is none of ours."""
    return _ORIGINS.get(queue, (queue,))


_ORIGINS = {
    queue: (topic.name, group)
    for topic in ALL
    if topic is not DEAD
    for group in topic.groups
    for queue in work_queues(topic, group)
}
