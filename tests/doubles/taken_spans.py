"""Who takes a process's spans in a test: in its own memory, or as a collector at the other end of OTLP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from inspectbus import spans
from inspectbus.runtime.trace_provider import provider_for

PATIENCE_S = 30.0


class TakenSpans(SpanExporter):
    """Every span of this process that has ended."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._changed:
            self._spans += spans
            self._changed.notify_all()
        return SpanExportResult.SUCCESS

    def all(self) -> list[ReadableSpan]:
        with self._changed:
            return list(self._spans)

    def wait_for(self, enough: Callable[[Sequence[ReadableSpan]], bool]) -> list[ReadableSpan]:
        with self._changed:
            came = self._changed.wait_for(lambda: enough(self._spans), PATIENCE_S)
            assert came, f"only {sorted(span.name for span in self._spans)} came"
            return list(self._spans)


@contextmanager
def spans_taken(environ: Mapping[str, str] | None = None) -> Iterator[TakenSpans]:
    """Takes this process's spans while entered, sampled as the environment says."""
    taken = TakenSpans()
    provider = provider_for("test", environ or {})
    provider.add_span_processor(SimpleSpanProcessor(taken))
    with spans.recorded_by(provider):
        yield taken
    provider.shutdown()


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes what other processes export by OTLP over gRPC, by the name of their service."""

    def __init__(self) -> None:
        self.address = ""
        self._changed = threading.Condition()
        self._spans: list[tuple[str, Span]] = []

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._changed:
            for resource in request.resource_spans:
                named = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self._spans += [(named["service.name"], span) for span in scope.spans]
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, enough: Callable[[Sequence[tuple[str, Span]]], bool]) -> list[tuple[str, Span]]:
        with self._changed:
            came = self._changed.wait_for(lambda: enough(self._spans), PATIENCE_S)
            assert came, f"only {sorted((service, span.name) for service, span in self._spans)} came"
            return list(self._spans)


@contextmanager
def collector() -> Iterator[Collector]:
    taking = Collector()
    server = grpc.server(ThreadPoolExecutor(2, thread_name_prefix="collector"))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(taking, server)  # type: ignore[no-untyped-call]
    taking.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield taking
    finally:
        server.stop(None).wait(5)
