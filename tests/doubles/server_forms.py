"""The two forms of a server, and how one servicer, written for threads, stands behind either.

call ─> loop_server ─> the servicer's method on a thread, which asks the loop for each request ─> answer
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, cast

import grpc
from prometheus_client import CollectorRegistry

from inspectbus.runtime.http2.server import Server
from inspectbus.runtime.loop_server import Requests, loop_server
from inspectbus.runtime.rpc_server import Door, rpc_server
from inspectbus.runtime.settings import ServiceSettings

Form = Literal["threads", "loop"]
FORMS: tuple[Form, ...] = ("threads", "loop")
PATIENCE_S = 20.0


def serve(
    form: Form,
    settings: ServiceSettings,
    registry: CollectorRegistry,
    contracts: Mapping[str, Callable[[grpc.Server], None]],
    ready: Callable[[], bool] = lambda: True,
    service: str = "acquisition",
) -> AbstractContextManager[Door]:
    """As `rpc_server`, in that form."""
    if form == "threads":
        return rpc_server(service, settings, registry, contracts, ready)
    return loop_server(service, settings, registry, {name: _on_loop(add) for name, add in contracts.items()}, ready)


def _on_loop(add: Callable[[grpc.Server], None]) -> Callable[[Server], None]:
    return lambda server: add(cast(grpc.Server, _Translated(server)))


@dataclass
class _Translated:
    """Takes a servicer's methods for threads, and gives them to the loop's server as coroutines."""

    server: Server

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """They are added by their names too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.server.add_registered_method_handlers(
            service, {name: _translated(handler) for name, handler in handlers.items()}
        )


def _translated(handler: Any) -> Any:
    async def answer(request: Any, context: Any) -> Any:
        return await asyncio.to_thread(handler.unary_unary, request, _Context(context, asyncio.get_running_loop()))

    async def answers(request: Any, context: Any) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        asked = _asked(request, loop) if isinstance(request, Requests) else request
        given = iter((handler.stream_stream or handler.unary_stream)(asked, _Context(context, loop)))
        while (one := await asyncio.to_thread(next, given, None)) is not None:
            yield one

    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(
        answers if handler.response_streaming else answer,
        handler.request_deserializer,
        handler.response_serializer,
    )


def _asked(requests: Requests[Any], loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    while (request := asyncio.run_coroutine_threadsafe(_next(requests), loop).result(PATIENCE_S)) is not None:
        yield request


async def _next(requests: Requests[Any]) -> Any:
    return await anext(requests, None)


class _Context:
    """Of the loop's context what methods on threads use."""

    def __init__(self, context: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        asyncio.run_coroutine_threadsafe(self._context.abort(code, details), self._loop).result(PATIENCE_S)
