"""What the form of the door on an event loop promises beside what all forms do: nothing blocks it, and it ends."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from inspectbus.runtime import loop_server as loop_server_module
from inspectbus.runtime.http2.call import Call
from inspectbus.runtime.http2.server import Server
from inspectbus.runtime.loop_server import LARGE_BYTES, loop_server
from inspectbus.runtime.rpc_server import Door
from inspectbus.runtime.settings import ServiceSettings
from tests.doubles.http2_client import SERVICE, Http2Client, framed

PATIENCE_S = 10.0
health_all: Any = health_pb2  # its stub file knows Check and Watch only
HEALTHY = health_pb2.HealthCheckResponse.SERVING
DEADLINE_EXCEEDED = 4


class Scripted:
    """Parses as the test says, and answers with the same bytes, or never."""

    def __init__(self) -> None:
        self.parsing = threading.Event()
        self.may_parse = threading.Event()
        self.waiting = threading.Event()
        self.cancelled = threading.Event()

    def parse(self, data: bytes) -> bytes:
        if len(data) > LARGE_BYTES:
            self.parsing.set()
            assert self.may_parse.wait(PATIENCE_S)
        return data

    async def echo(self, request: bytes, context: Any) -> bytes:
        return request[:5]

    async def wait(self, request: bytes, context: Any) -> bytes:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError("nobody sets it")

    async def relay(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    def add_to(self, server: Server) -> None:
        handlers: dict[str, Any] = {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo, self.parse, bytes),
            "Wait": grpc.unary_unary_rpc_method_handler(self.wait, self.parse, bytes),
            "Relay": grpc.stream_stream_rpc_method_handler(self.relay, self.parse, bytes),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def door(scripted: Scripted) -> Iterator[Door]:
    settings = ServiceSettings(drain_s=0.1)
    with loop_server("test", settings, CollectorRegistry(), {SERVICE: scripted.add_to}) as door:
        yield door
        scripted.may_parse.set()


@pytest.fixture
def channel(door: Door) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(door.address) as channel:
        yield channel


def method(channel: grpc.Channel, name: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(f"/{SERVICE}/{name}", None, None)


def test_a_large_message_is_parsed_while_others_are_answered(scripted: Scripted, channel: grpc.Channel) -> None:
    large = method(channel, "Echo").future(bytes(LARGE_BYTES + 1), timeout=PATIENCE_S)
    assert scripted.parsing.wait(PATIENCE_S)

    assert method(channel, "Echo")(b"small", timeout=PATIENCE_S) == b"small"

    assert not large.done()
    scripted.may_parse.set()
    assert large.result(PATIENCE_S) == bytes(5)


def test_a_call_is_cancelled_when_its_caller_hangs_up(scripted: Scripted, channel: grpc.Channel) -> None:
    call = method(channel, "Wait").future(b"", timeout=PATIENCE_S)
    assert scripted.waiting.wait(PATIENCE_S)

    call.cancel()

    assert scripted.cancelled.wait(PATIENCE_S)


def test_leaving_cancels_what_does_not_end_in_time_and_leaves_no_thread(scripted: Scripted) -> None:
    settings = ServiceSettings(drain_s=0.1)
    with (
        loop_server("leaving", settings, CollectorRegistry(), {SERVICE: scripted.add_to}) as door,
        grpc.insecure_channel(door.address) as channel,
    ):
        call = method(channel, "Wait").future(bytes(LARGE_BYTES), timeout=PATIENCE_S)
        assert scripted.waiting.wait(PATIENCE_S)
        assert any(each.name == "leaving-loop" for each in threading.enumerate())

    assert scripted.cancelled.is_set()
    assert call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert not [each.name for each in threading.enumerate() if each.name.startswith("leaving")]


def test_a_stream_that_waits_for_its_sender_ends_when_the_service_stops(scripted: Scripted) -> None:
    settings = ServiceSettings(drain_s=PATIENCE_S)
    requests: SimpleQueue[bytes | None] = SimpleQueue()
    with ExitStack() as service, ThreadPoolExecutor(1) as closer:
        door = service.enter_context(loop_server("told", settings, CollectorRegistry(), {SERVICE: scripted.add_to}))
        with grpc.insecure_channel(door.address) as channel:
            relay: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/Relay", None, None)
            answers = relay(iter(requests.get, None), timeout=PATIENCE_S)
            requests.put(b"first")
            assert next(answers) == b"first"
            begun_s = time.monotonic()
            closing = closer.submit(service.close)
            with pytest.raises(grpc.RpcError) as caught:
                next(answers)
            requests.put(None)
            closing.result(PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "the service is stopping" in str(caught.value.details())
    assert time.monotonic() - begun_s < PATIENCE_S / 2


def test_all_of_health_is_listed_and_a_message_of_it_is_small(channel: grpc.Channel) -> None:
    listed: Any = channel.unary_unary("/grpc.health.v1.Health/List", None, health_all.HealthListResponse.FromString)
    statuses = {name: each.status for name, each in listed(b"", timeout=PATIENCE_S).statuses.items()}
    assert statuses == {"": HEALTHY, SERVICE: HEALTHY}

    check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
    with pytest.raises(grpc.RpcError) as caught:
        check(bytes(5000), timeout=PATIENCE_S)
    assert cast(grpc.Call, caught.value).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_call_for_which_no_place_is_free_is_told_when_to_come_again(scripted: Scripted) -> None:
    settings = ServiceSettings(drain_s=0.1, rpc_threads=1)
    with (
        loop_server("full", settings, CollectorRegistry(), {SERVICE: scripted.add_to}) as door,
        grpc.insecure_channel(door.address) as channel,
    ):
        first = method(channel, "Wait").future(b"", timeout=PATIENCE_S)
        assert scripted.waiting.wait(PATIENCE_S)

        with pytest.raises(grpc.RpcError) as caught:
            method(channel, "Echo")(b"one more", timeout=PATIENCE_S)
        first.cancel()

    call = cast(grpc.Call, caught.value)
    assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1 calls are in hand" in str(call.details())
    status = rpc_status.from_call(call)
    assert status is not None
    assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)


def test_calls_whose_messages_do_not_come_keep_nobody_from_asking_for_health(scripted: Scripted) -> None:
    settings = ServiceSettings(drain_s=0.1, rpc_threads=1)
    with (
        loop_server("waiting", settings, CollectorRegistry(), {SERVICE: scripted.add_to}) as door,
        grpc.insecure_channel(door.address) as channel,
        Http2Client(door.address) as slow,
    ):
        half = slow.begin("Echo")
        slow.send(half, framed(b"message")[:8])
        slow.ping()

        health: Any = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S).status == HEALTHY
        with pytest.raises(grpc.RpcError, match="1 calls are in hand"):
            method(channel, "Echo")(b"one more", timeout=PATIENCE_S)


def test_a_call_whose_message_does_not_come_ends_in_time(
    door: Door, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_server_module, "MESSAGE_S", 0.2)
    with Http2Client(door.address) as slow:
        half = slow.begin("Echo")
        slow.send(half, framed(b"message")[:8])
        answer = slow.answer(half)

    assert answer.status == DEADLINE_EXCEEDED
    assert "did not come within" in answer.headers["grpc-message"]
    monkeypatch.undo()
    assert method(channel, "Echo")(b"well", timeout=PATIENCE_S) == b"well"


def test_calls_that_are_over_leave_nothing_for_the_garbage_collector(channel: grpc.Channel) -> None:
    gc.collect()
    before = echoes()  # of other tests
    gc.disable()  # it holds up everybody for as long as it looks
    try:
        for _ in range(100):
            assert method(channel, "Echo")(b"small", timeout=PATIENCE_S) == b"small"
        # The last one's answer was perhaps quicker than its end. They are counted, for whoever looks at them has them.
        pause, until_s = threading.Event(), time.monotonic() + PATIENCE_S
        while (left := len(echoes() - before)) and time.monotonic() < until_s:
            pause.wait(0.01)
        assert not left
    finally:
        gc.enable()


def echoes() -> set[Call]:
    # By type alone: to ask some objects of libraries for their class wakes them up.
    return {each for each in gc.get_objects() if type(each) is Call and each.method == f"/{SERVICE}/Echo"}
