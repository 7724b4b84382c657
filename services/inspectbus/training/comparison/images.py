"""Images read once, and what the plain forms need of each.

items ─> bytes ─> decoded ─┬─> 64x64 grey
                           ├─> mean grey and its spread
                           └─> the sha256 by which features are found again
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import structlog

from inspectbus.errors import BadField
from inspectbus.imaging import Image
from inspectbus.imaging.decoding import decode
from inspectbus.stores.datasets import Item
from inspectbus.training.calibration import Labels
from inspectbus.training.comparison.learning import Inputs
from inspectbus.training.evaluation import labels_of
from inspectbus.training.trainer import UNREADABLE_SHARE

log = structlog.get_logger(__name__)

RAW_SIDE = 64


@dataclass(frozen=True)
class Images:
    """The readable ones of some items, in their order."""

    items: tuple[Item, ...]
    contents: tuple[str, ...]
    """sha256 of each one's bytes, hexadecimal."""
    labels: Labels
    pixels: Inputs
    """(N, 4096): 64x64 grey, 0 to 1, row by row."""
    light: Inputs
    """(N, 2): mean grey and its standard deviation over the whole picture, 0 to 1."""
    lost: tuple[Item, ...]
    """Those that cannot be read."""

    @property
    def named(self) -> list[tuple[Item, str]]:
        """As `features.extract` takes them."""
        return list(zip(self.items, self.contents, strict=True))


def read_images(items: Sequence[Item], tell: Callable[[int], None]) -> Images:
    """`tell` hears of each image. Raises BadField naming the first when more than 1 % of them cannot be read."""
    kept: list[tuple[Item, str]] = []
    lost: list[Item] = []
    pixels, light = [], []
    why = ""
    for item in items:
        try:
            data = item.read()
            picture = decode(data)
        except BadField as error:
            log.warning("an image is left out of the comparison", file=str(item.path), error=error.message)
            lost.append(item)
            why = why or error.message
        else:
            kept.append((item, hashlib.sha256(data).hexdigest()))
            pixels.append(raw_pixels(picture))
            light.append(raw_light(picture))
        tell(1)
    if len(lost) > UNREADABLE_SHARE * len(items):
        names = ", ".join(item.name for item in lost[:3]) + (", ..." if len(lost) > 3 else "")
        raise BadField(f"{len(lost)} of {len(items)} images cannot be read: {names}. The first: {why}", field="data")
    return Images(
        items=tuple(item for item, _ in kept),
        contents=tuple(content for _, content in kept),
        labels=labels_of([item for item, _ in kept]),
        pixels=np.stack(pixels),
        light=np.stack(light),
        lost=tuple(lost),
    )


def raw_pixels(picture: Image) -> Inputs:
    """(4096,) float32."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (RAW_SIDE, RAW_SIDE), interpolation=cv2.INTER_AREA)
    pixels: Inputs = small.reshape(-1).astype(np.float32) / np.float32(255)
    return pixels


def raw_light(picture: Image) -> Inputs:
    """(2,) float32."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return np.array([grey.mean(), grey.std()], np.float32) / np.float32(255)
