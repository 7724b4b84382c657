"""The door every service stands behind: errors, health, reflection, limits, drain."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from queue import Queue
from typing import Any, cast

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from inspectbus.api.v1 import acquisition_pb2 as pb
from inspectbus.api.v1 import acquisition_pb2_grpc
from inspectbus.errors import BadField, ModelNotReady, NotPossibleNow, QueueFull
from inspectbus.runtime.identity import LOCAL_ADMIN, Identity, caller
from inspectbus.runtime.refusals import RETRY_HINT_S
from inspectbus.runtime.rpc_server import Door
from inspectbus.runtime.settings import ServiceSettings
from tests.doubles.children import lasting_port
from tests.doubles.server_forms import Form, serve
from tests.doubles.silent_client import SilentClient

SERVICE = "inspectbus.api.v1.AcquisitionService"
PATIENCE_S = 10.0
Stub = acquisition_pb2_grpc.AcquisitionServiceStub


class Scripted(acquisition_pb2_grpc.AcquisitionServiceServicer):
    """Does what the test says: `on_call` for a single call, `on_item` for each request of a stream."""

    def __init__(self) -> None:
        self.on_call: Callable[[pb.GetStationRequest, Any], object] = lambda request, context: None
        self.on_item: Callable[[pb.PublishFramesRequest], object] = lambda request: None
        self.callers: list[Identity] = []

    def GetStation(self, request: pb.GetStationRequest, context: Any) -> pb.GetStationResponse:
        self.callers.append(caller.get())
        self.on_call(request, context)
        return pb.GetStationResponse(station=pb.Station(line=request.line))

    def PublishFrames(self, request_iterator: Any, context: Any) -> Iterator[pb.PublishFramesResponse]:
        self.callers.append(caller.get())
        for position, request in enumerate(request_iterator):
            self.on_item(request)
            yield pb.PublishFramesResponse(position=position)

    def InspectStream(self, request_iterator: Any, context: Any) -> Any:
        raise NotImplementedError

    def WatchGate(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    ListStations = StartStation = StopStation = Inspect = GetStation  # type: ignore[assignment] # never called


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


Open = Callable[..., AbstractContextManager[Door]]


@pytest.fixture
def open_door(form: Form) -> Open:
    def open_door(
        scripted: Scripted,
        registry: CollectorRegistry | None = None,
        settings: ServiceSettings | None = None,
        **how: Any,
    ) -> AbstractContextManager[Door]:
        contracts: dict[str, Callable[[grpc.Server], None]] = {
            SERVICE: lambda server: acquisition_pb2_grpc.add_AcquisitionServiceServicer_to_server(scripted, server)
        }
        return serve(form, settings or ServiceSettings(drain_s=5), registry or CollectorRegistry(), contracts, **how)

    return open_door


@pytest.fixture
def door(open_door: Open, scripted: Scripted, registry: CollectorRegistry) -> Iterator[Door]:
    with open_door(scripted, registry) as door:
        yield door


@pytest.fixture
def channel(door: Door) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(door.address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> Stub:
    return Stub(channel)


def ask(stub: Stub, line: str = "line-1") -> pb.Station:
    return stub.GetStation(pb.GetStationRequest(line=line), timeout=PATIENCE_S).station


def details_of(error: grpc.RpcError) -> dict[str, Any]:
    status = rpc_status.from_call(cast(grpc.Call, error))
    assert status is not None
    found = {}
    for packed in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            detail = kind()
            if packed.Unpack(detail):
                found[kind.__name__] = detail
    return found


def raising(error: BaseException) -> Callable[..., object]:
    def fail(*_: object) -> object:
        raise error

    return fail


def test_an_error_of_ours_becomes_a_status_that_names_kind_and_field(scripted: Scripted, stub: Stub) -> None:
    scripted.on_call = raising(BadField("'Line 1' is not a name", field="line"))

    with pytest.raises(grpc.RpcError) as caught:
        ask(stub)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "'Line 1' is not a name"
    details = details_of(caught.value)
    assert (details["ErrorInfo"].reason, details["ErrorInfo"].domain) == ("BadField", "inspectbus")
    assert [violation.field for violation in details["BadRequest"].field_violations] == ["line"]
    assert "RetryInfo" not in details


@pytest.mark.parametrize("text", ["x" * 20_000, "\N{GRINNING FACE}" * 5000, "half a character: \ud83d"])
def test_an_error_with_an_endless_or_broken_text_still_arrives_as_itself(
    scripted: Scripted, stub: Stub, text: str
) -> None:
    scripted.on_call = raising(BadField(text, field="line"))

    with pytest.raises(grpc.RpcError) as caught:
        ask(stub)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(caught.value)["ErrorInfo"].reason == "BadField"


def test_an_error_that_may_pass_says_when_to_come_again(scripted: Scripted, stub: Stub) -> None:
    scripted.on_call = raising(ModelNotReady("warming up"))

    with pytest.raises(grpc.RpcError) as caught:
        ask(stub)

    details = details_of(caught.value)
    assert details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() == pytest.approx(RETRY_HINT_S)
    assert "BadRequest" not in details


def test_an_error_that_knows_when_it_passes_says_so(scripted: Scripted, stub: Stub) -> None:
    scripted.on_call = raising(QueueFull("come later", retry_s=2.75))

    with pytest.raises(grpc.RpcError) as caught:
        ask(stub)

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(caught.value)["RetryInfo"].retry_delay.ToTimedelta().total_seconds() == 2.75


def test_a_fault_is_told_by_a_number_that_the_log_has_and_by_nothing_else(scripted: Scripted, stub: Stub) -> None:
    scripted.on_call = raising(KeyError("/etc/inspectbus/secret.yaml"))

    with capture_logs() as logs, pytest.raises(grpc.RpcError) as caught:
        ask(stub)

    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert details_of(caught.value)["ErrorInfo"].reason == "Internal"
    told = f"{caught.value.details()} {caught.value.trailing_metadata()}"
    assert "secret" not in told
    assert "KeyError" not in told
    (entry,) = [entry for entry in logs if entry["event"] == "call failed"]
    assert entry["incident"] in told
    assert entry["exc_info"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotPossibleNow("stopped"), grpc.StatusCode.FAILED_PRECONDITION),
        (ZeroDivisionError("secret"), grpc.StatusCode.INTERNAL),
    ],
)
def test_a_stream_keeps_its_answers_and_ends_with_the_error(
    scripted: Scripted, stub: Stub, error: Exception, code: grpc.StatusCode
) -> None:
    scripted.on_item = lambda request: raising(error)() if request.line == "bad" else None
    requests = [pb.PublishFramesRequest(line=line) for line in ("good", "good", "bad", "good")]

    answers = stub.PublishFrames(iter(requests), timeout=PATIENCE_S)
    assert [next(answers).position, next(answers).position] == [0, 1]
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)

    assert caught.value.code() is code
    assert "secret" not in str(caught.value.details())


def test_a_status_the_method_set_itself_is_left_alone(scripted: Scripted, stub: Stub) -> None:
    scripted.on_call = lambda _, context: context.abort(grpc.StatusCode.OUT_OF_RANGE, "page 9 of 3")

    with pytest.raises(grpc.RpcError) as caught:
        ask(stub)

    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.OUT_OF_RANGE, "page 9 of 3")


def test_the_service_goes_on_after_errors_and_counts_every_call(
    scripted: Scripted, stub: Stub, registry: CollectorRegistry, door: Door
) -> None:
    scripted.on_call = raising(KeyError("fault"))
    with pytest.raises(grpc.RpcError):
        ask(stub)
    scripted.on_call = lambda *_: None
    assert ask(stub, "line-1").line == "line-1"
    assert [
        answer.position for answer in stub.PublishFrames(iter([pb.PublishFramesRequest()]), timeout=PATIENCE_S)
    ] == [0]

    def calls(method: str, code: str) -> float | None:
        return registry.get_sample_value("inspectbus_rpc_calls_total", {"method": f"/{SERVICE}/{method}", "code": code})

    assert calls("GetStation", "INTERNAL") == 1
    assert calls("GetStation", "OK") == 1
    with urllib.request.urlopen(f"http://{door.metrics_address}/metrics", timeout=PATIENCE_S) as page:
        assert b"inspectbus_rpc_seconds" in page.read()


def test_a_stream_whose_caller_hangs_up_is_counted_as_cancelled_and_is_no_fault(
    stub: Stub, registry: CollectorRegistry
) -> None:
    requests: Queue[pb.PublishFramesRequest | None] = Queue()
    requests.put(pb.PublishFramesRequest())
    with capture_logs() as logs:
        answers = stub.PublishFrames(iter(requests.get, None), timeout=PATIENCE_S)
        assert next(answers).position == 0
        answers.cancel()
        requests.put(None)

        labels = {"method": f"/{SERVICE}/PublishFrames", "code": "CANCELLED"}
        assert comes_true(lambda: registry.get_sample_value("inspectbus_rpc_calls_total", labels) == 1)
    assert logs == []


def comes_true(ask: Callable[[], bool]) -> bool:
    """Asks again and again: when a server hears that a caller has gone, it tells nobody."""
    until_s, pause = time.monotonic() + PATIENCE_S, threading.Event()
    while not (true := ask()) and time.monotonic() < until_s:
        pause.wait(0.01)
    return true


def test_whoever_calls_from_this_machine_is_the_local_admin_in_calls_and_streams(
    scripted: Scripted, stub: Stub
) -> None:
    ask(stub)
    list(stub.PublishFrames(iter([pb.PublishFramesRequest()]), timeout=PATIENCE_S))

    assert scripted.callers == [LOCAL_ADMIN, LOCAL_ADMIN]


def test_reflection_lists_the_services(channel: grpc.Channel) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)

    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE_S)

    listed = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= listed


def test_health_falls_first_and_a_call_in_hand_is_finished(open_door: Open, scripted: Scripted) -> None:
    entered, finish = threading.Event(), threading.Event()

    def slowly(*_: object) -> None:
        entered.set()
        assert finish.wait(PATIENCE_S)

    scripted.on_call = slowly
    with ExitStack() as stack:
        server = stack.enter_context(ExitStack())
        door = server.enter_context(open_door(scripted))
        channel = stack.enter_context(grpc.insecure_channel(door.address))
        # Its stub file knows Check only.
        health_stub: Any = health_pb2_grpc.HealthStub(channel)
        health = health_stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=PATIENCE_S)
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        call = Stub(channel).GetStation.future(pb.GetStationRequest(line="in hand"), timeout=PATIENCE_S)
        assert entered.wait(PATIENCE_S)

        pool = stack.enter_context(ThreadPoolExecutor(1))
        drained = pool.submit(server.close)

        assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not drained.done()
        finish.set()
        assert call.result().station.line == "in hand"
        health.cancel()
        drained.result(PATIENCE_S)


def test_a_service_that_cannot_work_yet_lives_and_is_not_ready(open_door: Open, scripted: Scripted) -> None:
    ready = threading.Event()

    with (
        open_door(scripted, settings=ServiceSettings(drain_s=1), ready=ready.is_set) as door,
        grpc.insecure_channel(door.address) as channel,
    ):
        health: Any = health_pb2_grpc.HealthStub(channel)

        def status(name: str) -> int:
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE_S)
            return int(answer.status)

        before = status(""), status(SERVICE)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=PATIENCE_S)
        watched = [next(watch).status]
        ready.set()
        after = status(""), status(SERVICE)
        watched.append(next(watch).status)
        watch.cancel()

    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert (before, after) == ((serving, not_serving), (serving, serving))
    assert watched == [not_serving, serving]


def test_health_has_a_port_of_its_own_that_answers_while_the_door_is_full_and_falls_first(
    open_door: Open, scripted: Scripted
) -> None:
    entered, finish = threading.Event(), threading.Event()

    def slowly(*_: object) -> None:
        entered.set()
        assert finish.wait(PATIENCE_S)

    scripted.on_call = slowly
    port = lasting_port()
    with ExitStack() as stack:
        server = stack.enter_context(ExitStack())
        settings = ServiceSettings(drain_s=5, rpc_threads=1, health_port=port)
        door = server.enter_context(open_door(scripted, settings=settings))
        channel = stack.enter_context(grpc.insecure_channel(door.address))
        probes = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
        # Their stub file knows Check only.
        watch: Any = health_pb2_grpc.HealthStub(probes)
        at_the_door: Any = health_pb2_grpc.HealthStub(channel)
        call = Stub(channel).GetStation.future(pb.GetStationRequest(line="in hand"), timeout=PATIENCE_S)
        assert entered.wait(PATIENCE_S)

        # The door has no place for a probe; its own port has.
        with pytest.raises(grpc.RpcError) as caught:
            next(at_the_door.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        told = [watch.Watch(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE_S) for name in ("", SERVICE)]
        assert [next(each).status for each in told] == [health_pb2.HealthCheckResponse.SERVING] * 2

        # It tells health alone.
        with pytest.raises(grpc.RpcError) as caught:
            ask(Stub(probes))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

        drained = stack.enter_context(ThreadPoolExecutor(1)).submit(server.close)
        assert [next(each).status for each in told] == [health_pb2.HealthCheckResponse.NOT_SERVING] * 2
        assert not drained.done()
        finish.set()
        assert call.result().station.line == "in hand"
        drained.result(PATIENCE_S)


def test_a_taken_health_port_is_an_error_that_names_it(open_door: Open, scripted: Scripted) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(OSError, match=f"health: cannot listen on 127.0.0.1:{port}; is the port taken"),
            open_door(scripted, settings=ServiceSettings(health_port=port)),
        ):
            pass


def test_a_message_beyond_the_limit_is_refused_and_the_next_is_served(open_door: Open, scripted: Scripted) -> None:
    settings = ServiceSettings(drain_s=5, max_message_bytes=10_000)
    with open_door(scripted, settings=settings) as door, grpc.insecure_channel(door.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            ask(Stub(channel), "x" * 20_000)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ask(Stub(channel)).line == "line-1"


def test_one_call_more_than_there_are_threads_is_told_so_and_not_queued(open_door: Open, scripted: Scripted) -> None:
    entered, finish = threading.Event(), threading.Event()

    def slowly(*_: object) -> None:
        entered.set()
        assert finish.wait(PATIENCE_S)

    scripted.on_call = slowly
    with (
        open_door(scripted, settings=ServiceSettings(drain_s=5, rpc_threads=1)) as door,
        grpc.insecure_channel(door.address) as channel,
    ):
        first = Stub(channel).GetStation.future(pb.GetStationRequest(line="first"), timeout=PATIENCE_S)
        assert entered.wait(PATIENCE_S)
        with pytest.raises(grpc.RpcError) as caught:
            ask(Stub(channel))
        finish.set()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert first.result().station.line == "first"


def test_a_call_that_may_wait_is_served_in_its_turn_and_the_next_is_refused(
    open_door: Open, scripted: Scripted
) -> None:
    entered, finish = threading.Semaphore(0), threading.Event()

    def slowly(*_: object) -> None:
        entered.release()
        assert finish.wait(PATIENCE_S)

    scripted.on_call = slowly
    with (
        open_door(scripted, settings=ServiceSettings(drain_s=5, rpc_threads=1, rpc_waiting=1)) as door,
        grpc.insecure_channel(door.address) as channel,
    ):
        ended: Queue[Any] = Queue()
        calls = [
            Stub(channel).GetStation.future(pb.GetStationRequest(line=str(each)), timeout=PATIENCE_S)
            for each in range(3)
        ]
        for call in calls:
            call.add_done_callback(ended.put)
        assert entered.acquire(timeout=PATIENCE_S)
        assert ended.get(timeout=PATIENCE_S).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not entered.acquire(blocking=False)
        finish.set()
        assert {ended.get(timeout=PATIENCE_S).code() for _ in range(2)} == {grpc.StatusCode.OK}


def test_a_call_without_a_request_is_told_so(scripted: Scripted, channel: grpc.Channel) -> None:
    call: Any = channel.stream_unary(f"/{SERVICE}/GetStation")
    with pytest.raises(grpc.RpcError) as caught:
        call(iter([]), timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "requires exactly one request message" in str(caught.value.details())
    assert scripted.callers == []


def test_a_client_that_never_reads_is_refused_when_its_answers_have_piled_up_and_others_are_served(
    open_door: Open, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inspectbus.runtime.rpc_server.SPARE_STREAMS", 12)
    settings = ServiceSettings(drain_s=5, rpc_threads=4)
    request = pb.GetStationRequest(line="x" * 1000).SerializeToString()
    with open_door(scripted, settings=settings) as door, SilentClient(door.address) as silent:
        for _ in range(40):
            silent.wait_answered(silent.call(f"/{SERVICE}/GetStation", request))
        assert (len(silent.answered), len(silent.ended)) == (12 + 4, 40 - 12 - 4)
        assert len(scripted.callers) == len(silent.answered)
        with grpc.insecure_channel(door.address) as channel:
            assert ask(Stub(channel)).line == "line-1"


def test_a_taken_port_is_an_error_that_names_it(open_door: Open, door: Door) -> None:
    port = int(door.address.rpartition(":")[2])
    with (
        pytest.raises(OSError, match=f"127.0.0.1:{port}; is the port taken"),
        open_door(Scripted(), settings=ServiceSettings(port=port)),
    ):
        pass


def test_a_taken_metrics_port_is_an_error_that_names_it_and_leaves_no_door_open(
    open_door: Open, scripted: Scripted
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        metrics_port, port = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        with (
            pytest.raises(OSError, match=f"metrics: cannot listen on 127.0.0.1:{metrics_port}"),
            open_door(scripted, settings=ServiceSettings(port=port, metrics_port=metrics_port)),
        ):
            pass
        # The gRPC port was bound first; it must be free again for the next try.
        with open_door(scripted, settings=ServiceSettings(port=port, drain_s=5)):
            pass


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_a_door_on_ipv6_is_served_and_metered(open_door: Open, scripted: Scripted) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with (
        open_door(scripted, settings=ServiceSettings(host="::1", drain_s=5)) as door,
        grpc.insecure_channel(door.address) as channel,
    ):
        assert ask(Stub(channel)).line == "line-1"
        assert scripted.callers == [LOCAL_ADMIN]
        with urllib.request.urlopen(f"http://{door.metrics_address}/metrics", timeout=PATIENCE_S) as page:
            assert page.status == 200


def test_logs_are_not_touched_by_a_server(open_door: Open) -> None:
    """Only the command line configures logging; a server in somebody's process must leave it as it is."""
    before = structlog.get_config()
    with open_door(Scripted()):
        assert structlog.get_config() == before
