"""The inspection bus: one contract, a form for each URL.

Only the chosen form is imported, so an embedded line needs no broker's library.
"""

from __future__ import annotations

from inspectbus.bus.contract import Bus, Delivery, Lane, Message, Subscription
from inspectbus.errors import BadField

__all__ = ["Bus", "Delivery", "Lane", "Message", "Subscription", "connect"]


def connect(url: str) -> Bus:
    """A bus by URL. `embedded://NAME` joins the bus of that name in this process.

    Raises BadField for another scheme.
    """
    scheme, separator, name = url.partition("://")
    if not separator or scheme != "embedded":
        raise BadField(f"no bus for {scheme!r}: use embedded://NAME", field="bus_url")
    from inspectbus.bus.embedded import EmbeddedBus

    return EmbeddedBus(name or "line")
