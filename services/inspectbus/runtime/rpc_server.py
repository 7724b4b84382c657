"""The gRPC door of a service: server, health, reflection, and one interceptor for identity, errors, metrics and logs.

call ─> Guard: who is it, may it, not too often? ─> the service's rpc.py ─> answer
            ├── an InspectBusError becomes a rich status; anything else becomes INTERNAL with an incident number
            └── whoever was refused for who it is, is told in the log: `call denied`
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtoMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry, Counter, Histogram

from inspectbus.errors import BadField, InspectBusError, Internal, NotAllowed, NotIdentified, TooFast
from inspectbus.runtime.health import Health, health_server
from inspectbus.runtime.identity import ANONYMOUS, LOCAL_ADMIN, Doorkeeper, Identity, caller, host_of
from inspectbus.runtime.metrics import metrics_server
from inspectbus.runtime.open_streams import OpenStreams
from inspectbus.runtime.quotas import Quotas
from inspectbus.runtime.roles import Role, needed_for
from inspectbus.runtime.settings import ServiceSettings
from inspectbus.runtime.tls import server_credentials
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
WINDOW_BYTES = 1 << 20
"""What a stream's sender may send before it is read. gRPC by itself lets it grow with what the way has room for, on a
fast one to tens of megabytes for each stream: the memory of a service whose callers stream and never read. A megabyte
keeps a plant's network busy (1 GB/s at a round trip of 1 ms); a larger message has room while it is waited for."""
KEEPALIVE_S, KEEPALIVE_PATIENCE_S = 60.0, 20.0
"""How long a connection with calls on it may be silent before its other side is asked whether it is there, and how long
that may take to answer. Else the streams of a hall that lost its power would have their places for hours."""
DENIALS_TOLD_PER_S = 5.0
"""Of one address, by the log. All are counted; were all told, whoever is denied could fill the disk of the log."""
RETRY_HINT_S = 0.2
"""Told to callers of retryable errors that know no better: long enough for a batch to pass, short enough for a line."""


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
        interceptors=[*call_spans(), Guard(registry, settings)],
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


class Guard(grpc.ServerInterceptor):
    """Wraps every method of a server."""

    def __init__(self, registry: CollectorRegistry, settings: ServiceSettings) -> None:
        self._doorkeeper = Doorkeeper(settings.tokens)
        self._quotas = Quotas(settings.identity_calls_per_s, settings.identity_bytes_per_s)
        self._streams = OpenStreams(settings.rpc_threads)
        self._told = Quotas(DENIALS_TOLD_PER_S, 0.0)
        self._denied = Counter(
            "inspectbus_rpc_denied",
            "Calls refused for who made them, by method and kind of error.",
            ["method", "reason"],
            registry=registry,
        )
        # A series is looked up once, for that costs more than counting on it. There are as many as methods and codes.
        self._calls = cache(
            Counter(
                "inspectbus_rpc_calls", "gRPC calls by method and status.", ["method", "code"], registry=registry
            ).labels
        )
        self._seconds = cache(
            Histogram(
                "inspectbus_rpc_seconds", "Time from a call's start to its end.", ["method"], registry=registry
            ).labels
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
                with self._watched(method, context) as identity, self._place(identity, context):
                    yield from behaviour(self._opened(request, method, identity, context), context)

        else:
            behaviour = handler.stream_unary or handler.unary_unary
            make = _RESPONSE_UNARY[bool(handler.request_streaming)]

            def answer(request: Any, context: grpc.ServicerContext) -> Any:
                with self._watched(method, context) as identity:
                    return behaviour(self._opened(request, method, identity, context), context)

        return make(answer, partial(_Received, handler.request_deserializer), handler.response_serializer)

    def _place(self, identity: Identity, context: Any) -> AbstractContextManager[None]:
        """As `OpenStreams.place`: like the quotas, what one caller may have binds everybody but the local admin."""
        if identity is ANONYMOUS:
            return self._streams.place_of_stranger()
        return self._streams.place(_account(identity, context), shared=identity is not LOCAL_ADMIN)

    def _opened(self, request: Any, method: str, identity: Identity, context: Any) -> Any:
        """What the service is given: the request, or the stream of them. Raises BadField and TooFast."""
        counted = identity is not LOCAL_ADMIN and needed_for(method) is not Role.ANYBODY
        name = _account(identity, context)

        def take(size: int) -> float:
            return self._quotas.take(name, size) if counted else 0.0

        if not isinstance(request, _Received):
            return _Requests(request, take, context)
        wait_s = take(len(request.data))
        if wait_s:
            raise TooFast(
                f"{identity.name} sends more than one caller may: try again in {wait_s:.2g} s", retry_s=wait_s
            )
        return request.open()

    @contextmanager
    def _watched(self, method: str, context: Any) -> Iterator[Identity]:
        begun = time.monotonic()
        identity = ANONYMOUS
        token = caller.set(identity)
        code = grpc.StatusCode.OK
        try:
            identity = self._doorkeeper.identify(context)
            caller.set(identity)
            self._doorkeeper.admit(identity, method)
            yield identity
        except InspectBusError as error:
            if isinstance(error, (NotIdentified, NotAllowed)):
                error = self._denial(error, method, identity, context)
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
            self._calls(method, code.name).inc()
            self._seconds(method).observe(time.monotonic() - begun)

    def _denial(self, error: InspectBusError, method: str, identity: Identity, context: Any) -> InspectBusError:
        """Counts it and tells it in the log; gives the error to answer with, which for one more than an address may
        make is another."""
        reason, peer = type(error).__name__, host_of(context.peer())
        self._denied.labels(method, reason).inc()
        if not self._told.take(peer, 0):
            log.warning(
                "call denied", method=method, caller=identity.name, peer=peer, reason=reason, error=error.message
            )
        wait_s = self._quotas.take(f"{ANONYMOUS.name} {peer}", 0)
        if wait_s:
            return TooFast(f"too many calls of {peer} are denied: try again in {wait_s:.2g} s", retry_s=wait_s)
        return error


def _account(identity: Identity, context: Any) -> str:
    """Whose count a call is: of those who said no name, each machine has its own."""
    return f"{identity.name} {host_of(context.peer())}" if identity is ANONYMOUS else identity.name


@dataclass(frozen=True, slots=True)
class _Received:
    """One message as it came: nobody's bytes are parsed before it is known who sent them."""

    parse: Callable[[bytes], Any]
    data: bytes

    def open(self) -> Any:
        """Raises BadField where gRPC itself would answer INTERNAL, as if the fault were ours."""
        try:
            return self.parse(self.data)
        except DecodeError:
            raise BadField(f"the {len(self.data)} bytes received are no message of this call") from None


class _Requests:
    """The requests of a stream, read no faster than its sender may send."""

    def __init__(self, received: Iterator[_Received], take: Callable[[int], float], context: Any) -> None:
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
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int((RETRY_HINT_S if error.retry_s is None else error.retry_s) * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        any_detail = any_pb2.Any()
        any_detail.Pack(detail)
        packed.append(any_detail)
    return status_pb2.Status(code=error.code.value[0], message=text, details=packed)
