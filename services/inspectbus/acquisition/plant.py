"""The plant: every station this service owns, and the service's own station for inspections."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import structlog

from inspectbus.acquisition.claims import Claims
from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.outlet import RESCUE_S
from inspectbus.acquisition.settings import INSPECT_LINE, AcquisitionSettings, StationSettings
from inspectbus.acquisition.spool import spool_folder
from inspectbus.acquisition.station import Station
from inspectbus.bus import Bus, Message
from inspectbus.domain.names import checked_name
from inspectbus.errors import NotFound

log = structlog.get_logger(__name__)


FAREWELL_S = 1.0
"""How long the bus may take to confirm the last outcomes of all gates; their journals have them anyway."""


class Plant:
    """Leaving it stops every station and lets what is in flight be accepted and get its outcome, for `drain_s` at most;
    what is still open then goes to the disk of stations that spool."""

    def __init__(
        self,
        settings: AcquisitionSettings,
        bus: Bus,
        metrics: AcquisitionMetrics,
        on_decision: Callable[[Message], None],
    ) -> None:
        """`on_decision` hears the news of decisions on all stations' frames."""
        self._drain_s = settings.drain_s
        self._state_dir = settings.state_dir
        claims = Claims(settings, metrics)

        def made(line: str, station: StationSettings) -> Station:
            return Station(line, station, settings, bus, claims, metrics, on_decision)

        self._stations: dict[tuple[str, str], Station] = {}
        for line in settings.lines:
            for station in line.stations:
                self._stations[line.name, station.name] = made(line.name, station)
        own = settings.inspect_station
        self.inspect_station = made(INSPECT_LINE, own)
        self._stations[INSPECT_LINE, own.name] = self.inspect_station
        self._stack = ExitStack()

    def __enter__(self) -> Plant:
        self._tell_forgotten_spools()
        with ExitStack() as opening:
            for station in self:
                opening.enter_context(station)
            self._stack = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            until_s = time.monotonic() + self._drain_s
            self.ask_to_stop()
            for station in self:
                station.stop_draining()
            self._stopped(self._drain_s)
            for station in self:
                station.rescue()
            # One second beyond: a station writes its cursor after it has drained.
            for station in self._stopped(RESCUE_S + 1.0):
                log.warning("left with frames in flight", line=station.line, station=station.name)
            for station in self:
                if not station.gate.settled(max(0.0, until_s - time.monotonic())):
                    log.warning("left with parts at the gate", line=station.line, station=station.name)
            until_s = time.monotonic() + FAREWELL_S
            for station in self:
                station.gate.close(max(0.0, until_s - time.monotonic()))

    def __iter__(self) -> Iterator[Station]:
        return iter(self._stations.values())

    def station(self, line: str, station: str) -> Station:
        """Raises BadField for what is no name, NotFound for a station we do not have; both name the field."""
        key = (checked_name(line, "line"), checked_name(station, "station"))
        if key in self._stations:
            return self._stations[key]
        known = ", ".join("/".join(names) for names in list(self._stations)[:20])
        field = "station" if any(names[0] == line for names in self._stations) else "line"
        raise NotFound(f"no station {line}/{station}; there are {known}", field=field)

    def start(self) -> None:
        """Starts the stations that start by themselves. One whose source fails shows it in its state."""
        for station in self:
            if station.starts_itself:
                station.start()

    def ask_to_stop(self) -> None:
        for station in self:
            station.ask_to_stop()

    def _tell_forgotten_spools(self) -> None:
        """Accepted frames of a station that the plant no longer has: whoever took it out must hear of them."""
        ours = {spool_folder(self._state_dir, *names) for names in self._stations}
        for file in sorted(spool_folder(self._state_dir, "*", "*").parent.glob("*.*/*.log")):
            if file.parent not in ours and file.stat().st_size:
                ours.add(file.parent)
                log.warning("frames of a station that is not in the plant rest on disk", folder=str(file.parent))

    def _stopped(self, patience_s: float) -> list[Station]:
        """Waits so long for all; those that have not stopped."""
        until_s = time.monotonic() + patience_s
        return [station for station in self if not station.stopped(max(0.0, until_s - time.monotonic()))]
