"""A network cable between a client and a server, to be pulled, put back or torn.

client ─> 127.0.0.1:port ─> buffer ─> target, and back; one thread moves all bytes
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Self

BUFFER_BYTES = 1 << 16
"""Per direction; what the target does not take, the client keeps, as without us."""
PATIENCE_S = 10.0
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing says nothing more and answers the peer with RST."""


class TcpProxy:
    """Passes connections to host:port on. Use as a context; leaving it closes all of them."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._orders: SimpleQueue[tuple[Callable[[], None], Future[None]]] = SimpleQueue()
        self._bell, self._ring = socket.socketpair()
        self._pipes: list[_Pipe] = []
        self._cut = self._over = False
        self._thread = threading.Thread(target=self._serve, name="tcp-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._order(self._end)
        self._thread.join(PATIENCE_S)
        for each in (self._listener, self._bell, self._ring):
            each.close()

    def cut(self) -> None:
        """From now on no byte passes, on old connections and new ones; nobody is told."""
        self._order(lambda: setattr(self, "_cut", True))

    def heal(self) -> None:
        """What was on its way goes on, as after the retransmissions of TCP."""
        self._order(lambda: setattr(self, "_cut", False))

    def reset(self) -> None:
        """Both ends of every connection are told that it is gone; new ones work, unless the link is cut."""
        self._order(self._tear)

    def _order(self, order: Callable[[], None]) -> None:
        """Has it done by the thread that moves the bytes; it is in force when this returns."""
        done: Future[None] = Future()
        self._orders.put((order, done))
        self._ring.send(b"!")
        done.result(PATIENCE_S)

    def _serve(self) -> None:
        while not self._over:
            poll = select.poll()
            poll.register(self._bell, select.POLLIN)
            work: dict[int, list[Callable[[], None]]] = {}
            if not self._cut:
                work[self._listener.fileno()] = [self._accept]
                poll.register(self._listener, select.POLLIN)
                self._pipes = [pipe for pipe in self._pipes if not pipe.closed]
                for number, (wanted, steps) in _interests(self._pipes).items():
                    poll.register(number, wanted)
                    work[number] = steps
            for number, _ in poll.poll():
                for step in work.get(number, ()):
                    step()
            self._obey()

    def _obey(self) -> None:
        while not self._orders.empty():
            order, done = self._orders.get()
            self._bell.recv(1)
            order()
            done.set_result(None)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            target = socket.create_connection(self._target, timeout=PATIENCE_S)
        except OSError:
            _close(client, reset=True)
            return
        for end in (client, target):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there, back = _Pipe(client, target), _Pipe(target, client)
        there.other, back.other = back, there
        self._pipes += [there, back]

    def _tear(self) -> None:
        for pipe in self._pipes:
            _close(pipe.source, reset=True)
        self._pipes = []

    def _end(self) -> None:
        self._tear()
        self._over = True


class _Pipe:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.buffer = bytearray()
        self.ended = False
        self.other: _Pipe = self

    @property
    def closed(self) -> bool:
        return self.source.fileno() < 0 or self.sink.fileno() < 0

    def fill(self) -> None:
        if self.closed or self.ended or len(self.buffer) >= BUFFER_BYTES:
            return
        try:
            part = self.source.recv(BUFFER_BYTES - len(self.buffer))
        except BlockingIOError:
            return
        except OSError:
            self._close(reset=True)
            return
        self.buffer += part
        self.ended = not part
        self.drain()

    def drain(self) -> None:
        if self.closed:
            return
        try:
            if self.buffer:
                del self.buffer[: self.sink.send(self.buffer)]
            if self.ended and not self.buffer:
                self.sink.shutdown(socket.SHUT_WR)
                if self.other.ended and not self.other.buffer:
                    self._close()
        except BlockingIOError:
            return
        except OSError:
            self._close(reset=True)

    def _close(self, reset: bool = False) -> None:
        _close(self.source, reset)
        _close(self.sink, reset)


def _interests(pipes: list[_Pipe]) -> dict[int, tuple[int, list[Callable[[], None]]]]:
    """By file number: what to wait for, and what to do then."""
    interests: dict[int, tuple[int, list[Callable[[], None]]]] = {}
    for pipe in pipes:
        for end, event, step, wanted in (
            (pipe.source, select.POLLIN, pipe.fill, not pipe.ended and len(pipe.buffer) < BUFFER_BYTES),
            (pipe.sink, select.POLLOUT, pipe.drain, bool(pipe.buffer)),
        ):
            if wanted:
                events, steps = interests.get(end.fileno(), (0, []))
                interests[end.fileno()] = (events | event, [*steps, step])
    return interests


def _close(end: socket.socket, reset: bool = False) -> None:
    if reset and end.fileno() >= 0:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.close()
