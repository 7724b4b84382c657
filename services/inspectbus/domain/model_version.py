"""A model version: an immutable folder whose card names every file by hash, and whose id is the card's own hash.

<store>/<name>/<version>/model.json            this card
                         weights.safetensors
                         model.onnx            the same network for other engines
                         pinned/<n>.png        prepared images with the scores they must get
                         validation.csv        what it said of each validation image; for comparing versions
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PositiveInt, ValidationInfo, field_validator, model_validator

from inspectbus.domain.frozen import Frozen
from inspectbus.domain.names import Name
from inspectbus.domain.preparation import Preparation
from inspectbus.domain.thresholds import Thresholds

PRODUCTION = "production"
CANARY = "canary"
SHADOW = "shadow"
CARD_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
EXPORT_FILE = "model.onnx"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RelativeFile = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)?$")]
"""One file of the version, at most one folder down; no way out of the folder can be spelt."""

Views = Literal[1, 2, 4]


class _Part(Frozen):
    model_config = ConfigDict(protected_namespaces=())


class Architecture(_Part):
    """What `networks.build` needs to make the empty network."""

    backbone: str = Field(max_length=100)
    """A timm or torchvision architecture name, 'timm/...' or 'torchvision/...' where both know it."""
    dropout: Unit = 0.5
    # Not written where it is 1: cards from before there was a choice keep their hash, which is their version's id.
    views: Views = Field(default=1, exclude_if=lambda views: views == 1)
    """An image is judged as the mean logit over itself and its flips: 1 itself, 2 and left-right, 4 and up-down."""


class Normalisation(_Part):
    """(pixel - mean) / std per RGB channel, on pixels 0 to 255; done inside the network."""

    mean: tuple[Finite, Finite, Finite]
    std: tuple[Finite, Finite, Finite]


class Calibration(_Part):
    """x = sigmoid(logit / temperature + bias); the score is x, or with knots the straight lines between them at x.

    With knots (x_0, y_0) to (x_k, y_k) that is y_0 + sum of (y_i+1 - y_i) * clip((x - x_i) / (x_i+1 - x_i), 0, 1): any
    engine can compute it. Both maps rise strictly, so calibration never changes which of two parts scores higher.
    """

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    bias: Finite = 0.0
    knots: tuple[tuple[Unit, Unit], ...] = Field(default=(), max_length=1000, exclude_if=lambda knots: not knots)
    """On the card only where there are any: one without is spelt, and hashed, as cards were before there were knots."""

    @model_validator(mode="after")
    def _rising(self) -> Calibration:
        if not self.knots:
            return self
        if self.knots[0][0] != 0 or self.knots[-1][0] != 1:
            raise ValueError("knots must begin at 0 and end at 1: every score lies between two of them")
        for (x, y), (next_x, next_y) in pairwise(self.knots):
            if not (x < next_x and y < next_y):
                raise ValueError(f"knots must rise strictly, and after ({x}, {y}) comes ({next_x}, {next_y})")
        return self


class DataFingerprint(_Part):
    """What the version was trained on."""

    name: str = Field(max_length=200)
    sha256: Sha256
    """Over every item's name, label and content, in the order of names."""
    train_good: int = Field(ge=0)
    train_defective: int = Field(ge=0)
    validation_good: int = Field(ge=0)
    validation_defective: int = Field(ge=0)
    split: str = Field(max_length=500)
    """How train, validation and the held-out part were cut, in words."""


class PinnedImage(_Part):
    """A prepared image and the score it got when the version was made."""

    file: RelativeFile
    score: Unit


class Export(_Part):
    """What model.onnx gives, and how near it is to the network it was made of.

    uint8 (N, H, W, 3) `images` in; out `score`, float32 (N,), calibrated, and perhaps `heatmap`, float32 (N, h, w).
    """

    opset: int = Field(ge=1)
    heatmap: tuple[PositiveInt, PositiveInt] | None
    """h and w. None: the backbone does not end in a mean over places and a linear layer, so no map would be true."""
    images: PositiveInt
    """Of the validation part; each got the same verdict from both."""
    deviation: Unit
    """The largest difference of two scores of one image."""


class ModelCard(_Part):
    """model.json."""

    format: Literal[1] = 1
    name: Name
    architecture: Architecture
    preparation: Preparation
    normalisation: Normalisation
    classes: tuple[Literal["good"], Literal["defective"]] = ("good", "defective")
    calibration: Calibration = Calibration()
    threshold: Unit
    """A score at or above it is DEFECTIVE. Chosen on validation only."""
    qualified_below: Unit | None = Field(default=None, exclude_if=lambda score: score is None)
    """A score below it is QUALIFIED, and one between it and `threshold` is uncertain. None, and then not on the card:
    the threshold alone divides."""
    validation_scores: dict[str, Finite]
    """precision, recall, f1, average_precision at the thresholds on the validation part; uncertain ones are held."""
    data: DataFingerprint
    seed: int = Field(ge=0)
    code_revision: str = Field(max_length=100)
    created_at: str = Field(max_length=40)
    """ISO 8601, UTC."""
    files: dict[RelativeFile, Sha256]
    """Every file of the folder but the card itself."""
    pinned: tuple[PinnedImage, ...] = Field(min_length=1)
    pinned_tolerance: Unit = 0.02
    """How far a pinned image's score may lie from the recorded one; other processors round differently."""
    export: Annotated[Export | None, Field(exclude_if=lambda value: value is None)] = None
    """None on a version made before there were exports, whose card is spelt without it and keeps its hash."""

    @field_validator("qualified_below")
    @classmethod
    def _not_above(cls, lower: float | None, info: ValidationInfo) -> float | None:
        upper = info.data.get("threshold", 1.0)  # absent where it was refused itself
        if lower is not None and lower > upper:
            raise ValueError(f"{lower} is above the threshold {upper}")
        return lower

    @cached_property
    def thresholds(self) -> Thresholds:
        return Thresholds(self.threshold if self.qualified_below is None else self.qualified_below, self.threshold)

    @cached_property
    def version(self) -> str:
        """First 16 hex digits of the sha256 of the card: whoever changes anything has made another version."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
