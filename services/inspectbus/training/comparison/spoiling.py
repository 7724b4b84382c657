"""Spoiling: what a worse camera would have taken of the same scene, in the order light meets it, always the same.

scene ─> lens (barrel distortion) ─> movement during the exposure ─> sensor (noise) ─> picture
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectbus.domain.recipe import Lens
from inspectbus.imaging import Image

Fault = Literal["distortion", "motion blur", "noise"]
FAULTS: tuple[Fault, ...] = ("distortion", "motion blur", "noise")
FOCAL = 0.8
"""Focal length in longer sides of the picture: a moderately wide lens."""
BARREL = (-0.25, 0.05, 0.0, 0.0)
"""k1, k2, p1, p2: corners move by about a tenth of their distance from the middle."""
BLUR = 0.03
"""Way of the part during the exposure, in shorter sides of the picture."""
BLUR_ANGLE_DEG = 30.0
NOISE = 12.0
"""Standard deviation of the sensor's Gaussian noise, grey levels of 255."""


def spoil(picture: Image, faults: tuple[Fault, ...], seed: int) -> Image:
    """(H, W, 3) uint8 RGB, as the picture came in. `seed` decides the noise."""
    if "distortion" in faults:
        picture = distorted(picture, lens_of(picture))
    if "motion blur" in faults:
        picture = moved(picture)
    if "noise" in faults:
        picture = noisy(picture, seed)
    return picture


def lens_of(picture: Image) -> Lens:
    """The lens by which `distorted` takes a picture of this size; `imaging.geometry.correct` undoes it."""
    height, width = picture.shape[:2]
    focal = FOCAL * max(height, width)
    matrix = ((focal, 0.0, (width - 1) / 2), (0.0, focal, (height - 1) / 2), (0.0, 0.0, 1.0))
    return Lens(camera_matrix=matrix, size=(width, height), distortion=BARREL)


def distorted(picture: Image, lens: Lens) -> Image:
    """Each pixel of the result shows the point of the scene that the lens (Brown's model) brings there."""
    height, width = picture.shape[:2]
    matrix = np.array(lens.camera_matrix, np.float64)
    across, down = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    pixels = np.stack([across.ravel(), down.ravel()], axis=1)[:, None]
    straight = cv2.undistortPoints(pixels, matrix, np.array(lens.distortion), P=matrix).astype(np.float32)
    seen: Image = cv2.remap(
        picture,
        straight[:, 0, 0].reshape(height, width),
        straight[:, 0, 1].reshape(height, width),
        cv2.INTER_LINEAR,
        # A wide lens sees beyond the picture's edge, of which nothing is known: as the edge goes on.
        borderMode=cv2.BORDER_REPLICATE,
    )
    return seen


def moved(picture: Image) -> Image:
    """The mean of the picture along a straight way: uniform motion during the exposure."""
    blurred: Image = cv2.filter2D(picture, -1, motion(BLUR * min(picture.shape[:2])), borderType=cv2.BORDER_REPLICATE)
    return blurred


def motion(length: float) -> NDArray[np.float64]:
    """(K, K) kernel, sum 1, of a way of `length` pixels at BLUR_ANGLE_DEG: its points, shared by their neighbours."""
    half = max(1, int(np.ceil(length / 2)))
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    angle = np.deg2rad(BLUR_ANGLE_DEG)
    for step in np.linspace(-length / 2, length / 2, 16 * half + 1):
        x, y = half + step * np.cos(angle), half - step * np.sin(angle)
        column, row = int(min(x, 2 * half - 1)), int(min(y, 2 * half - 1))
        right, below = x - column, y - row
        kernel[row : row + 2, column : column + 2] += np.outer([1 - below, below], [1 - right, right])
    normed: NDArray[np.float64] = kernel / kernel.sum()
    return normed


def noisy(picture: Image, seed: int) -> Image:
    grain = np.random.default_rng(seed).normal(0, NOISE, picture.shape)
    return np.clip(np.rint(picture + grain), 0, 255).astype(np.uint8)
