"""Messages as AMQP carries them: CloudEvents attributes as headers, protobuf as body.

What arrives here was sent by anybody who has a password: nothing is believed that was not looked at.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pika

from inspectbus.bus.contract import Lane, Message
from inspectbus.bus.rabbitmq import naming
from inspectbus.bus.topics import DEAD, FRAMES, GATES, Topic
from inspectbus.errors import BadField

CONTENT_TYPE = "application/protobuf"
_CLOUD = "cloudEvents:"
_OURS = "inspectbus:"
STATION_USER = "inspectbus-station-"
"""Begins the name of a station's user; line and station follow."""
KEY = _OURS + "key"
"""The routing key as it was first published: a way by retry, quarantine or dead letters changes the broker's own."""
ATTEMPTS = _OURS + "attempts"
"""Failures that a handler had with the message so far."""
FIRST_FAILED = _OURS + "first-failed"
LAST_FAILED = _OURS + "last-failed"
ERROR = _OURS + "error"
MAX_HEADER_CHARS = 1000
"""Of an error's text."""
MAX_HEADERS_BYTES = 100_000
"""As they are encoded: all travel in one AMQP frame of 128 KiB, with room for what we note. Whoever sent us more finds
them shortened on the copy."""
_SENT_ON = frozenset({"CC", "BCC"})
"""Headers that make the broker deliver a message to more queues: on a copy of ours it would do so with our rights."""
_LOST = "x-delivery-count"


def properties(topic: Topic, message: Message, user: str) -> pika.BasicProperties:
    """Persistent, with an id that is the same each time the same message is sent. `user` is the connection's own, which
    the broker makes sure of."""
    headers: dict[str, Any] = {
        _CLOUD + "specversion": "1.0",
        _CLOUD + "id": message.id,
        _CLOUD + "source": message.source,
        _CLOUD + "type": topic.body,
        _CLOUD + "subject": message.subject,
        _CLOUD + "time": rfc3339(message.time_s),
        **message.headers,
    }
    return pika.BasicProperties(
        content_type=CONTENT_TYPE, delivery_mode=2, message_id=message.id[:255], user_id=user, headers=headers
    )


def message_of(topic: Topic, routing_key: str, properties: pika.BasicProperties, body: bytes) -> Message:
    """What can be known of a message, whether or not `check` is content with it."""
    headers: Mapping[str, Any] = properties.headers or {}
    # Only what came by a queue's name, which no station may send to, says itself what its key was.
    key = str(headers.get(KEY, routing_key)) if naming.is_queue(routing_key) else routing_key
    lane, words = Lane.LIVE, tuple(key.split("."))
    if topic is DEAD:
        words = naming.origin(routing_key)
    elif topic.laned:
        lane, words = (Lane.BACKLOG if words[0] == Lane.BACKLOG else Lane.LIVE), words[1:]
    return Message(
        body=body,
        key=words,
        source=str(headers.get(_CLOUD + "source", "")),
        subject=str(headers.get(_CLOUD + "subject", "")),
        lane=lane,
        id=str(headers.get(_CLOUD + "id", properties.message_id or "")),
        time_s=_seconds(headers.get(_CLOUD + "time")) or 0.0,
        headers=_words(headers),
    )


def check(
    topic: Topic,
    routing_key: str,
    properties: pika.BasicProperties,
    body: bytes,
    *,
    body_bytes: int,
    ahead_s: float,
) -> None:
    """Raises BadField with what is wrong, when it is no message of this topic that we would have sent."""
    headers: Mapping[str, Any] = properties.headers or {}
    if topic in (FRAMES, GATES) and not naming.is_queue(routing_key):
        check_user(topic, properties.user_id or "", routing_key)
    if properties.content_type != CONTENT_TYPE:
        raise BadField(f"content type {properties.content_type!r} is not {CONTENT_TYPE}", field="content_type")
    for name in ("id", "source", "type", "time"):
        if not isinstance(headers.get(_CLOUD + name), str):
            raise BadField(f"header {_CLOUD}{name} is missing", field=_CLOUD + name)
    if topic.body and headers[_CLOUD + "type"] != topic.body:
        raise BadField(f"a {headers[_CLOUD + 'type'][:100]} is no {topic.body}", field=_CLOUD + "type")
    made_s = _seconds(headers[_CLOUD + "time"])
    if made_s is None:
        raise BadField(f"{headers[_CLOUD + 'time'][:60]!r} is no time", field=_CLOUD + "time")
    if made_s > time.time() + ahead_s:
        raise BadField(
            f"made at {headers[_CLOUD + 'time'][:40]}, which is in the future: is the sender's clock wrong?",
            field=_CLOUD + "time",
        )
    if len(body) > body_bytes:
        raise BadField(f"the body has {len(body)} bytes, at most {body_bytes} are worked on", field="body")


def check_user(topic: Topic, user: str, routing_key: str) -> None:
    """A station may send to exchanges of its own and bind them to ours, so its rights on keys are not enough.

    Raises BadField for a user who may not send under that key, and for none.
    """
    if not user:
        raise BadField("no user_id: whoever publishes frames and outcomes says who it is", field="user_id")
    own = user.removeprefix(STATION_USER)
    keys = [f"{lane}.{own}" for lane in Lane] if topic.laned else [own]
    if own != user and routing_key not in keys:
        raise BadField(f"{user} may not speak for {routing_key}", field="user_id")


def believed(properties: pika.BasicProperties, routing_key: str, redelivered: bool) -> pika.BasicProperties:
    """The message's own headers, without marks that only we and the broker may set.

    Under a queue's name come our own copies, and their marks are ours. Under any other key comes what anybody sent: its
    count of deliveries is the broker's once it has been given back, and the sender's invention before.
    """
    headers: Mapping[Any, Any] = properties.headers or {}
    if headers and not naming.is_queue(routing_key):
        properties.headers = {
            name: value
            for name, value in headers.items()
            if not str(name).startswith((_OURS, "x-")) or (name == _LOST and redelivered)
        }
    return properties


def attempts(properties: pika.BasicProperties) -> tuple[int, int]:
    """Failures of handlers, and deliveries that were lost with their worker or given back."""
    headers: Mapping[str, Any] = properties.headers or {}
    return _count(headers.get(ATTEMPTS)), _count(headers.get(_LOST))


def again(
    properties: pika.BasicProperties, routing_key: str, *, error: BaseException | None = None, delay_s: float = 0.0
) -> pika.BasicProperties:
    """For the copy of a message that goes another way: the same, with its key kept and the failure noted."""
    headers: dict[str, Any] = {
        name: value
        for name, value in (properties.headers or {}).items()
        if not str(name).startswith("x-") and name not in _SENT_ON
    }
    headers.setdefault(KEY, routing_key)
    if error is not None:
        now = rfc3339(time.time())
        headers[ATTEMPTS] = _count(headers.get(ATTEMPTS)) + 1
        headers.setdefault(FIRST_FAILED, now)
        headers[LAST_FAILED] = now
        headers[ERROR] = f"{type(error).__name__}: {error}"[:MAX_HEADER_CHARS]
    if sum(map(len, pika.BasicProperties(headers=headers).encode())) > MAX_HEADERS_BYTES:
        # The broker ends the connection over more than a frame of headers, and nothing else would be sent any more.
        ours = {name: value for name, value in headers.items() if str(name).startswith((_CLOUD, _OURS))}
        headers = {name: value[:200] if isinstance(value, str) else 0 for name, value in list(ours.items())[:32]}
    return pika.BasicProperties(
        content_type=properties.content_type,
        delivery_mode=2,
        message_id=properties.message_id,
        headers=headers,
        expiration=str(int(delay_s * 1000)) if delay_s else None,
    )


def rfc3339(time_s: float) -> str:
    """Nine decimals, so that the float comes back as it was."""
    whole = datetime.fromtimestamp(int(time_s), UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}{f'{time_s % 1:.9f}'[1:]}Z"


def _seconds(text: object) -> float | None:
    """Seconds since the epoch of an RFC 3339 time; None when it is none."""
    try:
        whole, dot, fraction = str(text).removesuffix("Z").partition(".")
        if dot and not (fraction.isascii() and fraction.isdigit()):
            return None
        seconds = datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp()
        return float(f"{int(seconds)}.{fraction or 0}")
    except (ValueError, OverflowError):
        return None


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1_000_000 else 0


def _words(headers: Mapping[str, Any]) -> dict[str, str]:
    """What travels with a message for its reader. A dead letter's are those of the contract."""
    words = {
        name: value
        for name, value in headers.items()
        # pika gives bytes where a name or a value is no UTF-8.
        if isinstance(name, str) and isinstance(value, str) and not name.startswith((_CLOUD, _OURS, "x-"))
    }
    for name in (ERROR, ATTEMPTS, FIRST_FAILED, LAST_FAILED):
        if name in headers:
            words[name.removeprefix(_OURS)] = str(headers[name])
    return words
