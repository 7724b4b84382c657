"""What our server over HTTP/2 promises its clients, over real sockets, to clients that others wrote; and who breaks it.

gRPC's own client, and the library h2 ─> Server, behind the door's guard ─> a scripted service
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import socket
import ssl
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import hpack
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from structlog.testing import capture_logs

from inspectbus.runtime import loop_server as loop_server_module
from inspectbus.runtime.http2 import connection as connection_module
from inspectbus.runtime.http2 import server as server_module
from inspectbus.runtime.http2.call import Status
from inspectbus.runtime.settings import ServiceSettings
from inspectbus.runtime.tls import server_context
from tests.doubles.certificates import Authority
from tests.doubles.http2_client import (
    DATA,
    HEADERS,
    PATIENCE_S,
    PING,
    PREFACE,
    RST_STREAM,
    SERVICE,
    SETTINGS,
    WINDOW_UPDATE,
    Header,
    Http2Client,
    framed,
)
from tests.doubles.http2_server import Http2Server

MB = 1 << 20
MOST_BYTES = 4 * MB
PUSH_PROMISE, GOAWAY, CONTINUATION = 5, 7, 9
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
LARGEST_WINDOW = (1 << 31) - 1
OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 3, 4, 8, 12, 13


def opened(**terms: Any) -> Http2Server:
    settings = ServiceSettings(drain_s=0.1, rpc_threads=64, max_message_bytes=MOST_BYTES)
    return Http2Server(settings, **terms)


@pytest.fixture
def server() -> Iterator[Http2Server]:
    with capture_logs() as logs, opened() as server:
        yield server
    assert not server.faults
    assert not [each for each in logs if "beyond its guard" in each["event"]]


@pytest.fixture
def client(server: Http2Server) -> Iterator[Http2Client]:
    with Http2Client(server.address) as client:
        yield client


@pytest.fixture
def channel(server: Http2Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def method(channel: grpc.Channel, name: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(f"/{SERVICE}/{name}", None, None)


def counted(channel: grpc.Channel) -> grpc.UnaryStreamMultiCallable[bytes, bytes]:
    return channel.unary_stream(f"/{SERVICE}/Count", None, None)


def failed(channel: grpc.Channel, name: str, message: bytes = b"", timeout: float = PATIENCE_S) -> Any:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, name)(message, timeout=timeout)
    return caught.value


def frame(kind: int, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def serves(server: Http2Server) -> bool:
    """Whether another client is answered."""
    with Http2Client(server.address) as other:
        return other.answer(other.call("Echo", b"well")).messages == [b"well"]


# --- messages


@pytest.mark.parametrize("how", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_message_arrives_in_whatever_way_grpc_compresses_it(channel: grpc.Channel, how: grpc.Compression) -> None:
    message = bytes(range(256)) * 4000

    assert method(channel, "Echo")(message, timeout=PATIENCE_S, compression=how) == message


def test_a_client_on_an_event_loop_streams_compressed_messages_and_is_answered_as_it_goes(server: Http2Server) -> None:
    async def conversation() -> list[bytes]:
        async with grpc.aio.insecure_channel(server.address, compression=grpc.Compression.Gzip) as channel:
            relay: Any = channel.stream_stream(f"/{SERVICE}/Relay", None, None)
            call = relay(timeout=PATIENCE_S)
            answers = []
            for size in (0, 1, 100_000, 3):
                await call.write(bytes(size))
                answers.append(await call.read())
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK
            return answers

    assert [len(each) for each in asyncio.run(conversation())] == [0, 1, 100_000, 3]


@pytest.mark.parametrize(("how", "bits"), [("gzip", 31), ("deflate", 15)])
def test_a_message_that_inflates_beyond_the_limit_is_refused_and_never_held(
    server: Http2Server, client: Http2Client, how: str, bits: int
) -> None:
    pack = zlib.compressobj(9, wbits=bits)
    bomb = pack.compress(bytes(64 * MB)) + pack.flush()
    assert len(bomb) < MB

    tracemalloc.start()
    try:
        stream = client.begin("Echo", [("grpc-encoding", how)])
        client.send(stream, framed(bomb, flag=1), ends=True)
        answer = client.answer(stream)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert answer.status == RESOURCE_EXHAUSTED
    assert "inflated" in answer.headers["grpc-message"]
    assert peak < 4 * MOST_BYTES
    assert serves(server)


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("gzip", b"no gzip"),
        ("gzip", zlib.compress(b"deflate is no gzip")),
        ("deflate", zlib.compress(bytes(1000))[:-5]),
        ("deflate", b""),
        ("identity", b"not compressed"),
        ("snappy", b"not known"),
    ],
)
def test_what_cannot_be_inflated_is_refused_as_the_callers_fault(
    client: Http2Client, encoding: str, message: bytes
) -> None:
    stream = client.begin("Echo", [("grpc-encoding", encoding)])
    client.send(stream, framed(message, flag=1), ends=True)

    assert client.answer(stream).status == INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (framed(bytes(MOST_BYTES)), OK),
        (framed(b"", said=MOST_BYTES + 1), RESOURCE_EXHAUSTED),
        (framed(b"", said=(1 << 32) - 1), RESOURCE_EXHAUSTED),
        (framed(b"cut")[:3], INVALID_ARGUMENT),
        (framed(b"cut")[:-1], INVALID_ARGUMENT),
        (framed(b"flag", flag=7), INVALID_ARGUMENT),
        (b"", UNIMPLEMENTED),
    ],
    ids=["largest", "larger", "4 GB", "cut prefix", "cut", "flag", "none"],
)
def test_what_is_no_message_is_refused_and_the_connection_lives(client: Http2Client, data: bytes, status: int) -> None:
    stream = client.begin("Echo")
    client.send(stream, data)
    if not client.answers[stream].ended:
        client.end(stream)

    assert client.answer(stream).status == status
    assert client.answer(client.call("Echo", b"next")).messages == [b"next"]


def test_messages_arrive_whole_when_every_byte_comes_alone(server: Http2Server) -> None:
    with Http2Client(server.address) as client:
        stream = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream, client.words("Gather"))
        for size in (0, 1, 70):
            client.h2.send_data(stream, framed(bytes(size)), pad_length=size)
        client.h2.end_stream(stream)
        for each in client.h2.data_to_send():
            client.raw(bytes([each]))

        assert client.answer(stream).messages == [b"3 71"]


@pytest.mark.parametrize(("window", "size"), [(1, 200), (100, 20_000), (16_384, 400_000), (65_535, 3 * MB)])
def test_answers_keep_to_the_room_that_their_client_gives(server: Http2Server, window: int, size: int) -> None:
    """h2 raises where they do not."""
    with Http2Client(server.address, {SettingCodes.INITIAL_WINDOW_SIZE: window}) as client:
        message = bytes(range(250)) * (size // 250 + 1)
        answer = client.answer(client.call("Echo", message))

    assert answer.messages == [message]
    assert answer.status == OK


def test_an_answer_larger_than_a_frame_needs_no_more_room_than_it_has(server: Http2Server) -> None:
    with Http2Client(server.address, gives_room=False) as client:
        assert client.answer(client.call("Count", b"1 60000")).messages == [bytes(60_000)]


def test_answers_wait_while_a_window_that_was_made_smaller_is_below_nothing(server: Http2Server) -> None:
    with Http2Client(server.address, gives_room=False) as client:
        client.give(MB)
        stream = client.call("Count", b"1 200000")
        client.wait(lambda: len(client.answers[stream].data) == 65_535)
        client.change({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
        client.wait(lambda: client.h2.local_settings.initial_window_size == 1000)

        client.give(64_535, stream)
        client.ping()
        assert len(client.answers[stream].data) == 65_535, "its window is 0 now"

        client.give(10, stream)
        client.wait(lambda: len(client.answers[stream].data) == 65_545)
        client.change({SettingCodes.INITIAL_WINDOW_SIZE: 301_000})
        assert client.answer(stream).messages == [bytes(200_000)]


# --- words around messages


def test_metadata_arrive_in_their_order_and_with_every_value(server: Http2Server, channel: grpc.Channel) -> None:
    said = (("one", "1"), ("two-bin", bytes(range(256))), ("one", "2"), ("one", "a, b"), ("two-bin", b""))

    method(channel, "Metadata")(b"", metadata=said, timeout=PATIENCE_S)

    names = {"one", "two-bin"}
    assert [each for each in map(tuple, server.scripted.heard) if each[0] in names] == [
        ("one", "1"),
        ("two-bin", bytes(range(256))),
        ("one", "2"),
        ("one", "a, b"),
        ("two-bin", b""),
    ]
    assert not {"te", "content-type", "grpc-timeout", ":path"} & {name for name, _ in server.scripted.heard}


def test_metadata_of_an_answer_arrive_in_their_order_and_with_every_value(
    server: Http2Server, channel: grpc.Channel
) -> None:
    said = (("one", "1"), ("two-bin", bytes(range(256))), ("one", "2"), ("two-bin", b"\0"))
    server.scripted.status = Status(grpc.StatusCode.ABORTED, "so", said)

    error = failed(channel, "Abort")

    assert error.code() is grpc.StatusCode.ABORTED
    assert sorted(map(tuple, error.trailing_metadata())) == sorted(said)


@pytest.mark.parametrize("details", ["", "100 % of ü is ∞", "a\nb\tc\0", "%41", "𝄞" * 300, "~ !"])
def test_a_status_arrives_with_its_text_whatever_that_is(
    server: Http2Server, channel: grpc.Channel, details: str
) -> None:
    server.scripted.status = Status(grpc.StatusCode.DATA_LOSS, details)

    error = failed(channel, "Abort")

    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, details)


def test_a_refusal_arrives_with_its_kind_and_field(channel: grpc.Channel) -> None:
    error = failed(channel, "Refuse", "zu groß".encode())

    status = rpc_status.from_call(error)
    assert status is not None
    assert status.message == "zu groß"
    request = error_details_pb2.BadRequest()
    assert any(each.Unpack(request) for each in status.details)
    assert [each.field for each in request.field_violations] == ["name"]


def test_a_fault_of_a_method_ends_its_call_alone_and_tells_no_secret(server: Http2Server, client: Http2Client) -> None:
    waiting = client.call("Wait")
    answer = client.answer(client.call("Fail"))

    assert answer.status == INTERNAL
    assert "incident" in answer.headers["grpc-message"]
    assert "secret" not in str(answer.headers)
    assert not client.answers[waiting].ended
    assert serves(server)


@pytest.mark.parametrize(
    ("verb", "kind", "status"),
    [
        ("GET", "application/grpc", "405"),
        ("HEAD", "application/grpc", "405"),
        ("POST", "text/html", "415"),
        ("POST", "", "415"),
        ("POST", "application/grpc-web+proto", "415"),
        ("POST", "application/grpcx", "415"),
        ("POST", "application/grpc+proto", "200"),
        ("POST", "application/grpc;charset=utf-8", "200"),
    ],
)
def test_what_is_no_call_of_grpc_is_answered_by_a_status_of_http(
    client: Http2Client, verb: str, kind: str, status: str
) -> None:
    stream = client.begin("Echo", verb=verb, kind=kind)
    if status == "200":
        client.send(stream, framed(b"x"), ends=True)

    assert client.answer(stream).headers[":status"] == status


@pytest.mark.parametrize(
    "path", ["Nothing", "/", "/test.Service", "/no.Service/Echo", "/test.Service/Echo/", "/ä/ü", "*"]
)
def test_a_method_that_there_is_not_is_unimplemented(client: Http2Client, path: str) -> None:
    stream = client.begin(path if path != "*" else "/*")

    assert client.answer(stream).status == UNIMPLEMENTED


def test_a_call_that_tells_its_length_is_answered(client: Http2Client) -> None:
    """As curl and proxies do, where gRPC's own clients do not."""
    message = framed(bytes(100))
    stream = client.begin("Echo", [("content-length", str(len(message)))])
    client.send(stream, message, ends=True)

    assert client.answer(stream).messages == [bytes(100)]


def test_headers_that_end_a_call_are_its_end(client: Http2Client) -> None:
    stream = client.begin("Gather")
    client.send(stream, framed(b"one"))
    client.h2.send_headers(stream, [("trailer", "x")], end_stream=True)

    assert client.answer(stream).messages == [b"1 3"]


@pytest.mark.parametrize(
    "headers",
    [
        [(":method", "POST"), (":scheme", "http")],
        [(":method", "POST"), (":method", "POST"), (":scheme", "http"), (":path", "/test.Service/Echo")],
        [("te", "trailers"), (":method", "POST"), (":scheme", "http"), (":path", "/test.Service/Echo")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/test.Service/Echo"), ("Upper", "x")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/test.Service/Echo"), ("connection", "close")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/test.Service/Echo"), (":status", "200")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/test.Service/Echo"), ("te", "gzip")],
    ],
    ids=["no path", "two methods", "order", "upper case", "connection", "of an answer", "te"],
)
def test_headers_that_are_no_request_end_their_call_and_no_other(client: Http2Client, headers: list[Header]) -> None:
    stream = client.h2.get_next_available_stream_id()
    client.h2.send_headers(stream, headers)

    assert client.answer(stream).reset == ErrorCodes.PROTOCOL_ERROR
    assert client.answer(client.call("Echo", b"next")).messages == [b"next"]


# --- how calls end


def test_a_deadline_ends_the_call_on_both_sides(server: Http2Server, channel: grpc.Channel) -> None:
    error = failed(channel, "Wait", timeout=0.3)

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.scripted.cancelled.acquire(timeout=PATIENCE_S)
    assert server.scripted.remaining_s is not None
    assert 0 < server.scripted.remaining_s <= 0.31  # its library rounds up to whole milliseconds
    server.wait_quiet(connections=1)


@pytest.mark.parametrize("timeout", ["50m", "50000u", "0S", "99999n"])
def test_a_server_tells_that_a_deadline_is_over_by_itself(client: Http2Client, timeout: str) -> None:
    assert client.answer(client.call("Wait", headers=[("grpc-timeout", timeout)])).status == DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        ("99999999H", 99_999_999 * 3600.0),
        ("2M", 120.0),
        ("30S", 30.0),
        ("40000m", 40.0),
        ("50000000u", 50.0),
        ("123456789S", None),
        ("5", None),
        ("-5S", None),
        ("5x", None),
    ],
)
def test_a_deadline_is_read_in_every_unit(
    server: Http2Server, client: Http2Client, timeout: str, seconds: float | None
) -> None:
    stream = client.call("Wait", headers=[("grpc-timeout", timeout)])
    assert server.scripted.waiting.acquire(timeout=PATIENCE_S)
    client.reset(stream)

    assert server.scripted.remaining_s == (None if seconds is None else pytest.approx(seconds, abs=5))


@pytest.mark.parametrize("by", ["reset", "close", "half-close"])
def test_a_call_whose_client_has_gone_is_cancelled(server: Http2Server, client: Http2Client, by: str) -> None:
    stream = client.call("Wait")
    assert server.scripted.waiting.acquire(timeout=PATIENCE_S)

    if by == "reset":
        client.reset(stream)
    elif by == "close":
        client.socket.close()
    else:
        client.socket.shutdown(socket.SHUT_WR)

    assert server.scripted.cancelled.acquire(timeout=PATIENCE_S)
    server.wait_quiet(connections=by == "reset")


def test_a_cancelled_stream_ends_and_its_connection_goes_on(server: Http2Server, channel: grpc.Channel) -> None:
    answers = counted(channel)(b"1000000 10000", timeout=PATIENCE_S)
    assert next(answers) == bytes(10_000)

    answers.cancel()

    server.wait_quiet(connections=1)
    assert method(channel, "Echo")(b"next", timeout=PATIENCE_S) == b"next"


def test_a_method_that_ends_while_its_client_still_sends_ends_the_call(client: Http2Client) -> None:
    stream = client.begin("Early")
    client.send(stream, framed(b"first"))
    answer = client.answer(stream)
    assert answer.messages == [b"first"]
    assert answer.status == OK
    client.wait(lambda: any(each.kind == RST_STREAM for each in client.frames))
    assert client.frames[-1].payload == bytes(4), "without an error: its client is to stop, and nothing was wrong"

    client.raw(frame(DATA, stream, framed(b"more")) * 3)

    assert client.answer(client.call("Echo", b"next")).messages == [b"next"]


def test_what_still_comes_of_calls_that_are_over_is_no_flood(
    client: Http2Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose large message is refused has sent a whole window of it before it hears so."""
    monkeypatch.setattr(connection_module, "BURST_FRAMES", 100)
    monkeypatch.setattr(connection_module, "FRAMES_PER_S", 1)
    for _ in range(10):
        stream = client.begin("Early")
        client.send(stream, framed(b"first"))
        assert client.answer(stream).status == OK
        client.raw(frame(DATA, stream, bytes(16_384)) * 63)

    assert client.answer(client.call("Echo", b"next")).messages == [b"next"]


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_a_connection_is_as_large_after_thousands_of_calls_as_before(
    server: Http2Server, client: Http2Client, count: int
) -> None:
    def call(times: int) -> None:
        for _ in range(times // 20):
            streams = [client.call("Refuse", f"{at}".encode()) for at in range(20)]
            for stream in streams:
                assert client.answer(stream).status == INVALID_ARGUMENT
            client.answers.clear()
            client.frames.clear()

    def ours() -> int:
        gc.collect()
        snapshot = tracemalloc.take_snapshot()
        only = [tracemalloc.Filter(True, f"*/{each}/*") for each in ("inspectbus", "asyncio", "grpc")]
        return sum(each.size for each in snapshot.filter_traces(only).traces)

    call(100)
    tracemalloc.start()
    try:
        call(100)
        before = ours()
        call(count)
        after = ours()
    finally:
        tracemalloc.stop()

    assert after - before < 50_000
    server.wait_quiet(connections=1)


# --- how servers end


def test_leaving_tells_its_clients_and_finishes_the_calls_in_hand(server: Http2Server, client: Http2Client) -> None:
    stream = client.begin("Slow")
    client.send(stream, framed(b"one"))
    assert server.scripted.waiting.acquire(timeout=PATIENCE_S)

    left = server.leave(PATIENCE_S)
    client.wait(lambda: client.told_to_go is not None)
    assert client.told_to_go == (ErrorCodes.NO_ERROR, stream)
    assert client.answer(client.call("Echo")).reset == ErrorCodes.REFUSED_STREAM
    server.scripted.read_on.set()
    client.send(stream, framed(b"two"), ends=True)

    assert client.answer(stream).messages == [b"2 6"]
    client.wait_gone()
    left.result(PATIENCE_S)


def test_leaving_waits_until_the_last_answer_is_read(server: Http2Server) -> None:
    windows = {SettingCodes.INITIAL_WINDOW_SIZE: 32 * MB}
    with Http2Client(server.address, windows, receive_bytes=4096) as client:
        client.give(32 * MB)
        stream = client.call("Count", b"1 12000000")
        client.wait(lambda: len(client.answers[stream].data) > 0)

        left = server.leave(PATIENCE_S)

        assert client.answer(stream).messages == [bytes(12_000_000)]
        assert client.answers[stream].status == OK
        left.result(PATIENCE_S)


def test_leaving_cancels_what_does_not_end(server: Http2Server, client: Http2Client) -> None:
    client.call("Wait")
    assert server.scripted.waiting.acquire(timeout=PATIENCE_S)

    server.leave(0.1).result(PATIENCE_S)

    assert server.scripted.cancelled.acquire(timeout=PATIENCE_S)
    client.wait_gone()


def test_leaving_ends_a_connection_whose_last_call_its_client_ends(server: Http2Server, client: Http2Client) -> None:
    stream = client.call("Wait")
    assert server.scripted.waiting.acquire(timeout=PATIENCE_S)
    left = server.leave(PATIENCE_S)
    client.wait(lambda: client.told_to_go is not None)

    client.reset(stream)

    client.wait_gone()
    left.result(PATIENCE_S / 2)


def test_no_call_is_lost_when_one_of_two_servers_leaves() -> None:
    with opened() as first, opened() as second:
        both = ",".join(each.address for each in (first, second))
        with grpc.insecure_channel(f"ipv4:{both}") as channel:
            call = method(channel, "Echo")
            for at in range(20):
                assert call(b"%d" % at, timeout=PATIENCE_S) == b"%d" % at
            leaving, staying = (first, second) if first.connections else (second, first)
            left = leaving.leave(PATIENCE_S)
            for at in range(200):
                assert call(b"%d" % at, timeout=PATIENCE_S) == b"%d" % at
            left.result(PATIENCE_S)
            assert staying.connections == 1


def test_a_client_that_leaves_hears_the_answers_to_its_calls(server: Http2Server, client: Http2Client) -> None:
    """As gRPC's client for Java does it: a GOAWAY says no more than that it takes no calls of ours (RFC 9113, 6.8)."""
    stream = client.begin("Gather")
    client.raw(frame(GOAWAY, payload=bytes(8)))
    client.send(stream, framed(b"last"), ends=True)

    assert client.answer(stream).messages == [b"1 4"]
    server.wait_quiet(connections=1)


# --- who breaks the protocol


BROKEN: dict[str, tuple[Callable[[int], bytes], ErrorCodes]] = {
    "data of a call never begun": (lambda _: frame(DATA, 99, b"x"), ErrorCodes.PROTOCOL_ERROR),
    "data of no call": (lambda _: frame(DATA, 0, b"x"), ErrorCodes.PROTOCOL_ERROR),
    "padding longer than its frame": (lambda at: frame(DATA, at, b"\x05abc", PADDED), ErrorCodes.PROTOCOL_ERROR),
    "padded headers that are none": (lambda _: frame(HEADERS, 99, b"\x05", PADDED), ErrorCodes.PROTOCOL_ERROR),
    "data between headers": (
        lambda at: frame(HEADERS, 99, b"") + frame(DATA, at, b"x"),
        ErrorCodes.PROTOCOL_ERROR,
    ),
    "headers of another call between headers": (
        lambda _: frame(HEADERS, 99, b"") + frame(CONTINUATION, 101, b"", END_HEADERS),
        ErrorCodes.PROTOCOL_ERROR,
    ),
    "headers that go on without a beginning": (lambda at: frame(CONTINUATION, at), ErrorCodes.PROTOCOL_ERROR),
    "headers of no call": (lambda _: frame(HEADERS, 0, b"\x83", END_HEADERS), ErrorCodes.PROTOCOL_ERROR),
    "a call of the server's": (lambda _: frame(HEADERS, 98, b"\x83", END_HEADERS), ErrorCodes.PROTOCOL_ERROR),
    "headers that are none": (lambda _: frame(HEADERS, 99, b"\xff" * 20, END_HEADERS), ErrorCodes.COMPRESSION_ERROR),
    "headers that end early": (lambda _: frame(HEADERS, 99, b"\x40\x0aab", END_HEADERS), ErrorCodes.COMPRESSION_ERROR),
    "a push": (lambda at: frame(PUSH_PROMISE, at, bytes(4), END_HEADERS), ErrorCodes.PROTOCOL_ERROR),
    "a ping of seven bytes": (lambda _: frame(PING, 0, bytes(7)), ErrorCodes.FRAME_SIZE_ERROR),
    "a reset of five bytes": (lambda at: frame(RST_STREAM, at, bytes(5)), ErrorCodes.FRAME_SIZE_ERROR),
    "a reset of a call never begun": (lambda _: frame(RST_STREAM, 99, bytes(4)), ErrorCodes.PROTOCOL_ERROR),
    "settings of five bytes": (lambda _: frame(SETTINGS, 0, bytes(5)), ErrorCodes.FRAME_SIZE_ERROR),
    "settings that are heard and more": (lambda _: frame(SETTINGS, 0, bytes(6), ACK), ErrorCodes.FRAME_SIZE_ERROR),
    "a window larger than one may be": (
        lambda _: frame(SETTINGS, 0, (4).to_bytes(2) + (1 << 31).to_bytes(4)),
        ErrorCodes.FLOW_CONTROL_ERROR,
    ),
    "frames smaller than they may be": (
        lambda _: frame(SETTINGS, 0, (5).to_bytes(2) + (1).to_bytes(4)),
        ErrorCodes.PROTOCOL_ERROR,
    ),
    "a frame larger than one may be": (lambda _: frame(PING, 0, bytes(20_000)), ErrorCodes.FRAME_SIZE_ERROR),
    "a frame said to be of 16 MB": (
        lambda at: b"\xff\xff\xff" + bytes([DATA, 0]) + at.to_bytes(4),
        ErrorCodes.FRAME_SIZE_ERROR,
    ),
    "no more room": (lambda _: frame(WINDOW_UPDATE, 0, bytes(4)), ErrorCodes.PROTOCOL_ERROR),
    "more room than there may be": (
        lambda _: frame(WINDOW_UPDATE, 0, LARGEST_WINDOW.to_bytes(4)),
        ErrorCodes.FLOW_CONTROL_ERROR,
    ),
    "room of three bytes": (lambda _: frame(WINDOW_UPDATE, 0, bytes(3)), ErrorCodes.FRAME_SIZE_ERROR),
    "room for a call never begun": (
        lambda _: frame(WINDOW_UPDATE, 99, (1).to_bytes(4)),
        ErrorCodes.PROTOCOL_ERROR,
    ),
    "room for a call that becomes more than there may be": (
        lambda at: (
            frame(WINDOW_UPDATE, at, (LARGEST_WINDOW - 65_535).to_bytes(4))
            + frame(SETTINGS, 0, (4).to_bytes(2) + (65_536).to_bytes(4))
        ),
        ErrorCodes.FLOW_CONTROL_ERROR,
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_connection_that_breaks_the_protocol_is_told_why_and_ends_with_its_calls_alone(
    server: Http2Server, client: Http2Client, what: str
) -> None:
    made, code = BROKEN[what]
    stream = client.call("Wait")
    assert server.scripted.waiting.acquire(timeout=PATIENCE_S)
    open_stream = client.begin("Gather")
    client.ping()

    client.raw(made(open_stream))
    client.wait_gone()

    assert client.told_to_go is not None
    assert client.told_to_go[0] == code
    assert stream <= client.told_to_go[1] <= max(open_stream, 101)
    assert server.scripted.cancelled.acquire(timeout=PATIENCE_S)
    server.wait_quiet()
    assert serves(server)


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (lambda at: frame(WINDOW_UPDATE, at, bytes(4)), ErrorCodes.PROTOCOL_ERROR),
        (lambda at: frame(WINDOW_UPDATE, at, LARGEST_WINDOW.to_bytes(4)), ErrorCodes.FLOW_CONTROL_ERROR),
        (lambda at: frame(DATA, at, b"x"), ErrorCodes.STREAM_CLOSED),
        (lambda at: frame(DATA, at, b"", END_STREAM), ErrorCodes.STREAM_CLOSED),
        (lambda at: frame(HEADERS, at, b"\x83", END_HEADERS | END_STREAM), ErrorCodes.STREAM_CLOSED),
    ],
    ids=["no room", "too much room", "data after its end", "its end again", "headers after its end"],
)
def test_a_call_that_breaks_the_protocol_ends_alone(
    server: Http2Server, client: Http2Client, made: Callable[[int], bytes], code: ErrorCodes
) -> None:
    stream = client.call("Wait")
    assert server.scripted.waiting.acquire(timeout=PATIENCE_S)

    client.raw(made(stream))

    assert client.answer(stream).reset == code
    assert server.scripted.cancelled.acquire(timeout=PATIENCE_S)
    client.raw(made(stream) if made(stream)[3] != HEADERS else b"")  # of a call that is over it means nothing
    assert client.answer(client.call("Echo", b"next")).messages == [b"next"]


def test_a_call_that_is_sent_beyond_its_window_ends_alone(server: Http2Server, client: Http2Client) -> None:
    stream = client.begin("Slow")
    assert server.scripted.waiting.acquire(timeout=PATIENCE_S)
    client.ping()

    client.raw(frame(DATA, stream, bytes(16_384)) * 65)

    assert client.answer(stream).reset == ErrorCodes.FLOW_CONTROL_ERROR
    assert client.answer(client.call("Echo", b"next")).messages == [b"next"]


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n",
        bytes.fromhex("1603010200010001fc0303") + bytes(200),
        bytes(range(256)) * 20,
        PREFACE[:-1] + b"x",
        PREFACE + frame(PING, 0, bytes(8)),
    ],
    ids=["HTTP/1.1", "TLS", "anything", "nearly", "no settings"],
)
def test_who_speaks_something_else_is_let_go(server: Http2Server, said: bytes) -> None:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE_S) as speaker:
        speaker.sendall(said)
        heard = _all_of(speaker)

    assert frame(GOAWAY, 0, bytes(4) + ErrorCodes.PROTOCOL_ERROR.to_bytes(4)) in heard
    server.wait_quiet()
    assert serves(server)


@pytest.mark.parametrize("said", [b"", PREFACE[:10], PREFACE], ids=["nothing", "half a greeting", "a greeting"])
def test_who_does_not_begin_to_speak_is_let_go(
    server: Http2Server, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "FIRST_WORD_S", 0.1)
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE_S) as speaker:
        speaker.sendall(said)
        _all_of(speaker)

    server.wait_quiet()


def _all_of(connected: socket.socket) -> bytes:
    """Until it is closed. Raises TimeoutError."""
    heard = b""
    try:
        while got := connected.recv(65_536):
            heard += got
    except ConnectionError:
        pass
    return heard


# --- who sends too much


def requested(client: Http2Client, name: str) -> bytes:
    """The headers of a call, as one block that refers to nothing."""
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*each) for each in client.words(name)])


FLOODS: dict[str, Callable[[int, bytes], bytes]] = {
    "pings": lambda _, __: frame(PING, 0, bytes(8)),
    "settings": lambda _, __: frame(SETTINGS),
    "empty data": lambda _, __: frame(DATA, 1),
    "priorities": lambda _, __: frame(2, 1, bytes(5)),
    "frames of no kind": lambda _, __: frame(0xFA, 1),
    "calls that are cancelled": lambda at, words: (
        frame(HEADERS, at, words, END_HEADERS) + frame(RST_STREAM, at, bytes(4))
    ),
    "calls that make us cancel them": lambda at, words: (
        frame(HEADERS, at, words, END_HEADERS) + frame(WINDOW_UPDATE, at, bytes(4))
    ),
    "calls that are sent after their end": lambda at, words: (
        frame(HEADERS, at, words, END_HEADERS | END_STREAM) + frame(DATA, at, b"x")
    ),
    "calls that are none": lambda at, _: frame(HEADERS, at, b"\x83", END_HEADERS),
    "calls beyond the limit": lambda at, words: frame(HEADERS, at, words, END_HEADERS),
    "headers that never end": lambda at, _: frame(HEADERS, 3, b"") if at == 3 else frame(CONTINUATION, 3),
    "headers that take long to read": lambda at, words: frame(
        HEADERS, at, b"\x20" * (16_000 - len(words)) + words, END_HEADERS | END_STREAM
    ),
    "headers that fill the table": lambda at, words: frame(
        HEADERS, at, words + b"\x40\x01x\x1f" + b"v" * 31 + b"\x40\x01y\x01v" * 3000, END_HEADERS | END_STREAM
    ),
    "settings beyond number": lambda _, __: frame(SETTINGS, 0, (b"\0\4" + bytes(4)) * 2700),
    "bytes of calls that are over": lambda at, words: (
        frame(HEADERS, at, words, END_HEADERS) + frame(RST_STREAM, at, bytes(4)) + frame(DATA, at, b"x") * 3
    ),
}


@pytest.mark.parametrize("what", FLOODS)
def test_who_floods_a_connection_loses_it_while_others_are_served(what: str) -> None:
    with (
        opened(most_calls=20) as server,
        Http2Client(server.address, checks=False) as flooding,
        Http2Client(server.address) as other,
    ):
        words = requested(flooding, "Slow")
        flooding.raw(frame(HEADERS, 1, words, END_HEADERS))
        at = 1
        try:
            for _ in range(60):
                for _ in range(10):
                    flooding.raw(b"".join(FLOODS[what](each, words) for each in range(at + 2, at + 52, 2)))
                    at += 50
                assert other.answer(other.call("Echo", b"me")).messages == [b"me"]
        except ConnectionError:
            pass
        flooding.wait_gone()

        assert flooding.told_to_go is not None
        assert flooding.told_to_go[0] == ErrorCodes.ENHANCE_YOUR_CALM
        server.scripted.read_on.set()
        server.wait_quiet(connections=1)
        assert other.answer(other.call("Echo", b"after")).messages == [b"after"]


def test_a_client_that_asks_for_the_time_of_its_way_with_each_answer_is_no_flood(
    client: Http2Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gRPC's clients for Go and Java do, to make their windows as large as they need."""
    monkeypatch.setattr(connection_module, "BURST_FRAMES", 30)
    monkeypatch.setattr(connection_module, "FRAMES_PER_S", 1)
    for _ in range(100):
        stream = client.begin("Echo")
        client.send(stream, framed(b"x"))
        client.end(stream)
        assert client.answer(stream).status == OK
        client.ping()


def test_a_thousand_calls_beyond_the_limit_are_refused_and_the_connection_lives() -> None:
    with opened(most_calls=10) as server, Http2Client(server.address) as client:
        client.ping()
        # Of h2, which would keep to what the server has told it.
        client.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = LARGEST_WINDOW
        client.h2.remote_settings.acknowledge()
        streams = [client.begin("Wait") for _ in range(1010)]
        for stream in streams[10:]:
            assert client.answer(stream).reset == ErrorCodes.REFUSED_STREAM
        assert server.calls == 10
        for stream in streams[:10]:
            client.reset(stream)

        assert client.answer(client.call("Echo", b"next")).messages == [b"next"]


def test_a_client_that_never_reads_costs_no_more_than_what_it_asked_first(server: Http2Server) -> None:
    """All calls have room for all answers: only TCP stops them."""
    calls, answer_bytes = 10, MB
    with Http2Client(server.address, {SettingCodes.INITIAL_WINDOW_SIZE: LARGEST_WINDOW}, receive_bytes=4096) as silent:
        silent.give(LARGEST_WINDOW - 65_535)
        tracemalloc.start()
        try:
            for _ in range(calls):
                silent.call("Count", b"100 %d" % answer_bytes)
            with Http2Client(server.address) as other:
                for _ in range(100):
                    assert other.answer(other.call("Echo", b"me")).messages == [b"me"]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert server.scripted.given < 20, "what lies in the kernel's buffers"
        assert peak < 3 * calls * answer_bytes
    server.wait_quiet()


@pytest.mark.parametrize("kept", ["alone", "in parts", "by reference"])
def test_headers_beyond_their_limit_end_the_connection_and_take_no_memory(server: Http2Server, kept: str) -> None:
    with Http2Client(server.address, checks=False) as client:
        start = requested(client, "Echo")
        large = hpack.Encoder().encode([(f"name-{at}", "v" * 100) for at in range(160)], huffman=False)
        # A value of 4,000 bytes is kept in the table, and then named again and again by one byte.
        bomb = b"\x40\x01x" + b"\x7f" + bytes([0xA1, 0x1E]) + b"v" * 4000 + b"\xbe" * 12_000
        if kept == "alone":
            said = frame(HEADERS, 1, (start + large)[:16_384], END_HEADERS)
        elif kept == "in parts":
            said = frame(HEADERS, 1, start) + b"".join(
                frame(CONTINUATION, 1, large[at : at + 1000]) for at in range(0, len(large), 1000)
            )
        else:
            said = frame(HEADERS, 1, start + bomb[: 16_384 - len(start)], END_HEADERS)
        tracemalloc.start()
        try:
            client.raw(said)
            client.wait_gone()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert client.told_to_go is not None
    assert client.told_to_go[0] == ErrorCodes.ENHANCE_YOUR_CALM
    assert peak < 2 * MB
    assert serves(server)


# --- who says nothing


def test_a_silent_client_with_an_open_call_is_asked_and_let_go_and_one_without_calls_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "FIRST_WORD_S", 0.1)
    with (
        opened(keepalive_s=0.2, keepalive_patience_s=0.2) as server,
        Http2Client(server.address) as idle,
        Http2Client(server.address) as silent,
    ):
        idle.ping()
        silent.call("Wait")

        assert server.scripted.cancelled.acquire(timeout=PATIENCE_S)

        server.wait_quiet(connections=1)
        assert idle.answer(idle.call("Echo", b"still here")).messages == [b"still here"]
        assert not any(each.kind == PING and not each.flags & ACK for each in idle.frames)
        silent.wait_gone()
        assert any(each.kind == PING for each in silent.frames)


def test_a_client_that_answers_when_it_is_asked_keeps_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "FIRST_WORD_S", 0.1)
    with (
        opened(keepalive_s=0.05, keepalive_patience_s=1.0) as server,
        Http2Client(server.address) as client,
    ):
        stream = client.call("Wait")
        client.wait(lambda: sum(each.kind == PING for each in client.frames) >= 2)

        assert not client.answers[stream].ended
        assert server.calls == 1


def test_a_connection_without_calls_is_let_go_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "FIRST_WORD_S", 0.05)
    monkeypatch.setattr(connection_module, "IDLE_S", 0.3)
    with (
        opened(keepalive_s=0.05, keepalive_patience_s=5.0) as server,
        Http2Client(server.address) as idle,
        Http2Client(server.address) as busy,
    ):
        stream = busy.call("Wait")
        idle.wait_gone()

        assert idle.told_to_go == (ErrorCodes.NO_ERROR, 0)
        server.wait_until(lambda: len(server.server._host.open) == 1)
        busy.ping()
        assert not busy.answers[stream].ended


def test_a_client_without_calls_that_does_not_read_is_let_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "FIRST_WORD_S", 0.05)
    monkeypatch.setattr(connection_module, "IDLE_S", 0.3)
    with (
        opened(keepalive_s=0.05, keepalive_patience_s=5.0) as server,
        Http2Client(server.address, {SettingCodes.INITIAL_WINDOW_SIZE: LARGEST_WINDOW}, receive_bytes=4096) as silent,
    ):
        silent.give(LARGEST_WINDOW - 65_535)
        silent.call("Count", b"100 400000", headers=[("grpc-timeout", "100m")])

        server.wait_quiet()


# --- who is one too many


def test_a_client_that_gives_no_room_to_be_answered_loses_its_call_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_server_module, "MESSAGE_S", 0.2)
    with opened() as server, Http2Client(server.address, {SettingCodes.INITIAL_WINDOW_SIZE: 0}) as silent:
        stream = silent.call("Echo", b"too much")

        assert silent.answer(stream).status == DEADLINE_EXCEEDED
        server.wait_quiet(connections=1)


def test_who_is_one_too_many_is_let_go_until_there_is_room(server: Http2Server, client: Http2Client) -> None:
    client.ping()
    server.ask(lambda: setattr(server.server._host, "most_open", 1))

    with capture_logs() as logs:
        for _ in range(3):
            with Http2Client(server.address) as other:
                other.wait_gone()
                assert other.frames == []
    assert [(each["log_level"], each["connections"]) for each in logs] == [("warning", 1)]

    assert client.answer(client.call("Echo", b"still here")).messages == [b"still here"]
    server.ask(lambda: setattr(server.server._host, "most_open", 2))
    assert serves(server)


def test_a_process_that_may_open_no_more_says_so_a_few_times_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, client: Http2Client, server: Http2Server
) -> None:
    client.ping()
    asked = threading.Semaphore(0)

    def refuse(_: socket.socket) -> None:
        asked.release()
        raise OSError(errno.EMFILE, "too many open files")

    begun_s = time.monotonic()
    with monkeypatch.context() as patched:
        patched.setattr(socket.socket, "accept", refuse)
        with Http2Client(server.address) as other:
            assert asked.acquire(timeout=PATIENCE_S)
            client.ping()
            assert len(server.faults) <= server_module.AT_ONCE * (1 + time.monotonic() - begun_s)
            assert all("out of system resource" in each for each in server.faults)
            patched.undo()
            assert other.answer(other.call("Echo", b"well")).messages == [b"well"]
    server.faults.clear()


# --- other ways to a server


@pytest.fixture
def secured(tmp_path: Path) -> tuple[ServiceSettings, Authority]:
    authority = Authority(tmp_path / "authority")
    papers = authority.issue("acquisition")
    settings = ServiceSettings(drain_s=0.1, tls_certificate=papers.certificate, tls_key=papers.key)
    return settings, authority


def test_a_large_message_goes_both_ways_through_tls(secured: tuple[ServiceSettings, Authority]) -> None:
    settings, authority = secured
    credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
    message = bytes(range(256)) * 12_000
    with Http2Server(settings, tls=server_context(settings)) as server:
        with grpc.secure_channel(server.address, credentials) as channel:
            assert method(channel, "Echo")(message, timeout=PATIENCE_S) == message
            answers = counted(channel)(b"30 200000", timeout=PATIENCE_S)
            assert [len(each) for each in answers] == [200_000] * 30
        server.wait_quiet()
        assert not server.faults


@pytest.mark.parametrize("spoken", [None, "http/1.1"])
def test_who_does_not_agree_on_http2_in_tls_is_let_go(
    secured: tuple[ServiceSettings, Authority], spoken: str | None
) -> None:
    settings, authority = secured
    context = ssl.create_default_context(cafile=str(authority.file))
    if spoken is not None:
        context.set_alpn_protocols([spoken])
    with Http2Server(settings, tls=server_context(settings)) as server:
        host, _, port = server.address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), PATIENCE_S) as plain,
            contextlib.suppress(ssl.SSLError),
            context.wrap_socket(plain, server_hostname="localhost") as speaker,
        ):
            speaker.sendall(PREFACE + frame(SETTINGS))
            assert _all_of(speaker) == b""
        server.wait_quiet()
        assert not server.faults


def test_who_is_still_agreeing_on_tls_when_a_server_leaves_is_told_so(
    secured: tuple[ServiceSettings, Authority],
) -> None:
    settings, authority = secured
    context = ssl.create_default_context(cafile=str(authority.file))
    context.set_alpn_protocols(["h2"])
    credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
    with (
        Http2Server(settings, tls=server_context(settings)) as server,
        socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])), PATIENCE_S) as plain,
        grpc.secure_channel(server.address, credentials) as channel,
    ):
        call = method(channel, "Wait").future(b"", timeout=PATIENCE_S)
        # Who came before has been accepted, too.
        assert server.scripted.waiting.acquire(timeout=PATIENCE_S)
        server.leave(PATIENCE_S / 2)
        server.wait_until(lambda: all(each._draining for each in server.server._host.open))

        with context.wrap_socket(plain, server_hostname="localhost") as speaker:
            speaker.sendall(PREFACE + frame(SETTINGS))
            speaker.settimeout(PATIENCE_S / 4)
            assert frame(GOAWAY, 0, bytes(8)) in _all_of(speaker)
        assert not call.done()


def test_a_server_on_ipv6_is_served() -> None:
    with Http2Server(ServiceSettings(host="::1", drain_s=0.1)) as server:
        assert server.address.startswith("[::1]:")
        assert serves(server)
        with grpc.insecure_channel(server.address) as channel:
            assert method(channel, "Echo")(b"six", timeout=PATIENCE_S) == b"six"


def test_many_clients_at_once_are_all_answered(server: Http2Server) -> None:
    answered: list[bytes] = []

    def call(name: bytes) -> None:
        with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            for at in range(10):
                answered.append(method(channel, "Echo")(b"%s %d" % (name, at), timeout=PATIENCE_S))

    threads = [threading.Thread(target=call, args=(b"%d" % at,)) for at in range(12)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE_S)

    assert sorted(answered) == sorted(b"%d %d" % (name, at) for name in range(12) for at in range(10))
    server.wait_quiet()
