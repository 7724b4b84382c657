"""Which broker a command talks to, and what is said where there is none to talk to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from inspectbus.bus.rabbitmq.addresses import Addresses

BusUrl = Annotated[
    str,
    typer.Option(
        "--bus-url",
        metavar="URL",
        envvar="INSPECTBUS_BUS_URL",
        help="amqp://user:password@host/vhost. A password is better kept in the variable.",
        show_default=False,
    ),
]

EMBEDDED = "embedded://line"
"""As for services: what nobody told otherwise."""
IS_EMBEDDED = (
    "an embedded bus needs nothing of this: it lives in its process and ends with it; INSPECTBUS_BUS_URL or --bus-url "
    "names a broker"
)


def addresses_of(url: str) -> Addresses | None:
    """Where the broker is; None for an embedded bus. Raises BadField, NotPossibleNow without the library."""
    from inspectbus.errors import BadField, NotPossibleNow

    if url.startswith("embedded://"):
        return None
    if not url.startswith(("amqp://", "amqps://")):
        raise BadField("not a bus URL: use amqp://user:password@host/vhost or embedded://NAME", field="bus_url")
    try:
        from inspectbus.bus.rabbitmq.addresses import parse
    except ModuleNotFoundError as error:
        raise NotPossibleNow(f"amqp:// needs the library {error.name}: install inspectbus[rabbitmq]") from error
    return parse(url, "inspectbus-operator")
