"""A call's headers, and those of its answer: which are no request of HTTP/2, and how ours are written.

HPACK (RFC 7541) is hpack's. What we say refers to no table that the other side would have to keep, so that the same
words are always the same bytes: those of nearly every call are made once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from hpack import Encoder, NeverIndexedHeaderTuple

Headers = list[tuple[bytes, bytes]]

_NEEDED = {b":method", b":scheme", b":path"}
_PSEUDO = _NEEDED | {b":authority"}
_OF_CONNECTIONS = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
_encoder = Encoder()

# It would tell of every header, and callers' tokens are headers.
logging.getLogger("hpack").setLevel(logging.WARNING)


def is_request(headers: Headers) -> bool:
    """Whether they are well formed (RFC 9113, 8.2 and 8.3)."""
    names = [name for name, _ in headers]
    pseudo = [name for name in names if name.startswith(b":")]
    return (
        names[: len(pseudo)] == pseudo
        and _NEEDED <= set(pseudo) <= _PSEUDO
        and len(pseudo) == len(set(pseudo))
        and _OF_CONNECTIONS.isdisjoint(names)
        and all(name and name == name.lower() for name in names)
        and all(value == b"trailers" for name, value in headers if name == b"te")
    )


def encoded(headers: Iterable[tuple[str, str]]) -> bytes:
    block: bytes = _encoder.encode([NeverIndexedHeaderTuple(name, value) for name, value in headers], huffman=False)
    return block
