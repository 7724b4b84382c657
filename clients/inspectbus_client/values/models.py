"""Model versions, what their aliases named, and the thresholds advised for them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast


@dataclass(frozen=True)
class Model:
    name: str
    version: str
    aliases: tuple[str, ...]
    card_json: str = field(repr=False)
    registered_at: datetime | None

    @property
    def card(self) -> dict[str, Any]:
        """The model card: architecture, preparation, threshold, validation_scores, files."""
        return cast("dict[str, Any]", json.loads(self.card_json))


@dataclass(frozen=True)
class AliasChange:
    """An alias was pointed at `version`; `previous` is empty when it was new."""

    name: str
    alias: str
    version: str
    previous: str
    changed_at: datetime | None
    by: str
    reason: str
    forced: bool
    rollback: bool


@dataclass(frozen=True)
class BoundedShare:
    """Of parts, 0 to 1: among the validation images, and the upper 95 % bound for all parts like them."""

    seen: float
    at_most: float


@dataclass(frozen=True)
class ThresholdAdvice:
    """Two thresholds, equal where nothing is held. Escape and held_defective count defective parts, the rest good."""

    qualified_below: float
    threshold: float
    escape: BoundedShare
    overkill: BoundedShare
    held: BoundedShare
    held_defective: float


@dataclass(frozen=True)
class AdvisedThreshold:
    """`curve` has what other escape limits would give, from the lowest that the images can show upward."""

    name: str
    version: str
    advice: ThresholdAdvice
    curve: tuple[ThresholdAdvice, ...]
    good: int
    defective: int
