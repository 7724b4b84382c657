"""What a station did with a part, and why."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from inspectbus_client.values.decisions import Verdict


class GateAction(StrEnum):
    PASS = "PASS"  # noqa: S105 - a word of the line, no password
    REJECT = "REJECT"
    DIVERT = "DIVERT"
    UNKNOWN = "UNKNOWN"


class GateReason(StrEnum):
    DECISION = "DECISION"
    DEADLINE = "DEADLINE"
    RESTART = "RESTART"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class GateOutcome:
    """What the station did with the part. `waited_s` is None when the station had restarted meanwhile."""

    frame_id: str
    line: str
    station: str
    run_id: str
    action: GateAction | None
    reason: GateReason | None
    at: datetime | None
    waited_s: float | None
    verdict: Verdict | None
    part_id: str
