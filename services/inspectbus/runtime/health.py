"""What a service says of itself over grpc.health.v1: that it lives, and that it can do its work.

""                                   the process lives: a liveness probe's question
inspectbus.api.v1.InferenceService   calls are welcome: a readiness probe's, and a rolling upgrade's, which ends an
                                     old replica when the new one says so
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from grpc_health.v1 import health, health_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health(health.HealthServicer):
    """Of the contracts it says NOT_SERVING until `ready` does, which each Check asks; from then on they serve until the
    graceful shutdown. Who watches hears of it when somebody has checked."""

    def __init__(self, contracts: Iterable[str], ready: Callable[[], bool]) -> None:
        super().__init__()
        self._contracts = tuple(contracts)
        self._ready = ready
        self._was_ready = False

    def opened(self) -> None:
        """The door is open: what it says from now on counts."""
        self.set("", SERVING)
        for name in self._contracts:
            self.set(name, NOT_SERVING)
        self._look()

    def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802
        self._look()
        answer: health_pb2.HealthCheckResponse = super().Check(request, context)
        return answer

    def _look(self) -> None:
        if self._was_ready or not self._ready():
            return
        # After a shutdown began nothing changes any more: the base class sees to that.
        for name in self._contracts:
            self.set(name, SERVING)
        self._was_ready = True
