"""Trainings and comparisons: what is asked for, and how far each is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class TrainingPlan:
    data: str
    model: str
    backbone: str
    epochs: int
    seed: int | None
    input_size: int
    depth: str
    batch: int
    precision: str
    views: int
    dropout: float | None
    augmentation: Augmentation | None


@dataclass(frozen=True)
class Augmentation:
    """How images are varied while a network learns from them; None is the service's default."""

    flips: bool | None = None
    """Left-right mirror images; up-down ones too where turns are allowed."""
    turns: bool | None = None
    """Right angles; not for parts that have an up."""
    light: float | None = None
    """Brightness and contrast change by at most this share."""
    blur: float | None = None
    """Sigma of a Gaussian blur, pixels, at most."""
    noise: float | None = None
    """Standard deviation of noise, grey levels, at most."""
    perspective: float | None = None
    """Corners move by at most this share of the side."""


@dataclass(frozen=True)
class ComparisonPlan:
    data: str
    models: tuple[str, ...]
    seeds: int | None
    quick: bool
    images: int
    backbone: str
    epochs: int
    input_size: int
    depth: str
    turns: bool | None


@dataclass(frozen=True)
class Progress:
    stage: str
    done: int
    total: int
    figures: dict[str, float]
    step: int
    steps: int


@dataclass(frozen=True)
class Job:
    job_id: str
    state: JobState
    plan: TrainingPlan
    progress: Progress | None
    error: str
    model: str
    model_version: str
    created_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    not_promoted: str
    attempts: int
    comparison: ComparisonPlan | None
    """None for a training."""
