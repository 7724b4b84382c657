"""Two lanes taken from as one: live first, and every eighth from the backlog while both wait.

    put(item, lane) ─> live ────┐
                       backlog ─┴─> next()

So a spool that drains never delays a live line, and a live line never stops it. Bounded by whoever puts.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from inspectbus.bus.contract import BACKLOG_SHARE, Lane

T = TypeVar("T")


class Lanes(Generic[T]):
    """Not thread-safe."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, deque[T]] = {lane: deque() for lane in Lane}
        self._since_backlog = 0

    def __len__(self) -> int:
        return sum(len(lane) for lane in self._lanes.values())

    def __getitem__(self, lane: Lane) -> deque[T]:
        """What waits in one lane, the next first."""
        return self._lanes[lane]

    def put(self, item: T, lane: Lane, *, first: bool = False) -> None:
        if first:
            self._lanes[lane].appendleft(item)
        else:
            self._lanes[lane].append(item)

    def next(self) -> T:
        """Raises IndexError when nothing waits."""
        live, backlog = self._lanes[Lane.LIVE], self._lanes[Lane.BACKLOG]
        # Counted since the last of the backlog: one whose turn came before it arrived goes next.
        if backlog and (not live or self._since_backlog >= BACKLOG_SHARE - 1):
            self._since_backlog = 0
            return backlog.popleft()
        self._since_backlog += 1
        return live.popleft()

    def clear(self) -> list[T]:
        """Empties both, and gives what was there."""
        items = [item for lane in self._lanes.values() for item in lane]
        for lane in self._lanes.values():
            lane.clear()
        return items
