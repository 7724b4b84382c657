"""A dead letter: what a parked message says of itself, and the message it becomes when it is sent again.

    inspectbus.dead ─> Letter: whose, from where, why ─> replayed: the same, one revision later, on the backlog lane

Its headers were written by whoever parked it: a service, with the error; or the broker itself at the delivery limit,
which knows no error and changes the routing key.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, cast

import pika
from google.protobuf.message import DecodeError

from inspectbus.api.v1.decision_pb2 import Decision
from inspectbus.api.v1.frame_pb2 import Frame
from inspectbus.api.v1.gate_pb2 import GateOutcome
from inspectbus.api.v1.prepared_frame_pb2 import PreparedFrame
from inspectbus.api.v1.shadow_pb2 import ShadowDecision
from inspectbus.bus.contract import Lane, Message
from inspectbus.bus.rabbitmq import naming, wire
from inspectbus.bus.rabbitmq.topology import DELIVERY_LIMIT
from inspectbus.bus.topics import ALL, DEAD, DECISIONS, FRAMES, GATES, PREPARED, SHADOWS, Topic
from inspectbus.errors import BadField, NotPossibleNow

Content = Frame | PreparedFrame | Decision | GateOutcome | ShadowDecision

_BODIES: dict[Topic, type[Content]] = {
    FRAMES: Frame,
    PREPARED: PreparedFrame,
    DECISIONS: Decision,
    GATES: GateOutcome,
    SHADOWS: ShadowDecision,
}
_BROKERS_REASONS = {
    "delivery_limit": f"delivery limit: delivered {DELIVERY_LIMIT + 1} times, and each time its worker went away",
    "maxlen": "its queue was full",
    "rejected": "refused by a reader of its queue",
    "expired": "it waited too long in its queue",
}
_MAX_KEY_BYTES = 255
_MAX_REVISION = 2**32 - 1


@dataclass(frozen=True)
class Letter:
    """One message of the dead queue. Nothing in it is believed: texts may hold anything."""

    id: str
    """Of this very letter: a hash, the same whenever it is looked at."""
    frame_id: str
    """Empty when the letter names none."""
    line: str
    station: str
    topic: str
    """Empty when it was in no queue of ours."""
    queue: str
    """Where it died."""
    reason: str
    attempts: int
    first_failed: str
    """RFC 3339; empty when nobody noted it."""
    last_failed: str
    size: int
    """Of the body, bytes."""
    key: tuple[str, ...] = field(repr=False)
    """Words of the routing key it was first published with, the lane included."""
    properties: pika.BasicProperties = field(repr=False)
    body: bytes = field(repr=False)
    content: Content | None = field(repr=False)
    """The body, when it can be read and names a frame."""

    @property
    def names(self) -> tuple[str, str]:
        """What a person may call it by: its own id, and its frame's."""
        return self.id, self.frame_id

    def replayed(self, *, unchanged: bool = False) -> tuple[Topic, Message]:
        """The topic it goes to again, and what is sent: the content one revision later, without its failures.

        A body that cannot be read goes as it is, if `unchanged` allows that. Raises NotPossibleNow when nothing can be
        sent, saying why.
        """
        topic = next((topic for topic in ALL if topic.name == self.topic), None)
        if topic is None:
            raise NotPossibleNow(f"it came from {self.queue[:80]!r}, which is no queue of ours", field="id")
        if self.content is None and not unchanged:
            raise NotPossibleNow(f"it cannot be read as a {topic.body}: see --unchanged", field="id")
        key = ".".join(self.key)
        words = self.key[1:] if topic.laned else self.key
        if not all(words) or len(words) < 2 or len(key.encode()) > _MAX_KEY_BYTES:
            raise NotPossibleNow("it does not say which line and station it is of", field="id")
        if self.properties.user_id:
            # The broker knows who sent it, whatever its headers say; what we parked was looked at by us.
            try:
                wire.check_user(topic, self.properties.user_id, key)
            except BadField as foreign:
                raise NotPossibleNow(foreign.message, field="id") from None
        message = wire.message_of(topic, key, self.properties, self.body)
        return topic, replace(
            message,
            body=self.body if self.content is None else _revised(self.content).SerializeToString(),
            key=words,
            lane=Lane.BACKLOG if topic.laned else Lane.LIVE,
            # One that named no moment is of now: it would only be parked again.
            time_s=message.time_s or time.time(),
            headers={name: text for name, text in message.headers.items() if name not in _FAILURES},
        )


_FAILURES = {
    name.removeprefix("inspectbus:") for name in (wire.ERROR, wire.ATTEMPTS, wire.FIRST_FAILED, wire.LAST_FAILED)
}


def read(routing_key: str, properties: pika.BasicProperties, body: bytes) -> Letter:
    """Whatever rests in the dead queue makes a letter."""
    headers: Mapping[str, Any] = properties.headers or {}
    origin = naming.origin(routing_key)
    topic = next((topic for topic in _BODIES if topic.name == origin[0] and topic is not DEAD), None)
    content = _parsed(topic, body)
    death = _death(headers)
    # When the broker put it here from a topic's exchange, nobody but its sender can have written our own header.
    first = _first_key(death)
    known = first if first and not naming.is_queue(first) else headers.get(wire.KEY) or first
    key = tuple(str(known or "").split("."))
    line, station = _whose(content, key, laned=topic is not None and topic.laned)
    attempts, _ = wire.attempts(properties)
    died_at = _rfc3339(death.get("time"))
    first_failed, last_failed = (str(headers.get(name) or died_at) for name in (wire.FIRST_FAILED, wire.LAST_FAILED))
    reason = str(headers.get(wire.ERROR) or "nobody noted why")
    if death:
        # A failure noted before it is an older story.
        told = str(death.get("reason"))
        reason, last_failed = _BROKERS_REASONS.get(told, told), died_at or last_failed
        attempts += DELIVERY_LIMIT + 1 if told == "delivery_limit" else 1
    return Letter(
        id=_hash(routing_key, str(properties.message_id), last_failed, body),
        frame_id=_frame_of(content) or str(headers.get("cloudEvents:subject") or ""),
        line=line,
        station=station,
        topic=topic.name if topic else "",
        queue=routing_key,
        reason=reason,
        attempts=attempts,
        first_failed=first_failed,
        last_failed=last_failed,
        size=len(body),
        key=key,
        properties=properties,
        body=body,
        content=content,
    )


def image_of(content: Content | None) -> Frame | None:
    """The frame whose original image the content carries or claims; None where it has none."""
    match content:
        case Frame():
            return content
        case PreparedFrame():
            return content.frame
        case _:
            return None


def _parsed(topic: Topic | None, body: bytes) -> Content | None:
    if topic is None:
        return None
    try:
        content = _BODIES[topic].FromString(body)
    except DecodeError:
        return None
    # Many bytes can be read as a message by chance; one without a frame is none of ours.
    return content if _frame_of(content) else None


def _frame_of(content: Content | None) -> str:
    if content is None:
        return ""
    return content.frame.frame_id if isinstance(content, PreparedFrame) else content.frame_id


def _whose(content: Content | None, key: tuple[str, ...], *, laned: bool) -> tuple[str, str]:
    if content is not None:
        of = content.frame if isinstance(content, PreparedFrame) else content
        return of.line, of.station
    line, station = (*(key[1:] if laned else key), "", "")[:2]
    return line, station


def _revised(content: Content) -> Content:
    revised = type(content)()
    cast(Any, revised).CopyFrom(content)
    match revised:
        case PreparedFrame():
            revised.frame.revision = min(revised.frame.revision + 1, _MAX_REVISION)
        case Frame() | Decision():
            revised.revision = min(revised.revision + 1, _MAX_REVISION)
    return revised


def _death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """The broker's own entry, when it was the broker that put it here: a return from .retry is one too, but no end."""
    deaths = headers.get("x-death")
    for death in deaths if isinstance(deaths, list) else []:
        if isinstance(death, dict) and not str(death.get("queue", "")).endswith(".retry"):
            return death
    return {}


def _first_key(death: Mapping[str, Any]) -> str:
    keys = death.get("routing-keys")
    return str(keys[0]) if isinstance(keys, Sequence) and keys and not isinstance(keys, str) else ""


def _rfc3339(moment: object) -> str:
    return wire.rfc3339(moment.timestamp()) if isinstance(moment, datetime) else ""


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:12]
