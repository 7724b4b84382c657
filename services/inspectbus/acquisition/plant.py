"""The plant: every station this service owns, and the service's own station for inspections."""

from __future__ import annotations

import time
from collections.abc import Iterator

import structlog

from inspectbus.acquisition.claims import Claims
from inspectbus.acquisition.metrics import AcquisitionMetrics
from inspectbus.acquisition.settings import INSPECT_LINE, AcquisitionSettings
from inspectbus.acquisition.station import Station
from inspectbus.bus import Bus
from inspectbus.domain.names import checked_name
from inspectbus.errors import NotFound

log = structlog.get_logger(__name__)


class Plant:
    """Leaving it stops every station and lets what is in flight be accepted, for `drain_s` at most."""

    def __init__(self, settings: AcquisitionSettings, bus: Bus, metrics: AcquisitionMetrics) -> None:
        self._drain_s = settings.drain_s
        claims = Claims(settings, metrics)
        self._stations: dict[tuple[str, str], Station] = {}
        for line in settings.lines:
            for station in line.stations:
                self._stations[line.name, station.name] = Station(line.name, station, settings, bus, claims, metrics)
        own = settings.inspect_station
        self.inspect_station = Station(INSPECT_LINE, own, settings, bus, claims, metrics)
        self._stations[INSPECT_LINE, own.name] = self.inspect_station

    def __enter__(self) -> Plant:
        return self

    def __exit__(self, *_: object) -> None:
        self.ask_to_stop()
        # One second beyond: a station writes its cursor after it has drained.
        until_s = time.monotonic() + self._drain_s + 1.0
        for station in self:
            if not station.stopped(max(0.0, until_s - time.monotonic())):
                log.warning("left with frames in flight", line=station.line, station=station.name)

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
