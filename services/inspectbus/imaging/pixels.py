"""Prepared pixels as a message, and back."""

from __future__ import annotations

import numpy as np

from inspectbus.api.v1.prepared_frame_pb2 import Pixels
from inspectbus.errors import BadField
from inspectbus.imaging import Image


def to_pixels(image: Image) -> Pixels:
    """From (height, width, 3) uint8 RGB."""
    height, width, channels = image.shape
    return Pixels(height=height, width=width, channels=channels, data=np.ascontiguousarray(image).tobytes())


def from_pixels(pixels: Pixels, field: str = "pixels") -> Image:
    """(height, width, 3) uint8 RGB, read-only over the message's bytes. Raises BadField when the sizes do not agree."""
    if pixels.channels != 3:
        raise BadField(f"{field}.channels is {pixels.channels}; three are taken: RGB", field=f"{field}.channels")
    for name, side in (("height", pixels.height), ("width", pixels.width)):
        if side == 0:
            raise BadField(f"{field}.{name} is 0", field=f"{field}.{name}")
    expected = pixels.height * pixels.width * pixels.channels
    data = pixels.data  # copied by protobuf each time it is asked for
    if len(data) != expected:
        raise BadField(
            f"{field}.data has {len(data)} bytes; {pixels.height}x{pixels.width}x{pixels.channels} takes {expected}",
            field=f"{field}.data",
        )
    return np.frombuffer(data, np.uint8).reshape(pixels.height, pixels.width, pixels.channels)
