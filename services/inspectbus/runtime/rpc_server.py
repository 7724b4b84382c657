"""The gRPC door of a service: server, health, reflection, and one interceptor for identity, errors, metrics and logs.

call ─> Guard: who is it? ─> the service's rpc.py ─> answer
            └── an InspectBusError becomes a rich status; anything else becomes INTERNAL with an incident number
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message as ProtoMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry, Counter, Histogram

from inspectbus.errors import InspectBusError, Internal
from inspectbus.runtime.identity import caller, identify
from inspectbus.runtime.metrics import metrics_server
from inspectbus.runtime.settings import ServiceSettings
from inspectbus.runtime.tracing import call_spans

log = structlog.get_logger(__name__)

# By whether the requests stream too.
_RESPONSE_UNARY = {False: grpc.unary_unary_rpc_method_handler, True: grpc.stream_unary_rpc_method_handler}
_RESPONSE_STREAM = {False: grpc.unary_stream_rpc_method_handler, True: grpc.stream_stream_rpc_method_handler}

MAX_MESSAGE_BYTES = 1000
"""Of an error. Its text travels several times in the trailers, and gRPC drops trailers beyond 8 KiB, status and all."""
SPARE_STREAMS = 1024
"""Of one connection, beside the calls in hand: calls that are being refused, and answers that nobody has read. A call's
thread is free when its answer is made, so for a client that never reads answers would pile up for ever. Wide enough for
a burst of calls to be refused by their status: what is beyond it hears UNAVAILABLE."""
RETRY_HINT_S = 0.2
"""Told to callers of retryable errors: long enough for a batch to pass, short enough for a line."""


@dataclass(frozen=True)
class Door:
    """Where a running service can be reached."""

    service: str
    address: str
    """host:port for gRPC."""
    metrics_address: str
    """host:port for Prometheus."""


@contextmanager
def rpc_server(
    service: str,
    settings: ServiceSettings,
    registry: CollectorRegistry,
    contracts: dict[str, Callable[[grpc.Server], None]],
) -> Iterator[Door]:
    """Serves the contracts (full service name -> function that adds its servicer) until left.

    Leaving says NOT_SERVING first, then lets calls in hand finish for `drain_s`. Raises OSError when the port is taken.
    """
    server = grpc.server(
        ThreadPoolExecutor(settings.rpc_threads, thread_name_prefix=f"{service}-rpc"),
        interceptors=[*call_spans(), Guard(registry)],
        maximum_concurrent_rpcs=settings.rpc_threads,
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.max_concurrent_streams", settings.rpc_threads + SPARE_STREAMS),
            # Without this a second process takes the same port silently and half of the calls.
            ("grpc.so_reuseport", 0),
        ],
    )
    for add in contracts.values():
        add(server)
    status = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    reflection.enable_server_reflection((*contracts, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    host = f"[{settings.host.strip('[]')}]" if ":" in settings.host else settings.host
    # Metrics first: a gRPC port once bound is given back only by a server that was started.
    with metrics_server(registry, settings.host, settings.metrics_port) as metrics_port:
        try:
            port = server.add_insecure_port(f"{host}:{settings.port}")
        except RuntimeError:
            raise OSError(f"{service}: cannot listen on {host}:{settings.port}; is the port taken?") from None
        server.start()
        for name in ("", *contracts):
            status.set(name, health_pb2.HealthCheckResponse.SERVING)
        door = Door(service, f"{host}:{port}", f"{host}:{metrics_port}")
        log.info("serving", service=service, grpc=door.address, metrics=door.metrics_address)
        try:
            yield door
        finally:
            status.enter_graceful_shutdown()
            server.stop(settings.drain_s).wait(settings.drain_s + 5)
            log.info("stopped", service=service)


class Guard(grpc.ServerInterceptor):
    """Wraps every method of a server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "inspectbus_rpc_calls", "gRPC calls by method and status.", ["method", "code"], registry=registry
        )
        self._seconds = Histogram(
            "inspectbus_rpc_seconds", "Time from a call's start to its end.", ["method"], registry=registry
        )

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        method = str(details.method)
        if handler.response_streaming:
            behaviour = handler.stream_stream or handler.unary_stream
            make = _RESPONSE_STREAM[bool(handler.request_streaming)]

            def answer(request: Any, context: grpc.ServicerContext) -> Any:
                with self._watched(method, context):
                    yield from behaviour(request, context)

        else:
            behaviour = handler.stream_unary or handler.unary_unary
            make = _RESPONSE_UNARY[bool(handler.request_streaming)]

            def answer(request: Any, context: grpc.ServicerContext) -> Any:
                with self._watched(method, context):
                    return behaviour(request, context)

        return make(answer, handler.request_deserializer, handler.response_serializer)

    @contextmanager
    def _watched(self, method: str, context: Any) -> Iterator[None]:
        begun = time.monotonic()
        token = caller.set(identify(context))
        code = grpc.StatusCode.OK
        try:
            yield
        except InspectBusError as error:
            code = error.code
            abort(context, error)
        except Exception:
            if context.code() is not None:  # the method itself called abort, which raises a bare Exception
                code = context.code()
                raise
            code = grpc.StatusCode.INTERNAL
            incident = uuid.uuid4().hex[:12]
            log.exception("call failed", method=method, incident=incident)
            abort(context, Internal(f"a fault in the service; its log has the details under incident {incident}"))
        finally:
            # A stream's generator may be closed on another thread than it began on, where the token is unknown.
            with suppress(ValueError):
                caller.reset(token)
            self._calls.labels(method, code.name).inc()
            self._seconds.labels(method).observe(time.monotonic() - begun)


def abort(context: grpc.ServicerContext, error: InspectBusError) -> NoReturn:
    """Ends the call with the error's code and its details."""
    context.abort_with_status(rpc_status.to_status(to_status(error)))
    raise AssertionError("abort_with_status returns never")


def to_status(error: InspectBusError) -> status_pb2.Status:
    """The rich status: ErrorInfo names the kind, BadRequest the field, RetryInfo says when to try again."""
    # What a caller sent may stand in the text, at any length and with halves of characters.
    text = error.message.encode(errors="replace")[:MAX_MESSAGE_BYTES].decode(errors="ignore")
    details: list[ProtoMessage] = [error_details_pb2.ErrorInfo(reason=type(error).__name__, domain="inspectbus")]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=text)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retryable:
        delay = duration_pb2.Duration(nanos=int(RETRY_HINT_S * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        any_detail = any_pb2.Any()
        any_detail.Pack(detail)
        packed.append(any_detail)
    return status_pb2.Status(code=error.code.value[0], message=text, details=packed)
