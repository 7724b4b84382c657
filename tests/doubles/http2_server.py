"""Our server over HTTP/2 on a thread of its own, with a service that does as the test says, and what is left of calls.

client ─> Server (runtime/http2) ─> the door's guard ─> Scripted ─> answer;  ask() looks at it from its own thread
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from prometheus_client import CollectorRegistry

from inspectbus.errors import BadField
from inspectbus.runtime.guard import Guard
from inspectbus.runtime.http2.call import Status
from inspectbus.runtime.http2.connection import Terms
from inspectbus.runtime.http2.server import Server
from inspectbus.runtime.loop_server import Answers
from inspectbus.runtime.settings import ServiceSettings
from tests.doubles.http2_client import PATIENCE_S, SERVICE

T = TypeVar("T")


class Scripted:
    """Methods of a service, each for one thing that a call may do."""

    def __init__(self) -> None:
        self.waiting = threading.Semaphore(0)
        """Released by each call of Wait that has begun."""
        self.cancelled = threading.Semaphore(0)
        """Released by each whose call has ended."""
        self.remaining_s: float | None = None
        """Of the last call of Wait, until its deadline."""
        self.heard: Sequence[tuple[str, str | bytes]] = ()
        """The metadata of the last call of Metadata."""
        self.status = Status(grpc.StatusCode.OK)
        """What Abort ends with."""
        self.given = 0
        """Answers of Count that were sent."""
        self.read_on = threading.Event()
        """What Slow waits for before it reads."""

    def add_to(self, server: Server) -> None:
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        handlers = {
            "Echo": unary(self.echo, bytes, bytes),
            "Wait": unary(self.wait, bytes, bytes),
            "Metadata": unary(self.metadata, bytes, bytes),
            "Abort": unary(self.abort, bytes, bytes),
            "Fail": unary(self.fail, bytes, bytes),
            "Refuse": unary(self.refuse, bytes, bytes),
            "Count": grpc.unary_stream_rpc_method_handler(self.count, bytes, bytes),
            "Gather": grpc.stream_unary_rpc_method_handler(self.gather, bytes, bytes),
            "Slow": grpc.stream_unary_rpc_method_handler(self.slow, bytes, bytes),
            "Early": grpc.stream_unary_rpc_method_handler(self.early, bytes, bytes),
            "Relay": stream(self.relay, bytes, bytes),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def wait(self, request: bytes, context: Any) -> bytes:
        self.remaining_s = context.time_remaining()
        self.waiting.release()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.release()
        raise AssertionError("nobody sets it")

    async def metadata(self, request: bytes, context: Any) -> bytes:
        self.heard = context.invocation_metadata()
        return b""

    async def abort(self, request: bytes, context: Any) -> bytes:
        await context.abort_with_status(self.status)
        raise AssertionError("it raises")

    async def fail(self, request: bytes, context: Any) -> bytes:
        raise ZeroDivisionError("a secret of the service")

    async def refuse(self, request: bytes, context: Any) -> bytes:
        raise BadField(request.decode(), field="name")

    async def count(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """So many answers of so many bytes, as the request says. Raises BadField."""
        try:
            count, size = map(int, request.split())
        except ValueError:
            raise BadField("a request says how many answers, and of how many bytes") from None
        for _ in range(count):
            yield bytes(size)
            self.given += 1

    async def gather(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        """How many there were, and how large all together."""
        sizes = [len(each) async for each in requests]
        return f"{len(sizes)} {sum(sizes)}".encode()

    async def slow(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        self.waiting.release()
        await asyncio.to_thread(self.read_on.wait, PATIENCE_S)
        return await self.gather(requests, context)

    async def early(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        """Answers after the first, whatever more would come."""
        return await anext(aiter(requests))

    async def relay(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for each in requests:
            yield each


class Http2Server:
    """Use as a context."""

    def __init__(
        self,
        settings: ServiceSettings | None = None,
        *,
        most_calls: int = 100,
        keepalive_s: float = 60.0,
        keepalive_patience_s: float = 20.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings or ServiceSettings(drain_s=0.1, rpc_threads=64)
        self._terms = Terms(self._settings.max_message_bytes, most_calls, keepalive_s, keepalive_patience_s)
        self._tls = tls
        self.scripted = Scripted()
        self.faults: list[str] = []
        """What the loop has told of exceptions that nobody caught."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="http2", daemon=True)
        self._opened: Future[str] = Future()

    def __enter__(self) -> Self:
        self._thread.start()
        self.address = self._opened.result(PATIENCE_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.scripted.read_on.set()
        self._loop.call_soon_threadsafe(self._left.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the server does not end"

    async def _serve(self) -> None:
        self._loop, self._left = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(self._fault)
        guard = Guard(CollectorRegistry(), self._settings)
        self.server = Server(Answers(guard, self._settings).answer, self._terms)
        self.scripted.add_to(self.server)
        host = self._settings.host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family) as listening:
            await self.server.listen(listening, self._tls)
            self._opened.set_result(f"{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}")
            await self._left.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.server.stop(self._settings.drain_s), PATIENCE_S / 2)

    def ask(self, question: Callable[[], T]) -> T:
        """Its answer, given on the loop's thread."""

        async def answered() -> T:
            return question()

        return asyncio.run_coroutine_threadsafe(answered(), self._loop).result(PATIENCE_S)

    def leave(self, drain_s: float) -> Future[None]:
        """Done when it has left."""
        return asyncio.run_coroutine_threadsafe(self.server.stop(drain_s), self._loop)

    @property
    def calls(self) -> int:
        """That are open, and whose tasks are."""
        return self.ask(lambda: max(len(self.server._tasks), sum(len(each._calls) for each in self._connections)))

    @property
    def connections(self) -> int:
        return self.ask(lambda: len(self._connections))

    def wait_until(self, fact: Callable[[], bool]) -> None:
        """Of the server. Raises TimeoutError."""

        async def true() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while not fact():
                    await asyncio.sleep(0.001)

        asyncio.run_coroutine_threadsafe(true(), self._loop).result(2 * PATIENCE_S)

    def wait_quiet(self, connections: int = 0) -> None:
        """Until no call is open, and so many connections at most."""
        self.wait_until(
            lambda: (
                not self.server._tasks
                and len(self._connections) <= connections
                and not any(each._calls for each in self._connections)
            )
        )

    def _fault(self, loop: asyncio.AbstractEventLoop, told: dict[str, Any]) -> None:
        self.faults.append(f"{told['message']}: {told.get('exception')!r}")

    @property
    def _connections(self) -> set[Any]:
        return self.server._host.open
