"""What a training is told, what it tells while it runs, and how it is stopped."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from inspectbus.domain.names import Name


class Plan(BaseModel):
    """A training plan with every default filled in. Bounds as below; pydantic names the field beyond one."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    data: str
    """"elpv", or a folder below the service's data root."""
    model: Name
    """Name the version is registered under."""
    backbone: str = Field(min_length=1, max_length=100)
    """A timm or torchvision architecture."""
    epochs: int = Field(ge=1, le=1000)
    seed: int = Field(ge=0, lt=2**32)
    input_size: int = Field(ge=32, le=2048)
    """Side of the square input, pixels."""


class Progress(BaseModel):
    """How far a training is."""

    # A loss that ran away is a figure too, and must survive being written down.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    stage: str = ""
    """"reading", "features", "training", "threshold", "exporting", "registering"; empty before the first."""
    done: int = 0
    total: int = 0
    """Steps of this stage; in "training" a step is an epoch."""
    figures: Mapping[str, float] = Field(default_factory=dict)
    """Newest figures of the training stage by name: "train_loss", "validation_ap", ..."""


class Cancelled(Exception):
    """Raised by a training that found its cancel event set."""
