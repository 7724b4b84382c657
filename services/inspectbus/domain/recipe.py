"""A recipe: how one kind of station's images are corrected, when they are usable, and which model judges them."""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from inspectbus.domain.names import Name
from inspectbus.domain.strict_yaml import read_mapping, written
from inspectbus.errors import BadField

# Strict: YAML's `true` is no 1.
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Score = Annotated[Finite, Field(ge=0, le=1)]
Point = tuple[Finite, Finite]
Row = tuple[Finite, Finite, Finite]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Lens(_Part):
    """Camera matrix and distortion of a calibrated lens, as OpenCV's calibrateCamera gives them."""

    camera_matrix: tuple[Row, Row, Row]
    """Pixels, for images of `size`."""
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Width and height the lens was calibrated at; images of another size are refused. None: not checked."""
    distortion: tuple[Finite, ...] = Field(min_length=4, max_length=14)
    """k1, k2, p1, p2 [, k3 [, k4, k5, k6 [, s1, s2, s3, s4 [, tx, ty]]]]."""

    @model_validator(mode="after")
    def _known_forms(self) -> Lens:
        if len(self.distortion) not in (4, 5, 8, 12, 14):
            raise ValueError("distortion takes 4, 5, 8, 12 or 14 coefficients")
        if self.camera_matrix[0][0] <= 0 or self.camera_matrix[1][1] <= 0:
            raise ValueError("camera_matrix needs positive focal lengths")
        return self


class Perspective(_Part):
    """The quadrilateral of the image that becomes the whole picture."""

    corners: tuple[Point, Point, Point, Point]
    """Top left, top right, bottom right, bottom left, pixels of the undistorted image."""
    width: int = Field(ge=8, le=16384)
    height: int = Field(ge=8, le=16384)

    @model_validator(mode="after")
    def _convex(self) -> Perspective:
        turns = []
        for i in range(4):
            (ax, ay), (bx, by), (cx, cy) = (self.corners[(i + k) % 4] for k in range(3))
            turns.append((bx - ax) * (cy - by) - (by - ay) * (cx - bx))
        if not all(turn > 0 for turn in turns):
            raise ValueError("corners must go round a convex shape: top left, top right, bottom right, bottom left")
        return self


class Crop(_Part):
    """The part of the corrected picture that is kept, pixels."""

    x: int = Field(ge=0, le=16384)
    y: int = Field(ge=0, le=16384)
    width: int = Field(ge=1, le=16384)
    height: int = Field(ge=1, le=16384)


class Geometry(_Part):
    """Order: lens, perspective, crop. Each may be absent."""

    lens: Lens | None = None
    perspective: Perspective | None = None
    crop: Crop | None = None


class QualityLimits(_Part):
    """Beyond any of these an image is held as unusable. Measures as in QualityReport; None does not limit."""

    min_sharpness: Finite | None = 3.0
    """Rounding to 8 bits alone leaves up to 2.7 to a picture blurred past recognition; sharp ones begin at 3.2."""
    min_brightness: Finite | None = 10.0
    max_brightness: Finite | None = 245.0
    max_glare: Finite | None = 0.5
    max_noise: Finite | None = None


class Recipe(_Part):
    """Everything a station's images need, by name."""

    name: Name
    description: str = Field(default="", max_length=500)
    model: Name
    model_alias: Name = "production"
    geometry: Geometry = Geometry()
    quality: QualityLimits = QualityLimits()
    threshold: Score | None = None
    """Wins over the model version's thresholds, and is recorded with each decision. Alone it leaves no band between."""
    qualified_below: Score | None = Field(default=None, exclude_if=lambda score: score is None)
    """The lower end of the band whose upper end is `threshold`: a score between them holds the part as uncertain.
    Written out only where it is given: a recipe without one keeps the hash it had before there were bands."""

    @field_validator("qualified_below")
    @classmethod
    def _other_end(cls, lower: float | None, info: ValidationInfo) -> float | None:
        # Absent where the threshold itself was refused, which is then the error that counts.
        upper = info.data.get("threshold", 1.0)
        if lower is not None and upper is None:
            raise ValueError("needs a threshold: a band has two ends")
        if lower is not None and lower > upper:
            raise ValueError(f"{lower} is above the threshold {upper}")
        return lower

    def to_yaml(self) -> str:
        """Canonical text, defaults written out; `from_yaml` gives the same recipe back."""
        return written(self.model_dump(mode="json"), allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """Raises BadField naming the entry at fault, such as 'geometry.crop.width'."""
        content = read_mapping(text, "a recipe")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(step) for step in first["loc"]) or "yaml"
            words = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                words = "a recipe has no such entry"
            raise BadField(f"{field}: {words}", field=field) from None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()
