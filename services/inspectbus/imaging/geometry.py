"""Geometry: the picture a camera took becomes the picture a recipe means: lens, perspective, crop."""

from __future__ import annotations

import threading
from collections import OrderedDict

import cv2
import numpy as np
from numpy.typing import NDArray

from inspectbus.domain.recipe import Crop, Geometry, Lens, Perspective
from inspectbus.errors import BadField
from inspectbus.imaging import Image

MAX_MAP_BYTES = 256 * 1024 * 1024
"""Kept undistortion maps: 6 bytes a pixel, so eight 5-megapixel cameras."""
MAX_WARPED_SIDE = 32766
"""OpenCV's remap and warpPerspective count pixels in 16 signed bits."""


def correct(image: Image, geometry: Geometry) -> Image:
    """Undistorts, straightens and crops, each where the recipe asks for it. Without any, the image itself.

    Bilinear; what lies outside the picture is black. Raises BadField naming the entry ('geometry.crop') that does not
    fit this picture's size.
    """
    if geometry.lens is not None:
        image = _undistorted(image, geometry.lens)
    if geometry.perspective is not None:
        image = _straightened(image, geometry.perspective)
    if geometry.crop is not None:
        image = _cropped(image, geometry.crop)
    return image


def _undistorted(image: Image, lens: Lens) -> Image:
    _check_side(image, "geometry.lens")
    height, width = image.shape[:2]
    if lens.size is not None and lens.size != (width, height):
        raise BadField(
            f"geometry.lens: calibrated for {lens.size[0]}x{lens.size[1]} pixels, the picture has {width}x{height}",
            field="geometry.lens",
        )
    coarse, fine = _maps.of(lens, width, height)
    straight: Image = cv2.remap(image, coarse, fine, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return straight


def _straightened(image: Image, perspective: Perspective) -> Image:
    _check_side(image, "geometry.perspective")
    height, width = image.shape[:2]
    for x, y in perspective.corners:
        # Half a pixel of room: a coordinate names a pixel's middle.
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise BadField(
                f"geometry.perspective: the corner ({x:g}, {y:g}) lies outside the picture of {width}x{height} pixels",
                field="geometry.perspective",
            )
    right, bottom = perspective.width - 1, perspective.height - 1
    target = np.array([(0, 0), (right, 0), (right, bottom), (0, bottom)], np.float32)
    matrix = cv2.getPerspectiveTransform(np.array(perspective.corners, np.float32), target)
    straight: Image = cv2.warpPerspective(
        image, matrix, (perspective.width, perspective.height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
    )
    return straight


def _cropped(image: Image, crop: Crop) -> Image:
    height, width = image.shape[:2]
    if crop.x + crop.width > width or crop.y + crop.height > height:
        raise BadField(
            f"geometry.crop: {crop.width}x{crop.height} pixels at ({crop.x}, {crop.y}) "
            f"lie outside the picture of {width}x{height} pixels",
            field="geometry.crop",
        )
    return np.ascontiguousarray(image[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width])


def _check_side(image: Image, field: str) -> None:
    height, width = image.shape[:2]
    if max(height, width) > MAX_WARPED_SIDE:
        raise BadField(
            f"{field}: pictures up to {MAX_WARPED_SIDE} pixels a side can be warped, this one has {width}x{height}",
            field=field,
        )


class _Maps:
    """Undistortion maps by lens and picture size, least recently used first out. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Lens, int, int], tuple[NDArray[np.int16], NDArray[np.uint16]]] = OrderedDict()

    def of(self, lens: Lens, width: int, height: int) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
        key = (lens, width, height)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        # Made outside the lock: two threads may make the same map once, and no other lens waits for it.
        matrix = np.array(lens.camera_matrix, np.float64)
        coefficients = np.array(lens.distortion, np.float64)
        made = cv2.initUndistortRectifyMap(matrix, coefficients, None, matrix, (width, height), cv2.CV_16SC2)
        with self._lock:
            self._kept[key] = made
            while self.bytes > self._max_bytes:
                self._kept.popitem(last=False)
        return made

    @property
    def bytes(self) -> int:
        return sum(coarse.nbytes + fine.nbytes for coarse, fine in self._kept.values())


_maps = _Maps(MAX_MAP_BYTES)
