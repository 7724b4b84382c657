"""Takes what a connection receives apart: frames, and the payload of DATA, which is received where it is wanted.

socket ─┬─> the loop's buffer ─> frames, and what has come of a payload ─> whoever hears
        └─> the message's own memory, while the rest of its payload comes
"""

from __future__ import annotations

from typing import Protocol

from inspectbus.runtime.http2.frames import (
    HEAD_BYTES,
    LARGEST_WINDOW_BYTES,
    PREFACE,
    Code,
    Flag,
    Kind,
    Violation,
)
from inspectbus.runtime.http2.inbox import Inbox

BUFFER_BYTES = 256 << 10
"""Of one loop, whatever the number of its connections: each leaves it empty. Large, because to receive less at once
costs an image more than to copy it once more."""


class Hearer(Protocol):
    """All may raise Violation."""

    def check(self, kind: int, stream_id: int, length: int) -> None:
        """Whether such a frame may come now."""

    def frame(self, kind: int, stream_id: int, payload: memoryview, flags: int) -> None:
        """One that is no DATA. The payload is its until it returns."""

    def data_begins(self, stream_id: int, length: int, flags: int) -> Inbox | None:
        """Who wants its payload; None, nobody."""

    def data_ends(self, stream_id: int, flags: int) -> None:
        """The whole of it is where it was wanted."""


class Receiver:
    """Of one connection."""

    def __init__(self, hearer: Hearer, buffer: memoryview) -> None:
        """The buffer, of `BUFFER_BYTES`, may be others' too."""
        self._hearer = hearer
        self._view = buffer
        self._start = self._end = 0
        """Of what lies in the buffer unread."""
        self._left = b""
        """What could not be told yet, while others have the buffer."""
        self._direct = False
        """What is received now goes where it is wanted."""
        self._preface_left = PREFACE
        self._data = 0, 0
        """Stream and flags of the DATA frame whose head was read."""
        self._payload_left = 0
        self._padding_left = 0
        self._wanted_by: Inbox | None = None

    def buffer(self) -> memoryview:
        """Where to receive next; `take` says how much that was."""
        self._direct = False
        if self._payload_left and not self._left and self._wanted_by is not None:
            room = self._wanted_by.room
            if room is not None:
                self._direct = True
                return room[: self._payload_left]
        return self._view[len(self._left) :]

    def received(self, count: int) -> None:
        if not self._direct:
            self._bring_left()
            self._end += count
            return
        self._payload_left -= count
        if self._wanted_by is not None:
            self._wanted_by.filled(count)
        self._look_for_end()

    def take(self, most: int) -> bool:
        """Tells of what was received; True when there may be more of it, because so many frames were told."""
        if self._left:
            self._bring_left()
        taken = 0
        while taken < most and self._start < self._end and self._split():
            taken += 1
        if self._start < self._end:
            self._left = bytes(self._view[self._start : self._end])
        self._start = self._end = 0
        return taken == most

    def forget(self) -> None:
        """Nothing of it is wanted any more."""
        self._left = b""
        self._start = self._end = self._payload_left = self._padding_left = 0

    def _bring_left(self) -> None:
        self._end = len(self._left)
        self._view[: self._end] = self._left
        self._left = b""

    def _split(self) -> bool:
        """Takes the next thing from the buffer; False when it is not there as a whole yet."""
        start, count = self._start, self._end - self._start
        if self._payload_left:
            part = self._view[start : start + min(count, self._payload_left)]
            self._start += len(part)
            self._payload_left -= len(part)
            if self._wanted_by is not None:
                self._wanted_by.received(part)
            self._look_for_end()
            return True
        if self._padding_left:
            skipped = min(count, self._padding_left)
            self._start += skipped
            self._padding_left -= skipped
            self._look_for_end()
            return True
        if self._preface_left:
            said = bytes(self._view[start : start + min(count, len(self._preface_left))])
            if not self._preface_left.startswith(said):
                raise Violation(Code.PROTOCOL_ERROR, "it does not speak HTTP/2")
            self._preface_left = self._preface_left[len(said) :]
            self._start += len(said)
            return True
        if count < HEAD_BYTES:
            return False
        length, kind, flags = int.from_bytes(self._view[start : start + 3]), *self._view[start + 3 : start + 5]
        stream_id = int.from_bytes(self._view[start + 5 : start + HEAD_BYTES]) & LARGEST_WINDOW_BYTES
        self._hearer.check(kind, stream_id, length)
        if kind == Kind.DATA:
            return self._data_begins(stream_id, length, flags)
        end = start + HEAD_BYTES + length
        if end > self._end:
            return False
        self._start = end
        self._hearer.frame(kind, stream_id, self._view[start + HEAD_BYTES : end], flags)
        return True

    def _data_begins(self, stream_id: int, length: int, flags: int) -> bool:
        head, padding = HEAD_BYTES, 0
        if flags & Flag.PADDED:
            if self._end - self._start <= HEAD_BYTES:
                return False
            head, padding = HEAD_BYTES + 1, self._view[self._start + HEAD_BYTES]
        content = length - (head - HEAD_BYTES) - padding
        if content < 0:
            raise Violation(Code.PROTOCOL_ERROR, "a frame has more padding than bytes")
        self._start += head
        self._wanted_by = self._hearer.data_begins(stream_id, length, flags)
        self._data, self._payload_left, self._padding_left = (stream_id, flags), content, padding
        self._look_for_end()
        return True

    def _look_for_end(self) -> None:
        if not (self._payload_left or self._padding_left):
            self._wanted_by = None
            self._hearer.data_ends(*self._data)
