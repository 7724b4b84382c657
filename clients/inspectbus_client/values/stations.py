"""A station and what troubles it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from inspectbus_client.values.gates import GateAction


class StationState(StrEnum):
    STOPPED = "STOPPED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    LISTENING = "LISTENING"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class Station:
    line: str
    station: str
    recipe: str
    source: str
    state: StationState
    detail: str
    run_id: str
    accepted: int
    unreadable: int
    in_flight: int
    last_frame_at: datetime | None
    fps: float
    spooled: int
    spooled_bytes: int
    behind: timedelta | None
    dropped: int
    pending: int
    outcomes: int
    late: int
    deadline: timedelta | None
    fail_safe: GateAction | None
