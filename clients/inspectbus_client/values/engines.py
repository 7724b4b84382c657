"""What runs the models, and what one says of prepared pixels."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from inspectbus_client.values.decisions import Verdict


@dataclass(frozen=True)
class Judgement:
    score: float
    threshold: float
    verdict: Verdict
    model: str
    model_version: str
    qualified_below: float | None
    model_alias: str


@dataclass(frozen=True)
class EngineCandidate:
    name: str
    chosen: bool
    reason: str
    images_per_s: float | None
    deviation: float | None


@dataclass(frozen=True)
class ServedModel:
    """A model by one of its aliases; `detail` says why it does not judge."""

    model: str
    alias: str
    ready: bool
    detail: str
    model_version: str
    preparation_hash: str
    engine: str
    device: str
    loaded_at: datetime | None
    waiting: int
    computed_s: float


@dataclass(frozen=True)
class Engine:
    ready: bool
    detail: str
    engine: str
    device: str
    model: str
    model_version: str
    preparation_hash: str
    threshold: float
    loaded_at: datetime | None
    batches: dict[int, int]
    waiting: int
    queue_limit: int
    qualified_below: float | None
    candidates: tuple[EngineCandidate, ...]
    measured_at: datetime | None
    streams: int
    served: tuple[ServedModel, ...]
