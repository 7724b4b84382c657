"""A mask: an image as large as the picture it belongs to, white where the defect is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspectbus.errors import BadField
from inspectbus.imaging.decoding import decode
from inspectbus.stores.datasets.items import MAX_FILE_BYTES, Item

_WHITE = 128
"""Masks are drawn in 0 and 255; one that was kept as a JPEG has greys along its edges."""


def read_mask(item: Item, width: int, height: int) -> NDArray[np.bool_]:
    """bool (height, width), True where the item's defect is. The size is that of its picture, in pixels.

    Raises BadField naming the mask when the item has none, or when it cannot be read or has another size.
    """
    if item.mask is None:
        raise BadField(f"{item.name} has no mask", field=item.name)
    try:
        if item.mask.stat().st_size > MAX_FILE_BYTES:
            raise BadField(f"mask {item.mask} has more than {MAX_FILE_BYTES} bytes", field=item.name)
        pixels = decode(item.mask.read_bytes())
    except OSError as error:
        raise BadField(f"mask {item.mask} cannot be read: {error.strerror}", field=item.name) from None
    except BadField as error:
        raise BadField(f"mask {item.mask} cannot be read: {error.message}", field=item.name) from None
    if pixels.shape[:2] != (height, width):
        there = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise BadField(f"mask {item.mask} is {there} pixels, its image {item.name} {width}x{height}", field=item.name)
    marked: NDArray[np.bool_] = pixels[:, :, 0] >= _WHITE
    return marked
