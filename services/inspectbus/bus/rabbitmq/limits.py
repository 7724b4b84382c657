"""How much a RabbitMQ bus holds and how patient it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Each may be set in the bus URL's query: amqp://broker/?window_messages=64. What is left out has this default."""

    window_messages: int = 256
    """Published and unconfirmed messages one process may have; the next publisher waits."""
    window_bytes: int = 64 * 1024 * 1024
    """Their bodies together; one larger message is still taken by an empty window."""
    body_bytes: int = 64 * 1024 * 1024
    """Largest body sent or worked on. RabbitMQ itself closes the channel at 128 MB."""
    publish_patience_s: float = 30.0
    """How long publish waits for room in the window before it raises QueueFull."""
    confirm_s: float = 15.0
    """A confirm that takes longer means a connection that leads nowhere: it is dropped and everything is sent again."""
    max_attempts: int = 5
    """Failures a handler may have with one message before it is parked."""
    retry_delay_s: float = 1.0
    """Before the second attempt; doubles with each further one, up to thirty seconds."""
    held_s: float = 600.0
    """How long a message waits here for an outage to end before the broker keeps it again. After half an hour (its
    consumer_timeout) the broker would count us as dead, and the message as a killer."""
    quarantine_after: int = 2
    """Deliveries lost with their worker before a message is worked on alone."""
    quarantine_s: float = 30.0
    """How long a message may be worked on alone before its process is killed. A frozen database is noticed after 17
    seconds and waited for 8 more: with less, what is recorded alone meanwhile counts as hung."""
    news_limit: int = 1000
    """Messages waiting for one follower."""
    news_bytes: int = 32 * 1024 * 1024
    """Their bodies together."""
    heartbeat_s: int = 10
    """A peer silent for five seconds more, or at the latest twice that, is gone. Shorter finds a cut cable sooner and a
    busy machine guilty."""
    reconnect_s: float = 5.0
    """Longest pause between two tries to reach a broker; the first is a twentieth of it."""
    ahead_s: float = 3600.0
    """A message made further than this in the future comes from a broken clock and is parked."""
