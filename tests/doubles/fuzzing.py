"""Calls that nobody in their right mind makes: every method there is, with random messages and bytes that are none.

.proto files ─> services, methods ─> random requests ─> raw bytes on a real channel ─> the status that came
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

PROTOS = Path(__file__).parents[2] / "protos"
FAULTS = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
"""What a caller must never be able to cause."""
PATIENCE_S = 20.0
WATCH_S = 0.15
"""How long a stream that may never end is listened to."""
MOST_ANSWERS = 20
DEPTH = 3

_F = FieldDescriptor


def _png(side: int = 32) -> bytes:
    """A grey picture."""
    rows = b"".join(b"\0" + bytes((x * y) % 251 for x in range(side)) for y in range(side))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


PNG = _png()
# Words that get a request past the first question, so that the second is asked too.
WORDS = (
    "",
    "line-1",
    "top",
    "inspect",
    "default",
    "tiny",
    "production",
    "elpv",
    "torch",
    "name: default\nmodel: tiny\n",
)
BYTES = (b"", PNG, PNG[:60], bytes(32 * 32 * 3), bytes(32))
NUMBERS = (0, 1, -1, 3, 32, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1)
_BOUNDS = {
    _F.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    _F.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    _F.CPPTYPE_UINT32: (0, 2**32 - 1),
    _F.CPPTYPE_UINT64: (0, 2**64 - 1),
    _F.CPPTYPE_ENUM: (-2, 12),
}


def methods() -> Iterator[MethodDescriptor]:
    """Of every contract in protos/, and of the two that every server answers."""
    contracts: list[Any] = [health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR]
    for file in sorted(PROTOS.rglob("*.proto")):
        module = ".".join(file.relative_to(PROTOS).with_suffix("").parts)
        contracts.append(import_module(f"{module}_pb2").DESCRIPTOR)
    for contract in contracts:
        for service in contract.services_by_name.values():
            yield from service.methods


@dataclass
class Fuzzer:
    """Calls over one channel, and counts the statuses that came."""

    channel: grpc.Channel
    codes: Counter[grpc.StatusCode] = field(default_factory=Counter)

    def attack(self, method: MethodDescriptor, examples: int, *, same_each_time: bool = False) -> None:
        """Calls `examples` times with messages and as often with broken bytes. Fails on the first fault, with the
        smallest request that causes it."""
        valid = messages(method.input_type).map(lambda message: bytes(message.SerializePartialToString()))
        count = st.integers(0, 3) if method.client_streaming else st.just(1)

        def lists(bodies: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[bytes]]:
            return count.flatmap(lambda number: st.lists(bodies, min_size=number, max_size=number))

        for bodies in (valid, st.one_of(st.binary(max_size=300), valid.flatmap(_spoilt))):

            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=same_each_time,
                # Explaining a fault would ask for it hundreds of times.
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            )
            @given(lists(bodies))
            def call(requests: list[bytes]) -> None:
                code, words = self.call(method, requests)
                hung = code is grpc.StatusCode.DEADLINE_EXCEEDED and not _endless(method)
                assert code not in FAULTS, f"{method.full_name}: {code.name} {words}"
                assert not hung, f"{method.full_name} gave no answer within {PATIENCE_S:.0f} s"

            call()

    def call(self, method: MethodDescriptor, requests: list[bytes]) -> tuple[grpc.StatusCode, str]:
        name = f"/{method.containing_service.full_name}/{method.name}"
        asked: Any = iter(requests) if method.client_streaming else requests[0]
        code, words = grpc.StatusCode.OK, ""
        try:
            if method.server_streaming:
                make = self.channel.stream_stream if method.client_streaming else self.channel.unary_stream
                answers: Any = make(name)(asked, timeout=WATCH_S if _endless(method) else PATIENCE_S)
                for number, _ in enumerate(answers):
                    if number == MOST_ANSWERS:
                        answers.cancel()
            else:
                unary: Any = self.channel.stream_unary if method.client_streaming else self.channel.unary_unary
                unary(name)(asked, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            code, words = error.code(), error.details() or ""
        self.codes[code] += 1
        return code, words


def _endless(method: MethodDescriptor) -> bool:
    """Whether its answers may go on after the last request."""
    return method.server_streaming and not method.client_streaming


def messages(kind: Descriptor, depth: int = DEPTH) -> st.SearchStrategy[Any]:
    """Messages of the kind: any field set or not, by a value its type allows."""
    known = {each.name: _values(each, depth) for each in kind.fields if depth or each.message_type is None}
    return st.fixed_dictionaries({}, optional=known).map(lambda values: _made(kind, values))


def _made(kind: Descriptor, values: dict[str, Any]) -> Any:
    message = GetMessageClass(kind)()
    for name, value in values.items():
        each = kind.fields_by_name[name]
        if each.message_type is not None and each.message_type.GetOptions().map_entry:
            for entry in value:
                if each.message_type.fields_by_name["value"].message_type is not None:
                    getattr(message, name)[entry.key].CopyFrom(entry.value)
                else:
                    getattr(message, name)[entry.key] = entry.value
        elif each.is_repeated:
            getattr(message, name).extend(value)
        elif each.message_type is not None:
            getattr(message, name).CopyFrom(value)
        else:
            setattr(message, name, value)
    return message


def _values(each: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if each.message_type is not None:
        value = messages(each.message_type, depth - 1)
    elif each.cpp_type == _F.CPPTYPE_STRING:
        value = _bytes() if each.type == _F.TYPE_BYTES else _text()
    elif each.cpp_type == _F.CPPTYPE_BOOL:
        value = st.booleans()
    elif each.cpp_type in (_F.CPPTYPE_FLOAT, _F.CPPTYPE_DOUBLE):
        value = st.floats(width=32)
    else:
        low, high = _BOUNDS[each.cpp_type]
        edges = [number for number in NUMBERS if low <= number <= high]
        value = st.one_of(st.sampled_from(edges), st.integers(low, high))
    return st.lists(value, max_size=3) if each.is_repeated else value


def _text() -> st.SearchStrategy[str]:
    # Without halves of characters, which no message can hold.
    return st.one_of(st.sampled_from(WORDS), st.text(st.characters(exclude_categories=["Cs"]), max_size=40))


def _bytes() -> st.SearchStrategy[bytes]:
    return st.one_of(st.sampled_from(BYTES), st.binary(max_size=200))


def _spoilt(body: bytes) -> st.SearchStrategy[bytes]:
    """Cut short, or with one byte changed."""
    if not body:
        return st.binary(min_size=1, max_size=8)
    places = st.integers(0, len(body) - 1)
    cut = places.map(lambda at: body[:at])
    changed = st.tuples(places, st.integers(0, 255)).map(
        lambda how: body[: how[0]] + bytes([how[1]]) + body[how[0] + 1 :]
    )
    return st.one_of(cut, changed)
