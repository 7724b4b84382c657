"""The inspection bus: one contract, a form for each URL.

Only the chosen form is imported, so an embedded line needs no broker's library.
"""

from __future__ import annotations

from inspectbus.bus.contract import Bus, Delivery, Lane, Message, StartChild, Subscription
from inspectbus.errors import BadField, NotPossibleNow

__all__ = ["Bus", "Delivery", "Lane", "Message", "StartChild", "Subscription", "connect"]


def connect(url: str, name: str = "inspectbus", start_child: StartChild | None = None) -> Bus:
    """A bus by URL. `embedded://NAME` joins the bus of that name in this process; `amqp://user:password@host/vhost`
    (amqps:// with TLS) is a RabbitMQ, in whose list of connections `name` shows. There, `start_child` starts this
    process's service again on solo://FD, to work alone what went down with its workers.

    Raises BadField for another scheme, NotAllowed when the broker refuses the user, NotPossibleNow without its library.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "embedded":
        from inspectbus.bus.embedded import EmbeddedBus

        return EmbeddedBus(rest or "line")
    if separator and scheme in ("amqp", "amqps"):
        try:
            from inspectbus.bus.rabbitmq import RabbitMQBus
        except ModuleNotFoundError as error:
            raise NotPossibleNow(f"{scheme}:// needs the library {error.name}: install inspectbus[rabbitmq]") from error
        return RabbitMQBus(url, name, start_child)
    if separator and scheme == "solo" and rest.isdecimal():
        from inspectbus.bus.solo import SoloBus

        return SoloBus(int(rest))
    raise BadField(
        f"no bus for {scheme[:20]!r}: use embedded://NAME or amqp://user:password@host/vhost", field="bus_url"
    )
