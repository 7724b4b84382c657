"""What a connection says: frames gather until they are flushed, and the last of them shall be heard.

say ─> frames ─ flush ─> socket ─> its client
                           └── it does not read: jammed, and what waits to be sent grows no more
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from typing import Any

from inspectbus.runtime.http2.frames import Kind, written

LOOK_S = 0.02
"""Between looks whether what was said last has been received."""


class Sender:
    """Of one connection."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._frames: list[bytes] = []
        self._flushing = False
        self._look: asyncio.TimerHandle | None = None
        self.jammed = False
        """Its client does not read: say no more than what ends things."""
        self.over = False
        """It says nothing more."""

    def say(self, kind: Kind, payload: bytes = b"", stream_id: int = 0, flags: int = 0) -> None:
        self._frames.append(written(kind, payload, stream_id, flags))

    def flush(self) -> None:
        """What was said goes out."""
        self._flushing = False
        if not self._frames:
            return
        said = b"".join(self._frames)
        self._frames.clear()
        if not (self.over or self._transport.is_closing()):
            self._transport.write(said)

    def flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def close(self, patience_s: float) -> None:
        """Says no more. What was said shall be heard: a socket that is closed while something lies in it unread throws
        away what it has not sent. So it is read until all of it is there, for so long at most; nobody need listen.
        """
        if self.over or self._transport.is_closing():
            return
        self.flush()
        self.over = True
        try:
            if not self._transport.can_write_eof():  # TLS ends in words of its own
                self._transport.close()
                return
            self._transport.resume_reading()
            self._transport.write_eof()
        except OSError:  # its client was quicker
            self._transport.abort()
            return
        self._leave(self._loop.time() + patience_s)

    def lost(self) -> None:
        """The connection is no more."""
        if self._look is not None:
            self._look.cancel()

    def _leave(self, until_s: float) -> None:
        if self._loop.time() >= until_s:
            self._transport.abort()
        elif self._transport.get_write_buffer_size() or _not_received(self._transport.get_extra_info("socket")):
            self._look = self._loop.call_later(LOOK_S, self._leave, until_s)
        else:
            self._transport.close()


def _not_received(connection: socket.socket) -> int:
    """Bytes that the other side's kernel has not acknowledged; 0 where ours does not tell."""
    try:
        return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0
