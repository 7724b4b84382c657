"""A client that calls and never reads: by HTTP/2's flow control it gives the server no room to send an answer.

call ─> HEADERS, DATA ─> the server works ─> HEADERS come back, and the answer itself must wait
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Self

PATIENCE_S = 20.0
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE, MAX_FRAME_BYTES, FIRST_WINDOW = 4, 16384, 65535


class SilentClient:
    """Of RFC 9113 and 7541 just what calls take. Use as a context."""

    def __init__(self, address: str, patience_s: float = PATIENCE_S) -> None:
        """The server may say nothing for so long."""
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=patience_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._authority = address
        self._received = b""
        self._stream = -1
        # How many bytes the server takes: of each stream, and, under 0, of all together.
        self._room: Counter[int] = Counter({0: FIRST_WINDOW})
        self._first_room = FIRST_WINDOW
        self.answered: set[int] = set()
        """Streams whose answer is ready: its headers have come."""
        self.ended: set[int] = set()
        """Streams that the server has ended, and so refused."""

    def __enter__(self) -> Self:
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._send(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def call(self, method: str, message: bytes) -> int:
        """Sends a whole call as fast as the server takes it, and gives its stream."""
        stream = self.open(method)
        self.send(stream, message, last=True)
        return stream

    def open(self, method: str) -> int:
        """Begins a call, and gives its stream."""
        self._stream += 2
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": self._authority,
            "te": "trailers",
            "content-type": "application/grpc",
        }
        self._room[self._stream] = self._first_room
        self._send(HEADERS, END_HEADERS, self._stream, _hpack(headers))
        return self._stream

    def send(self, stream: int, message: bytes, *, said: int | None = None, last: bool = False) -> None:
        """A message of a call, as fast as the server takes it; or only the beginning of one that is `said` to have so
        many bytes. Raises TimeoutError when the server takes no more.
        """
        body = memoryview(struct.pack(">BI", 0, len(message) if said is None else said) + message)
        while body and stream not in self.ended:
            room = min(self._room[0], self._room[stream], MAX_FRAME_BYTES)
            if room <= 0:
                self.read()
                continue
            part, body = body[:room], body[room:]
            self._room.subtract({0: len(part), stream: len(part)})
            self._send(DATA, END_STREAM if last and not body else 0, stream, part)

    def wait_answered(self, stream: int) -> None:
        """Until its answer is ready, or refused."""
        while stream not in self.answered | self.ended:
            self.read()

    def read(self) -> None:
        """One frame from the server. Raises ConnectionError when it has closed, TimeoutError when it says nothing."""
        high, low, kind, flags, stream = struct.unpack(">BHBBI", self._take(9))
        payload = self._take(high << 16 | low)
        if kind == HEADERS:
            (self.ended if flags & END_STREAM else self.answered).add(stream)
        elif kind == RST_STREAM:
            self.ended.add(stream)
        elif kind == WINDOW_UPDATE:
            self._room[stream] += int.from_bytes(payload)
        elif kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == INITIAL_WINDOW_SIZE:
                    for each in self._room.keys() - {0}:
                        self._room[each] += value - self._first_room
                    self._first_room = value
            self._send(SETTINGS, ACK, 0, b"")
        elif kind == PING and not flags & ACK:
            self._send(PING, ACK, 0, payload)
        elif kind == GOAWAY:
            raise ConnectionError(f"the server goes away: {payload[8:]!r}")

    def read_arrived(self) -> None:
        """Every frame that has come, once there is one."""
        self.read()
        while self._received:
            self.read()

    def fileno(self) -> int:
        """For who waits for several."""
        return self._socket.fileno()

    def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            got = self._socket.recv(65536)
            if not got:
                raise ConnectionError("the server has closed the connection")
            self._received += got
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def _send(self, kind: int, flags: int, stream: int, payload: bytes | memoryview) -> None:
        self._socket.sendall(
            struct.pack(">BHBBI", len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload
        )


def _hpack(headers: Mapping[str, str]) -> bytes:
    """Each as a literal without indexing, its name and value spelt out, shorter than 127 bytes."""
    words = ((name.encode(), value.encode()) for name, value in headers.items())
    return b"".join(bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in words)
