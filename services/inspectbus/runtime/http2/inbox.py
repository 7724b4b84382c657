"""What one call's client has sent: bytes of DATA frames become messages, and room for more is given back.

DATA ─> prefix: compressed? how large? ─> memory for the message ─> ready ─> read()
              └── larger than it may be: told before its bytes come

The sender may send `WINDOW_BYTES` beyond what was read. While somebody waits for a message all that comes is as good
as read, or one that is larger than the window would never be complete.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from inspectbus.errors import BadField, InspectBusError, TooLarge

WINDOW_BYTES = 1 << 20
"""What a call's sender may send before it is read. A megabyte keeps a plant's network busy (1 GB/s at a round trip of
1 ms), and most images need no second permission."""
PREFIX_BYTES = 5
"""Of each message: a byte that says whether it is compressed, and its size in four
(https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md)."""


MOST_READY = 64
"""Messages of a call that are made of what came, before somebody asks for them."""


class HungUp(Exception):
    """The call has nobody any more who would hear its answer."""


class Message(NamedTuple):
    data: bytes | memoryview
    compressed: bool


class Inbox:
    """Of one call. On the loop's thread alone."""

    def __init__(self, most_bytes: int, give: Callable[[int], None]) -> None:
        """`most_bytes` has a message. `give` tells the sender that it may send so many bytes more."""
        self._most_bytes = most_bytes
        self._give = give
        self._window = WINDOW_BYTES
        self._owed = 0
        """Bytes that came, and for which no room was given back yet."""
        self._ready: deque[Message] = deque()
        self._held = 0
        """Bytes of what is ready, begun, or not looked at yet."""
        self._unread = bytearray()
        """What is not looked at, because enough is ready: of the smallest messages a window has 200,000."""
        self._unread_from = 0
        self._prefix = b""
        self._memory: memoryview | None = None
        """Of the message whose prefix is there; of which `_have` bytes are, too."""
        self._have = 0
        self._reader: asyncio.Future[None] | None = None
        self._failure: InspectBusError | HungUp | None = None
        self._closed = False
        self.ended = False
        """Nothing more will come."""

    # --- what its connection does

    def may_come(self, count: int) -> bool:
        """Whether the sender had permission for so many bytes; they are counted."""
        self._window -= count
        self._owed += count
        return self._window >= 0

    @property
    def room(self) -> memoryview | None:
        """Where the next bytes belong, where that is known: whoever writes them there himself says `filled`."""
        return None if self._memory is None or self._unread or self._closed else self._memory[self._have :]

    def filled(self, count: int) -> None:
        self._have += count
        self._held += count
        if self._memory is not None and self._have == len(self._memory):
            memory, self._memory = self._memory, None
            self._whole(memory)

    def received(self, data: memoryview) -> None:
        if self._closed:
            return
        left = len(data) if self._unread else self._divided(data)
        if left:
            self._unread += data[len(data) - left :]
            self._held += left

    def settle(self) -> None:
        """Gives back the room of what was read, or is waited for, as soon as it is worth telling."""
        given = self._owed if self._reader is not None else self._owed - self._held
        if given >= WINDOW_BYTES // 2 and not (self.ended or self._closed):
            self._owed -= given
            self._window += given
            self._give(given)

    def end(self) -> None:
        self.ended = True
        self._wake()

    def hung_up(self) -> None:
        """Its sender has gone: who reads beside the call's own task hears of it too."""
        self.ended = True
        self._forget()
        self._fail(HungUp())

    # --- what the call does

    def close(self) -> None:
        """Nothing more is wanted: what comes still is thrown away, and no room is given for it."""
        self._closed = True
        self._forget()

    def fail(self, error: InspectBusError) -> None:
        """Whoever reads on hears of it."""
        self._fail(error)

    async def read(self) -> Message | None:
        """The next message; None after the last. Raises BadField and TooLarge for what cannot be one, and HungUp."""
        while not self._ready:
            if self._failure is not None:
                raise self._failure
            if self._unread:
                self._look_on()
                continue
            if self.ended:
                if self._memory is not None or self._prefix:
                    raise BadField("the call ends within a message")
                return None
            self._reader = asyncio.get_running_loop().create_future()
            self.settle()
            try:
                await self._reader
            finally:
                self._reader = None
        message = self._ready.popleft()
        self._held -= PREFIX_BYTES + len(message.data)
        self.settle()
        return message

    # ---

    def _forget(self) -> None:
        self._ready.clear()
        self._unread, self._unread_from = bytearray(), 0
        self._prefix, self._memory = b"", None

    def _look_on(self) -> None:
        with memoryview(self._unread) as unread, unread[self._unread_from :] as data:
            looked_at = len(data) - self._divided(data)
        self._unread_from += looked_at
        self._held -= looked_at
        if self._unread_from == len(self._unread) or self._failure is not None:
            self._unread, self._unread_from = bytearray(), 0

    def _divided(self, data: memoryview) -> int:
        """Makes messages of it; gives how many bytes are left when enough are ready."""
        at = 0
        while at < len(data) and self._failure is None:
            if self._memory is not None:
                count = min(len(data) - at, len(self._memory) - self._have)
                self._memory[self._have : self._have + count] = data[at : at + count]
                self.filled(count)
                at += count
            elif len(self._ready) < MOST_READY:
                at += self._begun(data[at:])
            else:
                return len(data) - at
        return 0

    def _begun(self, data: memoryview) -> int:
        """Of a message whose prefix is not there yet; gives how many bytes it used."""
        missing = PREFIX_BYTES - len(self._prefix)
        self._prefix += data[:missing]
        used = min(missing, len(data))
        self._held += used
        if len(self._prefix) < PREFIX_BYTES:
            return used
        size = int.from_bytes(self._prefix[1:])
        if size > self._most_bytes:
            self._fail(
                TooLarge(f"the message is larger than max_message_bytes: {size} bytes, and {self._most_bytes} may be")
            )
        elif self._prefix[0] > 1:
            self._fail(BadField("what is sent is no message of gRPC: it does not say whether it is compressed"))
        elif size <= len(data) - used:
            self._held += size
            self._whole(bytes(data[used : used + size]))
            return used + size
        else:
            # Not zeroed: memory that is only announced costs nothing until it is written.
            self._memory, self._have = np.empty(size, np.uint8).data, 0
        return used

    def _whole(self, data: bytes | memoryview) -> None:
        self._ready.append(Message(data, compressed=self._prefix[0] == 1))
        self._prefix = b""
        self._wake()

    def _fail(self, error: InspectBusError | HungUp) -> None:
        self._failure = self._failure or error
        self._prefix, self._memory = b"", None
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
