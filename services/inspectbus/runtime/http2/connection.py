"""One client's connection: its bytes become calls, and what calls say becomes bytes.

frame ─┬─ DATA ──────────> its call's inbox, where they lie until they are read
       ├─ HEADERS ───────> a call begins
       ├─ WINDOW_UPDATE ─> its answers go on
       └─ the rest ──────> settings, pings, what is over

Flow control (RFC 9113, 5.2) bounds what a call's sender may send. A connection whose client does not read what we say
is not read either: so what waits to be sent is bounded too.
"""

from __future__ import annotations

import asyncio
import math
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import structlog
from hpack import Decoder, HPACKError, OversizedHeaderListError

from inspectbus.runtime.http2.call import Call
from inspectbus.runtime.http2.frames import (
    LARGEST_WINDOW_BYTES,
    Code,
    Flag,
    Kind,
    Setting,
    Violation,
    settings_of,
    without_padding,
)
from inspectbus.runtime.http2.headers import is_request
from inspectbus.runtime.http2.inbox import WINDOW_BYTES, Inbox
from inspectbus.runtime.http2.receiving import BUFFER_BYTES, Receiver
from inspectbus.runtime.http2.sending import Sender

log = structlog.get_logger(__name__)

MOST_FRAME_BYTES = 1 << 20
"""Of a DATA frame. An image comes in one or two, where the 16 KiB that are usual would make ten of it."""
MOST_HEADERS_BYTES = 16 << 10
"""Of a call, as they come, and as RFC 9113 counts them in 6.5.2: twice what gRPC's own library lets through."""
CONNECTION_WINDOW_BYTES = 8 << 20
"""Given back when bytes arrive: what bounds memory is each call's own window, and how many calls there may be."""
FIRST_WINDOW_BYTES = 65_535
"""Of every connection (RFC 9113, 6.9.2)."""
FIRST_FRAME_BYTES = 16 << 10
"""Of what a client takes before it has said how much (6.5.2)."""

BURST_FRAMES, FRAMES_PER_S = 4000, 1000
"""Frames that cost a client nothing and us some time: all but calls, their data and its windows. Who cancels a thousand
calls at once is within it; who does nothing else (CVE-2023-44487 and its kind) is not."""
SMALL_BYTES = 1 << 10
"""Of a DATA frame for a call that is over. Of images that were refused whole windows are still on their way, and a
large frame costs its sender more than us."""
FRAMES_OF_A_CALL, FRAMES_OF_AN_ANSWER = 8, 2
"""That a client may say for what was answered: some ask for the time of a round trip with each answer."""
PLAIN_BYTES, BYTES_OF_A_FRAME = 1 << 10, 64
"""Of headers or settings: what they have beyond the first costs as much as so many frames. 16 KB of either keep us for
1 to 8 ms, and clients that mean well send a few hundred bytes."""
FRAMES_AT_ONCE = 64
"""Then others have their turn: some thousand small ones that came at once would keep them waiting for 40 ms."""
IDLE_S = 1800.0
"""How long a connection may be open without a call; its client opens another when it has one."""
FULL_TOLD_S = 60.0
"""Between log lines of who is one too many."""
FIRST_WORD_S = 20.0
"""Until a connection has said that it speaks HTTP/2."""


@dataclass(frozen=True)
class Terms:
    """What a server allows each connection."""

    most_message_bytes: int
    most_calls: int
    """At once; one more is told to come again on another connection, or later."""
    keepalive_s: float
    """How long a connection with calls may be silent before it is asked whether it is there."""
    keepalive_patience_s: float


@dataclass(eq=False)
class Host:
    """What the connections of one server share."""

    terms: Terms
    begin: Callable[[Call], None]
    """Is told of each call."""
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(BUFFER_BYTES)))
    """See `Receiver`."""
    open: set[Connection] = field(default_factory=set)
    most_open: int = field(default_factory=lambda: max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
    """Half of what the process may have open: then files and the bus find room."""
    leaving: bool = False
    """Whoever comes now is sent away."""
    _told_s: float = -math.inf

    def is_full(self, now_s: float) -> bool:
        """Whether one more connection would be too many; said in the log at times."""
        if len(self.open) < self.most_open:
            return False
        if now_s - self._told_s >= FULL_TOLD_S:
            self._told_s = now_s
            log.warning(
                "no more connections are taken: half of what the process may open (`ulimit -n`) is in use",
                connections=len(self.open),
            )
        return True


class Connection(asyncio.BufferedProtocol):
    """On the loop's thread alone."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._terms = host.terms
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, Call] = {}
        self._highest = 0
        """Of all ids of calls so far."""
        self._decoder = Decoder(max_header_list_size=MOST_HEADERS_BYTES)

        self._receiver = Receiver(self, host.buffer)
        self._settled = False
        """Its settings, which come first, are here."""
        self._headers: tuple[int, bytes, bool] | None = None
        """Of a call that begins: its id, what is there, and whether nothing follows them."""
        self._owed = 0
        self._window = CONNECTION_WINDOW_BYTES

        self._behind = False
        self.room = FIRST_WINDOW_BYTES
        """What all calls together may send now."""
        self.starved: set[Call] = set()
        """Calls that wait for room."""
        self.first_room = FIRST_WINDOW_BYTES
        """What each call may send at its beginning."""
        self._most_payload = FIRST_FRAME_BYTES
        self._frames_left: float = BURST_FRAMES
        self._frames_counted_s = self._loop.time()
        self._draining = False
        self.lost: asyncio.Future[None] = self._loop.create_future()
        """Done when it is closed."""
        self._heard_s = self._loop.time()
        self._watch: asyncio.TimerHandle | None = None
        self._by_kind: dict[int, Callable[[int, bytes, int], None]] = {
            Kind.RST_STREAM: self._hear_reset,
            Kind.SETTINGS: self._hear_settings,
            Kind.PUSH_PROMISE: self._hear_push,
            Kind.PING: self._hear_ping,
            Kind.GOAWAY: self._hear_leaving,
            Kind.CONTINUATION: self._more_headers_come,
        }

    # --- what asyncio tells

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._sender = Sender(transport)
        if self._host.is_full(self._loop.time()):
            transport.abort()
            return
        self._host.open.add(self)
        # Or a small answer would wait for 40 ms until the one before is acknowledged.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            transport.abort()  # as gRPC's own server does: who has not agreed on HTTP/2 would not understand us
            return
        self._watch = self._loop.call_later(FIRST_WORD_S, self._look)
        settings = (
            (Setting.MAX_CONCURRENT_STREAMS, self._terms.most_calls),
            (Setting.INITIAL_WINDOW_SIZE, WINDOW_BYTES),
            (Setting.MAX_FRAME_SIZE, MOST_FRAME_BYTES),
            (Setting.MAX_HEADER_LIST_SIZE, MOST_HEADERS_BYTES),
        )
        self._sender.say(
            Kind.SETTINGS, b"".join(setting.to_bytes(2) + value.to_bytes(4) for setting, value in settings)
        )
        self._give(0, CONNECTION_WINDOW_BYTES - FIRST_WINDOW_BYTES)
        self._sender.flush()
        if self._host.leaving:
            self.drain()

    def connection_lost(self, error: Exception | None) -> None:
        self._host.open.discard(self)
        self.lost.set_result(None)
        if self._watch is not None:
            self._watch.cancel()
        self._sender.lost()
        self._receiver.forget()
        self._hang_up()

    def pause_writing(self) -> None:
        self._sender.jammed = True
        self._steer()

    def resume_writing(self) -> None:
        self._sender.jammed = False
        self._steer()
        self._tell_room()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._receiver.buffer()

    def buffer_updated(self, count: int) -> None:
        self._heard_s = self._loop.time()
        if not self._sender.over:
            self._go_on(count)

    # --- what comes

    def _go_on(self, count: int = 0) -> None:
        try:
            if count:
                self._receiver.received(count)
            self._behind = self._receiver.take(FRAMES_AT_ONCE)
        except Violation as error:
            self._behind = False
            self._give_up(error)
        self._sender.flush()
        self._steer()
        if self._behind:
            self._loop.call_soon(self._go_on)

    def _steer(self) -> None:
        """Reads no more while its client does not, or says more than we can follow."""
        if self._sender.over:
            pass
        elif self._sender.jammed or self._behind:
            self._transport.pause_reading()
        elif not self._transport.is_reading() and not self._transport.is_closing():
            self._transport.resume_reading()

    def check(self, kind: int, stream_id: int, length: int) -> None:
        if self._headers is not None and (kind, stream_id) != (Kind.CONTINUATION, self._headers[0]):
            raise Violation(Code.PROTOCOL_ERROR, "a call's headers are interrupted")
        if not self._settled and kind != Kind.SETTINGS:
            raise Violation(Code.PROTOCOL_ERROR, "settings come first")
        if length > (MOST_FRAME_BYTES if kind == Kind.DATA else MOST_HEADERS_BYTES):
            raise Violation(Code.FRAME_SIZE_ERROR, f"a frame of kind {kind} has {length} bytes")

    def frame(self, kind: int, stream_id: int, payload: memoryview, flags: int) -> None:
        if kind == Kind.WINDOW_UPDATE:
            self._room_comes(stream_id, payload)
        elif kind == Kind.HEADERS:
            self._headers_come(stream_id, payload, flags)
        else:
            self._count_frame(payload)
            if (hear := self._by_kind.get(kind)) is not None:  # else it is of a kind that came later
                hear(stream_id, bytes(payload), flags)

    def data_begins(self, stream_id: int, length: int, flags: int) -> Inbox | None:
        call = self._calls.get(stream_id)
        if call is None and not 0 < stream_id <= self._highest:
            raise Violation(Code.PROTOCOL_ERROR, "data of a call that was never begun")
        if length < SMALL_BYTES if call is None else not (length or flags & Flag.END_STREAM):
            self._count_frame()
        self._account(length)
        if call is None:
            return None
        if call.inbox.ended or not call.inbox.may_come(length):
            self._reset(call, Code.STREAM_CLOSED if call.inbox.ended else Code.FLOW_CONTROL_ERROR)
            return None
        return call.inbox

    def data_ends(self, stream_id: int, flags: int) -> None:
        if (call := self._calls.get(stream_id)) is None:
            return
        if flags & Flag.END_STREAM:
            call.inbox.end()
        else:
            call.inbox.settle()

    def _account(self, length: int) -> None:
        self._window -= length
        if self._window < 0:
            raise Violation(Code.FLOW_CONTROL_ERROR, "more was sent than the connection's window")
        self._owed += length
        if self._owed >= CONNECTION_WINDOW_BYTES // 2:
            self._give(0, self._owed)
            self._window += self._owed
            self._owed = 0

    def _room_comes(self, stream_id: int, payload: memoryview) -> None:
        if len(payload) != 4:
            raise Violation(Code.FRAME_SIZE_ERROR, "a WINDOW_UPDATE has four bytes")
        more = int.from_bytes(payload) & LARGEST_WINDOW_BYTES
        call = self._calls.get(stream_id)
        if stream_id and call is None:
            if stream_id > self._highest:
                raise Violation(Code.PROTOCOL_ERROR, "room for a call that was never begun")
            return
        if not more or (self.room if call is None else call.room) + more > LARGEST_WINDOW_BYTES:
            code = Code.FLOW_CONTROL_ERROR if more else Code.PROTOCOL_ERROR
            if call is None:
                raise Violation(code, "a window grows beyond what one may be")
            self._reset(call, code)
        elif call is None:
            self.room += more
            self._tell_room()
        else:
            call.room += more
            call.tell_room()

    def _headers_come(self, stream_id: int, payload: memoryview, flags: int) -> None:
        if not stream_id % 2:
            raise Violation(Code.PROTOCOL_ERROR, "a client's calls have odd numbers")
        block = without_padding(payload, flags)
        if flags & Flag.PRIORITY:
            block = block[5:]
        self._headers = stream_id, bytes(block), bool(flags & Flag.END_STREAM)
        if flags & Flag.END_HEADERS:
            self._headers_end()

    def _more_headers_come(self, stream_id: int, payload: bytes, flags: int) -> None:
        if self._headers is None:
            raise Violation(Code.PROTOCOL_ERROR, "headers go on that did not begin")
        _, block, last = self._headers
        if len(block) + len(payload) > MOST_HEADERS_BYTES:
            raise Violation(Code.ENHANCE_YOUR_CALM, "a call has too many headers")
        self._headers = stream_id, block + payload, last
        if flags & Flag.END_HEADERS:
            self._headers_end()

    def _headers_end(self) -> None:
        assert self._headers is not None
        (stream_id, block, last), self._headers = self._headers, None
        if len(block) > PLAIN_BYTES:
            self._count_frame(block)
        try:
            # Also where nobody wants them: what comes later may refer to them.
            headers: Any = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError:
            raise Violation(Code.ENHANCE_YOUR_CALM, "a call has too many headers") from None
        except HPACKError as error:
            raise Violation(Code.COMPRESSION_ERROR, f"headers cannot be read: {error}") from None
        if stream_id > self._highest:
            self._highest = stream_id
            self._call_begins(stream_id, headers, last=last)
        elif (call := self._calls.get(stream_id)) is None:
            self._count_frame()  # it is over, which its client may not know yet
        elif last and not call.inbox.ended:
            call.inbox.end()  # trailers, in which gRPC's clients say nothing
        else:
            self._reset(call, Code.STREAM_CLOSED if call.inbox.ended else Code.PROTOCOL_ERROR)

    def _call_begins(self, stream_id: int, headers: list[tuple[bytes, bytes]], *, last: bool) -> None:
        if self._draining or len(self._calls) >= self._terms.most_calls:
            self._count_frame()
            self._sender.say(Kind.RST_STREAM, Code.REFUSED_STREAM.to_bytes(4), stream_id)
            return
        if not is_request(headers):
            self._count_frame()
            self._sender.say(Kind.RST_STREAM, Code.PROTOCOL_ERROR.to_bytes(4), stream_id)
            return
        call = Call(self, stream_id, headers, self._terms.most_message_bytes)
        self._calls[stream_id] = call
        if last:
            call.inbox.end()
        self._host.begin(call)

    def _hear_reset(self, stream_id: int, payload: bytes, flags: int) -> None:
        if len(payload) != 4:
            raise Violation(Code.FRAME_SIZE_ERROR, "a RST_STREAM has four bytes")
        if not 0 < stream_id <= self._highest:
            raise Violation(Code.PROTOCOL_ERROR, "a call ends that was never begun")
        if (call := self._calls.get(stream_id)) is not None:
            self._call_ends(call)
            call.hung_up()

    def _hear_settings(self, stream_id: int, payload: bytes, flags: int) -> None:
        self._settled = True
        for setting, value in dict(settings_of(stream_id, payload, flags)).items():  # of each the last
            if setting == Setting.INITIAL_WINDOW_SIZE:
                self._first_room_is(value)
            elif setting == Setting.MAX_FRAME_SIZE:
                self._most_payload = min(value, MOST_FRAME_BYTES)
        if not flags & Flag.ACK:
            self._sender.say(Kind.SETTINGS, flags=Flag.ACK)

    def _hear_ping(self, stream_id: int, payload: bytes, flags: int) -> None:
        if stream_id or len(payload) != 8:
            raise Violation(Code.FRAME_SIZE_ERROR, "a PING has eight bytes, and is no call's")
        if not flags & Flag.ACK:
            self._sender.say(Kind.PING, payload, flags=Flag.ACK)

    def _hear_leaving(self, stream_id: int, payload: bytes, flags: int) -> None:
        """Its calls may still be answered (6.8)."""
        self._draining = True
        self._close_if_done()

    def _hear_push(self, stream_id: int, payload: bytes, flags: int) -> None:
        raise Violation(Code.PROTOCOL_ERROR, "a client pushes nothing")

    def _first_room_is(self, size: int) -> None:
        change, self.first_room = size - self.first_room, size
        for call in self._calls.values():
            call.room += change  # it may be less than nothing now (RFC 9113, 6.9.2)
            if call.room > LARGEST_WINDOW_BYTES:
                raise Violation(Code.FLOW_CONTROL_ERROR, "a window grows beyond what one may be")
        self._tell_room()

    def _call_ends(self, call: Call) -> None:
        self._calls.pop(call.stream_id, None)
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._draining and not self._calls:
            self._close()

    def _close(self) -> None:
        self._receiver.forget()
        self._sender.close(self._terms.keepalive_s)

    def _earn(self, frames: int) -> None:
        self._frames_left = min(self._frames_left + frames, BURST_FRAMES)

    def _count_frame(self, payload: bytes | memoryview = b"") -> None:
        now_s = self._loop.time()
        earned = (now_s - self._frames_counted_s) * FRAMES_PER_S
        cost = 1 + max(0, len(payload) - PLAIN_BYTES) / BYTES_OF_A_FRAME
        self._frames_left = min(self._frames_left + earned, BURST_FRAMES) - cost
        self._frames_counted_s = now_s
        if self._frames_left < 0:
            raise Violation(Code.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _give_up(self, error: Violation) -> None:
        """The connection ends, and every call on it."""
        # Nobody need be known for it, so at a level that fills no disk.
        log.debug("a connection does not keep to HTTP/2", peer=self.peer, error=str(error))
        self._sender.say(Kind.GOAWAY, self._highest.to_bytes(4) + error.code.to_bytes(4))
        self._hang_up()
        self._close()

    # --- what calls say

    @cached_property
    def peer(self) -> str:
        """As gRPC's own library spells it."""
        host, port, *_ = self._transport.get_extra_info("peername") or ("", 0)
        if ":" not in host:
            return f"ipv4:{host}:{port}"
        mapped = host.removeprefix("::ffff:")
        return f"ipv4:{mapped}:{port}" if "." in mapped else f"ipv6:%5B{host}%5D:{port}"

    @property
    def certificate(self) -> dict[str, Any]:
        """The client's, as `ssl` tells of one that it has verified; else empty."""
        tls = self._transport.get_extra_info("ssl_object")
        return (tls.getpeercert() or {}) if tls is not None else {}

    def give(self, stream_id: int, count: int) -> None:
        """Lets the call's sender send so much more."""
        if stream_id in self._calls:
            self._give(stream_id, count)
            self._sender.flush_soon()

    def send_headers(self, call: Call, block: bytes, *, last: bool) -> None:
        """As they are `encoded`. The `last` end the call, whatever more its client would send. Nothing where it has
        gone."""
        if self._calls.get(call.stream_id) is not call:
            return
        self._sender.say(Kind.HEADERS, block, call.stream_id, Flag.END_HEADERS | (Flag.END_STREAM if last else 0))
        if not last:
            return
        if not call.inbox.ended:
            self._sender.say(Kind.RST_STREAM, Code.NO_ERROR.to_bytes(4), call.stream_id)
        self._earn(FRAMES_OF_A_CALL)
        self._call_ends(call)

    def has_room(self, call: Call, count: int) -> bool:
        """Whether so much could be sent at once."""
        room = min(self.room, call.room, self._most_payload)
        return count <= room and not self._sender.jammed and self._calls.get(call.stream_id) is call

    def send_data(self, call: Call, data: memoryview | bytes) -> int:
        """As much of it as there is room for now; gives how much that was."""
        count = max(0, min(len(data), self.room, call.room, self._most_payload))
        if count and not self._sender.jammed:
            self.room -= count
            call.room -= count
            self._earn(FRAMES_OF_AN_ANSWER)
            self._sender.say(Kind.DATA, bytes(data[:count]), call.stream_id)
            return count
        return 0

    def flush(self) -> None:
        """What was said goes out."""
        self._sender.flush()

    def _give(self, stream_id: int, count: int) -> None:
        self._sender.say(Kind.WINDOW_UPDATE, count.to_bytes(4), stream_id)

    def _reset(self, call: Call, code: Code) -> None:
        self._count_frame()
        self._sender.say(Kind.RST_STREAM, code.to_bytes(4), call.stream_id)
        self._call_ends(call)
        call.hung_up()

    def _hang_up(self) -> None:
        while self._calls:
            self._calls.popitem()[1].hung_up()

    def _tell_room(self) -> None:
        for call in tuple(self.starved):
            if call.room > 0:
                call.tell_room()

    # --- how it ends

    def drain(self) -> None:
        """No more calls are taken; it ends with those that are open."""
        if self._draining:
            return
        self._draining = True
        self._sender.say(Kind.GOAWAY, self._highest.to_bytes(4) + Code.NO_ERROR.to_bytes(4))
        self._sender.flush()
        self._close_if_done()

    def abort(self) -> None:
        self._transport.abort()

    def _look(self) -> None:
        """Whether its client is there still."""
        silent_s = self._loop.time() - self._heard_s
        patience_s = self._terms.keepalive_s + self._terms.keepalive_patience_s
        if not self._settled:
            self._transport.abort()
            return
        if self._calls and silent_s >= patience_s:
            log.info("a client with calls is silent, and its connection ends", peer=self.peer, seconds=round(silent_s))
            self._transport.abort()
            return
        if not self._calls and silent_s >= IDLE_S:
            self.drain()
            return
        if self._calls and silent_s >= self._terms.keepalive_s:
            self._sender.say(Kind.PING, bytes(8))
            self._sender.flush()
            next_s = self._terms.keepalive_patience_s
        else:
            next_s = self._terms.keepalive_s - (silent_s if self._calls else 0.0)
        self._watch = self._loop.call_later(next_s, self._look)
