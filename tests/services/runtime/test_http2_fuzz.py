"""Conversations that went wrong on their way: whatever comes, it costs nobody else anything, and nothing is left of it.

frames that h2 made ─> lost, repeated, exchanged, invented; bits flipped; cut ─> the server ─> quiet, and others served
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from inspectbus.runtime.settings import ServiceSettings
from tests.doubles.http2_client import HEAD_BYTES, PATIENCE_S, PREFACE, SERVICE, Http2Client, framed
from tests.doubles.http2_server import Http2Server

Change = tuple[str, int, int]


@pytest.fixture(scope="module")
def server() -> Iterator[Http2Server]:
    with Http2Server(ServiceSettings(drain_s=0.1, max_message_bytes=100_000), most_calls=5) as server:
        yield server


def conversation() -> list[bytes]:
    """Frames of a client that keeps to the protocol: calls of every kind, and all that is said beside them."""
    client = H2Connection(H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100_000})

    def begin(name: str, *more: tuple[str, str]) -> int:
        stream = client.get_next_available_stream_id()
        words = {":method": "POST", ":scheme": "http", ":path": f"/{SERVICE}/{name}", ":authority": "here"}
        client.send_headers(stream, [*words.items(), ("te", "trailers"), ("content-type", "application/grpc"), *more])
        return stream

    gather = begin("Gather")
    for size in (0, 3, 200):
        client.send_data(gather, framed(bytes(size)), pad_length=size % 7)
    waiting = begin("Wait", ("grpc-timeout", "20S"))
    client.send_data(waiting, framed(b""), end_stream=True)
    client.ping(bytes(8))
    client.increment_flow_control_window(100_000)
    relay = begin("Relay", ("some", "metadata" * 100), ("of-bytes-bin", "AAEC"))
    client.send_data(relay, framed(b"cut")[:6])
    client.increment_flow_control_window(10, relay)
    client.prioritize(relay, weight=7)
    client.send_data(relay, framed(b"cut")[6:])
    count = begin("Count")
    client.send_data(count, framed(b"3 1000"), end_stream=True)
    client.reset_stream(waiting)
    client.send_data(gather, framed(bytes(2000)))
    client.send_headers(gather, [("of-the-end", "x")], end_stream=True)
    client.end_stream(relay)
    client.send_data(begin("Echo", ("grpc-encoding", "gzip")), framed(b"no gzip", flag=1), end_stream=True)
    client.send_headers(
        client.get_next_available_stream_id(),
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "")],
        end_stream=True,
    )
    client.close_connection()

    said, frames = client.data_to_send()[len(PREFACE) :], [PREFACE]
    while said:
        size = HEAD_BYTES + int.from_bytes(said[:3])
        frames.append(said[:size])
        said = said[size:]
    return frames


FRAMES = conversation()

changes = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["lose", "repeat", "exchange", "cut"]), st.integers(0, 60), st.integers(0, 60)),
        st.tuples(st.sampled_from(["flip", "flip head"]), st.integers(0, 60), st.integers(0, 1 << 14)),
        st.tuples(st.just("invent"), st.integers(0, 60), st.integers(0, (1 << 40) - 1)),
    ),
    max_size=6,
)


def changed(changes: Sequence[Change]) -> bytes:
    frames = list(FRAMES)
    for what, place, how in changes:
        at = place % len(frames)
        match what:
            case "lose":
                frames[at] = b""
            case "repeat":
                frames[at] *= 1 + how % 5
            case "exchange":
                other = how % len(frames)
                frames[at], frames[other] = frames[other], frames[at]
            case "cut":
                frames[at] = frames[at][: -1 - how]
            case "flip" | "flip head" if frames[at]:
                bits = bytearray(frames[at])
                byte = how // 8 % (len(bits) if what == "flip" else min(len(bits), HEAD_BYTES))
                bits[byte] ^= 1 << how % 8
                frames[at] = bytes(bits)
            case "invent":
                kind, flags, stream, length, fill = (how >> by for by in (0, 4, 12, 16, 24))
                payload = bytes([fill & 0xFF]) * (length & 0x1F)
                frames.insert(
                    at,
                    len(payload).to_bytes(3) + bytes([kind & 0xF, flags & 0xFF]) + (stream & 0xF).to_bytes(4) + payload,
                )
    return b"".join(frames)


def batter(server: Http2Server, examples: int, *, again: bool) -> None:
    """With so many conversations, the same ones `again`."""
    host, _, port = server.address.rpartition(":")

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=again,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(changes=changes, parts=st.lists(st.integers(1, 400), max_size=6))
    def conversations(changes: list[Change], parts: list[int]) -> None:
        said = changed(changes)
        with capture_logs() as logs:
            with socket.create_connection((host, int(port)), PATIENCE_S) as client:
                _say(client, said, parts)
            assert other.answer(other.call("Echo", b"well")).messages == [b"well"]
            server.wait_quiet(connections=1)
        assert not server.faults
        assert not [each for each in logs if each["log_level"] in ("error", "critical")]
        other.answers.clear()
        other.frames.clear()

    with Http2Client(server.address) as other:
        conversations()


def _say(client: socket.socket, said: bytes, parts: Sequence[int]) -> None:
    """In parts, and to the end of what is answered."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        for each in parts:
            client.sendall(said[:each])
            said = said[each:]
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 16):
            pass
    except TimeoutError:
        raise
    except OSError:
        pass  # it was let go in the middle of its words


def test_the_conversation_is_one_that_is_answered(server: Http2Server) -> None:
    """Or what follows would try nothing but the greeting."""
    with Http2Client(server.address, checks=False) as client:
        client.raw(b"".join(FRAMES[2:]))  # its greeting and settings were said
        client.wait(lambda: sum(each.kind == 1 and bool(each.flags & 1) for each in client.frames) >= 4)
    server.wait_quiet()


def test_nothing_is_left_of_a_conversation_that_went_wrong_and_others_are_served(server: Http2Server) -> None:
    batter(server, 1000, again=True)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_nothing_is_left_of_ten_thousand_that_went_wrong(server: Http2Server) -> None:
    batter(server, 10_000, again=False)
