"""Traces: who takes a process's steps, and how calls carry theirs on.

    steps (spans.py) ─> provider ─ sampled by the frame's id ─> batches ─> OTLP, to OTEL_EXPORTER_OTLP_ENDPOINT
    call in  ─> call_step: a step, child of the caller's ─> the service
    call out ─> carried(channel): the step's context as metadata

Off unless OTEL_TRACES_EXPORTER says otherwise, and then nothing of OpenTelemetry but its API is loaded. The variables
are the standard's (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/), read by its SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, use_span

from inspectbus import spans
from inspectbus.carrying import carrying
from inspectbus.errors import BadField, NotPossibleNow

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

log = structlog.get_logger(__name__)

EXPORTER = "OTEL_TRACES_EXPORTER"
EXPORTERS = ("none", "otlp", "console")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
GRPC, HTTP = "grpc", "http/protobuf"
OF_GRPC_ITSELF = "/grpc."
"""Health and reflection: probes every few seconds, of which nobody wants a trace."""


@contextmanager
def exported(services: Sequence[str], environ: Mapping[str, str]) -> Iterator[None]:
    """Exports the steps of these services while entered, where the environment asks for it; leaving sends what is left.

    Raises BadField for an exporter or a protocol that there is not, NotPossibleNow where its library is missing.
    """
    name = environ.get(EXPORTER, "none") or "none"
    if name not in EXPORTERS:
        raise BadField(f"{EXPORTER} is {name[:40]!r}: use one of {', '.join(EXPORTERS)}", field=EXPORTER)
    if name == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        yield
        return
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from inspectbus.runtime.trace_provider import provider_for

        # Several services of one process share its provider, as they share its log.
        provider = provider_for(f"inspectbus-{services[0]}" if len(services) == 1 else "inspectbus", environ)
        provider.add_span_processor(BatchSpanProcessor(_exporter(name, environ)))
    except ModuleNotFoundError as error:
        raise NotPossibleNow(f"{EXPORTER}={name} needs {error.name}: install inspectbus[tracing]") from error
    log.info("traces are exported", exporter=name)
    with spans.recorded_by(provider):
        try:
            yield
        finally:
            provider.shutdown()


def _exporter(name: str, environ: Mapping[str, str]) -> SpanExporter:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    protocol = next(filter(None, map(environ.get, PROTOCOLS)), GRPC)
    if protocol == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if protocol == HTTP:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as ByHttp

        exporter: SpanExporter = ByHttp()
        return exporter
    raise BadField(f"{PROTOCOLS[1]} is {protocol[:40]!r}: use {GRPC} or {HTTP}", field=PROTOCOLS[1])


def call_spans() -> list[grpc.ServerInterceptor]:
    """For a server on threads that is made now: nothing while nobody takes steps."""
    return [CallSpans()] if spans.are_recorded() else []


class CallSpans(grpc.ServerInterceptor):
    """A step for each call."""

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = continuation(details)
        if handler is None:
            return None

        def answers(request: Any, context: grpc.ServicerContext) -> Any:
            # Not current: gRPC asks a stream for its next answer on whichever thread it likes.
            with call_step(details, context, current=False):
                yield from (handler.stream_stream or handler.unary_stream)(request, context)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            with call_step(details, context, current=True):
                return (handler.stream_unary or handler.unary_unary)(request, context)

        return _WRAPPED[handler.request_streaming, handler.response_streaming](
            answers if handler.response_streaming else answer,
            handler.request_deserializer,
            handler.response_serializer,
        )


def call_step(details: grpc.HandlerCallDetails, context: Any, *, current: bool) -> AbstractContextManager[object]:
    """The step of a call that a service answers, child of the caller's; nothing while nobody takes steps. Entered while
    the service works on it, with gRPC's context of either form, and `current` for what it does meanwhile."""
    if not spans.are_recorded() or str(details.method).startswith(OF_GRPC_ITSELF):
        return nullcontext()
    return _recorded(details, context, current=current)


@contextmanager
def _recorded(details: grpc.HandlerCallDetails, context: Any, *, current: bool) -> Iterator[None]:
    theirs = spans.W3C.extract(_first_of_each(details.invocation_metadata), Context())
    span = spans.tracer().start_span(str(details.method).lstrip("/"), theirs, SpanKind.SERVER)
    on = {"end_on_exit": False, "record_exception": False, "set_status_on_exception": False}
    try:
        with use_span(span, **on) if current else nullcontext():
            yield
    finally:
        code = context.code() or grpc.StatusCode.OK
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        span.end()


_WRAPPED = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _first_of_each(metadata: Any) -> dict[str, str]:
    words: dict[str, str] = {}
    for key, value in metadata or ():
        if isinstance(value, str):
            words.setdefault(key, value)
    return words


def carried(channel: grpc.Channel) -> grpc.Channel:
    """The channel, whose calls belong to the step in which they are made; the same one while nobody takes steps."""
    return carrying(channel) if spans.are_recorded() else channel
