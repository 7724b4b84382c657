"""Augmentation: an image as the camera might have taken it too, drawn anew each time it is learnt from.

image, generator ─> small perspective ─> right angle, mirror ─> blur ─> light ─> noise ─> an image of the same shape

Only what happens on a line: the part lies otherwise, the light ages, the focus drifts, the sensor is noisy, the camera
was knocked. What an image becomes depends on its generator alone, not on who else is in its batch.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from inspectbus.imaging import Image

_QUARTERS = (None, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)
_MIDDLE_GREY = 128
"""Contrast turns about it."""
_LEAST_SIGMA = 0.2
"""Pixels; a narrower blur leaves eight bits as they are."""


class Augmentation(BaseModel):
    """How images are varied. The strengths are 0, or off, unless a line needs them: each costs a little accuracy on
    images that never show it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flips: bool = True
    """Left-right mirror images; up-down ones too where turns are allowed."""
    turns: bool = True
    """Right angles, of square images. Not for parts that have an up."""
    light: float = Field(default=0.0, ge=0, le=0.9, allow_inf_nan=False)
    """Brightness moves by at most this share of full scale, contrast by at most this share of itself."""
    blur: float = Field(default=0.0, ge=0, le=20, allow_inf_nan=False)
    """Sigma of a Gaussian blur, pixels, at most."""
    noise: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    """Standard deviation of Gaussian noise, grey levels, at most; the same in all channels."""
    perspective: float = Field(default=0.0, ge=0, le=0.25, allow_inf_nan=False)
    """Each corner moves by at most this share of the side."""


def varied(image: Image, how: Augmentation, rng: np.random.Generator) -> Image:
    """A variation of an (H, W, 3) uint8 image, of the same shape and dtype; the image itself is left as it is."""
    if how.perspective:
        image = _knocked(image, how.perspective, rng)
    if how.turns and image.shape[0] == image.shape[1]:
        image = turned(image, int(rng.integers(4)))
    if how.flips and rng.integers(2):
        image = cv2.flip(image, 1)
    if how.blur and (sigma := rng.uniform(0, how.blur)) > _LEAST_SIGMA:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    if how.light:
        image = _lit(image, how.light, rng)
    if how.noise:
        grain = rng.standard_normal(image.shape[:2], dtype=np.float32) * np.float32(rng.uniform(0, how.noise))
        image = cv2.add(image, cv2.merge([grain, grain, grain]), dtype=cv2.CV_8U)
    return image


def turned(image: Image, quarters: int) -> Image:
    """By so many right angles, anticlockwise; no pixel changes its value."""
    code = _QUARTERS[quarters % 4]
    return image if code is None else cv2.rotate(image, code)


def _lit(image: Image, most: float, rng: np.random.Generator) -> Image:
    contrast, shift = 1 + rng.uniform(-most, most), 255 * rng.uniform(-most, most)
    levels = (np.arange(256) - _MIDDLE_GREY) * contrast + _MIDDLE_GREY + shift
    table: NDArray[np.uint8] = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    lit: Image = cv2.LUT(image, table)
    return lit


def _knocked(image: Image, most: float, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    corners = np.array([(0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1)], dtype=np.float32)
    moved = corners + rng.uniform(-most, most, (4, 2)).astype(np.float32) * np.array([width, height], np.float32)
    # What comes into view at the edges is the image's own mirror: a black rim would be a defect to learn.
    seen: Image = cv2.warpPerspective(
        image, cv2.getPerspectiveTransform(corners, moved), (width, height), borderMode=cv2.BORDER_REFLECT_101
    )
    return seen
