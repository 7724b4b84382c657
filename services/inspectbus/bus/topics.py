"""The topics of the inspection bus: who works on them, and which have lanes. The one place that spells their names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """An exchange. Each group has its own work queue (two where the topic is laned) and settles every message."""

    name: str
    groups: tuple[str, ...] = ()
    laned: bool = False
    body: str = ""
    """The protobuf type of its messages; empty where they are of several."""


FRAMES = Topic("inspectbus.frames", ("preprocessing",), laned=True, body="inspectbus.api.v1.Frame")
"""Key <line>.<station>."""
PREPARED = Topic("inspectbus.prepared", ("inference",), laned=True, body="inspectbus.api.v1.PreparedFrame")
"""Key <line>.<station>."""
DECISIONS = Topic("inspectbus.decisions", ("results",), body="inspectbus.api.v1.Decision")
"""Key <line>.<station>.<verdict>."""
GATES = Topic("inspectbus.gates", ("outcomes",), body="inspectbus.api.v1.GateOutcome")
"""Key <line>.<station>."""
SHADOWS = Topic("inspectbus.shadows", ("shadows",), body="inspectbus.api.v1.ShadowDecision")
"""Key <line>.<station>."""
TRAINING = Topic("inspectbus.training", ("training",), body="inspectbus.api.v1.JobRequested")
"""Key job.requested."""
EVENTS = Topic("inspectbus.events", body="inspectbus.api.v1.AliasChange")
"""News only, key <noun>.<verb>: model.alias-changed."""
DEAD = Topic("inspectbus.dead", ("dead",))
"""Whatever was parked, body unchanged; key <topic>.<group>."""

ALL = (FRAMES, PREPARED, DECISIONS, GATES, SHADOWS, TRAINING, EVENTS, DEAD)
