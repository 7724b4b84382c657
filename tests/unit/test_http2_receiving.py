"""What a connection receives is the same conversation wherever it was cut, and a payload goes where it belongs."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from inspectbus.runtime.http2.frames import HEAD_BYTES, PREFACE, Code, Violation
from inspectbus.runtime.http2.inbox import Inbox
from inspectbus.runtime.http2.receiving import BUFFER_BYTES, Receiver
from tests.doubles.http2_client import DATA, framed

MOST_BYTES = 1 << 20


class Hearer:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.inbox = Inbox(MOST_BYTES, lambda count: None)

    def check(self, kind: int, stream_id: int, length: int) -> None:
        if kind == 0xEE:
            raise Violation(Code.PROTOCOL_ERROR, "not that one")

    def frame(self, kind: int, stream_id: int, payload: memoryview, flags: int) -> None:
        self.told.append((kind, stream_id, bytes(payload), flags))

    def data_begins(self, stream_id: int, length: int, flags: int) -> Inbox | None:
        self.told.append(("begins", stream_id, length, flags))
        return self.inbox if stream_id == 1 else None

    def data_ends(self, stream_id: int, flags: int) -> None:
        self.told.append(("ends", stream_id, flags))

    @property
    def messages(self) -> list[bytes]:
        """That are whole."""
        found: list[bytes] = []
        reading = self.inbox.read()
        while True:
            try:
                reading.send(None)
            except StopIteration as read:
                if read.value is None:
                    return found
                found.append(bytes(read.value.data))
                reading = self.inbox.read()


def conversation() -> bytes:
    """As h2 says it."""
    client = H2Connection(H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    headers = [(":method", "POST"), (":scheme", "http"), (":path", "/s/M"), (":authority", "x")]
    for stream in (1, 3):
        client.send_headers(stream, headers)
        client.send_data(stream, framed(b"first") + framed(b"")[:2], pad_length=3)
        client.send_data(stream, framed(b"")[2:], pad_length=0)
        client.ping(bytes(8))
        client.send_data(stream, framed(bytes(range(40))) + framed(b"last"), end_stream=True)
    return client.data_to_send()


SAID = conversation()


def buffer() -> memoryview:
    return memoryview(bytearray(BUFFER_BYTES))


def receive(receiver: Receiver, part: bytes, most: int = 1000) -> None:
    """As asyncio gives it to a connection, as much at once as there is place for."""
    rest = memoryview(part)
    while rest:
        place = receiver.buffer()
        assert len(place), "no place to receive in"
        count = min(len(place), len(rest))
        place[:count] = rest[:count]
        rest = rest[count:]
        receiver.received(count)
        while receiver.take(most):
            pass


def hear(parts: Iterable[bytes], most: int = 1000) -> Hearer:
    hearer = Hearer()
    receiver = Receiver(hearer, buffer())
    for part in parts:
        receive(receiver, part, most)
    hearer.inbox.end()
    return hearer


def as_written(said: bytes) -> list[tuple[object, ...]]:
    """Read from the conversation as a whole, by RFC 9113, 4.1."""
    found: list[tuple[object, ...]] = []
    said = said[len(PREFACE) :]
    while said:
        size, kind, flags, stream = int.from_bytes(said[:3]), said[3], said[4], int.from_bytes(said[5:HEAD_BYTES])
        if kind == DATA:
            found += [("begins", stream, size, flags), ("ends", stream, flags)]
        else:
            found.append((kind, stream, said[HEAD_BYTES : HEAD_BYTES + size], flags))
        said = said[HEAD_BYTES + size :]
    return found


@pytest.mark.parametrize("most", [1, 1000])
def test_a_conversation_is_the_same_wherever_it_is_cut(most: int) -> None:
    cuts = [(SAID[:at], SAID[at:]) for at in range(len(SAID) + 1)]
    for parts in [*cuts, tuple(SAID[at : at + 1] for at in range(len(SAID)))]:
        hearer = hear(parts, most)
        assert hearer.told == as_written(SAID)
        assert hearer.messages == [b"first", b"", bytes(range(40)), b"last"]


@pytest.mark.parametrize("cut", [1, 7, 50, 120])
def test_what_one_has_not_finished_is_not_mixed_with_what_another_says(cut: int) -> None:
    """They share the place that they receive in."""
    hearers, shared = [Hearer() for _ in range(3)], buffer()
    receivers = [Receiver(each, shared) for each in hearers]
    for at in range(0, len(SAID), cut):
        for receiver in receivers:
            receive(receiver, SAID[at : at + cut])

    for each in hearers:
        each.inbox.end()
        assert each.told == as_written(SAID)
        assert each.messages == [b"first", b"", bytes(range(40)), b"last"]


def test_a_frame_larger_than_the_buffer_goes_where_it_is_wanted_and_nowhere_else() -> None:
    hearer = Hearer()
    receiver = Receiver(hearer, buffer())
    message = bytes(range(256)) * 2000
    payload = framed(message)
    start = PREFACE + len(payload).to_bytes(3) + bytes([DATA, 0]) + (1).to_bytes(4) + payload[:100]
    receiver.buffer()[: len(start)] = start
    receiver.received(len(start))
    assert not receiver.take(10)

    place = receiver.buffer()
    assert len(place) == len(payload) - 100 > BUFFER_BYTES
    place[:] = payload[100:]
    receiver.received(len(place))

    assert hearer.told[-1] == ("ends", 1, 0)
    hearer.inbox.end()
    assert hearer.messages == [message]


def test_of_many_frames_so_many_are_told_as_are_asked_for() -> None:
    hearer = Hearer()
    receiver = Receiver(hearer, buffer())
    said = PREFACE + (bytes([0, 0, 0, 6, 0]) + bytes(4)) * 10
    receiver.buffer()[: len(said)] = said
    receiver.received(len(said))

    assert receiver.take(4)
    assert len(hearer.told) == 3, "the greeting is one too"
    assert receiver.take(4)
    assert not receiver.take(4)
    assert len(hearer.told) == 10


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1", PREFACE[:-1] + b"?", PREFACE + bytes([0, 0, 3, DATA, 8]) + bytes(3) + b"\1" + b"\3ab"],
    ids=["HTTP/1.1", "nearly", "padding"],
)
def test_what_is_no_http2_is_a_violation(said: bytes) -> None:
    with pytest.raises(Violation):
        hear([said])


def test_a_frame_that_may_not_come_is_told_by_its_head_alone() -> None:
    with pytest.raises(Violation, match="not that one"):
        hear([PREFACE + bytes([0, 1, 0, 0xEE, 0, 0, 0, 0, 1])])


def test_what_is_forgotten_is_not_told() -> None:
    hearer = Hearer()
    receiver = Receiver(hearer, buffer())
    receiver.buffer()[: len(SAID)] = SAID
    receiver.received(len(SAID))

    receiver.forget()

    assert not receiver.take(1000)
    assert hearer.told == []
