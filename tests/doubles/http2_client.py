"""A client of HTTP/2 that we did not write: the library h2 over a plain socket; and beside it whatever bytes one likes.

call ─> h2 ─> socket ─> the server's frames, one by one ─> h2, which raises where they break the protocol ─> Answer
raw bytes ─────┘
"""

from __future__ import annotations

import contextlib
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

import h2.events as events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings

PATIENCE_S = 10.0
SERVICE = "test.Service"
HEAD_BYTES = 9
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
Header = tuple[str, str]


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


@dataclass
class Answer:
    """What came back of one call."""

    headers: dict[str, str] = field(default_factory=dict)
    """Of the beginning and of the end."""
    data: bytes = b""
    reset: int | None = None
    """The error code, where the server has reset the call."""
    ended: bool = False

    @property
    def status(self) -> int | None:
        return int(self.headers["grpc-status"]) if "grpc-status" in self.headers else None

    @property
    def messages(self) -> list[bytes]:
        found, data = [], self.data
        while data:
            size = int.from_bytes(data[1:5])
            found.append(data[5 : 5 + size])
            data = data[5 + size :]
        return found


def framed(message: bytes, *, flag: int = 0, said: int | None = None) -> bytes:
    """A message of gRPC; `said` to have so many bytes."""
    return bytes([flag]) + (len(message) if said is None else said).to_bytes(4) + message


class Http2Client:
    """Use as a context. `gone` says that the server has closed."""

    def __init__(
        self,
        address: str,
        settings: Mapping[SettingCodes, int] | None = None,
        *,
        gives_room: bool = True,
        checks: bool = True,
        receive_bytes: int | None = None,
    ) -> None:
        """`gives_room` for what it has read. `checks` what the server says; without it, only `frames` tell what came.
        The kernel keeps `receive_bytes` that were not read."""
        self._address = address
        self._gives_room = gives_room
        self._checks = checks
        self._receive_bytes = receive_bytes
        self._received = b""
        self.h2 = H2Connection(
            H2Configuration(header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False)
        )
        self.settings = dict(settings or {})
        self.answers: dict[int, Answer] = defaultdict(Answer)
        self.frames: list[Frame] = []
        self.gone = False
        self.told_to_go: tuple[int, int] | None = None
        """By GOAWAY: the error code, and the last call that was taken."""

    def __enter__(self) -> Self:
        host, _, port = self._address.rpartition(":")
        family = socket.AF_INET6 if "[" in host else socket.AF_INET
        self.socket = socket.socket(family)
        try:
            self.socket.settimeout(PATIENCE_S)
            if self._receive_bytes is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
            self.socket.connect((host.strip("[]"), int(port)))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.h2.local_settings = Settings(client=True, initial_values=self.settings)
            self.h2.max_inbound_frame_size = self.h2.local_settings.max_frame_size
            self.h2.decoder.max_allowed_table_size = self.h2.local_settings.header_table_size
            self.h2.initiate_connection()
            self._send()
        except BaseException:
            self.socket.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.socket.close()

    # --- what it says

    def call(self, method: str, message: bytes = b"", headers: Iterable[Header] = ()) -> int:
        """A whole call of one message; gives its stream."""
        stream = self.begin(method, headers)
        self.send(stream, framed(message), ends=True)
        return stream

    def begin(
        self,
        method: str,
        headers: Iterable[Header] = (),
        *,
        ends: bool = False,
        verb: str = "POST",
        kind: str = "application/grpc",
    ) -> int:
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, self.words(method, headers, verb=verb, kind=kind), end_stream=ends)
        self._send()
        return stream

    def words(
        self, method: str, headers: Iterable[Header] = (), *, verb: str = "POST", kind: str = "application/grpc"
    ) -> list[Header]:
        path = method if method.startswith("/") else f"/{SERVICE}/{method}"
        return [
            (":method", verb),
            (":scheme", "http"),
            (":path", path),
            (":authority", self._address),
            ("te", "trailers"),
            ("content-type", kind),
            *headers,
        ]

    def send(self, stream: int, data: bytes, *, ends: bool = False) -> None:
        """As fast as the server gives room. Raises TimeoutError where it gives none."""
        rest = memoryview(data)
        while rest:
            self.wait(lambda: self.h2.local_flow_control_window(stream) > 0 or self.answers[stream].ended)
            if self.answers[stream].ended:
                return
            part = rest[: min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)]
            rest = rest[len(part) :]
            self.h2.send_data(stream, bytes(part), end_stream=ends and not rest)
            self._send()

    def end(self, stream: int) -> None:
        self.h2.end_stream(stream)
        self._send()

    def reset(self, stream: int) -> None:
        self.h2.reset_stream(stream, ErrorCodes.CANCEL)
        self._send()

    def give(self, count: int, stream: int | None = None) -> None:
        """Room to answer in."""
        self.h2.increment_flow_control_window(count, stream)
        self._send()

    def change(self, settings: Mapping[SettingCodes, int]) -> None:
        self.h2.update_settings(settings)  # type: ignore[arg-type]
        self._send()

    def raw(self, data: bytes) -> None:
        """Raises ConnectionError when the server has closed."""
        self.socket.sendall(data)

    # --- what it hears

    def answer(self, stream: int) -> Answer:
        """Once it is whole."""
        self.wait(lambda: self.answers[stream].ended)
        return self.answers[stream]

    def wait(self, until: Callable[[], bool]) -> None:
        """Raises TimeoutError where the server says nothing for so long, and ConnectionError where it closes before."""
        while not until():
            if self.gone:
                raise ConnectionError(f"the server has closed, and told {self.told_to_go}")
            self.hear()

    def wait_gone(self) -> None:
        """Until the server has closed."""
        while not self.gone:
            self.hear()

    def ping(self) -> None:
        """Until the server has answered, and so heard everything before."""
        before = sum(1 for each in self.frames if each.kind == PING and each.flags & 1)
        self.h2.ping(b"12345678")
        self._send()
        self.wait(lambda: sum(1 for each in self.frames if each.kind == PING and each.flags & 1) > before)

    def hear(self) -> None:
        """One frame, or that the server has closed."""
        head = self._take(HEAD_BYTES)
        payload = self._take(int.from_bytes(head[:3])) if head else b""
        if not head or self.gone:
            return
        frame = Frame(head[3], head[4], int.from_bytes(head[5:]), payload)
        self.frames.append(frame)
        if frame.kind == GOAWAY:
            # h2 would hear nothing more, where a server that leaves still has to answer.
            self.told_to_go = int.from_bytes(payload[4:8]), int.from_bytes(payload[:4])
        elif self._checks:
            for event in self.h2.receive_data(head + payload):
                self._hear(event)
            self._send()

    def _hear(self, event: events.Event) -> None:
        match event:
            case (
                events.ResponseReceived(stream_id=int(stream), headers=list(headers))
                | events.TrailersReceived(stream_id=int(stream), headers=list(headers))
            ):
                self.answers[stream].headers |= {str(name): str(value) for name, value in headers}
            case events.DataReceived(stream_id=int(stream), data=bytes(data), flow_controlled_length=int(length)):
                self.answers[stream].data += data
                if self._gives_room and length:
                    self.h2.acknowledge_received_data(length, stream)
            case events.StreamEnded(stream_id=int(stream)):
                self.answers[stream].ended = True
            case events.StreamReset(stream_id=int(stream), error_code=code):
                answer = self.answers[stream]
                if not answer.ended:
                    answer.reset, answer.ended = int(code or 0), True

    def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            try:
                got = self.socket.recv(1 << 18)
            except ConnectionError:
                got = b""
            if not got:
                self.gone = True
                with contextlib.suppress(OSError):  # as every client does, and its server waits for
                    self.socket.shutdown(socket.SHUT_RDWR)
                return b""
            self._received += got
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def _send(self) -> None:
        data = self.h2.data_to_send()
        # A server that has closed may have said why, which is heard next.
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)
