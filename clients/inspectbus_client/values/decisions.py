"""A decision: the verdict on one frame, and what led to it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Verdict(StrEnum):
    QUALIFIED = "QUALIFIED"
    DEFECTIVE = "DEFECTIVE"
    HOLD = "HOLD"
    UNKNOWN = "UNKNOWN"
    """A word of a service newer than this client. Treat it as HOLD."""


class HoldReason(StrEnum):
    UNUSABLE_IMAGE = "UNUSABLE_IMAGE"
    UNCERTAIN_SCORE = "UNCERTAIN_SCORE"
    ERROR = "ERROR"
    NO_MODEL = "NO_MODEL"
    UNKNOWN = "UNKNOWN"


class Label(StrEnum):
    GOOD = "GOOD"
    DEFECTIVE = "DEFECTIVE"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class Hold:
    reason: HoldReason
    detail: str
    measure: str
    value: float
    limit: float


@dataclass(frozen=True)
class Quality:
    sharpness: float
    brightness: float
    glare: float
    noise: float


@dataclass(frozen=True)
class Timings:
    captured_at: datetime | None
    preparing_at: datetime | None
    prepared_at: datetime | None
    queued_at: datetime | None
    inferred_at: datetime | None
    decided_at: datetime | None


@dataclass(frozen=True)
class Evidence:
    original_key: str
    prepared_key: str
    heatmap_key: str


@dataclass(frozen=True)
class Decision:
    """The outcome for one frame. `score` and `threshold` are None when the frame never reached a network.

    A score below `qualified_below` is good; between it and `threshold` the part is held. None: the threshold divides.
    """

    frame_id: str
    line: str
    station: str
    run_id: str
    source_item: str
    sequence: int
    part_id: str
    lot_id: str
    product: str
    verdict: Verdict
    hold: Hold | None
    score: float | None
    threshold: float | None
    model: str
    model_version: str
    recipe: str
    recipe_version: int
    preparation_hash: str
    quality: Quality | None
    timings: Timings
    evidence: Evidence
    truth: Label | None
    revision: int
    image_key: str
    pixels_key: str
    qualified_below: float | None
    model_alias: str

    @property
    def latency_s(self) -> float | None:
        """Seconds from capture to decision; None where a hop did not say."""
        begun, ended = self.timings.captured_at, self.timings.decided_at
        return (ended - begun).total_seconds() if begun and ended else None
