"""Health on a port of its own, for a cluster's probes: without TLS, which they do not speak, and never full.

    probe ─> health port ─┐
                          ├─> is it serving, draining?
    caller ─> the door ───┘

A door whose calls are all taken refuses a probe like any other call, and a cluster would end the service for being
busy.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health_pb2_grpc

PROBES = 4
"""Answered at once: three kinds of them, and a person who looks. A watcher of health holds one for as long."""


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
