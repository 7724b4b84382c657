"""From a message of the contract to a value, and from words back to what a request takes.

message ─ read(kind) ─> value: enum ─> word, Timestamp ─> aware datetime, Duration ─> timedelta, unset ─> None
"""

from __future__ import annotations

import functools
import types
from datetime import UTC, datetime
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from inspectbus.errors import BadField

V = TypeVar("V")


def read(kind: type[V], message: Message) -> V:
    """The value a message says."""
    hints = _hints(kind)  # type: ignore[arg-type] # mypy takes type[V] for unhashable
    return kind(**{name: _plain(message, name, hint) for name, hint in hints.items()})


def number(message: Message, field_name: str, word: str) -> int:
    """The enum number a word stands for in a field. Raises BadField with the words there are."""
    descriptor = message.DESCRIPTOR.fields_by_name[field_name].enum_type
    words = _words(descriptor)
    for value, known in words.items():
        if known == word.upper().replace("-", "_"):
            return value
    raise BadField(f"{word!r} is not one of {', '.join(words.values())}", field=field_name)


def timestamp(moment: datetime, field_name: str) -> Timestamp:
    """Raises BadField for a time without a zone: guessing one would shift records by hours, silently."""
    if moment.tzinfo is None:
        raise BadField(f"{moment.isoformat()} has no time zone", field=field_name)
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _plain(message: Message, name: str, hint: Any) -> Any:
    descriptor = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    if get_origin(hint) is dict:
        return dict(value)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return tuple(read(item, each) if isinstance(each, Message) else each for each in value)
    optional = get_origin(hint) in (Union, types.UnionType)
    if optional and descriptor.has_presence and not message.HasField(name):
        return None
    if descriptor.enum_type is not None:
        kind = get_args(hint)[0] if optional else hint
        return None if optional and value == 0 else kind(_words(descriptor.enum_type).get(value, "UNKNOWN"))
    if isinstance(value, Timestamp):
        return value.ToDatetime(tzinfo=UTC)
    if isinstance(value, Duration):
        return value.ToTimedelta()
    if isinstance(value, Message):
        return read(get_args(hint)[0] if optional else hint, value)
    return value


@functools.cache
def _words(descriptor: EnumDescriptor) -> dict[int, str]:
    """3 -> 'HOLD' for VERDICT_HOLD; the unspecified zero has no word."""
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix) for value in descriptor.values if value.number != 0}
