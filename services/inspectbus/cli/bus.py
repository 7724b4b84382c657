"""`inspectbus bus`: what a plant's broker needs, and how much waits there."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inspectbus.cli.brokers import EMBEDDED, IS_EMBEDDED, BusUrl, addresses_of
from inspectbus.cli.printing import AsJson, json_line, plain, table

if TYPE_CHECKING:
    from inspectbus.bus.rabbitmq.addresses import Addresses
    from inspectbus.bus.rabbitmq.survey import Standing

EXAMPLES = """Examples:

  inspectbus bus declare

  inspectbus bus definitions --plant plant.yaml --credentials users.json --output definitions.json

  inspectbus bus status"""

app = typer.Typer(no_args_is_help=True, help="Make a broker ready, and see how much waits there.")


@app.command("declare", epilog="Example: INSPECTBUS_BUS_URL=amqp://admin:…@broker/plant inspectbus bus declare")
def declare(bus_url: BusUrl = EMBEDDED, as_json: AsJson = False) -> None:
    """Make exchanges and queues where they are missing, and show them. Doing it again changes nothing.

    Limits of queues, users and their rights cannot be made this way: see `inspectbus bus definitions`.
    """
    addresses = addresses_of(bus_url)
    if addresses is None:
        typer.echo(f"nothing to do: {IS_EMBEDDED}", err=True)
        return
    from inspectbus.bus.rabbitmq import topology
    from inspectbus.errors import NotAllowed

    try:
        topology.declare(addresses)
    except NotAllowed:
        # Even declaring what is there takes the right to configure; looking takes none.
        gone = _missing(addresses)
        if gone:
            raise NotAllowed(f"user {addresses.user!r} may not make queues, and {gone}", field="bus_url") from None
        typer.echo(f"nothing to do: all is there (and user {addresses.user!r} may not make queues)", err=True)
    found = _standings(addresses)
    if as_json:
        _as_lines(found)
        return
    sources = {queue.name: queue.bindings for queue in topology.queues()}
    rows = [
        (each.queue, each.kind, ", ".join(f"{exchange} {key}" for exchange, key in sources[each.queue]), each.messages)
        for each in found
    ]
    table(("queue", "kind", "takes", "waiting"), rows)


@app.command("status", epilog="Example: inspectbus bus status --json")
def status(bus_url: BusUrl = EMBEDDED, as_json: AsJson = False) -> None:
    """Show how much waits in every queue: by lane, to be tried again, in quarantine, dead.

    Exit code 2 when a queue or an exchange is missing.
    """
    from inspectbus.errors import NotFound, NotPossibleNow

    addresses = addresses_of(bus_url)
    if addresses is None:
        raise NotPossibleNow(IS_EMBEDDED, field="bus_url")
    found = _standings(addresses)
    if as_json:
        _as_lines(found)
    else:
        _show(found)
    gone = _missing(addresses)
    if gone:
        raise NotFound(gone, field="bus_url")


def _show(found: list[Standing]) -> None:
    by_name = {each.queue: each for each in found}

    def waiting(name: str) -> int | str | None:
        each = by_name.get(name)
        return None if each is None else "missing" if each.messages is None else each.messages

    rows = [
        (
            each.queue,
            each.lane,
            waiting(each.queue),
            waiting(f"{each.queue}.retry"),
            waiting(f"{each.queue}.quarantine"),
            each.consumers,
        )
        for each in found
        if each.kind in ("work", "dead")
    ]
    table(("queue", "lane", "waiting", "retry", "quarantine", "readers"), rows)


@app.command(
    "definitions",
    epilog="Example: inspectbus bus definitions --plant plant.yaml --credentials users.json > broker.json",
)
def definitions(
    plant: Annotated[
        Path | None, typer.Option(envvar="INSPECTBUS_PLANT", help="plant.yaml: a user per station.")
    ] = None,
    credentials: Annotated[
        Path | None,
        typer.Option(help="JSON of users and passwords; who is missing there is added. Without it: no users."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write here instead of standard output.")] = None,
    vhost: Annotated[str, typer.Option(show_default="that of the bus URL, or /", help="Where queues are made.")] = "",
    bus_url: BusUrl = "",
) -> None:
    """Print the broker's definitions, for `rabbitmqctl import_definitions`: queues, limits, users and their rights."""
    from inspectbus.errors import NotPossibleNow

    addresses = addresses_of(bus_url or "amqp://localhost")
    if addresses is None:
        raise NotPossibleNow("an embedded bus has no definitions: it needs no broker", field="bus_url")
    from inspectbus.bus.rabbitmq import topology

    stations = _stations(plant) if plant else []
    passwords: dict[str, str] = {}
    if credentials is not None:
        from inspectbus.cli.credentials import keep_passwords

        passwords = keep_passwords(credentials, [user.name for user in topology.users(stations)])
    text = json.dumps(topology.definitions(vhost or addresses.vhost, passwords, stations), indent=2)
    if output is not None:
        _write_private(output, text + "\n")
    else:
        typer.echo(text)
    if credentials is None:
        typer.echo("without users: name a file with --credentials to have them", err=True)


def _stations(plant: Path) -> list[tuple[str, str]]:
    """Line and station of every camera. Raises BadField."""
    from inspectbus.line import read_plant, settings_class

    settings: Any = settings_class("acquisition").load(read_plant(plant).get("acquisition", {}))
    return [(line.name, station.name) for line in settings.lines for station in line.stations]


def _standings(addresses: Addresses) -> list[Standing]:
    from inspectbus.bus.rabbitmq.survey import standings
    from inspectbus.bus.rabbitmq.topology import connected

    with connected(addresses) as connection:
        return standings(connection)


def _missing(addresses: Addresses) -> str:
    """What is missing and what to do; empty when all is there."""
    from inspectbus.bus.rabbitmq.survey import missing, told_missing
    from inspectbus.bus.rabbitmq.topology import connected

    with connected(addresses) as connection:
        gone = missing(connection)
    return told_missing(gone, addresses.vhost) if gone else ""


def _write_private(file: Path, text: str) -> None:
    """For the owner's eyes alone: the users' password hashes are in it. Raises BadField."""
    from inspectbus.errors import BadField

    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as opened:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.fchmod(descriptor, 0o600)
            opened.write(text)
    except OSError as error:
        raise BadField(f"{plain(str(file))} cannot be written: {error.strerror or error}", field="output") from None


def _as_lines(found: list[Standing]) -> None:
    for each in found:
        json_line(each)
