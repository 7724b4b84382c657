"""The preparation: the steps after geometry that define the pixels a network sees. Part of the model version."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Literal

from pydantic import Field

from inspectbus.domain.frozen import Frozen


class Preparation(Frozen):
    """Order: denoise, illumination, colour, resize. Two preparations with one hash give identical pixels."""

    denoise: Literal["none", "median", "bilateral", "non-local-means"] = "none"
    """median: 3x3. bilateral: diameter 5, sigmas 25. non-local-means: strength 5."""
    illumination: Literal["none", "flatten", "clahe"] = "none"
    """flatten: divide by a wide Gaussian blur (sigma = an eighth of the longer side), keep the mean.
    clahe: contrast-limited histogram equalisation of the lightness, clip 2, 8x8 tiles."""
    colour: Literal["rgb", "grey"] = "rgb"
    """grey: luminance, repeated in the three channels."""
    width: int = Field(default=224, ge=32, le=2048)
    """Pixels."""
    height: int = Field(default=224, ge=32, le=2048)
    """Pixels."""
    revision: Literal[1] = 1
    """Rises when the code behind these words changes the pixels it makes."""

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the sha256 of the canonical JSON."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
