"""Preparation: a corrected picture becomes the pixels a network sees. The same picture always gives the same bytes.

Training and preprocessing both call this, so what was tested is what runs.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectbus.domain.preparation import Preparation
from inspectbus.imaging import Image

_FLATTEN_SIDE = 256
"""Pixels of the longer side at which the illumination is blurred: so wide a blur loses nothing by it and costs 1 ms."""


def prepare(image: Image, preparation: Preparation) -> Image:
    """(height, width, 3) RGB uint8, C-contiguous, of the preparation's size. The input is left as it is."""
    image = _denoised(image, preparation)
    image = _lit(image, preparation)
    if preparation.colour == "grey":
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return _resized(image, preparation.width, preparation.height)


def _denoised(image: Image, preparation: Preparation) -> Image:
    match preparation.denoise:
        case "none":
            pass
        case "median":
            image = cv2.medianBlur(image, 3)
        case "bilateral":
            image = cv2.bilateralFilter(image, d=5, sigmaColor=25, sigmaSpace=25)
        case "non-local-means":
            # OpenCV's filter goes by lightness and colour, which it finds in BGR.
            turned = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            image = cv2.cvtColor(cv2.fastNlMeansDenoisingColored(turned, h=5, hColor=5), cv2.COLOR_BGR2RGB)
    return image


def _lit(image: Image, preparation: Preparation) -> Image:
    match preparation.illumination:
        case "none":
            pass
        case "flatten":
            image = _flattened(image)
        case "clahe":
            lightness, a, b = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2LAB))
            lightness = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(lightness)
            image = cv2.cvtColor(cv2.merge((lightness, a, b)), cv2.COLOR_LAB2RGB)
    return image


def _flattened(image: Image) -> Image:
    height, width = image.shape[:2]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    scale = min(1.0, _FLATTEN_SIDE / max(height, width))
    small = cv2.resize(
        grey, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    wide = cv2.GaussianBlur(small, (0, 0), max(small.shape) / 8)
    wide = cv2.resize(wide, (width, height), interpolation=cv2.INTER_LINEAR)
    light: NDArray[np.float32] = np.maximum(wide, 1.0)
    # One gain for the three channels keeps colours; the second factor keeps the mean.
    flat_mean = float((grey / light).mean())
    gain = (float(grey.mean()) / flat_mean if flat_mean else 1.0) / light
    lit = np.rint(image * gain[:, :, None])
    return np.clip(lit, 0, 255).astype(np.uint8)


def _resized(image: Image, width: int, height: int) -> Image:
    # Axis by axis: averaging where it shrinks, so that fine structure does not alias, interpolating where it grows.
    shrunk_size = (min(width, image.shape[1]), min(height, image.shape[0]))
    shrunk = cv2.resize(image, shrunk_size, interpolation=cv2.INTER_AREA)
    grown: Image = cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(grown)
