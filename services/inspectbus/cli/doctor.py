"""`inspectbus doctor`: what is wrong with a plant, in words and as an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inspectbus.cli.printing import AsJson, json_line, table
from inspectbus.cli.serve import SERVICES

EXAMPLES = """Examples:

  inspectbus doctor --config plant.yaml

  inspectbus doctor acquisition --json

  inspectbus doctor --doors inference

Exit code 0 when all is well, 1 with warnings, 2 with failures."""


def doctor(
    services: Annotated[
        list[str] | None,
        typer.Argument(metavar="SERVICE", show_default="all", help=f"Only what these need: {SERVICES}."),
    ] = None,
    config: Annotated[Path | None, typer.Option(envvar="INSPECTBUS_PLANT", help="plant.yaml with settings.")] = None,
    doors: Annotated[
        bool, typer.Option("--doors", help="Only whether the services answer: a container's health check.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at broker, database, stores, model, services and clocks, and say what is wrong."""
    from inspectbus import line
    from inspectbus.cli.doors import access
    from inspectbus.doctor.finding import State, examine
    from inspectbus.doctor.plan import checks_of, doors_of
    from inspectbus.errors import BadField

    unknown = sorted(set(services or ()) - set(line.SERVICES))
    if unknown:
        raise BadField(f"no service {unknown[0]!r}: there are {', '.join(line.SERVICES)}", field="service")
    looked_at = doors_of if doors else checks_of
    findings = examine(looked_at(services or line.SERVICES, line.read_plant(config) if config else {}, access()))
    if as_json:
        for finding in findings:
            json_line(finding)
    else:
        table(("", "about", "says"), [(str(each.state), each.about, each.says) for each in findings])
    states = {finding.state for finding in findings}
    raise typer.Exit(2 if State.FAIL in states else 1 if State.WARN in states else 0)
