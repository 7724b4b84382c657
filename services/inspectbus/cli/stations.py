"""`inspectbus stations`: the cameras of the lines."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from inspectbus.cli.doors import AcquisitionAddress, client_of
from inspectbus.cli.printing import AsJson, json_line, table, time_of_day

if TYPE_CHECKING:
    from inspectbus_client import Station

EXAMPLES = """Examples:

  inspectbus stations list

  inspectbus stations start line-1/top

  inspectbus stations stop line-1/top"""

Which = Annotated[str, typer.Argument(metavar="LINE/STATION")]

app = typer.Typer(no_args_is_help=True, help="List, start and stop stations.")


@app.command("list", epilog="Example: inspectbus stations list --json")
def list_stations(as_json: AsJson = False, address: AcquisitionAddress = None) -> None:
    """List the stations and what they are doing."""
    with client_of("acquisition", address) as client:
        _show(client.stations(), as_json)


@app.command("start", epilog="Example: inspectbus stations start line-1/top")
def start_station(which: Which, as_json: AsJson = False, address: AcquisitionAddress = None) -> None:
    """Start a station's source; an interrupted run goes on where it stood."""
    line, station = _named(which)
    with client_of("acquisition", address) as client:
        _show([client.start_station(line, station)], as_json)


@app.command("stop", epilog="Example: inspectbus stations stop line-1/top")
def stop_station(which: Which, as_json: AsJson = False, address: AcquisitionAddress = None) -> None:
    """Stop taking frames; what was accepted is still decided."""
    line, station = _named(which)
    with client_of("acquisition", address) as client:
        _show([client.stop_station(line, station)], as_json)


def _named(which: str) -> tuple[str, str]:
    line, slash, station = which.partition("/")
    if not slash or not line or not station:
        raise typer.BadParameter(f"{which!r} is not LINE/STATION, such as line-1/top")
    return line, station


def _show(stations: list[Station], as_json: bool) -> None:
    if as_json:
        for station in stations:
            json_line(station)
        return
    rows = [
        (
            f"{station.line}/{station.station}",
            str(station.state),
            station.source,
            station.recipe,
            station.fps or "full speed",
            station.accepted,
            station.unreadable,
            station.in_flight,
            station.pending,
            station.late,
            _behind(station),
            station.dropped,
            time_of_day(station.last_frame_at),
            station.detail,
        )
        for station in stations
    ]
    columns = (
        "station",
        "state",
        "source",
        "recipe",
        "fps",
        "accepted",
        "unreadable",
        "in flight",
        "pending",
        "late",
        "behind",
        "dropped",
        "last frame",
        "detail",
    )
    table(columns, rows)


def _behind(station: Station) -> str | None:
    """What rests on the station's disk, and since when: "12 frames, 0:03:20"."""
    if not station.spooled:
        return None
    age = "" if station.behind is None else f", {timedelta(seconds=int(station.behind.total_seconds()))}"
    return f"{station.spooled} frames{age}"
