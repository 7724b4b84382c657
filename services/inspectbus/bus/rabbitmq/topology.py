"""Exchanges, queues, limits and users, from code and made once: over AMQP by `declare`, or as the broker's definitions.

    exchange inspectbus.frames ─ live.# ──> inspectbus.preprocessing.live ─ delivery limit ─> inspectbus.dead
                               └ backlog.# > inspectbus.preprocessing.backlog        each with .retry and .quarantine

What may change later (how much a queue holds) is a policy and no argument: RabbitMQ refuses to redeclare a queue with
other arguments. Policies and users cannot be made over AMQP; they are in the definitions only.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    ChannelClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from inspectbus.bus.contract import Lane
from inspectbus.bus.rabbitmq import naming
from inspectbus.bus.rabbitmq.addresses import Addresses
from inspectbus.bus.rabbitmq.wire import STATION_USER
from inspectbus.bus.topics import ALL, DEAD, DECISIONS, EVENTS, FRAMES, GATES, PREPARED, SHADOWS, TRAINING, Topic
from inspectbus.errors import BusAway, NotAllowed, NotFound, NotPossibleNow

DELIVERY_LIMIT = 20
"""The last net only: every return counts, also of messages that were merely fetched by a worker that stopped."""
DEFAULT_EXCHANGE = r"amq\.default"
_NEWS = rf"{re.escape(naming.NEWS_PREFIX)}.*"
"""The queues that readers of news make for themselves."""


@dataclass(frozen=True)
class Queue:
    name: str
    arguments: dict[str, Any]
    bindings: tuple[tuple[str, str], ...] = ()
    """Exchange and routing key."""


@dataclass(frozen=True)
class Policy:
    """How much the queues of a pattern hold; at the limit the publisher is refused and waits."""

    name: str
    pattern: str
    messages: int
    bytes: int
    priority: int = 0


POLICIES = (
    Policy("inspectbus-live", r"^inspectbus\..*\.live$", 10_000, 2 * 1024**3, 1),
    Policy("inspectbus-backlog", r"^inspectbus\..*\.backlog$", 200_000, 8 * 1024**3, 1),
    Policy("inspectbus-record", r"^inspectbus\.(results|outcomes)$", 100_000, 1024**3, 1),
    # Whoever finds it full drops what it has: nobody waits for it.
    Policy("inspectbus-shadows", r"^inspectbus\.shadows$", 100_000, 256 * 1024**2, 1),
    Policy("inspectbus-training", r"^inspectbus\.training$", 10_000, 64 * 1024**2, 1),
    Policy("inspectbus-aside", r"^inspectbus\..*\.(retry|quarantine)$", 10_000, 2 * 1024**3, 2),
    Policy("inspectbus-dead", r"^inspectbus\.dead$", 100_000, 8 * 1024**3, 1),
    # A reader bounds its own queue; whoever may make one there might not.
    Policy("inspectbus-news", r"^inspectbus\.news\.", 10_000, 256 * 1024**2, 1),
)


@dataclass(frozen=True)
class User:
    """What a broker's user may do: regular expressions, as RabbitMQ matches them."""

    name: str
    configure: str = "^$"
    write: str = "^$"
    read: str = "^$"
    topics: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Exchange -> routing keys it may publish with, and those it may bind to."""


def queues() -> list[Queue]:
    """Every queue that is made once; news queues are made by who reads them."""
    made: list[Queue] = []
    for topic in ALL:
        for group in topic.groups:
            for lane in Lane if topic.laned else (Lane.LIVE,):
                made += _work_queue(topic, group, lane)
    return made


def users(stations: Iterable[tuple[str, str]] = ()) -> list[User]:
    """One for each service, one for each station (line, station), one for readers of news and one for people.

    A station's user publishes frames and gate outcomes under its own key and nothing else, and hears its own decisions.
    """
    taken = [
        _worker("preprocessing", FRAMES, (PREPARED, DECISIONS)),
        _worker("inference", PREPARED, (DECISIONS, SHADOWS), hears=(EVENTS,)),
    ]
    results = "|".join(_queues_of(topic) for topic in (DECISIONS, GATES, SHADOWS))
    taken.append(
        User("inspectbus-results", write=_any(DEFAULT_EXCHANGE, _name(DECISIONS), _name(DEAD)), read=_any(results))
    )
    taken.append(_worker("training", TRAINING, (TRAINING, EVENTS)))
    taken.append(
        User(
            "inspectbus-acquisition",
            configure=_any(_NEWS),
            write=_any(_name(FRAMES), _name(GATES), _NEWS),
            read=_any(_name(DECISIONS), _NEWS),
        )
    )
    taken.append(
        User(
            "inspectbus-reader",
            configure=_any(_NEWS),
            write=_any(_NEWS),
            read=_any(_name(DECISIONS), _name(GATES), _name(EVENTS), _NEWS),
        )
    )
    everything = r"inspectbus\..*"
    taken.append(User("inspectbus-operator", _any(_NEWS), _any(everything, DEFAULT_EXCHANGE), _any(everything)))
    for line, station in stations:
        own = rf"{re.escape(line)}\.{re.escape(station)}"
        topics = {
            FRAMES.name: (rf"^(live|backlog)\.{own}$", "^$"),
            GATES.name: (rf"^{own}$", "^$"),
            DECISIONS.name: ("^$", rf"^{own}\.#$"),
        }
        taken.append(
            User(
                f"{STATION_USER}{line}.{station}",
                configure=_any(_NEWS),
                write=_any(_name(FRAMES), _name(GATES), _NEWS),
                read=_any(_name(DECISIONS), _NEWS),
                topics=topics,
            )
        )
    return taken


def definitions(
    vhost: str = "/", passwords: Mapping[str, str] | None = None, stations: Iterable[tuple[str, str]] = ()
) -> dict[str, Any]:
    """What `rabbitmqctl import_definitions` and `load_definitions` take. Users without a password are left out."""
    passwords = passwords or {}
    known = [user for user in users(stations) if user.name in passwords]
    return {
        "vhosts": [{"name": vhost}],
        "users": [
            {
                "name": user.name,
                "password_hash": password_hash(passwords[user.name]),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "",
            }
            for user in known
        ],
        "permissions": [
            {"user": user.name, "vhost": vhost, "configure": user.configure, "write": user.write, "read": user.read}
            for user in known
        ],
        "topic_permissions": [
            {"user": user.name, "vhost": vhost, "exchange": exchange, "write": write, "read": read}
            for user in known
            for exchange, (write, read) in user.topics.items()
        ],
        "policies": [
            {
                "vhost": vhost,
                "name": policy.name,
                "pattern": policy.pattern,
                "apply-to": "queues",
                "priority": policy.priority,
                "definition": {"max-length": policy.messages, "max-length-bytes": policy.bytes},
            }
            for policy in POLICIES
        ],
        "exchanges": [
            {
                "name": topic.name,
                "vhost": vhost,
                "type": "topic",
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for topic in ALL
        ],
        "queues": [
            {
                "name": queue.name,
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                "arguments": queue.arguments,
            }
            for queue in queues()
        ],
        "bindings": [
            {
                "source": exchange,
                "vhost": vhost,
                "destination": queue.name,
                "destination_type": "queue",
                "routing_key": key,
                "arguments": {},
            }
            for queue in queues()
            for exchange, key in queue.bindings
        ],
    }


def declare(addresses: Addresses) -> list[str]:
    """Makes exchanges, queues and bindings where they are missing; gives the queues' names.

    Raises NotPossibleNow naming a queue or exchange that exists with other arguments, NotAllowed when the user may not
    make them, BusAway when no node answers.
    """
    with connected(addresses) as connection:
        made = queues()
        with explained(connection) as channel:
            for topic in ALL:
                channel.exchange_declare(topic.name, "topic", durable=True)
            for queue in made:
                channel.queue_declare(queue.name, durable=True, arguments=queue.arguments)
                for exchange, key in queue.bindings:
                    channel.queue_bind(queue.name, exchange, key)
    return [queue.name for queue in made]


def password_hash(password: str) -> str:
    """Salted, as RabbitMQ's rabbit_password_hashing_sha256 stores it."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _work_queue(topic: Topic, group: str, lane: Lane) -> Iterator[Queue]:
    name = naming.work_queue(topic, group, lane)
    key = f"{lane}.#" if topic.laned else "#"
    if topic is DEAD:
        yield Queue(name, _quorum(), ((topic.name, key),))
        return
    to_dead = _quorum() | _dead_lettering(DEAD.name, name) | {"x-delivery-limit": DELIVERY_LIMIT}
    yield Queue(name, to_dead, ((topic.name, key),))
    yield Queue(naming.retry_queue(name), _quorum() | _dead_lettering("", name))
    yield Queue(naming.quarantine_queue(name), to_dead)


def _quorum() -> dict[str, Any]:
    # Refusing is the only overflow that loses nothing, and the only one under which dead-lettering does not either.
    return {"x-queue-type": "quorum", "x-overflow": "reject-publish"}


def _dead_lettering(exchange: str, key: str) -> dict[str, Any]:
    return {
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-routing-key": key,
        "x-dead-letter-strategy": "at-least-once",
    }


def _worker(group: str, takes: Topic, gives: tuple[Topic, ...], hears: tuple[Topic, ...] = ()) -> User:
    # The default exchange leads to its .retry and .quarantine. Who hears news makes, binds and reads its own queue.
    news = [_NEWS] if hears else []
    return User(
        f"inspectbus-{group}",
        configure=_any(*news) if news else "^$",
        write=_any(DEFAULT_EXCHANGE, *(_name(topic) for topic in (*gives, DEAD)), *news),
        read=_any(_queues_of(takes), *(_name(topic) for topic in hears), *news),
    )


def _queues_of(topic: Topic) -> str:
    return "|".join(rf"inspectbus\.{group}(\..*)?" for group in topic.groups)


def _name(topic: Topic) -> str:
    return re.escape(topic.name)


def _any(*patterns: str) -> str:
    return f"^({'|'.join(patterns)})$"


def connected(addresses: Addresses) -> pika.BlockingConnection:
    """A connection for one task, to the first node that answers. Raises NotAllowed, BusAway."""
    try:
        return pika.BlockingConnection(list(addresses.parameters))
    except ProbableAuthenticationError:
        raise NotAllowed(
            f"the broker refuses user {addresses.user!r}: wrong name or password", field="bus_url"
        ) from None
    except ProbableAccessDeniedError:
        raise NotAllowed(
            f"the broker has no vhost {addresses.vhost!r} for user {addresses.user!r}", field="bus_url"
        ) from None
    except (AMQPError, AMQPConnectorException, OSError) as error:
        if "ACCESS_REFUSED" in str(error):
            raise NotAllowed(f"the broker refuses user {addresses.user!r}", field="bus_url") from None
        raise BusAway(no_answer(", ".join(addresses.nodes), error), field="bus_url") from None


def no_answer(nodes: str, error: BaseException) -> str:
    """Why nobody answers, as far as the innermost error tells: no such name, no TLS there, or just silence."""
    waiting: list[BaseException] = [error]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, socket.gaierror):
            return f"no broker answers at {nodes}: the host's name does not resolve"
        if isinstance(inner, ssl.SSLCertVerificationError):
            return f"the broker at {nodes} is not trusted: {inner.verify_message}"
        if isinstance(inner, ssl.SSLError):
            return f"no TLS with {nodes}: is it a plaintext port? use amqp://, or its amqps port ({inner.reason})"
        causes = (*inner.args, *getattr(inner, "exceptions", ()), getattr(inner, "exception", None))
        waiting += [cause for cause in causes if isinstance(cause, BaseException)]
    return f"no broker answers at {nodes}"


@contextmanager
def explained(connection: pika.BlockingConnection) -> Iterator[BlockingChannel]:
    """A channel whose refusals are told in our words; the broker's name the queue and the argument."""
    try:
        yield connection.channel()
    except ChannelClosedByBroker as error:
        if error.reply_code == 403:
            raise NotAllowed(f"the broker's user may not do that: {error.reply_text}", field="bus_url") from None
        if error.reply_code == 404:
            raise NotFound(f"{error.reply_text}: run `inspectbus bus declare`", field="bus_url") from None
        raise NotPossibleNow(
            f"{error.reply_text}; delete it when it is empty, or use another vhost", field="bus_url"
        ) from None
    except AMQPConnectionError as error:
        raise BusAway(f"the broker went away: {error}", field="bus_url") from None
