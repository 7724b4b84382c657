"""The same door on one event loop, for a service whose calls are many and small: none has a thread of its own.

    call ─> its turn ─> Guard (guard.py) ─> the service's rpc.py, a coroutine ─> answer
              └── none, and none may wait: refused unread        all on the loop's one thread, which nothing may block;
                                                                 a large message is parsed on one of a few others

The server beneath is http2/, and not gRPC's own: an image costs it half as much, and one caller waits a fifth less.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, aclosing, contextmanager, suppress
from typing import Any, Generic, Self, TypeVar

import grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from inspectbus.errors import BusClosed, QueueFull, TooLate
from inspectbus.runtime.guard import Guard, GuardedCall, Received
from inspectbus.runtime.health import LoopHealth
from inspectbus.runtime.http2.call import Call
from inspectbus.runtime.http2.connection import Terms
from inspectbus.runtime.http2.server import Server
from inspectbus.runtime.refusals import status_of
from inspectbus.runtime.rpc_server import KEEPALIVE_PATIENCE_S, KEEPALIVE_S, LEAVE_S, Behind, Door, open_door
from inspectbus.runtime.settings import ServiceSettings
from inspectbus.runtime.tls import server_context
from inspectbus.runtime.tracing import call_step

Request = TypeVar("Request")

THREADS_BESIDE = 4
"""For what would keep the loop from its other calls. Few: they take turns with the engine's for the processor."""
LARGE_BYTES = 256 << 10
"""A message of more is worked on beside the loop. A MB of raw bytes is parsed in 0.02 ms, and one of names and values,
which anybody may send, in 60: what is smaller keeps other calls waiting for 15 ms at worst."""
MESSAGE_S = 30.0
"""Until the one message of a call is there, or its one answer has gone: who sends by the byte, or gives no room to
answer in, would have what both take for ever."""
HEALTH = "/grpc.health.v1.Health/Check"
"""Answered beside all turns: a service is not to be ended for being busy."""
STOPPING = "the service is stopping; send again what was not answered"
OPEN_S = 30.0
"""Until the loop serves. It takes milliseconds, or on a machine that is busy a second."""


def loop_server(
    service: str,
    settings: ServiceSettings,
    registry: CollectorRegistry,
    contracts: Mapping[str, Callable[[Server], None]],
    ready: Callable[[], bool] = lambda: True,
) -> AbstractContextManager[Door]:
    """As `rpc_server`, but the servicers' methods are coroutines, and all run on one thread. They must not block it.

    A method with one answer returns it; one with many writes them to its context, or yields them. What streams in is
    given as `Requests`.
    """
    return open_door(service, settings, registry, contracts, ready, _on_a_loop)


@contextmanager
def _on_a_loop(behind: Behind[Server]) -> Iterator[int]:
    opened: Future[tuple[int, Callable[[], object]]] = Future()

    def run() -> None:
        try:
            # Of the kind that receives at once where it is told to: its connections share a buffer.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(_serve(behind, opened))
        except BaseException as error:  # whoever opens the door hears of it, on another thread
            if opened.done():
                raise
            opened.set_exception(error)

    thread = threading.Thread(target=run, name=f"{behind.service}-loop", daemon=True)
    thread.start()
    bound, leave = opened.result(OPEN_S)
    try:
        yield bound
    finally:
        leave()
        thread.join(behind.settings.drain_s + LEAVE_S)


async def _serve(behind: Behind[Server], opened: Future[tuple[int, Callable[[], object]]]) -> None:
    loop, left = asyncio.get_running_loop(), asyncio.Event()
    loop.set_default_executor(ThreadPoolExecutor(THREADS_BESIDE, thread_name_prefix=f"{behind.service}-beside"))
    settings = behind.settings
    terms = Terms(settings.max_message_bytes, behind.most_streams, KEEPALIVE_S, KEEPALIVE_PATIENCE_S)
    answers = Answers(behind.guard, settings)
    server = Server(answers.answer, terms)
    behind.furnish(server, LoopHealth(behind.health), reflection.aio.ReflectionServicer)
    tls = server_context(settings)
    with _listening(behind) as listening:
        await server.listen(listening, tls)
        opened.set_result((listening.getsockname()[1], lambda: loop.call_soon_threadsafe(left.set)))
        await left.wait()
        answers.leave()
        with suppress(TimeoutError):
            await asyncio.wait_for(server.stop(settings.drain_s), settings.drain_s + LEAVE_S / 2)


def _listening(behind: Behind[Server]) -> socket.socket:
    """Raises OSError."""
    host, port = behind.settings.host.strip("[]"), behind.settings.port
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        both = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, dualstack_ipv6=both)
    except OSError:
        raise behind.taken(f"{behind.host}:{port}") from None


class Requests(Generic[Request]):
    """The requests of a stream, read no faster than its sender may send. Raises BusClosed when the service stops."""

    def __init__(self, call: Call, parse: Callable[[bytes], Request], guarded: GuardedCall) -> None:
        self._call = call
        self._parse = parse
        self._guarded = guarded
        self._leaving = False

    def leave(self) -> None:
        """No more of them are taken."""
        self._leaving = True
        self._call.inbox.fail(BusClosed(STOPPING))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Request:
        data = await self._call.read()
        if data is None:
            raise StopAsyncIteration
        if self._leaving:  # it came before, and nobody has begun it
            raise BusClosed(STOPPING)
        while wait_s := self._guarded.take(len(data)):
            await asyncio.sleep(wait_s)
        request: Request = await _parsed(Received(self._parse, data))
        return request


class Answers:
    """Answers every call of a server, in its turn and behind the guard."""

    def __init__(self, guard: Guard, settings: ServiceSettings) -> None:
        self._guard = guard
        self._turns = asyncio.Semaphore(settings.rpc_threads)
        self._most = settings.rpc_threads + settings.rpc_waiting
        self._in_hand = 0
        self._reading: set[Requests[Any]] = set()
        """Of streams that are open."""
        full = f"{self._most} calls are in hand, and no more may be (rpc_threads and rpc_waiting): try again soon"
        self._full = status_of(QueueFull(full))

    def leave(self) -> None:
        """Open streams end when what was taken is answered."""
        for requests in self._reading:
            requests.leave()

    async def answer(self, handler: Any, call: Call) -> grpc.Status | None:
        if call.method == HEALTH:
            return await self._told(call, *await self._answered(handler, call))
        if self._in_hand >= self._most:
            return self._full
        self._in_hand += 1
        try:
            async with self._turns:
                answer, status = await self._answered(handler, call)
        finally:
            self._in_hand -= 1
        # Its turn is over: who reads neither answers nor refusals keeps nobody waiting.
        return await self._told(call, answer, status)

    async def _told(self, call: Call, answer: Any, status: grpc.Status | None) -> grpc.Status | None:
        if answer is not None:
            async with asyncio.timeout(MESSAGE_S):
                await call.write(answer, last=True)
        return status

    async def _answered(self, handler: Any, call: Call) -> tuple[Any, grpc.Status | None]:
        """The answer, None where there are many, and what the call ends with where that is no success."""
        with call_step(call.details, call, current=not handler.response_streaming):
            with self._guard.call(call.method, call) as guarded:
                guarded.admitted()
                if handler.request_streaming:
                    request: Any = Requests(call, handler.request_deserializer, guarded)
                else:
                    data = await _one_message(call)
                    if data is None:
                        await call.abort(
                            grpc.StatusCode.UNIMPLEMENTED, f'"{call.method}" requires exactly one request message.'
                        )  # as gRPC itself says of a server on threads
                    guarded.check_pace(len(data))
                    request = await _parsed(Received(handler.request_deserializer, data))
                if not handler.response_streaming:
                    return await (handler.stream_unary or handler.unary_unary)(request, call), None
                with guarded.place(), self._open(request):
                    await _written(handler.stream_stream or handler.unary_stream, request, call)
                    return None, None
            if guarded.refusal is not None:
                call.set_code(guarded.refusal.code)
        return None, guarded.refusal

    @contextmanager
    def _open(self, request: Any) -> Iterator[None]:
        if not isinstance(request, Requests):
            yield
            return
        self._reading.add(request)
        try:
            yield
        finally:
            self._reading.discard(request)


async def _one_message(call: Call) -> bytes | memoryview | None:
    try:
        async with asyncio.timeout(MESSAGE_S):
            data = await call.read()
            call.inbox.close()
            return data
    except TimeoutError:
        raise TooLate(f"the call's message did not come within {MESSAGE_S:.0f} s") from None


async def _parsed(received: Received) -> Any:
    """Raises BadField."""
    return await asyncio.to_thread(received.open) if len(received.data) > LARGE_BYTES else received.open()


async def _written(behaviour: Any, request: Any, call: Call) -> None:
    if inspect.iscoroutinefunction(behaviour):
        await behaviour(request, call)
        return
    async with aclosing(behaviour(request, call)) as answers:
        async for answer in answers:
            await call.write(answer)
