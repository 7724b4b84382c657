"""What a training is told, what it tells while it runs, and how it is stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from inspectbus.domain.model_version import Views
from inspectbus.domain.names import Name
from inspectbus.training.augmentation import Augmentation

Depth = Literal["upper", "whole"]
BATCH: Mapping[Depth, int] = {"upper": 32, "whole": 16}
"""A whole network has more to learn, and takes smaller and so more steps for it at nearly the same price an image."""


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
    depth: Depth = "upper"
    """"upper": the lower part stays as it is, and learning takes minutes. "whole": every layer learns from pixels."""
    batch: int = Field(default_factory=lambda told: BATCH[told["depth"]], ge=2, le=1024)
    """Images per step; by default the depth's."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What layers compute with while they learn. "auto" measures where the whole network learns, so that two trainings
    of one seed may differ by rounding; in an upper part there is little to gain, and it is fp32."""
    views: Views = 1
    """So many flips of an image are judged, once trained, and their mean logit counts."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share of the features hidden from the head while it learns."""
    augmentation: Augmentation = Augmentation()
    """Where only the upper part learns, its flips alone are heeded: maps of the lower part are kept, not made anew."""


class Progress(BaseModel):
    """How far a training is."""

    # A loss that ran away is a figure too, and must survive being written down.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    stage: str = ""
    """"reading", "features" or "preparing", "training", "threshold", "exporting", "registering"; empty before the
    first."""
    done: int = 0
    total: int = 0
    """Steps of this stage; in "training" a step is an epoch."""
    figures: Mapping[str, float] = Field(default_factory=dict)
    """Newest figures of the training stage by name: "train_loss", "validation_ap", ..."""
    step: int = 0
    steps: int = 0
    """Batches within the present epoch, learnt and in all."""


class Cancelled(Exception):
    """Raised by a training that found its cancel event set."""
