"""An image file becomes RGB pixels, or a sentence that says what is wrong with it.

bytes ─> size ─> header (headers.py) ─> limits ─> OpenCV ─> 8 bit RGB
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from cv2.utils import logging as opencv_logging

from inspectbus.errors import UnreadableImage
from inspectbus.imaging import Image
from inspectbus.imaging.headers import FIELD, read_header

# BGR, and the channels turned afterwards: IMREAD_COLOR_RGB of OpenCV 5.0 gives unwritten memory for 16-bit TIFFs.
_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION

_TO_EIGHT_BITS = 255 / 65535


@dataclass(frozen=True)
class DecodeLimits:
    """What a decoder may be given. At 64 M pixels the 16-bit picture and its 8-bit copy take about 600 MB."""

    max_bytes: int = 64 * 1024 * 1024
    """Of the file."""
    max_pixels: int = 64 * 1000 * 1000
    """Width times height, as the header gives them."""
    min_side: int = 16
    """Pixels; nothing can be seen on less."""


_LIMITS = DecodeLimits()


def decode(image: bytes, limits: DecodeLimits = _LIMITS) -> Image:
    """The picture in a PNG, JPEG, BMP or TIFF file, 8 or 16 bits a channel, as (height, width, 3) RGB uint8.

    Grey is repeated in three channels and an alpha channel is dropped. 16-bit values are multiplied by 255/65535 for
    every image alike, never stretched per image, so brightness stays comparable: a 12-bit camera must shift its values
    up itself. The EXIF orientation is ignored: the sensor's rows stay rows whatever the camera's level meant.

    Raises UnreadableImage for anything else: another format, an unfinished or damaged file, several pages, a size
    beyond the limits.
    """
    _hush_opencv()
    if len(image) > limits.max_bytes:
        raise UnreadableImage(f"the image has {len(image)} bytes; at most {limits.max_bytes} are taken", field=FIELD)
    header = read_header(image)
    size = f"{header.width}x{header.height}"
    if min(header.width, header.height) < limits.min_side:
        raise UnreadableImage(
            f"the {header.format} is {size} pixels; each side needs at least {limits.min_side}", field=FIELD
        )
    if header.width * header.height > limits.max_pixels:
        raise UnreadableImage(
            f"the {header.format} is {size} pixels; at most {limits.max_pixels} pixels are decoded", field=FIELD
        )
    if header.bits > 16:
        raise UnreadableImage(
            f"the {header.format} has {header.bits} bits a channel; at most 16 are taken", field=FIELD
        )
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), _FLAGS)
    except cv2.error as error:
        raise UnreadableImage(f"the {header.format} cannot be decoded: {error.err}", field=FIELD) from None
    if pixels is None or pixels.shape[:2] != (header.height, header.width):
        raise UnreadableImage(f"the {header.format} cannot be decoded: its data is damaged", field=FIELD)
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=_TO_EIGHT_BITS)
    elif pixels.dtype != np.uint8:
        raise UnreadableImage(
            f"the {header.format} holds {pixels.dtype} values; 8 or 16 bits without a sign are taken", field=FIELD
        )
    rgb: Image = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return rgb


@cache
def _hush_opencv() -> None:
    """Once a process: OpenCV writes a paragraph to standard error for each bad file, and we raise an error anyway."""
    opencv_logging.setLogLevel(opencv_logging.LOG_LEVEL_SILENT)
