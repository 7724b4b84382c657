"""The topics of the inspection bus: who works on them, and which have lanes. The one place that spells their names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """An exchange. Each group has its own work queue (two where the topic is laned) and settles every message."""

    name: str
    groups: tuple[str, ...] = ()
    laned: bool = False


FRAMES = Topic("inspectbus.frames", ("preprocessing",), laned=True)
"""Frame; key <line>.<station>."""
PREPARED = Topic("inspectbus.prepared", ("inference",), laned=True)
"""PreparedFrame; key <line>.<station>."""
DECISIONS = Topic("inspectbus.decisions", ("results",))
"""Decision; key <line>.<station>.<verdict>."""
DEAD = Topic("inspectbus.dead", ("dead",))
"""Whatever was parked, body unchanged; key <topic>.<group>."""

ALL = (FRAMES, PREPARED, DECISIONS, DEAD)
