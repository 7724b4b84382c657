"""What a service says of itself over grpc.health.v1: that it lives, and that it can do its work.

""                                   the process lives: a liveness probe's question
inspectbus.api.v1.InferenceService   calls are welcome: a readiness probe's, and a rolling upgrade's, which ends an
                                     old replica when the new one says so

    probe ─> health port ─┐
                          ├─> is it serving, draining?
    caller ─> the door ───┘

A cluster's probes speak no TLS, and a door whose calls are all taken refuses a probe like any other call: a service
would be ended for being busy. So health has, where it is asked for, a port of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PROBES = 4
"""Answered at once: three kinds of them, and a person who looks. A watcher of health holds one for as long."""


class Health(health.HealthServicer):
    """Of the contracts it says NOT_SERVING until `ready` does, which each Check asks; from then on they serve until the
    graceful shutdown. Who watches hears of it when somebody has checked."""

    def __init__(self, contracts: Iterable[str], ready: Callable[[], bool]) -> None:
        super().__init__()
        self._lock_of_told = threading.Lock()
        self._told: frozenset[Callable[[], object]] = frozenset()
        self._contracts = tuple(contracts)
        self._ready = ready
        self._was_ready = False
        self.set("", NOT_SERVING)

    def opened(self) -> None:
        """The door is open: what it says from now on counts."""
        self.set("", SERVING)
        for name in self._contracts:
            self.set(name, NOT_SERVING)
        self.look()

    def set(self, service: str, status: int) -> None:
        super().set(service, status)
        for told in self._told:
            told()

    def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802
        self.look()
        answer: health_pb2.HealthCheckResponse = super().Check(request, context)
        return answer

    def look(self) -> None:
        """Whether the service is ready now, when it never was before."""
        if self._was_ready or not self._ready():
            return
        # After a shutdown began nothing changes any more: the base class sees to that.
        for name in self._contracts:
            self.set(name, SERVING)
        self._was_ready = True

    @property
    def was_ready(self) -> bool:
        return self._was_ready

    def status_of(self, service: str) -> int | None:
        """Without a lock; None for what is not served here."""
        # Its stub file does not know what the base class keeps.
        status: int | None = self._server_status.get(service)  # type: ignore[attr-defined]
        return status

    @property
    def statuses(self) -> dict[str, int]:
        """As they are at this moment, without a lock."""
        return dict(self._server_status)  # type: ignore[attr-defined]

    @contextmanager
    def telling(self, told: Callable[[], object]) -> Iterator[None]:
        """Calls `told`, on any thread, whenever a status may have changed, until left."""
        with self._lock_of_told:
            self._told |= {told}
        try:
            yield
        finally:
            with self._lock_of_told:
                self._told -= {told}


class LoopHealth(health_pb2_grpc.HealthServicer):
    """Tells the same on an event loop. The base class of `Health` sends under its lock, and whoever does not read can
    keep it locked: so a loop asks for it on a thread beside, and only until the service is ready."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802
        if not self._health.was_ready:
            await asyncio.to_thread(self._health.look)
        status = self._health.status_of(request.service)
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        if not self._health.was_ready:
            await asyncio.to_thread(self._health.look)
        # Its stub file knows Check and Watch only.
        known: Any = health_pb2
        statuses = self._health.statuses.items()
        return known.HealthListResponse(
            statuses={name: health_pb2.HealthCheckResponse(status=status) for name, status in statuses}
        )

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        told = None
        with self._health.telling(lambda: loop.call_soon_threadsafe(changed.set)):
            while True:  # until the call is cancelled
                changed.clear()
                status = self._health.status_of(request.service)
                if status is None:
                    status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
                if status != told:
                    yield health_pb2.HealthCheckResponse(status=status)
                    told = status
                await changed.wait()


@contextmanager
def health_server(status: health_pb2_grpc.HealthServicer, host: str, port: int | None) -> Iterator[None]:
    """Tells `status`, and nothing else, until left; None has no such port. Raises OSError when it is taken."""
    if port is None:
        yield
        return
    server = grpc.server(
        ThreadPoolExecutor(PROBES, thread_name_prefix="health"),
        maximum_concurrent_rpcs=2 * PROBES,
        options=[("grpc.max_receive_message_length", 4096), ("grpc.so_reuseport", 0)],
    )
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    try:
        server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        raise OSError(f"health: cannot listen on {host}:{port}; is the port taken?") from None
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait(5)
