"""The gRPC door of a service: server, health, reflection, limits, and the guard before every call.

call ─> one of its threads ─> Guard (guard.py): who is it, may it, not too often? ─> the service's rpc.py ─> answer
                                └── refused: the error's rich status (refusals.py)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from inspectbus.runtime.guard import Guard, GuardedCall, Received
from inspectbus.runtime.health import Health, health_server
from inspectbus.runtime.metrics import metrics_server
from inspectbus.runtime.settings import ServiceSettings
from inspectbus.runtime.tls import server_credentials
from inspectbus.runtime.tracing import call_spans

log = structlog.get_logger(__name__)

# By whether the requests stream too.
_RESPONSE_UNARY = {False: grpc.unary_unary_rpc_method_handler, True: grpc.stream_unary_rpc_method_handler}
_RESPONSE_STREAM = {False: grpc.unary_stream_rpc_method_handler, True: grpc.stream_stream_rpc_method_handler}

SPARE_STREAMS = 1024
"""Of one connection, beside the calls in hand: calls that are being refused, and answers that nobody has read. A call's
thread is free when its answer is made, so for a client that never reads answers would pile up for ever. Wide enough for
a burst of calls to be refused by their status: what is beyond it hears UNAVAILABLE."""
WINDOW_BYTES = 1 << 20
"""What a stream's sender may send before it is read. gRPC by itself lets it grow with what the way has room for, on a
fast one to tens of megabytes for each stream: the memory of a service whose callers stream and never read. A megabyte
keeps a plant's network busy (1 GB/s at a round trip of 1 ms); a larger message has room while it is waited for."""
KEEPALIVE_S, KEEPALIVE_PATIENCE_S = 60.0, 20.0
"""How long a connection with calls on it may be silent before its other side is asked whether it is there, and how long
that may take to answer. Else the streams of a hall that lost its power would have their places for hours."""


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
    ready: Callable[[], bool] = lambda: True,
) -> Iterator[Door]:
    """Serves the contracts (full service name -> function that adds its servicer) until left.

    They are healthy as soon as `ready` says so. Leaving says NOT_SERVING first, then lets calls in hand finish for
    `drain_s`. Raises OSError when the port is taken, BadField for tokens or certificates that cannot be used.
    """
    # Others open their channels later, on threads of their own, where nobody would be told.
    settings.access.check()
    credentials = server_credentials(settings)
    server = grpc.server(
        ThreadPoolExecutor(settings.rpc_threads, thread_name_prefix=f"{service}-rpc"),
        interceptors=[*call_spans(), ThreadsGuard(Guard(registry, settings))],
        maximum_concurrent_rpcs=settings.rpc_threads + settings.rpc_waiting,
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.max_concurrent_streams", settings.rpc_threads + settings.rpc_waiting + SPARE_STREAMS),
            ("grpc.keepalive_time_ms", int(1000 * KEEPALIVE_S)),
            ("grpc.keepalive_timeout_ms", int(1000 * KEEPALIVE_PATIENCE_S)),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
            # Without this a second process takes the same port silently and half of the calls.
            ("grpc.so_reuseport", 0),
        ],
    )
    for add in contracts.values():
        add(server)
    status = Health(contracts, ready)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    if settings.reflection:
        reflection.enable_server_reflection((*contracts, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    host = f"[{settings.host.strip('[]')}]" if ":" in settings.host else settings.host
    # Metrics first: a gRPC port once bound is given back only by a server that was started.
    with (
        metrics_server(registry, settings.host, settings.metrics_port) as metrics_port,
        health_server(status, host, settings.health_port),
    ):
        try:
            address = f"{host}:{settings.port}"
            port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        except RuntimeError:
            raise OSError(f"{service}: cannot listen on {host}:{settings.port}; is the port taken?") from None
        server.start()
        status.opened()
        door = Door(service, f"{host}:{port}", f"{host}:{metrics_port}")
        log.info(
            "serving",
            service=service,
            grpc=door.address,
            metrics=door.metrics_address,
            tls=credentials is not None,
            client_certificates=settings.tls_client_ca is not None,
            roles=settings.tokens is not None,
        )
        try:
            yield door
        finally:
            status.enter_graceful_shutdown()
            server.stop(settings.drain_s).wait(settings.drain_s + 5)
            log.info("stopped", service=service)


class ThreadsGuard(grpc.ServerInterceptor):
    """Wraps every method of a server."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

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
                with self._guard.call(method, context) as call:
                    call.admitted()
                    with call.place():
                        yield from behaviour(_opened(request, call, context), context)
                _end(call, context)

        else:
            behaviour = handler.stream_unary or handler.unary_unary
            make = _RESPONSE_UNARY[bool(handler.request_streaming)]

            def answer(request: Any, context: grpc.ServicerContext) -> Any:
                with self._guard.call(method, context) as call:
                    call.admitted()
                    return behaviour(_opened(request, call, context), context)
                return _end(call, context)

        return make(answer, partial(Received, handler.request_deserializer), handler.response_serializer)


def _opened(request: Any, call: GuardedCall, context: grpc.ServicerContext) -> Any:
    """What the service is given: the request, or the stream of them. Raises BadField and TooFast."""
    if not isinstance(request, Received):
        return _Requests(request, call.take, context)
    call.check_pace(len(request.data))
    return request.open()


def _end(call: GuardedCall, context: grpc.ServicerContext) -> None:
    if call.refusal is not None:
        context.abort_with_status(call.refusal)


class _Requests:
    """The requests of a stream, read no faster than its sender may send."""

    def __init__(
        self, received: Iterator[Received], take: Callable[[int], float], context: grpc.ServicerContext
    ) -> None:
        self._received = received
        self._take = take
        self._context = context
        self._ended: threading.Event | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        received = next(self._received)
        while wait_s := self._take(len(received.data)):
            if self._ended is None:
                self._ended = threading.Event()
                if not self._context.add_callback(self._ended.set):
                    self._ended.set()
            if self._ended.wait(wait_s):
                raise StopIteration
        return received.open()
