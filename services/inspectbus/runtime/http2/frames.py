"""Frames as RFC 9113 writes them: a head of nine bytes (4.1), and a payload by kind (6)."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says first (3.4)."""
HEAD_BYTES = 9
LARGEST_WINDOW_BYTES = (1 << 31) - 1


class Kind(IntEnum):
    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag(IntEnum):
    ACK = 0x1
    END_STREAM = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20


class Setting(IntEnum):
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Code(IntEnum):
    """Why a stream or a connection ends (7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Violation(Exception):
    """The client does not keep to the protocol: the connection ends."""

    def __init__(self, code: Code, what: str) -> None:
        super().__init__(what)
        self.code = code


def written(kind: Kind, payload: bytes = b"", stream_id: int = 0, flags: int = 0) -> bytes:
    return ((len(payload) << 16 | kind << 8 | flags) << 32 | stream_id).to_bytes(HEAD_BYTES) + payload


def without_padding(payload: memoryview, flags: int) -> memoryview:
    """Raises Violation."""
    if not flags & Flag.PADDED:
        return payload
    if not payload or len(payload) <= payload[0]:
        raise Violation(Code.PROTOCOL_ERROR, "a frame has more padding than bytes")
    return payload[1 : len(payload) - payload[0]]


def settings_of(stream_id: int, payload: bytes, flags: int) -> Iterator[tuple[int, int]]:
    """Each setting and its value. Raises Violation."""
    if stream_id or len(payload) % 6 or (flags & Flag.ACK and payload):
        raise Violation(Code.FRAME_SIZE_ERROR, "a SETTINGS frame has no call, and six bytes for each")
    for at in range(0, len(payload), 6):
        setting, value = int.from_bytes(payload[at : at + 2]), int.from_bytes(payload[at + 2 : at + 6])
        if setting == Setting.INITIAL_WINDOW_SIZE and value > LARGEST_WINDOW_BYTES:
            raise Violation(Code.FLOW_CONTROL_ERROR, "a window grows beyond what one may be")
        if (setting == Setting.MAX_FRAME_SIZE and not 1 << 14 <= value < 1 << 24) or (
            setting == Setting.ENABLE_PUSH and value > 1
        ):
            raise Violation(Code.PROTOCOL_ERROR, f"setting {setting} cannot be {value}")
        yield setting, value
