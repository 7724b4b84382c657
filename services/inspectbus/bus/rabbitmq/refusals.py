"""How long the broker has said nothing but no.

nack ─> borne too long? ─> the publisher tries another channel
ack ──> over

A channel that was open when a queue's leader died may be refused for as long as that node is away, while a new one is
served by the new leader. Where the queue really is full, another channel helps nothing and costs little.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

FIRST_S, LONGEST_S = 5.0, 60.0
"""Of refusals until another channel is tried; twice as long until the next."""

Way = tuple[str, str]
"""Exchange and routing key. Each has a queue of its own behind it: others may be confirmed meanwhile."""


@dataclass
class _Refused:
    since_s: float
    patience_s: float


class Refusals:
    def __init__(self) -> None:
        self._ways: dict[Way, _Refused] = {}

    def over(self, way: Way) -> None:
        """Something was confirmed there."""
        self._ways.pop(way, None)

    def clear(self) -> None:
        self._ways.clear()

    def borne_too_long(self, ways: Iterable[Way]) -> bool:
        """These were refused now. True when it is time for another channel, on which all ways begin again."""
        now_s = time.monotonic()
        refused = [self._ways.setdefault(way, _Refused(now_s, FIRST_S)) for way in ways]
        if all(now_s - each.since_s <= each.patience_s for each in refused):
            return False
        for each in self._ways.values():
            each.since_s = now_s
            each.patience_s = min(2 * each.patience_s, LONGEST_S)
        return True
