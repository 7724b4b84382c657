"""What a training is told, what it tells while it runs, and how it is stopped."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field


class Plan(BaseModel):
    """A checked training plan, with every default filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    data: str
    """"elpv", or a folder below the service's data root."""
    model: str
    """Name the version is registered under."""
    backbone: str
    """A timm or torchvision architecture."""
    epochs: int
    seed: int
    input_size: int
    """Side of the square input, pixels."""


class Progress(BaseModel):
    """How far a training is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str = ""
    """"reading", "features", "training", "threshold", "registering"; empty before the first."""
    done: int = 0
    total: int = 0
    """Steps of this stage; in "training" a step is an epoch."""
    figures: Mapping[str, float] = Field(default_factory=dict)
    """Newest figures of the training stage by name: "train_loss", "validation_ap", ..."""


class Cancelled(Exception):
    """Raised by a training that found its cancel event set."""
