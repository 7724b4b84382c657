"""A breaker: whether a station knows the bus to be away, so that a camera does not wait for it frame by frame."""

from __future__ import annotations

import structlog

from inspectbus.bus import Bus

log = structlog.get_logger(__name__)


class Breaker:
    """Opened by a frame that failed, closed by the next one that the bus confirmed. Thread-safe."""

    def __init__(self, bus: Bus, line: str, station: str) -> None:
        self._bus = bus
        self._log = log.bind(line=line, station=station)
        self._failure = ""

    @property
    def trouble(self) -> str:
        """Why the bus cannot be used now, in words; empty while it can, as far as is known."""
        return self._bus.trouble or self._failure

    def trip(self, error: BaseException) -> None:
        if not self._failure:
            self._log.warning("the bus is away; frames go to disk", detail=str(error))
        self._failure = str(error) or type(error).__name__

    def close(self) -> None:
        if self._failure:
            self._log.info("the bus is back")
            self._failure = ""
