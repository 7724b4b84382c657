"""One call: gRPC's words (headers, messages, status) over one stream of a connection.

headers ─> method, deadline, metadata;  DATA ─> read();  write() ─> DATA;  end() ─> trailers: the status

To the guard and to services it is the `context` of a call: of what gRPC's own library has there, what they use.
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import grpc

from inspectbus.errors import BadField, TooLarge
from inspectbus.runtime.http2.headers import encoded
from inspectbus.runtime.http2.inbox import Inbox, Message

if TYPE_CHECKING:
    from inspectbus.runtime.http2.connection import Connection

Metadata = tuple[tuple[str, str | bytes], ...]

_GRPC = re.compile(rb"application/grpc(\+|;|$)")
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_SPOKEN_IN_MESSAGES = "".join(chr(each) for each in range(0x20, 0x7F) if chr(each) != "%")
_NO_METADATA = {b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"host"}
# For zlib: 16 more than the window's bits means gzip.
_WINDOW_BITS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
_ANSWER = encoded(
    [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-accept-encoding", "identity,deflate,gzip"),
    ]
)
_DONE = encoded([("grpc-status", "0")])


GRPCS_OWN, SMALL_BYTES = "/grpc.", 4 << 10
"""Health and reflection: everybody may ask them, and what a message of theirs has at most."""
MOST_TRAILERS_BYTES = 8 << 10
"""More would be dropped by gRPC's clients, the status with them."""


class Status(grpc.Status):
    def __init__(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, str | bytes]] = ()
    ) -> None:
        self.code = code
        self.details = details
        self.trailing_metadata = tuple(trailing_metadata)


class Details(grpc.HandlerCallDetails):
    """What finds a call's handler."""

    def __init__(self, method: str, invocation_metadata: Metadata) -> None:
        self.method = method
        self.invocation_metadata = invocation_metadata


class Aborted(Exception):
    """Ends a call with the status that it has been given."""


class Call:
    """On the loop's thread alone, but for what a call is from its beginning."""

    def __init__(
        self, connection: Connection, stream_id: int, headers: Sequence[tuple[bytes, bytes]], most_message_bytes: int
    ) -> None:
        self.stream_id = stream_id
        self.room = connection.first_room
        """What may be sent of it now."""
        self.task: asyncio.Task[None] | None = None
        """Who answers it."""
        self.serialize: Callable[[Any], bytes] = bytes
        """Makes bytes of an answer."""
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._headers = dict(reversed(headers))  # of each name the first
        self._all_headers = headers
        self.method = self._headers.get(b":path", b"").decode("latin-1")
        """/package.Service/Method"""
        self._most_bytes = SMALL_BYTES if self.method.startswith(GRPCS_OWN) else most_message_bytes
        # Not told of the call itself: the two would wait, pixels and all, for the garbage collector.
        self.inbox = Inbox(self._most_bytes, partial(connection.give, stream_id))
        self._peer = connection.peer
        self._until_s = self._deadline()
        self._answered = False
        self._status: grpc.Status | None = None
        self._more_room: asyncio.Future[None] | None = None

    # --- what it is

    @property
    def objection(self) -> str:
        """The HTTP status that answers what is no call of gRPC; empty for one that is."""
        if self._headers.get(b":method") != b"POST":
            return "405"
        return "" if _GRPC.match(self._headers.get(b"content-type", b"")) else "415"

    @property
    def details(self) -> Details:
        return Details(self.method, self.invocation_metadata())

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> Metadata:
        return tuple(
            (name.decode("latin-1"), _binary(value) if name.endswith(b"-bin") else value.decode("latin-1"))
            for name, value in self._all_headers
            if not name.startswith(b":") and name not in _NO_METADATA
        )

    def auth_context(self) -> dict[str, list[bytes]]:
        """Of a client certificate that was verified: its names, by gRPC's keys."""
        certificate = self._connection.certificate
        if not certificate:
            return {}
        common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
        others = [value for _, value in certificate.get("subjectAltName", ())]
        return {
            "x509_common_name": [name.encode() for name in common],
            "x509_subject_alternative_name": [name.encode() for name in others],
        }

    def time_remaining(self) -> float | None:
        """Seconds until its deadline, not less than 0; None where it has none."""
        return None if self._until_s is None else max(0.0, self._until_s - self._loop.time())

    # --- what comes

    async def read(self) -> bytes | memoryview | None:
        """The next message; None after the last. Raises BadField and TooLarge for what cannot be one."""
        message = await self.inbox.read()
        if message is None or not message.compressed:
            return None if message is None else message.data
        # A thousandth of its size it may be: so the loop goes on meanwhile.
        return await asyncio.to_thread(self._inflated, message)

    def _inflated(self, message: Message) -> bytes:
        how = self._headers.get(b"grpc-encoding", b"identity")
        if how not in _WINDOW_BITS:
            raise BadField(f"messages in {how[:20].decode('latin-1')!r} are not read here: use gzip, deflate, or none")
        inflating = zlib.decompressobj(_WINDOW_BITS[how])
        try:
            data = inflating.decompress(message.data, self._most_bytes + 1)
        except zlib.error:
            raise BadField("a compressed message cannot be inflated") from None
        if len(data) > self._most_bytes:
            raise TooLarge(f"the message, inflated, is larger than max_message_bytes: {self._most_bytes} may be")
        if not inflating.eof:
            raise BadField("a compressed message ends early")
        return data

    # --- what is said

    def say(self, message: Any) -> bool:
        """As `write`, where all can be sent now; else False, and nothing is said. Not while another is written."""
        framed = self._framed(message)
        if not self._connection.has_room(self, len(framed)):
            return False
        self._begin_answer()
        self._connection.send_data(self, framed)
        self._connection.flush()
        return True

    async def write(self, message: Any, *, last: bool = False) -> None:
        """An answer, as its method's serializer takes it. Cancellable.

        Returns when it has been sent, which its client's windows may delay for as long as he likes. The `last` goes out
        with the status, which must follow.
        """
        self._begin_answer()
        framed = self._framed(message)
        sent = self._connection.send_data(self, framed)
        while sent < len(framed):
            self._connection.flush()
            if more := self._connection.send_data(self, memoryview(framed)[sent:]):
                sent += more
                continue
            self._more_room = self._loop.create_future()
            self._connection.starved.add(self)
            try:
                await self._more_room
            finally:
                self._more_room = None
                self._connection.starved.discard(self)
        if not last:
            self._connection.flush()

    def set_code(self, code: grpc.StatusCode) -> None:
        self._status = Status(code)

    def code(self) -> grpc.StatusCode | None:
        """None where nothing was said of it."""
        return None if self._status is None else self._status.code

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        await self.abort_with_status(Status(code, details))

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        self._status = status
        raise Aborted

    def end(self, status: grpc.Status | None = None) -> None:
        """By the status; else by the one that was set, or as well done. Nothing where its client has gone."""
        status = status or self._status
        block = _DONE if status is None else encoded(_trailers(status))
        if len(block) > MOST_TRAILERS_BYTES and status is not None:
            block = encoded([("grpc-status", str(status.code.value[0]))])
        self._connection.send_headers(self, block if self._answered else _ANSWER + block, last=True)
        self._connection.flush()

    def refuse(self, http_status: str) -> None:
        self._connection.send_headers(self, encoded([(":status", http_status)]), last=True)
        self._connection.flush()

    def _framed(self, message: Any) -> bytes:
        data = self.serialize(message)
        return b"\0" + len(data).to_bytes(4) + data

    def _begin_answer(self) -> None:
        if not self._answered:
            self._answered = True
            self._connection.send_headers(self, _ANSWER, last=False)

    # --- what its connection tells

    def tell_room(self) -> None:
        if self._more_room is not None and not self._more_room.done():
            self._more_room.set_result(None)

    def hung_up(self) -> None:
        """Its client has gone."""
        if self.task is not None:
            self.task.cancel()
        self.inbox.hung_up()

    def _deadline(self) -> float | None:
        found = _TIMEOUT.fullmatch(self._headers.get(b"grpc-timeout", b""))
        return None if found is None else self._loop.time() + int(found[1]) * _SECONDS[found[2]]


def _trailers(status: grpc.Status) -> Iterator[tuple[str, str]]:
    yield "grpc-status", str(status.code.value[0])
    if status.details:
        yield "grpc-message", quote(status.details, safe=_SPOKEN_IN_MESSAGES)
    for key, value in status.trailing_metadata or ():
        yield key, base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _binary(value: bytes) -> bytes:
    """Empty for what is no base64; several values of one header follow each other."""
    try:
        return b"".join(base64.b64decode(each + b"=" * (-len(each) % 4)) for each in value.split(b","))
    except binascii.Error:
        return b""
