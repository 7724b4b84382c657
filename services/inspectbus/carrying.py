"""A call out carries the trace it belongs to: the context of whoever calls, as metadata (W3C Trace Context)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import grpc
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_W3C = TraceContextTextMapPropagator()


def carrying(channel: grpc.Channel) -> grpc.Channel:
    """The channel, through which calls with one request carry it. Closing the channel itself ends both."""
    return grpc.intercept_channel(channel, _Carrying())


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Sequence[tuple[str, str | bytes]] | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: Any


class _Carrying(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(_with_context(details), request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(_with_context(details), request)


def _with_context(details: Any) -> _Details:
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return _Details(
        details.method,
        details.timeout,
        [*(details.metadata or ()), *carrier.items()],
        details.credentials,
        getattr(details, "wait_for_ready", None),
        getattr(details, "compression", None),
    )
