"""Steps and traces: ids are the frame's, sampling is the same in every service, and off costs nothing."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import uuid
from collections.abc import Iterable
from concurrent.futures import Future

import grpc
import pytest
import structlog
from opentelemetry import trace
from opentelemetry.context import Context, attach
from opentelemetry.sdk.trace.sampling import Decision, Sampler, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from inspectbus import spans
from inspectbus.api.v1 import results_pb2, results_pb2_grpc
from inspectbus.bus import Delivery, Message
from inspectbus.bus.handling import followed, in_hand, words
from inspectbus.bus.topics import FRAMES, TRAINING
from inspectbus.errors import BadField, NotPossibleNow
from inspectbus.runtime.settings import ServiceSettings
from inspectbus.runtime.trace_provider import by_frame
from inspectbus.runtime.tracing import carried, exported
from tests.doubles.server_forms import FORMS, Form, serve
from tests.doubles.taken_spans import spans_taken

FRAME = "4711aaaa-bbbb-5ccc-8ddd-eeeeeeeeeeee"
FOREIGN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Settled:
    """A delivery that says how it was settled."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.attempts = 1
        self.how = ""

    def done(self, after: Iterable[Future[None]] = ()) -> None:
        self.how = "done"

    def retry(self, error: BaseException) -> None:
        self.how = "retried"

    def park(self, error: BaseException) -> None:
        self.how = "parked"


def delivery(**headers: str) -> Settled:
    return Settled(Message(b"", ("line-1", "top"), source="test", subject=FRAME, headers=headers))


def test_what_travels_is_the_frames_own_trace_in_the_words_of_the_standard() -> None:
    carrier = spans.traceparent(FRAME)

    assert carrier == {"traceparent": "00-4711aaaabbbb5ccc8dddeeeeeeeeeeee-8dddeeeeeeeeeeee-01"}
    read = trace.get_current_span(TraceContextTextMapPropagator().extract(carrier)).get_span_context()
    assert read.is_valid
    assert read.trace_id == uuid.UUID(FRAME).int
    assert spans.traceparent("poison") == {}


def test_the_words_of_a_frame_are_on_every_line_while_it_is_in_hand() -> None:
    log = structlog.get_logger()
    message = delivery().message
    with capture_logs([spans.on_log_line]) as lines:
        with in_hand(message):
            log.info("inside")
        log.info("outside")

    told = {"frame_id": FRAME, "trace_id": "4711aaaabbbb5ccc8dddeeeeeeeeeeee", "line": "line-1", "station": "top"}
    assert words(message) == told
    assert lines == [
        {"event": "inside", "log_level": "info", **told},
        {"event": "outside", "log_level": "info"},
    ]
    assert words(Message(b"", ("job", "requested"), source="test")) == {}


def test_while_nobody_takes_steps_none_is_made_and_a_handler_gets_its_very_delivery() -> None:
    got: list[Delivery] = []
    mine = delivery(traceparent=FOREIGN)

    followed(FRAMES, "preprocessing", got.append)(mine)

    assert got[0] is mine
    assert not spans.are_recorded()
    assert spans.begin_part(FRAME, {}) is spans.begin("gate", FRAME) is trace.INVALID_SPAN


def test_a_service_that_takes_no_steps_loads_no_more_than_the_interface() -> None:
    program = "import sys, inspectbus.acquisition.service; print([name for name in sys.modules if '.sdk' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", ["done", "retry", "park", "raise"])
def test_a_step_lasts_until_its_delivery_is_settled(verb: str) -> None:
    kept: list[Delivery] = []

    def handle(delivery: Delivery) -> None:
        kept.append(delivery)
        if verb == "raise":
            raise ValueError("no")

    mine = delivery(**spans.traceparent(FRAME))
    with spans_taken() as taken:
        if verb == "raise":
            with pytest.raises(ValueError, match="no"):
                followed(FRAMES, "preprocessing", handle)(mine)
        else:
            followed(FRAMES, "preprocessing", handle)(mine)
            assert taken.all() == []
            {"done": kept[0].done, "retry": lambda: kept[0].retry(ValueError("no"))}.get(
                verb, lambda: kept[0].park(ValueError("no"))
            )()
            assert mine.how == {"done": "done", "retry": "retried", "park": "parked"}[verb]
            kept[0].done()
        (step,) = taken.all()
    assert step.name == "prepare"
    assert step.status.is_ok == (verb == "done")
    assert step.parent is not None
    assert step.parent.trace_id == uuid.UUID(FRAME).int


def test_work_that_is_on_no_frame_is_no_step() -> None:
    def handle(delivery: Delivery) -> None:
        """Takes it."""

    assert followed(TRAINING, "training", handle) is handle


def test_a_sender_with_a_trace_of_its_own_is_linked_and_the_frame_keeps_its_own() -> None:
    with spans_taken() as taken:
        spans.end(spans.begin("prepare", FRAME, headers={"traceparent": FOREIGN}))
        (step,) = taken.all()
    assert step.context is not None
    assert step.context.trace_id == uuid.UUID(FRAME).int
    assert [f"{link.context.trace_id:032x}" for link in step.links] == [FOREIGN.split("-")[1]]


def test_a_share_of_the_parts_is_sampled_alike_by_all_and_the_standards_sampler_would_take_none() -> None:
    frames = [uuid.uuid5(uuid.NAMESPACE_OID, str(number)) for number in range(2000)]

    def sampled(sampler: Sampler, frame: uuid.UUID) -> bool:
        return sampler.should_sample(None, frame.int, "part").decision is Decision.RECORD_AND_SAMPLE

    ours = {frame for frame in frames if sampled(by_frame(0.25), frame)}
    assert 0.2 < len(ours) / len(frames) < 0.3
    assert not any(sampled(TraceIdRatioBased(0.25), frame) for frame in frames)
    with spans_taken({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}) as taken:
        for frame in frames[:200]:
            spans.end(spans.begin_part(str(frame), {}))
            spans.end(spans.begin("prepare", str(frame), headers=spans.traceparent(str(frame))))
        found = taken.all()
    for name in ("part", "prepare"):
        told = {each.context.trace_id for each in found if each.name == name and each.context is not None}
        assert told == {frame.int for frame in frames[:200] if frame in ours}


def test_a_batch_is_recorded_when_one_of_its_frames_is() -> None:
    def came(recorded: bool) -> contextvars.Context:
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if recorded else trace.TraceFlags.DEFAULT)
        where = contextvars.copy_context()
        span = trace.NonRecordingSpan(trace.SpanContext(1, 1 + recorded, is_remote=False, trace_flags=flags))
        where.run(attach, trace.set_span_in_context(span, Context()))
        return where

    with spans_taken({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}) as taken:
        spans.end(spans.begin_batch("infer", [came(False), came(False)]))
        assert taken.all() == []
        spans.end(spans.begin_batch("infer", [came(True), came(False)]))
        (batch,) = taken.all()
    assert [link.context.span_id for link in batch.links] == [2]
    assert batch.attributes == {"inspectbus.images": 2}


@pytest.mark.parametrize("form", FORMS)
def test_a_call_between_services_carries_the_trace_of_whoever_calls(form: Form) -> None:
    found: list[int] = []

    class Door(results_pb2_grpc.ResultsServiceServicer):
        def GetDecision(self, request: object, context: grpc.ServicerContext) -> results_pb2.GetDecisionResponse:
            found.append(trace.get_current_span().get_span_context().span_id)
            return results_pb2.GetDecisionResponse()

    name = "inspectbus.api.v1.ResultsService"

    def add(server: grpc.Server) -> None:
        results_pb2_grpc.add_ResultsServiceServicer_to_server(Door(), server)  # type: ignore[abstract]

    with (
        spans_taken() as taken,
        serve(form, ServiceSettings(drain_s=1), CollectorRegistry(), {name: add}) as door,
        grpc.insecure_channel(door.address) as channel,
    ):
        ledger = results_pb2_grpc.ResultsServiceStub(carried(channel))
        step = spans.begin("judge", FRAME)
        with trace.use_span(step, end_on_exit=True):
            ledger.GetDecision(results_pb2.GetDecisionRequest(), timeout=10)
        calls = taken.wait_for(lambda spans: len(spans) == 2)
    (call,) = (each for each in calls if each.name == f"{name}/GetDecision")
    assert call.parent is not None
    assert call.parent.span_id == step.get_span_context().span_id
    assert call.attributes == {"rpc.grpc.status_code": 0}
    assert call.context is not None
    assert found == [call.context.span_id]


@pytest.mark.parametrize("form", FORMS)
def test_the_step_of_a_call_that_is_refused_has_its_status(form: Form) -> None:
    class Door(results_pb2_grpc.ResultsServiceServicer):
        def GetDecision(self, request: object, context: grpc.ServicerContext) -> results_pb2.GetDecisionResponse:
            raise BadField("no frame is named so", field="frame_id")

    name = "inspectbus.api.v1.ResultsService"

    def add(server: grpc.Server) -> None:
        results_pb2_grpc.add_ResultsServiceServicer_to_server(Door(), server)  # type: ignore[abstract]

    with (
        spans_taken() as taken,
        serve(form, ServiceSettings(drain_s=1), CollectorRegistry(), {name: add}) as door,
        grpc.insecure_channel(door.address) as channel,
    ):
        with pytest.raises(grpc.RpcError):
            results_pb2_grpc.ResultsServiceStub(channel).GetDecision(results_pb2.GetDecisionRequest(), timeout=10)
        (call,) = taken.wait_for(lambda spans: len(spans) == 1)
    assert call.attributes == {"rpc.grpc.status_code": BadField.code.value[0]}


@pytest.mark.parametrize(
    ("environ", "error", "told"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, BadField, "use one of none, otlp, console"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"}, BadField, "use grpc or http"),
        (
            {"OTEL_TRACES_EXPORTER": "console", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
            BadField,
            "0 to 1",
        ),
    ],
)
def test_an_environment_that_asks_for_what_there_is_not_is_refused_in_words(
    environ: dict[str, str], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told), exported(["results"], environ):
        pass


def test_tracing_without_its_libraries_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    words = r"install inspectbus\[tracing\]"
    with pytest.raises(NotPossibleNow, match=words), exported(["results"], {"OTEL_TRACES_EXPORTER": "otlp"}):
        pass


def test_by_default_nothing_is_exported() -> None:
    with exported(["results"], {}):
        assert not spans.are_recorded()
    with exported(["results"], {"OTEL_TRACES_EXPORTER": "console"}):
        assert spans.are_recorded()
    assert not spans.are_recorded()
