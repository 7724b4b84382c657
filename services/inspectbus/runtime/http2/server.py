"""The server: who listens, which method answers a call, and how all of it ends.

connection ─> call ─> its method's handler ─> `answer`, a coroutine of whoever opens the server ─> the call's status
                         └── there is none: UNIMPLEMENTED
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
import structlog

from inspectbus.runtime.http2.call import Aborted, Call, Status
from inspectbus.runtime.http2.connection import Connection, Host, Terms

log = structlog.get_logger(__name__)

HANDSHAKE_S = 20.0
BACKLOG = 256
"""Connections that wait to be accepted."""
AT_ONCE = 4
"""Connections accepted before others have their turn; so many times asyncio tells each second that none can be."""

Answer = Callable[[Any, Call], Awaitable[grpc.Status | None]]
"""Answers a call by its handler, and gives the status that it ends with; None where the call has one, or did well."""


class Server:
    """On the loop's thread alone. Its handlers' methods are coroutines."""

    def __init__(self, answer: Answer, terms: Terms) -> None:
        self._answer = answer
        self._host = Host(terms, self._begin)
        self._registered: dict[str, Any] = {}
        self._generic: list[grpc.GenericRpcHandler] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Server | None = None

    # As gRPC's own servers have them: what it generates, and its health and reflection, are added by these.

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self._registered |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._generic.extend(handlers)

    async def listen(self, listening: socket.socket, tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(
            lambda: Connection(self._host),
            sock=listening,
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_S if tls is not None else None,
            backlog=AT_ONCE,
        )
        listening.listen(BACKLOG)

    async def stop(self, drain_s: float) -> None:
        """Takes no more calls; those that are open have `drain_s`, and are cancelled then."""
        if self._listening is not None:
            self._listening.close()
        self._host.leaving = True
        for connection in tuple(self._host.open):
            connection.drain()
        if ending := self._open():
            await asyncio.wait(ending, timeout=drain_s)
        while ending := self._open():  # a call is cancelled when its connection is lost
            for connection in tuple(self._host.open):
                connection.abort()
            await asyncio.wait(ending)

    def _open(self) -> list[asyncio.Future[None]]:
        """Done when they have ended."""
        return [*self._tasks, *(connection.lost for connection in self._host.open)]

    def _begin(self, call: Call) -> None:
        task = call.task = asyncio.get_running_loop().create_task(self._run(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, call: Call) -> None:
        if call.objection:
            call.refuse(call.objection)
            return
        handler = self._handler_of(call)
        if handler is None:
            _end(call, grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return
        call.serialize = handler.response_serializer or call.serialize
        try:
            async with asyncio.timeout(call.time_remaining()):
                call.end(await self._answer(handler, call))
        except TimeoutError:
            _end(call, grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        except Aborted:
            call.end()
        except Exception as error:  # whoever answers has faults that are ours too: the call ends, the server goes on
            log.error("a call failed beyond its guard", method=call.method, exc_info=error)
            _end(call, grpc.StatusCode.INTERNAL, "a fault in the service")

    def _handler_of(self, call: Call) -> Any:
        if (handler := self._registered.get(call.method)) is not None:
            return handler
        return next((found for each in self._generic if (found := each.service(call.details)) is not None), None)


def _end(call: Call, code: grpc.StatusCode, details: str) -> None:
    call.end(Status(code, details))
