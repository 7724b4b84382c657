"""Stations: list, start and stop the cameras of a line."""

from __future__ import annotations

from functools import cached_property

from inspectbus.api.v1 import acquisition_pb2, acquisition_pb2_grpc
from inspectbus_client.values import Station, read
from inspectbus_client.wire import Wire

DRAIN_S = 30.0
"""Stopping waits for the frames in flight."""


class Stations:
    """The part of the client that runs stations."""

    _wire: Wire

    def stations(self, *, timeout_s: float | None = None) -> list[Station]:
        request = acquisition_pb2.ListStationsRequest()
        method = self._acquisition.ListStations
        answer = self._wire.ask("acquisition", method, request, timeout_s=timeout_s, repeatable=True)
        return [read(Station, station) for station in answer.stations]

    def station(self, line: str, station: str, *, timeout_s: float | None = None) -> Station:
        request = acquisition_pb2.GetStationRequest(line=line, station=station)
        method = self._acquisition.GetStation
        answer = self._wire.ask("acquisition", method, request, timeout_s=timeout_s, repeatable=True)
        return read(Station, answer.station)

    # Neither is tried again: a station may have finished, or been started by somebody else, between two tries.

    def start_station(self, line: str, station: str, *, timeout_s: float | None = None) -> Station:
        """Starts its source; an interrupted run goes on where it stood. Running already: no change."""
        request = acquisition_pb2.StartStationRequest(line=line, station=station)
        answer = self._wire.ask("acquisition", self._acquisition.StartStation, request, timeout_s=timeout_s)
        return read(Station, answer.station)

    def stop_station(self, line: str, station: str, *, timeout_s: float = DRAIN_S) -> Station:
        """Takes no more frames and waits for those in flight; what was accepted is still decided."""
        request = acquisition_pb2.StopStationRequest(line=line, station=station)
        answer = self._wire.ask("acquisition", self._acquisition.StopStation, request, timeout_s=timeout_s)
        return read(Station, answer.station)

    @cached_property
    def _acquisition(self) -> acquisition_pb2_grpc.AcquisitionServiceStub:
        return acquisition_pb2_grpc.AcquisitionServiceStub(self._wire.channel("acquisition"))
