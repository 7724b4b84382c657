"""The gRPC door of a service: server, health, reflection, limits, and the guard before every call.

call ─> one of its threads ─> Guard (guard.py): who is it, may it, not too often? ─> the service's rpc.py ─> answer
                                └── refused: the error's rich status (refusals.py)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
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
LEAVE_S = 5.0
"""What calls have to end in once they are cancelled, because `drain_s` is over."""

Server = TypeVar("Server")


@dataclass(frozen=True)
class Door:
    """Where a running service can be reached."""

    service: str
    address: str
    """host:port for gRPC."""
    metrics_address: str
    """host:port for Prometheus."""


@dataclass(frozen=True)
class Behind(Generic[Server]):
    """What is behind a door, whichever form of server it has."""

    service: str
    settings: ServiceSettings
    contracts: Mapping[str, Callable[[Server], None]]
    guard: Guard
    health: Health

    @property
    def host(self) -> str:
        """As an address has it: one of IPv6 in brackets."""
        return f"[{self.settings.host.strip('[]')}]" if ":" in self.settings.host else self.settings.host

    @property
    def most_streams(self) -> int:
        """Of one connection at once."""
        return self.settings.rpc_threads + self.settings.rpc_waiting + SPARE_STREAMS

    @property
    def options(self) -> list[tuple[str, int]]:
        """The channel arguments of gRPC's own server."""
        settings = self.settings
        return [
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.max_concurrent_streams", self.most_streams),
            ("grpc.keepalive_time_ms", int(1000 * KEEPALIVE_S)),
            ("grpc.keepalive_timeout_ms", int(1000 * KEEPALIVE_PATIENCE_S)),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
            # Without this a second process takes the same port silently and half of the calls.
            ("grpc.so_reuseport", 0),
        ]

    def furnish(
        self,
        server: Any,
        health_servicer: health_pb2_grpc.HealthServicer,
        reflecting: Callable[[Sequence[str]], reflection_pb2_grpc.ServerReflectionServicer],
    ) -> None:
        """Adds all that it serves to the server."""
        for add in self.contracts.values():
            add(server)
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        if self.settings.reflection:
            names = (*self.contracts, health.SERVICE_NAME, reflection.SERVICE_NAME)
            add_reflection: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
            add_reflection(reflecting(names), server)

    def taken(self, address: str) -> OSError:
        return OSError(f"{self.service}: cannot listen on {address}; is the port taken?")


def rpc_server(
    service: str,
    settings: ServiceSettings,
    registry: CollectorRegistry,
    contracts: Mapping[str, Callable[[grpc.Server], None]],
    ready: Callable[[], bool] = lambda: True,
) -> AbstractContextManager[Door]:
    """Serves the contracts (full service name -> function that adds its servicer) until left, each call on a thread.

    They are healthy as soon as `ready` says so. Leaving says NOT_SERVING first, then lets calls in hand finish for
    `drain_s`. Raises OSError when the port is taken, BadField for tokens or certificates that cannot be used.
    """
    return open_door(service, settings, registry, contracts, ready, _on_threads)


@contextmanager
def open_door(
    service: str,
    settings: ServiceSettings,
    registry: CollectorRegistry,
    contracts: Mapping[str, Callable[[Server], None]],
    ready: Callable[[], bool],
    serve: Callable[[Behind[Server]], AbstractContextManager[int]],
) -> Iterator[Door]:
    """As `rpc_server`, by the form of server that `serve` opens: it gives the port it got, and leaving it lets calls in
    hand finish."""
    # Others open their channels later, on threads of their own, where nobody would be told.
    settings.access.check()
    behind = Behind(service, settings, contracts, Guard(registry, settings), Health(contracts, ready))
    host = behind.host
    # Metrics first: a gRPC port once bound is given back only by a server that was started.
    with (
        metrics_server(registry, settings.host, settings.metrics_port) as metrics_port,
        health_server(behind.health, host, settings.health_port),
        ExitStack() as serving,
    ):
        port = serving.enter_context(serve(behind))
        behind.health.opened()
        door = Door(service, f"{host}:{port}", f"{host}:{metrics_port}")
        log.info(
            "serving",
            service=service,
            grpc=door.address,
            metrics=door.metrics_address,
            tls=settings.tls_certificate is not None,
            client_certificates=settings.tls_client_ca is not None,
            roles=settings.tokens is not None,
        )
        try:
            yield door
        finally:
            behind.health.enter_graceful_shutdown()
            serving.close()
            log.info("stopped", service=service)


@contextmanager
def _on_threads(behind: Behind[grpc.Server]) -> Iterator[int]:
    settings = behind.settings
    server = grpc.server(
        ThreadPoolExecutor(settings.rpc_threads, thread_name_prefix=f"{behind.service}-rpc"),
        interceptors=[*call_spans(), ThreadsGuard(behind.guard)],
        maximum_concurrent_rpcs=settings.rpc_threads + settings.rpc_waiting,
        options=behind.options,
    )
    behind.furnish(server, behind.health, reflection.ReflectionServicer)
    credentials = server_credentials(settings)
    address = f"{behind.host}:{settings.port}"
    try:
        if credentials is not None:
            port = server.add_secure_port(address, credentials)
        else:
            port = server.add_insecure_port(address)
    except RuntimeError:
        raise behind.taken(address) from None
    server.start()
    try:
        yield port
    finally:
        server.stop(settings.drain_s).wait(settings.drain_s + LEAVE_S)


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
