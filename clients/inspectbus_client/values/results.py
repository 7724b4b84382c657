"""What the ledger knows: records, the scores they come to, and where a shadow says something else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from inspectbus_client.values.decisions import Decision, Label, Verdict
from inspectbus_client.values.gates import GateOutcome


@dataclass(frozen=True)
class Record:
    """A decision as the ledger holds it. `truth` is the newest label, `gate` None until its outcome is recorded."""

    cursor: int
    decision: Decision
    recorded_at: datetime | None
    truth: Label | None
    duplicates: int
    conflicts: int
    gate: GateOutcome | None
    late: bool
    revisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Confusion:
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    held_defective: int
    held_good: int


@dataclass(frozen=True)
class Scores:
    """Each is None where it is not defined (0/0)."""

    confusion: Confusion
    precision: float | None
    recall: float | None
    f1: float | None
    accuracy: float | None
    escape: float | None
    overkill: float | None


@dataclass(frozen=True)
class ScoresRow:
    group: str
    scores: Scores
    decisions: int
    """With and without known truth."""
    held: int
    """Of the decisions, with and without known truth; the confusion counts those whose truth is known."""


@dataclass(frozen=True)
class ScoresTable:
    overall: ScoresRow
    rows: tuple[ScoresRow, ...]


@dataclass(frozen=True)
class VerdictPair:
    """So many frames were decided one way, and the shadow said the other."""

    decided: Verdict
    shadow: Verdict
    frames: int


@dataclass(frozen=True)
class Agreement:
    """Two versions at one station, over the frames that both judged."""

    line: str
    station: str
    model_version: str
    shadow_version: str
    frames: int
    agreeing: int
    pairs: tuple[VerdictPair, ...]


@dataclass(frozen=True)
class Disagreement:
    """A frame on which the two verdicts differ."""

    frame_id: str
    line: str
    station: str
    model_version: str
    shadow_version: str
    decided: Verdict
    shadow: Verdict
    decided_score: float | None
    shadow_score: float
    truth: Label | None
    recorded_at: datetime | None
