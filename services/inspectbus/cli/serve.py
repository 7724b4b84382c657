"""`inspectbus serve`: one or several services until a signal asks for the drain."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from inspectbus.runtime.rpc_server import Door

log = structlog.get_logger(__name__)

SERVICES = "results, training, inference, preprocessing, acquisition"
"""As inspectbus.line has them, which takes too long to import for --help."""
EXAMPLES = """
Examples:

    inspectbus serve results training inference preprocessing acquisition --config plant.yaml

    INSPECTBUS_INFERENCE_PORT=6000 inspectbus serve inference

Every setting is INSPECTBUS_<SERVICE>_<FIELD> in the environment or <service>: {<field>: ...} in the file.
SIGTERM or Ctrl-C drains: no new work, work in hand finished, then the end.
"""


def serve(
    services: Annotated[list[str], typer.Argument(metavar="SERVICE", help=f"Any of {SERVICES}.")],
    config: Annotated[
        Path | None,
        typer.Option(envvar="INSPECTBUS_PLANT", help="plant.yaml with settings; - reads them from standard input."),
    ] = None,
) -> None:
    """Run services in this process until it is told to stop."""
    from inspectbus import line
    from inspectbus.errors import StorageAway
    from inspectbus.runtime.signals import stop_on_signals
    from inspectbus.runtime.tracing import exported

    console = Console(stderr=True)
    sections = line.read_plant(config) if config else {}
    with stop_on_signals() as stop, exported(services, os.environ), ExitStack() as house:
        try:
            doors = house.enter_context(line.open_line(services, sections, stop))
        except StorageAway:
            if not stop.is_set():
                raise
            log.info("told to stop before the database was there")
            return
        # The log has said it of each already, to whoever reads that.
        if console.is_terminal:
            console.print(_shown(doors.values()))
        missing = [service for service in line.SERVICES if service not in doors]
        embedded = line.settings_class(services[0]).load(sections.get(services[0])).bus_url.startswith("embedded://")
        if missing and embedded:
            log.warning(
                "the embedded bus ends with this process: the services here answer at their gRPC doors alone",
                unreached=missing,
            )
        stop.wait()
        log.info("draining")


def _shown(doors: Iterable[Door]) -> Table:
    table = Table(title="serving", title_justify="left")
    for column in ("service", "gRPC", "metrics"):
        table.add_column(column)
    for door in doors:
        table.add_row(door.service, door.address, f"http://{door.metrics_address}/metrics")
    return table
